"""Chapter 07: counts, gradients of coefficients, and column sums by one atomic addition an element."""

from collections.abc import Callable

import torch
from torch import Tensor

from flashkat_lite.testing import poisoned, random_inputs

from .. import setup as lab
from .common import Parts, Wrong, exercise, expect_tuple, normal, numbers, same_number, timed
from .gradients import same_coefficient_gradients
from .kernels import atomic_adds, reads_all, watch
from .language import tl, triton
from .rules import without_autograd
from .sums import check_column_sums


@exercise("07-1")
@numbers(
    "bytes, atomic adds and addresses, at three sizes",
    *((201728, 768, 8, 5, 4), (37, 56, 8, 3, 2), (1000, 24, 1, 6, 5)),
)
def count_work(rows: int, columns: int, groups: int, m: int, n: int) -> Parts:
    """Check bytes, atomic adds and addresses of the atomic backward, float32."""
    size, elements, coefficients = f"{rows=}, {columns=}, {groups=}, {m=}, {n=}", rows * columns, m + 1 + n
    yield f"bytes for {size}", 12 * elements, {
        "dy, x and dx are three tensors of four-byte elements": 8 * elements,
        "elements were counted, not bytes": 3 * elements,
    }  # fmt: skip
    yield f"atomic adds for {size}", coefficients * elements, {
        "a polynomial of degree m has m+1 coefficients": (m + n) * elements,
        "each element adds to its own group alone": coefficients * elements * groups,
    }  # fmt: skip
    yield f"addresses for {size}", coefficients * groups, {
        "each group has a table row of its own": coefficients,
        "m+1 and n": (m + n) * groups,
    }  # fmt: skip


@exercise("07-2")
def coefficient_gradients(f: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]) -> str:
    """Check (dnumerator, ddenominator) in plain PyTorch from (dy, x, numerator, denominator), float64."""
    for seed, (rows, *size) in enumerate([(37, 56, 8, (5, 4)), (10, 24, 3, (2, 1))]):
        tensors = [t.double() for t in random_inputs(rows, *size, tables=1.0, seed=seed, device="cpu")]
        tensors[1][:, ::5], tensors[3][0, -1] = 0.0, 0.0
        with without_autograd():
            answer = f(*(t.clone() for t in tensors))
        same_coefficient_gradients(expect_tuple(answer, "dnumerator", "ddenominator"), *tensors)
    return "both gradients, for two shapes, in float64"


@exercise("07-3")
@poisoned()
def column_sums_atomic(f: Callable[[Tensor], Tensor]) -> str:
    """Check dy [rows, columns] -> float32 sums over rows [columns], one atomic add an element."""
    check_column_sums(f)
    seen = watch(f, normal(37, 8, seed=6))
    if adds := atomic_adds(seen):
        reads_all(seen, 37 * 8, "37 rows of 8")
        same_number("atomic adds for 37 rows of 8", adds.elements, 37 * 8)
        same_number("addresses for 37 rows of 8", len(adds.addresses), 8)
    return "column sums of odd shapes, bfloat16, a transposed tensor, and twice in a row"


@exercise("07-4")
@poisoned()
def column_sums_copies(f: Callable[[Tensor], Tensor]) -> str:
    """Check the same sums, one atomic add an element, on at least 64 times as many addresses."""
    check_column_sums(f)
    seen = watch(f, normal(30000, 8, seed=6))
    if adds := atomic_adds(seen):
        reads_all(seen, 240000, "30,000 rows of 8")
        same_number("atomic adds for 30,000 rows of 8", adds.elements, 240000)
        if len(adds.addresses) < 64 * 8:
            raise Wrong(f"30,000 rows of 8 added to {len(adds.addresses)} addresses; 512 or more were asked for")
    timed(f, column_sums_copies_solution, {"1,048,576 rows of 8": ((2**20, 8),)})
    return "the same sums on many addresses" + ", and fast" * lab.GPU


@triton.jit
def column_sums_copies_kernel(dy_ptr, out_ptr, rows, columns, row_stride, column_stride, copies, BLOCK: tl.constexpr):
    program = tl.program_id(0).to(tl.int64)
    element = program * BLOCK + tl.arange(0, BLOCK)
    row, column = element // columns, element % columns
    mask = row < rows
    dy = tl.load(dy_ptr + row * row_stride + column * column_stride, mask=mask, other=0.0)
    tl.atomic_add(out_ptr + (program % copies) * columns + column, dy.to(tl.float32), mask=mask)


def column_sums_copies_solution(dy, copies=4096):
    out = torch.zeros(copies, dy.shape[1], device=dy.device)
    block = lab.pick(gpu=256, cpu=1024)
    column_sums_copies_kernel[(triton.cdiv(dy.numel(), block),)](dy, out, *dy.shape, *dy.stride(), copies, BLOCK=block)
    return out.sum(0)
