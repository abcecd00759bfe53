"""The checks of the Triton exercises accept our solutions and reject common mistakes, each with its reason."""

import pytest
import torch

from flashkat_lite.kernels import INTERPRETED
from flashkat_lite.lab import checks, solutions


@pytest.mark.parametrize("name", ["column_sums_copies", "column_sums_block", "column_sums_walking"])
def test_our_solutions_pass(name):
    getattr(checks, name)(getattr(solutions, f"{name}_solution"))


def sums_in_bfloat16(dy):
    return dy.to(torch.bfloat16).cumsum(0)[-1].float()


def forgets_the_strides(dy):
    return torch.as_strided(dy, dy.shape, (dy.shape[1], 1)).float().sum(0)


def returns_the_input_dtype(dy):
    return dy.float().sum(0).to(dy.dtype)


class Accumulates:
    """A buffer that is not zeroed between calls."""

    def __init__(self):
        self.totals = {}

    def __call__(self, dy):
        total = self.totals.setdefault(dy.shape, torch.zeros(dy.shape[1], device=dy.device))
        total += dy.float().sum(0)
        return total.clone()


@pytest.mark.parametrize(
    "wrong, words",
    [
        (sums_in_bfloat16, "are wrong; the first at index"),
        (forgets_the_strides, "transposed"),
        (returns_the_input_dtype, "kept and returned in float32.*got torch.bfloat16"),
        (Accumulates(), "a second call.*added twice"),
        (lambda dy: dy.float().sum(1)[: dy.shape[1]], "shape|wrong"),
        (lambda dy: None, "expected a tensor, got NoneType"),
    ],
)
def test_wrong_sums_are_rejected(wrong, words):
    with pytest.raises(checks.Wrong, match=words):
        checks.column_sums_block(wrong)


@pytest.mark.skipif(not INTERPRETED, reason="a GPU does not tell its additions")
def test_additions_and_addresses_are_counted():
    dy = torch.randn(40, 8)
    with checks.counting() as count:
        solutions.column_sums_copies_solution(dy, copies=2)
    assert count.adds == 320 and len(count.addresses) == 8
    with pytest.raises(checks.Wrong, match="at most"):
        checks.column_sums_walking(solutions.column_sums_copies_solution)
    with pytest.raises(checks.Wrong, match="no atomic add was counted"):
        checks.column_sums_block(lambda dy: dy.float().sum(0))
