"""Chapter 11's timed solutions: the yardstick of its speed exercises, as the chapter shows them."""

import torch
import triton
import triton.language as tl

from flashkat_lite import lab
from flashkat_lite.kernels.polynomial import reciprocal, to_float32

# Exercise 11.3


@triton.jit
def unpack_kernel(pair_ptr, out_ptr, pairs, BLOCK: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCK
    pair = first + tl.arange(0, BLOCK)
    bits = tl.load(pair_ptr + pair, mask=pair < pairs, other=0)
    low = (bits << 16).to(tl.float32, bitcast=True)
    high = (bits & -65536).to(tl.float32, bitcast=True)  # 0xffff0000
    at = 2 * first + tl.arange(0, 2 * BLOCK)
    tl.store(out_ptr + at, tl.interleave(low, high), mask=at < 2 * pairs)


def unpack_pairs_solution(x):
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    pairs = x.view(torch.int32)
    block = lab.pick(gpu=512, cpu=4096)
    grid = (triton.cdiv(pairs.numel(), block),)
    unpack_kernel[grid](pairs, out, pairs.numel(), BLOCK=block)
    return out


# Exercise 11.4


@triton.jit(do_not_specialize=["size"])
def silu_backward_kernel(dy_ptr, x_ptr, dx_ptr, size, VECTOR: tl.constexpr, BLOCK: tl.constexpr, UNROLL: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * (BLOCK * UNROLL)
    for k in tl.static_range(UNROLL):
        vector = first + k * BLOCK + tl.arange(0, BLOCK)
        at = vector[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]
        inside = (vector < size // VECTOR)[:, None]
        x = to_float32(tl.load(x_ptr + at, mask=inside, other=0.0))
        dy = to_float32(tl.load(dy_ptr + at, mask=inside, other=0.0))
        s = reciprocal(1.0 + tl.exp2(x * -1.4426950408889634))  # the sigmoid
        tl.store(dx_ptr + at, dy * (s + x * (s - s * s)), mask=inside)


def silu_backward_solution(dy, x):
    dx = torch.empty_like(x)
    widest = 16 // x.element_size()
    vector = next(v for v in (widest, 4, 2, 1) if x.numel() % v == 0)
    block, unroll = lab.pick(gpu=(128, 2), cpu=(1024, 2))
    grid = (triton.cdiv(x.numel(), vector * block * unroll),)
    silu_backward_kernel[grid](dy, x, dx, x.numel(), VECTOR=vector, BLOCK=block, UNROLL=unroll)
    return dx
