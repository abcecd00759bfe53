"""Chapter 06: three limits, and sums by few atomic additions."""

from collections.abc import Callable

import torch
from torch import Tensor

from flashkat_lite.testing import guarded, poisoned

from .. import setup as lab
from .common import Parts, Wrong, exercise, numbers, same_twice, timed
from .gradients import NEIGHBOURS
from .kernels import few_adds, reads_all, watch
from .language import tl, triton
from .sums import STORED, crowded, rounding

ALONE = "positions add their own element before the program has summed"


@exercise("06-1")
@numbers(
    "time and limit, where each of the three holds",
    (3.1e9, 1.24e9, 0, 66900.0, 4200.0, 1.6),
    (9.0e9, 1.86e9, 1.549e9, 66900.0, 4200.0, 1.6),
    (2.0e12, 1.24e9, 5.0e6, 66900.0, 4200.0, 40.0),
)
def least_time(flops: float, nbytes: float, additions: float, gflop_s: float, gb_s: float, per_ns: float) -> Parts:
    """Check milliseconds, and which limit they come from: "arithmetic", "bytes" or "additions"."""
    times = {"arithmetic": flops / gflop_s / 1e6, "bytes": nbytes / gb_s / 1e6, "additions": additions / per_ns / 1e6}
    size, least = f"{flops:g} FLOPs, {nbytes:g} bytes, {additions:g} additions", max(times.values())
    yield f"milliseconds for {size}", least, {
        "the limits overlap: the longest counts, not their sum": sum(times.values()),
        "the longest of the times is the least that a kernel can take, not the shortest": min(times.values()),
        "the additions were left out": max(times["arithmetic"], times["bytes"]),
        "seconds, not milliseconds": least / 1e3,
        "microseconds, not milliseconds": least * 1e3,
        "nanoseconds, not milliseconds": least * 1e6,
    }  # fmt: skip
    yield f"the limit for {size}", max(times, key=times.get), {}


@exercise("06-2")
@poisoned()
def index_sums(f: Callable[[Tensor, Tensor, int], Tensor]) -> str:
    """Check bfloat16 sums of bfloat16 terms by index, within one rounding of the exact sum."""
    g = torch.Generator().manual_seed(62)
    for count, size in [(1, 3), (1000, 7), (5000, 1), (3001, 40)]:
        terms = guarded(torch.rand(count, generator=g).to(torch.bfloat16) + 0.5)
        index = guarded(torch.randint(size, (count,), generator=g), fill=0)
        exact = torch.zeros(size, dtype=torch.float64, device=lab.DEVICE).index_add_(0, index, terms.double())
        in_turn = torch.zeros(size, dtype=torch.bfloat16)
        for place, term in zip(index.tolist(), terms.cpu(), strict=True):
            in_turn[place] += term
        what, binade = f"sums of {count} terms on {size} totals", 2.0 ** (exact.frexp().exponent - 1)
        half_a_gap = 1.02 * 2.0**-8 * binade  # and float32's rounding
        same_twice(what, f, (terms, index, size), exact, half_a_gap * (exact != 0) + 1e-30, {
            "right but for rounding: more than one rounding to bfloat16, or bits that were cut off":
                (exact, 4 * half_a_gap * (exact != 0)),
            "the total is rounded to bfloat16 at every addition: keep it in float32": in_turn.to(lab.DEVICE),
            STORED: torch.zeros_like(exact).index_copy(0, index, terms.double()),
        }, torch.bfloat16)  # fmt: skip
    seen = watch(f, terms, index, size)
    reads_all(seen, len(terms), what)
    if seen and any(nbytes == 2 for _, nbytes in seen.adds):
        raise Wrong(f"{what}: expected no 16-bit atomic addition, got one. Keep the totals in float32")
    return "bfloat16 sums of up to 5000 terms, each rounded once"


@exercise("06-3")
@poisoned()
def histogram(f: Callable[[Tensor, int], Tensor]) -> str:
    """Check counts of integers, at most one atomic addition for 16 elements."""
    for seed, (count, bins) in enumerate([(1, 2), (5000, 7), (4096, 64), (20000, 256)]):
        values = crowded(count, bins, 0, seed)
        exact = torch.bincount(values.long(), minlength=bins)
        unset = torch.where(exact > 0, exact - 2**31 - 1, 2**31 - 1)  # on top of what fills memory from `empty`
        causes = {
            "each element was counted twice: is the buffer zeroed at each call?": 2 * exact,
            "the counts start from memory that nothing zeroed": unset,
        }
        for block in (128, 256, 512, 1024, 2048, 4096, 8192):
            masked = exact.clone()
            masked[0] += -count % block
            causes[f"{-count % block:,} masked positions were counted as zeros"] = masked
        same_twice(f"counts of {count} integers in {bins} bins", f, (values, bins), exact, 0.0, causes, torch.int32)
    seen = watch(f, crowded(60000, 64, 0, 9), 64)
    few_adds(seen, 60000, 60000 // 16, "60,000 integers in 64 bins", ALONE, spare=64)
    timed(
        f, histogram_solution, {"2²⁴ elements in 64 bins": (crowded(2**24 if lab.GPU else 1, 64, 0, 9), 64)}, good=1.3
    )
    return "counts of up to 20,000 integers, few additions"


@triton.jit
def histogram_kernel(values_ptr, out_ptr, count, bins, BLOCK: tl.constexpr, BINS: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(values_ptr + offs, mask=offs < count, other=0)
    counts = tl.histogram(values, BINS)  # [BINS]
    bin = tl.arange(0, BINS)
    valid = tl.sum((offs < count).to(tl.int32))
    counts -= tl.where(bin == 0, BLOCK - valid, 0)  # masked positions counted as zeros
    tl.atomic_add(out_ptr + bin, counts, mask=bin < bins, sem="relaxed")


def histogram_solution(values, bins, block=4096):
    out = torch.zeros(bins, dtype=torch.int32, device=values.device)
    histogram_kernel[(triton.cdiv(len(values), block),)](
        values, out, len(values), bins, BLOCK=block, BINS=triton.next_power_of_2(bins)
    )
    return out


@exercise("06-4")
@poisoned()
def group_sums(f: Callable[[Tensor, int], Tensor]) -> str:
    """Check sums of groups of columns, at most one atomic addition for 32 elements."""
    g = torch.Generator().manual_seed(64)
    for rows, columns, groups in [(1, 32, 1), (37, 768, 8), (101, 96, 3), (500, 64, 2)]:
        x = guarded(torch.randn(rows, columns, generator=g))
        terms = x.double().view(rows, groups, -1)
        exact, bound = terms.sum((0, 2)), rounding(rows * columns / groups, terms.abs().sum((0, 2)))
        same_twice(f"sums of {groups} groups, {rows} × {columns}", f, (x, groups), exact, bound, {
            NEIGHBOURS: x.double().view(rows, -1, groups).sum((0, 1)),
            "one of 32 lanes adds, but only its own element": terms.reshape(rows, groups, -1, 32)[..., 0].sum((0, 2)),
        })  # fmt: skip
    seen = watch(f, torch.randn(80, 768), 8)
    few_adds(seen, 80 * 768, 80 * 768 // 32, "80 rows of 768", ALONE)
    if seen and len(seen.adds.addresses) > 8:
        raise Wrong(f"80 rows of 768 in 8 groups: expected additions on 8 addresses, got {len(seen.adds.addresses):,}")
    timed(f, group_sums_solution, {"2¹⁸ rows of 768": ((2**18, 768), 8)})
    return "group sums, summed before they are added"


@triton.jit
def group_sums_kernel(x_ptr, out_ptr, count, columns, width, BLOCK: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCK
    offs = first + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs, mask=offs < count, other=0.0)
    sums = tl.sum(tl.reshape(x, [BLOCK // 32, 32]), 1)  # [BLOCK / 32]
    offs = first + tl.arange(0, BLOCK // 32) * 32
    tl.atomic_add(out_ptr + offs % columns // width, sums, mask=offs < count, sem="relaxed")


def group_sums_solution(x, groups, block=4096):
    out = torch.zeros(groups, device=x.device)
    columns = x.shape[1]
    group_sums_kernel[(triton.cdiv(x.numel(), block),)](x, out, x.numel(), columns, columns // groups, BLOCK=block)
    return out
