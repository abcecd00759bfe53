"""Chapter 12: the error of a staged sum, exact additions, and sums that are accurate or repeat."""

import math
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flashkat_lite.testing import guarded, poisoned

from .. import setup as lab
from ..counting import Accesses
from .common import TWICE, Parts, Wrong, exercise, expect_tuple, normal, numbers, same_tensor, timed
from .kernels import launches, no_adds, reads_all, repeats, watch
from .language import tl, triton
from .rules import Operations
from .sums import rounding, same_total


@exercise("12-1")
@numbers("four shapes of a sum", (2**20, 2**10, 32), (2**24, 2**12, 64), (19_365_888, 101_376, 1), (4096, 1, 64))
def staged_units(terms: int, accumulators: int, chunk: int) -> Parts:
    """Check the root mean square error, in units, of a sum of `terms` by so many accumulators, in chunks."""
    size, each = f"{terms:,} terms, {accumulators:,} accumulators, chunks of {chunk}", terms / accumulators
    first, second, tree = 0.09 * chunk, 0.09 * each / chunk, 0.18 * math.log2(accumulators)
    yield f"error for {size}", (first + second + tree) ** 0.5, {
        "the square root is missing: errors add in squares": first + second + tree,
        "that is the mean absolute error, 0.8 of what was asked for": 0.8 * (first + second + tree) ** 0.5,
        "the chunks were forgotten: an accumulator adds K / accumulators terms in chunks": (0.09 * each + tree) ** 0.5,
        "the accumulators' own tree is missing": (first + second) ** 0.5,
        "the chain of the chunks' sums is missing": (first + tree) ** 0.5,
        "a chunk's chain is missing": (second + tree) ** 0.5,
        "errors add in squares, not as they are": first**0.5 + second**0.5 + tree**0.5,
        "the logarithm is that of base 2": (first + second + 0.18 * math.log(accumulators)) ** 0.5,
    }  # fmt: skip


@exercise("12-2")
def what_is_lost(f: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> str:
    """Check (s, e) float32 with s = a + b rounded and s + e = a + b exactly."""
    g = torch.Generator().manual_seed(122)
    scale = 2.0 ** torch.randint(-10, 11, (2, 2000), generator=g)
    a, b = (torch.rand(2, 2000, generator=g) + 1) * scale * (1 - 2 * torch.randint(2, (2, 2000), generator=g))
    cases = {"the larger number first": _sorted(a, b), "the larger number second": _sorted(a, b)[::-1]}
    for what, (p, q) in cases.items():
        with Operations() as operations:
            answer = f(p.clone(), q.clone())
        answer = expect_tuple(answer, "s", "e")
        for name, part in zip(("s", "e"), answer, strict=True):
            if isinstance(part, Tensor) and part.dtype != torch.float32:
                raise Wrong(f"{name}: expected dtype torch.float32, got {part.dtype}; do it without float64")
        made = [(done, tensor) for done, _, tensors in operations.done for tensor in tensors]
        if wide := [done for done, tensor in made if tensor.dtype in (torch.float64, torch.complex128)]:
            raise Wrong(f"expected float32 throughout, got float64 from {wide[0]}; do it without float64")
        s = p + q
        # Exponents differ by 21 at most, so 24 + 21 bits: float64 holds the sum exactly.
        e = (p.double() + q.double()) - s.double()
        same_tensor(f"s with {what}", answer[0], s, 0.0)
        memory = {tensor.untyped_storage().data_ptr() for _, tensor in made}
        if isinstance(answer[1], Tensor) and answer[1].untyped_storage().data_ptr() not in memory:
            raise Wrong(
                f"e with {what}: expected operations of PyTorch, got a tensor made elsewhere; do it without float64"
            )
        same_tensor(f"e with {what}", answer[1], e, 0.0, {
            "the sign: e is what s lacks": -e,
            "e is always zero: an exact difference of rounded numbers was taken for granted": 0 * e,
            "right only where the first number is the larger one": q - (s - p),
            "right only where the second number is the larger one": p - (s - q),
        }, torch.float32)  # fmt: skip
    return "4000 additions, to the last bit"


def _sorted(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    swap = b.abs() > a.abs()
    return torch.where(swap, b, a), torch.where(swap, a, b)


def _cancelling(rows: int, columns: int, seed: int) -> Tensor:
    """Return normal numbers, and in each column pairs of large ones of opposite sign, in random rows."""
    g = torch.Generator().manual_seed(seed)
    dy = torch.randn(rows, columns, generator=g)
    for column in range(columns):
        places = torch.randperm(rows, generator=g)[: rows // 4 * 2]
        large = 2.0 ** torch.randint(18, 28, (len(places) // 2,), generator=g)
        dy[places, column] = torch.cat([large, -large])
    return dy


@exercise("12-3")
@poisoned()
def column_sums_compensated(f: Callable[[Tensor], Tensor]) -> str:
    """Check float32 column sums as accurate as twice the precision, rounded once; no atomic additions."""
    g = torch.Generator().manual_seed(123)
    cases = {
        "37 rows of 8": guarded(torch.randn(37, 8, generator=g)),
        "1 row of 300": guarded(torch.randn(1, 300, generator=g)),
        "20,000 rows of 3, all positive": guarded(torch.rand(20000, 3, generator=g)),
        "3001 rows of 5 that nearly cancel": guarded(_cancelling(3001, 5, 1)),
        "a transposed tensor that nearly cancels": guarded(_cancelling(500, 7, 2).T.contiguous()).T,
    }
    for name, dy in cases.items():
        _check_sums(f"column sums of {name}", f(dy), dy)
    dy = cases["37 rows of 8"]
    _check_sums("a second call", f(dy), dy)
    seen = watch(f, torch.randn(500, 8, generator=g))
    no_adds(seen)
    reads_all(seen, 4000, "500 rows of 8")
    timed(f, column_sums_compensated_solution, {"2¹⁹ rows of 96": ((2**19, 96),)})
    return "column sums to the last bits, where nearly everything cancels too"


def _check_sums(what: str, got: Any, dy: Tensor) -> None:
    """Raise Wrong unless `got` is dy's column sums, as accurate as twice the precision, rounded once."""
    exact, size = dy.double().sum(0), dy.double().abs().sum(0)
    same_tensor(what, got, exact, 2.0**-23 * exact.abs() + 2.0**-40 * size, {
        TWICE: 2 * exact,
        "right but for rounding: a carry is missing, does not join the sum at the end, or is lost where a term is "
        "larger than the sum (Kahan's form)": (exact, 2 * rounding(len(dy), size)),
    }, torch.float32)  # fmt: skip


@triton.jit
def column_sums_compensated_kernel(
    dy_ptr, partial_ptr, rows, columns, row_stride, column_stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    carries = tl.zeros([ROWS, COLUMNS], tl.float32)
    step = tl.num_programs(0) * ROWS
    for first in range(tl.program_id(0) * ROWS, rows, step):
        row = tl.cast(first, tl.int64) + tl.arange(0, ROWS)[:, None]
        mask = (row < rows) & (column < columns)[None, :]
        term = tl.load(dy_ptr + row * row_stride + column[None, :] * column_stride, mask=mask, other=0.0)
        new = sums + term
        of_term = new - sums
        carries += (sums - (new - of_term)) + (term - of_term)
        sums = new
    total = tl.sum(sums.to(tl.float64) + carries.to(tl.float64), 0)  # [COLUMNS]
    tl.store(partial_ptr + tl.program_id(0) * columns + column, total, mask=column < columns)


def column_sums_compensated_solution(dy, rows_of_tile=64):
    rows, columns = dy.shape
    wide = min(triton.next_power_of_2(columns), 32)
    grid = (min(lab.pick(gpu=264, cpu=4), triton.cdiv(rows, rows_of_tile)), triton.cdiv(columns, wide))
    partial = torch.empty(grid[0], columns, dtype=torch.float64, device=dy.device)
    column_sums_compensated_kernel[grid](dy, partial, rows, columns, *dy.stride(), ROWS=rows_of_tile, COLUMNS=wide)
    return partial.sum(0).float()


@exercise("12-4")
@poisoned()
def sum_repeatable(f: Callable[[Tensor], Tensor]) -> str:
    """Check the sum of a float32 vector, the same bits whatever order programs run in."""
    for seed, count in enumerate((1, 1000, 65_537, 300_003)):
        x = normal(count, seed=124 + seed)
        what, got = f"the sum of {count:,} elements", f(x)
        chain = torch.cumsum(x.cpu().flip(0), 0)[-1].to(lab.DEVICE)
        same_total(what, got, x, {"right but for rounding: a long chain of additions": chain})
        for _ in range(3 if lab.GPU else 1):
            repeats(what, got, f, x)
    x = normal(65_537, seed=126)
    seen = watch(f, x)
    no_adds(seen)
    reads_all(seen, len(x), "65,537 elements")
    _two_launches(seen)
    timed(f, sum_repeatable_solution, {"2²⁶ elements": ((2**26,),)})
    return "four lengths, the same bits each time"


def _two_launches(seen: Accesses | None) -> None:
    """Raise Wrong unless a first launch of several programs was seen, and a second that adds (PyTorch's, perhaps)."""
    if not seen:
        return
    stored = {address for addresses, _ in seen.stores for address in addresses.tolist()}
    later = [
        name for name, taken, _ in seen.operations.done
        if re.search("sum|mean|add|dot|mm|matmul", name) and any(t.data_ptr() in stored for t in taken)
    ]  # fmt: skip
    found = launches(seen) + len(later)
    if found != 2:
        raise Wrong(
            "the sum of 65,537 elements: expected two launches (PyTorch's sum of what the first one stored is one), "
            f"got {found}"
        )
    again = seen.programs.index((0, 0, 0), 1) if launches(seen) > 1 else len(seen.programs)
    if again < 2:
        raise Wrong("the sum of 65,537 elements: expected several programs in the first launch, got 1")


@triton.jit
def part_sums_kernel(x_ptr, partial_ptr, count, BLOCK: tl.constexpr):
    sums = tl.zeros([BLOCK], tl.float32)
    step = tl.num_programs(0) * BLOCK
    for first in range(tl.program_id(0) * BLOCK, count, step):
        offs = first + tl.arange(0, BLOCK)
        sums += tl.load(x_ptr + offs, mask=offs < count, other=0.0)
    tl.store(partial_ptr + tl.program_id(0), tl.sum(sums))


@triton.jit
def last_sum_kernel(partial_ptr, out_ptr, parts, BLOCK: tl.constexpr):
    part = tl.arange(0, BLOCK)
    tl.store(out_ptr, tl.sum(tl.load(partial_ptr + part, mask=part < parts, other=0.0)))


def sum_repeatable_solution(x, block=2048):
    parts = min(lab.pick(gpu=1056, cpu=4), triton.cdiv(len(x), block))
    partial = torch.empty(parts, device=x.device)
    out = torch.empty((), device=x.device)
    part_sums_kernel[(parts,)](x, partial, len(x), BLOCK=block, num_warps=8)
    last_sum_kernel[(1,)](partial, out, parts, BLOCK=triton.next_power_of_2(parts))
    return out
