import triton_first  # noqa: F401
