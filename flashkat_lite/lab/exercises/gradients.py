"""Gradients of a rational function's coefficients, which chapters 03 and 07 ask for."""

import torch
from torch import Tensor

from flashkat_lite.reference import gradient_terms, rational_gradients

from .common import same_tensor

NEIGHBOURS = "neighbouring columns share a group: column // width, not column % groups"


def interleaved(dy: Tensor, x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients as if column c belonged to group c % G."""
    order = torch.arange(x.shape[-1]).view(-1, len(a)).T.flatten()
    dx, da, db = rational_gradients(dy[..., order], x[..., order], a, b)
    return dx[..., order.argsort()], da, db


def _by_signed_powers(dy: Tensor, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return ddenominator with x^j where |x|^j belongs, at the end alone."""
    z, g = (t.reshape(-1, len(a), x.shape[-1] // len(a)) for t in (x, dy))
    p = sum(c * z**i for i, c in enumerate(a.T[..., None]))
    q = 1 + sum(c.abs() * z.abs() ** j for j, c in enumerate(b.T[..., None], 1))
    sums = [(-g * p / q**2 * z**j).sum((0, 2)) for j in range(1, b.shape[1] + 1)]
    return torch.stack(sums, 1) * torch.where(b < 0, -1.0, 1.0)


def same_coefficient_gradients(answer: tuple, dy: Tensor, x: Tensor, a: Tensor, b: Tensor, size: str = "") -> None:
    """Raise Wrong unless `answer` is (dnumerator, ddenominator) of float64 dy and x; size: words for the message."""
    _, da, db = rational_gradients(dy, x, a, b)
    _, da_interleaved, db_interleaved = interleaved(dy, x, a, b)
    terms = torch.stack([t.abs().sum((0, 2)) for t in gradient_terms(dy, x, a, b)], 1)
    bound_a, bound_b = (1e-11 * (1 + terms)).split([da.shape[1], db.shape[1]], 1)
    of_one = x.numel() // len(a)
    same_tensor(f"dnumerator{size}", answer[0], da, bound_a, {
        NEIGHBOURS: da_interleaved,
        "the sign of the result": -da,
        "the mean over rows and columns, not the sum": da / of_one,
    }, arrays=True)  # fmt: skip
    signless = db * torch.where(b < 0, -1.0, 1.0)
    same_tensor(f"ddenominator{size}", answer[1], db, bound_b, {
        "sign(0): at b_j = 0 the convention is +1, where torch.sign and torch.abs have 0": db * (b != 0),
        "sign(0) is +1, so b < 0 turns the sign, and b = 0 does not": db * torch.where(b == 0, -1.0, 1.0),
        "the sign of b_j is lost: Q holds |b_j|": signless,
        "the minus sign of -P/Q² is lost": -db,
        "both the minus sign and the sign of b_j are lost": -signless,
        "Q holds |x|^j, not x^j": _by_signed_powers(dy, x, a, b),
        NEIGHBOURS: db_interleaved,
    }, arrays=True)  # fmt: skip
