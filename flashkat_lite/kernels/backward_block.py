"""Rung 2, block reduction: a program sums over its tile first, then adds each sum to the table once.

The cure that FlashKAT published (arXiv 2505.13813). A two-dimensional grid: a program owns ROWS rows of one group, so
all of its terms belong to the same m+1+n coefficients. (A group wider than MOST_COLUMNS is cut into several tiles.)

Bytes: 3 · rows · D, as before. Atomic adds: (m+1+n) · G · ⌈rows / ROWS⌉, on the same G · (m+1+n) addresses.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import INTERPRETED
from .layout import capability, group_count, sum_shared_groups, table_stride, to_2d, vector_width
from .polynomial import backward_terms, load_coefficients, magnitudes

ELEMENTS = 65536 if INTERPRETED else 4096  # in a tile
MOST_COLUMNS = 4096


@triton.jit(
    do_not_specialize=[
        "rows", "groups", "tiles_per_group", "vectors_per_group", "dy_stride", "x_stride",
    ]
)  # fmt: skip
def backward_block_kernel(
    dy_ptr, x_ptr, a_ptr, b_ptr, dx_ptr, da_ptr, db_ptr,
    rows, groups, tiles_per_group, vectors_per_group,
    dy_stride, x_stride, dx_stride, a_stride, b_stride,
    M1: tl.constexpr, N: tl.constexpr,
    VECTOR: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """dx [rows, columns]; adds to da [G, M1], db [G, N].

    Strides of rows are in vectors, those of tables in elements.
    """
    # Rows are the slow axis of the grid: programs that run side by side read the same rows.
    across = groups * tiles_per_group
    group = (tl.program_id(0) % across) // tiles_per_group
    row = (tl.program_id(0) // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    first = (tl.program_id(0) % tiles_per_group) * COLUMNS
    column = first + tl.arange(0, COLUMNS)[None, :]  # [1, COLUMNS]
    # In whole vectors: the compiler sees that one is inside or outside as a whole.
    mask = (row < rows) & (column // VECTOR < vectors_per_group)
    start = group * vectors_per_group
    x_ptrs = x_ptr + (row * x_stride + start) * VECTOR + column  # [ROWS, COLUMNS]
    dy_ptrs = dy_ptr + (row * dy_stride + start) * VECTOR + column
    x = tl.load(x_ptrs, mask=mask, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptrs, mask=mask, other=0.0).to(tl.float32)
    a = load_coefficients(a_ptr + group * a_stride, M1)
    b = load_coefficients(b_ptr + group * b_stride, N)

    dx, u, w = backward_terms(dy, x, a, magnitudes(b))
    tl.store(dx_ptr + (row * dx_stride + start) * VECTOR + column, dx, mask=mask)

    for i in tl.static_range(M1):
        total = tl.sum(u).to(da_ptr.dtype.element_ty)
        tl.atomic_add(da_ptr + group * M1 + i, total, sem="relaxed")
        u = u * x
    for j in tl.static_range(N):
        w = w * tl.abs(x)
        total = tl.sum(w).to(db_ptr.dtype.element_ty)
        total = tl.where(b[j] < 0, total, -total)
        tl.atomic_add(db_ptr + group * N + j, total, sem="relaxed")


def tile(group_width: int) -> tuple[int, int]:
    """Return (ROWS, COLUMNS) of a program: a group's width rounded up to a power of two, and rows to make ELEMENTS."""
    columns = min(triton.next_power_of_2(group_width), MOST_COLUMNS)
    return ELEMENTS // columns, columns


def warps(capability: int, vector: int) -> int:
    """Return the warps of a program on a GPU of this compute capability (90 for 9.0), measured on an H200: four.

    Blackwell's data-centre GPUs take eight: with four, the compiler keeps 32 elements of each term alive and spills.
    Narrow vectors take sixteen: their elements have addresses and masks of their own, all alive at once.
    """
    return 16 if vector < 4 else 8 if capability // 10 == 10 else 4


def backward_block(
    grad_output: Tensor, x: Tensor, numerator: Tensor, denominator: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (dx, dnumerator, ddenominator) for grad_output and x [..., D] in float32 or 16 bits; tables [G or 1, ·].

    dx is contiguous, in x's dtype. A tile is summed in float32, the totals in float64: thousands of tiles meet at each,
    in an order left to chance, and an addition costs the same. They come back in the tables' dtypes.
    """
    groups = group_count(numerator, denominator)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    da = torch.zeros(groups, numerator.shape[1], dtype=torch.float64, device=x.device)
    db = torch.zeros(groups, denominator.shape[1], dtype=torch.float64, device=x.device)
    if x.numel():
        dy, x = to_2d(grad_output), to_2d(x)
        rows, columns = x.shape
        width = columns // groups
        vector = vector_width(x.element_size(), width, dy.stride(0), x.stride(0))
        tile_rows, tile_columns = tile(width)
        tiles = triton.cdiv(width, tile_columns)
        backward_block_kernel[(triton.cdiv(rows, tile_rows) * groups * tiles,)](
            dy, x, numerator, denominator, dx, da, db,
            rows, groups, tiles, width // vector,
            dy.stride(0) // vector, x.stride(0) // vector, columns // vector,
            table_stride(numerator), table_stride(denominator),
            M1=numerator.shape[1], N=denominator.shape[1],
            VECTOR=vector, ROWS=tile_rows, COLUMNS=tile_columns,
            num_warps=warps(capability(x.device), vector), enable_fp_fusion=True,
        )  # fmt: skip
    return dx, sum_shared_groups(da, numerator), sum_shared_groups(db, denominator)
