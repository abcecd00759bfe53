"""A GPU that is not there: code inside believes in it, its launches are x-rayed, and PyTorch's operations are priced.

Tensors stay on the CPU. Large ones are never filled, so what is inside runs at its true sizes on a laptop.
"""

import contextlib
import functools
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from .. import hardware
from .counting import Launch, Torch, watch
from .prices import Prices

PACKAGE = __name__.rpartition(".xray")[0]  # copies have other names
REAL = 2**20  # elements: floating-point tensors beyond are never filled
REAL_INTEGERS = 2**25  # what addresses are computed from is


class Shadows(TorchDispatchMode):
    """Prices PyTorch's operations by their bytes, and spares itself those on large tensors."""

    def __init__(self, launches: list[Launch | Torch]):
        super().__init__()
        self.launches = launches

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        options = options or {}
        taken = [t for t in tree_leaves((arguments, options)) if isinstance(t, Tensor)]
        name = function._schema.name.removeprefix("aten::")
        if function.is_view or name in ("_local_scalar_dense", "detach", "lift_fresh", "set_", "resize_"):
            return function(*arguments, **options)
        shadow = self._shadow(function, arguments, options, taken)
        result = function(*arguments, **options) if shadow is None else shadow
        made = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        if not name.startswith(("empty", "new_empty")) and made:
            fresh = {t.data_ptr() for t in made}
            read = sum(_bytes(t) for t in taken if t.data_ptr() not in fresh)
            self.launches.append(Torch(name, read, sum(map(_bytes, made))))
        return result

    def _shadow(self, function, arguments, options, taken) -> Any:
        """Return what an operation on large tensors gives, unfilled; None where it is small enough to be made."""
        meta = {}

        def hide(value):
            if not isinstance(value, Tensor):
                return value
            hidden = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
            meta[id(hidden)] = value
            return hidden

        def small(t):
            return t.numel() <= (REAL if t.is_floating_point() else REAL_INTEGERS)

        places = [a for a in arguments if isinstance(a, list | tuple | int)]
        if all(map(small, taken)) and not _makes_large(function, places):
            return None
        options = {k: v for k, v in options.items() if k != "generator"}
        if "device" in options:
            options["device"] = "meta"
        with torch._C._DisableTorchDispatch():
            try:
                result = function(*tree_map(hide, arguments), **tree_map(hide, options))
            except (NotImplementedError, RuntimeError):
                return None

        def show(value):
            if not isinstance(value, Tensor):
                return value
            if id(value) in meta:
                return meta[id(value)]
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)

        shown = tree_map(show, result)
        return (
            None
            if all(small(t) for t in tree_leaves(shown) if isinstance(t, Tensor)) and all(map(small, taken))
            else shown
        )


def _bytes(t: Tensor) -> int:
    """The bytes that a tensor's elements take in memory: of an expanded one, each once."""
    return min(t.numel() * t.element_size(), t.untyped_storage().nbytes())


def _makes_large(function: Any, places: list) -> bool:
    """Whether an operation without large inputs may make something large: its sizes stand among its arguments."""
    for place in places:
        if isinstance(place, list | tuple) and place and all(isinstance(n, int) for n in place):
            if functools.reduce(lambda a, b: a * max(b, 1), place, 1) > REAL:
                return True
        elif isinstance(place, int) and place > REAL:
            return True
    return False


def as_device(prices: Prices) -> hardware.Device:
    """Return the facts that code may ask about a GPU."""
    capability = f"{prices.capability // 10}.{prices.capability % 10}"
    return hardware.Device(
        prices.name, hardware.slug(prices.name), capability, prices.multiprocessors, 2**36, prices.l2_bytes, None, None
    )


def _swap(stack: contextlib.ExitStack, old: Any, new: Any) -> None:
    """Have every module that holds `old` under its own name for it hold `new`."""
    for module in list(sys.modules.values()):
        names = [k for k, v in list(getattr(module, "__dict__", {}).items()) if v is old]
        for name in names:
            stack.enter_context(mock.patch.object(module, name, new))


@contextlib.contextmanager
def pretending(prices: Prices, seconds: float = 4.0) -> Iterator[list[Launch | Torch]]:
    """Yield the launches made inside, by code that finds a GPU of these prices: see `counting.watch`.

    `lab.pick` picks the GPU's sizes, `hardware.device()` answers, and the package's own kernels launch as they would
    there.
    """
    from ..kernels import launch, layout

    facts = as_device(prices)
    properties = SimpleNamespace(
        name=facts.name, multi_processor_count=facts.multiprocessors, L2_cache_size=facts.l2_bytes,
        total_memory=facts.memory_bytes, major=prices.capability // 10, minor=prices.capability % 10, warp_size=32,
        shared_memory_per_block=49152, shared_memory_per_multiprocessor=prices.shared, regs_per_multiprocessor=65536,
        max_threads_per_multi_processor=prices.lanes,
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if name.startswith(f"{PACKAGE}.kernels.") and hasattr(module, "INTERPRETED") and module is not launch:
                stack.enter_context(mock.patch.object(module, "INTERPRETED", False))
        block = sys.modules.get(f"{PACKAGE}.kernels.backward_block")
        if block:
            stack.enter_context(mock.patch.object(block, "ELEMENTS", 4096))
        norm = sys.modules.get(f"{PACKAGE}.kernels.norm_backward")
        if norm:
            stack.enter_context(mock.patch.multiple(norm, SUMS=16, PROGRAMS=512))
        _swap(stack, hardware.device, lambda: facts)
        _swap(stack, layout.capability, lambda device: prices.capability)
        _swap(stack, layout.multiprocessors, lambda device: prices.multiprocessors)
        _swap(stack, launch.early, lambda device, waits: {"EARLY": False})
        _swap(stack, launch.registers_for, _registers_for)
        for name in (f"{PACKAGE}.lab", f"{PACKAGE}.lab.setup"):
            if name in sys.modules:
                stack.enter_context(mock.patch.object(sys.modules[name], "GPU", True))
        for name, module in list(sys.modules.items()):  # modules that took it by name
            if name.startswith(f"{PACKAGE}.lab.exercises") and hasattr(module, "GPU"):
                stack.enter_context(mock.patch.object(module, "GPU", True))
        stack.enter_context(mock.patch.object(torch.cuda, "get_device_properties", lambda device=None: properties))
        stack.enter_context(
            mock.patch.object(
                torch.cuda, "get_device_capability", lambda device=None: (properties.major, properties.minor)
            )
        )
        stack.callback(launch.forget)
        launch.forget()
        launches = stack.enter_context(watch(prices.capability, seconds))
        stack.enter_context(Shadows(launches))
        yield launches


def _registers_for(warps: int, device: torch.device) -> dict[str, int]:
    registers = 65536 // (32 * warps) // 8 * 8
    return {"maxnreg": registers} if registers < 255 else {}
