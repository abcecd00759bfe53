"""Solutions whose time is the yardstick of a speed exercise; the chapters show them, folded, as they stand here."""

import torch
import triton
import triton.language as tl

from flashkat_lite import lab

# Chapter 07


@triton.jit
def column_sums_copies_kernel(dy_ptr, out_ptr, rows, columns, row_stride, column_stride, copies, BLOCK: tl.constexpr):
    program = tl.program_id(0).to(tl.int64)
    element = program * BLOCK + tl.arange(0, BLOCK)
    row, column = element // columns, element % columns
    inside = row < rows
    dy = tl.load(dy_ptr + row * row_stride + column * column_stride, mask=inside, other=0.0)
    tl.atomic_add(out_ptr + (program % copies) * columns + column, dy.to(tl.float32), mask=inside)


def column_sums_copies_solution(dy, copies=4096):
    out = torch.zeros(copies, dy.shape[1], device=dy.device)
    block = lab.pick(gpu=256, cpu=1024)
    column_sums_copies_kernel[(triton.cdiv(dy.numel(), block),)](dy, out, *dy.shape, *dy.stride(), copies, BLOCK=block)
    return out.sum(0)


# Chapter 09


@triton.jit
def column_sums_block_kernel(
    dy_ptr, out_ptr, rows, columns, row_stride, column_stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (row < rows) & (column < columns)
    dy = tl.load(dy_ptr + row * row_stride + column * column_stride, mask=inside, other=0.0).to(tl.float32)
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


@triton.jit
def column_sums_walking_kernel(
    dy_ptr, out_ptr, rows, columns, row_stride, column_stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)  # one partial sum a lane; nothing is reduced inside the loop
    step = tl.num_programs(0) * ROWS
    for first in range(tl.program_id(0) * ROWS, rows, step):
        row = tl.cast(first, tl.int64) + tl.arange(0, ROWS)[:, None]
        inside = (row < rows) & (column < columns)[None, :]
        dy = tl.load(dy_ptr + row * row_stride + column[None, :] * column_stride, mask=inside, other=0.0)
        sums += dy.to(tl.float32)
    tl.atomic_add(out_ptr + column, tl.sum(sums, 0), mask=column < columns, sem="relaxed")


def column_sums_walking_solution(dy, rows_of_tile=64):
    rows, columns = dy.shape
    out = torch.zeros(columns, device=dy.device)
    wide = min(triton.next_power_of_2(columns), 32)
    grid = (min(264, triton.cdiv(rows, rows_of_tile)), triton.cdiv(columns, wide))
    column_sums_walking_kernel[grid](dy, out, rows, columns, *dy.stride(), ROWS=rows_of_tile, COLUMNS=wide)
    return out
