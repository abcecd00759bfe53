"""The ladder: every kernel against the limits of the same run, verified before it is timed."""

import functools
import gc
from collections.abc import Callable

import torch
from torch import Tensor

from .. import hardware, ops
from ..reference import rational_reference
from ..testing import DEGREES, GROUPS, check_kernels, random_inputs

ROWS = 1024 * 197  # a batch of 1024 images of 197 tokens
WIDTHS = (192, 768, 3072)
DTYPES = (torch.float32, torch.bfloat16)


def ladder(
    rows: int, widths: tuple[int, ...], dtypes: tuple[torch.dtype, ...], seconds: float, compiled: bool
) -> dict[str, object]:
    """Verify, then time, interleaved and with a cold L2 cache, for each width and dtype; the record's data.

    "bytes" are those that must move: x in and y out, or x and dy in and dx out. "fraction_of_limit" is the time of
    "copy" (forward) or "add" (backward), which move as many, over that of the function.
    """
    results = []
    for dtype in dtypes:
        for columns in widths:
            name = str(dtype).removeprefix("torch.")
            print(f"\nD = {columns}, {name}, {rows} rows", flush=True)
            try:
                results += _case(rows, columns, dtype, seconds, compiled)
            except torch.OutOfMemoryError:
                print("  left out: not enough memory on this GPU", flush=True)
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    return {
        "rows": rows,
        "groups": GROUPS,
        "degrees": list(DEGREES),
        "columns": list(widths),
        "results": results,
        "sm_clock_mhz": _clock_under_load(),
    }


def _case(rows: int, columns: int, dtype: torch.dtype, seconds: float, compiled: bool) -> list[dict]:
    from torch._functorch import config

    from ..kernels.forward import forward

    dy, x, a, b = random_inputs(rows, columns, dtype=dtype)
    # About a second a call at D = 768: once is enough to make the point.
    rungs = [name for name in ops.BACKWARDS if name != "atomic" or (dtype == torch.float32 and columns <= 768)]
    check_kernels(dy[:4096], x[:4096], a, b, rungs)
    print("  agrees with the reference in float64; timing", flush=True)

    functions = hardware.limits(rows, columns, dtype) | {"forward": lambda: forward(x, a, b)}
    functions |= {f"backward_{name}": functools.partial(ops.BACKWARDS[name], dy, x, a, b) for name in rungs}
    with config.patch(donated_buffer=False):  # or a compiled graph could be walked back only once
        functions |= _pytorch(x, dy, a, b, compiled)
        timings = hardware.time_interleaved(functions, seconds=seconds)
    results = [_result(what, timing, timings, rows, columns, dtype) for what, timing in timings.items()]
    for line in results:
        print(
            f"  {line['what']:<20} {line['ms']:>9.3f} ms {line['bytes'] / line['ms'] / 1e6:>7.0f} GB/s "
            f"{line['fraction_of_limit']:>6.3f} of the limit",
            flush=True,
        )
    return results


def _pytorch(x: Tensor, dy: Tensor, a: Tensor, b: Tensor, compiled: bool) -> dict[str, Callable[[], object]]:
    """PyTorch's own ways, each tried once; one that does not work here is named and left out."""

    def forward(function):
        return torch.no_grad()(lambda: function(x, a, b))

    def backward(function):
        inputs = [t.detach().requires_grad_() for t in (x, a, b)]
        y = function(*inputs)
        return lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True)

    torch.compiler.reset()
    makers = {
        "gelu_forward": lambda: functools.partial(torch.nn.functional.gelu, x),
        "gelu_backward": lambda: functools.partial(torch.ops.aten.gelu_backward, dy, x),
        "eager_forward": lambda: forward(rational_reference),
        "eager_backward": lambda: backward(rational_reference),
    }
    if compiled:
        fused = torch.compile(rational_reference, dynamic=False)
        makers |= {"compiled_forward": lambda: forward(fused), "compiled_backward": lambda: backward(fused)}
    functions = {}
    for what, make in makers.items():
        try:
            function = make()
            function()
            functions[what] = function
        except RuntimeError as error:  # out of memory, or no C compiler for torch.compile
            print(f"  {what} left out: {str(error).strip().splitlines()[0]}", flush=True)
    return functions


def _result(what, timing, timings, rows, columns, dtype) -> dict[str, object]:
    limit = "add" if what == "add" or "backward" in what else "copy"
    kernels = hardware.limit_kernels(rows, columns, dtype)
    return {
        "columns": columns,
        "dtype": str(dtype).removeprefix("torch."),
        "what": what,
        **({"kernel": kernels[what]} if what in kernels else {}),
        "ms": timing.median,
        "low": timing.low,
        "high": timing.high,
        "repeats": timing.repeats,
        "bytes": hardware.limit_bytes(rows, columns, dtype)[limit],
        "fraction_of_limit": timings[limit].median / timing.median,
        "atomics": atomics(what, rows, columns),
    }


def atomics(what: str, rows: int, columns: int) -> int:
    """Return the atomic additions of one call."""
    sums = DEGREES[0] + 1 + DEGREES[1]
    if what == "backward_atomic":
        return sums * rows * columns
    if what == "backward_block":
        from ..kernels.backward_block import tile

        width = columns // GROUPS
        tile_rows, tile_columns = tile(width)
        return sums * GROUPS * -(-rows // tile_rows) * -(-width // tile_columns)
    return 0


def _clock_under_load() -> int | None:
    """Return the multiprocessors' clock while kernels that were enqueued before keep them busy."""
    if hardware.device() is None:
        return None
    x = torch.randn(2**28, device="cuda")
    for _ in range(900):  # half a second on an H200; more would fill the queue, and the host would wait
        torch.nn.functional.gelu(x)
    clock = hardware.sm_clock_mhz()
    torch.cuda.synchronize()
    return clock
