"""The checks of chapter 10 accept its solutions and reject common mistakes, each with its reason."""

import math

import pytest
import torch
import triton
import triton.language as tl
from interpreter import interpreted, kernels

from flashkat_lite.lab import checks, solutions_limit


def grid(per_row, block, most):
    unit = per_row // math.gcd(per_row, block)
    programs = max(1, most // unit) * unit
    return programs, programs * block // per_row


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda per_row, block, most: (most, most * block // per_row), "do not end where a row ends"),
        (lambda *case: (grid(*case)[0], grid(*case)[0] // case[0]), "covers programs · block vectors"),
        (lambda per_row, block, most: (per_row // math.gcd(per_row, block), 1), "least was asked for the largest"),
        (lambda per_row, block, most: (max(1, most // per_row) * per_row, 0), "common divisor"),
        (lambda *case: grid(*case)[0], "expected a tuple"),
    ],
)
def test_wrong_grids_are_rejected(wrong, words):
    checks.whole_grid(grid)
    with pytest.raises(checks.Wrong, match=words):
        checks.whole_grid(wrong)


def test_a_grid_may_not_be_empty():
    def empty(per_row, block, most):
        unit = per_row // math.gcd(per_row, block)
        return most // unit * unit, most // unit * unit * block // per_row

    with pytest.raises(checks.Wrong, match="never fewer than the least"):
        checks.whole_grid(empty)


def stages(gb_s, ns, multiprocessors, programs, lanes, each):
    return max(2, 1 + math.ceil(gb_s * ns / (multiprocessors * programs * lanes * each)))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda *c: math.ceil(c[0] * c[1] / math.prod(c[2:])), "S - 1 are under way"),
        (lambda *c: max(2, 1 + int(c[0] * c[1] / math.prod(c[2:]))), "rounded up"),
        (lambda *c: 1 + math.ceil(c[0] * c[1] / math.prod(c[3:])), "on each multiprocessor"),
        (lambda *c: 2 + int(c[0] * c[1] / math.prod(c[2:])), "one stage too many|expected"),
        (lambda *c: None, "expected a number, got None"),
    ],
)
def test_wrong_stages_are_rejected(wrong, words):
    checks.stages_needed(stages)
    with pytest.raises(checks.Wrong, match=words):
        checks.stages_needed(wrong)


@kernels
@pytest.mark.parametrize("name", ["scale_backward", "sum_in_one_launch"])
def test_our_timed_solutions_pass(name):
    getattr(checks, name)(getattr(solutions_limit, f"{name}_solution"))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda dy, x, scale: (dy * scale, dy.sum(0)), "without x"),
        (lambda dy, x, scale: (dy, (dy * x).sum(0)), "returned as it came"),
        (lambda dy, x, scale: (x * scale, (dy * x).sum(0)), "x was scaled, not dy"),
        (lambda dy, x, scale: (dy * scale, (dy * x * scale).sum(0)), "scale does not belong"),
        (lambda dy, x, scale: (dy * scale, 2 * (dy * x).sum(0)), "added twice"),
        (lambda dy, x, scale: (dy * scale, (dy * x).sum(1)), "expected shape"),
        (lambda dy, x, scale: (dy * scale, (dy.double() * x).sum(0)), "expected dtype torch.float32"),
        (lambda dy, x, scale: dy * scale, "expected a tuple"),
    ],
)
def test_wrong_scale_gradients_are_rejected(wrong, words):
    with pytest.raises(checks.Wrong, match=words):
        checks.scale_backward(wrong)


@triton.jit
def atomic_scale_kernel(dy_ptr, x_ptr, out_ptr, count, columns, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    dy = tl.load(dy_ptr + at, mask=at < count, other=0.0)
    x = tl.load(x_ptr + at, mask=at < count, other=0.0)
    tl.atomic_add(out_ptr + at % columns, dy * x, mask=at < count)


def by_atomics(dy, x, scale):
    out = torch.zeros_like(scale)
    count = dy.numel()
    atomic_scale_kernel[(triton.cdiv(count, 1024),)](dy, x, out, count, dy.shape[1], BLOCK=1024)
    return dy * scale, out


@interpreted
def test_atomic_sums_of_a_scale_are_found_out():
    with pytest.raises(checks.Wrong, match=r"programs run in reverse order.*their order decides"):
        checks.scale_backward(by_atomics)


@interpreted
def test_a_scale_without_a_kernel_is_rejected():
    with pytest.raises(checks.Wrong, match="expected a Triton kernel, got none"):
        checks.scale_backward(lambda dy, x, scale: (dy * scale, (dy * x).sum(0)))


@triton.jit
def finishing_kernel(
    x_ptr, partial_ptr, done_ptr, out_ptr, count,
    BLOCK: tl.constexpr, PARTS: tl.constexpr, BY_NUMBER: tl.constexpr,
):  # fmt: skip
    program, programs = tl.program_id(0), tl.num_programs(0)
    at = program * BLOCK + tl.arange(0, BLOCK)
    tl.store(partial_ptr + program, tl.sum(tl.load(x_ptr + at, mask=at < count, other=0.0)))
    tl.debug_barrier()
    before = tl.atomic_add(done_ptr, 1, sem="acq_rel")
    if BY_NUMBER:
        before = program
    if before == programs - 1:
        part = tl.arange(0, PARTS)
        tl.store(out_ptr, tl.sum(tl.load(partial_ptr + part, mask=part < programs, other=0.0)))


class Finish:
    """One launch; the last program is known by its number, or by a counter that may not be zeroed."""

    def __init__(self, by_number=False, kept=False):
        self.by_number, self.kept = by_number, kept
        self.done = torch.zeros(1, dtype=torch.int32)

    def __call__(self, x):
        parts = triton.cdiv(len(x), 4096)
        partial, out = x.new_zeros(parts), x.new_zeros(())
        done = self.done if self.kept else torch.zeros_like(self.done)
        finishing_kernel[(parts,)](
            x, partial, done, out, len(x), BLOCK=4096, PARTS=triton.next_power_of_2(parts), BY_NUMBER=self.by_number
        )
        return out


@interpreted
def test_the_last_program_is_not_the_one_with_the_highest_number():
    checks.sum_in_one_launch(Finish())
    with pytest.raises(checks.Wrong, match=r"reverse order.*need not be the program with the highest number"):
        checks.sum_in_one_launch(Finish(by_number=True))


@interpreted
def test_a_counter_that_is_not_zeroed_is_found_out():
    with pytest.raises(checks.Wrong, match=r"a second call.*counter is not zero"):
        checks.sum_in_one_launch(Finish(kept=True))


@triton.jit
def parts_kernel(x_ptr, out_ptr, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + tl.program_id(0), tl.sum(tl.load(x_ptr + at, mask=at < count, other=0.0)))


def in_two_launches(x):
    partial, out = x.new_empty(triton.cdiv(len(x), 4096)), x.new_empty(())
    parts_kernel[(len(partial),)](x, partial, len(x), BLOCK=4096)
    parts_kernel[(1,)](partial, out, len(partial), BLOCK=triton.next_power_of_2(len(partial)))
    return out


def by_one_program(x):
    out = x.new_empty(())
    parts_kernel[(1,)](x, out, len(x), BLOCK=triton.next_power_of_2(len(x)))
    return out


@interpreted
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (in_two_launches, "expected one launch, got 2"),
        (by_one_program, "expected more than one program"),
        (lambda x: x.double().sum().float(), "expected a Triton kernel, got none"),
        (lambda x: x.double().sum(), "expected dtype torch.float32"),
        (lambda x: x.double().sum().float()[None], "expected shape"),
    ],
)
def test_wrong_sums_are_rejected(wrong, words):
    with pytest.raises(checks.Wrong, match=words):
        checks.sum_in_one_launch(wrong)
