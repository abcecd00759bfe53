"""Answers to the exercises of chapter 05: right ones, and wrong ones each with what its check must say."""

import torch
import triton
import triton.language as tl


def sectors(first, stride, size, sector=32):
    return len({(first + i * stride + k) // sector for i in range(32) for k in range(0, size, 4)})


def programs(gbps, ns, warps, each):
    return int(-(-gbps * ns // (32 * warps * each)))


def ways(words):
    banks = [word % 32 for word in set(words)]
    return max(banks.count(bank) for bank in banks)


def by_rows(x):
    """A right transpose whose programs take one row each: whole sectors read, single numbers written."""

    @triton.jit
    def kernel(x_ptr, out_ptr, rows, columns, row_stride, column_stride, BLOCK: tl.constexpr):
        row, column = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = column < columns
        value = tl.load(x_ptr + row * row_stride + column * column_stride, mask=inside, other=0.0)
        tl.store(out_ptr + column * rows + row, value, mask=inside)

    out = torch.empty(x.shape[1], x.shape[0], device=x.device)
    kernel[(x.shape[0], triton.cdiv(x.shape[1], 256))](x, out, *x.shape, *x.stride(), BLOCK=256)
    return out


@triton.jit
def tile_kernel(x_ptr, out_ptr, rows, columns, row_stride, column_stride, TILE: tl.constexpr):
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    x = tl.load(x_ptr + row[:, None] * row_stride + column[None, :] * column_stride)
    inside = (column < columns)[:, None] & (row < rows)[None, :]
    tl.store(out_ptr + column[:, None] * rows + row[None, :], tl.trans(x), mask=inside)


def unmasked(x):
    """Right, but for what it reads: whole tiles of a tensor that they do not divide."""
    out = torch.empty(x.shape[1], x.shape[0])
    tile_kernel[(triton.cdiv(x.shape[0], 64), triton.cdiv(x.shape[1], 64))](x, out, *x.shape, *x.stride(), TILE=64)
    return out


def whole_tiles(x):
    """Right where tiles of 32 fit."""
    out = torch.empty(x.shape[1], x.shape[0])
    rows, columns = (n // 32 * 32 for n in x.shape)
    out[:columns, :rows] = x[:rows, :columns].T
    return out


RIGHT = {
    "05-1": sectors,
    "05-2": programs,
    "05-3": ways,
}

WRONG = {
    "05-1": [
        (lambda first, stride, size: 32, "a sector touched by several lanes moves once"),
        (lambda first, stride, size: sectors(first, stride, size, 128), "lines of 128 bytes"),
        (lambda first, stride, size: sectors(0, stride, size), "the first byte may lie inside a sector"),
        (lambda first, stride, size: size + (first % 32 > 0), "the gaps between them move too"),
        (
            lambda first, stride, size: (first + 31 * stride + size - 1) // 32 - first // 32 + 1,
            "sectors that no lane touches",
        ),
        (lambda *_: None, "expected a number, got None"),
    ],
    "05-2": [
        (lambda gbps, ns, warps, each: int(gbps * ns // (32 * warps * each)), "round up"),
        (lambda gbps, ns, warps, each: programs(gbps, ns, warps, each / 32), "a warp has 32 lanes"),
        (lambda gbps, ns, warps, each: programs(gbps, ns, 1, each), "a program has several warps"),
        (lambda gbps, ns, warps, each: programs(gbps * 2**30 / 1e9, ns, warps, each), "1 GB is 1e9 bytes"),
        (lambda gbps, ns, warps, each: programs(gbps, 1 / ns, warps, each), "multiply"),
    ],
    "05-3": [
        (lambda words: ways(words) - 1, "conflicts beyond the first turn"),
        (lambda words: len({w % 32 for w in words}), "the number of banks in use"),
        (lambda words: len(set(words)), "banks work at the same time"),
        (
            lambda words: max(sum(w % 32 == b for w in words) for b in range(32)),
            "lanes that want the same word are served together",
        ),
    ],
    "05-4": [
        (lambda x: x.T.contiguous(), "expected a Triton kernel, got none"),
        (by_rows, r"its stores touch 32,768 sectors.*thin across the stores"),
        (unmasked, "loads outside of x_ptr, at index 6,144: its elements are 0 … 6,143.*a missing mask"),
        (lambda x: None, "expected a tensor, got NoneType"),
        (lambda x: x.T, "contiguous tensor, got strides"),
        (lambda x: x.contiguous(), r"expected shape \[96, 64\], got \[64, 96\]"),
        (lambda x: x.reshape(x.shape[1], x.shape[0]), "rows and columns of the output are swapped"),
        (
            lambda x: torch.as_strided(x, x.shape, (x.shape[1], 1)).T.contiguous(),
            r"every second column.*take both from x.stride\(\)",
        ),
    ],
}

# Right for what the text shows, or for one size.
FIXED = {
    "05-1": (lambda *case: 4, "first=4, stride=4, size=4: expected 5, got 4"),
    "05-2": (lambda *case: 1368, "64 bytes a thread: expected 342, got 1,368"),
    "05-3": (lambda words: 1, "every second word: expected 2, got 1"),
    "05-4": (whole_tiles, "37 × 70.*memory from `empty` that nothing wrote"),
}
