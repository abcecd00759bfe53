"""Element-wise kernels, which chapters 04 and 11 ask for: what they are tried on, and what they may read."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flashkat_lite.testing import guarded

from .common import Wrong, same_number, same_tensor
from .kernels import stored, watch

SHAPES = {
    "3 rows of 7 float32": (3, 7, torch.float32),
    "37 rows of 56 float32": (37, 56, torch.float32),
    "1 row of 1000 bfloat16": (1, 1000, torch.bfloat16),
    "129 rows of 33 bfloat16": (129, 33, torch.bfloat16),
}


def values(rows: int, columns: int, dtype: torch.dtype = torch.float32, *, seed: int) -> Tensor:
    """Return [rows, columns] of numbers around 0, two of them large, with NaN before and after them in memory."""
    x = 3 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    x.view(-1)[:2] = torch.tensor([-200.0, 200.0])
    return guarded(x.to(dtype))


def same_elements(
    what: str, got: Any, x: Tensor, expected: Tensor, bound: Tensor, causes: dict[str, Tensor | tuple]
) -> None:
    """Raise Wrong unless `got` is `expected`, in x's dtype, within float32's `bound` and a unit of x's dtype."""
    if isinstance(got, Tensor) and got.dtype != x.dtype:
        raise Wrong(f"{what}: expected {x.dtype}, as x; got {got.dtype}")
    same_tensor(what, got, expected, bound + torch.finfo(x.dtype).eps * expected.abs(), causes)
    if not got.is_contiguous():
        raise Wrong(
            f"{what}: expected a contiguous tensor, got strides {got.stride()}. Likely cause: empty_like(x) keeps x's "
            "strides; torch.empty(x.shape, …) does not"
        )


def read_once(f: Callable, arguments: tuple, tensors: dict[str, Tensor], name: str) -> None:
    """In the interpreter, raise Wrong unless a kernel reads tensors where they lie, and each element once.

    Elements that kernels store must be as many as one of them has.
    """
    if seen := watch(f, *arguments):
        for what, tensor in tensors.items():
            loads = seen.loads.of(tensor).nbytes // tensor.itemsize
            if not loads:
                raise Wrong(
                    f"expected a Triton kernel that reads {what} where it lies, without a copy of {what}: no kernel "
                    f"read {what}"
                )
            causes = {f"{what} is read twice": 2 * tensor.numel()}
            same_number(f"elements of {what} loaded for {name}", loads, tensor.numel(), causes)
        stores, count = seen.stores.nbytes // tensor.itemsize, tensor.numel()
        same_number(f"elements stored for {name}", stores, count, {"y is written twice": 2 * count})
        stored(seen, **{f"the result for {name}": seen.result})
