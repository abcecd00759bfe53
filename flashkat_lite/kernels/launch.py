"""Launches that cost the host little: what depends on shapes alone is worked out once and kept."""

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.library import wrap_triton
from triton import JITFunction, knobs
from triton.runtime import driver

from . import INTERPRETED
from .layout import capability

_caches: list = []


def forget() -> None:
    """Forget every launch that was worked out: the device, or what stands for it, has changed."""
    for cached in _caches:
        cached.cache_clear()


def forgets(cached) -> None:
    """Let `forget` clear a functools cache that holds launches."""
    if cached not in _caches:
        _caches.append(cached)


def cached_per_shape(launch_config: Callable) -> Callable:
    """Cache `launch_config(shape, …)` for each shape, except while torch.compile traces symbolic sizes."""
    cached = functools.lru_cache(1024)(launch_config)
    forgets(cached)

    @functools.wraps(launch_config)
    def configured(shape: torch.Size, *key):
        try:
            return cached(shape, *key)
        except TypeError:  # a symbol has no hash
            return launch_config(shape, *key)

    return configured


def early(device: torch.device, *, waits: bool) -> dict[str, int]:
    """Return options for two launches, of which the second `waits`: it is set up while the first still runs.

    That is CUDA's programmatic dependent launch, from compute capability 9.0 on.
    """
    possible = not INTERPRETED and capability(device) >= 90
    return {"EARLY": possible} | ({"launch_pdl": True} if possible and waits else {})


def registers_for(warps: int, device: torch.device) -> dict[str, int]:
    """Return the option that leaves each thread the registers with which `warps` fit on a multiprocessor."""
    registers = 65536 // (32 * warps) // 8 * 8
    return {"maxnreg": registers} if registers < 255 and not INTERPRETED and capability(device) else {}


def may_skip_triton(*pointers: int) -> bool:
    """Return whether a compiled kernel may be launched as it is: it expects these aligned, and nobody watches."""
    hooks = knobs.runtime
    return math.gcd(16, *pointers) == 16 and not (hooks.launch_enter_hook.calls or hooks.launch_exit_hook.calls)


class BoundLaunch:
    """A kernel launch with everything bound but its tensors, which must have the same dtypes and device at every call.

    Triton looks the compiled kernel up at every call, which costs the host more than the launch does; this looks once.
    An eager forward and backward pass, three launches, took an H100's host 253 µs this way, 304 µs by Triton's own
    `compiled[grid](…)`, 485 µs by `kernel[grid](…)` (torch 2.11, Triton 3.6, 2026-11-28, one process, in turns).

    `options` change no result, and torch.compile goes without them: it knows few of the compiler's, and takes a kernel
    that says when the next may begin for one that writes to all its tensors.

    Pointers are expected to be multiples of 16 bytes, as PyTorch's are where no view shifts them; others take Triton's
    own way, and so does everything while a profiler's hooks are installed. torch.compile traces the launch and makes
    it itself.
    """

    def __init__(
        self,
        kernel: JITFunction,
        grid: tuple[int, int],
        scalars: tuple[int, ...],
        options: dict[str, int] | None = None,
        **constants: int,
    ):
        self.kernel, self.grid, self.scalars, self.constants = kernel, (*grid, 1), scalars, constants
        self.keywords = constants | (options or {})
        self.trailing = *scalars, *(self.keywords[name] for name in kernel.arg_names if name in self.keywords)
        self.run: Callable | None = None

    def __call__(self, *tensors: Tensor) -> None:
        if type(tensors[0]) is FunctionalTensor:
            wrap_triton(self.kernel)[self.grid](*tensors, *self.scalars, **self.constants)
            return
        pointers = [t.data_ptr() for t in tensors]
        if self.run and may_skip_triton(*pointers):
            self.go(self.stream_of(self.device), *pointers)
            return
        # Triton means to stop fusing multiply-adds where a launch does not ask for it.
        compiled = self.kernel[self.grid](*tensors, *self.scalars, **self.keywords, enable_fp_fusion=True)
        if math.gcd(16, *pointers) == 16 and not INTERPRETED:
            self.stream_of, self.device = driver.active.get_current_stream, driver.active.get_current_device()
            self.bound = compiled.function, compiled.packed_metadata, None, None, None
            self.run = compiled.run  # last: another thread may be about to look at it

    def go(self, stream: int, *pointers: int) -> None:
        """Launch what was compiled, at once."""
        self.run(*self.grid, stream, *self.bound, *pointers, *self.trailing)
