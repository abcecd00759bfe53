"""What `bench` measures beside the ladder: other shapes, a small batch, memory, and the bound that issue sets.

Times are milliseconds unless a key says `us`; records are ready for JSON.
"""

import functools
from collections.abc import Callable

import torch

from .. import hardware, ops
from ..testing import GROUPS, random_inputs

# (m, n), columns in a group; the first is what the others are compared with.
SHAPES = (((5, 4), 96), ((3, 2), 96), ((6, 5), 96), ((5, 4), 100), ((5, 4), 7))
SMALL_ROWS, SMALL_COLUMNS = 8 * 197, 768
ISSUE_SLOTS = 4  # warps that a multiprocessor issues from in a cycle, on all of NVIDIA's since Volta


def pairs(results: list[dict]) -> list[dict]:
    """Forward and backward together, against PyTorch's GELU's, from the ladder's results (medians of one run)."""
    rows = []
    for columns, dtype in dict.fromkeys((line["columns"], line["dtype"]) for line in results):
        ms = {line["what"]: line["ms"] for line in results if (line["columns"], line["dtype"]) == (columns, dtype)}
        ours = ms["forward"] + ms["backward_stationary"]
        gelu = ms["gelu_forward"] + ms["gelu_backward"]
        rows.append(dict(columns=columns, dtype=dtype, ms=ours, gelu_ms=gelu, ratio=ours / gelu))
    return rows


def other_shapes(rows: int, dtypes: tuple[torch.dtype, ...], seconds: float) -> list[dict]:
    """Other degrees and widths: shares of the limits, and the time a byte against SHAPES[0]'s, in one run a dtype."""
    from ..kernels.forward import forward

    backward, table = ops.BACKWARDS["stationary"], []
    for dtype in dtypes:
        base = {}
        for degrees, width in SHAPES:
            dy, x, a, b = random_inputs(rows, GROUPS * width, degrees=degrees, dtype=dtype)
            functions = hardware.limits(rows, GROUPS * width, dtype) | {
                "forward": functools.partial(forward, x, a, b),
                "backward": functools.partial(backward, dy, x, a, b),
            }
            ms = {name: t.median for name, t in hardware.time_interleaved(functions, seconds=seconds).items()}
            for what, limit in (("forward", "copy"), ("backward", "add")):
                per_byte = ms[what] / hardware.limit_bytes(rows, GROUPS * width, dtype)[limit]
                base.setdefault(what, per_byte)
                table.append(
                    dict(
                        degrees=list(degrees),
                        width=width,
                        dtype=str(dtype).removeprefix("torch."),
                        what=what,
                        ms=ms[what],
                        fraction_of_limit=ms[limit] / ms[what],
                        per_byte=per_byte / base[what],
                    )
                )
            del x, dy
    return table


def small_batch(dtypes: tuple[torch.dtype, ...], seconds: float) -> list[dict]:
    """8 images of 197 tokens, forward and backward in one CUDA graph: microseconds, ours and PyTorch's GELU's."""
    from ..kernels.forward import forward

    table = []
    for dtype in dtypes:
        dy, x, a, b = random_inputs(SMALL_ROWS, SMALL_COLUMNS, dtype=dtype)

        def ours(x=x, dy=dy, a=a, b=b):
            return forward(x, a, b), ops.BACKWARDS["stationary"](dy, x, a, b)

        def gelu(x=x, dy=dy):
            return torch.nn.functional.gelu(x), torch.ops.aten.gelu_backward(dy, x)

        replays = {"ours": _graph(ours).replay, "gelu": _graph(gelu).replay}
        times = hardware.time_interleaved(replays, seconds=seconds, cold_l2=False)
        us, gelu_us = (1e3 * times[name].median for name in ("ours", "gelu"))
        table.append(dict(dtype=str(dtype).removeprefix("torch."), us=us, gelu_us=gelu_us, more_us=us - gelu_us))
    return table


def _graph(function: Callable[[], object]) -> torch.cuda.CUDAGraph:
    function()  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph


def extra_memory(rows: int, columns: int) -> int:
    """Bytes that the backward takes at its peak beside its inputs and what it returns."""
    dy, x, a, b = random_inputs(rows, columns)
    ops.BACKWARDS["stationary"](dy, x, a, b)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    results = ops.BACKWARDS["stationary"](dy, x, a, b)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before - sum(t.nbytes for t in results)


def issue_bounds(results: list[dict], rows: int, clock_mhz: int | None) -> list[dict]:
    """The backward against both of its bounds: memory (the time of `add`), and the issue of its instructions.

    Instructions an element are counted in the SASS of the loop, compiled here for this GPU; a multiprocessor issues
    from ISSUE_SLOTS warps of 32 threads in a cycle of the clock that was seen under load.
    """
    facts = hardware.device()
    table = []
    for dtype in ("float32", "bfloat16"):
        instructions = instructions_an_element(getattr(torch, dtype))
        for columns in sorted({line["columns"] for line in results if line["dtype"] == dtype}):
            ms = {line["what"]: line["ms"] for line in results if (line["columns"], line["dtype"]) == (columns, dtype)}
            slots = facts.multiprocessors * ISSUE_SLOTS * 32 * (clock_mhz or 0) * 1e3
            issue = rows * columns * instructions / slots if slots else 0.0
            table.append(
                dict(
                    columns=columns,
                    dtype=dtype,
                    instructions=instructions,
                    memory_ms=ms["add"],
                    issue_ms=issue,
                    fraction_of_bound=max(ms["add"], issue) / ms["backward_stationary"],
                )
            )
    return table


def instructions_an_element(dtype: torch.dtype) -> float:
    """SASS instructions of the stationary backward's loop, for each element that it takes in, at degrees (5, 4)."""
    from ..inspection import inspect_kernel
    from ..kernels import backward_stationary

    x = torch.empty(1, 8, dtype=dtype, device="cuda" if torch.cuda.is_available() else "cpu")
    block, _, unroll, stages = backward_stationary.launch_size(x.element_size(), x.device)
    constexprs = dict(
        M1=6,
        N=4,
        VECTOR=16 // dtype.itemsize,
        CONTIGUOUS=True,
        BLOCK=block,
        UNROLL=unroll,
        STAGES=stages,
        PASSES_PER_FLUSH=backward_stationary.PASSES_PER_FLUSH,
    )
    facts = hardware.device()
    report = inspect_kernel(
        backward_stationary.backward_stationary_kernel,
        constexprs,
        dtype="fp32" if dtype == torch.float32 else "bf16",
        capability=int(facts.capability.replace(".", "")) if facts else 90,
    )
    positions = block // 128  # that a thread holds
    flush = 2 * 10 * positions  # once in PASSES_PER_FLUSH passes: the ten parts join the totals and start again
    return (len(report.loop) - flush) / (constexprs["VECTOR"] * unroll * positions)
