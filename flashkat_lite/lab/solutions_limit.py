"""Chapter 10's timed solutions: the yardstick of its speed exercises, as the chapter shows them."""

import torch
import triton
import triton.language as tl

from flashkat_lite import hardware, lab
from flashkat_lite.kernels.layout import programs_per_whole_rows, vector_width

# Exercise 10.3


@triton.jit(do_not_specialize=["vectors", "step", "vectors_per_row"])
def scale_backward_kernel(
    dy_ptr, x_ptr, scale_ptr, dx_ptr, partial_ptr, vectors, step, vectors_per_row,
    VECTOR: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    within = tl.arange(0, VECTOR)[None, :]
    scale = tl.load(scale_ptr + (lane % vectors_per_row)[:, None] * VECTOR + within)
    sums = tl.zeros([BLOCK, VECTOR], tl.float32)  # a lane's own columns: nobody else adds to these
    for first in tl.range(0, vectors, step, num_stages=STAGES):
        vector = tl.cast(first, tl.int64) + lane
        at = vector[:, None] * VECTOR + within
        inside = (vector < vectors)[:, None]
        dy = tl.load(dy_ptr + at, mask=inside, other=0.0)
        x = tl.load(x_ptr + at, mask=inside, other=0.0)
        tl.store(dx_ptr + at, dy * scale, mask=inside)
        sums += dy * x
    tl.store(partial_ptr + lane[:, None] * VECTOR + within, sums)


def scale_backward_solution(dy, x, scale):
    columns = x.shape[1]
    vector = vector_width(4, columns)
    many = hardware.device().multiprocessors if lab.GPU else 1
    block = lab.pick(gpu=128, cpu=1024)
    unit = programs_per_whole_rows(columns // vector, block)  # programs to whole rows
    programs = max(1, 4 * many // unit) * unit
    step = programs * block
    dx = torch.empty_like(x)
    partial = x.new_empty(step * vector // columns, columns)  # lanes over one another share columns
    scale_backward_kernel[(programs,)](
        dy, x, scale, dx, partial, x.numel() // vector, step, columns // vector,
        VECTOR=vector, BLOCK=block, STAGES=3, num_warps=4,
    )  # fmt: skip
    return dx, partial.sum(0)


# Exercise 10.4


@triton.jit
def last_sums_kernel(x_ptr, partial_ptr, done_ptr, out_ptr, count, BLOCK: tl.constexpr, PARTS: tl.constexpr):
    programs = tl.num_programs(0)
    sums = tl.zeros([BLOCK], tl.float32)
    for first in range(tl.program_id(0) * BLOCK, count, programs * BLOCK):
        at = first + tl.arange(0, BLOCK)
        sums += tl.load(x_ptr + at, mask=at < count, other=0.0)
    tl.store(partial_ptr + tl.program_id(0), tl.sum(sums))
    tl.debug_barrier()
    before = tl.atomic_add(done_ptr, 1, sem="acq_rel")
    if before == programs - 1:  # the others have stored, and said so
        part = tl.arange(0, PARTS)
        tl.store(out_ptr, tl.sum(tl.load(partial_ptr + part, mask=part < programs, other=0.0)))


def sum_in_one_launch_solution(x, block=2048):
    parts = max(1, min(lab.pick(gpu=1056, cpu=4), triton.cdiv(len(x), block)))
    partial, out = x.new_empty(parts), x.new_empty(())
    done = torch.zeros(1, dtype=torch.int32, device=x.device)
    last_sums_kernel[(parts,)](
        x, partial, done, out, len(x), BLOCK=block, PARTS=triton.next_power_of_2(parts), num_warps=8
    )
    return out
