"""The checks of chapter 12 accept its solutions and reject common mistakes, each with its reason."""

import math

import pytest
import torch
import triton
import triton.language as tl
from interpreter import interpreted, kernels

from flashkat_lite.lab import checks, solutions_numerics


def staged(terms, lanes, chunk):
    return (0.09 * (chunk + terms / lanes / chunk) + 0.18 * math.log2(lanes)) ** 0.5


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda *case: staged(*case) ** 2, "square root is missing"),
        (lambda *case: 0.8 * staged(*case), "mean absolute error, 0.8"),
        (lambda k, lanes, chunk: (0.09 * k / lanes + 0.18 * math.log2(lanes)) ** 0.5, "chunks were forgotten"),
        (lambda k, lanes, chunk: (0.09 * chunk + 0.18 * math.log2(lanes)) ** 0.5, "chain of the chunks' sums"),
        (lambda *case: None, "expected a number, got None"),
    ],
)
def test_wrong_errors_are_rejected(wrong, words):
    checks.staged_units(staged)
    with pytest.raises(checks.Wrong, match=words):
        checks.staged_units(wrong)


def two_sum(a, b):
    s = a + b
    part = s - a
    return s, (a - (s - part)) + (b - part)


def in_float64(a, b):
    s = a + b
    return s, a.double() + b.double() - s.double()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda a, b: (a + b, b - ((a + b) - a)), "right only where the first number is the larger one"),
        (lambda a, b: (a + b, a - ((a + b) - b)), "right only where the second number is the larger one"),
        (lambda a, b: (two_sum(a, b)[0], -two_sum(a, b)[1]), "the sign"),
        (lambda a, b: (a + b, (a + b) - b - a), "wrong; the first at index"),
        (in_float64, "without float64"),
        (lambda a, b: a + b, "expected a tuple"),
    ],
)
def test_wrong_losses_are_rejected(wrong, words):
    checks.what_is_lost(two_sum)
    with pytest.raises(checks.Wrong, match=words):
        checks.what_is_lost(wrong)


def kahan(dy):
    total, carry = torch.zeros_like(dy[0]), torch.zeros_like(dy[0])
    for term in dy:
        y = term - carry
        new = total + y
        total, carry = new, (new - total) - y
    return total


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda dy: dy.sum(0), "a carry is missing"),
        (kahan, "a term is larger than the sum"),
        (lambda dy: dy.double().sum(0), "expected dtype torch.float32, got torch.float64"),
        (lambda dy: 2 * dy.double().sum(0).float(), "added twice"),
        (lambda dy: dy.double().sum(1).float(), "expected shape"),
    ],
)
def test_wrong_column_sums_are_rejected(wrong, words):
    with pytest.raises(checks.Wrong, match=words):
        checks.column_sums_compensated(wrong)


@interpreted
def test_sums_without_a_kernel_are_rejected():
    with pytest.raises(checks.Wrong, match="expected a Triton kernel, got none"):
        checks.column_sums_compensated(lambda dy: dy.double().sum(0).float())
    with pytest.raises(checks.Wrong, match="expected a Triton kernel, got none"):
        checks.sum_repeatable(lambda x: x.double().sum().float())


@kernels
@pytest.mark.parametrize("name", ["column_sums_compensated", "sum_repeatable"])
def test_our_timed_solutions_pass(name):
    getattr(checks, name)(getattr(solutions_numerics, f"{name}_solution"))


@triton.jit
def add_kernel(x_ptr, out_ptr, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < count, other=0.0)
    tl.atomic_add(out_ptr, tl.sum(x))


def by_atomics(x):
    out = torch.zeros((), device=x.device)
    add_kernel[(triton.cdiv(len(x), 4096),)](x, out, len(x), BLOCK=4096)
    return out


@interpreted
def test_atomic_totals_are_found_out():
    with pytest.raises(checks.Wrong, match=r"programs run in reverse order.*their order decides"):
        checks.sum_repeatable(by_atomics)


@triton.jit
def unmasked_kernel(x_ptr, out_ptr, BLOCK: tl.constexpr):
    tl.store(out_ptr, tl.sum(tl.load(x_ptr + tl.arange(0, BLOCK))))


@interpreted
def test_a_missing_mask_is_found_out():
    def unmasked(x):
        out = torch.empty((), device=x.device)
        unmasked_kernel[(1,)](x, out, BLOCK=4096)
        return out

    with pytest.raises(checks.Wrong, match="a missing mask"):
        checks.sum_repeatable(unmasked)


def one_by_one(x):
    return torch.from_numpy(x.cpu().numpy().cumsum()[-1:]).to(x.device)[0]


class Draws:
    """A right sum whose last bits come from somewhere else at each call."""

    calls = 0

    def __call__(self, x):
        self.calls += 1
        return x.double().sum().float() * (1 + self.calls * 2.0**-23)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (one_by_one, "wrong; the first at index"),
        (Draws(), "a second call: expected .* again"),
        (lambda x: x.double().sum(), "expected dtype torch.float32"),
        (lambda x: x.double().sum().float()[None], "expected shape"),
    ],
)
def test_wrong_repeatable_sums_are_rejected(wrong, words):
    with pytest.raises(checks.Wrong, match=words):
        checks.sum_repeatable(wrong)
