"""Chapter 14: bytes of a chain of passes, what merging them saves, and a residual added in front of a norm."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from flashkat_lite.testing import poisoned

from .. import setup as lab
from .common import Parts, Wrong, exercise, expect_tuple, normal, numbers, same_tensor, timed
from .kernels import launches, no_adds, reads_once, stored, watch
from .language import tl, triton


@exercise("14-1")
@numbers("bytes of five chains", (4, 2), (2, 2), (4, 4), (2, 4), (8, 2))
def chain_bytes(x_bytes: int, z_bytes: int) -> Parts:
    """Check bytes an element of norm, cast and rational function apart, and in one pass."""
    dtypes = f"x of {x_bytes} bytes and z of {z_bytes}"
    cast = 0 if z_bytes == 4 else 4 + z_bytes
    apart, one = x_bytes + 4 + cast + 2 * z_bytes, x_bytes + z_bytes
    yield f"bytes apart for {dtypes}", apart, {
        "the cast is a pass too": x_bytes + 4 + 2 * z_bytes if cast else apart + 1,
        "z has 4 bytes, so there is nothing to cast": x_bytes + 4 + 4 + z_bytes + 2 * z_bytes,
        "the norm writes float32": 2 * x_bytes + cast + 2 * z_bytes,
        "a pass writes too": x_bytes + (0 if z_bytes == 4 else 4) + z_bytes,
    }  # fmt: skip
    yield f"bytes in one pass for {dtypes}", one, {
        "what lies between the norm and z is never in memory": x_bytes + 4 + z_bytes,
        "z is written once": x_bytes + 2 * z_bytes,
    }  # fmt: skip


@exercise("14-2")
@numbers(
    "steps of four models",
    (102.0, 12, 256 * 197 * 768, 34, 2900.0),
    (50.0, 24, 1e7, 12, 2000.0),
    (31.6, 12, 256 * 197 * 192, 34, 4000.0),
    (10.0, 1, 1e9, 2, 1000.0),
)
def merged_step(step_ms: float, blocks: int, elements: float, saved: float, gb: float) -> Parts:
    """Check the time of a step whose chains are merged, and its speed over the old one's."""
    model = f"{blocks} blocks of {elements:,.0f} elements"
    gone = blocks * elements * saved / gb / 1e6
    new = step_ms - gone
    yield f"ms for {model}", new, {
        "that is what is saved": gone,
        "every block has such a chain": step_ms - gone / blocks,
        "1 GB/s is 1e6 bytes a millisecond": step_ms - gone / 1e3,
        "what is saved goes off": step_ms + gone,
    }  # fmt: skip
    yield f"speed over the old for {model}", step_ms / new, {"a shorter step is a higher speed": new / step_ms}


@exercise("14-3")
@poisoned()
def add_and_norm(f: Callable[[Tensor, Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]) -> str:
    """Check x + branch and its LayerNorm, from one kernel that reads both once."""
    for seed, (rows, columns, eps) in enumerate([(37, 96, 1e-6), (1, 300, 1e-6), (200, 7, 0.5)]):
        x, branch = (normal(rows, columns, seed=10 * seed + k) for k in (0, 1))
        x = x + 3  # a mean that is not zero
        weight, bias = (normal(columns, seed=40 + 2 * seed + k) for k in (0, 1))
        total, y = expect_tuple(f(x, branch, weight, bias, eps), "sum", "norm")
        size = f"{rows} rows of {columns}"
        same_tensor(f"the sum of {size}", total, x + branch, 2.0**-22 * (1 + x.abs() + branch.abs()), {
            "the branch is missing": x,
            "that is its norm": functional.layer_norm(x + branch, (columns,), weight, bias, eps),
        })  # fmt: skip
        wide, w, b = (x + branch).double(), weight.double(), bias.double()
        centred = wide - wide.mean(1, keepdim=True)
        scale = (centred.square().mean(1, keepdim=True) + eps).rsqrt()
        expected = centred * scale * w + b
        same_tensor(f"the norm of {size}", y, expected, 64 * 2.0**-24 * (1 + scale) * (1 + expected.abs() + w.abs()), {
            "x was normed without the branch": functional.layer_norm(x.double(), (columns,), w, b, eps),
            "the mean was not taken off": wide * scale * w + b,
            "the bias is missing": centred * scale * w,
            "the weight is missing": centred * scale + b,
            "eps is missing, or another": functional.layer_norm(wide, (columns,), w, b, 1e-5),
            "the variance is the sum over columns - 1": centred / (wide.var(1, keepdim=True) + eps).sqrt() * w + b,
        })  # fmt: skip
    _check_one_reading(f)
    timed(f, add_and_norm_solution, {"2¹⁶ rows of 768": ((2**16, 768), (2**16, 768), (768,), (768,), 1e-6)})
    return "sum and norm of three shapes, from one reading"


def _check_one_reading(f: Callable) -> None:
    """Raise Wrong unless kernels read each element of x and of the branch once."""
    x, branch, weight, bias = normal(60, 64, seed=60), normal(60, 64, seed=61), *(normal(64, seed=s) for s in (62, 63))
    seen = watch(f, x, branch, weight, bias, 1e-6)
    no_adds(seen, advice="a program owns its rows")
    again = "the row is read again for its variance, or its sum was made by another pass"
    reads_once(seen, {"x": x, "the branch": branch}, "60 rows of 64", again)
    stored(seen, **(dict(zip(("the sum", "the norm"), seen.result)) if seen else {}))
    if seen and launches(seen) != 1:
        raise Wrong(f"expected one kernel, got {launches(seen)} launches")


@triton.jit(do_not_specialize=["rows"])
def add_and_norm_kernel(
    x_ptr,
    branch_ptr,
    weight_ptr,
    bias_ptr,
    sum_ptr,
    y_ptr,
    rows,
    columns,
    eps,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)[None, :]
    mask = (row < rows)[:, None] & (column < columns)
    offs = row[:, None] * columns + column
    x = tl.load(x_ptr + offs, mask=mask, other=0.0) + tl.load(branch_ptr + offs, mask=mask, other=0.0)
    tl.store(sum_ptr + offs, x, mask=mask)
    centred = tl.where(mask, x - (tl.sum(x, 1) / columns)[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 1) / columns + eps)[:, None]
    weight = tl.load(weight_ptr + column, mask=column < columns, other=0.0)
    bias = tl.load(bias_ptr + column, mask=column < columns, other=0.0)
    tl.store(y_ptr + offs, centred * scale * weight + bias, mask=mask)


def add_and_norm_solution(x, branch, weight, bias, eps):
    rows, columns = x.shape
    total, y = torch.empty_like(x), torch.empty_like(x)
    width = triton.next_power_of_2(columns)
    height = max(1, lab.pick(gpu=1024, cpu=4096) // width)
    add_and_norm_kernel[(triton.cdiv(rows, height),)](
        x, branch, weight, bias, total, y, rows, columns, eps, ROWS=height, COLUMNS=width
    )
    return total, y
