"""Chapter 10: grids of whole rows, stages, and sums that repeat, in one launch or with a second stage."""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from unittest import mock

import torch
from torch import Tensor

from flashkat_lite import hardware
from flashkat_lite.testing import poisoned

from .. import setup as lab
from ..counting import Accesses, accesses
from .common import TWICE, Parts, Wrong, exercise, expect_tuple, normal, numbers, same_tensor, timed
from .kernels import launches, no_adds, ran, reads_all, reads_once, repeats, same_bits, stored, watch
from .language import programs_per_whole_rows, tl, triton, vector_width
from .sums import rounding, same_total


@exercise("10-1")
@numbers("five grids", (192, 128, 528), (48, 128, 530), (768, 128, 395), (175, 128, 1000), (9, 128, 4))
def whole_grid(per_row: int, block: int, most: int) -> Parts:
    """Check programs, and rows of a pass, of the largest grid of at most `most` programs that covers whole rows."""
    size = f"{per_row} vectors to a row, programs of {block} positions, at most {most}"
    unit = per_row // math.gcd(per_row, block)
    programs = max(1, most // unit) * unit
    yield f"programs for {size}", programs, {
        "that many programs do not end where a row ends": most,
        "never fewer than the least that covers whole rows": most // unit * unit,
        "the least was asked for the largest": unit,
        "a row's vectors and a program's positions may have a common divisor": max(1, most // per_row) * per_row,
    }  # fmt: skip
    yield f"rows of a pass for {size}", programs * block // per_row, {
        "a pass covers programs · block vectors, not programs": programs // per_row,
        "rows, not vectors": programs * block,
    }  # fmt: skip


@exercise("10-2")
@numbers(
    "five kernels",
    (2880.0, 700.0, 132, 4, 128, 32),
    (2880.0, 700.0, 132, 1, 128, 32),
    (900.0, 500.0, 80, 8, 256, 16),
    (2880.0, 700.0, 132, 2, 256, 16),
    (4000.0, 1000.0, 100, 1, 1250, 32),
)
def stages_needed(
    gb_s: float, ns: float, multiprocessors: int, programs: int, positions: int, bytes_each: int
) -> Parts:
    """Check the fewest stages (at least 2) that keep gb_s · ns bytes in flight."""
    size = f"{gb_s=:g}, {ns=:g}, {multiprocessors=}, {programs=}, {positions=}, {bytes_each=}"
    of_one = programs * positions * bytes_each
    stages = gb_s * ns / (multiprocessors * of_one)  # under way
    yield f"stages for {size}", max(2, 1 + math.ceil(stages)), {
        "with S stages, S - 1 are under way, and the quotient is rounded up": math.ceil(stages),
        "that is one stage too many where the bytes fit exactly": 2 + int(stages),
        "at least 2": 1 + math.ceil(stages),
        "programs are counted on each multiprocessor": 1 + math.ceil(gb_s * ns / of_one),
    }  # fmt: skip


@exercise("10-3")
@poisoned()
def scale_backward(f: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]) -> str:
    """Check (dx, dscale) of y = scale · x by columns, without atomic additions, the same bits in any order."""
    for seed, (rows, columns) in enumerate([(37, 96), (1, 300), (1000, 7), (5000, 12)]):
        dy, x = normal(rows, columns, seed=10 + seed), normal(rows, columns, seed=20 + seed)
        scale = normal(columns, seed=30 + seed)
        size = f"{rows} rows of {columns}"
        dx, dscale = expect_tuple(f(dy, x, scale), "dx", "dscale")
        exact, terms = dy.double() * scale.double(), dy.double() * x.double()
        same_tensor(f"dx of {size}", dx, exact, 2.0**-23 * exact.abs() + 2.0**-22, {
            "x was scaled, not dy": x.double() * scale.double(), "dy was returned as it came": dy,
        })  # fmt: skip
        sums = terms.sum(0)
        same_tensor(f"dscale of {size}", dscale, sums, rounding(rows, terms.abs().sum(0)), {
            "the sums of dy, without x": dy.double().sum(0),
            "the sums of dy · x · scale: the scale does not belong in its own gradient": sums * scale.double(),
            TWICE: 2 * sums,
            "every column holds the total of all of them": sums.sum().expand_as(sums),
        }, torch.float32)  # fmt: skip
        repeats(f"dscale of {size}", dscale, lambda *tensors: f(*tensors)[1], dy, x, scale)
    dy, x, scale = normal(60, 64, seed=40), normal(60, 64, seed=41), normal(64, seed=42)
    seen = watch(f, dy, x, scale)
    no_adds(seen)
    reads_once(seen, {"dy": dy, "x": x}, "60 rows of 64", "another pass, or another kernel, reads them for the sums")
    stored(seen, dx=seen and seen.result[0])
    timed(f, scale_backward_solution, {"2¹⁷ rows of 768": ((2**17, 768), (2**17, 768), (768,))})
    return "four shapes, the same bits each time"


@triton.jit(do_not_specialize=["vectors", "step", "vectors_per_row"])
def scale_backward_kernel(
    dy_ptr, x_ptr, scale_ptr, dx_ptr, partial_ptr, vectors, step, vectors_per_row,
    VECTOR: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    position = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    vec = tl.arange(0, VECTOR)[None, :]
    scale = tl.load(scale_ptr + (position % vectors_per_row)[:, None] * VECTOR + vec)
    sums = tl.zeros([BLOCK, VECTOR], tl.float32)  # a position's own columns: nobody else adds to these
    for first in tl.range(0, vectors, step, num_stages=STAGES):
        vector = tl.cast(first, tl.int64) + position
        offs = vector[:, None] * VECTOR + vec
        mask = (vector < vectors)[:, None]
        dy = tl.load(dy_ptr + offs, mask=mask, other=0.0)
        x = tl.load(x_ptr + offs, mask=mask, other=0.0)
        tl.store(dx_ptr + offs, dy * scale, mask=mask)
        sums += dy * x
    tl.store(partial_ptr + position[:, None] * VECTOR + vec, sums)


def scale_backward_solution(dy, x, scale):
    columns = x.shape[1]
    vector = vector_width(4, columns)
    multiprocessors = hardware.device().multiprocessors if lab.GPU else 1
    block = lab.pick(gpu=128, cpu=1024)
    period = programs_per_whole_rows(columns // vector, block)  # programs to whole rows
    programs = max(1, 4 * multiprocessors // period) * period
    step = programs * block
    dx = torch.empty_like(x)
    partial = x.new_empty(step * vector // columns, columns)  # positions over one another share columns
    scale_backward_kernel[(programs,)](
        dy, x, scale, dx, partial, x.numel() // vector, step, columns // vector,
        VECTOR=vector, BLOCK=block, STAGES=3, num_warps=4,
    )  # fmt: skip
    return dx, partial.sum(0)


@exercise("10-4")
@poisoned()
def sum_in_one_launch(f: Callable[[Tensor], Tensor]) -> str:
    """Check the sum of a float32 vector in one launch of several programs, finished by the last of them."""
    for seed, size in enumerate((1, 1000, 65_537, 300_003)):
        x, other = normal(size, seed=40 + seed), normal(size, seed=50 + seed)
        what, first = f"the sum of {size:,} elements", f(x)
        same_total(what, first, x)
        again = f(x)
        same_total(f"{what}, a second call", again, x, {
            "the counter is not zero when the second call begins, so nobody finds that it is the last": None,
        })  # fmt: skip
        same_bits(what, first, again, "a second call")
        if not lab.GPU:
            with accesses(backwards=True):
                backwards = f(other)
            same_total(f"{what}, programs run in reverse order", backwards, other, {
                "the last to finish need not be the program with the highest number: ask the counter": None,
            })  # fmt: skip
            same_bits(what, backwards, f(other), "programs run in another order")
    with _orders() as counter:
        seen = watch(f, normal(100_000, seed=60))
    if seen:
        _check_counter(seen, counter)
    timed(f, sum_in_one_launch_solution, {"2²⁶ elements": ((2**26,),)})
    alone = "; one number a program needs no barrier, and none was looked for"
    return "four lengths in one launch, the same bits each time" + alone * (not lab.GPU and not counter.blocks)


def _check_counter(seen: Accesses, counter: "_Counter") -> None:
    """Raise Wrong unless programs of one launch each add once, to one counter, in an order that shows them the sums."""
    programs, adds, addresses = len(seen.programs), seen.adds.elements, len(seen.adds.addresses)
    ran(seen)
    if launches(seen) != 1:
        raise Wrong(f"expected one launch, got {launches(seen)}")
    reads_all(seen, 100_000, "100,000 elements")
    if programs < 2:
        raise Wrong("expected more than one program for 100,000 elements, got 1")
    if adds != programs or addresses != 1:
        raise Wrong(
            f"expected one atomic addition a program, {programs}, on one address; got {adds:,} on {addresses:,}. "
            "Likely cause: sums are added atomically; only the counter should be"
        )
    if not counter.orders <= {("ACQUIRE_RELEASE", "GPU"), ("ACQUIRE_RELEASE", "SYSTEM")}:
        got = ", ".join(f"sem={sem.lower()} and scope={scope.lower()}" for sem, scope in sorted(counter.orders))
        raise Wrong(
            f"the counter: expected sem=acquire_release and scope=gpu, got {got}. Likely cause: a missing fence: "
            "the last program may find the others counted, and their sums not yet stored"
        )
    if counter.unguarded:
        raise Wrong(
            "the counter: expected tl.debug_barrier() between a program's stores and its addition, got none. Likely "
            "cause: one thread counts for the whole program, perhaps before the other warps have stored"
        )


@dataclass
class _Counter:
    """Memory orders and scopes of atomic operations, and whether one followed a block's stores with no barrier."""

    orders: set[tuple[str, str]] = field(default_factory=set)
    blocks: bool = False  # stores of more than one number before an operation
    pending: bool = False
    unguarded: bool = False


@contextlib.contextmanager
def _orders() -> Iterator[_Counter]:
    """Tell the orders of atomic operations inside, and barriers; in the interpreter they change nothing."""
    from triton.runtime.interpreter import interpreter_builder as builder

    seen, atomic, store, barrier = _Counter(), *(
        getattr(builder, name) for name in ("create_atomic_rmw", "create_masked_store", "create_barrier")
    )  # fmt: skip

    def operation(*arguments):
        seen.orders.add(tuple(setting.name for setting in arguments[-2:]))
        seen.unguarded |= seen.pending
        seen.blocks |= seen.pending
        return atomic(*arguments)

    def stored(pointers, *rest, **named):
        seen.pending = pointers.data.size > 1
        return store(pointers, *rest, **named)

    def waited():
        seen.pending = False
        return barrier()

    changed = dict(create_atomic_rmw=operation, create_masked_store=stored, create_barrier=waited)
    with mock.patch.multiple(builder, **changed):
        yield seen


@triton.jit
def last_sums_kernel(x_ptr, partial_ptr, done_ptr, out_ptr, count, BLOCK: tl.constexpr, PARTS: tl.constexpr):
    programs = tl.num_programs(0)
    sums = tl.zeros([BLOCK], tl.float32)
    for first in range(tl.program_id(0) * BLOCK, count, programs * BLOCK):
        offs = first + tl.arange(0, BLOCK)
        sums += tl.load(x_ptr + offs, mask=offs < count, other=0.0)
    tl.store(partial_ptr + tl.program_id(0), tl.sum(sums))
    tl.debug_barrier()
    before = tl.atomic_add(done_ptr, 1, sem="acq_rel")
    if before == programs - 1:  # the others have stored, and said so
        part = tl.arange(0, PARTS)
        tl.store(out_ptr, tl.sum(tl.load(partial_ptr + part, mask=part < programs, other=0.0)))


def sum_in_one_launch_solution(x, block=2048):
    parts = max(1, min(lab.pick(gpu=1056, cpu=4), triton.cdiv(len(x), block)))
    partial, out = x.new_empty(parts), x.new_empty(())
    done = torch.zeros(1, dtype=torch.int32, device=x.device)
    last_sums_kernel[(parts,)](
        x, partial, done, out, len(x), BLOCK=block, PARTS=triton.next_power_of_2(parts), num_warps=8
    )
    return out
