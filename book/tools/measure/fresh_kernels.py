"""Kernels that `flashkat_lite.xray` was not built on: a case is a name and a function that makes a call.

A call takes nothing, launches on the tensors that were made for it, and is what gets forecast and, on a GPU, timed.
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CASES: dict[str, Callable[[], Callable[[], object]]] = {}


def case(name: str) -> Callable:
    """Return a decorator that lists a function, which makes a call, under a name."""

    def listed(make: Callable) -> Callable:
        CASES[name] = make
        return make

    return listed


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=DEVICE)


def filled(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype, device=DEVICE)


def indices(below: int, *shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(below, shape, generator=generator, dtype=dtype).to(DEVICE)


BF16 = torch.bfloat16


# Rows


@triton.jit
def softmax_once(x_ptr, y_ptr, columns, BLOCK: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = column < columns
    x = tl.load(x_ptr + row * columns + column, mask=inside, other=float("-inf")).to(tl.float32)
    e = tl.exp(x - tl.max(x, 0))
    tl.store(y_ptr + row * columns + column, e / tl.sum(e, 0), mask=inside)


def softmax(rows: int, columns: int, warps: int, dtype: torch.dtype = torch.float32) -> Callable:
    x, y = filled(rows, columns, dtype=dtype), empty(rows, columns, dtype=dtype)
    block = triton.next_power_of_2(columns)
    return lambda: softmax_once[(rows,)](x, y, columns, BLOCK=block, num_warps=warps)


CASES["softmax, 65,536 × 1,000 float32, 4 warps"] = lambda: softmax(65536, 1000, 4)
CASES["softmax, 16,384 × 4,096 bfloat16, 8 warps"] = lambda: softmax(16384, 4096, 8, BF16)
CASES["softmax, 262,144 × 128 float32, 1 warp"] = lambda: softmax(262144, 128, 1)


@triton.jit
def softmax_thrice(x_ptr, y_ptr, columns, BLOCK: tl.constexpr):
    row, offs = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    x_ptr += row * columns
    y_ptr += row * columns
    most = tl.full([BLOCK], float("-inf"), tl.float32)
    for first in range(0, columns, BLOCK):
        most = tl.maximum(most, tl.load(x_ptr + first + offs, mask=first + offs < columns, other=float("-inf")))
    high = tl.max(most, 0)
    sums = tl.zeros([BLOCK], tl.float32)
    for first in range(0, columns, BLOCK):
        sums += tl.exp(tl.load(x_ptr + first + offs, mask=first + offs < columns, other=float("-inf")) - high)
    total = tl.sum(sums, 0)
    for first in range(0, columns, BLOCK):
        x = tl.load(x_ptr + first + offs, mask=first + offs < columns, other=0.0)
        tl.store(y_ptr + first + offs, tl.exp(x - high) / total, mask=first + offs < columns)


def softmax_long(rows: int, columns: int, block: int, warps: int) -> Callable:
    x, y = filled(rows, columns), empty(rows, columns)
    return lambda: softmax_thrice[(rows,)](x, y, columns, BLOCK=block, num_warps=warps)


CASES["softmax that reads rows of 65,536 three times"] = lambda: softmax_long(2048, 65536, 2048, 8)
CASES["softmax that reads rows of 6,000 three times"] = lambda: softmax_long(16384, 6000, 1024, 4)


@triton.jit
def layer_norm(x_ptr, w_ptr, b_ptr, y_ptr, columns, BLOCK: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = column < columns
    x = tl.load(x_ptr + row * columns + column, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(x, 0) / columns
    centred = tl.where(inside, x - mean, 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, 0) / columns + 1e-5)
    w, b = tl.load(w_ptr + column, mask=inside, other=0.0), tl.load(b_ptr + column, mask=inside, other=0.0)
    tl.store(y_ptr + row * columns + column, centred * rstd * w + b, mask=inside)


@triton.jit
def layer_norm_backward(dy_ptr, x_ptr, w_ptr, dx_ptr, dw_ptr, db_ptr, columns, BLOCK: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = column < columns
    x = tl.load(x_ptr + row * columns + column, mask=inside, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + row * columns + column, mask=inside, other=0.0).to(tl.float32)
    w = tl.load(w_ptr + column, mask=inside, other=0.0)
    mean = tl.sum(x, 0) / columns
    centred = tl.where(inside, x - mean, 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, 0) / columns + 1e-5)
    hat, g = centred * rstd, dy * w
    first, second = tl.sum(hat * g, 0) / columns, tl.sum(g, 0) / columns
    tl.store(dx_ptr + row * columns + column, (g - hat * first - second) * rstd, mask=inside)
    tl.atomic_add(dw_ptr + column, dy * hat, mask=inside, sem="relaxed")
    tl.atomic_add(db_ptr + column, dy, mask=inside, sem="relaxed")


@case("layer norm, 65,536 × 2,048 bfloat16")
def _():
    x, y, w, b = filled(65536, 2048, dtype=BF16), empty(65536, 2048, dtype=BF16), filled(2048), filled(2048)
    return lambda: layer_norm[(65536,)](x, w, b, y, 2048, BLOCK=2048, num_warps=8)


@case("layer norm's backward, sums added row by row, 16,384 × 1,024")
def _():
    dy, x, dx = filled(16384, 1024), filled(16384, 1024), empty(16384, 1024)
    w, dw, db = filled(1024), filled(1024), filled(1024)
    return lambda: layer_norm_backward[(16384,)](dy, x, w, dx, dw, db, 1024, BLOCK=1024, num_warps=4)


@triton.jit
def rms_norm_twice(x_ptr, w_ptr, y_ptr, columns, BLOCK: tl.constexpr):
    row, offs = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    squares = tl.zeros([BLOCK], tl.float32)
    for first in range(0, columns, BLOCK):
        x = tl.load(x_ptr + row * columns + first + offs)
        squares += x * x
    rstd = tl.rsqrt(tl.sum(squares, 0) / columns + 1e-6)
    for first in range(0, columns, BLOCK):
        x = tl.load(x_ptr + row * columns + first + offs)
        w = tl.load(w_ptr + first + offs)
        tl.store(y_ptr + row * columns + first + offs, x * rstd * w)


@case("RMSNorm that reads rows of 8,192 twice")
def _():
    x, w, y = filled(16384, 8192), filled(8192), empty(16384, 8192)
    return lambda: rms_norm_twice[(16384,)](x, w, y, 8192, BLOCK=1024, num_warps=4)


@triton.jit
def cross_entropy(x_ptr, label_ptr, loss_ptr, columns, BLOCK: tl.constexpr):
    row, offs = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    x_ptr += row * columns
    high, sums = float("-inf"), 0.0
    for first in range(0, columns, BLOCK):
        x = tl.load(x_ptr + first + offs, mask=first + offs < columns, other=float("-inf")).to(tl.float32)
        new = tl.maximum(high, tl.max(x, 0))
        sums = sums * tl.exp(high - new) + tl.sum(tl.exp(x - new), 0)
        high = new
    label = tl.load(label_ptr + row)
    tl.store(loss_ptr + row, tl.log(sums) + high - tl.load(x_ptr + label).to(tl.float32))


@triton.jit
def cross_entropy_backward(x_ptr, label_ptr, high_ptr, dx_ptr, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * columns + column, mask=column < columns, other=float("-inf")).to(tl.float32)
    p = tl.exp(x - tl.load(high_ptr + row))
    p -= tl.where(column == tl.load(label_ptr + row), 1.0, 0.0)
    tl.store(dx_ptr + row * columns + column, p, mask=column < columns)


@case("cross-entropy, 8,192 × 32,000 bfloat16")
def _():
    x, label, loss = filled(8192, 32000, dtype=BF16), indices(32000, 8192), empty(8192)
    return lambda: cross_entropy[(8192,)](x, label, loss, 32000, BLOCK=4096, num_warps=8)


@case("cross-entropy's backward, 8,192 × 32,000 bfloat16")
def _():
    x, label, high, dx = (
        filled(8192, 32000, dtype=BF16),
        indices(32000, 8192),
        filled(8192),
        empty(8192, 32000, dtype=BF16),
    )
    return lambda: cross_entropy_backward[(8192, 16)](x, label, high, dx, 32000, BLOCK=2048, num_warps=4)


@triton.jit
def quantise(x_ptr, q_ptr, scale_ptr, columns, BLOCK: tl.constexpr):
    row, offs = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    most = tl.zeros([BLOCK], tl.float32)
    for first in range(0, columns, BLOCK):
        most = tl.maximum(most, tl.abs(tl.load(x_ptr + row * columns + first + offs)))
    scale = tl.max(most, 0) / 127.0 + 1e-8
    tl.store(scale_ptr + row, scale)
    for first in range(0, columns, BLOCK):
        x = tl.load(x_ptr + row * columns + first + offs)
        tl.store(q_ptr + row * columns + first + offs, (x / scale).to(tl.int8))


@case("rows to int8, 32,768 × 4,096")
def _():
    x, q, scale = filled(32768, 4096), empty(32768, 4096, dtype=torch.int8), empty(32768)
    return lambda: quantise[(32768,)](x, q, scale, 4096, BLOCK=1024, num_warps=4)


@triton.jit
def arg_max(x_ptr, where_ptr, columns, BLOCK: tl.constexpr):
    row, offs = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    tl.store(where_ptr + row, tl.argmax(tl.load(x_ptr + row * columns + offs), 0))


@case("argmax of rows, 32,768 × 4,096")
def _():
    x, where = filled(32768, 4096), empty(32768, dtype=torch.int32)
    return lambda: arg_max[(32768,)](x, where, 4096, BLOCK=4096, num_warps=8)


@triton.jit
def running_sums(x_ptr, y_ptr, columns, BLOCK: tl.constexpr):
    row, offs = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    tl.store(y_ptr + row * columns + offs, tl.cumsum(tl.load(x_ptr + row * columns + offs), 0))


@case("running sums of rows, 65,536 × 1,024")
def _():
    x, y = filled(65536, 1024), empty(65536, 1024)
    return lambda: running_sums[(65536,)](x, y, 1024, BLOCK=1024, num_warps=4)


@triton.jit
def row_dots(m_ptr, v_ptr, out_ptr, columns, BLOCK: tl.constexpr):
    row, offs = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    sums = tl.zeros([BLOCK], tl.float32)
    for first in range(0, columns, BLOCK):
        m = tl.load(m_ptr + row * columns + first + offs).to(tl.float32)
        sums += m * tl.load(v_ptr + first + offs).to(tl.float32)
    tl.store(out_ptr + row, tl.sum(sums, 0))


@case("matrix times vector, 16,384² bfloat16")
def _():
    m, v, out = filled(16384, 16384, dtype=BF16), filled(16384, dtype=BF16), empty(16384)
    return lambda: row_dots[(16384,)](m, v, out, 16384, BLOCK=2048, num_warps=4)


# Elements


@triton.jit
def swiglu(a_ptr, b_ptr, y_ptr, size, BLOCK: tl.constexpr):
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    a = tl.load(a_ptr + offs, mask=offs < size, other=0.0).to(tl.float32)
    b = tl.load(b_ptr + offs, mask=offs < size, other=0.0).to(tl.float32)
    tl.store(y_ptr + offs, a * tl.sigmoid(a) * b, mask=offs < size)


@triton.jit
def swiglu_backward(dy_ptr, a_ptr, b_ptr, da_ptr, db_ptr, size, BLOCK: tl.constexpr):
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    a = tl.load(a_ptr + offs, mask=offs < size, other=0.0).to(tl.float32)
    b = tl.load(b_ptr + offs, mask=offs < size, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + offs, mask=offs < size, other=0.0).to(tl.float32)
    s = tl.sigmoid(a)
    tl.store(da_ptr + offs, dy * b * s * (1.0 + a * (1.0 - s)), mask=offs < size)
    tl.store(db_ptr + offs, dy * a * s, mask=offs < size)


@case("SwiGLU, 16,384 × 5,504 bfloat16")
def _():
    a, b, y = (filled(16384, 5504, dtype=BF16) for _ in range(3))
    return lambda: swiglu[(triton.cdiv(a.numel(), 1024),)](a, b, y, a.numel(), BLOCK=1024, num_warps=4)


@case("SwiGLU's backward, 16,384 × 5,504 bfloat16")
def _():
    dy, a, b, da, db = (filled(16384, 5504, dtype=BF16) for _ in range(5))
    return lambda: swiglu_backward[(triton.cdiv(a.numel(), 1024),)](
        dy, a, b, da, db, a.numel(), BLOCK=1024, num_warps=4
    )


@triton.jit
def rotary(x_ptr, cos_ptr, sin_ptr, y_ptr, heads, HALF: tl.constexpr):
    token, head = tl.program_id(0).to(tl.int64), tl.arange(0, 32)[:, None]
    offs = tl.arange(0, HALF)[None, :]
    start = (token * heads + head) * (2 * HALF)
    cos, sin = tl.load(cos_ptr + token * HALF + offs), tl.load(sin_ptr + token * HALF + offs)
    a, b = tl.load(x_ptr + start + offs).to(tl.float32), tl.load(x_ptr + start + HALF + offs).to(tl.float32)
    tl.store(y_ptr + start + offs, a * cos - b * sin)
    tl.store(y_ptr + start + HALF + offs, b * cos + a * sin)


@case("rotary embedding, 16,384 tokens of 32 heads of 128, bfloat16")
def _():
    x, y = filled(16384, 32, 128, dtype=BF16), empty(16384, 32, 128, dtype=BF16)
    cos, sin = filled(16384, 64), filled(16384, 64)
    return lambda: rotary[(16384,)](x, cos, sin, y, 32, HALF=64, num_warps=4)


@triton.jit
def dropout(x_ptr, y_ptr, seed, size, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs, mask=offs < size, other=0.0)
    keep = tl.rand(seed, offs) > 0.1
    tl.store(y_ptr + offs, tl.where(keep, x / 0.9, 0.0), mask=offs < size)


@case("dropout, 2²⁶ float32")
def _():
    x, y = filled(2**26), empty(2**26)
    return lambda: dropout[(2**16,)](x, y, 7, 2**26, BLOCK=1024, num_warps=4)


@triton.jit
def gelu(x_ptr, y_ptr, size, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs, mask=offs < size, other=0.0)
    tl.store(y_ptr + offs, 0.5 * x * (1.0 + tl.erf(x * 0.70710678)), mask=offs < size)


@case("GELU, 2²⁶ float32, 8 warps")
def _():
    x, y = filled(2**26), empty(2**26)
    return lambda: gelu[(2**15,)](x, y, 2**26, BLOCK=2048, num_warps=8)


@triton.jit
def adam(p_ptr, g_ptr, m_ptr, v_ptr, rate, size, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offs < size
    p, g = tl.load(p_ptr + offs, mask=inside), tl.load(g_ptr + offs, mask=inside)
    m, v = tl.load(m_ptr + offs, mask=inside), tl.load(v_ptr + offs, mask=inside)
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    tl.store(p_ptr + offs, p - rate * m / (tl.sqrt(v) + 1e-8), mask=inside)
    tl.store(m_ptr + offs, m, mask=inside)
    tl.store(v_ptr + offs, v, mask=inside)


@case("Adam's step, 2²⁵ float32")
def _():
    p, g, m, v = (filled(2**25) for _ in range(4))
    return lambda: adam[(2**15,)](p, g, m, v, 1e-3, 2**25, BLOCK=1024, num_warps=4)


@triton.jit
def long_polynomial(x_ptr, y_ptr, size, BLOCK: tl.constexpr, DEGREE: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs, mask=offs < size, other=0.0)
    y = x
    for k in tl.static_range(DEGREE):
        y = y * x + 0.5 / (k + 1)
    tl.store(y_ptr + offs, y, mask=offs < size)


@case("a polynomial of degree 200, 2²⁵ float32")
def _():
    x, y = filled(2**25), empty(2**25)
    return lambda: long_polynomial[(2**15,)](x, y, 2**25, BLOCK=1024, DEGREE=200, num_warps=4)


@triton.jit
def many_exps(x_ptr, y_ptr, size, BLOCK: tl.constexpr, COUNT: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs, mask=offs < size, other=0.0)
    y = tl.zeros([BLOCK], tl.float32)
    for k in tl.static_range(COUNT):
        y += tl.exp(x * (k + 1))
    tl.store(y_ptr + offs, y, mask=offs < size)


@case("32 exponentials an element, 2²⁵ float32")
def _():
    x, y = filled(2**25), empty(2**25)
    return lambda: many_exps[(2**15,)](x, y, 2**25, BLOCK=1024, COUNT=32, num_warps=4)


@triton.jit
def stencil(x_ptr, y_ptr, width, BLOCK: tl.constexpr):
    row = tl.program_id(1).to(tl.int64) + 1
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK) + 1
    inside = column < width - 1
    at = x_ptr + row * width + column
    total = tl.load(at, mask=inside) + tl.load(at - 1, mask=inside) + tl.load(at + 1, mask=inside)
    total += tl.load(at - width, mask=inside) + tl.load(at + width, mask=inside)
    tl.store(y_ptr + row * width + column, total * 0.2, mask=inside)


@case("a stencil of five points, 8,192²")
def _():
    x, y = filled(8192, 8192), empty(8192, 8192)
    return lambda: stencil[(8, 8190)](x, y, 8192, BLOCK=1024, num_warps=4)


@triton.jit
def pool(x_ptr, y_ptr, width, BLOCK: tl.constexpr):
    row = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    at = x_ptr + 2 * row * width + 2 * column
    upper = tl.maximum(tl.load(at), tl.load(at + 1))
    lower = tl.maximum(tl.load(at + width), tl.load(at + width + 1))
    tl.store(y_ptr + row * (width // 2) + column, tl.maximum(upper, lower))


@case("the largest of 2 × 2, 8,192²")
def _():
    x, y = filled(8192, 8192), empty(4096, 4096)
    return lambda: pool[(4, 4096)](x, y, 8192, BLOCK=1024, num_warps=4)


# Strides, gathers and scatters


@triton.jit
def transpose(x_ptr, y_ptr, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = (tl.program_id(1) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = (tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)
    x = tl.load(x_ptr + row[:, None] * columns + column[None, :])
    tl.store(y_ptr + column[None, :] * rows + row[:, None], x)


def transposed(tile_rows: int, tile_columns: int, warps: int) -> Callable:
    x, y = filled(8192, 8192), empty(8192, 8192)
    grid = 8192 // tile_columns, 8192 // tile_rows
    return lambda: transpose[grid](x, y, 8192, 8192, ROWS=tile_rows, COLUMNS=tile_columns, num_warps=warps)


CASES["transpose, tiles of 64 × 64"] = lambda: transposed(64, 64, 4)
CASES["transpose, one row a program"] = lambda: transposed(1, 1024, 4)


@triton.jit
def spread_store(x_ptr, y_ptr, size, STRIDE: tl.constexpr, BLOCK: tl.constexpr):
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + offs * STRIDE, tl.load(x_ptr + offs, mask=offs < size), mask=offs < size)


def spread(stride: int) -> Callable:
    x, y = filled(2**24), empty(2**24 * stride)
    return lambda: spread_store[(2**14,)](x, y, 2**24, STRIDE=stride, BLOCK=1024, num_warps=4)


CASES["2²⁴ words stored, every 4th place"] = lambda: spread(4)
CASES["2²⁴ words stored, every 16th place"] = lambda: spread(16)


@triton.jit
def scatter(x_ptr, where_ptr, y_ptr, size, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + tl.load(where_ptr + offs), tl.load(x_ptr + offs))


@triton.jit
def gather(x_ptr, where_ptr, y_ptr, size, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + offs, tl.load(x_ptr + tl.load(where_ptr + offs)))


@case("2²⁴ words scattered over 256 MiB")
def _():
    x, where, y = filled(2**24), indices(2**26, 2**24, dtype=torch.int32), empty(2**26)
    return lambda: scatter[(2**14,)](x, where, y, 2**24, BLOCK=1024, num_warps=4)


@case("2²⁴ words gathered from 256 MiB")
def _():
    x, where, y = filled(2**26), indices(2**26, 2**24, dtype=torch.int32), empty(2**24)
    return lambda: gather[(2**14,)](x, where, y, 2**24, BLOCK=1024, num_warps=4)


@case("2²⁴ words gathered from 16 MiB")
def _():
    x, where, y = filled(2**22), indices(2**22, 2**24, dtype=torch.int32), empty(2**24)
    return lambda: gather[(2**14,)](x, where, y, 2**24, BLOCK=1024, num_warps=4)


@triton.jit
def rows_by_index(table_ptr, index_ptr, out_ptr, columns, BLOCK: tl.constexpr):
    token, offs = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    row = tl.load(index_ptr + token)
    tl.store(
        out_ptr + token * columns + offs,
        tl.load(table_ptr + row * columns + offs, mask=offs < columns),
        mask=offs < columns,
    )


@case("an embedding, 262,144 tokens of 768 bfloat16, 50,257 rows")
def _():
    table, index = filled(50257, 768, dtype=BF16), indices(50257, 262144)
    out = empty(262144, 768, dtype=BF16)
    return lambda: rows_by_index[(262144,)](table, index, out, 768, BLOCK=1024, num_warps=4)


@triton.jit
def add_rows(dy_ptr, index_ptr, table_ptr, columns, BLOCK: tl.constexpr):
    token, offs = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    row = tl.load(index_ptr + token)
    tl.atomic_add(table_ptr + row * columns + offs, tl.load(dy_ptr + token * columns + offs), sem="relaxed")


@case("an embedding's gradient, 131,072 tokens of 256 on 100,000 rows")
def _():
    dy, index, table = filled(131072, 256), indices(100000, 131072), filled(100000, 256)
    return lambda: add_rows[(131072,)](dy, index, table, 256, BLOCK=256, num_warps=2)


@triton.jit
def sparse_rows(value_ptr, column_ptr, v_ptr, out_ptr, PER: tl.constexpr, ROWS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    at = row * PER + tl.arange(0, PER)[None, :]
    terms = tl.load(value_ptr + at) * tl.load(v_ptr + tl.load(column_ptr + at))
    tl.store(out_ptr + tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.sum(terms, 1))


@case("a sparse matrix, 2¹⁹ rows of 32, times a vector of 2²⁰")
def _():
    value, column = filled(2**19, 32), indices(2**20, 2**19, 32, dtype=torch.int32)
    v, out = filled(2**20), empty(2**19)
    return lambda: sparse_rows[(2**13,)](value, column, v, out, PER=32, ROWS=64, num_warps=4)


# Sums


@triton.jit
def column_walk(x_ptr, out_ptr, rows, columns, BLOCK: tl.constexpr):
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    sums = tl.zeros([BLOCK], tl.float32)
    for row in range(rows):
        sums += tl.load(x_ptr + row * columns + column)
    tl.store(out_ptr + column, sums)


@case("column sums, a program walks down 32 columns, 16,384 × 8,192")
def _():
    x, out = filled(16384, 8192), empty(8192)
    return lambda: column_walk[(256,)](x, out, 16384, 8192, BLOCK=32, num_warps=1)


@triton.jit
def column_tiles(x_ptr, out_ptr, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    sums = tl.sum(tl.load(x_ptr + row * columns + column[None, :]), 0)
    tl.atomic_add(out_ptr + column, sums, sem="relaxed")


@case("column sums, tiles of 64 × 128 add, 65,536 × 2,048")
def _():
    x, out = filled(65536, 2048), filled(2048)
    return lambda: column_tiles[(16, 1024)](x, out, 2048, ROWS=64, COLUMNS=128, num_warps=4)


@triton.jit
def total(x_ptr, out_ptr, BLOCK: tl.constexpr):
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(out_ptr, tl.sum(tl.load(x_ptr + offs), 0), sem="relaxed")


@case("one total of 2²⁷, a program adds once for 1,024")
def _():
    x, out = filled(2**27), filled(1)
    return lambda: total[(2**17,)](x, out, BLOCK=1024, num_warps=4)


@triton.jit
def bins_by_element(value_ptr, bin_ptr, size, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(bin_ptr + tl.load(value_ptr + offs), 1, sem="relaxed")


@triton.jit
def bins_by_program(value_ptr, bin_ptr, size, BLOCK: tl.constexpr, BINS: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    counts = tl.histogram(tl.load(value_ptr + offs), BINS)
    tl.atomic_add(bin_ptr + tl.arange(0, BINS), counts, sem="relaxed")


@case("a histogram of 256, each element adds, 2²³")
def _():
    values, bins = indices(256, 2**23, dtype=torch.int32), filled(256, dtype=torch.int32)
    return lambda: bins_by_element[(2**13,)](values, bins, 2**23, BLOCK=1024, num_warps=4)


@case("a histogram of 256, a program counts 4,096 first, 2²⁵")
def _():
    values, bins = indices(256, 2**25, dtype=torch.int32), filled(256, dtype=torch.int32)
    return lambda: bins_by_program[(2**13,)](values, bins, 2**25, BLOCK=4096, BINS=256, num_warps=4)


@triton.jit
def channel_moments(x_ptr, mean_ptr, channels, size, BATCH: tl.constexpr, BLOCK: tl.constexpr):
    channel, offs = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    sums, squares = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for image in range(BATCH):
        start = (image * channels + channel) * size
        for first in range(0, size, BLOCK):
            x = tl.load(x_ptr + start + first + offs, mask=first + offs < size, other=0.0)
            sums += x
            squares += x * x
    tl.store(mean_ptr + 2 * channel, tl.sum(sums, 0))
    tl.store(mean_ptr + 2 * channel + 1, tl.sum(squares, 0))


@case("moments of 256 channels, 64 images of 56²")
def _():
    x, mean = filled(64, 256, 56, 56), empty(256, 2)
    return lambda: channel_moments[(256,)](x, mean, 256, 3136, BATCH=64, BLOCK=1024, num_warps=8)


# Grids


@triton.jit
def nothing(x_ptr, size):
    if tl.program_id(0) >= size:
        tl.store(x_ptr, 0.0)


@case("2²⁰ programs that leave at once")
def _():
    x = filled(1)
    return lambda: nothing[(2**20,)](x, 2**20, num_warps=4)


@triton.jit
def few_walk(x_ptr, y_ptr, tiles, BLOCK: tl.constexpr):
    for i in range(tiles):
        offs = (tl.program_id(0).to(tl.int64) * tiles + i) * BLOCK + tl.arange(0, BLOCK)
        tl.store(y_ptr + offs, tl.load(x_ptr + offs) + 1.0)


@case("16 programs walk over 2²⁴ floats")
def _():
    x, y = filled(2**24), empty(2**24)
    return lambda: few_walk[(16,)](x, y, 512, BLOCK=2048, num_warps=8)


@case("264 programs of 4 warps walk over 2²⁶ floats")
def _():
    x, y = filled(264 * 250 * 1024), empty(264 * 250 * 1024)
    return lambda: few_walk[(264,)](x, y, 250, BLOCK=1024, num_warps=4)


@case("an addition by programs of one warp, 2²⁵ float32")
def _():
    x, y = filled(2**25), empty(2**25)
    return lambda: spread_store[(2**18,)](x, y, 2**25, STRIDE=1, BLOCK=128, num_warps=1)
