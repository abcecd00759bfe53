"""Checks of chapter 10: grids of whole rows, stages, and sums that repeat, in one launch or with a second stage."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from .common import DEVICE, Wrong, poisoned, right, same_bits, same_number, same_tensor, timed
from .kernels import counting
from .numerics import programs

MARGIN = 8192  # elements of NaN on either side of an input


def whole_grid(f: Callable[[int, int, int], tuple[int, int]]) -> None:
    """10-1: (programs, rows of a pass) of the largest grid of at most `most` programs that covers whole rows."""
    for per_row, block, most in [(192, 128, 528), (48, 128, 530), (768, 128, 395), (175, 128, 1000), (9, 128, 4)]:
        answer = f(per_row, block, most)
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise Wrong(f"expected a tuple (programs, rows of a pass), got {answer!r}")
        unit = per_row // math.gcd(per_row, block)
        size = f"{per_row} vectors to a row, programs of {block} lanes, at most {most}"
        expected = max(1, most // unit) * unit
        same_number(
            f"programs for {size}", answer[0], expected,
            {"that many programs do not end where a row ends": most,
             "never fewer than the least that covers whole rows": most // unit * unit,
             "the least was asked for the largest": unit,
             "a row's vectors and a program's lanes may have a common divisor": max(1, most // per_row) * per_row},
        )  # fmt: skip
        rows = expected * block // per_row
        same_number(
            f"rows of a pass for {size}", answer[1], rows,
            {"a pass covers programs · block vectors, not programs": expected // per_row,
             "rows, not vectors": expected * block},
        )  # fmt: skip
    right("five grids")


def stages_needed(f: Callable[[float, float, int, int, int, int], int]) -> None:
    """10-2: the fewest stages (at least 2) that keep gb_s · ns bytes in flight."""
    for case in [(2880.0, 700.0, 132, 4, 128, 32), (2880.0, 700.0, 132, 1, 128, 32), (900.0, 500.0, 80, 8, 256, 16),
                 (2880.0, 700.0, 132, 2, 256, 16), (4000.0, 1000.0, 100, 1, 1250, 32)]:  # fmt: skip
        gb_s, ns, many, count, lanes, each = case
        one = many * count * lanes * each
        expected = max(2, 1 + math.ceil(gb_s * ns / one))
        same_number(
            f"stages for (gb_s, ns, multiprocessors, programs, lanes, bytes_a_lane) = {case}", f(*case), expected,
            {"with S stages, S - 1 are under way, and the quotient is rounded up": math.ceil(gb_s * ns / one),
             "that is one stage too many where the bytes fit exactly": 2 + int(gb_s * ns / one),
             "at least 2": 1 + math.ceil(gb_s * ns / one),
             "programs are counted on each multiprocessor": 1 + math.ceil(gb_s * ns / (count * lanes * each))},
        )  # fmt: skip
    right("five kernels")


def _surrounded(*shape: int, seed: int) -> Tensor:
    """Random normal values with NaN before and after them in memory: what a mask forgets becomes visible."""
    size = math.prod(shape)
    everything = torch.full((2 * MARGIN + size,), float("nan"))
    everything[MARGIN : MARGIN + size] = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    return everything.to(DEVICE)[MARGIN : MARGIN + size].view(shape)


@poisoned()
def scale_backward(f: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
    """10-3: (dx, dscale) of y = scale · x by columns, without atomic additions, the same bits in any order."""
    for seed, (rows, columns) in enumerate([(37, 96), (1, 300), (1000, 7), (5000, 12)]):
        dy, x = _surrounded(rows, columns, seed=10 + seed), _surrounded(rows, columns, seed=20 + seed)
        scale = _surrounded(columns, seed=30 + seed)
        size = f"{rows} rows of {columns}"
        first = _pair(f(dy, x, scale))
        exact, terms = dy.double() * scale.double(), dy.double() * x.double()
        same_tensor(
            f"dx of {size}", first[0], exact, 2.0**-23 * exact.abs() + 2.0**-22,
            {"x was scaled, not dy": x.double() * scale.double(), "dy was returned as it came": dy.double()},
        )  # fmt: skip
        bound = 4 * rows**0.5 * 2.0**-24 * terms.abs().sum(0) + 1e-30
        sums = terms.sum(0)
        same_tensor(
            f"dscale of {size}", first[1], sums, bound,
            {"the sums of dy, without x": dy.double().sum(0),
             "the sums of dy · x · scale: the scale does not belong in its own gradient": sums * scale.double(),
             "each term was added twice: is memory from `empty` written before it is read?": 2 * sums,
             "every column holds the total of all of them": sums.sum().expand_as(sums)},
        )  # fmt: skip
        if first[1].dtype != torch.float32:
            raise Wrong(f"dscale: expected dtype torch.float32, got {first[1].dtype}")
        same_bits(f"dscale of {size}", first[1], _pair(f(dy, x, scale))[1], "a second call")
        if DEVICE == "cpu":
            with programs(backwards=True):
                again = _pair(f(dy, x, scale))
            same_bits(f"dscale of {size}", first[1], again[1], "programs run in reverse order")
    if DEVICE == "cpu":
        with counting() as count, programs() as seen:
            f(dy, x, scale)
        _kernel_ran(seen)
        if count.adds:
            raise Wrong(f"expected no atomic additions, got {count.adds:,}: store partial sums, and add those in order")
        print("No GPU here: correctness was checked, speed was not.")
    else:
        from flashkat_lite.lab.solutions_limit import scale_backward_solution as ours

        tensors = *(torch.randn(2**18, 768, device=DEVICE) for _ in range(2)), torch.randn(768, device=DEVICE)
        timed(f, ours, tensors, "2¹⁸ rows of 768", nbytes=3 * tensors[0].nbytes)
    right("four shapes, the same bits each time")


def _pair(answer: Any) -> tuple[Tensor, Tensor]:
    if not isinstance(answer, tuple) or len(answer) != 2 or not all(isinstance(t, Tensor) for t in answer):
        raise Wrong(f"expected a tuple (dx, dscale) of tensors, got {type(answer).__name__}")
    return answer


@poisoned()
def sum_in_one_launch(f: Callable[[Tensor], Tensor]) -> None:
    """10-4: the sum of a float32 vector in one launch of several programs, finished by the last of them."""
    sizes = (1, 1000, 65_537, 300_003)
    for seed, size in enumerate(sizes):
        x, other = _surrounded(size, seed=40 + seed), _surrounded(size, seed=50 + seed)
        first = f(x)
        _sum(f"the sum of {size:,} elements", first, x)
        again = f(x)
        _sum(
            f"the sum of {size:,} elements, a second call", again, x,
            "the counter is not zero when the second call begins, so nobody finds that it is the last",
        )  # fmt: skip
        same_bits(f"the sum of {size:,} elements", first, again, "a second call")
        if DEVICE == "cpu":
            with programs(backwards=True):
                backwards = f(other)
            _sum(
                f"the sum of {size:,} elements, programs run in reverse order", backwards, other,
                "the last to finish need not be the program with the highest number: ask the counter",
            )  # fmt: skip
            same_bits(f"the sum of {size:,} elements", backwards, f(other), "programs run in another order")
    if DEVICE == "cpu":
        with counting() as count, programs() as seen, _orders() as orders:
            f(_surrounded(100_000, seed=60))
        _kernel_ran(seen)
        launches = sum(place == (0, 0, 0) for place in seen)
        if launches != 1:
            raise Wrong(f"expected one launch, got {launches}")
        if len(seen) < 2:
            raise Wrong("expected more than one program for 100,000 elements, got 1")
        if count.adds != len(seen) or len(count.addresses) != 1:
            raise Wrong(
                f"expected one atomic addition a program, {len(seen)}, on one address; got {count.adds:,} on "
                f"{len(count.addresses):,}. Likely cause: sums are added atomically; only the counter should be"
            )
        if orders != {("ACQUIRE_RELEASE", "GPU")}:
            got = ", ".join(f"sem={sem.lower()} and scope={scope.lower()}" for sem, scope in sorted(orders))
            raise Wrong(
                f"the counter: expected sem=acquire_release and scope=gpu, got {got}. Likely cause: a missing fence: "
                "the last program may find the others counted, and their sums not yet stored"
            )
        print("No GPU here: correctness was checked, speed was not.")
    else:
        from flashkat_lite.lab.solutions_limit import sum_in_one_launch_solution as ours

        x = torch.randn(2**26, device=DEVICE)
        timed(f, ours, (x,), "2²⁶ elements", nbytes=x.nbytes)
    right("four lengths in one launch, the same bits each time")


@contextlib.contextmanager
def _orders() -> Iterator[set[tuple[str, str]]]:
    """The memory orders and scopes of atomic operations inside; they change nothing in the interpreter, which tells."""
    from triton.runtime.interpreter import interpreter_builder

    seen, original = set(), interpreter_builder.create_atomic_rmw

    def operation(kind: Any, pointers: Any, value: Any, mask: Any, sem: Any, scope: Any) -> Any:
        seen.add((sem.name, scope.name))
        return original(kind, pointers, value, mask, sem, scope)

    with mock.patch.object(interpreter_builder, "create_atomic_rmw", operation):
        yield seen


def _sum(what: str, got: Any, x: Tensor, cause: str = "") -> None:
    if isinstance(got, Tensor) and got.dtype != torch.float32:
        raise Wrong(f"{what}: expected dtype torch.float32, got {got.dtype}")
    exact = x.double().sum()
    bound = 12 * 2.0**-24 * x.double().square().sum().sqrt() + 2.0**-24 * exact.abs()
    try:
        same_tensor(what, got, exact, bound, {"each element was added twice": 2 * exact})
    except Wrong as wrong:
        if cause and isinstance(got, Tensor) and got.shape == exact.shape:
            raise Wrong(f"{str(wrong).partition(' Likely cause')[0]} Likely cause: {cause}") from None
        raise


def _kernel_ran(seen: list) -> None:
    if not seen:
        raise Wrong("expected a Triton kernel, got none: no program ran")
