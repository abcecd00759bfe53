"""Triton, or a stand-in: where there is none, the solutions' kernels are defined and never run."""

try:
    import triton
    import triton.language as tl

    from flashkat_lite.kernels.layout import programs_per_whole_rows, vector_width
    from flashkat_lite.kernels.polynomial import reciprocal, to_float32
except ModuleNotFoundError:
    from unittest.mock import MagicMock

    triton = tl = programs_per_whole_rows = vector_width = reciprocal = to_float32 = MagicMock()

__all__ = ["programs_per_whole_rows", "reciprocal", "tl", "to_float32", "triton", "vector_width"]
