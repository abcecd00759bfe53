"""Checks of chapters 07 and 09: counts, and column sums by Triton kernels."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flashkat_lite.reference import gradient_terms, rational_gradients

from .common import DEVICE, RACE, Wrong, poisoned, right, same_number, same_tensor, timed, watching


@dataclass
class Count:
    """Atomic adds of a kernel in the interpreter: elements added, and the distinct addresses they went to."""

    adds: int = 0
    addresses: set = field(default_factory=set)


@contextlib.contextmanager
def counting() -> Iterator[Count]:
    """Count the atomic adds of the kernels that run inside; in the interpreter only (a GPU does not tell)."""
    count = Count()

    def add(addresses, _):
        count.adds += addresses.size
        count.addresses.update(addresses.tolist())

    with watching(add=add):
        yield count


def _surrounded(rows: int, columns: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Random normal [rows, columns] with NaN before and after it in memory: what a mask forgets becomes visible."""
    margin = 8192
    everything = torch.full((2 * margin + rows * columns,), float("nan"), dtype=dtype)
    values = torch.randn(rows * columns, generator=torch.Generator().manual_seed(seed))
    everything[margin : margin + rows * columns] = values.to(dtype)
    return everything.to(DEVICE)[margin : margin + rows * columns].view(rows, columns)


def _sums(what: str, got: Tensor, dy: Tensor) -> None:
    """Column sums of dy, to the rounding of a float32 sum in any order."""
    if not isinstance(got, Tensor):
        raise Wrong(f"{what}: expected a tensor, got {type(got).__name__}")
    if got.dtype != torch.float32:
        raise Wrong(f"{what}: sums must be kept and returned in float32, whatever the input is; got {got.dtype}")
    exact, size = dy.double().sum(0), dy.double().abs().sum(0)
    # `rows` additions that each round at random, with a margin of four; a sum kept in 16 bits is far outside.
    tolerance = 4 * len(dy) ** 0.5 * 2.0**-24 * size + 1e-30
    plain = dy.as_strided(dy.shape, (dy.shape[1], 1))
    causes = {
        "every column holds the total of all of them: index the result by column": exact.sum().expand_as(exact),
        "each element was added twice: is the buffer zeroed at each call?": 2 * exact,
        "strides were taken for those of a contiguous tensor": plain.double().sum(0),
    }
    try:
        same_tensor(what, got, exact, tolerance, causes)
    except Wrong as wrong:
        close = got.shape == exact.shape and bool(((got.double() - exact).abs() <= 2.0**-7 * size).all())
        if dy.itemsize == 2 and close and "Likely cause" not in str(wrong):
            raise Wrong(f"{wrong} Likely cause: right but for rounding: the sums are kept in 16 bits.") from None
        raise


def _column_sum_cases(f: Callable[[Tensor], Tensor]) -> None:
    cases = {
        "37 rows of 8 float32": _surrounded(37, 8, torch.float32, 1),
        "1000 rows of 7 float32": _surrounded(1000, 7, torch.float32, 2),
        "1 row of 300 float32": _surrounded(1, 300, torch.float32, 3),
        "5000 rows of 3 bfloat16": _surrounded(5000, 3, torch.bfloat16, 4),
        "a transposed tensor": _surrounded(8, 30, torch.float32, 5).T,
    }
    for name, dy in cases.items():
        _sums(f"column sums of {name}", f(dy), dy)
    again = f(cases["37 rows of 8 float32"])
    _sums("a second call on the first input", again, cases["37 rows of 8 float32"])


def _speed(f: Callable[[Tensor], Tensor], solution: str, rows: int, columns: int) -> None:
    """On a GPU, time f against our solution of the same sums."""
    if not torch.cuda.is_available():
        print("No GPU here: correctness and counts were checked, speed was not.")
        return
    from flashkat_lite.lab import solutions

    ours, dy = getattr(solutions, solution), torch.randn(rows, columns, device=DEVICE)
    timed(f, ours, (dy,), f"{rows:,} rows of {columns}", nbytes=dy.nbytes)


# Chapter 07


def count_work(f: Callable[[int, int, int, int, int], tuple[int, int, int]]) -> None:
    """07-1: (bytes, atomic adds, addresses) of the atomic backward for (rows, columns, groups, m, n), float32."""
    for rows, columns, groups, m, n in [(201728, 768, 8, 5, 4), (37, 56, 8, 3, 2), (1000, 24, 1, 6, 5)]:
        answer = f(rows, columns, groups, m, n)
        if not isinstance(answer, tuple) or len(answer) != 3:
            raise Wrong(f"expected a tuple (bytes, atomic adds, addresses), got {answer!r}")
        size = f"rows={rows}, columns={columns}, groups={groups}, m={m}, n={n}"
        elements, coefficients = rows * columns, m + 1 + n
        same_number(
            f"bytes for {size}", answer[0], 12 * elements,
            {
                "dy, x and dx are three tensors of four-byte elements": 8 * elements,
                "elements were counted, not bytes": 3 * elements,
            },
        )  # fmt: skip
        same_number(
            f"atomic adds for {size}", answer[1], coefficients * elements,
            {
                "a polynomial of degree m has m+1 coefficients": (m + n) * elements,
                "each element adds to its own group alone": coefficients * elements * groups,
            },
        )  # fmt: skip
        same_number(
            f"addresses for {size}", answer[2], coefficients * groups,
            {"each group has a table row of its own": coefficients, "m+1 and n": (m + n) * groups},
        )  # fmt: skip
    right("bytes, atomic adds and addresses, at three sizes")


def coefficient_gradients(f: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
    """07-2: (dnumerator, ddenominator) in plain PyTorch from (dy, x, numerator, denominator), float64."""
    for seed, (rows, columns, groups, m, n) in enumerate([(37, 56, 8, 5, 4), (10, 24, 3, 2, 1)]):
        g = torch.Generator().manual_seed(seed)
        dy, x = (torch.randn(rows, columns, generator=g, dtype=torch.float64) for _ in range(2))
        a = torch.randn(groups, m + 1, generator=g, dtype=torch.float64)
        b = torch.randn(groups, n, generator=g, dtype=torch.float64)
        _, da, db = rational_gradients(dy, x, a, b)
        answer = f(dy, x, a, b)
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise Wrong(f"expected a tuple (dnumerator, ddenominator), got {type(answer).__name__}")
        scale = torch.stack([t.abs().sum((0, 2)) for t in gradient_terms(dy, x, a, b)], 1) * 1e-12 + 1e-12

        def strided(t: Tensor, groups: int = groups) -> Tensor:
            return t.reshape(len(t), -1, groups).transpose(1, 2).reshape(len(t), -1)

        _, da_strided, db_strided = rational_gradients(strided(dy), strided(x), a, b)
        same_tensor(
            "dnumerator", answer[0], da, scale[:, : m + 1],
            {"neighbouring columns share a group: column // width, not column % groups": da_strided,
             "the sign of the result": -da},
        )  # fmt: skip
        signless = db * torch.where(b < 0, -1.0, 1.0)
        same_tensor(
            "ddenominator", answer[1], db, scale[:, m + 1 :],
            {"the sign of b_j is lost: Q holds |b_j|": signless,
             "the minus sign of -P/Q² is lost": -db,
             "both the minus sign and the sign of b_j are lost": -signless,
             "neighbouring columns share a group": db_strided},
        )  # fmt: skip
    right("both gradients, for two shapes, in float64")


@poisoned()
def column_sums_atomic(f: Callable[[Tensor], Tensor]) -> None:
    """07-3: dy [rows, columns] -> float32 sums over rows [columns], one atomic add an element."""
    _column_sum_cases(f)
    if DEVICE == "cpu":
        dy = _surrounded(37, 8, torch.float32, 1)
        with counting() as count:
            f(dy)
        _atomic(count)
        same_number("atomic adds for 37 rows of 8", count.adds, 37 * 8)
        same_number("addresses for 37 rows of 8", len(count.addresses), 8)
    right("column sums of odd shapes, bfloat16, a transposed tensor, and twice in a row")


@poisoned()
def column_sums_copies(f: Callable[[Tensor], Tensor]) -> None:
    """07-4: the same sums, one atomic add an element, on at least 64 times as many addresses."""
    _column_sum_cases(f)
    if DEVICE == "cpu":
        dy = _surrounded(30000, 8, torch.float32, 6)
        with counting() as count:
            f(dy)
        _atomic(count)
        same_number("atomic adds for 30,000 rows of 8", count.adds, 240000)
        if len(count.addresses) < 64 * 8:
            raise Wrong(f"30,000 rows of 8 added to {len(count.addresses)} addresses; 512 or more were asked for")
        return right("the same sums on many addresses")
    _speed(f, "column_sums_copies_solution", 2**20, 8)
    right("the same sums on many addresses, and fast")


# Chapter 09


def count_block(f: Callable[[int, int, int, int, int], tuple[int, int]]) -> None:
    """09-1: (programs, atomic adds) of the block backward for (rows, groups, m, n, rows of a tile)."""
    for rows, groups, m, n, tile in [(201728, 8, 5, 4, 32), (37, 3, 3, 2, 16), (1000, 8, 6, 5, 128)]:
        answer = f(rows, groups, m, n, tile)
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise Wrong(f"expected a tuple (programs, atomic adds), got {answer!r}")
        size = f"rows={rows}, groups={groups}, m={m}, n={n}, tile={tile} rows"
        blocks = -(-rows // tile)
        same_number(
            f"programs for {size}", answer[0], blocks * groups,
            {
                "the last, partial tile needs a program too: round up": rows // tile * groups,
                "a tile belongs to one group: times groups": blocks,
            },
        )  # fmt: skip
        same_number(
            f"atomic adds for {size}", answer[1], blocks * groups * (m + 1 + n),
            {"a polynomial of degree m has m+1 coefficients": blocks * groups * (m + n)},
        )  # fmt: skip
    right("programs and atomic adds, at three sizes")


def idle_share(f: Callable[[int], float]) -> None:
    """09-2: the share of a tile's lanes that own no column, for a group width."""
    for width in (24, 96, 100, 128, 7, 1, 384):
        columns = 1 << (width - 1).bit_length()
        same_number(
            f"idle share at width {width}", f(width), 1 - width / columns,
            {"the share in use was returned": width / columns, "idle over used, not over all": columns / width - 1},
        )  # fmt: skip
    right("seven widths")


@poisoned()
def column_sums_block(f: Callable[[Tensor], Tensor]) -> None:
    """09-3: column sums with one atomic add a column and program, at least 64 rows a program."""
    _column_sum_cases(f)
    _few_adds(f, rows=4096, columns=96, most=4096 // 64 * 96)
    _speed(f, "column_sums_block_solution", 2**19, 96)
    right("column sums, summed in the program first")


@poisoned()
def column_sums_walking(f: Callable[[Tensor], Tensor]) -> None:
    """09-4: column sums by programs that walk down the rows: at most 264 adds a column, however many rows."""
    _column_sum_cases(f)
    _few_adds(f, rows=60000, columns=8, most=264 * 8)
    _speed(f, "column_sums_walking_solution", 2**19, 96)
    right("column sums by walking programs")


def _few_adds(f: Callable[[Tensor], Tensor], rows: int, columns: int, most: int) -> None:
    if DEVICE == "cuda":
        return
    with counting() as count:
        f(torch.randn(rows, columns))
    _atomic(count)
    if count.adds > most:
        raise Wrong(f"{rows:,} rows of {columns} took {count.adds:,} atomic adds; at most {most:,} were asked for")


def _atomic(count: Count) -> None:
    if not count.adds:
        raise Wrong(f"expected atomic additions in a Triton kernel, got none. {RACE}")
