"""Answers to the exercises of chapter 11: right ones, and wrong ones each with what its check must say."""

import torch
import triton
import triton.language as tl


def bounds(elements, instructions, nbytes, bandwidth, rate):
    return elements * nbytes / bandwidth / 1e6, elements * instructions / rate * 1e3, rate * nbytes / bandwidth / 1e9


def two_bounds(*case):
    memory, issue, meet = bounds(*case)
    return max(memory, issue), meet


def cycles(listing, first=1, reuse=True, place=True, forget=True, result=False, window=3, banks=2):
    """The cycle in which the last instruction issues; each option but the first breaks one rule of the model."""
    kept, taken, now = {}, set(), first - 1
    for line in listing:
        reads = []
        for at, operand in enumerate(line.split(" ", 1)[1].split(", ")[0 if result else 1 :]):
            register = operand.removesuffix(".reuse")
            bank = int(register[1:]) % banks
            key = bank, at * place
            if kept.get(key) != register:
                reads.append(bank)
            if reuse and operand != register:
                kept[key] = register
            elif forget:
                kept[key] = None
        now += 1
        while any(sum((b, c) not in taken for c in range(now, now + window)) < reads.count(b) for b in reads):
            now += 1
        for bank in reads:
            taken.add((bank, next(c for c in range(now, now + window) if (bank, c) not in taken)))
    return now


def one_after_another(listing, to_the_end=False):
    """Each instruction waits until the one before has read all of its registers."""
    found, kept = [], {}
    for line in listing:
        reads = []
        for at, operand in enumerate(line.split(", ")[1:]):
            register = operand.removesuffix(".reuse")
            key = int(register[1:]) % 2, at
            reads += [key[0]] * (kept.get(key) != register)
            kept[key] = register if operand != register else None
        found.append(max(1, reads.count(0), reads.count(1)))
    return sum(found) if to_the_end else sum(found[:-1]) + 1


def from_bits(change):
    """A float32 tensor of pairs made from the words of x by `change`, in PyTorch."""
    return lambda x: torch.stack(change(x.view(torch.int32)), 1).flatten().view(torch.float32)


@triton.jit
def widen_kernel(x_ptr, out_ptr, count, BLOCK: tl.constexpr, BITS: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < count, other=0)
    if BITS:
        x = (x.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        x = x.to(tl.float32)
    tl.store(out_ptr + at, x, mask=at < count)


def slope(x):
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))


def one_by_one(x, bits):
    out, x = torch.empty(x.shape), x.view(torch.int16) if bits else x
    widen_kernel[(triton.cdiv(len(x), 4096),)](x, out, len(x), BLOCK=4096, BITS=bits)
    return out


@triton.jit
def slope_kernel(dy_ptr, x_ptr, dx_ptr, count, BLOCK: tl.constexpr, MASK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    if MASK:
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    else:
        x = tl.load(x_ptr + at).to(tl.float32)
    dy = tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32)
    s = 1.0 / (1.0 + tl.exp(-x))
    tl.store(dx_ptr + at, dy * s * (1.0 + x * (1.0 - s)), mask=inside)


def by_kernel(dy, x, MASK=True, programs=None):
    dx = torch.empty_like(x)
    slope_kernel[(programs or triton.cdiv(x.numel(), 1024),)](dy, x, dx, x.numel(), BLOCK=1024, MASK=MASK)
    return dx


RIGHT = {
    "11-1": two_bounds,
    "11-2": cycles,
    "11-4": by_kernel,
}

WRONG = {
    "11-1": [
        (lambda *case: (sum(bounds(*case)[:2]), bounds(*case)[2]), "not their sum"),
        (lambda *case: (bounds(*case)[0], bounds(*case)[2]), "memory alone"),
        (lambda *case: (bounds(*case)[1], bounds(*case)[2]), "not the shorter"),
        (lambda *case: (two_bounds(*case)[0] / 1e3, bounds(*case)[2]), "not seconds"),
        (lambda *case: (two_bounds(*case)[0], two_bounds(*case)[1] / case[2]), "the number for one byte"),
        (lambda *case: (two_bounds(*case)[0], 1 / two_bounds(*case)[1]), "the inverse"),
        (lambda *case: two_bounds(*case)[0], "expected a tuple"),
    ],
    "11-2": [
        (lambda listing: cycles(listing, first=0), "in cycle 1, not 0"),
        (lambda listing: cycles(listing, reuse=False), r"\.reuse is kept: it is read once"),
        (lambda listing: cycles(listing, result=True), "the result: it is written"),
        (lambda listing: cycles(listing, place=False), "kept for its place"),
        (lambda listing: cycles(listing, forget=False), "until the next one in its bank and place"),
        (one_after_another, "only what does not fit into three"),
        (lambda listing: one_after_another(listing, to_the_end=True), "does not wait until all"),
        (lambda listing: cycles(listing, banks=4), r"expected \d+, got \d+"),
        (lambda listing: cycles(listing, window=4), r"expected \d+, got \d+"),
        (lambda listing: len(listing), r"expected \d+, got \d+"),
        (lambda listing: max(len(listing), -(-3 * len(listing) // 2)), r"expected \d+, got \d+"),
        (lambda listing: None, "expected a number"),
    ],
    "11-3": [
        (lambda x: one_by_one(x, bits=True), "16 bits at a time"),
        (lambda x: one_by_one(x, bits=False), "a conversion instead of bits"),
        (lambda x: x.float(), "expected a Triton kernel"),
        (from_bits(lambda bits: (bits & -65536, bits << 16)), "halves are swapped"),
        (from_bits(lambda bits: (bits << 16, bits)), "needs a mask"),
        (from_bits(lambda bits: (bits << 16, 0 * bits)), "the second went missing"),
        (lambda x: torch.cat([x[::2], x[1::2]]).float(), "before all second ones"),
        (lambda x: x.float() + 0.0, "arithmetic instead of bits"),
        (lambda x: x, "expected dtype torch.float32"),
    ],
    "11-4": [
        (lambda dy, x: (slope(x.double()) * dy.double()).to(x.dtype), "expected a Triton kernel"),
        (lambda dy, x: by_kernel(dy, x, MASK=False), "loads outside of x_ptr, at index 21: .*a missing mask"),
        (lambda dy, x: (torch.sigmoid(x.double()) * dy.double()).to(x.dtype), "the product rule"),
        (lambda dy, x: (x.double() * torch.sigmoid(x.double()) * dy.double()).to(x.dtype), "SiLU itself times dy"),
        (lambda dy, x: slope(x.double()).to(x.dtype), "dy is missing"),
        (lambda dy, x: (slope(dy.double()) * x.double()).to(x.dtype), "exchanged"),
        (lambda dy, x: slope(x) * dy, "bfloat16 was used inside"),
        (lambda dy, x: slope(x.float()) * dy.float(), "expected torch.bfloat16, as x; got torch.float32"),
    ],
}

# Right for what the text shows, or for one size.
FIXED = {
    "11-1": (lambda *case: two_bounds(154_927_104, 42.4, 6, 4300.0, case[4]), "12 bytes each.*expected .* got"),
    "11-2": (
        lambda listing: 13 if len(listing) == 9 else cycles(listing),
        r"\(9 lines\): expected 11, got 13.*read once",
    ),
    "11-3": (lambda x: x.float()[:12], r"10,002 random numbers: expected shape \[10002\], got \[12\]"),
    "11-4": (
        lambda dy, x: by_kernel(dy, x, programs=1),
        "37 rows of 56 float32.*memory from `empty` that nothing wrote",
    ),
}
