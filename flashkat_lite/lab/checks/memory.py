"""Checks of chapter 05: sectors, bytes in flight, banks, and a transpose that moves whole sectors."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .common import DEVICE, Wrong, poisoned, right, same_number, same_tensor, timed, watching

SECTOR = 32  # bytes
MARGIN = 8192  # elements of NaN on either side of an input


@dataclass
class Traffic:
    """Sectors that each load or store of a kernel touched, and the bytes that it asked for."""

    loads: int = 0
    stores: int = 0
    bytes_loaded: int = 0
    bytes_stored: int = 0


@contextlib.contextmanager
def moving() -> Iterator[Traffic]:
    """Count the sectors of the kernels that run inside, load by load; in the interpreter only (a GPU does not tell)."""
    traffic = Traffic()

    def load(addresses, size):
        traffic.loads += np.unique(addresses // SECTOR).size
        traffic.bytes_loaded += addresses.size * size

    def store(addresses, size):
        traffic.stores += np.unique(addresses // SECTOR).size
        traffic.bytes_stored += addresses.size * size

    with watching(load=load, store=store):
        yield traffic


def warp_sectors(f: Callable[[int, int, int], int]) -> None:
    """05-1: sectors that a warp touches: lane i reads `size` bytes at byte `first` + i · `stride`."""
    wide = [(0, 128, 4), (0, 16, 16), (16, 16, 16), (0, 0, 4), (28, 12, 4)]
    for first, stride, size in [(0, 4, 4), (4, 4, 4), (0, 8, 4), (0, 32, 4), *wide]:
        starts = [first + lane * stride for lane in range(32)]
        sectors = {byte // SECTOR for start in starts for byte in range(start, start + size)}
        lines = {byte // 128 for start in starts for byte in range(start, start + size)}
        span = starts[-1] + size - first
        same_number(
            f"sectors for first={first}, stride={stride}, size={size}", f(first, stride, size), len(sectors),
            {
                "a sector touched by several lanes moves once": 32,
                "these are lines of 128 bytes: a sector has 32": len(lines),
                "sectors that no lane touches, in the gaps of a wide stride, do not move":
                    (starts[-1] + size - 1) // SECTOR - first // SECTOR + 1,
                "the first byte may lie inside a sector: count from `first`": -(-span // SECTOR),
                "only the bytes asked for were counted; the gaps between them move too": -(-32 * size // SECTOR),
            },
        )  # fmt: skip
    right("nine ways for a warp to read")


def programs_to_fill(f: Callable[[float, float, int, int], int]) -> None:
    """05-2: the fewest programs of `warps` warps that keep GB/s × ns bytes in flight, `each` bytes a lane."""
    small = [(3000.0, 500.0, 8, 4), (10.0, 1.0, 1, 4)]
    for rate, latency, warps, each in [(4000.0, 700.0, 4, 16), (4000.0, 700.0, 4, 64), *small]:
        program = 32 * warps * each
        needed = rate * latency  # 1 GB/s is 1 byte a nanosecond
        expected = int(-(-needed // program))
        same_number(
            f"programs for {rate:,.0f} GB/s at {latency:,.0f} ns, {warps} warps, {each} bytes a lane",
            f(rate, latency, warps, each), expected,
            {
                "a part of a program is not launched: round up": int(needed // program),
                "rounded up, and then one more": int(needed // program) + 2,
                "a warp has 32 lanes": int(-(-needed // (warps * each))),
                "a program has several warps": int(-(-needed // (32 * each))),
                "1 GB is 1e9 bytes here, not 2**30": int(-(-needed * 2**30 / 1e9 // program)),
                "rate over latency is no number of bytes: multiply": int(-(-rate / latency // program)),
            },
        )  # fmt: skip
    right("programs for four machines")


def bank_ways(f: Callable[[list[int]], int]) -> None:
    """05-3: how many times shared memory serves a warp's 32 words: the most different words in one bank."""
    cases = {
        "every second word": [2 * i for i in range(32)],
        "neighbouring words": list(range(32)),
        "every 32nd word": [32 * i for i in range(32)],
        "every 33rd word": [33 * i for i in range(32)],
        "one word for all": [7] * 32,
        "two words of one bank": [0, 32] * 16,
        "words in any order": [(5 * i + 3) % 32 for i in range(32)],
        "a column of a 32 × 16 tile": [16 * i for i in range(32)],
    }
    for name, words in cases.items():
        banks = [word % 32 for word in words]
        expected = max(len({w for w in words if w % 32 == bank}) for bank in banks)
        same_number(
            f"turns for {name}", f(list(words)), expected,
            {
                "lanes that want the same word are served together: count different words": max(
                    banks.count(bank) for bank in banks
                ),
                "that is the number of banks in use": len(set(banks)),
                "that is the number of conflicts beyond the first turn": expected - 1,
                "all different words were counted: banks work at the same time": len(set(words)),
            },
        )  # fmt: skip
    right("eight patterns of words")


@poisoned()
def transposed(f: Callable[[Tensor], Tensor]) -> None:
    """05-4: x [R, C] float32, any strides -> contiguous [C, R], whole sectors read and written."""
    cases = {
        "64 × 96": _surrounded(64, 96, 5),
        "37 × 70": _surrounded(37, 70, 6),
        "1 × 300": _surrounded(1, 300, 7),
        "every second column of 50 × 80": _surrounded(50, 160, 8)[:, ::2],
    }
    for name, x in cases.items():
        got, want = f(x), x.T.contiguous()
        causes = {
            "the input's strides: take both from x.stride()": _misread(x).T,
            "right values in the wrong places: rows and columns of the output are swapped": x.reshape(want.shape),
        }
        same_tensor(f"the transpose of {name}", got, want, 0.0, causes)
        if not got.is_contiguous():
            raise Wrong(f"the transpose of {name}: expected a contiguous tensor, got strides {got.stride()}")
    if DEVICE == "cpu":
        _whole_sectors(f)
        _nothing_outside(f, cases["37 × 70"])
        print("No GPU here: correctness and sectors were checked, speed was not.")
        return right("a transpose of odd shapes and strides, in whole sectors")
    from flashkat_lite.lab.solutions_memory import transposed_solution as ours

    x = torch.randn(8192, 8192, device=DEVICE)
    timed(f, ours, (x,), "8192 × 8192", nbytes=2 * x.nbytes)
    right("a transpose of odd shapes and strides")


def _surrounded(rows: int, columns: int, seed: int) -> Tensor:
    """Random normal [rows, columns] with NaN before and after it in memory: what a mask forgets becomes visible."""
    everything = torch.full((2 * MARGIN + rows * columns,), float("nan"))
    values = torch.randn(rows * columns, generator=torch.Generator().manual_seed(seed))
    everything[MARGIN : MARGIN + rows * columns] = values
    return everything.to(DEVICE)[MARGIN : MARGIN + rows * columns].view(rows, columns)


def _misread(x: Tensor) -> Tensor:
    """x as a kernel sees it that takes its rows for contiguous."""
    return torch.as_strided(x, x.shape, (x.shape[1], 1))


def _whole_sectors(f: Callable[[Tensor], Tensor]) -> None:
    rows, columns = 128, 256
    x = torch.randn(rows, columns)
    with moving() as traffic:
        f(x)
    needed = rows * columns * 4 // SECTOR
    if not traffic.bytes_stored:
        raise Wrong("no store of a kernel was counted: the exercise asks for a Triton kernel")
    for what, sectors in (("loads", traffic.loads), ("stores", traffic.stores)):
        if sectors > 1.5 * needed:
            raise Wrong(
                f"correct, but its {what} touch {sectors:,} sectors at {rows} × {columns}; {needed:,} hold the data, "
                f"and 1.5 times that were allowed. Likely cause: a program's tile is thin across the {what}."
            )


def _nothing_outside(f: Callable[[Tensor], Tensor], x: Tensor) -> None:
    outside = 0

    def load(addresses, _):
        nonlocal outside
        outside += int(((addresses < x.data_ptr()) | (addresses >= x.data_ptr() + x.nbytes)).sum())

    with watching(load=load):
        f(x)
    if outside:
        raise Wrong(
            f"right values, but at 37 × 70 expected no load outside of the tensor, got {outside:,}. Likely cause: a "
            "mask is missing"
        )
