"""Imports Triton before flashkat_lite.lab, which would choose the interpreter for the whole process of tests."""

import contextlib

with contextlib.suppress(ImportError):
    import triton  # noqa: F401
