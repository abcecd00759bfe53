"""The checks of chapter 04 accept its solutions' ideas and reject common mistakes, each with its reason."""

import pytest
import torch
import torch.nn.functional as functional
import triton
import triton.language as tl
from interpreter import interpreted, kernels

from flashkat_lite.lab import checks, solutions_first_kernel


def lane(element, per_lane, warps):
    thread = element // per_lane % (32 * warps)
    return thread // 32, thread % 32


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda *case: lane(*case)[0], "expected a tuple"),
        (lambda element, per_lane, warps: lane(element, 1, warps), "per_lane neighbours"),
        (
            lambda element, per_lane, warps: (element // per_lane // 32, lane(element, per_lane, warps)[1]),
            "starts again",
        ),
        (
            lambda element, per_lane, warps: (lane(element, per_lane, warps)[0], element // per_lane % 128),
            "inside their",
        ),
    ],
)
def test_wrong_lanes_are_rejected(wrong, words):
    checks.which_lane(lane)
    with pytest.raises(checks.Wrong, match=words):
        checks.which_lane(wrong)


def test_wrong_offsets_are_rejected():
    checks.offset_in_32_bits(lambda program, block: (program * block + 2**31) % 2**32 - 2**31)
    for wrong, words in (
        (lambda program, block: program * block, "hold no such number"),
        (lambda program, block: program * block % 2**32, "highest bit is the sign"),
        (lambda program, block: min(program * block, 2**31 - 1), "wraps around"),
        (lambda program, block: program * block % 2**31, r"after 2\^32"),
    ):
        with pytest.raises(checks.Wrong, match=words):
            checks.offset_in_32_bits(wrong)


@triton.jit
def silu_kernel(
    x_ptr, y_ptr, size, columns, row_stride, column_stride,
    BLOCK: tl.constexpr, MASK: tl.constexpr, WIDEN: tl.constexpr, TWICE: tl.constexpr,
):  # fmt: skip
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = element < size
    at = element // columns * row_stride + element % columns * column_stride
    if MASK:
        x = tl.load(x_ptr + at, mask=inside, other=0.0)
    else:
        # What a kernel without a mask may find in its neighbour's memory.
        x = tl.load(x_ptr + at - row_stride, mask=inside, other=0.0)
    if TWICE:
        x = tl.load(x_ptr + at, mask=inside, other=0.0)
    if WIDEN:
        x = x.to(tl.float32)
    tl.store(y_ptr + element, x / (1.0 + tl.exp(-x.to(tl.float32)).to(x.dtype)), mask=inside)


def silu(x, strides=None, mask=True, widen=True, twice=False):
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    strides = strides or x.stride()
    silu_kernel[(triton.cdiv(x.numel(), 1024),)](
        x, y, x.numel(), x.shape[1], *strides, BLOCK=1024, MASK=mask, WIDEN=widen, TWICE=twice
    )
    return y


@kernels
def test_silu_passes():
    checks.silu_strided(silu)


@kernels
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda x: silu(x, strides=(x.shape[1], 1)), "a transposed tensor|strides were taken"),
        (lambda x: silu(x, mask=False), "NaN"),
        (lambda x: silu(x).float(), r"expected torch\.bfloat16, as x"),
        (lambda x: silu(x)[:, :-1], "expected shape"),
        (lambda x: None, "expected a tensor"),
        (lambda x: x.clone(), "the result is x"),
    ],
)
def test_wrong_silus_are_rejected(wrong, words):
    with pytest.raises(checks.Wrong, match=words):
        checks.silu_strided(wrong)


@interpreted
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda x: silu(x.contiguous()), "without a copy of x"),
        (functional.silu, "a tensor that is not|no kernel read x"),
        (lambda x: silu(x, twice=True), "x is read twice"),
    ],
)
def test_a_silu_that_moves_too_much_is_rejected(wrong, words):
    with pytest.raises(checks.Wrong, match=words):
        checks.silu_strided(wrong)


@kernels
def test_our_gelu_passes():
    checks.gelu_at_the_limit(solutions_first_kernel.gelu_solution)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (functional.gelu, "are wrong"),
        (lambda x: functional.gelu(x.bfloat16(), approximate="tanh").to(x.dtype), "are wrong"),
        (lambda x: functional.gelu(x.flatten(), approximate="tanh"), "expected shape"),
    ],
)
def test_wrong_gelus_are_rejected(wrong, words):
    with pytest.raises(checks.Wrong, match=words):
        checks.gelu_at_the_limit(wrong)


def forgets_the_tail(x):
    """Vectors of eight over a size that eight does not divide."""
    y = torch.full_like(x, float("nan"))
    whole = x.numel() // 8 * 8
    y.flatten()[:whole] = functional.gelu(x.flatten()[:whole], approximate="tanh")
    return y


@kernels
def test_a_forgotten_tail_is_found():
    with pytest.raises(checks.Wrong, match="NaN"):
        checks.gelu_at_the_limit(forgets_the_tail)


@interpreted
def test_a_gelu_without_a_kernel_is_rejected():
    with pytest.raises(checks.Wrong, match="no kernel read x"):
        checks.gelu_at_the_limit(lambda x: functional.gelu(x, approximate="tanh"))
