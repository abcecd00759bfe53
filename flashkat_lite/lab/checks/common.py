"""What the checks share: the error they raise, and comparisons that say what is wrong and where."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Wrong(AssertionError):
    """An answer that is not right; the message says what is wrong and where."""


def right(what: str) -> None:
    print(f"Right: {what}")


def same_bits(what: str, first: Tensor, again: Tensor, where: str) -> None:
    """Wrong unless a second result, of the same inputs, is the first one to the bit."""
    if torch.equal(first, again):
        return
    place = tuple((first != again).nonzero()[0].tolist())
    at = f" at index {place}" if place else ""
    raise Wrong(
        f"{what}, {where}: expected {first[place].item():.9g} again{at}, got {again[place].item():.9g}. "
        "Likely cause: programs add to one total, so their order decides"
    )


def same_number(what: str, got: Any, expected: float, causes: dict[str, float] | None = None) -> None:
    """Exact for integers, to one part in a million otherwise. `causes`: {likely cause: the number it leads to}."""
    if isinstance(got, Tensor):
        got = got.item()
    if not isinstance(got, int | float) or isinstance(got, bool):
        raise Wrong(f"{what}: expected a number, got {got!r}")
    if near(got, expected):
        return
    cause = next((f" Likely cause: {text}." for text, value in (causes or {}).items() if near(got, value)), "")
    raise Wrong(f"{what}: expected {expected:,}, got {got:,}.{cause}")


def near(got: float, expected: float) -> bool:
    return got == expected or (not isinstance(expected, int) and abs(got - expected) <= 1e-6 * abs(expected))


def same_tensor(
    what: str, got: Any, expected: Tensor, tolerance: Tensor | float, causes: dict[str, Tensor] | None = None
) -> None:
    """`got` within `tolerance` (absolute, elementwise or one for all) of `expected`, in its shape, without NaN.

    `causes`: {likely cause: the tensor it leads to}; the first that `got` matches is named.
    """
    if not isinstance(got, Tensor):
        raise Wrong(f"{what}: expected a tensor, got {type(got).__name__}")
    if got.shape != expected.shape:
        raise Wrong(f"{what}: expected shape {list(expected.shape)}, got {list(got.shape)}")
    got = got.detach().to(expected.device, torch.float64)
    bound = torch.as_tensor(tolerance, dtype=torch.float64, device=expected.device).expand(expected.shape)
    error = (got - expected.double()).abs()
    bad = ~(error <= bound)
    if not bad.any():
        return
    where = tuple(bad.nonzero()[0].tolist())
    cause = "something read or wrote what it should not (a NaN): a missing mask, or memory never written"
    if not got.isnan().any():
        likely = (t for t, wrong in (causes or {}).items() if ((got - wrong.double()).abs() <= 2 * bound).all())
        cause = next(likely, "")
    raise Wrong(
        f"{what}: {int(bad.sum())} of {bad.numel()} are wrong; the first at index {where}: expected "
        f"{expected[where].item():.7g}, got {got[where].item():.7g} (allowed: ±{bound[where].item():.2g})."
        + (f" Likely cause: {cause}." if cause else "")
    )


# What the interpreter calls for an access to memory, and which arguments are its pointers and its mask.
ACCESSES = {
    "load": ("create_masked_load", 0, 1),
    "store": ("create_masked_store", 0, 2),
    "add": ("create_atomic_rmw", 1, 3),
}


@contextlib.contextmanager
def watching(**tell: Callable[[np.ndarray, int], None]) -> Iterator[None]:
    """Be told of each access of the kernels that run inside; in the interpreter only (a GPU does not tell).

    tell: load, store or add (atomically), each a function of the active lanes' addresses [n] and an element's bytes.
    """
    from triton.runtime.interpreter import interpreter_builder

    def watched(kind: str, told: Callable) -> Any:
        name, pointers_at, mask_at = ACCESSES[kind]
        original = getattr(interpreter_builder, name)

        def access(*arguments):
            pointers, mask = arguments[pointers_at], arguments[mask_at]
            active = np.asarray(pointers.data)[np.asarray(mask.data).astype(bool)]
            told(active, pointers.get_element_ty().primitive_bitwidth // 8)
            return original(*arguments)

        return mock.patch.object(interpreter_builder, name, access)

    with contextlib.ExitStack() as stack:
        for kind, told in tell.items():
            stack.enter_context(watched(kind, told))
        yield
