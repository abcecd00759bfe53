"""The exercises, a module for each chapter: checks and, below each, the solution that its time is compared with."""

from importlib import import_module
from typing import Any

from .common import CHECKS, discreet, explained
from .kernels import guarded_and_compiled


@discreet
def check(number: str, *answers: Any) -> None:
    """Try what answers an exercise, as `check("09-3", column_sums_block)`: print "Right: …", or raise `Wrong`."""
    import_module(f".ch{number[:2]}", __name__)
    with explained(), guarded_and_compiled():
        said = CHECKS[number](*answers)
    print(f"Right: {said}")
