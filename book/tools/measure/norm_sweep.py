"""Launches of the norm's kernels, each held to the reference and timed against the bytes that must move, on a GPU.

`python book/tools norm_sweep [--out FILE] [--jobs 12] [--rows 50432] [--widths 192 384 768]` writes
_build/records/<gpu>/norm_sweep.json. Kernels are compiled first, by --jobs processes at once, into Triton's cache. The
rule is `launch_size` of each kernel's file. The limit is the fastest copy of as many bytes, timed in the same turns.
What a launch costs whatever its rows shows when there are more of them: the rule is timed at 2 and 4 times as
many too.
"""

import argparse
import functools
import itertools
import subprocess
import sys
from pathlib import Path

import torch
from torch.nn import functional

from flashkat_lite import hardware, rational, records
from flashkat_lite.reference import norm_rational_closed_form, norm_rational_gradients

ROWS, WIDTHS, GROUPS = 256 * 197, (192, 384, 768), 8
# x and dx, z and dz; the first as under autocast.
DTYPES = ((torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16))
Size = tuple[int, int, int, int, int]  # columns in a vector, chunks (0: the rule's), warps, programs, stages


def candidates(kernel: str, x_dtype: torch.dtype) -> list[Size]:
    """Launches worth a try: resident warps on a multiprocessor by registers, programs by warps."""
    wide = 16 // x_dtype.itemsize
    if kernel == "forward":
        shapes = [(wide, 0), (wide, 6)] if wide == 4 else [(wide, 0), (4, 0)]
        walks = [(0, 1), (24, 1), (24, 2)]  # warps on a multiprocessor (0: a program for each block), stages
        return [(*s, 4, r // 4, st) for s in shapes for r, st in walks]
    sizes = [(4, 0, w, r // w, st) for w, r, st in itertools.product((1, 2, 4), (8, 12), (0, 2, 3))]
    return sizes + [(4, 0, 2, 5, 3), (4, 6, 1, 8, 0), (2, 3, 4, 4, 0)] + [(8, 0, 1, r, 0) for r in (8, 12) if wide == 8]


def tensors(rows: int, columns: int, x_dtype: torch.dtype, z_dtype: torch.dtype):
    """dz, x, and weight, bias, numerator, denominator."""
    g = torch.Generator("cuda").manual_seed(0)
    normal = functools.partial(torch.randn, device="cuda", generator=g)
    parameters = 1 + 0.1 * normal(columns), 0.1 * normal(columns), 0.3 * normal(GROUPS, 6), 0.3 * normal(GROUPS, 4)
    return normal(rows, columns).to(z_dtype), normal(rows, columns).to(x_dtype), *parameters


def calls(dz, x, parameters):
    """Each kernel as a function of its size."""
    from flashkat_lite.kernels import norm_backward, norm_forward

    *_, mean, rstd = norm_forward.norm_forward(x, None, *parameters, dtype=dz.dtype)
    return {
        "forward": lambda size=None: norm_forward.norm_forward(x, None, *parameters, dtype=dz.dtype, size=size),
        "backward": lambda size=None: norm_backward.norm_backward(dz, None, x, mean, rstd, *parameters, size=size),
    }


def check(dz, x, parameters, call, sizes) -> dict[Size, str]:
    """Hold every launch to float64 on a few thousand rows; what fails, and why."""
    exact = [t.double() for t in (x, *parameters)]
    z, *_ = norm_rational_closed_form(exact[0], None, *exact[1:])
    gradients = norm_rational_gradients(dz.double(), None, *exact)
    wrong = {}
    for kernel, of_kernel in sizes.items():
        for size in of_kernel:
            try:
                found = call[kernel](size)
                pairs = [(found[0], z)] if kernel == "forward" else [*zip((found[0], *found[2:]), gradients)]
                for got, want in pairs:
                    scale = want.abs().amax()
                    rounding = torch.finfo(got.dtype).eps if got.dtype != torch.float32 else 2.0**-18
                    error = ((got.double() - want).abs() / (want.abs() + 0.05 * scale)).amax().item()
                    if not error <= 2 * rounding:
                        wrong[size] = f"{kernel}: error {error:.2g} of {rounding:.2g}"
            except Exception as error:  # a launch that the GPU has no room for is left out, and named
                wrong[size] = f"{kernel}: {type(error).__name__}: {str(error).splitlines()[0][:80]}"
    return wrong


def sizes_of(x_dtype: torch.dtype) -> dict[str, list[Size | None]]:
    return {kernel: [None, *candidates(kernel, x_dtype)] for kernel in ("forward", "backward")}


def jobs(widths) -> list[tuple]:
    """(columns, dtypes, kernel, size), what has to be compiled; the grid does not count."""
    return [
        (columns, dtypes, kernel, size)
        for columns, dtypes in itertools.product(widths, DTYPES)
        for kernel, sizes in sizes_of(dtypes[0]).items()
        for size in sizes
    ]


def compile_share(widths, index: int, count: int) -> None:
    for columns, dtypes, kernel, size in jobs(widths)[index::count]:
        dz, x, *parameters = tensors(64, columns, *dtypes)
        try:
            calls(dz, x, parameters)[kernel](size)
        except Exception as error:  # the check will meet it again, and name it
            print(f"{columns} {kernel} {size}: {str(error).splitlines()[0][:80]}", flush=True)


def compile_all(widths, count: int) -> None:
    command = [sys.executable, str(Path(__file__).parents[1]), "norm_sweep", "--widths", *map(str, widths)]
    shares = [subprocess.Popen([*command, "--share", str(i), str(count)], encoding="utf-8") for i in range(count)]
    for share in shares:
        share.wait()


def others(dz, x, parameters):
    """What PyTorch has: its LayerNorm, and that with our activation; the copies of as many bytes."""
    weight, bias, a, b = parameters
    leaf = [t.detach().requires_grad_() for t in (x, weight, bias, a, b)]
    norm = functional.layer_norm(leaf[0], x.shape[-1:], leaf[1].to(x.dtype), leaf[2].to(x.dtype), 1e-6)
    y = rational(norm.to(dz.dtype), *leaf[3:])
    out, dx = torch.empty_like(dz), torch.empty_like(x)

    def separately():
        normed = functional.layer_norm(x, x.shape[-1:], weight.to(x.dtype), bias.to(x.dtype), 1e-6)
        return rational(normed.to(dz.dtype), a, b)

    return {
        "separate forward": torch.no_grad()(separately),
        "separate backward": lambda: torch.autograd.grad(y, leaf, dz, retain_graph=True),
        "cast": lambda: out.copy_(x),
        "add": lambda: torch.add(x, dz, out=dx),
    }


def bytes_of(kernel: str, rows: int, columns: int, dtypes) -> int:
    of_x, of_z = (dtype.itemsize for dtype in dtypes)
    return rows * (((1 if kernel == "forward" else 2) * of_x + of_z) * columns + 8)


def copies(rows: int, columns: int, dtypes) -> dict:
    """For each kernel, a copy of as many bytes as it reads and writes."""
    sizes = {kernel: bytes_of(kernel, rows, columns, dtypes) for kernel in ("forward", "backward")}
    return {("limit", kernel): hardware.limits(1, size // 8)["copy"] for kernel, size in sizes.items()}


def by_rows(rows: int, columns: int, dtypes, seconds: float) -> list[dict]:
    """The rule at `rows`, and at 2 and 4 times as many."""
    found = []
    for n in (rows, 2 * rows, 4 * rows):
        dz, x, *parameters = tensors(n, columns, *dtypes)
        timed = {("rule", kernel): f for kernel, f in calls(dz, x, parameters).items()} | copies(n, columns, dtypes)
        times = hardware.time_interleaved(timed, seconds=seconds, most=60, warmup=0.0)
        for kernel in ("forward", "backward"):
            limit, rule = (times[what, kernel].median for what in ("limit", "rule"))
            found.append({"kernel": kernel, "columns": columns, "rows": n, "limit_ms": limit, "rule_ms": rule})
            print(f"D={columns:<4} {n} rows {kernel:<8} {limit / rule:.3f} of the limit", flush=True)
    return found


def sweep(rows: int, columns: int, dtypes, seconds: float) -> list[dict]:
    dz, x, *parameters = tensors(4096, columns, *dtypes)
    sizes = sizes_of(dtypes[0])
    wrong = check(dz, x, parameters, calls(dz, x, parameters), sizes)
    for size, why in wrong.items():
        print(f"  left out: {size}: {why}", flush=True)
    dz, x, *parameters = tensors(rows, columns, *dtypes)
    call = calls(dz, x, parameters)
    timed = {
        (kernel, size): functools.partial(call[kernel], size)
        for kernel, of_kernel in sizes.items()
        for size in of_kernel
        if size not in wrong
    }
    timed |= {("other", name): function for name, function in others(dz, x, parameters).items()}
    timed |= copies(rows, columns, dtypes)
    times = {key: t.median for key, t in hardware.time_interleaved(timed, seconds=seconds, most=60, warmup=0.0).items()}
    found = []
    names = [str(dtype).removeprefix("torch.") for dtype in dtypes]
    for kernel in ("forward", "backward"):
        limit = times["limit", kernel]
        ranked = sorted((ms, size) for (of, size), ms in times.items() if of == kernel and size is not None)
        rule = times.get((kernel, None))
        separate = times["other", f"separate {kernel}"]
        moved = times["other", "cast" if kernel == "forward" else "add"]
        found.append(
            dict(kernel=kernel, columns=columns, x=names[0], z=names[1], rows=rows, limit_ms=limit, rule_ms=rule,
                 same_bytes_ms=moved, separate_ms=separate, all=[[list(size), ms] for ms, size in ranked])
        )  # fmt: skip
        print(
            f"D={columns:<4} {names[0]}>{names[1]} {kernel:<8} limit {limit:.4f} ms, PyTorch's same bytes {moved:.4f}, "
            f"separately {separate:.4f}, rule {rule and f'{rule:.4f} = {limit / rule:.3f}'}", flush=True,
        )  # fmt: skip
        for ms, size in ranked[:6]:
            print(f"    {limit / ms:.3f} of the limit  {ms:.4f} ms  {size}", flush=True)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--jobs", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=0.03)
    parser.add_argument("--share", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if hardware.device() is None:
        print("The sweep needs a CUDA device, and there is none here.")
        return 2
    if options.share:
        return compile_share(options.widths, *options.share)
    compile_all(options.widths, options.jobs)
    print("compiled", flush=True)
    results, more = [], []
    for columns, dtypes in itertools.product(options.widths, DTYPES):
        results += sweep(options.rows, columns, dtypes, options.seconds)
    for columns in options.widths:
        more += by_rows(options.rows, columns, DTYPES[0], options.seconds)
    data = {"rows": options.rows, "groups": GROUPS, "degrees": [5, 4], "results": results, "by_rows": more}
    record = records.make(
        "norm_sweep", title="Launches of the norm's kernels", command="python book/tools norm_sweep", data=data
    )
    path = options.out or records.fresh_path("norm_sweep")
    record.save(path)
    print(f"Written: {path}")
    return 0
