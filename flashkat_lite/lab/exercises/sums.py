"""Sums that several chapters ask for: of columns, and of weights by index."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flashkat_lite.testing import guarded

from ..counting import Accesses
from ..setup import GPU
from .common import TWICE, Wrong, normal, same_tensor, same_twice
from .kernels import watch

STORED = "one term of each total is left: they were stored, not added"


def rounding(count: float, size: Tensor) -> Tensor:
    """Return how far float32 sums of `count` terms, in any order, may be off; size: the sums of the terms' magnitudes.

    Each addition rounds at random, with a margin of four; a sum kept in 16 bits is far outside.
    """
    return 4 * count**0.5 * 2.0**-24 * size + 1e-30


def same_column_sums(what: str, got: Any, dy: Tensor) -> None:
    """Raise Wrong unless `got` is the column sums of dy, to the rounding of a float32 sum in any order."""
    if isinstance(got, Tensor) and got.dtype != torch.float32:
        raise Wrong(
            f"{what}: expected dtype torch.float32, since sums must be kept and returned in float32 whatever the input "
            f"is; got {got.dtype}"
        )
    exact, size = dy.double().sum(0), dy.double().abs().sum(0)
    causes = {
        "every column holds the total of all of them: index the result by column": exact.sum().expand_as(exact),
        TWICE: 2 * exact,
        "strides were taken for those of a contiguous tensor":
            dy.as_strided(dy.shape, (dy.shape[1], 1)).double().sum(0),
        "the stride from one column to the next was taken for 1":
            dy.as_strided(dy.shape, (dy.stride(0), 1)).double().sum(0),
        "the stride from one row to the next was taken for the number of columns":
            dy.as_strided(dy.shape, (dy.shape[1], dy.stride(1))).double().sum(0),
    }  # fmt: skip
    if dy.itemsize == 2:
        causes["right but for rounding: the sums are kept in 16 bits"] = exact, 2.0**-7 * size
    same_tensor(what, got, exact, rounding(len(dy), size), causes)


def check_column_sums(f: Callable[[Tensor], Tensor]) -> None:
    """Raise Wrong unless f gives the sums over rows of odd shapes, of bfloat16, of any strides, and twice in a row."""
    cases = {
        "37 rows of 8 float32": normal(37, 8, seed=1),
        "1000 rows of 7 float32": normal(1000, 7, seed=2),
        "1 row of 300 float32": normal(1, 300, seed=3),
        "5000 rows of 3 bfloat16": normal(5000, 3, seed=4, dtype=torch.bfloat16),
        "a transposed tensor": normal(8, 30, seed=5).T,
    }
    for name, dy in cases.items():
        same_column_sums(f"column sums of {name}", f(dy), dy)
        if name == "37 rows of 8 float32":
            same_column_sums("a second call on the first input", f(dy), dy)


def check_sums_by_index(
    what: str,
    f: Callable[..., Tensor],
    arguments: tuple,
    index: Tensor,
    weights: Tensor,
    size: int,
) -> Accesses | None:
    """Raise Wrong unless f(*arguments), twice, is the float32 sums [size] of weights [N] by index [N].

    Return what kernels do in the second call, in the interpreter.
    """
    zeros, index = torch.zeros(size, dtype=torch.float64, device=weights.device), index.long()
    weights = weights.double()
    exact, magnitudes = (zeros.index_add(0, index, terms) for terms in (weights, weights.abs()))
    calls = []

    def watched(*arguments):
        calls.append(watch(f, *arguments) if calls and not GPU else None)
        return calls[-1].result if calls[-1] else f(*arguments)

    same_twice(what, watched, arguments, exact, rounding(len(index), magnitudes), {
        "these are counts: the weights were not added": zeros.index_add(0, index, torch.ones_like(weights)),
        "every sum holds the total of all of them": exact.sum().expand_as(exact),
        STORED: zeros.index_copy(0, index, weights),
    })  # fmt: skip
    return watch(f, *arguments) if GPU else calls[-1]


def same_total(what: str, got: Any, x: Tensor, causes: dict[str, Tensor | None] | None = None) -> None:
    """Raise Wrong unless `got` is the sum of x, float32, but for rounding."""
    exact = x.double().sum()
    bound = 12 * 2.0**-24 * x.double().square().sum().sqrt() + 2.0**-24 * exact.abs()
    same_tensor(what, got, exact, bound, (causes or {}) | {TWICE: 2 * exact}, torch.float32)


def crowded(count: int, bins: int, of: int, seed: int) -> Tensor:
    """Return int32 numbers of bins [count], half of them `of`; the memory beside them holds another number of a bin."""
    g = torch.Generator().manual_seed(seed)
    values = torch.randint(bins, (count,), generator=g, dtype=torch.int32)
    values[torch.rand(count, generator=g) < 0.5] = of
    return guarded(values, fill=bins - 1)
