"""Chapter 12's timed solutions: the yardstick of its speed exercises, as the chapter shows them."""

import torch
import triton
import triton.language as tl

from flashkat_lite import lab

# Exercise 12.3


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
        inside = (row < rows) & (column < columns)[None, :]
        term = tl.load(dy_ptr + row * row_stride + column[None, :] * column_stride, mask=inside, other=0.0)
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


# Exercise 12.4


@triton.jit
def part_sums_kernel(x_ptr, partial_ptr, count, BLOCK: tl.constexpr):
    sums = tl.zeros([BLOCK], tl.float32)
    step = tl.num_programs(0) * BLOCK
    for first in range(tl.program_id(0) * BLOCK, count, step):
        at = first + tl.arange(0, BLOCK)
        sums += tl.load(x_ptr + at, mask=at < count, other=0.0)
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
