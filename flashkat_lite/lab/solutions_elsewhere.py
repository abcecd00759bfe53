"""Chapter 14's timed solutions: the yardstick of its speed exercises, as the chapter shows them."""

import torch
import triton
import triton.language as tl

from flashkat_lite import hardware, lab

# Exercise 14.2


@triton.jit(do_not_specialize=["rows"])
def strided_sums_kernel(
    x_ptr, partial_ptr, rows, columns, row_stride, column_stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    column = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    mine = column < columns
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
        row = tl.cast(first, tl.int64) + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & mine[None, :]
        sums += tl.load(x_ptr + row[:, None] * row_stride + column[None, :] * column_stride, mask=inside, other=0.0)
    tl.store(partial_ptr + tl.program_id(0) * columns + column, tl.sum(sums, 0), mask=mine)


def column_sums_strided_solution(x):
    rows, columns = x.shape
    tall, wide = (32, 128) if x.stride(1) <= x.stride(0) else (512, 8)  # neighbours in memory, to neighbouring lanes
    across = triton.cdiv(columns, wide)
    down = min(triton.cdiv(rows, tall), max(1, lab.pick(gpu=1056, cpu=2) // across))
    partial = torch.empty(down, columns, device=x.device)
    strided_sums_kernel[(down, across)](x, partial, rows, columns, *x.stride(), ROWS=tall, COLUMNS=wide)
    return partial.sum(0)


# Exercise 14.3


@triton.jit(do_not_specialize=["count"])
def scatter_kernel(index_ptr, weights_ptr, out_ptr, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    index = tl.load(index_ptr + at, mask=at < count, other=0)
    weight = tl.load(weights_ptr + at, mask=at < count, other=0.0)
    tl.atomic_add(out_ptr + index, weight, mask=at < count, sem="relaxed")


@triton.jit(do_not_specialize=["size"])
def owned_kernel(order_ptr, start_ptr, weights_ptr, partial_ptr, size, BLOCK: tl.constexpr):
    bin = tl.program_id(0)
    end = tl.load(start_ptr + bin + 1)
    sums = tl.zeros([BLOCK], tl.float32)
    for first in range(tl.load(start_ptr + bin) + tl.program_id(1) * BLOCK, end, tl.num_programs(1) * BLOCK):
        at = first + tl.arange(0, BLOCK)
        place = tl.load(order_ptr + at, mask=at < end, other=0)
        sums += tl.load(weights_ptr + place, mask=at < end, other=0.0)
    tl.store(partial_ptr + tl.program_id(1) * size + bin, tl.sum(sums))


def weighted_bincount_solution(index, weights, size):
    count, block = len(index), 1024
    if count <= 32 * size:  # few meet at an address
        out = torch.zeros(size, device=weights.device)
        scatter_kernel[(triton.cdiv(count, block),)](index, weights, out, count, BLOCK=block)
        return out
    bins, order = torch.sort(index)
    start = torch.searchsorted(bins, torch.arange(size + 1, device=index.device))
    parts = lab.pick(gpu=max(1, 2112 // size), cpu=1)
    partial = torch.empty(parts, size, device=weights.device)
    owned_kernel[(size, parts)](order, start, weights, partial, size, BLOCK=block)
    return partial.sum(0)


# Exercise 14.4


@triton.jit(do_not_specialize=["rows"])
def layernorm_backward_kernel(dy_ptr, x_ptr, weight_ptr, dx_ptr, sums_ptr, rows, columns, eps, COLUMNS: tl.constexpr):
    column = tl.arange(0, COLUMNS)
    mine = column < columns
    weight = tl.load(weight_ptr + column, mask=mine, other=0.0)
    dweight = tl.zeros([COLUMNS], tl.float32)
    dbias = tl.zeros([COLUMNS], tl.float32)
    for row in tl.range(tl.program_id(0), rows, tl.num_programs(0), num_stages=3):
        at = tl.cast(row, tl.int64) * columns + column
        x = tl.load(x_ptr + at, mask=mine, other=0.0)
        dy = tl.load(dy_ptr + at, mask=mine, other=0.0)
        centred = tl.where(mine, x - tl.sum(x) / columns, 0.0)
        scale = tl.rsqrt(tl.sum(centred * centred) / columns + eps)
        unit = centred * scale
        v = dy * weight
        dx = scale * (v - tl.sum(v) / columns - unit * (tl.sum(v * unit) / columns))
        tl.store(dx_ptr + at, dx, mask=mine)
        dweight += dy * unit
        dbias += dy
    out = sums_ptr + tl.program_id(0) * 2 * columns + column
    tl.store(out, dweight, mask=mine)
    tl.store(out + columns, dbias, mask=mine)


def layernorm_backward_solution(dy, x, weight, eps):
    rows, columns = x.shape
    programs = min(rows, 8 * hardware.device().multiprocessors if lab.GPU else 2)
    dx = torch.empty_like(x)
    sums = torch.empty(programs, 2, columns, device=x.device)
    layernorm_backward_kernel[(programs,)](
        dy, x, weight, dx, sums, rows, columns, eps, COLUMNS=triton.next_power_of_2(columns), num_warps=4
    )
    dweight, dbias = sums.sum(0)
    return dx, dweight, dbias
