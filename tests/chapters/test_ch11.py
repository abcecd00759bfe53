"""The checks of chapter 11 accept its solutions and reject common mistakes, each with its reason."""

import pytest
import torch
import triton
import triton.language as tl
from interpreter import interpreted, kernels

from flashkat_lite.lab import checks, solutions_sixteen


def bounds(elements, instructions, nbytes, bandwidth, rate):
    return elements * nbytes / bandwidth / 1e6, elements * instructions / rate * 1e3, rate * nbytes / bandwidth / 1e9


def two_bounds(*case):
    memory, issue, meet = bounds(*case)
    return max(memory, issue), meet


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda *case: (sum(bounds(*case)[:2]), bounds(*case)[2]), "not their sum"),
        (lambda *case: (bounds(*case)[0], bounds(*case)[2]), "memory alone"),
        (lambda *case: (bounds(*case)[1], bounds(*case)[2]), "not the shorter"),
        (lambda *case: (two_bounds(*case)[0] / 1e3, bounds(*case)[2]), "not seconds"),
        (lambda *case: (two_bounds(*case)[0], two_bounds(*case)[1] / case[2]), "the number for one byte"),
        (lambda *case: (two_bounds(*case)[0], 1 / two_bounds(*case)[1]), "the inverse"),
        (lambda *case: two_bounds(*case)[0], "expected a tuple"),
    ],
)
def test_wrong_bounds_are_rejected(wrong, words):
    checks.two_bounds(two_bounds)
    with pytest.raises(checks.Wrong, match=words):
        checks.two_bounds(wrong)


def conflict_free(k):
    fours = next(n for n in range(k) if k >= 4 * n and (k - 4 * n) % 3 == 0)
    banks = [0, 1, 2] * ((k - 4 * fours) // 3) + [0, 1, 2, 3] * fours
    return [4 * j + bank for j, bank in enumerate(banks)]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda k: list(range(k)), "k=6, accumulators 4, 5, 0.*neighbours of the first"),
        (lambda k: [4 * j for j in range(k)], r"expected three banks, got \[0, 0, 0\]"),
        (lambda k: [r % 4 for r in conflict_free(k)], "these are banks"),
        (lambda k: [40 * r for r in conflict_free(k)], "from 0 to 254"),
        (lambda k: conflict_free(k)[:-1], "expected 4 registers, got 3"),
        (lambda k: None, "expected a list"),
    ],
)
def test_wrong_registers_are_rejected(wrong, words):
    checks.conflict_free(conflict_free)
    with pytest.raises(checks.Wrong, match=words):
        checks.conflict_free(wrong)


def from_bits(change):
    """A float32 tensor of pairs made from the words of x by `change`, in PyTorch."""
    return lambda x: torch.stack(change(x.view(torch.int32)), 1).flatten().view(torch.float32)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (from_bits(lambda bits: (bits & -65536, bits << 16)), "halves are swapped"),
        (from_bits(lambda bits: (bits << 16, bits)), "needs a mask"),
        (from_bits(lambda bits: (bits << 16, 0 * bits)), "the second went missing"),
        (lambda x: torch.cat([x[::2], x[1::2]]).float(), "before all second ones"),
        (lambda x: x.float() + 0.0, "arithmetic instead of bits"),
        (lambda x: x, "expected dtype torch.float32"),
    ],
)
def test_wrong_pairs_are_rejected(wrong, words):
    with pytest.raises(checks.Wrong, match=words):
        checks.unpack_pairs(wrong)


@triton.jit
def widen_kernel(x_ptr, out_ptr, count, BLOCK: tl.constexpr, BITS: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < count, other=0)
    if BITS:
        x = (x.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        x = x.to(tl.float32)
    tl.store(out_ptr + at, x, mask=at < count)


@interpreted
@pytest.mark.parametrize(("bits", "words"), [(True, "16 bits at a time"), (False, "a conversion instead of bits")])
def test_loads_of_16_bits_and_conversions_are_found_out(bits, words):
    def one_by_one(x):
        out, x = torch.empty(x.shape), x.view(torch.int16) if bits else x
        widen_kernel[(triton.cdiv(len(x), 4096),)](x, out, len(x), BLOCK=4096, BITS=bits)
        return out

    with pytest.raises(checks.Wrong, match=words):
        checks.unpack_pairs(one_by_one)


def slope(x):
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda dy, x: (torch.sigmoid(x.double()) * dy.double()).to(x.dtype), "the product rule"),
        (lambda dy, x: (x.double() * torch.sigmoid(x.double()) * dy.double()).to(x.dtype), "SiLU itself times dy"),
        (lambda dy, x: slope(x.double()).to(x.dtype), "dy is missing"),
        (lambda dy, x: (slope(dy.double()) * x.double()).to(x.dtype), "exchanged"),
        (lambda dy, x: slope(x) * dy, "bfloat16 was used inside"),
        (lambda dy, x: slope(x.float()) * dy.float(), "expected torch.bfloat16, as x; got torch.float32"),
    ],
)
def test_wrong_slopes_are_rejected(wrong, words):
    with pytest.raises(checks.Wrong, match=words):
        checks.silu_backward(wrong)


@interpreted
def test_answers_without_a_kernel_are_rejected():
    with pytest.raises(checks.Wrong, match="expected a Triton kernel"):
        checks.unpack_pairs(lambda x: x.float())
    with pytest.raises(checks.Wrong, match="expected a Triton kernel"):
        checks.silu_backward(lambda dy, x: (slope(x.double()) * dy.double()).to(x.dtype))


@kernels
@pytest.mark.parametrize("name", ["unpack_pairs", "silu_backward"])
def test_our_timed_solutions_pass(name):
    getattr(checks, name)(getattr(solutions_sixteen, f"{name}_solution"))
