"""The Triton kernels, one rung a file; importing this package imports Triton."""

import functools
import math

import torch
from torch import Tensor
from triton import knobs

INTERPRETED = knobs.runtime.interpret  # fixed when Triton is imported: TRITON_INTERPRET=1


def as_rows(x: Tensor) -> Tensor:
    """[..., D] as [rows, D] with neighbouring columns side by side: a view where strides allow, else a copy."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()


def vector_width(group_width: int, *tensors: Tensor) -> int:
    """Neighbouring columns that a lane loads at once: 16 bytes, or what divides a group and each row stride."""
    width = 16 // max(t.element_size() for t in tensors)
    return math.gcd(width, group_width, *(t.stride(0) for t in tensors))


def whole_rows(vectors_per_row: int, block: int) -> int:
    """The fewest programs of `block` lanes, a vector each, that cover a whole number of rows."""
    return vectors_per_row // math.gcd(vectors_per_row, block)


def group_count(numerator: Tensor, denominator: Tensor) -> int:
    return max(len(numerator), len(denominator))


def table_stride(table: Tensor) -> int:
    """Elements from one group's coefficients to the next: none where all groups share one row."""
    return table.stride(0) if len(table) > 1 else 0


def as_gradient(sums: Tensor, table: Tensor) -> Tensor:
    """Sums [G, k] as the gradient of `table`: in its dtype, added over groups where it is shared."""
    return (sums if len(sums) == len(table) else sums.sum(0, keepdim=True)).to(table.dtype)


@functools.cache
def capability(device: torch.device) -> int:
    """90 for compute capability 9.0; 0 without a GPU."""
    return int("{}{}".format(*torch.cuda.get_device_capability(device))) if device.type == "cuda" else 0


@functools.cache
def multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
