"""Answers to the exercises of chapter 04: right ones, and wrong ones each with what its check must say."""

import torch
import torch.nn.functional as functional
import triton
import triton.language as tl


def lane(element, per_lane, warps):
    thread = element // per_lane % (32 * warps)
    return thread // 32, thread % 32


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
        x = tl.load(x_ptr + at)
    if TWICE:
        x = tl.load(x_ptr + at, mask=inside, other=0.0)
    if WIDEN:
        x = x.to(tl.float32)
    tl.store(y_ptr + element, x / (1.0 + tl.exp(-x.to(tl.float32)).to(x.dtype)), mask=inside)


def silu(x, strides=None, mask=True, widen=True, twice=False, programs=None):
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    strides = strides or x.stride()
    silu_kernel[(programs or triton.cdiv(x.numel(), 1024),)](
        x, y, x.numel(), x.shape[1], *strides, BLOCK=1024, MASK=mask, WIDEN=widen, TWICE=twice
    )
    return y


def forgets_the_tail(x):
    """Vectors of eight over a size that eight does not divide."""
    y = torch.empty_like(x)
    whole = x.numel() // 8 * 8
    y.flatten()[:whole] = functional.gelu(x.flatten()[:whole], approximate="tanh")
    return y


RIGHT = {
    "04-1": lane,
    "04-2": lambda program, block: (program * block + 2**31) % 2**32 - 2**31,
    "04-3": silu,
}

WRONG = {
    "04-1": [
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
    "04-3": [
        (lambda x: functional.silu(-x) * -1, "the sign of the exponent"),
        (
            lambda x: silu(x, strides=(x.shape[1], 1)),
            "a transposed tensor: .*strides were taken for those of a contiguous",
        ),
        (lambda x: silu(x, mask=False), r"silu_kernel.*loads outside of x_ptr, at index 21: .*a missing mask"),
        (lambda x: silu(x).float(), r"expected torch\.bfloat16, as x"),
        (lambda x: silu(x)[:, :-1], "expected shape"),
        (lambda x: None, "expected a tensor"),
        (lambda x: x.clone(), "the result is x"),
        (lambda x: silu(x.contiguous()), "without a copy of x"),
        (lambda x: functional.silu(x).contiguous(), "no kernel read x"),
        (lambda x: silu(x, twice=True), "x is read twice"),
    ],
    "04-4": [
        (lambda x: functional.gelu(x, approximate="tanh"), "no kernel read x"),
        (functional.gelu, "that is GELU by erf"),
        (lambda x: functional.gelu(x.bfloat16(), approximate="tanh").to(x.dtype), "bfloat16 was used inside"),
        (lambda x: functional.gelu(x.flatten(), approximate="tanh"), "expected shape"),
    ],
    "04-2": [
        (lambda program, block: program * block, "hold no such number"),
        (lambda program, block: program * block % 2**32, "highest bit is the sign"),
        (lambda program, block: min(program * block, 2**31 - 1), "wraps around"),
        (lambda program, block: program * block % 2**31, r"after 2\^32"),
    ],
}

# Right for what the text shows, or for one size.
FIXED = {
    "04-1": (lambda element, per_lane, warps: lane(element, per_lane, 4), "warps=2: expected 0, got 2"),
    "04-2": (lambda *case: 896, "expected 2,147,483,520, got 896"),
    "04-3": (lambda x: silu(x, programs=1), "37 rows of 56 float32.*memory from `empty` that nothing wrote"),
    "04-4": (forgets_the_tail, "3 rows of 7 float32.*memory from `empty` that nothing wrote"),
}
