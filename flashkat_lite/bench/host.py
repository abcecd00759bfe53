"""What one eager forward and backward pass costs the host: Python, PyTorch and the launches, not the GPU's work.

Where tensors are small this is the whole cost. `python -m flashkat_lite.bench.host` prints it beside that of PyTorch's
GELU.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from unittest import mock

import torch
from torch import Tensor

from .. import console, hardware
from .._torch import KERNEL_SOURCES, rational_op
from ..ops import DEFAULT_BACKWARD, rational
from ..testing import random_inputs


class _Empty(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, numerator, denominator):
        ctx.save_for_backward(x, numerator, denominator)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx, grad_output):
        return tuple(torch.empty_like(t) for t in ctx.saved_tensors)


def host_cost(
    shape: tuple[int, ...] = (8, 197, 768),
    groups: int = 8,
    degrees: tuple[int, int] = (5, 4),
    rounds: int = 100,
    calls: int = 20,
    progress: Callable[[int], object] = lambda done: None,
) -> dict[str, object]:
    """Microseconds of the host for one eager forward and backward pass in float32, launches included, ready for JSON.

    "rational" is what modules call, "rational_op" the registered op by itself, "gelu" PyTorch's own, and "empty" a
    torch.autograd.Function with rational's inputs that allocates its results and launches nothing: what PyTorch asks
    for any such function. On a GPU "launches" is the three launches and nothing else, their arguments at hand: what the
    driver and Triton's launcher ask. No autograd.Function that launches three of Triton's kernels can cost less than
    "empty" and "launches" together; "bound" is their sum over GELU's median. "ratio" is rational's median over GELU's.
    In each of `rounds` rounds each function is called `calls` times without waiting for the GPU, which is idle at the
    start: its queue must be able to hold them. Without a GPU the CPU's work counts too. progress: called with the
    number of rounds that are done, after each.
    """
    _, x, a, b = random_inputs(math.prod(shape[:-1]), shape[-1], groups, degrees)
    x, a, b = (t.requires_grad_() for t in (x.view(shape), a, b))
    dy, strings = torch.ones_like(x), (DEFAULT_BACKWARD, KERNEL_SOURCES)
    functions = {
        "gelu": lambda: torch.autograd.grad(torch.nn.functional.gelu(x), x, dy),
        "empty": lambda: torch.autograd.grad(_Empty.apply(x, a, b), (x, a, b), dy),
        "rational": lambda: torch.autograd.grad(rational(x, a, b), (x, a, b), dy),
        "rational_op": lambda: torch.autograd.grad(rational_op(x, a, b, *strings), (x, a, b), dy),
    }
    for function in functions.values():
        _call(function, 2 * calls, x)
    if x.is_cuda:
        functions["launches"] = _prepared(functions["rational"])
    times = {name: [] for name in functions}
    for done in range(1, rounds + 1):
        for name, function in functions.items():
            times[name].append(_call(function, calls, x))
        progress(done)
    microseconds = {name: asdict(hardware.summary(elapsed)) for name, elapsed in times.items()}
    median = {name: timing["median"] for name, timing in microseconds.items()}
    return {
        "shape": list(shape),
        "groups": groups,
        "degrees": list(degrees),
        "calls": calls,
        "microseconds": microseconds,
        "ratio": median["rational"] / median["gelu"],
        "bound": (median["empty"] + median["launches"]) / median["gelu"] if "launches" in median else None,
    }


def _prepared(function: Callable[[], object]) -> Callable[[], None]:
    """Return what makes the launches of one call of `function` again, on the same tensors."""
    from ..kernels import plain
    from ..kernels.launch import BoundLaunch

    made, usual = [], BoundLaunch.__call__

    def remembered(self, *tensors):
        usual(self, *tensors)
        pointers = [t.data_ptr() for t in tensors]
        arguments = *self.grid, self.stream_of(self.device), *self.bound, *pointers, *self.trailing
        made.append((self.run, arguments, tensors))

    one_by_one = mock.patch.object(plain, "may_skip_triton", lambda *_: False)
    with one_by_one, mock.patch.object(BoundLaunch, "__call__", remembered):
        function()

    def again():
        for run, arguments, _ in made:
            run(*arguments)

    return again


def _call(function: Callable[[], object], calls: int, x: Tensor) -> float:
    """Microseconds of one of `calls` calls."""
    if x.is_cuda:
        torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(calls):
        function()
    elapsed = time.perf_counter() - begin
    if x.is_cuda:
        torch.cuda.synchronize()
    return elapsed / calls * 1e6


def main() -> None:
    """Print `host_cost`, on a CPU at a size where its own work is small; tell how far it is."""
    rounds = 100
    size = {"shape": (8, 197, 768)} if hardware.device() else {"shape": (8, 16), "calls": 5}
    print(f"float32, x {list(size['shape'])}: {rounds} rounds of {size.get('calls', 20)} calls")
    if not hardware.device():
        torch.set_num_threads(1)
        print("No GPU here: the CPU's own work counts too. x is small, so that it is a little of the whole.")
    step = rounds // 10
    cost = host_cost(
        **size,
        rounds=rounds,
        progress=lambda done: done % step or print(f"  {done} of {rounds} rounds", flush=True),
    )
    for name, timing in cost["microseconds"].items():
        print(f"{name:<12} {timing['median']:6.1f} µs  ({timing['low']:.1f} to {timing['high']:.1f})")
    print(f"rational takes {cost['ratio']:.2f} times GELU's")
    if cost["bound"]:
        print(f"an empty Function and the launches alone: {cost['bound']:.2f} times")


if __name__ == "__main__":
    console.prepare()
    main()
