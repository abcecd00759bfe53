"""Chapter 15: the traffic of two levels, column sums, a bincount that chooses, and LayerNorm's backward."""

import re
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from flashkat_lite import hardware
from flashkat_lite.testing import guarded, poisoned

from .. import setup as lab
from .common import Parts, Wrong, exercise, expect_tuple, normal, numbers, same_tensor, timed
from .kernels import no_adds, reads_all, reads_once, repeats, same_bits, stored, watch
from .language import tl, triton
from .sums import check_sums_by_index, same_column_sums


@exercise("15-1")
@numbers("bytes and steps of five clusters", (4, 8, 346e6), (2, 4, 1200.0), (16, 8, 14e9), (1, 4, 346e6), (5, 1, 100.0))
def two_level_traffic(hosts: int, gpus: int, nbytes: float) -> Parts:
    """Check bytes that a GPU sends in its host, bytes that its network card sends, and steps, for `gpus` in a host."""
    size, n = f"{hosts} hosts of {gpus} GPUs, {nbytes:,.0f} bytes", hosts * gpus
    phase, card = (gpus - 1) / gpus * nbytes, 2 * (hosts - 1) / hosts * nbytes / gpus
    yield f"bytes that a GPU sends inside its host for {size}", 2 * phase, {
        "there are two phases inside a host, before the network and after it": phase,
        "that is one ring of all GPUs": 2 * (n - 1) / n * nbytes,
        "every GPU sends everything: pieces go round, of 1/gpus each": 2 * (gpus - 1) * nbytes,
    }  # fmt: skip
    yield f"bytes that a card sends for {size}", card, {
        "after the first phase a GPU holds the host's sum of 1/gpus of the bytes only": card * gpus,
        "an all-reduce has two phases": card / 2,
        "that is one ring of all GPUs": 2 * (n - 1) / n * nbytes,
    }  # fmt: skip
    yield f"steps for {size}", 2 * (gpus - 1) + 2 * (hosts - 1), {
        "that is one ring of all GPUs": 2 * (n - 1),
        "each level has two phases": gpus - 1 + hosts - 1,
    }  # fmt: skip


@exercise("15-2")
@poisoned()
def column_sums_strided(f: Callable[[Tensor], Tensor]) -> str:
    """Check float32 column sums of a matrix of any strides, without atomic additions, the same bits each time."""
    cases = {
        "37 rows of 8": normal(37, 8, seed=1),
        "a transposed matrix of 300 rows": normal(20, 300, seed=2).T,
        "every second column of 14": normal(200, 14, seed=3)[:, ::2],
        "every third row of 1000": normal(1000, 9, seed=4)[::3],
        "1 row of 300": normal(1, 300, seed=5),
    }
    for name, x in cases.items():
        got = f(x)
        same_column_sums(f"column sums of {name}", got, x)
        repeats(f"column sums of {name}", got, f, x)
    seen = watch(f, cases["a transposed matrix of 300 rows"])
    no_adds(seen)
    reads_all(seen, 6000, "300 rows of 20, transposed")
    transposed = (lambda: torch.randn(512, 2**18, device=lab.DEVICE).T,)
    large = {"2¹⁸ rows of 512": ((2**18, 512),), "the same, transposed": transposed}
    timed(f, column_sums_strided_solution, large)
    return "column sums of five layouts, the same bits each time"


@triton.jit(do_not_specialize=["rows"])
def strided_sums_kernel(
    x_ptr, partial_ptr, rows, columns, row_stride, column_stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    column = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
        row = tl.cast(first, tl.int64) + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & (column < columns)[None, :]
        sums += tl.load(x_ptr + row[:, None] * row_stride + column[None, :] * column_stride, mask=mask, other=0.0)
    tl.store(partial_ptr + tl.program_id(0) * columns + column, tl.sum(sums, 0), mask=column < columns)


def column_sums_strided_solution(x):
    rows, columns = x.shape
    # Neighbours in memory to neighbouring threads.
    height, width = (32, 128) if x.stride(1) <= x.stride(0) else (512, 8)
    across = triton.cdiv(columns, width)
    down = min(triton.cdiv(rows, height), max(1, lab.pick(gpu=1056, cpu=2) // across))
    partial = torch.empty(down, columns, device=x.device)
    strided_sums_kernel[(down, across)](x, partial, rows, columns, *x.stride(), ROWS=height, COLUMNS=width)
    return partial.sum(0)


@exercise("15-3")
@poisoned()
def weighted_bincount(f: Callable[[Tensor, Tensor, int], Tensor]) -> str:
    """Check sums of weights by index, by atomic additions where count <= 32 size, else with few of them."""
    for seed, (count, size) in enumerate([(20000, 7), (3200, 100), (3300, 100), (5000, 300), (1, 1), (3000, 100_000)]):
        index = torch.randint(size, (count,), generator=torch.Generator().manual_seed(seed))
        index, weights = guarded(index, fill=size - 1), normal(count, seed=10 + seed)
        what = f"{count:,} weights on {size:,} addresses"
        if seen := check_sums_by_index(what, f, (index, weights, size), index, weights, size):
            adds, crowded = seen.adds.elements, count > 32 * size
            sorts = [name for name, _, _ in seen.operations.done if re.search("sort|unique|topk|kthvalue", name)]
            if sorts and not crowded:
                raise Wrong(f"{what}: expected no sorting where at most 32 meet at an address, got {sorts[0]}")
            reads_all(seen, count, what)
            if crowded and adds > count // 32:
                raise Wrong(
                    f"{what}: expected at most {count // 32:,} atomic additions, got {adds:,}. Likely cause: more than "
                    "32 meet at an address, and they were not summed before"
                )
            if not crowded and not adds:
                raise Wrong(
                    f"{what}: expected atomic additions, got none. Likely cause: at most 32 meet at an address, and "
                    "more was done about it than needed"
                )
    index = {size: partial(torch.randint, size, (2**22,), device=lab.DEVICE) for size in (64, 2**22)}
    large = {f"2²² weights on {size:,} addresses": (index[size], (2**22,), size) for size in index}
    timed(f, weighted_bincount_solution, large, good=1.3)
    return "crowded and spread, each in its own way"


@triton.jit(do_not_specialize=["count"])
def scatter_kernel(index_ptr, weights_ptr, out_ptr, count, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    index = tl.load(index_ptr + offs, mask=offs < count, other=0)
    weight = tl.load(weights_ptr + offs, mask=offs < count, other=0.0)
    tl.atomic_add(out_ptr + index, weight, mask=offs < count, sem="relaxed")


@triton.jit(do_not_specialize=["size"])
def owned_kernel(order_ptr, start_ptr, weights_ptr, partial_ptr, size, BLOCK: tl.constexpr):
    bin = tl.program_id(0)
    end = tl.load(start_ptr + bin + 1)
    sums = tl.zeros([BLOCK], tl.float32)
    for first in range(tl.load(start_ptr + bin) + tl.program_id(1) * BLOCK, end, tl.num_programs(1) * BLOCK):
        offs = first + tl.arange(0, BLOCK)
        element = tl.load(order_ptr + offs, mask=offs < end, other=0)
        sums += tl.load(weights_ptr + element, mask=offs < end, other=0.0)
    tl.store(partial_ptr + tl.program_id(1) * size + bin, tl.sum(sums))


def weighted_bincount_solution(index, weights, size):
    count, block = len(index), 1024
    if count <= 32 * size:  # few meet at an address
        out = torch.zeros(size, device=weights.device)
        scatter_kernel[(triton.cdiv(count, block),)](index, weights, out, count, BLOCK=block)
        return out
    bins, order = torch.sort(index)
    start = torch.searchsorted(bins, torch.arange(size + 1, device=index.device))
    parts = lab.pick(gpu=max(1, 2112 // size), cpu=1)
    partial = torch.empty(parts, size, device=weights.device)
    owned_kernel[(size, parts)](order, start, weights, partial, size, BLOCK=block)
    return partial.sum(0)


@exercise("15-4")
@poisoned()
def layernorm_backward(f: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor, Tensor]]) -> str:
    """Check (dx, dweight, dbias) of LayerNorm in one reading of dy and x, without atomic additions."""
    for seed, (rows, columns, eps) in enumerate([(37, 96, 1e-6), (1, 300, 1e-6), (200, 7, 0.5)]):
        dy, x = (normal(rows, columns, seed=20 + 2 * seed + k) for k in (0, 1))
        x = x + 3  # a mean that is not zero
        weight, size = normal(columns, seed=30 + seed), f"{rows} rows of {columns}"
        answer = expect_tuple(f(dy, x, weight, eps), "dx", "dweight", "dbias")
        _check_gradients(answer, dy, x, weight, eps, size)
        again = f(dy, x, weight, eps)
        for name, one, other in zip(("dweight", "dbias"), answer[1:], again[1:], strict=True):
            same_bits(f"{name} of {size}", one, other, "a second call")
    _check_one_reading(f)
    timed(f, layernorm_backward_solution, {"2¹⁷ rows of 768": ((2**17, 768), (2**17, 768), (768,), 1e-6)})
    return "three gradients for three shapes, from one reading"


def _check_gradients(answer: tuple, dy: Tensor, x: Tensor, weight: Tensor, eps: float, size: str) -> None:
    leaves = [t.double().requires_grad_() for t in (x, weight, torch.zeros_like(weight))]
    functional.layer_norm(leaves[0], weight.shape, *leaves[1:], eps).backward(dy.double())
    dx, dweight, dbias = (leaf.grad for leaf in leaves)
    centred = x.double() - x.double().mean(1, keepdim=True)
    scale = (centred.square().mean(1, keepdim=True) + eps).rsqrt()
    unit, v = centred * scale, dy.double() * weight.double()
    along = unit * (v * unit).mean(1, keepdim=True)
    few = 64 * 2.0**-24  # x - mean loses a few bits: the mean is 3
    same_tensor(f"dx of {size}", answer[0], dx, few * (1 + scale) * (1 + v.abs() + along.abs()), {
        "the mean of dy · weight was not taken off": scale * (v - along),
        "the part along x was not taken off": scale * (v - v.mean(1, keepdim=True)),
        "the weight is missing": scale * (dy - dy.mean(1, keepdim=True) - unit * (dy * unit).mean(1, keepdim=True)),
        "the row's scale is missing": dx / scale,
    })  # fmt: skip
    bound = few * len(x) ** 0.5
    same_tensor(f"dweight of {size}", answer[1], dweight, bound * (1 + (dy * unit).abs().sum(0)), {
        "x was not normalised": (dy.double() * x.double()).sum(0),
        "the weight does not belong in its own gradient": dweight * weight,
        "weight and bias are exchanged": dbias,
    })  # fmt: skip
    same_tensor(f"dbias of {size}", answer[2], dbias, bound * (1 + dy.double().abs().sum(0)), {
        "weight and bias are exchanged": dweight, "dy is summed without the weight": v.sum(0),
    })  # fmt: skip


def _check_one_reading(f: Callable) -> None:
    """Raise Wrong unless kernels read each element of dy and of x once, and add nothing atomically."""
    dy, x, weight = normal(60, 64, seed=40), normal(60, 64, seed=41), normal(64, seed=42)
    seen = watch(f, dy, x, weight, 1e-6)
    no_adds(seen, advice="let positions own their columns")
    cause = "another pass, or another kernel, reads them for the sums over rows"
    reads_once(seen, {"dy": dy, "x": x}, "60 rows of 64", cause)
    stored(seen, dx=seen and seen.result[0])


@triton.jit(do_not_specialize=["rows"])
def layernorm_backward_kernel(dy_ptr, x_ptr, weight_ptr, dx_ptr, sums_ptr, rows, columns, eps, COLUMNS: tl.constexpr):
    column = tl.arange(0, COLUMNS)
    mask = column < columns
    weight = tl.load(weight_ptr + column, mask=mask, other=0.0)
    dweight = tl.zeros([COLUMNS], tl.float32)
    dbias = tl.zeros([COLUMNS], tl.float32)
    for row in tl.range(tl.program_id(0), rows, tl.num_programs(0), num_stages=3):
        offs = tl.cast(row, tl.int64) * columns + column
        x = tl.load(x_ptr + offs, mask=mask, other=0.0)
        dy = tl.load(dy_ptr + offs, mask=mask, other=0.0)
        centred = tl.where(mask, x - tl.sum(x) / columns, 0.0)
        scale = tl.rsqrt(tl.sum(centred * centred) / columns + eps)
        unit = centred * scale
        v = dy * weight
        dx = scale * (v - tl.sum(v) / columns - unit * (tl.sum(v * unit) / columns))
        tl.store(dx_ptr + offs, dx, mask=mask)
        dweight += dy * unit
        dbias += dy
    out = sums_ptr + tl.program_id(0) * 2 * columns + column
    tl.store(out, dweight, mask=mask)
    tl.store(out + columns, dbias, mask=mask)


def layernorm_backward_solution(dy, x, weight, eps):
    rows, columns = x.shape
    programs = min(rows, 8 * hardware.device().multiprocessors if lab.GPU else 2)
    dx = torch.empty_like(x)
    sums = torch.empty(programs, 2, columns, device=x.device)
    layernorm_backward_kernel[(programs,)](
        dy, x, weight, dx, sums, rows, columns, eps, COLUMNS=triton.next_power_of_2(columns), num_warps=4
    )
    dweight, dbias = sums.sum(0)
    return dx, dweight, dbias
