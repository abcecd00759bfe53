"""The checks of chapter 08 accept its solutions and reject common mistakes, each with its reason."""

import pytest
import torch
import triton
import triton.language as tl
from interpreter import interpreted, kernels

from flashkat_lite.lab import checks, solutions_diagnosis


def share(before, after, factor):
    return (after / before - 1) / (factor - 1)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda before, after, factor: after / before - 1, "not divided by factor - 1"),
        (lambda before, after, factor: (after / before - 1) / (factor or float("nan")), "factor - 1 times the share"),
        (lambda before, after, factor: (1 - after / before) / (factor - 1), "the sign"),
        (lambda before, after, factor: 1 - after / before, "the time saved"),
        (lambda *_: None, "expected a number, got None"),
    ],
)
def test_wrong_shares_are_rejected(wrong, words):
    checks.share_of_time(share)
    with pytest.raises(checks.Wrong, match=words):
        checks.share_of_time(wrong)


def stay(inside, multiprocessors, warps, ms, instructions, ghz):
    microseconds = 1e3 * inside * multiprocessors * ms / warps
    return microseconds, 1e3 * microseconds * ghz / instructions


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda *case: stay(*case)[0], "expected a tuple"),
        (lambda *case: (stay(*case)[0] / 1e3, stay(*case)[1]), "milliseconds, not microseconds"),
        (lambda inside, sms, *rest: stay(inside, 1, *rest), "those of all multiprocessors"),
        (lambda *case: (stay(*case)[0], case[4] * stay(*case)[1]), "all instructions of the warp share"),
        (lambda *case: (stay(*case)[0], stay(*case)[1] / 1e3), "a thousand cycles in a microsecond"),
    ],
)
def test_wrong_stays_are_rejected(wrong, words):
    checks.warp_stay(stay)
    with pytest.raises(checks.Wrong, match=words):
        checks.warp_stay(wrong)


class Accumulates:
    """A buffer of totals that is made once for each input and never zeroed again."""

    def __init__(self, function):
        self.function, self.totals = function, {}

    def __call__(self, data, *rest):
        key = data.data_ptr(), len(data)
        self.totals[key] = self.totals.get(key, 0) + self.function(data, *rest)
        return self.totals[key].clone()


def row_sums(row, rows):
    return (rows * row.double()).float()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda row, rows: row.clone(), "added once"),
        (lambda row, rows: 2 * row_sums(row, rows), "added twice"),
        (lambda row, rows: row_sums(row, rows).double(), "expected dtype torch.float32"),
        (lambda row, rows: torch.as_strided(row, row.shape, (1,)) * float(rows), "every second element|NaN"),
        (Accumulates(row_sums), "a second call.*not zeroed"),
    ],
)
def test_wrong_row_sums_are_rejected(wrong, words):
    with pytest.raises(checks.Wrong, match=words):
        checks.same_row_sums(wrong)


@triton.jit
def add_kernel(x_ptr, out_ptr, count, columns, TIMES: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < count, other=0.0)
    tl.atomic_add(out_ptr + at % columns, x * TIMES, mask=at < count)


def launched(x, columns, times=1):
    out = torch.zeros(columns, device=x.device)
    add_kernel[(triton.cdiv(x.numel(), 4096),)](x, out, x.numel(), columns, TIMES=times, BLOCK=4096)
    return out


@interpreted
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (row_sums, "no kernel added anything"),
        (lambda row, rows: launched(row.contiguous(), len(row), times=rows), "removed the additions too"),
        (lambda row, rows: launched(row.repeat(rows), len(row)), "the bytes are back"),
    ],
)
def test_experiments_that_change_too_much_are_rejected(wrong, words):
    with pytest.raises(checks.Wrong, match=words):
        checks.same_row_sums(wrong)


def weighted(values, weights, bins):
    return torch.zeros(bins, device=values.device).index_add_(0, values.long(), weights)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda values, weights, bins: torch.bincount(values, minlength=bins).float(), "weights were not added"),
        (lambda *case: 2 * weighted(*case), "added twice"),
        (lambda *case: weighted(*case).double(), "expected dtype torch.float32"),
        (lambda values, weights, bins: weighted(values, weights, bins + 1), "expected shape"),
        (Accumulates(weighted), "a second call.*not zeroed"),
    ],
)
def test_wrong_weighted_histograms_are_rejected(wrong, words):
    with pytest.raises(checks.Wrong, match=words):
        checks.weighted_histogram(wrong)


@triton.jit
def one_by_one_kernel(values_ptr, weights_ptr, out_ptr, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(values_ptr + at, mask=at < count, other=0)
    weight = tl.load(weights_ptr + at, mask=at < count, other=0.0)
    tl.atomic_add(out_ptr + value, weight, mask=at < count)


def one_by_one(values, weights, bins):
    out = torch.zeros(bins, device=values.device)
    one_by_one_kernel[(triton.cdiv(len(values), 4096),)](values, weights, out, len(values), BLOCK=4096)
    return out


@interpreted
def test_too_many_additions_are_rejected():
    with pytest.raises(checks.Wrong, match="expected at most 3,750 atomic additions, got 60,000"):
        checks.weighted_histogram(one_by_one)
    with pytest.raises(checks.Wrong, match="got none"):
        checks.weighted_histogram(weighted)


@kernels
@pytest.mark.parametrize("name", ["same_row_sums", "weighted_histogram"])
def test_our_timed_solutions_pass(name):
    getattr(checks, name)(getattr(solutions_diagnosis, f"{name}_solution"))
