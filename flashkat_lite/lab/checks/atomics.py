"""Checks of chapter 06: three limits, and sums by few atomic additions."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .common import DEVICE, RACE, Wrong, poisoned, right, same_number, same_tensor, timed
from .kernels import counting


def least_time(f: Callable[..., tuple[float, str]]) -> None:
    """06-1: (milliseconds, which limit) for (flops, bytes, additions, GFLOP/s, GB/s, additions a nanosecond)."""
    names = ("arithmetic", "bytes", "additions")
    cases = [
        (3.1e9, 1.24e9, 0, 66900.0, 4200.0, 1.6),
        (9.0e9, 1.86e9, 1.549e9, 66900.0, 4200.0, 1.6),
        (2.0e12, 1.24e9, 5.0e6, 66900.0, 4200.0, 40.0),
    ]
    for case in cases:
        answer = f(*case)
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise Wrong(f"expected a tuple (milliseconds, name of the limit), got {answer!r}")
        work, rates = case[:3], case[3:]
        times = [w / r / 1e6 for w, r in zip(work, rates, strict=True)]
        size = ", ".join(f"{w:g} {name}" for w, name in zip(work, ("FLOPs", "bytes", "additions"), strict=True))
        least = max(times)
        same_number(
            f"milliseconds for {size}", answer[0], least,
            {"the limits overlap: the longest counts, not their sum": sum(times),
             "the longest of the times is the least that a kernel can take, not the shortest": min(times),
             "the additions were left out": max(times[:2]),
             "seconds, not milliseconds": least / 1e3,
             "microseconds, not milliseconds": least * 1e3,
             "nanoseconds, not milliseconds": least * 1e6},
        )  # fmt: skip
        expected = names[times.index(least)]
        if answer[1] != expected:
            raise Wrong(f"the limit for {size}: expected {expected!r}, got {answer[1]!r}")
    right("time and limit, where each of the three holds")


def _int32(what: str, got: Any) -> None:
    if isinstance(got, Tensor) and got.dtype != torch.int32:
        raise Wrong(f"{what}: expected dtype torch.int32, got {got.dtype}")


@poisoned()
def index_sums(f: Callable[[Tensor, Tensor, int], Tensor]) -> None:
    """06-2: bfloat16 sums of bfloat16 terms by index, within one rounding of the exact sum."""
    g = torch.Generator().manual_seed(62)
    for count, size in [(1, 3), (1000, 7), (5000, 1), (3001, 40)]:
        everything = torch.full((count + 8192,), float("nan"), dtype=torch.bfloat16)  # what a mask forgets is NaN
        everything[:count] = torch.rand(count, generator=g).to(torch.bfloat16) + 0.5
        terms = everything.to(DEVICE)[:count]
        index = torch.zeros(count + 8192, dtype=torch.int64)
        index[:count] = torch.randint(size, (count,), generator=g)
        index = index.to(DEVICE)[:count]
        exact = torch.zeros(size, dtype=torch.float64, device=DEVICE).index_add_(0, index, terms.double())
        try:
            got = f(terms, index, size)
        except Exception as error:
            if any(word in str(error) for word in ("bf16", "bfloat16", "uint16", "Unsupported data type")):
                raise Wrong(
                    f"{count} terms on {size} totals: expected an atomic addition in float32, got one in 16 bits "
                    f"({type(error).__name__}). Likely cause: the totals are bfloat16 while adding"
                ) from error
            raise
        what = f"sums of {count} terms on {size} totals"
        if isinstance(got, Tensor) and got.dtype != torch.bfloat16:
            raise Wrong(f"{what}: expected dtype torch.bfloat16, got {got.dtype}")
        in_turn = torch.zeros(size, dtype=torch.bfloat16)
        for at, term in zip(index.tolist(), terms.cpu(), strict=True):
            in_turn[at] += term
        same_tensor(
            what, got, exact, 1.1 * 2.0**-8 * exact.abs() + 1e-30,  # half a gap of bfloat16, and float32's rounding
            {"the total is rounded to bfloat16 at every addition: keep it in float32": in_turn.to(DEVICE),
             "the totals are twice what they should be: each term was added twice": 2 * exact,
             "one term of each total is left: they were stored, not added":
                 torch.zeros_like(exact).index_copy(0, index, terms.double())},
        )  # fmt: skip
        again = f(terms, index, size)
        same_tensor(f"a second call, {what}", again, exact, 1.1 * 2.0**-8 * exact.abs() + 1e-30,
                    {"the buffer is not zeroed at each call": 2 * exact})  # fmt: skip
    if DEVICE == "cpu":
        with counting() as count:
            f(terms, index, size)
        if not count.adds:
            raise Wrong(f"expected atomic additions in a Triton kernel, got none. {RACE}")
    right("bfloat16 sums of up to 5000 terms, each rounded once")


def _values(count: int, bins: int, seed: int) -> Tensor:
    """Half of them bin 0, the others uniform; the memory behind them holds another number of a bin."""
    g = torch.Generator().manual_seed(seed)
    values = torch.randint(bins, (count + 8192,), generator=g, dtype=torch.int32)
    values[:count][torch.rand(count, generator=g) < 0.5] = 0
    values[count:] = bins - 1
    return values.to(DEVICE)[:count]


@poisoned()
def histogram(f: Callable[[Tensor, int], Tensor]) -> None:
    """06-3: counts of integers, at most one atomic addition for 16 elements."""
    for seed, (count, bins) in enumerate([(1, 2), (5000, 7), (4096, 64), (20000, 256)]):
        values = _values(count, bins, seed)
        exact = torch.bincount(values.long(), minlength=bins)
        what = f"counts of {count} integers in {bins} bins"
        got = f(values, bins)
        _int32(what, got)
        unset = torch.where(exact > 0, exact - 2**31 - 1, 2**31 - 1)  # on top of what fills memory from `empty`
        causes = {
            "each element was counted twice: is the buffer zeroed at each call?": 2 * exact,
            "the counts start from memory that nothing zeroed": unset,
        }
        for block in (128, 256, 512, 1024, 2048, 4096, 8192):
            masked = exact.clone()
            masked[0] += -count % block
            causes["masked lanes were counted as zeros"] = masked
            if isinstance(got, Tensor) and got.shape == exact.shape and torch.equal(got.long(), masked):
                break
        same_tensor(what, got, exact, 0.0, causes)
        same_tensor(f"a second call, {what}", f(values, bins), exact, 0.0,
                    {"the buffer is not zeroed at each call": 2 * exact})  # fmt: skip
    if DEVICE == "cpu":
        _few(lambda: f(_values(60000, 64, 9), 64), 60000 // 16, "60,000 integers in 64 bins")
    else:
        from flashkat_lite.lab.solutions_atomics import histogram_solution as ours

        timed(f, ours, (_values(2**24, 64, 9), 64), "2²⁴ elements in 64 bins", good=1.3)
    right("counts of up to 20,000 integers, few additions")


@poisoned()
def group_sums(f: Callable[[Tensor, int], Tensor]) -> None:
    """06-4: sums of groups of columns, at most one atomic addition for 32 elements."""
    g = torch.Generator().manual_seed(64)
    for rows, columns, groups in [(1, 32, 1), (37, 768, 8), (101, 96, 3), (500, 64, 2)]:
        everything = torch.full((rows * columns + 8192,), float("nan"))
        everything[: rows * columns] = torch.randn(rows * columns, generator=g)
        x = everything.to(DEVICE)[: rows * columns].view(rows, columns)
        terms = x.double().view(rows, groups, -1)
        exact, size = terms.sum((0, 2)), terms.abs().sum((0, 2))
        tolerance = 4 * (rows * columns / groups) ** 0.5 * 2.0**-24 * size  # every addition rounds at random
        what = f"sums of {groups} groups, {rows} × {columns}"
        got = f(x, groups)
        if isinstance(got, Tensor) and got.dtype != torch.float32:
            raise Wrong(f"{what}: expected dtype torch.float32, got {got.dtype}")
        same_tensor(
            what, got, exact, tolerance,
            {"neighbouring columns share a group: column // width, not column % groups":
                x.double().view(rows, -1, groups).sum((0, 1)),
             "each element was added twice: is the buffer zeroed at each call?": 2 * exact,
             "one of 32 lanes adds, but only its own element": terms.reshape(rows, groups, -1, 32)[..., 0].sum((0, 2))},
        )  # fmt: skip
        same_tensor(f"a second call, {what}", f(x, groups), exact, tolerance,
                    {"the buffer is not zeroed at each call": 2 * exact})  # fmt: skip
    if DEVICE == "cpu":
        _few(lambda: f(torch.randn(80, 768, generator=g), 8), 80 * 768 // 32, "80 rows of 768")
    else:
        from flashkat_lite.lab.solutions_atomics import group_sums_solution as ours

        timed(f, ours, (torch.randn(2**18, 768, device=DEVICE), 8), "2¹⁸ rows of 768")
    right("group sums, summed before they are added")


def _few(call: Callable[[], Any], most: int, what: str) -> None:
    with counting() as count:
        call()
    if not count.adds:
        raise Wrong(f"{what}: expected at most {most:,} atomic additions, got none. {RACE}")
    if count.adds > most:
        raise Wrong(
            f"{what}: expected at most {most:,} atomic additions, got {count.adds:,}. "
            "Likely cause: lanes add their own element before the program has summed"
        )
    print("No GPU here: correctness and counts were checked, speed was not.")
