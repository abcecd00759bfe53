"""Small kernels that tests x-ray; none of their arguments' names says what it is."""

import torch
import triton
import triton.language as tl


@triton.jit
def double(source, target, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + at, 2.0 * tl.load(source + at, mask=at < n), mask=at < n)


@triton.autotune([triton.Config({"BLOCK": block}) for block in (32, 1024)], key=["n"])
@triton.jit
def double_tuned(source, target, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + at, 2.0 * tl.load(source + at, mask=at < n), mask=at < n)


@triton.jit
def walk(source, target, n, BLOCK: tl.constexpr):
    row, at = tl.program_id(0), tl.arange(0, BLOCK)
    sums = tl.zeros([BLOCK], tl.float32)
    for first in range(0, n, BLOCK):
        sums += tl.load(source + row * n + first + at)
    mean = tl.sum(sums, 0) / n
    for first in range(0, n, BLOCK):
        tl.store(target + row * n + first + at, tl.load(source + row * n + first + at) - mean)


@triton.jit
def crowd(source, target, PLACES: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(target + at % PLACES, tl.load(source + at), sem="relaxed")


@triton.jit
def apart(source, target, STRIDE: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + at * STRIDE, tl.load(source + at))


@triton.jit
def spread(source, target, places, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + tl.load(places + at), tl.load(source + at))


@triton.jit
def one_column(source, sums, rows, columns, row_stride, column_stride, ROWS: tl.constexpr):
    row, column = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1)
    read = tl.load(source + row.to(tl.int64) * row_stride + column * column_stride, mask=row < rows, other=0.0)
    tl.atomic_add(sums + column, tl.sum(read.to(tl.float32), 0), sem="relaxed")


@triton.jit
def shift(values, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(values + at + 1, tl.load(values + at))


@triton.jit
def turn(source, target, rows, columns, BLOCK: tl.constexpr):
    row, at = tl.program_id(1), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + at * rows + row, tl.load(source + row * columns + at))


@triton.jit
def product(a, b, c):
    i, j = tl.arange(0, 16)[:, None], tl.arange(0, 16)[None, :]
    tl.store(c + i * 16 + j, tl.dot(tl.load(a + i * 16 + j), tl.load(b + i * 16 + j)))


def doubled(x, block=1024):
    y = torch.empty_like(x)
    double[(triton.cdiv(x.numel(), block),)](x, y, x.numel(), BLOCK=block)
    return y


def tuned(x):
    y = torch.empty_like(x)
    double_tuned[lambda meta: (triton.cdiv(x.numel(), meta["BLOCK"]),)](x, y, x.numel())
    return y


def centred(x):
    y = torch.empty_like(x)
    walk[(x.shape[0],)](x, y, x.shape[1], BLOCK=1024)
    return y


def added(x, places):
    sums = torch.zeros(places)
    crowd[(x.numel() // 1024,)](x, sums, PLACES=places, BLOCK=1024)
    return sums


def strided(x, stride):
    y = x.new_empty(x.numel() * stride)
    apart[(x.numel() // 1024,)](x, y, STRIDE=stride, BLOCK=1024)
    return y


def scattered(x, places):
    generator = torch.Generator().manual_seed(0)
    y, where = x.new_empty(places), torch.randint(places, x.shape, generator=generator, dtype=torch.int32)
    spread[(x.numel() // 1024,)](x, y, where, BLOCK=1024)
    return y


def column_sums(dy, ROWS=1024):
    """Sums of columns, right and slow: a program reads one column, and of each sector that it moves one word."""
    rows, columns = dy.shape
    sums = torch.zeros(columns, device=dy.device)
    one_column[(triton.cdiv(rows, ROWS), columns)](dy, sums, rows, columns, *dy.stride(), ROWS=ROWS)
    return sums


def turned(x):
    y = torch.empty_like(x)
    turn[(x.shape[1] // 512, x.shape[0])](x, y, *x.shape, BLOCK=512)
    return y


def shifted(x):
    shift[(x.numel() // 1024 - 1,)](x, BLOCK=1024)
    return x


def multiplied(a, b):
    c = torch.empty_like(a)
    product[(1,)](a, b, c)
    return c
