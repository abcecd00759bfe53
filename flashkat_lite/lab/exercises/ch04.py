"""Chapter 04: lanes, 32-bit offsets, an element-wise kernel for any strides, and one at the limit."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from flashkat_lite.testing import MARGIN, guarded, poisoned

from .. import setup as lab
from ..counting import accesses
from .common import Wrong, exercise, expect_tuple, same_number, same_tensor, timed
from .language import reciprocal, tl, triton


@exercise("04-1")
def which_lane(f: Callable[[int, int, int], tuple[int, int]]) -> str:
    """Check (warp, lane) that holds an element of a block, for (element, elements a lane in a row, warps)."""
    for per_lane, warps in ((1, 4), (4, 4), (8, 2), (2, 1)):
        for element in (0, 5, 31, 33, 100, 127, 128, 300, 511, 517, 1023, 2047):
            warp, lane = expect_tuple(f(element, per_lane, warps), "warp", "lane")
            place = f"element={element}, per_lane={per_lane}, warps={warps}"
            thread = element // per_lane
            plain, endless = element % (32 * warps), thread // 32
            same_number(
                f"warp for {place}", warp, thread // 32 % warps,
                {"a lane owns per_lane neighbours before the next lane begins": plain // 32,
                 "after the last warp the pattern starts again at warp 0": endless},
            )  # fmt: skip
            same_number(
                f"lane for {place}", lane, thread % 32,
                {"a lane owns per_lane neighbours before the next lane begins": element % 32,
                 "lanes are counted inside their warp, 0 to 31": thread % (32 * warps)},
            )  # fmt: skip
    return "warp and lane of twelve elements, in four layouts"


@exercise("04-2")
def offset_in_32_bits(f: Callable[[int, int], int]) -> str:
    """Check what program · block is when it is computed in signed 32-bit integers."""
    for program, block in [(7, 128), (2**24 - 1, 128), (2**25 + 3, 128), (2**24, 128), (2**25 - 1, 128),
                           (1_000_003, 8192)]:  # fmt: skip
        exact = program * block
        wrapped = (exact + 2**31) % 2**32 - 2**31
        same_number(
            f"offset of program {program:,} at {block:,} elements a block", f(program, block), wrapped,
            {"the highest bit is the sign: from 2^31 on, the result is negative": exact % 2**32,
             "32 bits hold no such number": exact,
             "the largest number is kept, where the hardware wraps around": min(exact, 2**31 - 1),
             "32 bits wrap around after 2^32 numbers, not after 2^31": exact % 2**31},
        )  # fmt: skip
    return "six offsets, before and after the overflow"


def _values(rows: int, columns: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return [rows, columns] of numbers around 0, two of them large, with NaN before and after them in memory."""
    values = 3 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    values.view(-1)[:2] = torch.tensor([-200.0, 200.0])
    return guarded(values.to(dtype))


def _cases() -> dict[str, Tensor]:
    return {
        "3 rows of 7 float32": _values(3, 7, 1),
        "37 rows of 56 float32": _values(37, 56, 2),
        "1 row of 1000 bfloat16": _values(1, 1000, 3, torch.bfloat16),
        "129 rows of 33 bfloat16": _values(129, 33, 4, torch.bfloat16),
    }


def _activation(
    f: Callable, cases: dict[str, Tensor], exact: Callable, steepest: float, others: dict[str, Callable]
) -> None:
    """Raise Wrong unless f is `exact`, a function in float64.

    steepest: a bound of |f'|, and so of what rounding the argument may do. others: {likely cause: the function that it
    leads to}.
    """
    for name, x in cases.items():
        with np.errstate(over="ignore"):  # exp of 200 is infinite, and rightly so; the interpreter would warn
            y = f(x)
        expected = exact(x.double())
        what = f"the result for {name}"
        if isinstance(y, Tensor) and y.dtype != x.dtype:
            raise Wrong(f"{what}: expected {x.dtype}, as x; got {y.dtype}")
        # A dozen float32 roundings, of the argument and of the value; then one of the stored number, which Triton's
        # interpreter truncates where a GPU rounds.
        stored = 2.0**-7 if x.dtype == torch.bfloat16 else 0.0
        tolerance = 12 * 2.0**-24 * (1 + steepest) * x.double().abs() + stored * expected.abs() + 2.0**-30
        as_if_contiguous = torch.as_strided(x, x.shape, (x.shape[1], 1)) if x.stride() != (x.shape[1], 1) else None
        causes = {"nothing was computed: the result is x": x}
        causes |= {text: other(x.double()) for text, other in others.items()}
        if as_if_contiguous is not None and not as_if_contiguous.isnan().any():
            causes["x's strides were taken for those of a contiguous tensor"] = exact(as_if_contiguous.double())
        causes["bfloat16 was used inside: compute in float32"] = exact(x.bfloat16()).double()
        same_tensor(what, y, expected, tolerance, causes)


def _once(f: Callable[[Tensor], Tensor], x: Tensor, name: str) -> None:
    """In the interpreter, raise Wrong unless a kernel reads and writes every element once."""
    if lab.GPU:
        return
    with accesses() as seen, np.errstate(over="ignore"):
        f(x)
    loads, stores = seen.loads.of(x, MARGIN).elements, seen.stores.elements
    if not loads or not stores:
        raise Wrong(
            "no kernel read x where it lies: the exercise asks for one in Triton, without a copy of x before it"
        )
    causes = {"x is read twice": 2 * x.numel()}
    if loads % x.numel():
        causes["positions outside of the tensor load too: a mask is missing"] = loads
    same_number(f"elements of x loaded for {name}", loads, x.numel(), causes)
    same_number(f"elements stored for {name}", stores, x.numel(), {"y is written twice": 2 * x.numel()})


@exercise("04-3")
@poisoned()
def silu_strided(f: Callable[[Tensor], Tensor]) -> str:
    """Check SiLU of [rows, columns] with any strides, each element read once where it lies."""
    cases = _cases() | {
        "a transposed tensor": _values(30, 8, 6).T,
        "every second column": _values(20, 64, 7)[:, ::2],
        "a square, transposed": _values(40, 40, 5).T,
        "one row, expanded to 9": _values(1, 50, 8).expand(9, 50),
    }
    _activation(f, cases, functional.silu, 1.1, {
        "that is the sigmoid alone: times x": torch.sigmoid,
        "the sign of the exponent: sigmoid(x) is 1 / (1 + exp(-x))": lambda x: x * torch.sigmoid(-x),
    })  # fmt: skip
    _once(f, cases["a square, transposed"], "a transposed tensor")
    return "SiLU of odd shapes, bfloat16, and four sets of strides"


@exercise("04-4")
@poisoned()
def gelu_at_the_limit(f: Callable[[Tensor], Tensor]) -> str:
    """Check GELU by its tanh formula, contiguous x; on a GPU within 1.2 times our solution's time."""
    cases = _cases()
    _activation(f, cases, partial(functional.gelu, approximate="tanh"), 1.2, {
        "that is GELU by erf; its tanh formula was asked for": functional.gelu,
        "that is SiLU": functional.silu,
    })  # fmt: skip
    _once(f, cases["37 rows of 56 float32"], "37 rows of 56 float32")
    large = {"131,072 rows of 768 bfloat16": ((2**17, 768),)}
    timed(f, gelu_solution, large, dtype=torch.bfloat16, moves=2, copied=True)
    return "GELU of odd shapes in two dtypes" + ", each element read once and written once" * (not lab.GPU)


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
