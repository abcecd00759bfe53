"""Answers to the exercises of chapter 06: right ones, and wrong ones each with what its check must say."""

import torch
import triton
import triton.language as tl
from mistakes import Accumulates, load


def limit(flops, nbytes, additions, gflop_s, gb_s, adds_per_ns):
    times = {
        "arithmetic": flops / gflop_s / 1e6,
        "bytes": nbytes / gb_s / 1e6,
        "additions": additions / adds_per_ns / 1e6,
    }
    name = max(times, key=times.get)
    return times[name], name


def in_turn(terms, index, size):
    totals = torch.zeros(size, dtype=terms.dtype)
    for at, term in zip(index.tolist(), terms.cpu(), strict=True):
        totals[at] += term
    return totals.to(terms.device)


def exact_sums(terms, index, size):
    return torch.zeros(size, dtype=torch.float64, device=terms.device).index_add_(0, index, terms.double())


def counts(values, bins):
    return torch.bincount(values.long(), minlength=bins).int()


def counts_masked_positions(values, bins):
    result = counts(values, bins)
    result[0] += -len(values) % 1024
    return result


def sums(x, groups):
    return x.view(len(x), groups, -1).sum((0, 2))


@triton.jit
def group_kernel(x_ptr, out_ptr, count, columns, width, BLOCK: tl.constexpr, OTHER: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if OTHER:
        x = tl.load(x_ptr + at, mask=at < count, other=0.0)
    else:
        x = tl.load(x_ptr + at, mask=at < count)
    tl.atomic_add(out_ptr + at % columns // width, x)


def by_group(x, groups, OTHER=True):
    """One addition an element; those of positions outside add zero, if that is what they loaded."""
    out, columns = torch.zeros(groups), x.shape[1]
    group_kernel[(triton.cdiv(x.numel(), 4096),)](
        x, out, x.numel(), columns, columns // groups, BLOCK=4096, OTHER=OTHER
    )
    return out


@triton.jit
def index_kernel(
    terms_ptr, index_ptr, out_ptr, count, BLOCK: tl.constexpr, MASK: tl.constexpr, OTHER: tl.constexpr,
    ATOMIC: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    index = tl.load(index_ptr + at, mask=at < count, other=0)
    terms = load(terms_ptr + at, at < count, MASK, OTHER).to(out_ptr.dtype.element_ty)
    if ATOMIC:
        tl.atomic_add(out_ptr + index, terms)
    else:
        tl.store(out_ptr + index, tl.load(out_ptr + index) + terms, mask=at < count)


def by_index(terms, index, size, MASK=True, OTHER=True, ATOMIC=True, NARROW=False):
    out = torch.zeros(size, dtype=torch.bfloat16 if NARROW else torch.float32)
    index_kernel[(triton.cdiv(len(terms), 4096),)](
        terms, index, out, len(terms), BLOCK=4096, MASK=MASK, OTHER=OTHER, ATOMIC=ATOMIC
    )
    return out.to(torch.bfloat16)


RIGHT = {
    "06-1": limit,
    "06-2": by_index,
}

WRONG = {
    "06-1": [
        (lambda *case: limit(*case)[0], "expected a tuple"),
        (lambda *case: (limit(*case)[0] / 1e3, limit(*case)[1]), "seconds, not milliseconds"),
        (lambda f, b, a, *rates: limit(f, b, 0, *rates), "additions were left out"),
        (lambda f, b, a, x, y, z: (f / x / 1e6 + b / y / 1e6 + a / z / 1e6, "bytes"), "not their sum"),
        (lambda *case: (limit(*case)[0], "bytes"), "expected 'additions', got 'bytes'"),
    ],
    "06-2": [
        (lambda *case: exact_sums(*case).to(torch.bfloat16), "expected a Triton kernel, got none"),
        (lambda *case: by_index(*case, MASK=False), "a missing mask"),
        (lambda *case: by_index(*case, OTHER=False), "a missing mask, a missing `other`"),
        (lambda *case: by_index(*case, ATOMIC=False), "stored, not added"),
        # Triton's compiled interpreter adds no bfloat16; the stand-in does, as a GPU.
        (
            lambda *case: by_index(*case, NARROW=True),
            "an atomic addition in 16 bits|in float32, got one in 16 bits|to bfloat16 at every addition",
        ),
        (in_turn, "rounded to bfloat16 at every addition"),
        (lambda *case: exact_sums(*case).float(), "expected dtype torch.bfloat16, got torch.float32"),
        (Accumulates(lambda *case: exact_sums(*case).to(torch.bfloat16)), "a second call.*not zeroed"),
        (lambda terms, index, size: exact_sums(terms, index, size + 1).to(torch.bfloat16), "expected shape"),
    ],
    "06-3": [
        (lambda *case: torch.empty(case[1], dtype=torch.int32) + counts(*case), "memory that nothing zeroed"),
        (counts, "expected a Triton kernel, got none"),
        (lambda *case: None, "expected a tensor, got NoneType"),
        (counts_masked_positions, "1,023 masked positions were counted as zeros"),
        (lambda *case: 2 * counts(*case), "counted twice"),
        (lambda *case: counts(*case).float(), "expected dtype torch.int32"),
        (Accumulates(counts), "a second call.*not zeroed"),
    ],
    "06-4": [
        (lambda *case: sums(*case).roll(1), "wrong; the first at index .* expected .* got"),
        (lambda *case: by_group(*case, OTHER=False), "a missing mask, a missing `other`"),
        (by_group, "expected at most 1,920 atomic additions, got 61,440"),
        (lambda x, groups: x.view(len(x), -1, groups).sum((0, 1)), "column // width, not column % groups"),
        (lambda x, groups: x.view(len(x), groups, -1, 32)[..., 0].sum((0, 2)), "only its own element"),
        (lambda *case: sums(*case).double(), "expected dtype torch.float32"),
        (Accumulates(sums), "a second call.*not zeroed"),
    ],
}

# Right for what the text shows, or for one size.
FIXED = {
    "06-1": (
        lambda *case: limit(3.1e9, 1.24e9, 0, 66900.0, 4200.0, 1.6),
        "milliseconds for 9e.09 FLOPs.*expected 968.*got 0.295",
    ),
    "06-2": (lambda *case: exact_sums(*case).to(torch.bfloat16)[:7], r"expected shape \[40\], got \[7\]"),
    "06-3": (lambda *case: counts(*case)[:64], r"expected shape \[256\], got \[64\]"),
    "06-4": (lambda x, groups: sums(x, 8), r"expected shape \[1\], got \[8\]"),
}
