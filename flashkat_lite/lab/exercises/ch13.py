"""Chapter 13: a step's time, a fake kernel, an autograd formula, and recomputing by hand."""

import gc
import itertools
import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ..setup import DEVICE
from .common import Parts, Wrong, exercise, numbers, same_tensor
from .rules import forbidden

_numbers = itertools.count(1)  # an op's name can be had once


@exercise("13-1")
@numbers(
    "four steps, and who decides in each",
    *((13.7, 1400, 15.0, False), (13.7, 1400, 15.0, True), (70.7, 1400, 15.0, False), (2.0, 300, 30.0, False)),
    (0.01, 1400, 15.0, True),
)
def step_time(gpu_ms: float, launches: int, host_us: float, graph: bool) -> Parts:
    """Check milliseconds of a step, and "GPU" or "host": who decides; from times of kernels and of a launch."""
    size = f"{gpu_ms} ms of kernels, {launches} launches of {host_us:g} µs{', one graph' * graph}"
    host = (1 if graph else launches) * host_us / 1e3
    yield f"milliseconds for {size}", max(gpu_ms, host), {
        "the two work at the same time: the longer one, not the sum": gpu_ms + host,
        **({"the host launches a graph, too, if only once": gpu_ms} if graph and gpu_ms < host else {}),
        "the slower of the two decides, not the faster": min(gpu_ms, host),
        "a graph is launched once, however many kernels it holds": max(gpu_ms, launches * host_us / 1e3),
        "a microsecond is a thousandth of a millisecond": max(gpu_ms, 1e3 * host),
    }  # fmt: skip
    yield f"who decides for {size}", "GPU" if gpu_ms >= host else "host", {}


def _tile_sums(x: Tensor, tile: int) -> Tensor:
    rows, columns = x.shape
    padded = x.new_zeros((rows + tile - 1) // tile * tile, columns)
    padded[:rows] = x
    return padded.view(-1, tile, columns).sum(1, dtype=torch.float32)


@exercise("13-2")
def tile_sums_fake(f: Callable[[Tensor, int], Tensor]) -> str:
    """Check the shape, dtype and device of the sums over tiles of rows; also where the number of rows is a symbol."""
    op = torch.library.custom_op(f"checks::tile_sums_{next(_numbers)}", _tile_sums, mutates_args=())
    op.register_fake(f)
    cases = ((128, 24, 32, torch.float32), (100, 24, 32, torch.bfloat16), (7, 5, 3, torch.float32))
    for rows, columns, tile, dtype in cases:
        what = f"the sums of {rows} rows of {columns} {str(dtype).removeprefix('torch.')}, tiles of {tile}"
        real = op(torch.ones(rows, columns, dtype=dtype, device=DEVICE), tile)
        with FakeTensorMode():
            got = f(torch.empty(rows, columns, dtype=dtype, device=DEVICE), tile)
        if not isinstance(got, Tensor):
            raise Wrong(f"{what}: expected a tensor, got {type(got).__name__}")
        not_rows = {
            (rows // tile, columns): "the last tile is not full, and is a tile all the same",
            (rows, columns): "that is the input's shape; a tile of rows makes one row",
        }
        for fact, expected, found, cause in (
            ("shape", list(real.shape), list(got.shape), not_rows.get(tuple(got.shape))),
            ("dtype", real.dtype, got.dtype, "new_empty keeps x's dtype; sums are float32 whatever x is"),
            ("device", real.device.type, got.device.type, "torch.empty without a device"),
        ):
            if found != expected:
                likely = f" Likely cause: {cause}." if cause else ""
                raise Wrong(f"{what}: expected {fact} {expected}, got {found}.{likely}")
    graphs = []

    def counted(module: torch.fx.GraphModule, inputs: list) -> Callable:
        graphs.append(module)
        return module.forward

    torch.compiler.reset()
    compiled = torch.compile(lambda x: 2 * op(x, 32), backend=counted, dynamic=True, fullgraph=True)
    for rows in (100, 163, 57, 320):
        try:
            compiled(torch.ones(rows, 24, device=DEVICE))
        except Exception as error:
            raise Wrong(
                f"compiled for any number of rows: expected a graph, got {type(error).__name__}: "
                f"{str(error).partition(chr(10))[0]}. Likely cause: x.shape[0] is a symbol there, not a number"
            ) from None
    if len(graphs) != 1:
        raise Wrong(
            f"four numbers of rows: expected 1 graph for all, got {len(graphs)}. Likely cause: int(), range() or a "
            "comparison turned the symbol x.shape[0] into a number, and each number needs a graph of its own"
        )
    return "shape, dtype and device, and one graph for any number of rows"


def _swish(x: Tensor, beta: Tensor) -> Tensor:
    return x * torch.sigmoid(beta * x)


@exercise("13-3")
def swish_formula(save: Callable[[Any, tuple, Tensor], None], formula: Callable[[Any, Tensor], tuple]) -> str:
    """Check the gradients of the registered op y = x · sigmoid(beta x), x [rows, D] and beta [D]."""
    op = torch.library.custom_op(f"checks::swish_{next(_numbers)}", _swish, mutates_args=())
    op.register_fake(lambda x, beta: x.new_empty(x.shape))
    op.register_autograd(formula, setup_context=save)
    g = torch.Generator().manual_seed(133)
    x = torch.randn(5, 3, generator=g, dtype=torch.float64).requires_grad_()
    beta = torch.tensor([1.5, 0.0, -0.7], dtype=torch.float64).requires_grad_()
    dy = torch.randn(5, 3, generator=g, dtype=torch.float64)
    exact = torch.autograd.grad(_swish(x, beta), (x, beta), dy)
    y = op(x, beta)
    try:
        got = torch.autograd.grad(y, (x, beta), dy, allow_unused=True)
    except NotImplementedError:  # a stub
        raise
    except RuntimeError as error:
        raise Wrong(f"the backward pass: expected two gradients, got {str(error).partition(chr(10))[0]}") from None
    with torch.no_grad():
        s = torch.sigmoid(beta * x)
        causes = [
            {"the product rule: x stands in the sigmoid too": dy * s,
             "dy is missing": s + beta * x * s * (1 - s),
             "the inner derivative is beta: d(beta x)/dx": dy * (s + x * s * (1 - s)),
             "the gradients are in the order of the inputs, x first": torch.zeros(5, 3, dtype=torch.float64)},
            {"the outer x: y = x · sigmoid, so x appears twice": (dy * x * s * (1 - s)).sum(0),
             "dy is missing": (x * x * s * (1 - s)).sum(0),
             "the mean over the rows, not the sum": exact[1] / 5,
             "that is the derivative with respect to x": (dy * (s + beta * x * s * (1 - s))).sum(0)},
        ]  # fmt: skip
    for name, mine, wanted, likely in zip(("x", "beta"), got, exact, causes):
        if mine is None:
            raise Wrong(f"the gradient of {name}: expected a tensor, got None. Likely cause: the formula returned None")
        same_tensor(f"the gradient of {name}", mine, wanted, 1e-10, likely)
    torch.autograd.gradcheck(op, (x, beta))
    narrow = x.detach().bfloat16().requires_grad_(), beta.detach().float().requires_grad_()
    got = torch.autograd.grad(op(*narrow).sum(), narrow, allow_unused=True)
    for name, mine, tensor in zip(("x", "beta"), got, narrow):
        if mine is None or mine.dtype != tensor.dtype:
            raise Wrong(f"the gradient of {name} in {tensor.dtype}: got {mine if mine is None else mine.dtype}")
    return "both gradients, against autograd and against differences (gradcheck)"


class _Watched(nn.Module):
    """Squares, counts its calls, and knows whether its last result still lives."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.last = 0, None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        result = x * x
        self.last = weakref.ref(result)
        return result


@exercise("13-4")
def recomputed(f: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]) -> str:
    """Check f(module, x) is module(x), keeps nothing but x, and runs the module again in the backward pass."""

    inside = [name for name in ("checkpoint", "CheckpointFunction", "_checkpoint_without_reentrant_generator")
              if hasattr(torch.utils.checkpoint, name)]  # fmt: skip
    with forbidden("torch.utils.checkpoint: recompute by hand", torch.utils.checkpoint, *inside):
        _recomputed(f, 0.0)
        _recomputed(f, 0.5)
    return "the same values and gradients, with dropout too; nothing kept but x"


def _recomputed(f: Callable, drop: float) -> None:
    torch.manual_seed(134)
    watched = _Watched()
    module = nn.Sequential(nn.Linear(6, 40), watched, nn.Dropout(drop), nn.Linear(40, 5)).double()
    data = torch.randn(7, 6, dtype=torch.float64)
    dropout = ", with dropout" if drop else ""

    def run(call: Callable) -> tuple[Tensor, list[Tensor], list[int], bool]:
        torch.manual_seed(1)
        module.zero_grad()
        watched.calls = 0
        x = data.clone().requires_grad_()
        y = call(x)
        if not isinstance(y, Tensor):
            raise Wrong(f"the result: expected a tensor, got {type(y).__name__}")
        gc.collect()
        calls, alive = [watched.calls], watched.last is not None and watched.last() is not None
        torch.rand(3)  # as anything between the two passes might
        if not y.requires_grad:
            raise Wrong(
                "the result: expected one that requires a gradient, got none. Likely cause: no_grad, no Function"
            )
        (y * y).sum().backward()
        calls.append(watched.calls)
        return y.detach(), [x.grad, *(p.grad for p in module.parameters())], calls, alive

    y, gradients, _, _ = run(module)
    got_y, got, calls, alive = run(lambda x: f(module, x))
    same_tensor(f"the result{dropout}", got_y, y, 1e-12)
    if alive:
        raise Wrong(
            "after the forward pass: expected x to be all that is kept, got a result of the module's middle alive. "
            "Likely cause: the forward pass ran with the graph recorded"
        )
    if calls != [1, 2]:
        raise Wrong(f"calls of the module after the forward and after the backward pass: expected [1, 2], got {calls}")
    names = ["x", *(name for name, _ in module.named_parameters())]
    for name, mine, wanted in zip(names, got, gradients):
        if mine is None:
            raise Wrong(
                f"the gradient of {name}{dropout}: expected a tensor, got None. Likely cause: the backward pass "
                "returns gradients for x alone; hand the parameters to apply() too"
            )
        causes = {"it was added twice": 2 * wanted}
        if drop:
            lost = "the second run drew another dropout mask: keep torch.get_rng_state() of the first, and restore it"
            causes = {lost: None}
        same_tensor(f"the gradient of {name}{dropout}", mine, wanted, 1e-9, causes)
