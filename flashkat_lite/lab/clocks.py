"""The multiprocessors' clock under load, read inside of a kernel: a driver's sample comes after the work, and idles."""

import torch
import triton
import triton.language as tl

from flashkat_lite import hardware
from flashkat_lite.kernels.polynomial import FAST  # compiled, and for NVIDIA


@triton.jit
def read_cycles():
    """Return this multiprocessor's count of its cycles, int64; 0 in the interpreter, which has none."""
    if FAST:
        return tl.inline_asm_elementwise(
            "mov.u64 $0, %clock64;", "=l", [], dtype=tl.int64, is_pure=False, pack=1
        )  # fmt: skip
    else:
        return tl.cast(0, tl.int64)


@triton.jit
def read_nanoseconds():
    """Return the GPU's time in nanoseconds, int64, in steps of up to a microsecond; 0 in the interpreter."""
    if FAST:
        return tl.inline_asm_elementwise(
            "mov.u64 $0, %globaltimer;", "=l", [], dtype=tl.int64, is_pure=False, pack=1
        )  # fmt: skip
    else:
        return tl.cast(0, tl.int64)


@triton.jit
def copy_kernel(x_ptr, y_ptr, clocks_ptr, size, BLOCK: tl.constexpr):
    """y = x by programs that stay; each stores its cycles and its nanoseconds in clocks [programs, 2]."""
    program = tl.program_id(0)
    cycle, nanosecond = read_cycles(), read_nanoseconds()
    step = tl.num_programs(0).to(tl.int64) * BLOCK
    for first in tl.range(program.to(tl.int64) * BLOCK, size, step, num_stages=4):
        offs = first + tl.arange(0, BLOCK)
        tl.store(y_ptr + offs, tl.load(x_ptr + offs, mask=offs < size), mask=offs < size)
    tl.store(clocks_ptr + 2 * program, read_cycles() - cycle)
    tl.store(clocks_ptr + 2 * program + 1, read_nanoseconds() - nanosecond)


def ghz(clocks: torch.Tensor) -> float:
    """Return cycles a nanosecond, the median over programs, of clocks [programs, 2]; 0.0 where none could be read."""
    took, lasted = clocks.double().unbind(1)
    return (took / lasted.clamp(min=1)).median().item()


def while_copying(nbytes: int = 2**31) -> float:
    """Return the clock in GHz while `nbytes` are read and as many written, after 200 ms of the same; 0.0 on a CPU."""
    facts = hardware.device()
    x = torch.randn(nbytes // 4 if facts else 4096, device="cuda" if facts else "cpu")
    y, programs = torch.empty_like(x), 4 * facts.multiprocessors if facts else 2
    clocks = torch.zeros(programs, 2, dtype=torch.int64, device=x.device)
    for _ in range(200 if facts else 1):
        copy_kernel[(programs,)](x, y, clocks, x.numel(), BLOCK=2048, num_warps=8)
    return ghz(clocks)
