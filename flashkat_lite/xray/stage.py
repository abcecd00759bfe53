"""A GPU that is not there: code inside believes in it, its launches are x-rayed, and PyTorch's operations are priced.

Tensors stay on the CPU. Large ones are never filled, so what is inside runs at its true sizes on a laptop.
"""

import contextlib
import functools
import re
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from .. import hardware
from .counting import Launch, Torch, watch
from .model import estimate
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


class Elsewhere(TorchFunctionMode):
    """Keeps on the CPU what code puts on a GPU. telling: and has tensors say that they lie on one."""

    GPU = torch.device("cuda", 0)

    def __init__(self, telling: bool):
        super().__init__()
        self.telling = telling

    def __torch_function__(self, function, types, arguments=(), options=None):
        if self.telling and function == Tensor.device.__get__:  # made anew each time that it is asked for
            return self.GPU
        if self.telling and function == Tensor.is_cuda.__get__:
            return True
        if function in (Tensor.cuda, Tensor.get_device):
            return arguments[0] if function == Tensor.cuda else 0
        return function(*map(_on_the_cpu, arguments), **{k: _on_the_cpu(v) for k, v in (options or {}).items()})


def _on_the_cpu(value: Any) -> Any:
    """Return a device of the CPU for one of a GPU, and anything else as it is."""
    if isinstance(value, torch.device):
        return torch.device("cpu") if value.type == "cuda" else value
    return "cpu" if isinstance(value, str) and re.fullmatch(r"cuda(:\d+)?", value) else value


@contextlib.contextmanager
def believing(prices: Prices) -> Iterator[None]:
    """Have code find a GPU of these prices wherever it looks: PyTorch's functions, its tensors, Triton's driver.

    For other projects' code, which asks them what to launch, and how many programs; also when it is imported.
    """
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    facts = _properties(prices)
    of_triton = {"multiprocessor_count": prices.multiprocessors, "max_shared_mem": prices.shared, "warpSize": 32}
    fake = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", prices.capability, 32), get_current_device=lambda: 0,
        get_device_interface=lambda: torch.cuda, get_active_torch_device=lambda: Elsewhere.GPU,
        get_current_stream=lambda device=None: 0,
        utils=SimpleNamespace(get_device_properties=lambda device: of_triton),
    )  # fmt: skip
    answers = {
        "is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0,
        "get_device_name": lambda device=None: facts.name, "get_device_properties": lambda device=None: facts,
        "get_device_capability": lambda device=None: (facts.major, facts.minor),
        "device": lambda device: contextlib.nullcontext(), "synchronize": lambda device=None: None,
        "is_bf16_supported": lambda including_emulation=True: True,
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, answer))
        stack.enter_context(mock.patch.object(driver, "_active", fake))
        stack.enter_context(Elsewhere(telling=True))
        yield


def _properties(prices: Prices) -> SimpleNamespace:
    """Return what PyTorch says of a GPU."""
    return SimpleNamespace(
        name=prices.name, multi_processor_count=prices.multiprocessors, L2_cache_size=prices.l2_bytes,
        total_memory=2**36, major=prices.capability // 10, minor=prices.capability % 10, warp_size=32,
        shared_memory_per_block=49152, shared_memory_per_block_optin=prices.shared - 1024,
        shared_memory_per_multiprocessor=prices.shared, regs_per_multiprocessor=65536,
        max_threads_per_multi_processor=prices.lanes, memory_bus_width=8,
        memory_clock_rate=prices.read * 1e6 / 2,  # kHz, two bits a cycle and wire
    )  # fmt: skip


TUNED = 6  # settings of an autotuned kernel that are tried


@contextlib.contextmanager
def tuning(launches: list[Launch | Torch], prices: Prices) -> Iterator[None]:
    """Have Triton's autotuner take the settings that are forecast to be fastest, of a few that span those it has."""
    from triton.runtime.autotuner import Autotuner

    def run(self, *arguments, **options):
        self.nargs = dict(zip(self.arg_names, arguments))
        settings = self.prune_configs(options)
        if len(settings) > TUNED:
            settings = [settings[round(k * (len(settings) - 1) / (TUNED - 1))] for k in range(TUNED)]
        best = None
        for setting in settings:
            before = len(launches)
            self.fn.run(*arguments, **options, **setting.all_kwargs())
            made = launches[before:]
            del launches[before:]
            if any(isinstance(launch, Launch) and launch.outside for launch in made):
                best = 0.0, made
                break
            ms = sum(estimate(launch, prices).ms for launch in made)
            if best is None or ms < best[0]:
                best = ms, made
        launches.extend(best[1])

    with mock.patch.object(Autotuner, "run", run):
        yield


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
def pretending(prices: Prices, seconds: float = 4.0, beyond: bool = False) -> Iterator[list[Launch | Torch]]:
    """Yield the launches made inside, by code that finds a GPU of these prices: see `counting.watch`.

    `lab.pick` picks the GPU's sizes, `hardware.device()` answers, and the package's own kernels launch as they would
    there.
    """
    from ..kernels import launch, layout

    facts, properties = as_device(prices), _properties(prices)
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
        stack.enter_context(mock.patch.object(torch.cuda, "current_device", lambda: 0))
        stack.enter_context(mock.patch.object(torch.cuda, "get_device_properties", lambda device=None: properties))
        stack.enter_context(
            mock.patch.object(
                torch.cuda, "get_device_capability", lambda device=None: (properties.major, properties.minor)
            )
        )
        stack.callback(launch.forget)
        launch.forget()
        launches = stack.enter_context(watch(prices.capability, seconds, beyond))
        stack.enter_context(tuning(launches, prices))
        stack.enter_context(Shadows(launches))
        stack.enter_context(Elsewhere(telling=False))
        yield launches


def _registers_for(warps: int, device: torch.device) -> dict[str, int]:
    registers = 65536 // (32 * warps) // 8 * 8
    return {"maxnreg": registers} if registers < 255 else {}
