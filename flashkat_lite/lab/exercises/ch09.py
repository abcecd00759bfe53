"""Chapter 09: counts of the block backward, and column sums that a program makes before it adds."""

from collections.abc import Callable

import torch
from torch import Tensor

from flashkat_lite.testing import poisoned

from .common import Parts, exercise, numbers, timed
from .kernels import few_adds, watch
from .language import tl, triton
from .sums import check_column_sums


@exercise("09-1")
@numbers("programs and atomic adds, at three sizes", (201728, 8, 5, 4, 32), (37, 3, 3, 2, 16), (1000, 8, 6, 5, 128))
def count_block(rows: int, groups: int, m: int, n: int, tile: int) -> Parts:
    """Check programs and atomic adds of the block backward, with tiles of so many rows."""
    size, blocks = f"{rows=}, {groups=}, {m=}, {n=}, {tile=} rows", -(-rows // tile)
    yield f"programs for {size}", blocks * groups, {
        "the last, partial tile needs a program too: round up": rows // tile * groups,
        "a tile belongs to one group: times groups": blocks,
    }  # fmt: skip
    yield f"atomic adds for {size}", blocks * groups * (m + 1 + n), {
        "a polynomial of degree m has m+1 coefficients": blocks * groups * (m + n),
    }  # fmt: skip


@exercise("09-2")
@numbers("seven widths", (24,), (96,), (100,), (128,), (7,), (1,), (384,))
def idle_share(width: int) -> Parts:
    """Check the share of a tile's positions that own no column, for a group width."""
    columns = 1 << (width - 1).bit_length()
    yield f"idle share at width {width}", 1 - width / columns, {
        "the share in use was returned": width / columns,
        "idle over used, not over all": columns / width - 1,
    }  # fmt: skip


@exercise("09-3")
@poisoned()
def column_sums_block(f: Callable[[Tensor], Tensor]) -> str:
    """Check column sums with one atomic add a column and program, at least 64 rows a program."""
    check_column_sums(f)
    most = 4096 // 64 * 96
    few_adds(watch(f, torch.randn(4096, 96)), 4096 * 96, most, "4,096 rows of 96", stored=most, spare=96)
    timed(f, column_sums_block_solution, {"524,288 rows of 96": ((2**19, 96),)})
    return "column sums, summed in the program first"


@triton.jit
def column_sums_block_kernel(
    dy_ptr, out_ptr, rows, columns, row_stride, column_stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    mask = (row < rows) & (column < columns)
    dy = tl.load(dy_ptr + row * row_stride + column * column_stride, mask=mask, other=0.0).to(tl.float32)
    total = tl.sum(dy, 0)  # [COLUMNS]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    tl.atomic_add(out_ptr + column, total, mask=column < columns, sem="relaxed")


def column_sums_block_solution(dy, rows_of_tile=128):
    rows, columns = dy.shape
    out = torch.zeros(columns, device=dy.device)
    wide = min(triton.next_power_of_2(columns), 32)
    grid = (triton.cdiv(rows, rows_of_tile), triton.cdiv(columns, wide))
    column_sums_block_kernel[grid](dy, out, rows, columns, *dy.stride(), ROWS=rows_of_tile, COLUMNS=wide)
    return out


@exercise("09-4")
@poisoned()
def column_sums_walking(f: Callable[[Tensor], Tensor]) -> str:
    """Check column sums by programs that walk down the rows: at most 264 adds a column, however many rows."""
    check_column_sums(f)
    few_adds(watch(f, torch.randn(60000, 8)), 480_000, 264 * 8, "60,000 rows of 8", stored=264 * 8, spare=8)
    timed(f, column_sums_walking_solution, {"524,288 rows of 96": ((2**19, 96),)})
    return "column sums by walking programs"


@triton.jit
def column_sums_walking_kernel(
    dy_ptr, out_ptr, rows, columns, row_stride, column_stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)  # one partial sum a position; nothing is reduced inside the loop
    step = tl.num_programs(0) * ROWS
    for first in range(tl.program_id(0) * ROWS, rows, step):
        row = tl.cast(first, tl.int64) + tl.arange(0, ROWS)[:, None]
        mask = (row < rows) & (column < columns)[None, :]
        dy = tl.load(dy_ptr + row * row_stride + column[None, :] * column_stride, mask=mask, other=0.0)
        sums += dy.to(tl.float32)
    tl.atomic_add(out_ptr + column, tl.sum(sums, 0), mask=column < columns, sem="relaxed")


def column_sums_walking_solution(dy, rows_of_tile=64):
    rows, columns = dy.shape
    out = torch.zeros(columns, device=dy.device)
    wide = min(triton.next_power_of_2(columns), 32)
    grid = (min(264, triton.cdiv(rows, rows_of_tile)), triton.cdiv(columns, wide))
    column_sums_walking_kernel[grid](dy, out, rows, columns, *dy.stride(), ROWS=rows_of_tile, COLUMNS=wide)
    return out
