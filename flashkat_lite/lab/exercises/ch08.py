"""Chapter 08: a suspect's share, Little's law, a control experiment, and a weighted histogram."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from flashkat_lite.testing import guarded, poisoned

from .. import setup as lab
from .common import Parts, exercise, normal, numbers, same_number, same_twice, timed
from .kernels import few_adds, watch
from .language import tl, triton
from .sums import check_sums_by_index, crowded


@exercise("08-1")
@numbers(
    "shares for a removed, a halved and a multiplied suspect",
    *((50.0, 50.35, 8.0), (10.0, 17.0, 8.0), (792.0, 0.775, 0.0), (10.0, 9.0, 0.5)),
)
def share_of_time(before: float, after: float, factor: float) -> Parts:
    """Check the share of the time that a suspect takes, from times before and after a factor on its work."""
    what, growth = f"share for {before:g} ms, then {after:g} ms with a factor of {factor:g}", after / before - 1
    yield what, growth / (factor - 1), {
        "the factor counts what is there in all: it adds factor - 1 times the share": growth / (factor or math.nan),
        "the growth was not divided by factor - 1": growth,
        "the sign: with a factor below 1 both differences are negative": -growth / (factor - 1),
        "that is the time saved, not what a factor other than 0 says of the share": -growth,
    }  # fmt: skip


@exercise("08-2")
@numbers(
    "the stay of a warp, and the stall of an instruction",
    (64.0, 132, 302592, 77.56, 256, 1.973),
    (12.0, 132, 50432, 0.782, 7926, 1.96),
    (32.0, 40, 10**6, 20.0, 100, 1.5),
)
def warp_stay(inside: float, multiprocessors: int, warps: int, ms: float, instructions: int, ghz: float) -> Parts:
    """Check microseconds that a warp stays, and cycles an instruction, by Little's law."""
    size = f"{inside:g} warps on each of {multiprocessors}, {warps:,} warps in {ms:g} ms"
    stay = inside * multiprocessors * ms * 1e3 / warps
    yield f"microseconds for {size}", stay, {
        "warps inside are those of all multiprocessors": stay / multiprocessors,
        "milliseconds, not microseconds": stay / 1e3,
        "nanoseconds, not microseconds": stay * 1e3,
        "upside down: inside = rate · stay": 1 / stay,
        "a warp's share of the time, as if one ran after another": ms * 1e3 / warps,
    }  # fmt: skip
    cycles = stay * 1e3 * ghz / instructions
    yield f"cycles an instruction for {size}, {instructions} instructions at {ghz:g} GHz", cycles, {
        "all instructions of the warp share its stay": cycles * instructions,
        "a GHz is a thousand cycles in a microsecond": cycles / 1e3,
        "cycles are time times clock": stay * 1e3 / ghz / instructions,
    }  # fmt: skip


@exercise("08-3")
@poisoned()
def same_row_sums(f: Callable[[Tensor, int], Tensor]) -> str:
    """Check sums over `rows` copies of one row, with rows · D loads and additions, from D elements to D addresses."""
    cases = {
        "37 rows of 8": (normal(8, seed=1), 37),
        "1000 rows of 7": (normal(7, seed=2), 1000),
        "1 row of 300": (normal(300, seed=3), 1),
        "50 rows, every second element of 20": (normal(20, seed=4)[::2], 50),
    }
    for name, (row, rows) in cases.items():
        exact = rows * row.double()
        tolerance = rows * 2.0**-24 * exact.abs() + 1e-30  # equal terms round alike: the worst case, not a random one
        same_twice(f"sums of {name}", f, (row, rows), exact, tolerance, {
            "the row was added once": row,
            "everything was added to every column": exact.sum().expand_as(exact),
            "strides were taken for those of a contiguous row": rows * row.as_strided(row.shape, (1,)).double(),
        })  # fmt: skip
    if seen := watch(f, *cases["37 rows of 8"]):
        size = "for 37 rows of 8"
        same_number(f"additions {size}", seen.adds.elements, 37 * 8, {
            "the experiment removed the additions too: it clears nothing": 8, "no kernel added atomically": 0,
        })  # fmt: skip
        same_number(f"addresses {size}", len(seen.adds.addresses), 8)
        same_number(f"loads {size}", seen.loads.elements, 37 * 8, {
            "the loads themselves are gone: a second change": 8, "nothing was loaded": 0,
        })  # fmt: skip
        same_number(f"different elements loaded, {size}", len(seen.loads.addresses), 8, {
            "the row was copied out to all rows: the bytes are back": 37 * 8,
        })  # fmt: skip
    timed(f, same_row_sums_solution, {"2²⁰ rows of 8": ((8,), 2**20)})
    return "the same loads and additions, without the bytes"


@triton.jit
def same_row_sums_kernel(row_ptr, out_ptr, rows, columns, column_stride, BLOCK: tl.constexpr):
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = element // columns < rows
    column = element % columns  # the row's number is not in the address
    dy = tl.load(row_ptr + column * column_stride, mask=mask, other=0.0)
    tl.atomic_add(out_ptr + column, dy, mask=mask)


def same_row_sums_solution(row, rows):
    out = torch.zeros(len(row), device=row.device)
    block = lab.pick(gpu=256, cpu=4096)
    same_row_sums_kernel[(triton.cdiv(rows * len(row), block),)](row, out, rows, len(row), row.stride(0), BLOCK=block)
    return out


def _weighted(count: int, bins: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return numbers of bins, half of them 1, and weights [count], with another bin's number and NaN beside them."""
    weights = torch.randn(count, generator=torch.Generator().manual_seed(seed + 100)) + 0.5
    return crowded(count, bins, 1, seed), guarded(weights)


def _many(count: int, bins: int) -> Tensor:
    """Return as many numbers of bins, half of them 1, made where they are used: new ones for each timed call."""
    values = torch.randint(bins, (count,), device=lab.DEVICE, dtype=torch.int32)
    return values.masked_fill_(torch.rand(count, device=lab.DEVICE) < 0.5, 1)


@exercise("08-4")
@poisoned()
def weighted_histogram(f: Callable[[Tensor, Tensor, int], Tensor]) -> str:
    """Check sums of weights by bin, at most one atomic addition for 16 elements."""
    for seed, (count, bins) in enumerate([(1, 2), (5000, 7), (4096, 64), (3001, 40)]):
        values, weights = _weighted(count, bins, seed)
        what = f"weights of {count} elements in {bins} bins"
        check_sums_by_index(what, f, (values, weights, bins), values, weights, bins)
    few_adds(
        watch(f, *_weighted(60000, 64, 9), 64), 120_000, 60000 // 16, "60,000 elements in 64 bins",
        "elements are added to memory before the program has summed, or there are too many programs", spare=64,
    )  # fmt: skip
    timed(f, weighted_histogram_solution, {"2²⁴ elements in 64 bins": (lambda: _many(2**24, 64), (2**24,), 64)})
    return "sums of weights by bin, summed before they are added"


@triton.jit
def weighted_histogram_kernel(values_ptr, weights_ptr, out_ptr, count, bins, ROWS: tl.constexpr, BINS: tl.constexpr):
    bin = tl.arange(0, BINS)
    sums = tl.zeros([ROWS, BINS], tl.float32)  # private: nobody else adds to these
    step = tl.num_programs(0) * ROWS
    for first in range(tl.program_id(0) * ROWS, count, step):
        offs = first + tl.arange(0, ROWS)
        value = tl.load(values_ptr + offs, mask=offs < count, other=-1)  # -1: no bin's
        weight = tl.load(weights_ptr + offs, mask=offs < count, other=0.0)
        sums += tl.where(value[:, None] == bin[None, :], weight[:, None], 0.0)
    tl.atomic_add(out_ptr + bin, tl.sum(sums, 0), mask=bin < bins, sem="relaxed")


def weighted_histogram_solution(values, weights, bins):
    out = torch.zeros(bins, device=values.device)
    rows_per_tile = lab.pick(gpu=32, cpu=1024)
    programs = min(2112, triton.cdiv(len(values), 2048))  # 16 for each multiprocessor
    weighted_histogram_kernel[(programs,)](
        values, weights, out, len(values), bins,
        ROWS=rows_per_tile, BINS=triton.next_power_of_2(bins),
    )  # fmt: skip
    return out
