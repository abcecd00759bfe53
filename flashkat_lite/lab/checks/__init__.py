"""Checks of the exercises: each raises Wrong with what was expected, what came, where, and the likely cause."""

from .common import Wrong
from .gradients import denominator_derivatives, rational_backward, right_gradient, sums_at_the_limit
from .kernels import (
    coefficient_gradients,
    column_sums_atomic,
    column_sums_block,
    column_sums_copies,
    column_sums_walking,
    count_block,
    count_work,
    counting,
    idle_share,
)
from .rationals import coefficient_count, fit_mish, real_poles, weight_std
from .splines import basis_by_hand, basis_slope, cheap_edge, count_kan, refine

__all__ = [
    "Wrong",
    "basis_by_hand",
    "basis_slope",
    "cheap_edge",
    "coefficient_count",
    "coefficient_gradients",
    "column_sums_atomic",
    "column_sums_block",
    "column_sums_copies",
    "column_sums_walking",
    "count_block",
    "count_kan",
    "count_work",
    "counting",
    "denominator_derivatives",
    "fit_mish",
    "idle_share",
    "rational_backward",
    "real_poles",
    "refine",
    "right_gradient",
    "sums_at_the_limit",
    "weight_std",
]
