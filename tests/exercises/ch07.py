"""Answers to the exercises of chapter 07: right ones, and wrong ones each with what its check must say."""

import column_sums as columns
import torch
from mistakes import Accumulates

from flashkat_lite.lab.exercises.ch07 import column_sums_copies_solution
from flashkat_lite.reference import rational_gradients


def work(rows, columns, groups, m, n, coefficients=None, tensors=3, everywhere=False):
    elements, coefficients = rows * columns, coefficients or m + 1 + n
    adds = coefficients * elements * (groups if everywhere else 1)
    return 4 * tensors * elements, adds, coefficients * groups


def gradients(dy, x, a, b):
    return rational_gradients(dy, x, a, b)[1:]


def signless(dy, x, a, b):
    da, db = gradients(dy, x, a, b)
    return da, db * torch.where(b < 0, -1.0, 1.0)


def interleaved(dy, x, a, b):
    """Column c to group c % G."""

    def moved(t):
        return t.reshape(len(t), -1, len(a)).transpose(1, 2).reshape(t.shape)

    return gradients(moved(dy), moved(x), a, b)


def next_group(dy, x, a, b):
    return tuple(t.roll(1, 0) for t in gradients(dy, x, a, b))


def an_addition_an_element(dy):
    """Additions of the elements alone: positions outside of the tensor add nothing."""
    return column_sums_copies_solution(dy, copies=1)


RIGHT = {
    "07-1": work,
    "07-2": gradients,
    "07-3": an_addition_an_element,
}

WRONG = {
    "07-1": [
        (lambda *case: work(*case, tensors=2), "dy, x and dx are three tensors"),
        (lambda r, c, g, m, n: work(r, c, g, m, n, coefficients=m + n), r"m\+1 coefficients"),
        (lambda *case: work(*case, everywhere=True), "to its own group alone"),
        (lambda *case: work(*case)[:2], "expected a tuple"),
    ],
    "07-2": [
        (signless, "the sign of b_j is lost"),
        (lambda *case: (gradients(*case)[0], -gradients(*case)[1]), "the minus sign of -P/Q² is lost"),
        (lambda *case: (gradients(*case)[0], -signless(*case)[1]), "both the minus sign and the sign of b_j"),
        (interleaved, "column // width, not column % groups"),
        (next_group, "dnumerator: .* wrong; the first at index .* expected .* got"),
        (lambda *case: None, "expected a tuple"),
    ],
    "07-3": [
        (columns.as_if_contiguous, "a transposed tensor: .*strides were taken for those of a contiguous"),
        (Accumulates(columns.sums), "a second call.*added twice"),
        (columns.from_empty, "memory from `empty` that nothing wrote"),
        (columns.everything, "every column holds the total of all of them"),
        (lambda dy: columns.column_sums(dy, REDUCE=False, MASK=False), "a missing mask"),
        (lambda dy: columns.column_sums(dy, REDUCE=False, OTHER=False), "a missing mask, a missing `other`"),
        (lambda dy: columns.column_sums(dy, ATOMIC=False), "a race at index 0 of out_ptr: .*addition is lost"),
        (columns.column_sums, "atomic adds for 37 rows of 8: expected 296, got 8"),
        (lambda dy: columns.sums(dy).to(dy.dtype), "kept and returned in float32.*got torch.bfloat16"),
        (lambda dy: columns.sums(dy).roll(1), "wrong; the first at index .* expected .* got"),
    ],
    "07-4": [
        (columns.sums, "expected a Triton kernel, got none"),
        (columns.in_bfloat16, "37 rows of 8 float32: .* wrong; the first at index"),
        (an_addition_an_element, "added to 8 addresses; 512 or more were asked for"),
        (lambda dy: column_sums_copies_solution(dy)[:-1], r"expected shape \[8\], got \[7\]"),
    ],
}

# Right for what the text shows, or for one size.
FIXED = {
    "07-1": (lambda *case: work(201728, 768, 8, 5, 4), "rows=37, columns=56, .*expected 24,864, got 1,859"),
    "07-2": (
        lambda dy, x, a, b: gradients(dy, x, a, b) if len(a) == 8 else (a, b),
        "dnumerator: .* wrong; the first at index",
    ),
    "07-3": (lambda dy: columns.sums(dy)[:8], r"1 row of 300.*expected shape \[300\], got \[8\]"),
    "07-4": (lambda dy: columns.sums(dy[:37]), "1000 rows of 7 float32: .* wrong; the first at index"),
}
