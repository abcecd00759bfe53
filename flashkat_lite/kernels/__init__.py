"""The Triton kernels, one rung a file; importing this package imports Triton."""

from triton import knobs

INTERPRETED = knobs.runtime.interpret  # fixed when Triton is imported: TRITON_INTERPRET=1
