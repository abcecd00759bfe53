"""The Triton kernels, one rung a file; importing this package imports Triton."""

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.library import wrap_triton
from triton import JITFunction, knobs
from triton.runtime import driver

INTERPRETED = knobs.runtime.interpret  # fixed when Triton is imported: TRITON_INTERPRET=1


def as_rows(x: Tensor) -> Tensor:
    """[..., D] as [rows, D] with neighbouring columns side by side: a view where strides allow, else a copy."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()


def vector_width(element_size: int, group_width: int, *row_strides: int) -> int:
    """Neighbouring columns that a lane loads at once: 16 bytes, or what divides a group and each row stride."""
    return math.gcd(16 // element_size, group_width, *row_strides)


def whole_rows(vectors_per_row: int, block: int) -> int:
    """The fewest programs of `block` lanes, a vector each, that cover a whole number of rows."""
    return vectors_per_row // math.gcd(vectors_per_row, block)


def group_count(numerator: Tensor, denominator: Tensor) -> int:
    return max(numerator.shape[0], denominator.shape[0])


def table_stride(table: Tensor) -> int:
    """Elements from one group's coefficients to the next: none where all groups share one row."""
    return table.stride(0) if table.shape[0] > 1 else 0


def sums_like(table: Tensor, groups: int) -> Tensor:
    """Memory for the sums of each group's coefficients: the gradient of `table` itself, where no groups share a row."""
    if table.shape[0] == groups:
        return torch.empty_like(table, memory_format=torch.contiguous_format)
    return torch.empty(groups, table.shape[1], dtype=torch.float32, device=table.device)


def as_gradient(sums: Tensor, table: Tensor) -> Tensor:
    """Sums [G, k] as the gradient of `table`: in its dtype, added over groups where it is shared."""
    return (sums if sums.shape[0] == table.shape[0] else sums.sum(0, keepdim=True)).to(table.dtype)


@functools.cache
def capability(device: torch.device) -> int:
    """90 for compute capability 9.0; 0 without a GPU."""
    return int("{}{}".format(*torch.cuda.get_device_capability(device))) if device.type == "cuda" else 0


@functools.cache
def multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def remembered(plan: Callable) -> Callable:
    """`plan(shape, …)`, worked out once for each shape; anew where torch.compile traces with sizes that are symbols."""
    kept = functools.lru_cache(1024)(plan)

    @functools.wraps(plan)
    def planned(shape: torch.Size, *key):
        symbolic = any(type(size) is torch.SymInt for size in shape)
        return (plan if symbolic else kept)(shape, *key)

    return planned


class Launch:
    """A launch of a kernel, all but its tensors, which must have the same dtypes and device at every call.

    Triton works out at every call which compilation its arguments ask for; this asks once, which makes a call several
    times cheaper for the host. Pointers are expected to be multiples of 16 bytes, as PyTorch's are where no view
    shifts them; others take Triton's own way, and so does everything while a profiler's hooks look on. torch.compile
    writes the launch down and makes it itself.
    """

    def __init__(self, kernel: JITFunction, grid: tuple[int, int], scalars: tuple[int, ...], **constants: int):
        self.kernel, self.grid, self.scalars, self.constants = kernel, (*grid, 1), scalars, constants
        self.last = *scalars, *(constants[name] for name in kernel.arg_names if name in constants)
        self.run: Callable | None = None

    def __call__(self, *tensors: Tensor) -> None:
        if type(tensors[0]) is FunctionalTensor:
            wrap_triton(self.kernel)[self.grid](*tensors, *self.scalars, **self.constants)
            return
        pointers = [t.data_ptr() for t in tensors]
        aligned = math.gcd(16, *pointers) == 16
        if self.run and aligned and not (knobs.runtime.launch_enter_hook.calls or knobs.runtime.launch_exit_hook.calls):
            stream = self.stream_of(self.device)
            self.run(*self.grid, stream, self.function, self.metadata, None, None, None, *pointers, *self.last)
            return
        # Triton means to stop fusing multiply-adds where a launch does not ask for it.
        compiled = self.kernel[self.grid](*tensors, *self.scalars, **self.constants, enable_fp_fusion=True)
        if aligned and not INTERPRETED:
            self.stream_of, self.device = driver.active.get_current_stream, driver.active.get_current_device()
            self.function, self.metadata = compiled.function, compiled.packed_metadata
            self.run = compiled.run  # last: another thread may be about to look at it
