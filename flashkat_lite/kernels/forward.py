"""The forward pass: y = P(x)/Q(x).

Bytes: each element read once and written once, so the limit is a copy of the same size. Each of a program's BLOCK
positions loads its two vectors, of VECTOR neighbouring columns of one group, by addresses that need neither group nor
coefficients.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import INTERPRETED
from .launch import BoundLaunch, cached_per_shape
from .layout import programs_per_whole_rows, table_stride, to_2d, vector_width
from .polynomial import horner, load_coefficients, magnitudes, reciprocal, to_float32


@triton.jit(do_not_specialize=["rows", "period", "period_rows", "vectors_per_row", "vectors_per_group", "x_stride"])
def forward_kernel(
    x_ptr, a_ptr, b_ptr, y_ptr,
    rows, period, period_rows, vectors_per_row, vectors_per_group,
    x_stride, a_stride, b_stride,
    M1: tl.constexpr, N: tl.constexpr, VECTOR: tl.constexpr, BLOCK: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """`period` programs cover `period_rows` rows, UNROLL times; strides of rows in vectors, of tables in elements."""
    program = tl.program_id(0)
    position = program % period * BLOCK + tl.arange(0, BLOCK)
    column = position % vectors_per_row
    row = tl.cast(program // period, tl.int64) * (period_rows * UNROLL) + position // vectors_per_row
    vec = tl.arange(0, VECTOR)[None, :]
    xs = ()
    for k in tl.static_range(UNROLL):
        mask = (row + k * period_rows < rows)[:, None]
        x_offs = ((row + k * period_rows) * x_stride + column)[:, None] * VECTOR + vec
        xs = xs + (tl.load(x_ptr + x_offs, mask=mask, other=0.0),)

    group = column // vectors_per_group
    a = load_coefficients((a_ptr + group * a_stride)[:, None], M1)
    b = magnitudes(load_coefficients((b_ptr + group * b_stride)[:, None], N))
    for k in tl.static_range(UNROLL):
        x = to_float32(xs[k])
        t = tl.abs(x)
        y = horner(x, a) * reciprocal(1.0 + t * horner(t, b))
        y_offs = ((row + k * period_rows) * vectors_per_row + column)[:, None] * VECTOR + vec
        tl.store(y_ptr + y_offs, y, mask=(row + k * period_rows < rows)[:, None])


def launch_size() -> tuple[int, int]:
    """Return (positions in a program, UNROLL), measured on an H200: two vectors share indices and coefficients."""
    return (4096, 1) if INTERPRETED else (128, 2)


@cached_per_shape
def launch_config(
    shape: tuple[int, ...], size: tuple[int, int], strides: tuple[int, ...], dtype: torch.dtype, device: torch.device,
    a_shape: tuple[int, int], a_stride: int, a_dtype: torch.dtype,
    b_shape: tuple[int, int], b_stride: int, b_dtype: torch.dtype,
) -> BoundLaunch:  # fmt: skip
    """Return the launch for x of this shape, contiguous or of strides [row, 1], and these tables."""
    columns = int(shape[-1])  # a number, also where rows are a symbol
    rows = math.prod(shape[:-1])
    x_stride = strides[0] if len(shape) == 2 else columns
    width = columns // max(a_shape[0], b_shape[0])
    vector = vector_width(dtype.itemsize, width, x_stride)
    vectors_per_row = columns // vector
    block, unroll = size
    period = programs_per_whole_rows(vectors_per_row, block)
    period_rows = period * block // vectors_per_row
    return BoundLaunch(
        forward_kernel, (triton.cdiv(rows, period_rows * unroll) * period, 1),
        (rows, period, period_rows, vectors_per_row, width // vector, x_stride // vector, a_stride, b_stride),
        M1=a_shape[1], N=b_shape[1], VECTOR=vector, BLOCK=block, UNROLL=unroll, num_warps=4,
    )  # fmt: skip


def forward(x: Tensor, numerator: Tensor, denominator: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Return F(x), contiguous, for x [..., D] in float32, bfloat16 or float16; tables [G or 1, m+1] and [G or 1, n].

    size: another launch than `launch_size` has.
    """
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    if x.numel() == 0:
        return y
    if not x.is_contiguous():
        x = to_2d(x)
    launch = launch_config(
        x.shape, size or launch_size(), x.stride(), x.dtype, x.device,
        numerator.shape, table_stride(numerator), numerator.dtype,
        denominator.shape, table_stride(denominator), denominator.dtype,
    )  # fmt: skip
    launch(x, numerator, denominator, y)
    return y
