"""Chapter 04: the solution whose time is the yardstick of its speed exercise; the chapter shows it, folded."""

import torch
import triton
import triton.language as tl

from flashkat_lite import lab
from flashkat_lite.kernels.polynomial import reciprocal


@triton.jit(do_not_specialize=["size"])
def gelu_kernel(x_ptr, y_ptr, size, VECTOR: tl.constexpr, BLOCK: tl.constexpr, UNROLL: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * (BLOCK * UNROLL)
    for k in tl.static_range(UNROLL):
        vector = first + k * BLOCK + tl.arange(0, BLOCK)
        at = vector[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]
        inside = (vector < size // VECTOR)[:, None]  # whole vectors: 16 bytes are inside or outside together
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        # 1 + tanh(z) = 2 / (1 + exp(-2z)), and exp2 is the instruction that the hardware has.
        y = x * reciprocal(1.0 + tl.exp2(x * (-2.3022082 - 0.10294324 * x * x)))
        tl.store(y_ptr + at, y, mask=inside)


def gelu_solution(x):
    y = torch.empty_like(x)
    widest = 16 // x.element_size()
    vector = next(v for v in (widest, 4, 2, 1) if x.numel() % v == 0)
    block, unroll = lab.pick(gpu=(128, 2), cpu=(1024, 2))
    grid = (triton.cdiv(x.numel(), vector * block * unroll),)
    gelu_kernel[grid](x, y, x.numel(), VECTOR=vector, BLOCK=block, UNROLL=unroll)
    return y
