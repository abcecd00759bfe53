"""What most calls are, with nothing left to find out: contiguous tensors, a table of its own for each group."""

import torch
from torch import Tensor

from . import backward_stationary, forward
from .launch import BoundLaunch
from .layout import table_stride


class Launches:
    """`forward` and `backward_stationary` for tensors of one shape, dtype and device, which they do not look at."""

    def __init__(self, first: BoundLaunch, main: BoundLaunch, partial_sums: int, last: BoundLaunch):
        self.first, self.main, self.partial_sums, self.last = first, main, partial_sums, last

    def forward(self, x: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
        y = torch.empty_like(x)
        self.first(x, numerator, denominator, y)
        return y

    def backward(self, dy: Tensor, x: Tensor, numerator: Tensor, denominator: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dx, da, db = torch.empty_like(x), torch.empty_like(numerator), torch.empty_like(denominator)
        partial = torch.empty(self.partial_sums, dtype=torch.float32, device=x.device)
        self.main(dy, x, numerator, denominator, dx, partial)
        self.last(partial, denominator, da, db)
        return dx, da, db


def launches(
    shape: torch.Size, strides: tuple[int, ...], dtype: torch.dtype, device: torch.device,
    a_shape: torch.Size, a_strides: tuple[int, ...], a_dtype: torch.dtype,
    b_shape: torch.Size, b_strides: tuple[int, ...], b_dtype: torch.dtype,
) -> Launches | None:  # fmt: skip
    """Return the launches for x and tables of these facts; None where the general launchers are needed."""
    x, numerator, denominator = (
        torch.empty_strided(size, steps, dtype=of, device="meta")
        for size, steps, of in ((shape, strides, dtype), (a_shape, a_strides, a_dtype), (b_shape, b_strides, b_dtype))
    )
    contiguous = all(t.is_contiguous() for t in (x, numerator, denominator))
    if not (contiguous and dtype != torch.float64 and x.numel() and a_shape[0] == b_shape[0]):
        return None
    a, b = ((t.shape, table_stride(t), t.dtype) for t in (numerator, denominator))
    first = forward.launch_config(shape, forward.launch_size(), strides, dtype, device, *a, *b)
    size = backward_stationary.launch_size(dtype.itemsize, device)
    return Launches(first, *backward_stationary.launch_config(
        shape, size, device, strides, dtype, strides, dtype, *a, *b,
    ))  # fmt: skip
