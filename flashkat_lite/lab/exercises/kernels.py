"""What kernels do: watched in Triton's interpreter, and asked for the same bits again."""

import contextlib
import itertools
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from flashkat_lite._torch import interpreted
from flashkat_lite.testing import watching

from .. import compiling
from ..counting import Accesses, Trace, accesses
from ..setup import DEVICE, GPU
from . import beside
from .common import Wrong, state
from .rules import Operations


@contextlib.contextmanager
def guarded_and_compiled(**told: Callable[..., None]) -> Iterator[None]:
    """Where kernels are interpreted: guard memory inside, and raise Wrong unless each that ran would compile too.

    told: listeners of `testing.watching`.
    """
    if GPU or "triton" not in sys.modules or not interpreted():
        yield
        return
    launches = compiling.Launches()
    with watching(launch=launches, **told):
        yield
    try:
        word = launches.requests and compiling.refused(launches)
    except OSError:
        print("Triton's compiler is not here: whether your kernel compiles for a GPU was not checked.")
        return
    if word:
        raise Wrong(f"right in the interpreter, but it would not compile for a GPU (sm_90). {word}")


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
    if not GPU:
        with accesses(backwards=True):
            again = f(*arguments)
        if torch.equal(first, again):
            return  # nothing that was kept has changed it, either
    same_bits(what, first, f(*arguments), "a second call")
    if not GPU:
        same_bits(what, first, again, "programs run in reverse order")


def watch(f: Callable, *arguments: Any) -> Accesses | None:
    """Return what kernels and PyTorch do in a call, in the interpreter; None on a GPU, which does not tell.

    There it is seen that kernels are launched at all, and the rest is counted in a process beside.
    """
    if GPU:
        state.counted = True
        if not state.here:
            beside.start()
        state.launches.append(launched(f, *(t.to(DEVICE) if isinstance(t, Tensor) else t for t in arguments)))
        if not state.launches[-1]:
            raise Wrong("expected a Triton kernel, got none: nothing was launched by Triton")
        return None
    with accesses() as seen, Operations() as operations, np.errstate(over="ignore"):  # an exp may be infinite, rightly
        seen.result = f(*arguments)
    seen.operations = operations
    state.launches.append(launches(seen))
    return seen


def launched(f: Callable, *arguments: Any) -> int:
    """Return how many kernels of Triton's a call launches on a GPU; keep them for `sass`."""
    from triton import knobs

    count = itertools.count()

    def tell(metadata):
        next(count)

    knobs.runtime.launch_enter_hook.add(tell)
    try:
        with _kept():
            f(*arguments)
    finally:
        knobs.runtime.launch_enter_hook.remove(tell)
    return next(count)


@contextlib.contextmanager
def _kept() -> Iterator[None]:
    """Keep in `state.kernels` what is launched inside; where this version of Triton launches otherwise, nothing."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(Exception):
            from triton.compiler import CompiledKernel

            original = CompiledKernel.launch_metadata

            def launch_metadata(kernel, *arguments, **named):
                state.kernels.setdefault(getattr(kernel, "name", "a kernel"), kernel)
                return original(kernel, *arguments, **named)

            stack.enter_context(mock.patch.object(CompiledKernel, "launch_metadata", launch_metadata))
        yield


SASS = {"loads (LDG)": r"\bLDG\b", "stores (STG)": r"\bSTG\b", "atomic operations (RED, ATOM)": r"\b(?:RED|ATOM)G?\b"}


def sass() -> Iterator[str]:
    """Yield a line for each kernel that was launched on the GPU: registers, and instructions of its SASS by kind.

    Where a kernel's SASS cannot be had, there is no line: what is right stays right.
    """
    for name, kernel in list(state.kernels.items())[:4]:
        with contextlib.suppress(Exception):
            text = kernel.asm["sass"]
            counts = ", ".join(f"{len(re.findall(pattern, text))} {what}" for what, pattern in SASS.items())
            yield f"On this GPU {name} has {kernel.n_regs} registers, {kernel.n_spills} spills; {counts}."


def launches(seen: Accesses) -> int:
    """Return how often kernels were launched."""
    return seen.programs.count((0, 0, 0))


def ran(seen: Accesses) -> None:
    """Raise Wrong unless a kernel was seen to run."""
    if not seen.programs:
        raise Wrong("expected a Triton kernel, got none: no program ran")


def reads_all(seen: Accesses | None, count: int, what: str) -> None:
    """Raise Wrong unless kernels were seen to load `count` elements or more, each from an address of its own."""
    if not seen:
        return
    ran(seen)
    loaded = [addresses for addresses, _ in seen.loads]
    found = np.unique(np.concatenate(loaded)).size if loaded else 0
    if found < count:
        raise Wrong(
            f"{what}: expected Triton kernels that read all {count:,} elements, got {found:,}. Likely cause: PyTorch "
            "does the rest"
        )


def reads_once(seen: Accesses | None, tensors: dict[str, Tensor], size: str, cause: str) -> None:
    """Raise Wrong unless kernels read each element of these contiguous tensors once, and PyTorch none."""
    if not seen:
        return
    ran(seen)
    for name, tensor in tensors.items():
        reads = seen.loads.of(tensor).elements
        if reads != tensor.numel():
            raise Wrong(
                f"elements of {name} read for {size}: expected each once, {tensor.numel():,}, got {reads:,}. Likely "
                f"cause: {cause}"
            )
        if also := seen.operations.that_read(tensor):
            raise Wrong(f"{name} for {size}: expected one reading, by a kernel; PyTorch's {also[0]} reads it as well")


def stored(seen: Accesses | None, **tensors: Tensor) -> None:
    """Raise Wrong unless kernels were seen to store every element of these results, by name."""
    if not seen:
        return
    ran(seen)
    for name, tensor in tensors.items():
        found = seen.stores.of(tensor).elements
        if found < tensor.numel():
            raise Wrong(
                f"{name}: expected {tensor.numel():,} elements stored by a kernel, got {found:,}. Likely cause: "
                "PyTorch makes the result"
            )


def no_adds(seen: Accesses | None, advice: str = "store partial sums and add them in order") -> None:
    """Raise Wrong unless a kernel was seen to run, without atomic additions."""
    if seen:
        ran(seen)
        if seen.adds.elements:
            raise Wrong(f"expected no atomic additions, got {seen.adds.elements:,}: {advice}")


def atomic_adds(seen: Accesses | None) -> Trace | None:
    """Return the atomic additions that were seen. Raises Wrong if there are none."""
    if seen:
        ran(seen)
        if not seen.adds.elements:
            raise Wrong("expected atomic additions in a Triton kernel, got none. Likely cause: PyTorch adds")
    return seen and seen.adds


def few_adds(
    seen: Accesses | None,
    count: int,
    most: int,
    what: str,
    cause: str = "",
    *,
    spare: int = 0,
    stored: int | None = None,
) -> None:
    """Raise Wrong unless kernels were seen to sum `count` elements, with at most `most` atomic additions or with none.

    spare: additions more, for a last block that is not full. stored: the most numbers that kernels may store for
    PyTorch to add; else half as many as there are elements.
    """
    if not seen:
        return
    ran(seen)
    expected = f"{what}: expected at most {most:,} atomic additions"
    if seen.adds.elements > most + spare:
        raise Wrong(f"{expected}, got {seen.adds.elements:,}.{cause and f' Likely cause: {cause}'}")
    reads_all(seen, count, what)
    limit = count // 2 if stored is None else stored
    if seen.stores.elements + seen.adds.elements > limit + spare:
        raise Wrong(
            f"{what}: expected sums from the kernels, {limit:,} numbers or fewer, got {seen.stores.elements:,} stored. "
            "Likely cause: PyTorch adds what a kernel has hardly summed"
        )
