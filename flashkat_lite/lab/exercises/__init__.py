"""The exercises, a module for each chapter: checks and, below each, the solution that its time is compared with."""

from importlib import import_module
from typing import Any

from ..xraying import wanted
from .common import CHECKS, discreet, forecasts


@discreet
def check(number: str, *answers: Any) -> None:
    """Try what answers an exercise, as `check("09-3", column_sums_block)`: print "Right: …", or raise `Wrong`.

    In a reader's notebook without a GPU, what an H200 would say about a kernel's speed follows: no points hang on it.
    """
    import_module(f".ch{number[:2]}", __name__)
    forecasts.clear()
    print(f"Right: {CHECKS[number](*answers)}")
    for ask in forecasts if wanted() else ():
        print(ask())
