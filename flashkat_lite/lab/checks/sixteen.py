"""Checks of chapter 11: two bounds, register banks, bfloat16 by hand, and SiLU's backward pass."""

import contextlib
import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from .common import DEVICE, Wrong, poisoned, right, same_number, same_tensor, timed, watching

MARGIN = 8192  # elements of NaN on either side of an input
RATE = 132 * 4 * 32 * 1.98e9  # instructions of lanes a second, of an H200


def two_bounds(f: Callable[[int, float, int, float, float], tuple[float, float]]) -> None:
    """11-1: (milliseconds at least, instructions at which the bounds meet) of a kernel, from sizes and rates."""
    for elements, instructions, nbytes, bandwidth in (
        (154_927_104, 42.4, 6, 4300.0),
        (154_927_104, 46.5, 12, 4300.0),
        (38_731_776, 82.0, 6, 4100.0),
        (1_000_000, 10.0, 4, 2000.0),
    ):
        answer = f(elements, instructions, nbytes, bandwidth, RATE)
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise Wrong(f"expected a tuple (milliseconds, instructions), got {answer!r}")
        memory, issue = nbytes * elements / bandwidth / 1e6, elements * instructions / RATE * 1e3
        meet = RATE * nbytes / (bandwidth * 1e9)
        size = f"{elements:,} elements, {instructions} instructions, {nbytes} bytes each, {bandwidth:,.0f} GB/s"
        least = max(memory, issue)
        same_number(
            f"milliseconds for {size}", answer[0], least,
            {"the bounds overlap at best: the longer one, not their sum": memory + issue,
             "milliseconds, not seconds": least / 1e3,
             "memory alone: the instructions need longer": memory if issue > memory else math.nan,
             "the longer of the two bounds, not the shorter": min(memory, issue),
             "the rate counts instructions of lanes already: no further factor of 32": max(memory, issue / 32)},
        )  # fmt: skip
        same_number(
            f"instructions an element at which both bounds of {size} are equal", answer[1], meet,
            {"the number for one byte: times the bytes of an element": meet / nbytes,
             "the inverse of what was asked for": 1 / meet,
             "1 GB/s is 1e9 bytes a second": meet * 1e9},
        )  # fmt: skip
    right("both bounds, for four kernels")


def conflict_free(f: Callable[[int], list[int]]) -> None:
    """11-2: registers of k accumulators so that three neighbours, in a ring, lie in three of four banks."""
    for k in (4, 16, 3, 6, 7, 8, 10, 11, 17, 31):
        got = f(k)
        if not isinstance(got, list | tuple) or not all(isinstance(r, int) for r in got):
            raise Wrong(f"k={k}: expected a list of {k} integers, got {got!r}")
        if len(got) != k:
            raise Wrong(f"k={k}: expected {k} registers, got {len(got)}")
        if len(set(got)) < k:
            twice = next(r for r in got if list(got).count(r) > 1)
            raise Wrong(f"k={k}: expected {k} different registers, got R{twice} twice. Likely cause: these are banks")
        outside = [r for r in got if not 0 <= r < 255]
        if outside:
            raise Wrong(f"k={k}: expected registers from 0 to 254, got {outside[0]} at index {got.index(outside[0])}")
        for j in range(k):
            three = [got[(j + i) % k] for i in range(3)]
            banks = [r % 4 for r in three]
            if len(set(banks)) < 3:
                cause = (
                    " Likely cause: right along the row, but the last accumulators are neighbours of the first."
                    if j >= k - 2 and all(len({r % 4 for r in got[i : i + 3]}) == 3 for i in range(k - 2))
                    else ""
                )
                raise Wrong(
                    f"k={k}, accumulators {', '.join(str((j + i) % k) for i in range(3))}: expected three banks, got "
                    f"{banks} of registers {three}.{cause}"
                )
    right("ten rings, no two operands of an instruction in one bank")


class _Loads:
    """Elements that kernels load from given memory in the interpreter, by the size of one."""

    def __init__(self) -> None:
        self.of = {}


@contextlib.contextmanager
def _loads(x: Tensor) -> Iterator[_Loads]:
    """Count the elements of x's memory, and of the NaN around it, that are loaded by the kernels that run inside."""
    count, margin = _Loads(), MARGIN * x.element_size()
    first, last = x.data_ptr() - margin, x.data_ptr() + x.nbytes + margin

    def load(addresses, size):
        mine = int(((addresses >= first) & (addresses < last)).sum())
        count.of[size] = count.of.get(size, 0) + mine

    with watching(load=load):
        yield count


def _surrounded(values: Tensor) -> Tensor:
    """`values` with NaN before and after it in memory: what a mask forgets becomes visible."""
    everything = torch.full((2 * MARGIN + values.numel(),), float("nan"), dtype=values.dtype)
    everything[MARGIN : MARGIN + values.numel()] = values.flatten()
    return everything.to(DEVICE)[MARGIN : MARGIN + values.numel()].view(values.shape)


@poisoned()
def unpack_pairs(f: Callable[[Tensor], Tensor]) -> None:
    """11-3: bfloat16 [K], K even, as float32 [K], read 32 bits at a time."""
    g = torch.Generator().manual_seed(113)
    special = torch.tensor([0.0, -0.0, 1.0, -1.0, 3e38, -3e38, 1e-40, -1e-40, 1.0078125, -2.5, 1e-30, 255.0])
    cases = {
        "12 special numbers": special,
        "2 numbers": torch.tensor([-3.5, 7.25]),
        "10,002 random numbers": torch.randn(10_002, generator=g),
    }
    for name, values in cases.items():
        x = _surrounded(values.to(torch.bfloat16))
        got = f(x)
        what, exact = f"float32 of {name}", x.float()
        if isinstance(got, Tensor) and got.dtype != torch.float32:
            raise Wrong(f"{what}: expected dtype torch.float32, got {got.dtype}")
        swapped = exact.view(-1, 2).flip(1).flatten()
        bits = x.view(torch.int32)
        logical = torch.stack([bits << 16, bits], 1).flatten().view(torch.float32)
        same_tensor(
            what, got, exact, 0.0,
            {"the two halves are swapped: the first number of a pair is the lower half": swapped,
             "the upper half needs a mask: the other number's bits are still below it": logical,
             "only the first number of each pair is right: the second went missing": _only(exact, 0),
             "only the second number of each pair is right: the first went missing": _only(exact, 1),
             "numbers too small to be normal went to zero: a conversion instead of bits":
                 torch.where(exact.abs() < 2.0**-126, 0, exact),
             "all first numbers come before all second ones: pairs are neighbours in the result":
                 torch.cat([exact[::2], exact[1::2]])},
        )  # fmt: skip
        if not torch.equal(got.view(torch.int32), exact.view(torch.int32)):
            at = int((got.view(torch.int32) != exact.view(torch.int32)).nonzero()[0])
            raise Wrong(
                f"{what}: expected the bits of {exact[at].item()}, got those of {got[at].item()} at index {at}. Likely "
                "cause: arithmetic instead of bits (a sign of zero is lost)"
            )
    if DEVICE == "cpu":
        with _loads(x) as count:
            f(x)
        if not sum(count.of.values()):
            raise Wrong("expected a Triton kernel that reads x where it lies, got none: no load of it was seen")
        same_number(
            "loads of 32 bits for 10,002 numbers", count.of.get(4, 0), 5001,
            {"the kernel loads 16 bits at a time: hand it x.view(torch.int32)": 0, "each pair is loaded twice": 10_002,
             "lanes outside of the tensor load too: a mask is missing": max(count.of.get(4, 0), 5002)},
        )  # fmt: skip
        print("No GPU here: bits and loads were checked, speed was not.")
    else:
        from flashkat_lite.lab.solutions_sixteen import unpack_pairs_solution as ours

        x = torch.randn(2**27, device=DEVICE).to(torch.bfloat16)
        timed(f, ours, (x,), "2²⁷ numbers", nbytes=6 * x.numel())
    right("every bit, also of -0 and of numbers too small to be normal")


def _only(exact: Tensor, which: int) -> Tensor:
    result = exact.clone()
    result[1 - which :: 2] = 0
    return result


@poisoned()
def silu_backward(f: Callable[[Tensor, Tensor], Tensor]) -> None:
    """11-4: dx = dy · SiLU'(x), contiguous, in x's dtype, computed in float32."""
    g = torch.Generator().manual_seed(114)
    shapes = [(3, 7, torch.float32), (37, 56, torch.float32), (1, 1000, torch.bfloat16), (129, 33, torch.bfloat16)]
    for rows, columns, dtype in shapes:
        x, dy = (torch.randn(rows, columns, generator=g) for _ in range(2))
        x = 2 * x
        x[0, :2] = torch.tensor([-200.0, 200.0])
        x, dy = _surrounded(x.to(dtype)), _surrounded(dy.to(dtype))
        with np.errstate(over="ignore"):  # exp of 200 is infinite, and rightly so; the interpreter would warn
            got = f(dy, x)
        what = f"dx for {rows} row{'s' * (rows > 1)} of {columns} {str(dtype).removeprefix('torch.')}"
        if isinstance(got, Tensor) and got.dtype != dtype:
            raise Wrong(f"{what}: expected {dtype}, as x; got {got.dtype}")
        exact = _silu_slope(x.double()) * dy.double()
        # A dozen float32 roundings; one of the stored number, which the interpreter truncates where a GPU rounds.
        stored = 2.0**-7 if dtype == torch.bfloat16 else 0.0
        tolerance = 16 * 2.0**-24 * (1 + x.double().abs()) * dy.double().abs() + stored * exact.abs() + 2.0**-40
        s = torch.sigmoid(x.double())
        causes = (
            {"that is SiLU itself times dy, not its derivative": x.double() * s * dy.double(),
             "dy is missing": _silu_slope(x.double()),
             "the product rule: x · sigmoid(x) has two terms, and one is missing": s * dy.double(),
             "x and dy are exchanged": _silu_slope(dy.double()) * x.double(),
             "bfloat16 was used inside: widen x and dy to float32 first": (_silu_slope(x) * dy).double()}
        )  # fmt: skip
        try:
            same_tensor(what, got, exact, tolerance)
        except Wrong as wrong:
            fits = isinstance(got, Tensor) and got.shape == exact.shape
            for cause, value in causes.items():  # a wrong formula is recognised by far less than what is right
                if fits and torch.allclose(got.double(), value, rtol=2.0**-6, atol=1e-4):
                    raise Wrong(f"{wrong} Likely cause: {cause}.") from None
            raise
    if DEVICE == "cpu":
        with _loads(x) as count, np.errstate(over="ignore"):
            f(dy, x)
        if not sum(count.of.values()):
            raise Wrong("expected a Triton kernel that reads x where it lies, got none: no load of it was seen")
        loaded = sum(n * size for size, n in count.of.items()) // 2
        causes = {"x is read twice": 2 * x.numel()}
        if loaded % x.numel():
            causes["lanes outside of the tensor load too: a mask is missing"] = loaded
        same_number("elements of x loaded", loaded, x.numel(), causes)
        print("No GPU here: correctness and loads were checked, speed was not.")
        return right("four shapes in two dtypes, each element read once")
    from flashkat_lite.lab.solutions_sixteen import silu_backward_solution as ours

    pair = tuple(torch.randn(2**17, 768, device=DEVICE).to(torch.bfloat16) for _ in range(2))
    timed(f, ours, pair, "131,072 rows of 768 bfloat16", nbytes=6 * pair[0].numel())
    right("SiLU's backward pass of four shapes in two dtypes")


def _silu_slope(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))
