"""What this machine is, how fast its memory can go, and how long a function takes on it.

Times are milliseconds, bandwidths GB/s with 1 GB = 1e9 bytes, everywhere in the book. Everything here also runs where
there is no GPU: `device()` is then None, and `time_interleaved` times with the processor's clock.
"""

import dataclasses
import datetime
import functools
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from importlib import metadata

import torch

# Peak memory bandwidth in bytes/s from NVIDIA's datasheets, by the exact name that the driver reports: a laptop's
# variant or a MIG slice is another device. B200 and GH200 are "up to" figures.
DATASHEET_BANDWIDTH = {
    "NVIDIA B200": 8.0e12,
    "NVIDIA GH200 480GB": 4.0e12,
    "NVIDIA GH200 144G HBM3e": 4.9e12,
    "NVIDIA H200": 4.8e12,
    "NVIDIA H200 NVL": 4.8e12,
    "NVIDIA H100 80GB HBM3": 3.35e12,
    "NVIDIA H100 NVL": 3.9e12,
    "NVIDIA H100 PCIe": 2.0e12,
    "NVIDIA A100-SXM4-80GB": 2.039e12,
    "NVIDIA A100 80GB PCIe": 1.935e12,
    "NVIDIA A100-SXM4-40GB": 1.555e12,
    "NVIDIA A100-PCIE-40GB": 1.555e12,
    "NVIDIA A40": 696e9,
    "NVIDIA A30": 933e9,
    "NVIDIA A10": 600e9,
    "NVIDIA L40S": 864e9,
    "NVIDIA L40": 864e9,
    "NVIDIA L4": 300e9,
    "NVIDIA RTX 6000 Ada Generation": 960e9,
    "NVIDIA RTX A6000": 768e9,
    "NVIDIA GeForce RTX 5090": 1792e9,
    "NVIDIA GeForce RTX 4090": 1008e9,
    "NVIDIA GeForce RTX 3090": 936e9,
    "Tesla V100-SXM2-32GB": 900e9,
    "Tesla V100-SXM2-16GB": 900e9,
    "Tesla V100-PCIE-32GB": 900e9,
    "Tesla V100-PCIE-16GB": 900e9,
    "Tesla T4": 320e9,
}
TRITON = ("triton", "pytorch-triton", "triton-windows")  # as it is called on PyPI, and by builds of others


@dataclasses.dataclass(frozen=True)
class Device:
    """Facts about one GPU.

    name: as the driver reports it; slug: its short name (see `slug`). capability: CUDA's compute capability, such as
    "9.0". driver: its version, None where there is no nvidia-smi to ask. datasheet_bandwidth: bytes/s of its memory by
    NVIDIA's datasheet, None where DATASHEET_BANDWIDTH does not list the GPU.
    """

    name: str
    slug: str
    capability: str
    multiprocessors: int
    memory_bytes: int
    l2_bytes: int
    driver: str | None
    datasheet_bandwidth: float | None


@dataclasses.dataclass(frozen=True)
class Timing:
    """Milliseconds of one call: the median, and the quantiles at 20 % (low) and 80 % (high), of `repeats` calls."""

    median: float
    low: float
    high: float
    repeats: int


@functools.cache
def device() -> Device | None:
    """Return the current CUDA device, or None where there is none.

    It is asked for once: a process that changes its current device later still gets the first answer.
    """
    if not torch.cuda.is_available():
        return None
    facts = torch.cuda.get_device_properties(torch.cuda.current_device())
    return Device(
        name=facts.name,
        slug=slug(facts.name),
        capability=f"{facts.major}.{facts.minor}",
        multiprocessors=facts.multi_processor_count,
        memory_bytes=facts.total_memory,
        l2_bytes=facts.L2_cache_size,
        driver=_nvidia_smi("driver_version"),
        datasheet_bandwidth=DATASHEET_BANDWIDTH.get(facts.name),
    )


def slug(name: str) -> str:
    """Return a GPU's short name, for folders: a100 for "NVIDIA A100-SXM4-40GB", rtx-4090 for "NVIDIA GeForce RTX 4090".

    Makers, product lines, memory sizes and the usual socket (SXM) are dropped. What makes another device of the same
    chip stays: PCIe, NVL, Ti, a laptop's variant, a MIG slice.
    """
    dropped = r"nvidia|amd|geforce|tesla|quadro|instinct|gpu|sxm\d*|hbm\d*e?|\d+gb?"
    words = re.findall(r"[a-z0-9.]+", name.lower())
    return "-".join(word for word in words if not re.fullmatch(dropped, word)).replace(".", "-")


def _nvidia_smi(field: str, *arguments: str) -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits", *arguments]
    answer = subprocess.run(command, capture_output=True, encoding="utf-8")
    return answer.stdout.splitlines()[0].strip() if answer.returncode == 0 and answer.stdout else None


def sm_clock_mhz() -> int | None:
    """Return the multiprocessors' clock at this moment in MHz; None without a GPU or without nvidia-smi.

    An idle GPU clocks down, so ask while it works.
    """
    if device() is None:
        return None
    uuid = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
    answer = _nvidia_smi("clocks.sm", f"--id=GPU-{uuid}")
    return int(answer) if answer and answer.isdigit() else None


def versions() -> dict[str, str | None]:
    """Return the versions that a measurement depends on: of Python, torch, triton (None without it) and this package.

    Triton's is read from what is installed, or is that of its Python files where a stand-in serves them: importing it
    would fix whether kernels are compiled or interpreted.
    """
    from . import __version__, _interpreter

    installed = (found.version for name in TRITON for found in metadata.distributions(name=name))
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "triton": _interpreter.version(_interpreter.folder()) or next(installed, None),
        "flashkat_lite": __version__,
    }


def provenance(count: int = 1) -> dict:
    """Return where and when a measurement is made, ready for JSON.

    {"device": the fields of `Device` and "count", or None without a GPU; "versions": see `versions`; "date": today, as
    "2026-11-21"}. count: how many GPUs take part.
    """
    facts = device()
    return {
        "device": facts and dataclasses.asdict(facts) | {"count": count},
        "versions": versions(),
        "date": datetime.date.today().isoformat(),
    }


def time_interleaved(
    functions: dict[str, Callable[[], object]],
    *,
    seconds: float = 1.0,
    warmup: float = 0.05,
    cold_l2: bool = True,
    clean: bool = False,
    most: int = 100,
    least: int = 3,
    before: Callable[[], object] | None = None,
) -> dict[str, Timing]:
    """Return {name: Timing} of functions that are timed against one another.

    They are called in turn, in one process, so that all of them meet the same clocks. Each function is called once,
    which compiles it, then for `warmup` seconds. Then it is timed between `least` and `most` times, as often as about
    `seconds` allow; a slow one takes part in fewer of the rounds, spread over all of them.

    On a GPU a call is timed with CUDA events. Before it, the L2 cache is overwritten (cold_l2), or else the function is
    called once untimed; either keeps the GPU busy while the host prepares the launch, so that the launch is not
    measured. What was overwritten has yet to go from L2 to memory, and a call that leaves nothing there itself pays for
    it; for functions that write little, `clean` reads other memory instead. With cold_l2 a function that the host
    enqueues in more than 50 µs, such as a backward pass by autograd, finds the GPU busy for twice as long as the host
    needs. On a CPU the processor's clock is read, and caches are left as they are. `before` is called before each timed
    call, and not timed.
    """
    stopwatch = _cuda_stopwatch(cold_l2, clean) if torch.cuda.is_available() else _on_the_cpu
    repeats = {name: _warm_up(f, stopwatch, seconds, warmup, most, least) for name, f in functions.items()}
    pending = {name: [] for name in functions}
    for names in schedule(repeats):
        for name in names:
            if before:
                before()
            pending[name].append(stopwatch(functions[name]))
    return {name: summary([elapsed() for elapsed in calls]) for name, calls in pending.items()}


def _warm_up(function, stopwatch, seconds, warmup, most, least) -> int:
    function()
    once = max(stopwatch(function)() / 1e3, 1e-6)
    for _ in range(min(most, int(warmup / once))):
        function()
    return max(least, min(most, int(seconds / once)))


def schedule(repeats: dict[str, int]) -> list[list[str]]:
    """Return rounds, lists of names: each name is in repeats[name] of them, at most once a round, evenly spread.

    >>> schedule({"fast": 4, "slow": 2})
    [['fast'], ['fast', 'slow'], ['fast'], ['fast', 'slow']]
    """
    rounds = max(repeats.values(), default=0)
    return [
        [name for name, count in repeats.items() if (i + 1) * count // rounds > i * count // rounds]
        for i in range(rounds)
    ]


def summary(milliseconds: list[float]) -> Timing:
    """Return the median and the quantiles at 20 % and 80 % of several calls' times, interpolated linearly."""
    at = torch.tensor([0.5, 0.2, 0.8], dtype=torch.float64)
    median, low, high = torch.tensor(milliseconds, dtype=torch.float64).quantile(at).tolist()
    return Timing(median, low, high, len(milliseconds))


def _cuda_stopwatch(cold_l2: bool, clean: bool):
    """Return start(function), which enqueues a timed call and returns elapsed(): that waits, and gives milliseconds."""
    scratch = torch.empty(max(4 * device().l2_bytes, 2**28) if cold_l2 else 0, dtype=torch.uint8, device="cuda")
    flush = (lambda: scratch.view(torch.int64).sum()) if clean else scratch.zero_
    host = {}  # for each function the fewest seconds: a full queue of launches keeps the host for longer than it needs

    def start(function):
        if cold_l2 and (enqueuing := host.get(function, 0)) > 50e-6:
            torch.cuda._sleep(int(2 * min(enqueuing, 5e-3) * 2e9))  # cycles, of at most 2 GHz
        (flush if cold_l2 else function)()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        before = time.perf_counter()
        function()
        host[function] = min(host.get(function, torch.inf), time.perf_counter() - before)
        end.record()

        def elapsed():
            end.synchronize()
            return begin.elapsed_time(end)

        return elapsed

    return start


def _on_the_cpu(function):
    begin = time.perf_counter()
    function()
    milliseconds = (time.perf_counter() - begin) * 1e3
    return lambda: milliseconds


def limits(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> dict[str, Callable[[], torch.Tensor]]:
    """Return functions that move what a pass at its limit moves, on tensors [rows, columns] of `dtype`.

    "copy" reads one tensor and writes one, as a forward pass does. "add" reads two and writes one, as a backward pass
    does: it reads x and the gradient, and writes dx. They run on a GPU where there is one, each on the same three
    tensors at every call, and return what they wrote. `limit_bytes` counts the bytes.

    On a GPU each is the fastest of several kernels with the same bytes, PyTorch's and plain Triton's, tried here for
    this size with a cold L2 cache; `limit_kernels` tells which.
    """
    where = "cuda" if torch.cuda.is_available() else "cpu"
    x, y = (torch.randn(rows, columns, device=where).to(dtype) for _ in range(2))
    out = torch.empty_like(x)
    candidates = {
        "copy": {"PyTorch": lambda: out.copy_(x)},
        "add": {"PyTorch": lambda: torch.add(x, y, out=out)},
    }
    if where == "cuda":
        from .kernels.stream import streams

        for what, functions in candidates.items():
            functions |= streams(x, y, out, add=what == "add")
    return {what: functions[_fastest(what, rows, columns, dtype, functions)] for what, functions in candidates.items()}


_FASTEST: dict[tuple[str, int, int, torch.dtype], str] = {}


def _fastest(what: str, rows: int, columns: int, dtype: torch.dtype, functions: dict[str, Callable]) -> str:
    size = what, rows, columns, dtype
    if len(functions) > 1 and size not in _FASTEST:
        timings = time_interleaved(functions, seconds=0.05, least=10)
        _FASTEST[size] = min(timings, key=lambda name: timings[name].median)
    return _FASTEST.get(size, "PyTorch")


def limit_kernels(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> dict[str, str]:
    """Return which kernel each function of `limits` was at this size: {"copy": "PyTorch", "add": "Triton, 1024 …"}."""
    return {what: _FASTEST.get((what, rows, columns, dtype), "PyTorch") for what in ("copy", "add")}


def limit_bytes(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> dict[str, int]:
    """Return the bytes that each function of `limits` reads and writes in one call."""
    one = rows * columns * dtype.itemsize
    return {"copy": 2 * one, "add": 3 * one}


def bandwidth(nbytes: float, milliseconds: float) -> float:
    """Return GB/s, with 1 GB = 1e9 bytes."""
    return nbytes / milliseconds / 1e6


def measured_copy_bandwidth(nbytes: int = 2**28) -> float:
    """Return GB/s of copying `nbytes` of float32 with a cold L2 cache; bytes read and bytes written both count."""
    size = (1, nbytes // 4)
    copy = limits(*size)["copy"]
    return bandwidth(limit_bytes(*size)["copy"], time_interleaved({"copy": copy}, seconds=0.2)["copy"].median)
