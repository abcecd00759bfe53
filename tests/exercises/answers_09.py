"""Answers to the exercises of chapter 09: right ones, and wrong ones each with what its check must say."""

import column_sums as columns
from mistakes import Accumulates

from flashkat_lite.lab import solutions


def block(rows, groups, m, n, tile, whole=False, shared=False, one=1):
    blocks = rows // tile if whole else -(-rows // tile)
    programs = blocks * (1 if shared else groups)
    return programs, programs * (m + one + n)


def used(width):
    return width / (1 << (width - 1).bit_length())


RIGHT = {
    "count_block": block,
    "idle_share": lambda width: 1 - used(width),
    "column_sums_block": columns.column_sums,
}

WRONG = {
    "count_block": [
        (lambda *case: block(*case, whole=True), "round up"),
        (lambda *case: block(*case, shared=True), "times groups"),
        (lambda *case: block(*case, one=0), r"m\+1 coefficients"),
        (lambda *case: block(*case)[0], "expected a tuple"),
    ],
    "idle_share": [
        (used, "the share in use was returned"),
        (lambda width: 1 / used(width) - 1, "idle over used, not over all"),
        (lambda width: None, "expected a number, got None"),
    ],
    "column_sums_block": [
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
        (lambda dy: columns.column_sums(dy, ATOMIC=False), "expected atomic additions .*, got none.*addition is lost"),
        (columns.sums, "expected atomic additions .*, got none"),
        (lambda dy: columns.column_sums(dy, tile=32), "took 12,288 atomic adds; at most 6,144 were asked for"),
    ],
    "column_sums_walking": [
        (columns.column_sums, "took 3,752 atomic adds; at most 2,112 were asked for"),
        (columns.sums, "expected atomic additions .*, got none"),
        (Accumulates(columns.sums), "a second call.*added twice"),
        (solutions.column_sums_copies_solution, "took 480,000 atomic adds; at most 2,112"),
    ],
}

# Right for what the text shows, or for one size.
FIXED = {
    "count_block": (lambda *case: (50432, 504320), "rows=37, .*expected 9, got 50,432"),
    "idle_share": (lambda width: 0.25, "idle share at width 100: expected 0.21875, got 0.25"),
    "column_sums_block": (lambda dy: columns.sums(dy)[:8], r"1 row of 300.*expected shape \[300\], got \[8\]"),
    "column_sums_walking": (lambda dy: columns.sums(dy[:264]), "1000 rows of 7 float32: .* wrong; the first at index"),
}
