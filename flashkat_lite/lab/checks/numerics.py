"""Checks of chapter 12: the error of a staged sum, exact additions, and sums that are accurate or repeat."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .common import DEVICE, Wrong, poisoned, right, same_bits, same_number, same_tensor, timed
from .kernels import counting

MARGIN = 8192  # elements of NaN on either side of an input


def staged_units(f: Callable[[int, int, int], float]) -> None:
    """12-1: root mean square error in units of a sum of (terms, lanes, chunk)."""
    for terms, lanes, chunk in [(2**20, 2**10, 32), (2**24, 2**12, 64), (19_365_888, 101_376, 1), (4096, 1, 64)]:
        each = terms / lanes
        chains, tree = chunk + each / chunk, math.log2(lanes)
        size = f"{terms:,} terms, {lanes:,} lanes, chunks of {chunk}"
        got = f(terms, lanes, chunk)
        same_number(
            f"error of {size}", float(got) if hasattr(got, "item") else got, (0.09 * chains + 0.18 * tree) ** 0.5,
            {"the square root is missing: errors add in squares": 0.09 * chains + 0.18 * tree,
             "that is the mean absolute error, 0.8 of what was asked for": 0.8 * (0.09 * chains + 0.18 * tree) ** 0.5,
             "the chunks were forgotten: a lane adds K / lanes terms in chunks":
                 (0.09 * each + 0.18 * tree) ** 0.5,
             "the lanes' own tree is missing": (0.09 * chains) ** 0.5,
             "the chain of the chunks' sums is missing": (0.09 * chunk + 0.18 * tree) ** 0.5,
             "a chunk's chain is missing": (0.09 * each / chunk + 0.18 * tree) ** 0.5,
             "errors add in squares, not as they are":
                 (0.09 * chunk) ** 0.5 + (0.09 * each / chunk) ** 0.5 + (0.18 * tree) ** 0.5,
             "the logarithm is that of base 2": (0.09 * chains + 0.18 * math.log(lanes)) ** 0.5},
        )  # fmt: skip
    right("four shapes of a sum")


def what_is_lost(f: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
    """12-2: (s, e) float32 with s = a + b rounded and s + e = a + b exactly."""
    g = torch.Generator().manual_seed(122)
    scale = 2.0 ** torch.randint(-10, 11, (2, 2000), generator=g)
    a, b = (torch.rand(2, 2000, generator=g) + 1) * scale * (1 - 2 * torch.randint(2, (2, 2000), generator=g))
    cases = {"the larger number first": _sorted(a, b), "the larger number second": _sorted(a, b)[::-1]}
    for what, (p, q) in cases.items():
        answer = f(p.clone(), q.clone())
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise Wrong(f"expected a tuple (s, e), got {type(answer).__name__}")
        for name, part in zip(("s", "e"), answer, strict=True):
            if isinstance(part, Tensor) and part.dtype != torch.float32:
                raise Wrong(f"{name}: expected dtype torch.float32, got {part.dtype}; do it without float64")
        s = p + q
        # Exponents differ by 21 at most, so 24 + 21 bits: float64 holds the sum exactly.
        e = (p.double() + q.double()) - s.double()
        same_tensor(f"s with {what}", answer[0], s, 0.0)
        same_tensor(
            f"e with {what}", answer[1], e, 0.0,
            {"the sign: e is what s lacks": -e,
             "e is always zero: an exact difference of rounded numbers was taken for granted": 0 * e,
             "right only where the first number is the larger one": (q - (s - p)).double(),
             "right only where the second number is the larger one": (p - (s - q)).double()},
        )  # fmt: skip
    right("4000 additions, to the last bit")


def _sorted(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    swap = b.abs() > a.abs()
    return torch.where(swap, b, a), torch.where(swap, a, b)


def _surrounded(values: Tensor) -> Tensor:
    """`values` with NaN before and after it in memory: what a mask forgets becomes visible."""
    everything = torch.full((2 * MARGIN + values.numel(),), float("nan"))
    everything[MARGIN : MARGIN + values.numel()] = values.flatten()
    return everything.to(DEVICE)[MARGIN : MARGIN + values.numel()].view(values.shape)


def _cancelling(rows: int, columns: int, seed: int) -> Tensor:
    """Normal numbers, and in each column pairs of large ones of opposite sign, in random rows."""
    g = torch.Generator().manual_seed(seed)
    dy = torch.randn(rows, columns, generator=g)
    for column in range(columns):
        places = torch.randperm(rows, generator=g)[: rows // 4 * 2]
        large = 2.0 ** torch.randint(18, 28, (len(places) // 2,), generator=g)
        dy[places, column] = torch.cat([large, -large])
    return dy


@poisoned()
def column_sums_compensated(f: Callable[[Tensor], Tensor]) -> None:
    """12-3: float32 column sums as accurate as twice the precision, rounded once; no atomic additions."""
    g = torch.Generator().manual_seed(123)
    cases = {
        "37 rows of 8": _surrounded(torch.randn(37, 8, generator=g)),
        "1 row of 300": _surrounded(torch.randn(1, 300, generator=g)),
        "20,000 rows of 3, all positive": _surrounded(torch.rand(20000, 3, generator=g)),
        "3001 rows of 5 that nearly cancel": _surrounded(_cancelling(3001, 5, 1)),
        "a transposed tensor that nearly cancels": _surrounded(_cancelling(500, 7, 2).T.contiguous()).T,
    }
    for name, dy in cases.items():
        what, wide = f"column sums of {name}", dy.double()
        got = f(dy)
        if isinstance(got, Tensor) and got.dtype != torch.float32:
            raise Wrong(f"{what}: expected dtype torch.float32, got {got.dtype}")
        exact, size = wide.sum(0), wide.abs().sum(0)
        _kept(what, got, exact, size, dy)
    _kept("a second call", f(cases["37 rows of 8"]), *_sums(cases["37 rows of 8"]), cases["37 rows of 8"])
    if DEVICE == "cpu":
        with counting() as count, programs() as seen:
            f(torch.randn(500, 8, generator=g))
        _without_atomics(count.adds, seen)
    else:
        from flashkat_lite.lab.solutions_numerics import column_sums_compensated_solution as ours

        x = torch.randn(2**19, 96, device=DEVICE)
        timed(f, ours, (x,), "2¹⁹ rows of 96", nbytes=x.nbytes, copied=x)
    right("column sums to the last bits, where nearly everything cancels too")


def _sums(dy: Tensor) -> tuple[Tensor, Tensor]:
    return dy.double().sum(0), dy.double().abs().sum(0)


def _kept(what: str, got: Any, exact: Tensor, size: Tensor, dy: Tensor) -> None:
    tolerance = 2.0**-23 * exact.abs() + 2.0**-40 * size
    causes = {"each element was added twice: is memory from `empty` written before it is read?": 2 * exact}
    try:
        same_tensor(what, got, exact, tolerance, causes)
    except Wrong as wrong:
        plain = 2.0**-24 * len(dy) ** 0.5 * size
        fits = isinstance(got, Tensor) and got.shape == exact.shape
        if fits and "Likely cause" not in str(wrong) and bool(((got.double() - exact).abs() <= 8 * plain).all()):
            raise Wrong(
                f"{wrong} Likely cause: right but for rounding: a carry is missing, does not join the sum at the end, "
                "or is lost where a term is larger than the sum (Kahan's form)."
            ) from None
        raise


def _without_atomics(adds: int, seen: list) -> None:
    if not seen:
        raise Wrong("expected a Triton kernel, got none: no program ran")
    if adds:
        raise Wrong(f"expected no atomic additions, got {adds:,}: store partial sums and add them in a fixed order")
    print("No GPU here: correctness was checked, speed was not.")


@contextlib.contextmanager
def programs(backwards: bool = False) -> Iterator[list]:
    """Lists the programs that run inside, in the interpreter; `backwards` runs the last one of each launch first."""
    from triton.runtime.interpreter import interpreter_builder

    seen, original = [], interpreter_builder.set_grid_idx

    def set_grid_idx(x: int, y: int, z: int) -> None:
        seen.append((x, y, z))
        size = interpreter_builder.grid_dim
        original(*(n - 1 - k if backwards else k for k, n in zip((x, y, z), size, strict=True)))

    interpreter_builder.set_grid_idx = set_grid_idx
    try:
        yield seen
    finally:
        interpreter_builder.set_grid_idx = original


@poisoned()
def sum_repeatable(f: Callable[[Tensor], Tensor]) -> None:
    """12-4: the sum of a float32 vector, the same bits whatever order programs run in."""
    g = torch.Generator().manual_seed(124)
    vectors = {
        f"{count:,} elements": _surrounded(torch.randn(count, generator=g)) for count in (1, 1000, 65_537, 300_003)
    }
    for name, x in vectors.items():
        got = f(x)
        what, wide = f"the sum of {name}", x.double()
        if isinstance(got, Tensor) and got.dtype != torch.float32:
            raise Wrong(f"{what}: expected dtype torch.float32, got {got.dtype}")
        unit = 2.0**-24 * wide.square().sum().sqrt()
        same_tensor(
            what, got, wide.sum(), 12 * unit + 2.0**-24 * wide.sum().abs(),
            {"each element was added twice: is memory from `empty` written before it is read?": 2 * wide.sum(),
             "right but for rounding: a long chain of additions": torch.cumsum(x.cpu().flip(0), 0)[-1].to(DEVICE)},
        )  # fmt: skip
        for _ in range(3 if DEVICE == "cuda" else 1):
            same_bits(what, got, f(x), "a second call")
        if DEVICE == "cpu":
            with programs(backwards=True):
                again = f(x)
            same_bits(what, got, again, "programs run in reverse order")
    if DEVICE == "cpu":
        with counting() as count, programs() as seen:
            f(vectors["65,537 elements"])
        _without_atomics(count.adds, seen)
    else:
        from flashkat_lite.lab.solutions_numerics import sum_repeatable_solution as ours

        x = torch.randn(2**26, device=DEVICE)
        timed(f, ours, (x,), "2²⁶ elements", nbytes=x.nbytes, copied=x)
    right("four lengths, the same bits each time")
