"""The exercises, a module for each chapter: checks and, below each, the solution that its time is compared with."""

from importlib import import_module
from typing import Any

from ..xraying import wanted
from . import beside
from .common import CHECKS, Wrong, discreet, explained, forecasts, state
from .hints import hint, offered
from .kernels import guarded_and_compiled

__all__ = ["check", "hint", "right"]


def right(number: str, *answers: Any) -> str:
    """Return what is right of the answers to an exercise, or raise `Wrong`."""
    import_module(f".ch{number[:2]}", __name__)
    state.counted = state.timed = False
    with explained(), guarded_and_compiled():
        said = CHECKS[number](*answers)
    if state.counted and not state.here:  # on a GPU, which does not tell what kernels do
        said = beside.judged(number, answers, clock=state.timed)
    return said


@discreet
def check(number: str, *answers: Any) -> None:
    """Try what answers an exercise, as `check("09-3", column_sums_block)`: print "Right: …", or raise `Wrong`.

    In a reader's notebook without a GPU, what an H200 would say about a kernel's speed follows: no points hang on it.
    """
    forecasts.clear()
    try:
        print(f"Right: {right(number, *answers)}")
    except Wrong as wrong:
        wrong.offer = offered(number)
        raise
    for ask in forecasts if wanted() else ():
        print(ask())
