"""Answers to the exercises of chapter 10: right ones, and wrong ones each with what its check must say."""

import math

import torch
import triton
import triton.language as tl


def grid(per_row, block, most):
    unit = per_row // math.gcd(per_row, block)
    programs = max(1, most // unit) * unit
    return programs, programs * block // per_row


def stages(gb_s, ns, multiprocessors, programs, positions, each):
    return max(2, 1 + math.ceil(gb_s * ns / (multiprocessors * programs * positions * each)))


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


@triton.jit
def finishing_kernel(
    x_ptr, partial_ptr, done_ptr, out_ptr, count,
    BLOCK: tl.constexpr, PARTS: tl.constexpr, BY_NUMBER: tl.constexpr, OTHER: tl.constexpr, SEM: tl.constexpr,
):  # fmt: skip
    program, programs = tl.program_id(0), tl.num_programs(0)
    at = program * BLOCK + tl.arange(0, BLOCK)
    if OTHER:
        x = tl.load(x_ptr + at, mask=at < count, other=0.0)
    else:
        x = tl.load(x_ptr + at, mask=at < count)
    tl.store(partial_ptr + program, tl.sum(x))
    tl.debug_barrier()
    before = tl.atomic_add(done_ptr, 1, sem=SEM)
    if BY_NUMBER:
        before = program
    if before == programs - 1:
        part = tl.arange(0, PARTS)
        tl.store(out_ptr, tl.sum(tl.load(partial_ptr + part, mask=part < programs, other=0.0)))


class Finish:
    """One launch; the last program is known by its number, or by a counter that may not be zeroed."""

    def __init__(self, by_number=False, kept=False, other=True, sem="acq_rel"):
        self.by_number, self.kept, self.other, self.sem = by_number, kept, other, sem
        self.done = torch.zeros(1, dtype=torch.int32)

    def __call__(self, x):
        parts = triton.cdiv(len(x), 4096)
        partial, out = x.new_zeros(parts), x.new_zeros(())
        done = self.done if self.kept else torch.zeros_like(self.done)
        finishing_kernel[(parts,)](
            x,
            partial,
            done,
            out,
            len(x),
            BLOCK=4096,
            PARTS=triton.next_power_of_2(parts),
            BY_NUMBER=self.by_number,
            OTHER=self.other,
            SEM=self.sem,
        )
        return out


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


def empty_grid(per_row, block, most):
    unit = per_row // math.gcd(per_row, block)
    return most // unit * unit, most // unit * unit * block // per_row


RIGHT = {
    "10-1": grid,
    "10-2": stages,
    "10-4": Finish(),
}

WRONG = {
    "10-1": [
        (empty_grid, "never fewer than the least"),
        (lambda per_row, block, most: (most, most * block // per_row), "do not end where a row ends"),
        (lambda *case: (grid(*case)[0], grid(*case)[0] // case[0]), "covers programs · block vectors"),
        (lambda per_row, block, most: (per_row // math.gcd(per_row, block), 1), "least was asked for the largest"),
        (lambda per_row, block, most: (max(1, most // per_row) * per_row, 0), "common divisor"),
        (lambda *case: grid(*case)[0], "expected a tuple"),
    ],
    "10-2": [
        (lambda *c: math.ceil(c[0] * c[1] / math.prod(c[2:])), "S - 1 are under way"),
        (lambda *c: max(2, 1 + int(c[0] * c[1] / math.prod(c[2:]))), "rounded up"),
        (lambda *c: 1 + math.ceil(c[0] * c[1] / math.prod(c[3:])), "on each multiprocessor"),
        (lambda *c: 2 + int(c[0] * c[1] / math.prod(c[2:])), "one stage too many where the bytes fit exactly"),
        (lambda *c: None, "expected a number, got None"),
    ],
    "10-3": [
        (by_atomics, r"programs run in reverse order.*their order decides"),
        (lambda dy, x, scale: (dy * scale, (dy * x).sum(0)), "expected a Triton kernel, got none"),
        (lambda dy, x, scale: (dy * scale, torch.empty_like(scale)), "memory from `empty` that nothing wrote"),
        (lambda dy, x, scale: (dy * scale, dy.sum(0)), "without x"),
        (lambda dy, x, scale: (dy, (dy * x).sum(0)), "returned as it came"),
        (lambda dy, x, scale: (x * scale, (dy * x).sum(0)), "x was scaled, not dy"),
        (lambda dy, x, scale: (dy * scale, (dy * x * scale).sum(0)), "scale does not belong"),
        (lambda dy, x, scale: (dy * scale, 2 * (dy * x).sum(0)), "added twice"),
        (lambda dy, x, scale: (dy * scale, (dy * x).sum(1)), "expected shape"),
        (lambda dy, x, scale: (dy * scale, (dy.double() * x).sum(0)), "expected dtype torch.float32"),
        (lambda dy, x, scale: dy * scale, "expected a tuple"),
    ],
    "10-4": [
        (Finish(by_number=True), "a race .*need not be the program with the highest number"),
        (Finish(sem="relaxed"), "a race at index 0 of partial_ptr: .*a missing fence"),
        (Finish(kept=True), r"a second call.*counter is not zero"),
        (Finish(other=False), "a missing mask, a missing `other`"),
        (in_two_launches, "expected one launch, got 2"),
        (by_one_program, "expected more than one program"),
        (lambda x: x.double().sum().float(), "expected a Triton kernel, got none"),
        (lambda x: x.double().sum(), "expected dtype torch.float32"),
        (lambda x: x.double().sum().float()[None], "expected shape"),
    ],
}

# Right for what the text shows, or for one size.
FIXED = {
    "10-1": (lambda *case: (528, 352), "rows of a pass for 48 vectors to a row.*expected 1,408, got 352"),
    "10-2": (lambda *case: 2, r"expected 5, got 2"),
    "10-3": (lambda dy, x, scale: (dy * scale, (dy * x).sum(0)[:96]), r"expected shape \[300\], got \[96\]"),
    "10-4": (lambda x: x[:4096].sum(), "the sum of 65,537 elements: .* expected .* got"),
}
