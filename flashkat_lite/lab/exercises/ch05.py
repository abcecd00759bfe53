"""Chapter 05: sectors, bytes in flight, banks, and a transpose that moves whole sectors."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from flashkat_lite.testing import poisoned

from .. import setup as lab
from ..counting import SECTOR
from .common import Parts, Wrong, exercise, normal, numbers, same_number, same_tensor, timed
from .kernels import reads_all, stored, watch
from .language import tl, triton


@exercise("05-1")
@numbers(
    "eleven ways for a warp to read",
    *(
        (0, 4, 4),
        (4, 4, 4),
        (0, 8, 4),
        (0, 32, 4),
        (0, 128, 4),
        (0, 16, 16),
        (16, 16, 16),
        (0, 0, 4),
        (28, 12, 4),
        (28, 64, 8),
        (0, 128, 96),
    ),
)
def warp_sectors(first: int, stride: int, size: int) -> Parts:
    """Check sectors that a warp touches: lane i reads `size` bytes at byte `first` + i · `stride`."""
    taken = [byte for i in range(32) for byte in range(first + i * stride, first + i * stride + size)]
    last = taken[-1]
    yield f"sectors for {first=}, {stride=}, {size=}", len({byte // SECTOR for byte in taken}), {
        "a sector touched by several lanes moves once": 32,
        "a lane's first and last bytes alone: sectors between them move too":
            len({byte // SECTOR for i in range(32) for byte in (first + i * stride, first + i * stride + size - 1)}),
        "these are lines of 128 bytes: a sector has 32": len({byte // 128 for byte in taken}),
        "sectors that no lane touches, in the gaps of a wide stride, do not move": last // SECTOR - first // SECTOR + 1,
        "the first byte may lie inside a sector: count from `first`": -(-(last + 1 - first) // SECTOR),
        "only the bytes asked for were counted; the gaps between them move too": -(-32 * size // SECTOR),
    }  # fmt: skip


@exercise("05-2")
@numbers(
    "programs for five machines",
    *((4000.0, 700.0, 4, 16), (4000.0, 700.0, 4, 64), (3000.0, 500.0, 8, 4), (10.0, 1.0, 1, 4), (4096.0, 500.0, 4, 16)),
)
def programs_to_fill(rate: float, latency: float, warps: int, each: int) -> Parts:
    """Check the fewest programs of `warps` warps that keep GB/s × ns bytes in flight, `each` bytes a thread."""
    size = f"{rate:,.0f} GB/s at {latency:,.0f} ns, {warps} warps, {each} bytes a thread"
    needed, program = rate * latency, 32 * warps * each  # 1 GB/s is 1 byte a nanosecond
    yield f"programs for {size}", math.ceil(needed / program), {
        "a part of a program is not launched: round up": int(needed // program),
        "rounded up, and then one more": math.ceil(needed / program) + 1,
        "a warp has 32 lanes": math.ceil(needed / (warps * each)),
        "a program has several warps": math.ceil(needed / (32 * each)),
        "1 GB is 1e9 bytes here, not 2**30": math.ceil(needed * 2**30 / 1e9 / program),
        "rate and latency multiply to bytes: 1 GB/s is 1 byte a nanosecond, with no other factor":
            math.ceil(rate / latency / program),
        "1 GB/s is 1 byte a nanosecond: no factor of 1e9": math.ceil(1e9 * needed / program),
    }  # fmt: skip


@exercise("05-3")
def bank_ways(f: Callable[[list[int]], int]) -> str:
    """Check how many times shared memory serves a warp's 32 words: the most different words in one bank."""
    cases = {
        "every second word": [2 * i for i in range(32)],
        "neighbouring words": list(range(32)),
        "every 32nd word": [32 * i for i in range(32)],
        "every 33rd word": [33 * i for i in range(32)],
        "one word for all": [7] * 32,
        "two words of one bank": [0, 32] * 16,
        "words in any order": [(5 * i + 3) % 32 for i in range(32)],
        "a column of a 32 × 16 tile": [16 * i for i in range(32)],
        "four words of one bank and one of another": ([0, 32, 64, 96, 1] * 7)[:32],
    }
    for name, words in cases.items():
        banks = [word % 32 for word in words]
        expected = max(len({w for w in words if w % 32 == bank}) for bank in banks)
        same_number(f"turns for {name}", f(list(words)), expected, {
            "lanes that want the same word are served together: count different words": max(map(banks.count, banks)),
            "that is the number of banks in use": len(set(banks)),
            "that is the number of conflicts beyond the first turn": expected - 1,
            "the mean over the banks in use: the fullest one decides": len(set(words)) / len(set(banks)),
            "all different words were counted: banks work at the same time": len(set(words)),
        })  # fmt: skip
    return "nine patterns of words"


@exercise("05-4")
@poisoned()
def transposed(f: Callable[[Tensor], Tensor]) -> str:
    """Check x [R, C] float32, any strides -> contiguous [C, R], whole sectors read and written."""
    cases = {
        "64 × 96": normal(64, 96, seed=5),
        "37 × 70": normal(37, 70, seed=6),
        "1 × 300": normal(1, 300, seed=7),
        "every second column of 50 × 80": normal(50, 160, seed=8)[:, ::2],
    }
    for name, x in cases.items():
        got, want = f(x), x.T.contiguous()
        same_tensor(f"the transpose of {name}", got, want, 0.0, {
            "the input's strides: take both from x.stride()": x.as_strided(x.shape, (x.shape[1], 1)).T,
            "right values in the wrong places: rows and columns of the output are swapped": x.reshape(want.shape),
        })  # fmt: skip
        if not got.is_contiguous():
            raise Wrong(f"the transpose of {name}: expected a contiguous tensor, got strides {got.stride()}")
    _check_sectors(f)
    timed(f, transposed_solution, {"8192 × 8192": ((8192, 8192),)})
    return "a transpose of odd shapes and strides" + ", in whole sectors" * (not lab.GPU)


def _check_sectors(f: Callable, rows: int = 128, columns: int = 256) -> None:
    """In the interpreter, raise Wrong where loads or stores touch many more sectors than hold the data."""
    seen, needed = watch(f, torch.randn(rows, columns)), rows * columns * 4 // SECTOR
    reads_all(seen, rows * columns, f"{rows} × {columns}")
    if seen and not seen.stores.elements:
        raise Wrong("no store of a kernel was counted: the exercise asks for a Triton kernel")
    stored(seen, **{f"the transpose of {rows} × {columns}": seen and seen.result})
    for what in ("loads", "stores"):
        sectors = getattr(seen, what).sectors if seen else 0
        if sectors > 1.5 * needed:
            raise Wrong(
                f"correct, but its {what} touch {sectors:,} sectors at {rows} × {columns}; {needed:,} hold the data, "
                f"and 1.5 times that were allowed. Likely cause: a program's tile is thin across the {what}."
            )


@triton.jit
def transpose_kernel(x_ptr, out_ptr, rows, columns, row_stride, column_stride, TILE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    column = tl.program_id(1).to(tl.int64) * TILE + tl.arange(0, TILE)
    mask = (row < rows)[:, None] & (column < columns)[None, :]  # [rows, columns] of the tile
    x = tl.load(x_ptr + row[:, None] * row_stride + column[None, :] * column_stride, mask=mask, other=0.0)
    out = out_ptr + column[:, None] * rows + row[None, :]  # [columns, rows] of the tile
    tl.store(out, tl.trans(x), mask=(column < columns)[:, None] & (row < rows)[None, :])


def transposed_solution(x, tile=64):
    rows, columns = x.shape
    out = torch.empty(columns, rows, device=x.device, dtype=x.dtype)
    grid = (triton.cdiv(rows, tile), triton.cdiv(columns, tile))
    transpose_kernel[grid](x, out, rows, columns, *x.stride(), TILE=tile)
    return out
