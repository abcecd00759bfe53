"""`python -m flashkat_lite doctor` says what this machine can do; `… bench` measures the ladder on a GPU."""

import argparse
import gc
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from . import console, hardware, ops
from .reference import _grouped, dx_terms, rational_gradients, rational_reference, rounding_units

GROUPS, DEGREES = 8, (5, 4)
ROWS = 1024 * 197  # a batch of 1024 images of 197 tokens
WIDTHS = (192, 768, 3072)
DTYPES = (torch.float32, torch.bfloat16)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m flashkat_lite", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("doctor", help="what this machine can run, and what to do about what it cannot")
    command.add_argument("--json", action="store_true", help="print JSON")
    command = commands.add_parser("bench", help="measure every kernel against the floors; needs a GPU, 3 minutes")
    command.add_argument("--out", type=Path, metavar="FILE", help="default: _build/records/<gpu>/ladder.json")
    command.add_argument("--quick", action="store_true", help="D = 768 in float32, without torch.compile: 20 seconds")
    options = parser.parse_args(arguments)
    return doctor(options.json) if options.command == "doctor" else bench(options.out, options.quick)


# Correctness: what doctor and bench ask of a kernel before anything else.


def verify(x: Tensor, dy: Tensor, numerator: Tensor, denominator: Tensor, rungs: list[str]) -> None:
    """Hold the forward kernel and the named backwards to the reference in float64; AssertionError where one fails.

    y and dx: rounding to x's dtype, and 32 roundings of float32 on the way, relative to the sum of the magnitudes of
    all terms. Sums: 16 rounding units (see `rounding_units`); in the atomic rung, where each of k additions rounds a
    running sum that is as large as sqrt(Σ term²), about sqrt(k) units, at most 8 times that.
    """
    from .kernels import INTERPRETED
    from .kernels.forward import forward

    inputs = x, numerator, denominator
    wide = [t.double() for t in inputs]
    magnitudes = wide[0].abs(), wide[1].abs(), wide[2]
    rounding = torch.finfo(x.dtype).eps * (1 if INTERPRETED else 0.5)  # the interpreter truncates to bfloat16
    path = 32 * 2.0**-24

    y = rational_reference(*wide)
    _within("forward: y", forward(*inputs), y, rounding * y.abs() + path * rational_reference(*magnitudes))

    dx, _, _ = rational_gradients(dy.double(), *wide)
    z, a, b = _grouped(*magnitudes)
    terms = dx_terms(dy.double().abs().reshape(z.shape), z, a, b)
    bound = rounding * dx.abs() + path * (terms[0] - terms[1]).reshape(x.shape)
    da, db, unit_a, unit_b = rounding_units(dy, *inputs)
    additions = x.numel() // max(len(numerator), len(denominator))
    for rung in rungs:
        units = 16 if rung != "atomic" else 8 * additions**0.5
        found = ops.BACKWARDS[rung](dy, *inputs)
        for name, value, exact, most in zip(
            ("dx", "dnumerator", "ddenominator"), found, (dx, da, db), (bound, units * unit_a, units * unit_b)
        ):
            _within(f"backward_{rung}: {name}", value, exact, most)


def _within(what: str, found: Tensor, exact: Tensor, bound: Tensor) -> None:
    excess = ((found.double() - exact).abs() - bound).max().item()
    if not excess <= 0:
        raise AssertionError(f"{what} misses the reference by {excess:.2g} more than rounding explains")


def random_inputs(rows: int, columns: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, dy [rows, columns] and the two tables, random normal, seeded, on the GPU where there is one."""
    torch.manual_seed(0)
    where = "cuda" if torch.cuda.is_available() else "cpu"
    x, dy = (torch.randn(rows, columns, device=where).to(dtype) for _ in range(2))
    tables = (torch.randn(GROUPS, length, device=where) for length in (DEGREES[0] + 1, DEGREES[1]))
    return x, dy, *tables


# doctor


@dataclass(frozen=True)
class Finding:
    """One line: status is "ok", "missing" (something is done without it) or "broken"; advice is for the last two."""

    name: str
    status: str
    value: str
    advice: str = ""


def doctor(as_json: bool = False) -> int:
    """Print what works here. 0 where the package can run at all, that is, where its reference does; else 1."""
    found = []
    for finding in findings():
        found.append(finding)
        if not as_json:
            mark = {"ok": "ok", "missing": "--", "broken": "!!"}[finding.status]
            print(f" {mark}  {finding.name:<16} {finding.value}", flush=True)
            if finding.advice:
                print(f"     {'':<16} -> {finding.advice}", flush=True)
    if as_json:
        print(json.dumps(hardware.provenance() | {"findings": [asdict(finding) for finding in found]}, indent=1))
    return int(any(f.name == "reference" and f.status == "broken" for f in found))


def findings() -> Iterator[Finding]:
    versions = hardware.versions()
    yield Finding("Python", "ok", f"{versions['python']} on {platform.system()} {platform.machine()}")
    yield _torch(versions["torch"])
    yield _triton(versions["triton"])
    yield _outcome("reference", check_reference, "agrees with autograd", "the package cannot run: reinstall PyTorch")
    yield from _gpu(hardware.device(), versions["triton"])
    yield _ncu()
    yield _tool("make", ["make"], "install it (Debian: apt install make) or run the Makefile's commands by hand")
    yield _tool("npm", ["npm"], "install Node.js to build pages that ask no third party; without it they use a CDN")
    browsers = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]
    yield _tool("chromium", browsers, "install it (Debian: apt install chromium); without it the pages go untested")


def _torch(version: str) -> Finding:
    if tuple(int(part) for part in version.split(".")[:2]) < (2, 11):
        return Finding("PyTorch", "broken", version, "2.11 or newer is needed: pip install 'torch>=2.11'")
    return Finding("PyTorch", "ok", version)


def _triton(version: str | None) -> Finding:
    if version:
        return Finding("Triton", "ok", version)
    if platform.system() == "Linux":
        return Finding("Triton", "missing", "not installed", "pip install 'triton>=3.6'; until then the reference runs")
    advice = "nothing to do: the reference and the pages work; for kernels use Linux, WSL 2 or a hosted notebook"
    return Finding("Triton", "missing", f"there is none for {platform.system()}", advice)


def _outcome(name: str, check: Callable[[], object], value: str, advice: str) -> Finding:
    try:
        check()
    except Exception as error:
        first_line = str(error).strip().split("\n")[0]
        return Finding(name, "broken", f"{type(error).__name__}: {first_line}", advice)
    return Finding(name, "ok", value)


def check_reference() -> None:
    """The closed-form gradients against autograd's, on the CPU."""
    x, dy, a, b = (t.cpu().double().requires_grad_() for t in random_inputs(5, 16, torch.float32))
    expected = torch.autograd.grad(rational_reference(x, a, b), (x, a, b), dy)
    for found, gradient in zip(rational_gradients(dy, x, a, b), expected):
        torch.testing.assert_close(found, gradient)


def check_kernels() -> None:
    verify(*random_inputs(37, 48, torch.float32), list(ops.BACKWARDS))


def check_interpreter() -> None:
    """In a process of its own: Triton reads TRITON_INTERPRET when it is imported."""
    command = [sys.executable, "-c", "from flashkat_lite.__main__ import check_kernels; check_kernels()"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    answer = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", errors="replace")
    if answer.returncode:
        raise RuntimeError(answer.stderr.strip().split("\n")[-1])


def _gpu(facts: hardware.Device | None, triton: str | None) -> Iterator[Finding]:
    if facts is None:
        yield Finding("GPU", "missing", *_why_no_gpu())
        if triton:
            advice = "chapters need it here: make test shows the error in full"
            yield _outcome("interpreter", check_interpreter, "runs the kernels, and they agree", advice)
        return
    yield Finding("GPU", "ok", facts.name)
    yield Finding("driver", "ok" if facts.driver else "missing", facts.driver or "unknown: no nvidia-smi")
    yield Finding("capability", "ok", f"{facts.capability}, {facts.multiprocessors} multiprocessors")
    yield Finding("memory", "ok", f"{facts.memory_bytes / 1e9:.1f} GB, L2 cache {facts.l2_bytes / 1e6:.1f} MB")
    yield _outcome_of_copy(facts)
    if triton:
        advice = "the reference still runs: report it with the output of doctor --json"
        yield _outcome("kernels", check_kernels, "compile, and agree with the reference", advice)


def _why_no_gpu() -> tuple[str, str]:
    without = "without it, kernels run in Triton's interpreter, and timings are recorded ones"
    if shutil.which("nvidia-smi") is None:
        return "none", f"nothing to do on a laptop: {without}"
    if torch.version.cuda is None:
        return "there, but this PyTorch is a build without CUDA", f"pip install a CUDA build; {without}"
    return "there, but CUDA does not start", f"does nvidia-smi work, and is the driver recent? {without}"


def _outcome_of_copy(facts: hardware.Device) -> Finding:
    measured = hardware.measured_copy_bandwidth()
    value = f"{measured:.0f} GB/s measured"
    if facts.datasheet_bandwidth is None:
        return Finding("copy bandwidth", "ok", value + " (no datasheet figure known)")
    share = measured * 1e9 / facts.datasheet_bandwidth
    value += f", {share:.0%} of the datasheet's {facts.datasheet_bandwidth / 1e9:.0f}"
    low = "less than usual (80 to 93 %): is another process using the GPU?" if share < 0.75 else ""
    return Finding("copy bandwidth", "ok", value, low)


def _ncu() -> Finding:
    path = shutil.which("ncu")
    if path is None:
        advice = "comes with the CUDA toolkit (add its bin to PATH); without it, chapters show recorded counters"
        return Finding("ncu", "missing", "not on the PATH", advice)
    answer = subprocess.run([path, "--version"], capture_output=True, encoding="utf-8", errors="replace")
    version = next((line for line in answer.stdout.splitlines() if line.startswith("Version")), "unknown version")
    if not may_read_counters():
        advice = (
            "sudo, a container with --cap-add SYS_ADMIN, or the driver option NVreg_RestrictProfilingToAdminUsers=0"
        )
        return Finding("ncu", "missing", f"{version}, but counters are for administrators", advice)
    return Finding("ncu", "ok", version)


def may_read_counters(proc: Path = Path("/proc")) -> bool:
    """Whether the driver lets this process read performance counters: all may, or it has CAP_SYS_ADMIN."""
    parameters, status = proc / "driver/nvidia/params", proc / "self/status"
    if not parameters.exists():
        return True
    if "RmProfilingAdminOnly: 1" not in parameters.read_text(encoding="utf-8"):
        return True
    effective = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("CapEff"))
    return bool(int(effective.split()[1], 16) >> 21 & 1)


def _tool(name: str, commands: list[str], advice: str) -> Finding:
    path = next(filter(None, map(shutil.which, commands)), None)
    return Finding(name, "ok", path) if path else Finding(name, "missing", "not on the PATH", advice)


# bench


def bench(out: Path | None, quick: bool) -> int:
    """Measure the ladder, print it, write its record. 2 where that cannot be done here."""
    facts = hardware.device()
    if facts is None:
        print("bench needs a CUDA device, and there is none here: `python -m flashkat_lite doctor` says why.")
        return 2
    repository = Path(__file__).resolve().parents[1]
    if out is None and not quick:
        if not (repository / "book").is_dir():
            print("bench: this package is not in the book's repository; say where to write with --out FILE.")
            return 2
        out = repository / "_build" / "records" / facts.slug / "ladder.json"
    record = {
        "experiment": "ladder",
        "title": "Every kernel against the floors",
        **hardware.provenance(),
        "command": "python -m flashkat_lite bench" + (" --quick" if quick else ""),
        "data": ladder(ROWS, (768,), DTYPES[:1], 0.2, False) if quick else everything(),
    }
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"Written: {out}")
    return 0


def everything() -> dict[str, object]:
    """The ladder, and what bench.py measures beside it."""
    data = ladder(ROWS, WIDTHS, DTYPES, 0.5, True)
    return data | beside(data)


def beside(ladder: dict[str, object]) -> dict[str, object]:
    """Both passes against GELU's, other shapes, a small batch, memory, and the bounds: printed, and for the record."""
    from . import bench
    from .host import host_cost

    print("\nOther shapes, a small batch, memory", flush=True)
    data = {
        "pairs": bench.pairs(ladder["results"]),
        "other_shapes": bench.other_shapes(ROWS, DTYPES, 0.2),
        "small_batch": bench.small_batch(DTYPES, 0.2),
        "host": host_cost(),
        "extra_memory_bytes": bench.extra_memory(ROWS, 768),
        "bounds": bench.issue_bounds(ladder["results"], ROWS, ladder["sm_clock_mhz"]),
    }
    for line in data["pairs"]:
        print(f"  {line['dtype']:<9} D = {line['columns']:<5} forward + backward: {line['ratio']:.3f} of GELU's")
    for line in data["other_shapes"]:
        print(
            f"  {line['dtype']:<9} degrees {tuple(line['degrees'])}, width {line['width']:<4} {line['what']:<9} "
            f"{line['fraction_of_floor']:.3f} of the floor, {line['per_byte']:.2f} times (5, 4) at width 96 a byte"
        )
    for line in data["small_batch"]:
        print(f"  {line['dtype']:<9} 8 × 197 rows in a CUDA graph: {line['us']:.1f} µs, GELU {line['gelu_us']:.1f} µs")
    print(f"  host time of an eager forward and backward: {data['host']['ratio']:.2f} times GELU's")
    print(f"  memory of the backward beside its results: {data['extra_memory_bytes'] / 1e6:.2f} MB")
    for line in data["bounds"]:
        print(
            f"  {line['dtype']:<9} D = {line['columns']:<5} {line['instructions']:.1f} instructions an element; "
            f"memory {line['memory_ms']:.3f} ms, issue {line['issue_ms']:.3f} ms, {line['fraction_of_bound']:.3f} of it"
        )
    return data


def ladder(
    rows: int, widths: tuple[int, ...], dtypes: tuple[torch.dtype, ...], seconds: float, compiled: bool
) -> dict[str, object]:
    """Verify, then time, interleaved and with a cold L2 cache, for each width and dtype; the record's data.

    "bytes" are those that must move: x in and y out, or x and dy in and dx out. "fraction_of_floor" is the time of
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

    from .kernels.forward import forward

    x, dy, a, b = random_inputs(rows, columns, dtype)
    # About a second a call at D = 768: once is enough to make the point.
    rungs = [name for name in ops.BACKWARDS if name != "atomic" or (dtype == torch.float32 and columns <= 768)]
    verify(x[:4096], dy[:4096], a, b, rungs)
    print("  agrees with the reference in float64; timing", flush=True)

    functions = hardware.floors(rows, columns, dtype) | {"forward": lambda: forward(x, a, b)}
    functions |= {f"backward_{name}": _bound(ops.BACKWARDS[name], dy, x, a, b) for name in rungs}
    with config.patch(donated_buffer=False):  # or a compiled graph could be walked back only once
        functions |= _pytorch(x, dy, a, b, compiled)
        timings = hardware.time_interleaved(functions, seconds=seconds)
    results = [_result(what, timing, timings, rows, columns, dtype) for what, timing in timings.items()]
    for line in results:
        print(
            f"  {line['what']:<20} {line['ms']:>9.3f} ms {line['bytes'] / line['ms'] / 1e6:>7.0f} GB/s "
            f"{line['fraction_of_floor']:>6.3f} of the floor",
            flush=True,
        )
    return results


def _bound(function: Callable, *arguments: Tensor) -> Callable[[], object]:
    return lambda: function(*arguments)


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
        "gelu_forward": lambda: _bound(torch.nn.functional.gelu, x),
        "gelu_backward": lambda: _bound(torch.ops.aten.gelu_backward, dy, x),
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
    floor = "add" if what == "add" or "backward" in what else "copy"
    return {
        "columns": columns,
        "dtype": str(dtype).removeprefix("torch."),
        "what": what,
        "ms": timing.median,
        "low": timing.low,
        "high": timing.high,
        "repeats": timing.repeats,
        "bytes": hardware.floor_bytes(rows, columns, dtype)[floor],
        "fraction_of_floor": timings[floor].median / timing.median,
        "atomics": atomics(what, rows, columns),
    }


def atomics(what: str, rows: int, columns: int) -> int:
    """Atomic additions of one call."""
    sums = DEGREES[0] + 1 + DEGREES[1]
    if what == "backward_atomic":
        return sums * rows * columns
    if what == "backward_block":
        from .kernels.backward_block import tile

        width = columns // GROUPS
        tile_rows, tile_columns = tile(width)
        return sums * GROUPS * -(-rows // tile_rows) * -(-width // tile_columns)
    return 0


def _clock_under_load() -> int | None:
    """Of the multiprocessors, while kernels that were enqueued before keep them busy."""
    if hardware.device() is None:
        return None
    x = torch.randn(2**28, device="cuda")
    for _ in range(900):  # half a second on an H200; more would fill the queue, and the host would wait
        torch.nn.functional.gelu(x)
    clock = hardware.sm_clock_mhz()
    torch.cuda.synchronize()
    return clock


if __name__ == "__main__":
    console.prepare()
    sys.exit(main())
