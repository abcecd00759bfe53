"""Checks of the exercises: each raises Wrong with what was expected, what came, where, and the likely cause."""

import types

from .atomics import group_sums, histogram, index_sums, least_time
from .common import Wrong, discreet
from .diagnosis import same_row_sums, share_of_time, warp_stay, weighted_histogram
from .elsewhere import column_sums_strided, layernorm_backward, two_level_traffic, weighted_bincount
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
from .limit import scale_backward, stages_needed, sum_in_one_launch, whole_grid
from .memory import bank_ways, moving, programs_to_fill, transposed, warp_sectors
from .numerics import column_sums_compensated, staged_units, sum_repeatable, what_is_lost
from .rationals import coefficient_count, fit_mish, real_poles, weight_std
from .sixteen import conflict_free, silu_backward, two_bounds, unpack_pairs
from .splines import basis_by_hand, basis_slope, cheap_edge, count_kan, refine
from .training import recomputed, step_time, swish_formula, tile_sums_fake

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
    "column_sums_compensated",
    "column_sums_copies",
    "column_sums_strided",
    "column_sums_walking",
    "conflict_free",
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
    "layernorm_backward",
    "least_time",
    "moving",
    "offset_in_32_bits",
    "programs_to_fill",
    "rational_backward",
    "real_poles",
    "recomputed",
    "refine",
    "right_gradient",
    "same_row_sums",
    "scale_backward",
    "share_of_time",
    "silu_backward",
    "silu_strided",
    "staged_units",
    "stages_needed",
    "step_time",
    "sum_in_one_launch",
    "sum_repeatable",
    "sums_at_the_limit",
    "swish_formula",
    "tile_sums_fake",
    "transposed",
    "two_bounds",
    "two_level_traffic",
    "unpack_pairs",
    "warp_sectors",
    "warp_stay",
    "weight_std",
    "weighted_bincount",
    "weighted_histogram",
    "what_is_lost",
    "which_lane",
    "whole_grid",
]

for _name in __all__:
    if isinstance(globals()[_name], types.FunctionType):
        globals()[_name] = discreet(globals()[_name])
