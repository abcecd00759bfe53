"""The Triton kernels, one rung a file; importing this package imports Triton."""

from triton import knobs

INTERPRETED = knobs.runtime.interpret  # TRITON_INTERPRET=1 or "true", fixed when Triton is imported
