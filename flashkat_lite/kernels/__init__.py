"""The Triton kernels, one rung a file; importing this package imports Triton."""

from .. import _interpreter

_interpreter.prepare()

from triton import knobs  # noqa: E402

INTERPRETED = knobs.runtime.interpret  # TRITON_INTERPRET=1 or "true", fixed when Triton is imported
