"""How tensors lie in memory and how programs cover them: what every launcher asks before it launches."""

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor


def to_2d(x: Tensor) -> Tensor:
    """Return x [..., D] as [rows, D] with columns side by side in memory: a view where strides allow, else a copy."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()


def vector_width(element_size: int, group_width: int, *row_strides: int) -> int:
    """Return how many columns are loaded at once: 16 bytes, or what divides a group and each row stride."""
    return math.gcd(16 // element_size, group_width, *row_strides)


def programs_per_whole_rows(vectors_per_row: int, block: int) -> int:
    """Return the fewest programs of `block` positions, a vector each, that cover a whole number of rows.

    >>> programs_per_whole_rows(192, 128)  # three programs cover two rows
    3
    """
    return vectors_per_row // math.gcd(vectors_per_row, block)


class RowLayout(NamedTuple):
    """How the columns of one row lie on `lanes` positions, a power of two, each of which owns `chunks` vectors.

    All vectors of a position are of one segment (a group of columns, or the row), so one set of coefficients and of
    sums serves them. Position p owns the vectors k · segment_lanes + p % segment_lanes, k = 0 … chunks - 1, of segment
    p / segment_lanes: for each k, neighbours read neighbouring vectors.
    """

    vector: int  # columns in a vector
    chunks: int
    segments: int
    segment_vectors: int
    segment_lanes: int

    @property
    def lanes(self) -> int:
        return next_power_of_two(self.segments) * self.segment_lanes

    @property
    def masked(self) -> bool:
        """Whether some positions have no column."""
        return self.lanes * self.chunks != self.segments * self.segment_vectors


def row_layout(columns: int, segments: int, vector: int, chunks: int = 0) -> RowLayout:
    """Return the layout of `columns` in `segments` equal parts; chunks: another number than the rule's.

    The rule wastes the fewest positions, so that 192, 384 and 768 = 3 · 2^k columns in 8 groups waste none; then it
    takes about 16 columns a position, up to 8 vectors.

    >>> row_layout(768, 8, 4)
    RowLayout(vector=4, chunks=3, segments=8, segment_vectors=24, segment_lanes=8)
    """
    vectors = columns // segments // vector

    def layout(chunks: int) -> RowLayout:
        return RowLayout(vector, chunks, segments, vectors, next_power_of_two(-(-vectors // chunks)))

    def cost(candidate: RowLayout) -> tuple[int, float]:
        return candidate.lanes * candidate.chunks, abs(math.log2(candidate.chunks * vector / 16))

    return layout(chunks) if chunks else min(map(layout, range(1, 9)), key=cost)


def next_power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def group_count(numerator: Tensor, denominator: Tensor) -> int:
    return max(numerator.shape[0], denominator.shape[0])


def table_stride(table: Tensor) -> int:
    """Return the elements from one group's coefficients to the next: 0 where all groups share one row."""
    return table.stride(0) if table.shape[0] > 1 else 0


def empty_group_sums(table: Tensor, groups: int) -> Tensor:
    """Return memory for the sums [G, k] of each group: the gradient of `table` itself, where no groups share a row."""
    if table.shape[0] == groups:
        return torch.empty_like(table, memory_format=torch.contiguous_format)
    return torch.empty(groups, table.shape[1], dtype=torch.float32, device=table.device)


def sum_shared_groups(sums: Tensor, table: Tensor) -> Tensor:
    """Return sums [G, k] as the gradient of `table`: in its dtype, added over groups where they share its one row."""
    if sums.shape[0] != table.shape[0]:
        sums = sums.sum(0, keepdim=True)
    return sums if sums.dtype == table.dtype else sums.to(table.dtype)


@functools.cache
def capability(device: torch.device) -> int:
    """Return 90 for compute capability 9.0; 0 without a GPU of NVIDIA's."""
    nvidia = device.type == "cuda" and torch.version.hip is None
    return int("{}{}".format(*torch.cuda.get_device_capability(device))) if nvidia else 0


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Return the number of the GPU's multiprocessors; 1 without a GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
