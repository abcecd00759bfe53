"""Answers to the exercises of chapter 12: right ones, and wrong ones each with what its check must say."""

import math

import torch
import triton
import triton.language as tl
from mistakes import load


def staged(terms, accumulators, chunk):
    return (0.09 * (chunk + terms / accumulators / chunk) + 0.18 * math.log2(accumulators)) ** 0.5


def two_sum(a, b):
    s = a + b
    part = s - a
    return s, (a - (s - part)) + (b - part)


def in_float64(a, b):
    s = a + b
    return s, a.double() + b.double() - s.double()


def kahan(dy):
    total, carry = torch.zeros_like(dy[0]), torch.zeros_like(dy[0])
    for term in dy:
        y = term - carry
        new = total + y
        total, carry = new, (new - total) - y
    return total


@triton.jit
def add_kernel(x_ptr, out_ptr, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < count, other=0.0)
    tl.atomic_add(out_ptr, tl.sum(x))


def by_atomics(x):
    out = torch.zeros((), device=x.device)
    add_kernel[(triton.cdiv(len(x), 4096),)](x, out, len(x), BLOCK=4096)
    return out


@triton.jit
def one_go_kernel(x_ptr, out_ptr, count, BLOCK: tl.constexpr, MASK: tl.constexpr, OTHER: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out_ptr, tl.sum(load(x_ptr + at, at < count, MASK, OTHER)))


def in_one_go(x, MASK=True, OTHER=True):
    out = torch.empty(())
    one_go_kernel[(1,)](x, out, len(x), BLOCK=4096, MASK=MASK, OTHER=OTHER)
    return out


@triton.jit
def parts_kernel(x_ptr, out_ptr, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + tl.program_id(0), tl.sum(tl.load(x_ptr + at, mask=at < count, other=0.0)))


def parts(x):
    out = torch.empty(triton.cdiv(len(x), 4096), device=x.device)
    parts_kernel[(len(out),)](x, out, len(x), BLOCK=4096)
    return out


def one_by_one(x):
    return torch.from_numpy(x.cpu().numpy().cumsum()[-1:]).to(x.device)[0]


class Draws:
    """A right sum whose last bits come from somewhere else at each call."""

    calls = 0

    def __call__(self, x):
        self.calls += 1
        return x.double().sum().float() * (1 + self.calls * 2.0**-23)


RIGHT = {
    "12-1": staged,
    "12-2": two_sum,
}

WRONG = {
    "12-1": [
        (lambda *case: staged(*case) ** 2, "square root is missing"),
        (lambda *case: 0.8 * staged(*case), "mean absolute error, 0.8"),
        (
            lambda k, accumulators, chunk: (0.09 * k / accumulators + 0.18 * math.log2(accumulators)) ** 0.5,
            "chunks were forgotten",
        ),
        (
            lambda k, accumulators, chunk: (0.09 * chunk + 0.18 * math.log2(accumulators)) ** 0.5,
            "chain of the chunks' sums",
        ),
        (lambda *case: None, "expected a number, got None"),
    ],
    "12-2": [
        (lambda a, b: (a + b, b - ((a + b) - a)), "right only where the first number is the larger one"),
        (lambda a, b: (a + b, a - ((a + b) - b)), "right only where the second number is the larger one"),
        (lambda a, b: (two_sum(a, b)[0], -two_sum(a, b)[1]), "the sign"),
        (lambda a, b: (a + b, (a + b) - b - a), "wrong; the first at index"),
        (in_float64, "without float64"),
        (lambda a, b: a + b, "expected a tuple"),
    ],
    "12-3": [
        (lambda dy: dy.double().sum(0).float(), "expected a Triton kernel, got none"),
        (lambda dy: dy.sum(0), "a carry is missing"),
        (kahan, "a term is larger than the sum"),
        (lambda dy: dy.double().sum(0), "expected dtype torch.float32, got torch.float64"),
        (lambda dy: 2 * dy.double().sum(0).float(), "added twice"),
        (lambda dy: dy.double().sum(1).float(), "expected shape"),
    ],
    "12-4": [
        (lambda x: x.double().sum().float(), "expected a Triton kernel, got none"),
        (by_atomics, r"programs run in reverse order.*their order decides"),
        (lambda x: parts(x).double().sum().float(), r"expected two launches .*, got 3"),
        (lambda x: in_one_go(x, MASK=False), "a missing mask"),
        (lambda x: in_one_go(x, OTHER=False), "a missing mask, a missing `other`"),
        (one_by_one, r"the sum of [0-9,]+ elements: .* wrong; the first at index"),
        (Draws(), "a second call: expected .* again"),
        (lambda x: x.double().sum(), "expected dtype torch.float32"),
        (lambda x: x.double().sum().float()[None], "expected shape"),
    ],
}

# Right for what the text shows, or for one size.
FIXED = {
    "12-1": (lambda *case: staged(2**20, 2**10, 32), "16,777,216 terms.*expected .* got"),
    "12-2": (lambda a, b: (a + b, 0 * a), "e is always zero"),
    "12-3": (lambda dy: dy.double().sum(0).float()[:8], r"expected shape \[300\], got \[8\]"),
    "12-4": (in_one_go, "the sum of 65,537 elements: .* expected .* got"),
}
