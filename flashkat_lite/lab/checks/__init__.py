"""Checks of the exercises: each raises Wrong with what was expected, what came, where, and the likely cause."""

from .atomics import group_sums, histogram, index_sums, least_time
from .common import Wrong
from .first_kernel import gelu_at_the_limit, offset_in_32_bits, silu_strided, which_lane
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
from .memory import bank_ways, moving, programs_to_fill, transposed, warp_sectors
from .rationals import coefficient_count, fit_mish, real_poles, weight_std
from .splines import basis_by_hand, basis_slope, cheap_edge, count_kan, refine

__all__ = [
    "Wrong",
    "bank_ways",
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
    "gelu_at_the_limit",
    "group_sums",
    "histogram",
    "idle_share",
    "index_sums",
    "least_time",
    "moving",
    "offset_in_32_bits",
    "programs_to_fill",
    "rational_backward",
    "real_poles",
    "refine",
    "right_gradient",
    "silu_strided",
    "sums_at_the_limit",
    "transposed",
    "warp_sectors",
    "weight_std",
    "which_lane",
]
