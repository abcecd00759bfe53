"""Answers to the exercises of chapter 09: right ones, and wrong ones each with what its check must say."""

import column_sums as columns
from mistakes import Accumulates

from flashkat_lite.lab.exercises.ch07 import column_sums_copies_solution


def block(rows, groups, m, n, tile, whole=False, shared=False, one=1):
    blocks = rows // tile if whole else -(-rows // tile)
    programs = blocks * (1 if shared else groups)
    return programs, programs * (m + one + n)


def used(width):
    return width / (1 << (width - 1).bit_length())


RIGHT = {
    "09-1": block,
    "09-2": lambda width: 1 - used(width),
    "09-3": columns.column_sums,
}

WRONG = {
    "09-1": [
        (lambda *case: block(*case, whole=True), "round up"),
        (lambda *case: block(*case, shared=True), "times groups"),
        (lambda *case: block(*case, one=0), r"m\+1 coefficients"),
        (lambda *case: block(*case)[0], "expected a tuple"),
    ],
    "09-2": [
        (used, "the share in use was returned"),
        (lambda width: 1 / used(width) - 1, "idle over used, not over all"),
        (lambda width: None, "expected a number, got None"),
    ],
    "09-3": [
        (columns.in_bfloat16, "37 rows of 8 float32: .* wrong; the first at index"),
        (
            lambda dy: columns.in_bfloat16(dy) if dy.itemsize == 2 else columns.sums(dy),
            "5000 rows of 3 bfloat16: .*the sums are kept in 16 bits",
        ),
        (columns.as_if_contiguous, "a transposed tensor: .*strides were taken for those of a contiguous"),
        (lambda dy: columns.sums(dy).to(dy.dtype), "kept and returned in float32.*got torch.bfloat16"),
        (Accumulates(columns.sums), "a second call.*added twice"),
        (columns.from_empty, "memory from `empty` that nothing wrote"),
        (lambda dy: dy.float().sum(1), r"expected shape \[8\], got \[37\]"),
        (lambda dy: None, "expected a tensor, got NoneType"),
        (lambda dy: columns.column_sums(dy, MASK=False), "a missing mask"),
        (lambda dy: columns.column_sums(dy, OTHER=False), "a missing mask, a missing `other`"),
        (
            lambda dy: columns.column_sums(dy, ATOMIC=False),
            "a race at index 0 of out_ptr: .*addition is lost",
        ),
        (columns.sums, "expected a Triton kernel, got none"),
        (
            lambda dy: columns.column_sums(dy, tile=32),
            "4,096 rows of 96: .* at most 6,144 atomic additions, got 12,288",
        ),
    ],
    "09-4": [
        (columns.column_sums, "60,000 rows of 8: expected at most 2,112 atomic additions, got 3,752"),
        (columns.sums, "expected a Triton kernel, got none"),
        (Accumulates(columns.sums), "a second call.*added twice"),
        (column_sums_copies_solution, "expected at most 2,112 atomic additions, got 480,000"),
    ],
}

# Right for what the text shows, or for one size.
FIXED = {
    "09-1": (lambda *case: (50432, 504320), "rows=37, .*expected 9, got 50,432"),
    "09-2": (lambda width: 0.25, "idle share at width 100: expected 0.21875, got 0.25"),
    "09-3": (lambda dy: columns.sums(dy)[:8], r"1 row of 300.*expected shape \[300\], got \[8\]"),
    "09-4": (lambda dy: columns.sums(dy[:264]), "1000 rows of 7 float32: .* wrong; the first at index"),
}
