"""What kernels do: watched in Triton's interpreter, and asked for the same bits again."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..counting import Accesses, Trace, accesses
from ..setup import GPU
from .common import Wrong

RACE = (
    "Likely cause: PyTorch adds, or a load, an addition and a store, between which another program's addition is lost"
)


def same_bits(what: str, first: Tensor, again: Tensor, where: str) -> None:
    """Raise Wrong unless a second result, of the same inputs, is the first one to the bit."""
    if torch.equal(first, again):
        return
    place = tuple((first != again).nonzero()[0].tolist())
    at = f" at index {place}" if place else ""
    raise Wrong(
        f"{what}, {where}: expected {first[place].item():.9g} again{at}, got {again[place].item():.9g}. "
        "Likely cause: programs add to one total, so their order decides"
    )


def repeats(what: str, first: Tensor, f: Callable[..., Tensor], *arguments: Any) -> None:
    """Raise Wrong unless f gives `first` to the bit: again and, on a CPU, with its programs in reverse order."""
    same_bits(what, first, f(*arguments), "a second call")
    if not GPU:
        with accesses(backwards=True):
            again = f(*arguments)
        same_bits(what, first, again, "programs run in reverse order")


def watch(f: Callable, *arguments: Any) -> Accesses | None:
    """Return what the kernels of a call do, in the interpreter; None on a GPU, which does not tell."""
    if GPU:
        return None
    with accesses() as seen, np.errstate(over="ignore"):  # an exp may be infinite, and rightly so
        f(*arguments)
    return seen


def no_adds(seen: Accesses | None, advice: str = "store partial sums and add them in order") -> None:
    """Raise Wrong unless a kernel was seen to run, without atomic additions."""
    if seen and not seen.programs:
        raise Wrong("expected a Triton kernel, got none: no program ran")
    if seen and seen.adds.elements:
        raise Wrong(f"expected no atomic additions, got {seen.adds.elements:,}: {advice}")


def atomic_adds(seen: Accesses | None) -> Trace | None:
    """Return the atomic additions that were seen. Raises Wrong if there are none."""
    if seen and not seen.adds.elements:
        raise Wrong(f"expected atomic additions in a Triton kernel, got none. {RACE}")
    return seen and seen.adds


def few_adds(seen: Accesses | None, most: int, what: str, cause: str = "") -> None:
    """Raise Wrong unless atomic additions were seen, and at most so many."""
    expected = f"{what}: expected at most {most:,} atomic additions"
    if seen and not seen.adds.elements:
        raise Wrong(f"{expected}, got none. {RACE}")
    if seen and seen.adds.elements > most:
        raise Wrong(f"{expected}, got {seen.adds.elements:,}.{cause and f' Likely cause: {cause}'}")
