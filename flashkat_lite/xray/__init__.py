"""What would an H200 say? A forecast for a Triton kernel, without a GPU: how long, and what holds it back.

    from flashkat_lite.xray import xray

    print(xray(my_function, (201728, 768)).table())  # with TRITON_INTERPRET=1

Files, in the order of the work: `stage` makes a GPU that is not there, `counting` runs some programs in Triton's
interpreter, `warp` reads the SASS, `prices` are a GPU's, `model` puts a time to it, `report` says it.
"""

from collections.abc import Callable
from typing import Any

import torch

from .counting import Outside
from .prices import Prices, load, names
from .report import Forecast, compared, forecast

__all__ = ["Forecast", "Outside", "Prices", "compared", "load", "names", "xray"]


def made(argument: Any, dtype: torch.dtype = torch.float32) -> Any:
    """Return a tensor that nothing fills for a shape, what a function makes, and anything else as it is."""
    if isinstance(argument, tuple) and argument and all(isinstance(n, int) for n in argument):
        return torch.empty(argument, dtype=dtype)
    return argument() if callable(argument) and not isinstance(argument, torch.Tensor) else argument


def xray(
    function: Callable,
    *inputs: Any,
    gpu: str = "h200",
    dtype: torch.dtype = torch.float32,
    name: str = "",
    seconds: float = 4.0,
) -> Forecast:
    """Return what `function(*inputs)` should take on a GPU that need not be there.

    inputs: tensors; shapes, such as (201728, 768), of tensors in `dtype` that nothing fills; functions that make an
    input; or plain values. Kernels whose addresses depend on data need that data: integer tensors are always real.
    gpu: the short name of a price list (`names()`). seconds: of running a launch's programs, at most, as
    a quiet core takes them; the same programs run on any.

    Triton must run in its interpreter (TRITON_INTERPRET=1 before it is imported). Raises Outside where a kernel does
    what the model does not know, KeyError for an unknown GPU, ValueError where no kernel is launched.
    """
    from .._torch import interpreted
    from .stage import pretending

    if not interpreted():
        raise RuntimeError("an x-ray needs Triton's interpreter: set TRITON_INTERPRET=1 before Triton is imported")
    wanted = load(gpu)
    arguments = [made(argument, dtype) for argument in inputs]
    with pretending(wanted, seconds) as launches:
        function(*arguments)
        seen = list(launches)
    return forecast(name or getattr(function, "__name__", "f"), seen, wanted)
