"""Checks of the exercises: each raises Wrong with what was expected, what came, where, and the likely cause."""

from .common import Wrong
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

__all__ = [
    "Wrong",
    "coefficient_gradients",
    "column_sums_atomic",
    "column_sums_block",
    "column_sums_copies",
    "column_sums_walking",
    "count_block",
    "count_work",
    "counting",
    "idle_share",
]
