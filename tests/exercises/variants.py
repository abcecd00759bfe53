"""Kernels with a name for each mistake: `launch("total: race", …)` launches what has that one."""

import triton
import triton.language as tl

SLOPE = -2 * 0.7978845608  # no constexpr


@triton.jit
def gelu_kernel(x_ptr, y_ptr, count, BLOCK: tl.constexpr, KIND: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    inner = x + 0.044715 * x * x * x
    y = x / (1.0 + tl.exp(-2 * 0.7978845608 * inner))
    if KIND == "gelu: a global":
        y = x / (1.0 + tl.exp(SLOPE * inner))
    if KIND == "gelu: another type":
        total = 0
        for _ in range(0, BLOCK, BLOCK):
            total += y
        y = total
    if KIND == "gelu: overflow":
        e = tl.exp(2 * 0.7978845608 * inner)
        y = x * (e / (1.0 + e))
    if KIND == "gelu: store without mask":
        tl.store(y_ptr + at, y)
    elif KIND == "gelu: short":
        tl.store(y_ptr + at, y, mask=at < count - 1)
    elif KIND == "gelu: a tensor for a scalar":
        if inside:
            tl.store(y_ptr + at, y, mask=inside)
    else:
        tl.store(y_ptr + at, y, mask=inside)


@triton.jit
def silu_kernel(x_ptr, y_ptr, columns, row_stride, column_stride, BLOCK: tl.constexpr, KIND: tl.constexpr):
    """A program a row."""
    row, column = tl.program_id(0), tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * row_stride + column * column_stride, mask=column < columns, other=0.0)
    if KIND == "silu: in bfloat16":
        x = x + x - x
    else:
        x = x.to(tl.float32)
    y = x * tl.sigmoid(x.to(tl.float32))
    if KIND == "silu: without mask":
        tl.store(y_ptr + row * columns + column, y)
    else:
        tl.store(y_ptr + row * columns + column, y, mask=column < columns)


@triton.jit
def transpose_kernel(x_ptr, out_ptr, rows, columns, row_stride, column_stride, TILE: tl.constexpr):
    """Without tl.trans: one set of pointers for each side."""
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)[:, None]
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)[None, :]
    inside = (row < rows) & (column < columns)
    x = tl.load(x_ptr + row * row_stride + column * column_stride, mask=inside, other=0.0)
    tl.store(out_ptr + column * rows + row, x, mask=inside)


@triton.jit
def columns_kernel(
    dy_ptr, out_ptr, rows, columns, row_stride, column_stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    KIND: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    here = column < columns
    if KIND == "columns: walk":
        sums = tl.zeros([COLUMNS], tl.float32)
        for first in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
            row = first + tl.arange(0, ROWS)
            inside = (row < rows)[:, None] & here[None, :]
            dy = tl.load(
                dy_ptr + row[:, None] * row_stride + column[None, :] * column_stride, mask=inside, other=0.0
            ).to(tl.float32)
            sums += tl.sum(dy, 0)
        tl.store(out_ptr + tl.program_id(0) * columns + column, sums, mask=here)
    else:
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & here[None, :]
        if KIND == "columns: without column mask":
            inside = (row < rows)[:, None] & (column >= 0)[None, :]
        dy = tl.load(dy_ptr + row[:, None] * row_stride + column[None, :] * column_stride, mask=inside, other=0.0)
        if KIND == "columns: narrow sum":
            total = tl.sum(dy, 0).to(tl.float32)
        else:
            total = tl.sum(dy.to(tl.float32), 0)
        if KIND == "columns: race":
            total += tl.load(out_ptr + column, mask=here, other=0.0)
            tl.store(out_ptr + column, total, mask=here)
        elif KIND == "columns: adds without mask":
            tl.atomic_add(out_ptr + column, total)
        else:
            tl.atomic_add(out_ptr + column, total.to(out_ptr.dtype.element_ty), mask=here)


@triton.jit
def elements_kernel(
    dy_ptr, out_ptr, rows, columns, row_stride, column_stride, copies, BLOCK: tl.constexpr, KIND: tl.constexpr
):  # fmt: skip
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row, column = at // columns, at % columns
    inside = row < rows
    if KIND == "elements: row stride alone":
        column_stride = 1
    if KIND == "elements: without mask":
        dy = tl.load(dy_ptr + row * row_stride + column * column_stride).to(tl.float32)
    else:
        dy = tl.load(dy_ptr + row * row_stride + column * column_stride, mask=inside, other=0.0).to(tl.float32)
    copy = tl.program_id(0) % copies
    if KIND == "elements: no modulo":
        copy = tl.program_id(0)
    out = out_ptr + copy * columns + column
    if KIND == "elements: race":
        tl.store(out, tl.load(out, mask=inside, other=0.0) + dy, mask=inside)
    elif KIND == "elements: adds without mask":
        tl.atomic_add(out_ptr + row * 0 + at - row * columns + tl.where(inside, 0, columns), dy)
    else:
        tl.atomic_add(out, dy, mask=inside)


@triton.jit
def bins_kernel(values_ptr, out_ptr, count, bins, BLOCK: tl.constexpr, BINS: tl.constexpr, KIND: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    bin = tl.arange(0, BINS)
    value = tl.load(values_ptr + at, mask=at < count, other=0)
    sums = tl.histogram(value, BINS)
    if KIND != "bins: zeros counted":
        sums -= tl.where(bin == 0, BLOCK - tl.sum((at < count).to(tl.int32)), 0)
    if KIND == "bins: stored":
        tl.store(out_ptr + tl.program_id(0) * bins + bin, sums, mask=bin < bins)
    elif KIND == "bins: race":
        tl.store(out_ptr + bin, tl.load(out_ptr + bin, mask=bin < bins, other=0) + sums, mask=bin < bins)
    elif KIND == "bins: atomic without mask":
        tl.atomic_add(out_ptr + bin, sums)
    else:
        tl.atomic_add(out_ptr + bin, sums, mask=bin < bins)


@triton.jit
def weights_kernel(
    values_ptr, weights_ptr, out_ptr, count, bins, BLOCK: tl.constexpr, BINS: tl.constexpr, KIND: tl.constexpr
):  # fmt: skip
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    bin = tl.arange(0, BINS)
    if KIND == "weights: without other":
        value = tl.load(values_ptr + at, mask=at < count)
        weight = tl.load(weights_ptr + at, mask=at < count)
    else:
        value = tl.load(values_ptr + at, mask=at < count, other=-1)
        weight = tl.load(weights_ptr + at, mask=at < count, other=0.0)
    sums = tl.sum(tl.where(value[:, None] == bin[None, :], weight[:, None], 0.0), 0)
    if KIND == "weights: stored":
        tl.store(out_ptr + tl.program_id(0) * bins + bin, sums, mask=bin < bins)
    elif KIND == "weights: race":
        tl.store(out_ptr + bin, tl.load(out_ptr + bin, mask=bin < bins, other=0.0) + sums, mask=bin < bins)
    elif KIND == "weights: atomic without mask":
        tl.atomic_add(out_ptr + bin, sums)
    else:
        tl.atomic_add(out_ptr + bin, sums, mask=bin < bins)


@triton.jit
def index_kernel(terms_ptr, index_ptr, out_ptr, count, BLOCK: tl.constexpr, KIND: tl.constexpr):
    if KIND == "index: owned":
        total = tl.zeros([BLOCK], tl.float32)
        for first in range(0, count, BLOCK):
            at = first + tl.arange(0, BLOCK)
            index = tl.load(index_ptr + at, mask=at < count, other=-1)
            term = tl.load(terms_ptr + at, mask=at < count, other=0.0).to(tl.float32)
            total += tl.where(index == tl.program_id(0), term, 0.0)
        tl.store(out_ptr + tl.program_id(0), tl.sum(total))
    else:
        at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        term = tl.load(terms_ptr + at, mask=at < count, other=0.0).to(tl.float32)
        if KIND == "index: without mask":
            index = tl.load(index_ptr + at)
            tl.atomic_add(out_ptr + index, term)
        else:
            tl.store(out_ptr, tl.load(out_ptr) + tl.sum(term))


@triton.jit
def groups_kernel(x_ptr, out_ptr, rows, columns, width, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """A program for each group; nothing is added atomically."""
    column = tl.arange(0, BLOCK)[None, :]
    sums = tl.zeros([ROWS, BLOCK], tl.float32)
    for first in range(0, rows, ROWS):
        row = first + tl.arange(0, ROWS)[:, None]
        inside = (row < rows) & (column < width)
        sums += tl.load(x_ptr + row * columns + tl.program_id(0) * width + column, mask=inside, other=0.0)
    tl.store(out_ptr + tl.program_id(0), tl.sum(sums))


@triton.jit
def copy_kernel(x_ptr, y_ptr, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + at, tl.load(x_ptr + at, mask=at < count, other=0.0), mask=at < count)


@triton.jit
def total_kernel(x_ptr, out_ptr, count, BLOCK: tl.constexpr, KIND: tl.constexpr):
    sums = tl.zeros([BLOCK], tl.float32)
    for first in range(tl.program_id(0) * BLOCK, count, tl.num_programs(0) * BLOCK):
        at = first + tl.arange(0, BLOCK)
        sums += tl.load(x_ptr + at, mask=at < count, other=0.0)
    if KIND == "total: race":
        tl.store(out_ptr, tl.load(out_ptr) + tl.sum(sums).to(out_ptr.dtype.element_ty))
    else:
        tl.store(out_ptr + tl.program_id(0), tl.sum(sums))


@triton.jit
def finish_kernel(
    x_ptr, partial_ptr, done_ptr, out_ptr, count, BLOCK: tl.constexpr, PARTS: tl.constexpr, KIND: tl.constexpr
):  # fmt: skip
    """Programs store 32 numbers each, and the last to finish adds them."""
    sums = tl.zeros([BLOCK], tl.float32)
    for first in range(tl.program_id(0) * BLOCK, count, tl.num_programs(0) * BLOCK):
        at = first + tl.arange(0, BLOCK)
        sums += tl.load(x_ptr + at, mask=at < count, other=0.0)
    tl.store(partial_ptr + tl.program_id(0) * 32 + tl.arange(0, 32), tl.sum(tl.reshape(sums, [BLOCK // 32, 32]), 0))
    if KIND != "finish: without barrier":
        tl.debug_barrier()
    if KIND == "finish: release":
        before = tl.atomic_add(done_ptr, 1, sem="release")
    else:
        before = tl.atomic_add(done_ptr, 1)
    if before == tl.num_programs(0) - 1:
        tl.store(out_ptr, tl.sum(tl.load(partial_ptr + tl.arange(0, 32 * PARTS))))


@triton.jit
def scale_kernel(
    dy_ptr, x_ptr, scale_ptr, dx_ptr, sums_ptr, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    KIND: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, COLUMNS)[None, :]
    scale = tl.load(scale_ptr + column, mask=column < columns, other=0.0)
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
        row = first + tl.arange(0, ROWS)[:, None]
        inside = (row < rows) & (column < columns)
        at = row * columns + column
        dy = tl.load(dy_ptr + at, mask=inside, other=0.0)
        x = tl.load(x_ptr + at, mask=inside, other=0.0)
        if KIND == "scale: without mask":
            tl.store(dx_ptr + at, dy * scale)
        else:
            tl.store(dx_ptr + at, dy * scale, mask=inside)
        sums += dy * x
    column = tl.arange(0, COLUMNS)
    total = tl.sum(sums, 0)
    if KIND == "scale: race":
        out = sums_ptr + column
        total = tl.load(out, mask=column < columns, other=0.0) + total.to(sums_ptr.dtype.element_ty)
        tl.store(out, total, mask=column < columns)
    else:
        tl.store(sums_ptr + tl.program_id(0) * columns + column, total, mask=column < columns)


@triton.jit
def unpack_kernel(pairs_ptr, out_ptr, count, BLOCK: tl.constexpr, KIND: tl.constexpr):
    """Two stores, each of every second number."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    pair = tl.load(pairs_ptr + at, mask=at < count, other=0)
    low = (pair << 16).to(tl.float32, bitcast=True)
    if KIND == "unpack: mask of 32 bits":
        high = (pair & 0xFFFF0000).to(tl.float32, bitcast=True)
    elif KIND == "unpack: by conversion":
        high = (pair >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True).to(tl.float32)
    else:
        high = ((pair >> 16) << 16).to(tl.float32, bitcast=True)
    if KIND == "unpack: without mask":
        tl.store(out_ptr + 2 * at, low)
    else:
        tl.store(out_ptr + 2 * at, low, mask=at < count)
    tl.store(out_ptr + 2 * at + 1, high, mask=at < count)


@triton.jit
def slope_kernel(dy_ptr, x_ptr, dx_ptr, count, BLOCK: tl.constexpr, KIND: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    x = tl.load(x_ptr + at, mask=inside, other=0.0)
    dy = tl.load(dy_ptr + at, mask=inside, other=0.0)
    if KIND == "slope: dy twice":
        dy = tl.load(dy_ptr + at, mask=inside, other=0.0)
    if KIND == "slope: in bfloat16":
        dy = dy + dy - dy
    x, dy = x.to(tl.float32), dy.to(tl.float32)
    s = tl.sigmoid(x)
    if KIND == "slope: by e^x":
        e = tl.exp(x)
        s = e / (1.0 + e)
    dx = dy * s * (1.0 + x * (1.0 - s))
    if KIND == "slope: without mask":
        tl.store(dx_ptr + at, dx)
    else:
        tl.store(dx_ptr + at, dx, mask=inside)


KERNELS = {
    "gelu": gelu_kernel, "silu": silu_kernel, "columns": columns_kernel, "elements": elements_kernel,
    "bins": bins_kernel, "weights": weights_kernel, "index": index_kernel, "total": total_kernel,
    "finish": finish_kernel, "scale": scale_kernel, "unpack": unpack_kernel, "slope": slope_kernel,
}  # fmt: skip


def launch(kind, programs, *arguments, **options):
    """Launch "kernel: mistake", or "kernel: right", on a grid of one number or two."""
    kernel = KERNELS[kind.partition(":")[0]]
    kernel[programs if isinstance(programs, tuple) else (programs,)](*arguments, **options, KIND=kind)
