"""Checks of chapter 08: a suspect's share, Little's law, a control experiment, and a weighted histogram."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .common import DEVICE, RACE, Wrong, poisoned, right, same_number, same_tensor, timed, watching
from .kernels import counting


def share_of_time(f: Callable[[float, float, float], float]) -> None:
    """08-1: the share of the time that a suspect takes, from (before, after, factor on its work)."""
    for before, after, factor in [(50.0, 50.35, 8.0), (10.0, 17.0, 8.0), (792.0, 0.775, 0.0), (10.0, 9.0, 0.5)]:
        ratio = after / before
        same_number(
            f"share for {before:g} ms, then {after:g} ms with a factor of {factor:g}",
            f(before, after, factor), (ratio - 1) / (factor - 1),
            {"the factor counts what is there in all: it adds factor - 1 times the share": (ratio - 1) / factor
             if factor else float("nan"),
             "the growth was not divided by factor - 1": ratio - 1,
             "the sign: with a factor below 1 both differences are negative": (1 - ratio) / (factor - 1),
             "that is the time saved, not what a factor other than 0 says of the share": 1 - ratio},
        )  # fmt: skip
    right("shares for a removed, a halved and a multiplied suspect")


def warp_stay(f: Callable[..., tuple[float, float]]) -> None:
    """08-2: (microseconds that a warp stays, cycles an instruction), by Little's law."""
    for case in [
        (64.0, 132, 302592, 77.56, 256, 1.973),
        (12.0, 132, 50432, 0.782, 7926, 1.96),
        (32.0, 40, 10**6, 20.0, 100, 1.5),
    ]:
        inside, multiprocessors, warps, ms, instructions, ghz = case
        answer = f(*case)
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise Wrong(f"expected a tuple (microseconds, cycles an instruction), got {answer!r}")
        what = f"{inside:g} warps on each of {multiprocessors}, {warps:,} warps in {ms:g} ms"
        stay = inside * multiprocessors * ms * 1e3 / warps
        same_number(
            f"microseconds for {what}", answer[0], stay,
            {"warps inside are those of all multiprocessors": stay / multiprocessors,
             "milliseconds, not microseconds": stay / 1e3,
             "nanoseconds, not microseconds": stay * 1e3,
             "upside down: inside = rate · stay": 1 / stay,
             "a warp's share of the time, as if one ran after another": ms * 1e3 / warps},
        )  # fmt: skip
        cycles = stay * 1e3 * ghz / instructions
        same_number(
            f"cycles an instruction for {what}, {instructions} instructions at {ghz:g} GHz", answer[1], cycles,
            {"all instructions of the warp share its stay": cycles * instructions,
             "a GHz is a thousand cycles in a microsecond": cycles / 1e3,
             "cycles are time times clock": stay * 1e3 / ghz / instructions},
        )  # fmt: skip
    right("the stay of a warp, and the stall of an instruction")


@dataclass
class Loads:
    """Loads of kernels in the interpreter: elements loaded, and the distinct addresses they came from."""

    elements: int = 0
    addresses: set = field(default_factory=set)


@contextlib.contextmanager
def watching_loads() -> Iterator[Loads]:
    """Count the loads of kernels that run inside; in the interpreter only."""
    loads = Loads()

    def load(addresses, _):
        loads.elements += addresses.size
        loads.addresses.update(addresses.tolist())

    with watching(load=load):
        yield loads


def _row(columns: int, seed: int) -> Tensor:
    """Random normal [columns] with NaN before and after it in memory."""
    everything = torch.full((columns + 16384,), float("nan"))
    everything[8192 : 8192 + columns] = torch.randn(columns, generator=torch.Generator().manual_seed(seed))
    return everything.to(DEVICE)[8192 : 8192 + columns]


@poisoned()
def same_row_sums(f: Callable[[Tensor, int], Tensor]) -> None:
    """08-3: sums over `rows` copies of one row, with rows · D loads and additions, from D elements to D addresses."""
    cases = {
        "37 rows of 8": (_row(8, 1), 37),
        "1000 rows of 7": (_row(7, 2), 1000),
        "1 row of 300": (_row(300, 3), 1),
        "50 rows, every second element of 20": (_row(20, 4)[::2], 50),
    }
    for name, (row, rows) in cases.items():
        exact = rows * row.double()
        tolerance = rows * 2.0**-24 * exact.abs() + 1e-30  # equal terms round alike: the worst case, not a random one
        causes = {
            "the row was added once": row,
            "everything was added to every column": exact.sum().expand_as(exact),
            "each element was added twice: is the buffer zeroed at each call?": 2 * exact,
            "strides were taken for those of a contiguous row": rows * row.as_strided(row.shape, (1,)).double(),
        }
        got = f(row, rows)
        if isinstance(got, Tensor) and got.dtype != torch.float32:
            raise Wrong(f"sums of {name}: expected dtype torch.float32, got {got.dtype}")
        same_tensor(f"sums of {name}", got, exact, tolerance, causes)
        same_tensor(f"a second call, {name}", f(row, rows), exact, tolerance,
                    {"the buffer is not zeroed at each call": 2 * exact})  # fmt: skip
    row, rows = cases["37 rows of 8"]
    if DEVICE == "cpu":
        with counting() as adds, watching_loads() as loads:
            f(row, rows)
        same_number(
            "additions for 37 rows of 8", adds.adds, 37 * 8,
            {"the experiment removed the additions too: it clears nothing": 8, "no kernel added atomically": 0},
        )  # fmt: skip
        same_number("addresses for 37 rows of 8", len(adds.addresses), 8)
        same_number(
            "loads for 37 rows of 8", loads.elements, 37 * 8,
            {"the loads themselves are gone: a second change": 8, "nothing was loaded": 0},
        )  # fmt: skip
        same_number(
            "different elements loaded, for 37 rows of 8", len(loads.addresses), 8,
            {"the row was copied out to all rows: the bytes are back": 37 * 8},
        )  # fmt: skip
        print("No GPU here: correctness and counts were checked, speed was not.")
    else:
        from flashkat_lite.lab.solutions_diagnosis import same_row_sums_solution as ours

        timed(f, ours, (torch.randn(8, device=DEVICE), 2**20), "2²⁰ rows of 8")
    right("the same loads and additions, without the bytes")


def _weighted(count: int, bins: int, seed: int) -> tuple[Tensor, Tensor]:
    """Half of the values are bin 1; behind the data lie another bin's number, and NaN for its weight."""
    g = torch.Generator().manual_seed(seed)
    values = torch.randint(bins, (count + 8192,), generator=g, dtype=torch.int32)
    values[:count][torch.rand(count, generator=g) < 0.5] = 1
    values[count:] = bins - 1
    weights = torch.full((count + 8192,), float("nan"))
    weights[:count] = torch.randn(count, generator=g) + 0.5
    return values.to(DEVICE)[:count], weights.to(DEVICE)[:count]


@poisoned()
def weighted_histogram(f: Callable[[Tensor, Tensor, int], Tensor]) -> None:
    """08-4: sums of weights by bin, at most one atomic addition for 16 elements."""
    for seed, (count, bins) in enumerate([(1, 2), (5000, 7), (4096, 64), (3001, 40)]):
        values, weights = _weighted(count, bins, seed)

        def by_bin(of: Tensor, values: Tensor = values, bins: int = bins) -> Tensor:
            return torch.zeros(bins, dtype=torch.float64, device=DEVICE).index_add_(0, values.long(), of)

        exact, size = by_bin(weights.double()), by_bin(weights.double().abs())
        tolerance = 4 * count**0.5 * 2.0**-24 * size + 1e-30  # every addition rounds at random
        what = f"weights of {count} elements in {bins} bins"
        causes = {
            "elements were counted, weights were not added": by_bin(torch.ones_like(weights, dtype=torch.float64)),
            "each element was added twice: is the buffer zeroed at each call?": 2 * exact,
            "every bin holds the total of all of them": exact.sum().expand_as(exact),
            "one weight of each bin is left: they were stored, not added": torch.zeros_like(exact).index_copy(
                0, values.long(), weights.double()
            ),
        }
        got = f(values, weights, bins)
        if isinstance(got, Tensor) and got.dtype != torch.float32:
            raise Wrong(f"{what}: expected dtype torch.float32, got {got.dtype}")
        same_tensor(what, got, exact, tolerance, causes)
        same_tensor(f"a second call, {what}", f(values, weights, bins), exact, tolerance,
                    {"the buffer is not zeroed at each call": 2 * exact})  # fmt: skip
    if DEVICE == "cpu":
        values, weights = _weighted(60000, 64, 9)
        with counting() as count:
            f(values, weights, 64)
        most = 60000 // 16
        if not count.adds:
            raise Wrong(f"expected up to {most:,} atomic additions, got none. {RACE}")
        if count.adds > most:
            raise Wrong(
                f"60,000 elements in 64 bins: expected at most {most:,} atomic additions, got {count.adds:,}. Likely "
                "cause: elements are added to memory before the program has summed, or there are too many programs"
            )
        print("No GPU here: correctness and counts were checked, speed was not.")
    else:
        from flashkat_lite.lab.solutions_diagnosis import weighted_histogram_solution as ours

        timed(f, ours, (*_weighted(2**24, 64, 9), 64), "2²⁴ elements in 64 bins")
    right("sums of weights by bin, summed before they are added")
