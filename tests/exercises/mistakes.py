"""Mistakes of more than one chapter."""

import triton
import triton.language as tl


@triton.jit
def load(pointers, inside, MASK: tl.constexpr, OTHER: tl.constexpr):
    """A load that forgets its mask, or only `other`, or nothing."""
    if not MASK:
        values = tl.load(pointers)
    elif OTHER:
        values = tl.load(pointers, mask=inside, other=0.0)
    else:
        values = tl.load(pointers, mask=inside)
    return values


class Accumulates:
    """A buffer of totals that is made once for each input and never zeroed again."""

    def __init__(self, function):
        self.function, self.totals = function, {}

    def __call__(self, data, *rest):
        key = data.data_ptr(), data.shape
        self.totals[key] = self.totals.get(key, 0) + self.function(data, *rest)
        return self.totals[key].clone()
