"""The checks of chapter 06 accept its solutions and reject common mistakes, each with its reason."""

import pytest
import torch
import triton
import triton.language as tl
from interpreter import interpreted, kernels

from flashkat_lite.lab import checks, solutions_atomics


def limit(flops, nbytes, additions, gflop_s, gb_s, adds_per_ns):
    times = {
        "arithmetic": flops / gflop_s / 1e6,
        "bytes": nbytes / gb_s / 1e6,
        "additions": additions / adds_per_ns / 1e6,
    }
    name = max(times, key=times.get)
    return times[name], name


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda *case: limit(*case)[0], "expected a tuple"),
        (lambda *case: (limit(*case)[0] / 1e3, limit(*case)[1]), "seconds, not milliseconds"),
        (lambda f, b, a, *rates: limit(f, b, 0, *rates), "additions were left out"),
        (lambda f, b, a, x, y, z: (f / x / 1e6 + b / y / 1e6 + a / z / 1e6, "bytes"), "not their sum"),
        (lambda *case: (limit(*case)[0], "bytes"), "expected 'additions', got 'bytes'"),
    ],
)
def test_wrong_limits_are_rejected(wrong, words):
    checks.least_time(limit)
    with pytest.raises(checks.Wrong, match=words):
        checks.least_time(wrong)


def in_turn(terms, index, size):
    totals = torch.zeros(size, dtype=terms.dtype)
    for at, term in zip(index.tolist(), terms.cpu(), strict=True):
        totals[at] += term
    return totals.to(terms.device)


def exact_sums(terms, index, size):
    return torch.zeros(size, dtype=torch.float64, device=terms.device).index_add_(0, index, terms.double())


class Accumulates:
    """A buffer of totals that is made once for each size and never zeroed again."""

    def __init__(self, function):
        self.function, self.totals = function, {}

    def __call__(self, data, *rest):
        key = data.data_ptr()
        self.totals[key] = self.totals.get(key, 0) + self.function(data, *rest)
        return self.totals[key].clone()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (in_turn, "rounded to bfloat16 at every addition"),
        (lambda *case: exact_sums(*case).float(), "expected dtype torch.bfloat16, got torch.float32"),
        (Accumulates(lambda *case: exact_sums(*case).to(torch.bfloat16)), "a second call.*not zeroed"),
        (lambda terms, index, size: exact_sums(terms, index, size + 1).to(torch.bfloat16), "expected shape"),
    ],
)
def test_wrong_index_sums_are_rejected(wrong, words):
    with pytest.raises(checks.Wrong, match=words):
        checks.index_sums(wrong)


@interpreted
def test_index_sums_without_a_kernel_are_rejected():
    with pytest.raises(checks.Wrong, match="atomic additions in a Triton kernel, got none"):
        checks.index_sums(lambda *case: exact_sums(*case).to(torch.bfloat16))


def counts(values, bins):
    return torch.bincount(values.long(), minlength=bins).int()


def counts_masked_lanes(values, bins):
    result = counts(values, bins)
    result[0] += -len(values) % 1024
    return result


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (counts_masked_lanes, "masked lanes were counted as zeros"),
        (lambda *case: 2 * counts(*case), "counted twice"),
        (lambda *case: counts(*case).float(), "expected dtype torch.int32"),
        (Accumulates(counts), "a second call.*not zeroed"),
    ],
)
def test_wrong_histograms_are_rejected(wrong, words):
    with pytest.raises(checks.Wrong, match=words):
        checks.histogram(wrong)


def sums(x, groups):
    return x.view(len(x), groups, -1).sum((0, 2))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda x, groups: x.view(len(x), -1, groups).sum((0, 1)), "column // width, not column % groups"),
        (lambda x, groups: x.view(len(x), groups, -1, 32)[..., 0].sum((0, 2)), "only its own element"),
        (lambda *case: sums(*case).double(), "expected dtype torch.float32"),
        (Accumulates(sums), "a second call.*not zeroed"),
    ],
)
def test_wrong_group_sums_are_rejected(wrong, words):
    with pytest.raises(checks.Wrong, match=words):
        checks.group_sums(wrong)


@kernels
@pytest.mark.parametrize("name", ["histogram", "group_sums"])
def test_our_timed_solutions_pass(name):
    getattr(checks, name)(getattr(solutions_atomics, f"{name}_solution"))


@triton.jit
def add_kernel(x_ptr, out_ptr, count, columns, width, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < count, other=0.0)
    tl.atomic_add(out_ptr + at % columns // width, x, mask=at < count)


def one_addition_an_element(x, groups):
    out, columns = torch.zeros(groups, device=x.device), x.shape[1]
    add_kernel[(triton.cdiv(x.numel(), 4096),)](x, out, x.numel(), columns, columns // groups, BLOCK=4096)
    return out


@interpreted
def test_too_many_additions_are_rejected():
    with pytest.raises(checks.Wrong, match="expected at most 1,920 atomic additions, got 61,440"):
        checks.group_sums(one_addition_an_element)
    with pytest.raises(checks.Wrong, match="got none"):
        checks.histogram(counts)
