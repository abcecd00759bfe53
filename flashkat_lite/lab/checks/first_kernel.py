"""Checks of chapter 04: lanes, 32-bit offsets, an element-wise kernel for any strides, and one at the limit."""

import contextlib
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from .common import DEVICE, Wrong, poisoned, right, same_number, same_tensor, timed, watching

MARGIN = 8192  # elements of NaN on either side of an input


def which_lane(f: Callable[[int, int, int], tuple[int, int]]) -> None:
    """04-1: (warp, lane) that holds an element of a block, for (element, elements a lane in a row, warps)."""
    for per_lane, warps in ((1, 4), (4, 4), (8, 2), (2, 1)):
        for element in (0, 5, 31, 33, 100, 127, 128, 300, 511, 517, 1023, 2047):
            answer = f(element, per_lane, warps)
            if not isinstance(answer, tuple) or len(answer) != 2:
                raise Wrong(f"expected a tuple (warp, lane), got {answer!r}")
            place = f"element={element}, per_lane={per_lane}, warps={warps}"
            thread = element // per_lane
            plain, endless = element % (32 * warps), thread // 32
            same_number(
                f"warp for {place}", answer[0], thread // 32 % warps,
                {
                    "a lane owns per_lane neighbours before the next lane begins": plain // 32,
                    "after the last warp the pattern starts again at warp 0": endless,
                },
            )  # fmt: skip
            same_number(
                f"lane for {place}", answer[1], thread % 32,
                {
                    "a lane owns per_lane neighbours before the next lane begins": element % 32,
                    "lanes are counted inside their warp, 0 to 31": thread % (32 * warps),
                },
            )  # fmt: skip
    right("warp and lane of twelve elements, in four layouts")


def offset_in_32_bits(f: Callable[[int, int], int]) -> None:
    """04-2: what program · block is when it is computed in signed 32-bit integers."""
    for program, block in (
        (7, 128),
        (2**24 - 1, 128),
        (2**25 + 3, 128),
        (2**24, 128),
        (2**25 - 1, 128),
        (1_000_003, 8192),
    ):
        exact = program * block
        wrapped = (exact + 2**31) % 2**32 - 2**31
        same_number(
            f"offset of program {program:,} at {block:,} elements a block", f(program, block), wrapped,
            {
                "the highest bit is the sign: from 2^31 on, the result is negative": exact % 2**32,
                "32 bits hold no such number": exact,
                "the largest number is kept, where the hardware wraps around": min(exact, 2**31 - 1),
                "32 bits wrap around after 2^32 numbers, not after 2^31": exact % 2**31,
            },
        )  # fmt: skip
    right("six offsets, before and after the overflow")


class _Traffic:
    """Elements that kernels load from and store to given memory, in the interpreter."""

    def __init__(self) -> None:
        self.loads = self.stores = 0


@contextlib.contextmanager
def _traffic(x: Tensor) -> Iterator[_Traffic]:
    """Count the elements of x's memory that are loaded, and all that are stored, by the kernels that run inside."""
    count = _Traffic()
    first = x.data_ptr() - MARGIN * x.element_size()
    last = first + (2 * MARGIN + x.numel()) * x.element_size()

    def load(addresses, _):
        count.loads += int(((addresses >= first) & (addresses < last)).sum())

    def store(addresses, _):
        count.stores += addresses.size

    with watching(load=load, store=store):
        yield count


def _surrounded(rows: int, columns: int, dtype: torch.dtype, seed: int) -> Tensor:
    """[rows, columns] of numbers around 0, some of them large, with NaN before and after it in memory."""
    everything = torch.full((2 * MARGIN + rows * columns,), float("nan"), dtype=dtype)
    values = 3 * torch.randn(rows * columns, generator=torch.Generator().manual_seed(seed))
    values[:2] = torch.tensor([-200.0, 200.0])
    everything[MARGIN : MARGIN + rows * columns] = values.to(dtype)
    return everything.to(DEVICE)[MARGIN : MARGIN + rows * columns].view(rows, columns)


def _cases() -> dict[str, Tensor]:
    return {
        "3 rows of 7 float32": _surrounded(3, 7, torch.float32, 1),
        "37 rows of 56 float32": _surrounded(37, 56, torch.float32, 2),
        "1 row of 1000 bfloat16": _surrounded(1, 1000, torch.bfloat16, 3),
        "129 rows of 33 bfloat16": _surrounded(129, 33, torch.bfloat16, 4),
    }


def _activation(
    f: Callable[[Tensor], Tensor],
    cases: dict[str, Tensor],
    exact: Callable,
    steepest: float,
    others: dict[str, Callable],
) -> None:
    """f against `exact` in float64. `steepest` bounds |f'|, and so what rounding the argument may do.

    `others`: {likely cause: the function it leads to}.
    """
    for name, x in cases.items():
        with np.errstate(
            over="ignore"
        ):  # exp of a large number is infinite, and rightly so; the interpreter would warn
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
    """In the interpreter: every element is read once and written once, by a kernel."""
    if DEVICE != "cpu":
        return
    with _traffic(x) as count, np.errstate(over="ignore"):
        f(x)
    if not count.loads or not count.stores:
        raise Wrong(
            "no kernel read x where it lies: the exercise asks for one in Triton, without a copy of x before it"
        )
    causes = {"x is read twice": 2 * x.numel()}
    if count.loads % x.numel():
        causes["lanes outside of the tensor load too: a mask is missing"] = count.loads
    same_number(f"elements of x loaded for {name}", count.loads, x.numel(), causes)
    same_number(f"elements stored for {name}", count.stores, x.numel(), {"y is written twice": 2 * x.numel()})


@poisoned()
def silu_strided(f: Callable[[Tensor], Tensor]) -> None:
    """04-3: SiLU of [rows, columns] with any strides, each element read once where it lies."""
    square = _surrounded(40, 40, torch.float32, 5)
    cases = _cases() | {
        "a transposed tensor": _surrounded(30, 8, torch.float32, 6).T,
        "every second column": _surrounded(20, 64, torch.float32, 7)[:, ::2],
        "a square, transposed": square.T,
        "one row, expanded to 9": _surrounded(1, 50, torch.float32, 8).expand(9, 50),
    }
    _activation(f, cases, functional.silu, 1.1, {
        "that is the sigmoid alone: times x": torch.sigmoid,
        "the sign of the exponent: sigmoid(x) is 1 / (1 + exp(-x))": lambda x: x * torch.sigmoid(-x),
    })  # fmt: skip
    _once(f, cases["a square, transposed"], "a transposed tensor")
    right("SiLU of odd shapes, bfloat16, and four sets of strides")


def _gelu(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


@poisoned()
def gelu_at_the_limit(f: Callable[[Tensor], Tensor]) -> None:
    """04-4: GELU by its tanh formula, contiguous x; on a GPU within 1.2 times our solution's time."""
    cases = _cases()
    _activation(f, cases, _gelu, 1.2, {
        "that is GELU by erf; its tanh formula was asked for": functional.gelu,
        "that is SiLU": functional.silu,
    })  # fmt: skip
    _once(f, cases["37 rows of 56 float32"], "37 rows of 56 float32")
    if DEVICE == "cpu":
        print("No GPU here: correctness and traffic were checked, speed was not.")
        return right("GELU, each element read once and written once")
    from flashkat_lite.lab.solutions_first_kernel import gelu_solution as ours

    x = torch.randn(2**17, 768, device=DEVICE, dtype=torch.bfloat16)
    timed(f, ours, (x,), f"{2**17:,} rows of 768 bfloat16", nbytes=2 * x.nbytes, copied=x)
    right("GELU of odd shapes in two dtypes")
