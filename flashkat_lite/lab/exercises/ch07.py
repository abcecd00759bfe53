"""Chapter 07: counts, gradients of coefficients, and column sums by one atomic addition an element."""

from collections.abc import Callable

import torch
from torch import Tensor

from flashkat_lite.reference import gradient_terms, rational_gradients
from flashkat_lite.testing import poisoned

from .. import setup as lab
from .column_sums import check_column_sums
from .common import Wrong, atomic_adds, exercise, expect_tuple, normal, same_number, same_tensor, timed
from .language import tl, triton


@exercise("07-1")
def count_work(f: Callable[[int, int, int, int, int], tuple[int, int, int]]) -> str:
    """Check (bytes, atomic adds, addresses) of the atomic backward for (rows, columns, groups, m, n), float32."""
    for rows, columns, groups, m, n in [(201728, 768, 8, 5, 4), (37, 56, 8, 3, 2), (1000, 24, 1, 6, 5)]:
        answer = expect_tuple(f(rows, columns, groups, m, n), "bytes", "atomic adds", "addresses")
        size = f"rows={rows}, columns={columns}, groups={groups}, m={m}, n={n}"
        elements, coefficients = rows * columns, m + 1 + n
        same_number(
            f"bytes for {size}", answer[0], 12 * elements,
            {"dy, x and dx are three tensors of four-byte elements": 8 * elements,
             "elements were counted, not bytes": 3 * elements},
        )  # fmt: skip
        same_number(
            f"atomic adds for {size}", answer[1], coefficients * elements,
            {"a polynomial of degree m has m+1 coefficients": (m + n) * elements,
             "each element adds to its own group alone": coefficients * elements * groups},
        )  # fmt: skip
        same_number(
            f"addresses for {size}", answer[2], coefficients * groups,
            {"each group has a table row of its own": coefficients, "m+1 and n": (m + n) * groups},
        )  # fmt: skip
    return "bytes, atomic adds and addresses, at three sizes"


@exercise("07-2")
def coefficient_gradients(f: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]) -> str:
    """Check (dnumerator, ddenominator) in plain PyTorch from (dy, x, numerator, denominator), float64."""
    for seed, (rows, columns, groups, m, n) in enumerate([(37, 56, 8, 5, 4), (10, 24, 3, 2, 1)]):
        g = torch.Generator().manual_seed(seed)
        dy, x = (torch.randn(rows, columns, generator=g, dtype=torch.float64) for _ in range(2))
        a = torch.randn(groups, m + 1, generator=g, dtype=torch.float64)
        b = torch.randn(groups, n, generator=g, dtype=torch.float64)
        _, da, db = rational_gradients(dy, x, a, b)
        answer = expect_tuple(f(dy, x, a, b), "dnumerator", "ddenominator")
        scale = torch.stack([t.abs().sum((0, 2)) for t in gradient_terms(dy, x, a, b)], 1) * 1e-12 + 1e-12

        def strided(t: Tensor, groups: int = groups) -> Tensor:
            return t.reshape(len(t), -1, groups).transpose(1, 2).reshape(len(t), -1)

        _, da_strided, db_strided = rational_gradients(strided(dy), strided(x), a, b)
        same_tensor(
            "dnumerator", answer[0], da, scale[:, : m + 1],
            {"neighbouring columns share a group: column // width, not column % groups": da_strided,
             "the sign of the result": -da},
        )  # fmt: skip
        signless = db * torch.where(b < 0, -1.0, 1.0)
        same_tensor(
            "ddenominator", answer[1], db, scale[:, m + 1 :],
            {"the sign of b_j is lost: Q holds |b_j|": signless,
             "the minus sign of -P/Q² is lost": -db,
             "both the minus sign and the sign of b_j are lost": -signless,
             "neighbouring columns share a group": db_strided},
        )  # fmt: skip
    return "both gradients, for two shapes, in float64"


@exercise("07-3")
@poisoned()
def column_sums_atomic(f: Callable[[Tensor], Tensor]) -> str:
    """Check dy [rows, columns] -> float32 sums over rows [columns], one atomic add an element."""
    check_column_sums(f)
    if not lab.GPU:
        adds = atomic_adds(lambda: f(normal(37, 8, seed=6)))
        same_number("atomic adds for 37 rows of 8", adds.elements, 37 * 8)
        same_number("addresses for 37 rows of 8", len(adds.addresses), 8)
    return "column sums of odd shapes, bfloat16, a transposed tensor, and twice in a row"


@exercise("07-4")
@poisoned()
def column_sums_copies(f: Callable[[Tensor], Tensor]) -> str:
    """Check the same sums, one atomic add an element, on at least 64 times as many addresses."""
    check_column_sums(f)
    if not lab.GPU:
        adds = atomic_adds(lambda: f(normal(30000, 8, seed=6)))
        same_number("atomic adds for 30,000 rows of 8", adds.elements, 240000)
        if len(adds.addresses) < 64 * 8:
            raise Wrong(f"30,000 rows of 8 added to {len(adds.addresses)} addresses; 512 or more were asked for")
    timed(f, column_sums_copies_solution, {"1,048,576 rows of 8": ((2**20, 8),)}, moves=1)
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
