"""The exercises, a module for each chapter: checks and, below each, the solution that its time is compared with."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from ..xraying import wanted
from . import beside
from .common import CHECKS, Wrong, discreet, explained, forecasts, state, unchanged
from .hints import hint, offered
from .kernels import guarded_and_compiled, sass
from .touched import Touched

__all__ = ["check", "hint", "right"]


def right(number: str, *answers: Any, **told: Callable[..., None]) -> str:
    """Return what is right of the answers to an exercise, or raise `Wrong`. told: listeners of `testing.watching`."""
    import_module(f".ch{number[:2]}", __name__)
    state.begin()
    with explained(), guarded_and_compiled(**told):
        said = CHECKS[number](*map(unchanged, answers))
    if state.counted and not state.here:  # on a GPU, which does not tell what kernels do
        said = beside.judged(number, answers, clock=state.timed)
    return said


@discreet
def check(number: str, *answers: Any) -> None:
    """Try what answers an exercise, as `check("09-3", column_sums_block)`: print "Right: …", or raise `Wrong`.

    In a reader's notebook without a GPU, a picture of what a kernel's programs touched follows, and what an H200 would
    say about its speed; with one, registers and instructions of what it ran. No points hang on them.
    """
    forecasts.clear()
    touched = Touched() if wanted() else None
    try:
        print(f"Right: {right(number, *answers, **({'done': touched} if touched else {}))}")
    except Wrong as wrong:
        wrong.offer = offered(number)
        raise
    if touched:
        touched.show()
        for line in sass():
            print(line)
        for ask in forecasts:
            print(ask())
