"""Rung 1, the atomic backward: one position an element, and one atomic add a coefficient and element.

It is the obvious kernel, and the one that KAT was published with (Yang & Wang 2024): every element's share of each
coefficient's gradient is added to the table by itself.

Bytes: 3 · rows · D (x and dy in, dx out). Atomic adds: (m+1+n) · rows · D, on G · (m+1+n) addresses.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import INTERPRETED
from .layout import group_count, sum_shared_groups, table_stride, to_2d
from .polynomial import backward_terms, load_coefficients, magnitudes


@triton.jit(do_not_specialize=["rows", "columns", "group_width", "dy_stride", "x_stride"])
def backward_atomic_kernel(
    dy_ptr, x_ptr, a_ptr, b_ptr, dx_ptr, da_ptr, db_ptr,
    rows, columns, group_width,
    dy_stride, x_stride, a_stride, b_stride,
    M1: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dx [rows, columns]; adds to da [G, M1] and db [G, N], which start at zero."""
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row, column = element // columns, element % columns
    mask = row < rows
    group = column // group_width
    x = tl.load(x_ptr + row * x_stride + column, mask=mask, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + row * dy_stride + column, mask=mask, other=0.0).to(tl.float32)
    a = load_coefficients(a_ptr + group * a_stride, M1)
    b = load_coefficients(b_ptr + group * b_stride, N)

    dx, u, w = backward_terms(dy, x, a, magnitudes(b))
    tl.store(dx_ptr + element, dx, mask=mask)

    for i in tl.static_range(M1):
        tl.atomic_add(da_ptr + group * M1 + i, u, mask=mask)
        u = u * x
    for j in tl.static_range(N):
        w = w * tl.abs(x)
        tl.atomic_add(db_ptr + group * N + j, tl.where(b[j] < 0, w, -w), mask=mask)


def backward_atomic(
    grad_output: Tensor, x: Tensor, numerator: Tensor, denominator: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (dx, dnumerator, ddenominator) for grad_output and x [..., D] in float32 or 16 bits; tables [G or 1, ·].

    dx is contiguous, in x's dtype; sums are float32 and come back in the tables' dtypes, in an order left to chance.
    """
    groups = group_count(numerator, denominator)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    da = torch.zeros(groups, numerator.shape[1], dtype=torch.float32, device=x.device)
    db = torch.zeros(groups, denominator.shape[1], dtype=torch.float32, device=x.device)
    if x.numel():
        dy, x = to_2d(grad_output), to_2d(x)
        rows, columns = x.shape
        block = 8192 if INTERPRETED else 256
        backward_atomic_kernel[(triton.cdiv(rows * columns, block),)](
            dy, x, numerator, denominator, dx, da, db,
            rows, columns, columns // groups,
            dy.stride(0), x.stride(0), table_stride(numerator), table_stride(denominator),
            M1=numerator.shape[1], N=denominator.shape[1], BLOCK=block,
            num_warps=8, enable_fp_fusion=True,
        )  # fmt: skip
    return dx, sum_shared_groups(da, numerator), sum_shared_groups(db, denominator)
