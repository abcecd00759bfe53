"""Plain kernels that move what a pass must move and no more: the limits that the others are held to."""

import functools
from collections.abc import Callable

import triton
import triton.language as tl
from torch import Tensor

from .layout import multiprocessors, vector_width

# (vectors of a program's step, warps, programs on a multiprocessor, or 0 for a step each, steps in flight)
SIZES = ((256, 4, 0, 1), (512, 8, 0, 1), (256, 4, 3, 3), (512, 4, 4, 4))


@triton.jit
def stream_kernel(
    x_ptr, y_ptr, out_ptr, vectors, ADD: tl.constexpr, VECTOR: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr
):
    """out = x + y, or x: programs walk over `vectors` of VECTOR elements, BLOCK of them at a time."""
    step = tl.num_programs(0).to(tl.int64) * BLOCK
    for first in tl.range(tl.program_id(0).to(tl.int64) * BLOCK, vectors, step, num_stages=STAGES):
        position = first + tl.arange(0, BLOCK)
        offs = position[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]
        mask = (position < vectors)[:, None]
        value = tl.load(x_ptr + offs, mask=mask)
        if ADD:
            value = value.to(tl.float32) + tl.load(y_ptr + offs, mask=mask).to(tl.float32)
        tl.store(out_ptr + offs, value, mask=mask)


def stream(x: Tensor, y: Tensor, out: Tensor, add: bool, size: tuple[int, int, int, int]) -> Tensor:
    """Write x + y or x to `out`, all contiguous and of one dtype, with a launch of SIZES; return `out`."""
    block, warps, on_multiprocessor, stages = size
    vector = vector_width(x.element_size(), x.numel())
    vectors = x.numel() // vector
    programs = triton.cdiv(vectors, block)
    if on_multiprocessor:
        programs = min(programs, on_multiprocessor * multiprocessors(x.device))
    stream_kernel[(programs,)](
        x, y, out, vectors,
        ADD=add, VECTOR=vector, BLOCK=block, STAGES=stages, num_warps=warps, enable_fp_fusion=True,
    )  # fmt: skip
    return out


def streams(x: Tensor, y: Tensor, out: Tensor, add: bool) -> dict[str, Callable[[], Tensor]]:
    """Return a function for each of SIZES, by name."""
    return {
        f"Triton, {block} vectors, {warps} warps" + (f", {few} programs a multiprocessor" if few else ""): (
            functools.partial(stream, x, y, out, add, (block, warps, few, stages))
        )
        for block, warps, few, stages in SIZES
    }
