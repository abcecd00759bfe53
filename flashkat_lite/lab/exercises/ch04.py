"""Chapter 04: lanes, 32-bit offsets, an element-wise kernel for any strides, and one at the limit."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from flashkat_lite.testing import poisoned

from .. import setup as lab
from .common import Parts, exercise, numbers, timed
from .elementwise import SHAPES, read_once, same_elements, values
from .language import reciprocal, tl, triton


@exercise("04-1")
@numbers(
    "warp and lane of twelve elements, in four layouts",
    *(
        (element, per_lane, warps)
        for per_lane, warps in ((1, 4), (4, 4), (8, 2), (2, 1))
        for element in (0, 5, 31, 33, 100, 127, 128, 300, 511, 517, 1023, 2047)
    ),
)
def which_lane(element: int, per_lane: int, warps: int) -> Parts:
    """Check the warp and the lane that hold an element of a block, with `per_lane` elements a lane in a row."""
    size, thread = f"{element=}, {per_lane=}, {warps=}", element // per_lane
    yield f"warp for {size}", thread // 32 % warps, {
        "a lane owns per_lane neighbours before the next lane begins": element % (32 * warps) // 32,
        "after the last warp the pattern starts again at warp 0": thread // 32,
    }  # fmt: skip
    yield f"lane for {size}", thread % 32, {
        "a lane owns per_lane neighbours before the next lane begins": element % 32,
        "lanes are counted inside their warp, 0 to 31": thread % (32 * warps),
    }  # fmt: skip


@exercise("04-2")
@numbers(
    "six offsets, before and after the overflow",
    *((7, 128), (2**24 - 1, 128), (2**25 + 3, 128), (2**24, 128), (2**25 - 1, 128), (1_000_003, 8192)),
)
def offset_in_32_bits(program: int, block: int) -> Parts:
    """Check what program · block is when it is computed in signed 32-bit integers."""
    exact = program * block
    yield f"offset of program {program:,} at {block:,} elements a block", (exact + 2**31) % 2**32 - 2**31, {
        "the highest bit is the sign: from 2^31 on, the result is negative": exact % 2**32,
        "32 bits hold no such number": exact,
        "the largest number is kept, where the hardware wraps around": min(exact, 2**31 - 1),
        "32 bits wrap around after 2^32 numbers, not after 2^31": exact % 2**31,
    }  # fmt: skip


def _check_activation(
    f: Callable, cases: dict[str, Tensor], exact: Callable, steepest: float, others: dict[str, Callable]
) -> None:
    """Raise Wrong unless f is `exact`, a function in float64.

    steepest: a bound of |f'|, and so of what rounding the argument may do. others: {likely cause: the function that it
    leads to}.
    """
    for name, x in cases.items():
        with np.errstate(over="ignore"):  # exp of 200 is infinite, and rightly so; the interpreter would warn
            y = f(x)
        causes = {"nothing was computed: the result is x": x}
        causes |= {text: other(x.double()) for text, other in others.items()}
        if x.stride() != (x.shape[1], 1):
            flat = torch.as_strided(x, x.shape, (x.shape[1], 1))
            causes["x's strides were taken for those of a contiguous tensor"] = exact(flat.double())
            if x.stride(0) < x.stride(1):
                causes["empty_like(x) keeps x's strides, and the result was written as if it were contiguous"] = (
                    exact(x.double()).reshape(x.shape[::-1]).T
                )
        causes["bfloat16 was used inside: compute in float32"] = exact(x.bfloat16())
        # A dozen float32 roundings, of the argument and of the value.
        bound = 12 * 2.0**-24 * (1 + steepest) * x.double().abs() + 2.0**-30
        same_elements(f"the result for {name}", y, x, exact(x.double()), bound, causes)


@exercise("04-3")
@poisoned()
def silu_strided(f: Callable[[Tensor], Tensor]) -> str:
    """Check SiLU of [rows, columns] with any strides, each element read once where it lies."""
    cases = _contiguous() | {
        "a transposed tensor": values(30, 8, seed=6).T,
        "every second column": values(20, 64, seed=7)[:, ::2],
        "a square, transposed": values(40, 40, seed=5).T,
        "one row, expanded to 9": values(1, 50, seed=8).expand(9, 50),
    }
    _check_activation(f, cases, functional.silu, 1.1, {
        "that is the sigmoid alone: times x": torch.sigmoid,
        "the sign of the exponent: sigmoid(x) is 1 / (1 + exp(-x))": lambda x: x * torch.sigmoid(-x),
    })  # fmt: skip
    x = values(40, 40, torch.bfloat16, seed=5).T
    read_once(f, (x,), {"x": x}, "a transposed tensor of bfloat16")
    return "SiLU of odd shapes, bfloat16, and four sets of strides"


@exercise("04-4")
@poisoned()
def gelu_at_the_limit(f: Callable[[Tensor], Tensor]) -> str:
    """Check GELU by its tanh formula, contiguous x; on a GPU within 1.2 times our solution's time."""
    cases = _contiguous()
    _check_activation(f, cases, partial(functional.gelu, approximate="tanh"), 1.2, {
        "that is GELU by erf; its tanh formula was asked for": functional.gelu,
        "that is SiLU": functional.silu,
    })  # fmt: skip
    x = cases["129 rows of 33 bfloat16"]
    read_once(f, (x,), {"x": x}, "129 rows of 33 bfloat16")
    large = {"131,072 rows of 768 bfloat16": ((2**17, 768),)}
    timed(f, gelu_solution, large, dtype=torch.bfloat16)
    return "GELU of odd shapes in two dtypes" + ", each element read once and written once" * (not lab.GPU)


def _contiguous() -> dict[str, Tensor]:
    return {name: values(*shape, seed=seed) for seed, (name, shape) in enumerate(SHAPES.items(), 1)}


@triton.jit(do_not_specialize=["size"])
def gelu_kernel(x_ptr, y_ptr, size, VECTOR: tl.constexpr, BLOCK: tl.constexpr, UNROLL: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * (BLOCK * UNROLL)
    for k in tl.static_range(UNROLL):
        vector = first + k * BLOCK + tl.arange(0, BLOCK)
        offs = vector[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]
        mask = (vector < size // VECTOR)[:, None]  # whole vectors: 16 bytes are inside or outside together
        x = tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32)
        # 1 + tanh(z) = 2 / (1 + exp(-2z)), and exp2 is the instruction that the hardware has.
        y = x * reciprocal(1.0 + tl.exp2(x * (-2.3022082 - 0.10294324 * x * x)))
        tl.store(y_ptr + offs, y, mask=mask)


def gelu_solution(x):
    y = torch.empty_like(x)
    widest = 16 // x.element_size()
    vector = next(v for v in (widest, 4, 2, 1) if x.numel() % v == 0)
    block, unroll = lab.pick(gpu=(128, 2), cpu=(1024, 2))
    grid = (triton.cdiv(x.numel(), vector * block * unroll),)
    gelu_kernel[grid](x, y, x.numel(), VECTOR=vector, BLOCK=block, UNROLL=unroll)
    return y
