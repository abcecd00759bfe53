"""Column sums with one mistake each, for chapters 07 and 09."""

import torch
import triton
import triton.language as tl


@triton.jit
def column_sums_kernel(
    dy_ptr, out_ptr, rows, columns, row_stride, column_stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, MASK: tl.constexpr, OTHER: tl.constexpr, ATOMIC: tl.constexpr,
    REDUCE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows) & (column < columns)[None, :]
    dy_ptrs = dy_ptr + row * row_stride + column[None, :] * column_stride
    if not MASK:
        dy = tl.load(dy_ptrs).to(tl.float32)
    elif OTHER:
        dy = tl.load(dy_ptrs, mask=inside, other=0.0).to(tl.float32)
    else:
        dy = tl.load(dy_ptrs, mask=inside).to(tl.float32)
    if REDUCE:
        total = tl.sum(dy, 0)  # [COLUMNS]
        if ATOMIC:
            tl.atomic_add(out_ptr + column, total, mask=column < columns)
        else:  # whoever loads between another program's load and its store undoes what that one added
            total += tl.load(out_ptr + column, mask=column < columns, other=0.0)
            tl.store(out_ptr + column, total, mask=column < columns)
    else:
        tl.atomic_add(out_ptr + column[None, :] + 0 * row, dy, mask=(column < columns)[None, :] & (row >= 0))


def column_sums(dy, tile=128, MASK=True, OTHER=True, ATOMIC=True, REDUCE=True, out=None):
    """Right as it stands: one atomic addition a column and program, or (REDUCE=False) an element."""
    rows, columns = dy.shape
    out = torch.zeros(columns) if out is None else out
    grid = (triton.cdiv(rows, tile), triton.cdiv(columns, 32))
    column_sums_kernel[grid](
        dy, out, rows, columns, *dy.stride(),
        ROWS=tile, COLUMNS=32, MASK=MASK, OTHER=OTHER, ATOMIC=ATOMIC, REDUCE=REDUCE,
    )  # fmt: skip
    return out


def sums(dy):
    return dy.float().sum(0)


def in_bfloat16(dy):
    return dy.to(torch.bfloat16).cumsum(0)[-1].float()


def as_if_contiguous(dy):
    return torch.as_strided(dy, dy.shape, (dy.shape[1], 1)).float().sum(0)


def from_empty(dy):
    return column_sums(dy, out=torch.empty(dy.shape[1]))


def everything(dy):
    return dy.float().sum().expand(dy.shape[1])
