"""Chapter 11: two bounds, a warp's reads of registers, bfloat16 by hand, and SiLU's backward pass."""

import contextlib
import math
from collections.abc import Callable, Iterator
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from flashkat_lite.testing import guarded, poisoned

from .. import setup as lab
from ..ports import issue_cycles
from .common import Parts, Wrong, exercise, normal, numbers, same_number, same_tensor, timed
from .elementwise import SHAPES, read_once, same_elements, values
from .kernels import stored, watch
from .language import reciprocal, tl, to_float32, triton

RATE = 132 * 4 * 32 * 1.98e9  # each thread's instructions a second, of an H200


@exercise("11-1")
@numbers(
    "both bounds, for four kernels",
    (154_927_104, 42.4, 6, 4300.0, RATE),
    (154_927_104, 46.5, 12, 4300.0, RATE),
    (38_731_776, 82.0, 6, 4100.0, RATE),
    (1_000_000, 10.0, 4, 2000.0, RATE),
)
def two_bounds(elements: int, instructions: float, nbytes: int, bandwidth: float, rate: float) -> Parts:
    """Check milliseconds at least, and instructions at which the bounds meet, from sizes and rates."""
    size = f"{elements:,} elements, {instructions} instructions, {nbytes} bytes each, {bandwidth:,.0f} GB/s"
    memory, issue = nbytes * elements / bandwidth / 1e6, elements * instructions / rate * 1e3
    least, meet = max(memory, issue), rate * nbytes / (bandwidth * 1e9)
    yield f"milliseconds for {size}", least, {
        "the bounds overlap at best: the longer one, not their sum": memory + issue,
        "milliseconds, not seconds": least / 1e3,
        "memory alone: the instructions need longer": memory if issue > memory else math.nan,
        "the longer of the two bounds, not the shorter": min(memory, issue),
        "the rate counts each thread's instructions already: no further factor of 32": max(memory, issue / 32),
    }  # fmt: skip
    yield f"instructions an element at which both bounds are equal for {size}", meet, {
        "the number for one byte: times the bytes of an element": meet / nbytes,
        "the inverse of what was asked for": 1 / meet,
        "1 GB/s is 1e9 bytes a second": meet * 1e9,
    }  # fmt: skip


@exercise("11-2")
@numbers(
    "the cycles of ten listings",
    (["FFMA R6, R10, R14, R15", "FFMA R9, R4, R5, R6", "FFMA R8, R4, R7, R11"] * 3,),
    (["FFMA R1, R4, R3, R2.reuse", "FFMA R1, R5, R2, R6", "FFMA R1, R14, R7, R12.reuse", "FFMA R1, R9, R12, R16"],),
    (["FFMA R6, R10, R14, R15", "FFMA R9, R4.reuse, R5, R6", "FFMA R8, R4, R7, R11"] * 3,),
    (["FFMA R1, R2, R4, R6"] * 4,),
    (["FADD R1, R2, R3", "FADD R5, R6, R7"] * 4,),
    (["FMUL R1, R2.reuse, R4", "FMUL R3, R2.reuse, R6", "FMUL R5, R2, R8", "FMUL R7, R2, R10"],),
    (["FMUL R1, R2.reuse, R4", "FMUL R3, R6, R2", "FMUL R5, R4, R2", "FMUL R7, R8, R2"],),
    (["FADD R1, R8.reuse, R2", "FADD R3, R9, R4", "FADD R5, R8, R6", "FADD R7, R8, R10", "FADD R9, R8, R12"],),
    ([f"FFMA R{j + 40}, R{j}.reuse, R{2 * j % 7}, R{j + 3}" for j in range(24)],),
    ([f"FFMA R{j}, R{(j + 1) % 16}, R{(j + 2) % 16}, R{j}" for j in range(16)] * 2,),
)
def cycles_to_issue(listing: list[str]) -> Parts:
    """Check the cycle in which the last instruction of a listing issues, by the model of `flashkat_lite.lab.ports`."""

    def last(lines: list[str]) -> int:
        return issue_cycles(lines)[-1]

    right, alone = last(listing), [max(1, *(_reads(line).count(bank) for bank in (0, 1))) for line in _kept(listing)]
    shown = "; ".join(listing[:3]) + f"; … ({len(listing)} lines)" * (len(listing) > 3)
    yield f"cycles for {shown}", right, {
        "what is marked .reuse is kept: it is read once": last([line.replace(".reuse", "") for line in listing]),
        "the first register is the result: it is written, not read": last([_with_result(line) for line in listing]),
        "an operand is kept for its place in the instruction too": last(_kept(listing, by_place=False)),
        "an operand is kept until the next one in its bank and place": last(_kept(listing, forget=False)),
        "reads may wait for the two cycles after the issue: only what does not fit into three holds the warp up":
            sum(alone[:-1]) + 1,
        "an instruction does not wait until all of its registers are read": sum(alone),
        "the ports are of one bank each: a crowd in one leaves the other idle":
            max(len(listing), math.ceil(sum(len(_reads(line)) for line in _kept(listing)) / 2)),
        "the first instruction issues in cycle 1, not 0": right - 1,
    }  # fmt: skip


def _kept(listing: list[str], by_place: bool = True, forget: bool = True) -> list[str]:
    """Return a listing without what is kept, by the model's rule or a wrong one: 0 for what is not read."""
    kept, lines = {}, []
    for line in listing:
        head, *operands = line.split(", ")
        for place, operand in enumerate(operands):
            register = operand.removesuffix(".reuse")
            key = int(register[1:]) % 2, place if by_place else 0
            operands[place] = "0" if kept.get(key) == register else register
            if operand != register:
                kept[key] = register
            elif forget:
                kept[key] = None
        lines.append(", ".join([head, *operands]))
    return lines


def _reads(line: str) -> list[int]:
    """Return the banks of an instruction's operands."""
    return [int(operand[1:]) % 2 for operand in line.split(", ")[1:] if operand.startswith("R")]


def _with_result(line: str) -> str:
    opcode, registers = line.split(" ", 1)
    return f"{opcode} R0, {registers}"


@exercise("11-3")
@poisoned()
def unpack_pairs(f: Callable[[Tensor], Tensor]) -> str:
    """Check bfloat16 [K], K even, as float32 [K], read 32 bits at a time."""
    g = torch.Generator().manual_seed(113)
    special = torch.tensor([0.0, -0.0, 1.0, -1.0, 3e38, -3e38, 1e-40, -1e-40, 1.0078125, -2.5, 1e-30, 255.0])
    cases = {
        "12 special numbers": special,
        "2 numbers": torch.tensor([-3.5, 7.25]),
        "10,002 random numbers": torch.randn(10_002, generator=g),
    }
    for name, wide in cases.items():
        x = guarded(wide.to(torch.bfloat16))
        with _conversions() as converted:
            got = f(x)
        if converted:
            raise Wrong(f"float32 of {name}: a conversion instead of bits (.to, from bfloat16)")
        what, exact = f"float32 of {name}", x.float()
        swapped = exact.view(-1, 2).flip(1).flatten()
        bits, is_first = x.view(torch.int32), torch.arange(len(x), device=lab.DEVICE) % 2 == 0
        logical = torch.stack([bits << 16, bits], 1).flatten().view(torch.float32)
        same_tensor(what, got, exact, 0.0, {
            "the two halves are swapped: the first number of a pair is the lower half": swapped,
            "the upper half needs a mask: the other number's bits are still below it": logical,
            "only the first number of each pair is right: the second went missing": torch.where(is_first, exact, 0),
            "only the second number of each pair is right: the first went missing": torch.where(is_first, 0, exact),
            "numbers too small to be normal went to zero: a conversion instead of bits":
                torch.where(exact.abs() < 2.0**-126, 0, exact),
            "all first numbers come before all second ones: pairs are neighbours in the result":
                torch.cat([exact[::2], exact[1::2]]),
        }, torch.float32)  # fmt: skip
        if not torch.equal(got.view(torch.int32), exact.view(torch.int32)):
            at = int((got.view(torch.int32) != exact.view(torch.int32)).nonzero()[0])
            raise Wrong(
                f"{what}: expected the bits of {exact[at].item()}, got those of {got[at].item()} at index {at}. Likely "
                "cause: arithmetic instead of bits (a sign of zero is lost)"
            )
    if seen := watch(f, x):
        loads = seen.loads.of(x)
        stored(seen, **{what: seen.result})
        if not loads.elements:
            raise Wrong("expected a Triton kernel that reads x where it lies, got none: no load of it was seen")
        pairs = sum(addresses.size for addresses, size in loads if size == 4)
        same_number("loads of 32 bits for 10,002 numbers", pairs, 5001, {
            "the kernel loads 16 bits at a time: hand it x.view(torch.int32)": 0, "each pair is loaded twice": 10_002,
        })  # fmt: skip
    timed(f, unpack_pairs_solution, {"2²⁷ numbers": ((2**27,),)}, dtype=torch.bfloat16)
    return "every bit, also of -0 and of numbers too small to be normal"


@contextlib.contextmanager
def _conversions() -> Iterator[list[str]]:
    """Tell the conversions from bfloat16 that kernels make inside, in the interpreter."""
    made: list[str] = []
    if lab.GPU:
        yield made
        return
    from triton.runtime.interpreter import interpreter_builder

    original = interpreter_builder.cast_impl

    def cast(source, kind):
        if source.get_element_ty().is_bf16():
            made.append(str(kind))
        return original(source, kind)

    with mock.patch.object(interpreter_builder, "cast_impl", cast):
        yield made


@triton.jit
def unpack_kernel(pair_ptr, out_ptr, pairs, BLOCK: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCK
    pair = first + tl.arange(0, BLOCK)
    bits = tl.load(pair_ptr + pair, mask=pair < pairs, other=0)
    low = (bits << 16).to(tl.float32, bitcast=True)
    high = (bits & -65536).to(tl.float32, bitcast=True)  # 0xffff0000
    offs = 2 * first + tl.arange(0, 2 * BLOCK)
    tl.store(out_ptr + offs, tl.interleave(low, high), mask=offs < 2 * pairs)


def unpack_pairs_solution(x):
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    pairs = x.view(torch.int32)
    block = lab.pick(gpu=512, cpu=4096)
    grid = (triton.cdiv(pairs.numel(), block),)
    unpack_kernel[grid](pairs, out, pairs.numel(), BLOCK=block)
    return out


@exercise("11-4")
@poisoned()
def silu_backward(f: Callable[[Tensor, Tensor], Tensor]) -> str:
    """Check dx = dy · SiLU'(x), contiguous, in x's dtype, computed in float32."""
    for seed, (name, shape) in enumerate(SHAPES.items(), 114):
        x, dy = values(*shape, seed=seed), normal(*shape[:2], seed=seed + 4, dtype=shape[2])
        with np.errstate(over="ignore"):  # exp of 200 is infinite, and rightly so; the interpreter would warn
            got = f(dy, x)
        wide, wide_dy = x.double(), dy.double()
        s = torch.sigmoid(wide)
        causes = {
            "that is SiLU itself times dy, not its derivative": wide * s * wide_dy,
            "dy is missing": _silu_slope(wide),
            "the product rule: x · sigmoid(x) has two terms, and one is missing": s * wide_dy,
            "x and dy are exchanged": _silu_slope(wide_dy) * wide,
            "bfloat16 was used inside: widen x and dy to float32 first": (_silu_slope(x) * dy).double(),
        }
        # A wrong formula is recognised by far less than what is right: a dozen float32 roundings.
        causes = {cause: (wrong, 2.0**-6 * wrong.abs() + 1e-4) for cause, wrong in causes.items()}
        bound = 16 * 2.0**-24 * (1 + wide.abs()) * wide_dy.abs() + 2.0**-40
        same_elements(f"dx for {name}", got, x, _silu_slope(wide) * wide_dy, bound, causes)
    read_once(f, (dy, x), {"x": x, "dy": dy}, name)
    pair = (2**17, 768), (2**17, 768)
    timed(f, silu_backward_solution, {"131,072 rows of 768 bfloat16": pair}, dtype=torch.bfloat16)
    return "SiLU's backward pass of four shapes in two dtypes" + ", each element read once" * (not lab.GPU)


def _silu_slope(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))


@triton.jit(do_not_specialize=["size"])
def silu_backward_kernel(dy_ptr, x_ptr, dx_ptr, size, VECTOR: tl.constexpr, BLOCK: tl.constexpr, UNROLL: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * (BLOCK * UNROLL)
    for k in tl.static_range(UNROLL):
        vector = first + k * BLOCK + tl.arange(0, BLOCK)
        offs = vector[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]
        mask = (vector < size // VECTOR)[:, None]
        x = to_float32(tl.load(x_ptr + offs, mask=mask, other=0.0))
        dy = to_float32(tl.load(dy_ptr + offs, mask=mask, other=0.0))
        s = reciprocal(1.0 + tl.exp2(x * -1.4426950408889634))  # the sigmoid
        tl.store(dx_ptr + offs, dy * (s + x * (s - s * s)), mask=mask)


def silu_backward_solution(dy, x):
    dx = torch.empty_like(x)
    widest = 16 // x.element_size()
    vector = next(v for v in (widest, 4, 2, 1) if x.numel() % v == 0)
    block, unroll = lab.pick(gpu=(128, 2), cpu=(1024, 2))
    grid = (triton.cdiv(x.numel(), vector * block * unroll),)
    silu_backward_kernel[grid](dy, x, dx, x.numel(), VECTOR=vector, BLOCK=block, UNROLL=unroll)
    return dx
