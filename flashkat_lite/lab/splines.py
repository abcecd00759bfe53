"""B-splines as chapter 01 builds them."""

import torch
from torch import Tensor


def uniform_knots(intervals: int, degree: int, low: float = -1.0, high: float = 1.0) -> Tensor:
    """`intervals` equal steps from low to high, and `degree` more beyond either end: [intervals + 2 degree + 1]."""
    step = (high - low) / intervals
    return low + step * torch.arange(-degree, intervals + degree + 1)


def basis(x: Tensor, knots: Tensor, degree: int) -> Tensor:
    """All B-splines of a degree on increasing knots at x [...]: [..., len(knots) - 1 - degree]."""
    x = x[..., None]
    b = ((x >= knots[:-1]) & (x < knots[1:])).to(x.dtype)  # degree 0: which interval
    for k in range(1, degree + 1):
        rise = (x - knots[: -k - 1]) / (knots[k:-1] - knots[: -k - 1])
        fall = (knots[k + 1 :] - x) / (knots[k + 1 :] - knots[1:-k])
        b = rise * b[..., :-1] + fall * b[..., 1:]
    return b
