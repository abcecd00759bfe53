"""An x-ray in a notebook: what a GPU that is not there would say about a function, and how two compare."""

import os
from collections.abc import Callable
from typing import Any

import torch
from IPython.display import HTML, display
from torch import Tensor

from flashkat_lite.xray import Forecast, compared
from flashkat_lite.xray import xray as forecast_of
from flashkat_lite.xray.report import html


def like(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a tensor that nothing fills, which costs no memory until it is touched: an input for `xray`."""
    return torch.empty(shape, dtype=dtype)


def xray(
    *functions_and_inputs: Any, gpu: str = "h200", recorded: float | None = None, **options: Any
) -> Forecast | list[Forecast]:
    """Show what a function should take on a GPU: a line with a range, its terms, and the source with its numbers.

    First the function, or several to compare, then their inputs: tensors, shapes (of float32, never filled) or values.
    Returns the `Forecast`, or a list of them. gpu: "h200", "h100" or a card of `flashkat_lite.xray.names()`. recorded:
    the ms that a record has for the first, to stand beside.
    """
    functions = []
    for one in functions_and_inputs:
        if isinstance(one, Tensor) or not callable(one):
            break
        functions.append(one)
    if not functions:
        raise TypeError("xray(f, *inputs): the first argument is the function to look at")
    inputs = functions_and_inputs[len(functions) :]
    found = [forecast_of(f, *inputs, gpu=gpu, **options) for f in functions]
    if len(found) > 1:
        display(HTML("".join(f'<p class="fk-note">{compared(found[0], other)}</p>' for other in found[1:])))
    for k, forecast in enumerate(found):
        display(HTML(html(forecast, None if k else recorded)))
    return found[0] if len(found) == 1 else found


def wanted() -> bool:
    """Return whether exercises should say what a GPU would: in a reader's notebook, and where FLASHKAT_FORECAST is 1.

    FLASHKAT_FORECAST=0 says no: what executes, tests and grades chapters sets it.
    """
    setting = os.environ.get("FLASHKAT_FORECAST")
    if setting is not None:
        return setting == "1"
    from IPython import get_ipython

    return hasattr(get_ipython(), "kernel")


def foretold(f: Callable, ours: Callable, arguments: tuple, size: str, dtype: torch.dtype) -> str:
    """Return what an H200 would say about an answer and about our solution; never a grade."""
    try:
        theirs = forecast_of(f, *arguments, dtype=dtype, name="yours")
        mine = forecast_of(ours, *arguments, dtype=dtype, name="ours")
    except Exception as error:  # a right answer stays right
        return f"No forecast: {(str(error).strip() or type(error).__name__).splitlines()[-1][:200]}"
    lines = [f"Not measured, a forecast for {size}. {theirs}"]
    ratio = theirs.ms / mine.ms
    beside = (
        f"{ratio:.1f} times ours"
        if ratio > 1.25
        else f"ours {1 / ratio:.1f} times yours"
        if ratio < 0.8
        else "about ours"
    )
    lines.append(f"That is {beside} ({1e3 * mine.ms:,.0f} µs, {mine.bound}).")
    if ratio > 1.25:
        lines += theirs.warnings()
    return "\n".join(lines)
