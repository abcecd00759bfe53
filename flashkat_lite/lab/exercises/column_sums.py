"""Column sums, which chapters 07 and 09 ask for."""

from collections.abc import Callable

import torch
from torch import Tensor

from .common import Wrong, normal, same_tensor


def _check_sums(what: str, got: Tensor, dy: Tensor) -> None:
    """Raise Wrong unless `got` is the column sums of dy, to the rounding of a float32 sum in any order."""
    if not isinstance(got, Tensor):
        raise Wrong(f"{what}: expected a tensor, got {type(got).__name__}")
    if got.dtype != torch.float32:
        raise Wrong(f"{what}: sums must be kept and returned in float32, whatever the input is; got {got.dtype}")
    exact, size = dy.double().sum(0), dy.double().abs().sum(0)
    # `rows` additions that each round at random, with a margin of four; a sum kept in 16 bits is far outside.
    tolerance = 4 * len(dy) ** 0.5 * 2.0**-24 * size + 1e-30
    plain = dy.as_strided(dy.shape, (dy.shape[1], 1))
    causes = {
        "every column holds the total of all of them: index the result by column": exact.sum().expand_as(exact),
        "each element was added twice: is the buffer zeroed at each call?": 2 * exact,
        "strides were taken for those of a contiguous tensor": plain.double().sum(0),
    }
    try:
        same_tensor(what, got, exact, tolerance, causes)
    except Wrong as wrong:
        close = got.shape == exact.shape and bool(((got.double() - exact).abs() <= 2.0**-7 * size).all())
        if dy.itemsize == 2 and close and "Likely cause" not in str(wrong):
            raise Wrong(f"{wrong} Likely cause: right but for rounding: the sums are kept in 16 bits.") from None
        raise


def check_column_sums(f: Callable[[Tensor], Tensor]) -> None:
    """Raise Wrong unless f gives the sums over rows of odd shapes, of bfloat16, of any strides, and twice in a row."""
    cases = {
        "37 rows of 8 float32": normal(37, 8, seed=1),
        "1000 rows of 7 float32": normal(1000, 7, seed=2),
        "1 row of 300 float32": normal(1, 300, seed=3),
        "5000 rows of 3 bfloat16": normal(5000, 3, seed=4, dtype=torch.bfloat16),
        "a transposed tensor": normal(8, 30, seed=5).T,
    }
    for name, dy in cases.items():
        _check_sums(f"column sums of {name}", f(dy), dy)
    again = f(cases["37 rows of 8 float32"])
    _check_sums("a second call on the first input", again, cases["37 rows of 8 float32"])
