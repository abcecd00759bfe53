"""Compile a kernel for a GPU that need not be there, and read what came out: registers, spills, PTX, SASS.

Compilations run in processes of their own. When Triton is imported it decorates its language either for the interpreter
or for the compiler, so a process that interprets kernels cannot compile them too. The processes are kept for the next
request, since starting one takes longer than most compilations.
"""

import atexit
import contextlib
import dataclasses
import functools
import gzip
import hashlib
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
import textwrap
import threading
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from . import _interpreter, console, records

ELEMENTS = ("x_ptr", "dy_ptr", "y_ptr", "dx_ptr")  # pointers that follow the activation's dtype; the rest are float32
AMD_FACTS = ("vgpr_count", "private_segment_fixed_size")
CORES = os.cpu_count() or 1
DEFAULTS = dict(
    dtype="fp32", capability=90, num_warps=4, num_stages=None, maxnreg=None, pointers=None, aligned=True,
    signature=None, lines=False,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Report:
    """What one compilation produced.

    capability: the target, 90 or "gfx942". registers: of a thread, of 32 bits. spills: bytes of local memory of a
    thread, on its stack too. shared: bytes of shared memory of a program. instructions: {opcode: how often it stands in
    the assembly}, however often it is executed. ttir, ttgir, ptx, sass: the text of each stage.

    origins: (first line, lines, file, line there) of each function whose source was copied into the compiler's file.

    For AMD's gfx targets `sass` holds their assembly, `registers` are vector registers, and there is no PTX.
    """

    capability: int | str
    registers: int
    spills: int
    shared: int
    instructions: dict[str, int]
    ttir: str
    ttgir: str
    ptx: str
    sass: str
    origins: tuple[tuple[int, int, str, int], ...] = ()

    def count(self, pattern: str) -> int:
        """Return how many instructions have an opcode, such as LDG.E.128, that a regular expression matches.

        It must match from the opcode's start, and may end before the opcode does.
        """
        return sum(n for opcode, n in self.instructions.items() if re.match(pattern, opcode))

    @property
    def atomics(self) -> int:
        """The number of atomic instructions on global memory: RED(G), which return nothing, and ATOM(G), which do."""
        return self.count(r"(REDG?|ATOMG?)(\.|$)")

    @property
    def loop(self) -> list[str]:
        """The SASS instructions of the longest loop that holds no other loop, in order; [] where there is no loop."""
        labels, lines, loops = {}, [], []
        for line, label in re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(.*?);|^(\.L_x_\d+):", self.sass, re.M):
            if label:
                labels[label] = len(lines)
            else:
                lines.append(line.strip())
                target = labels.get("".join(re.findall(r"BRA.*?(\.L_x_\d+)", line)[:1]))
                if target is not None:
                    loops.append((target, len(lines)))
        inner = [(a, b) for a, b in loops if not any((c, d) != (a, b) and a <= c and d <= b for c, d in loops)]
        first, last = max(inner, key=lambda loop: loop[1] - loop[0], default=(0, 0))
        return lines[first:last]

    @property
    def load_bytes(self) -> int:
        """The widest load from global memory (LDG, LDGSTS), in bytes a thread: 4 where none names a width."""
        widths = [int(w) for w in re.findall(r"\b(?:LDG|LDGSTS)\.[A-Z0-9.]*?(\d+)\b", " ".join(self.instructions))]
        wide = [w for w in widths if w in (64, 128, 256)]
        return max(wide) // 8 if wide else 4


def inspect_kernel(
    kernel: Any,
    constexprs: dict[str, Any],
    *,
    dtype: str = "fp32",
    capability: int | str = 90,
    num_warps: int = 4,
    num_stages: int | None = None,
    maxnreg: int | None = None,
    pointers: dict[str, str] | None = None,
    aligned: bool | list[str] = True,
    signature: dict[str, str] | None = None,
) -> Report:
    """Compile a kernel and report on it.

    kernel: a @triton.jit function of a module or of a notebook. constexprs: the values of its constexpr arguments, by
    name, where they differ from the defaults. Its other arguments get their types by their names:

    - those in ELEMENTS are pointers to `dtype`: "fp32", "bf16" or "fp16";
    - others that end in _ptr are pointers to float32, or to what `pointers` says, as {"da_ptr": "fp64"};
    - the rest are 32-bit integers.

    signature: the types by name instead, in Triton's words ("*bf16", "i64"); no name is guessed from then.
    capability: NVIDIA's compute capability without its dot, 75 to 120, or an AMD target such as "gfx942". aligned: let
    the compiler take pointers for multiples of 16 bytes, which those of torch's own tensors are; or the names of the
    arguments, pointers and integers, that are multiples of 16. num_stages: of loops that do not say their own.
    maxnreg: the most registers of a thread. Raises RuntimeError with the compiler's words where it fails.
    """
    return inspect_many([dict(kernel=kernel, constexprs=constexprs, dtype=dtype, capability=capability,
                              num_warps=num_warps, num_stages=num_stages, maxnreg=maxnreg, pointers=pointers,
                              aligned=aligned, signature=signature)])[0]  # fmt: skip


def inspect_many(requests: list[dict[str, Any]]) -> list[Report]:
    """Return a report for each request, in order; a request holds the arguments of `inspect_kernel` by name.

    One call with many requests is faster than many calls: they are shared among as many processes as there are cores.
    Raises RuntimeError, as `inspect_kernel` does, where one of them fails. Where a stand-in takes the place of Triton's
    compiled module, the chapters' own requests are answered from a record, and a printed line says so.
    """
    jobs = [DEFAULTS | request for request in requests]
    for job in jobs:
        kernel = job.pop("kernel")
        origins = []
        job |= dict(source=source_of(kernel, origins), name=kernel.fn.__name__, origins=origins)
    if _interpreter.folder():
        return _recorded(jobs)
    with tempfile.TemporaryDirectory() as folder:
        for i, job in enumerate(jobs):
            path = Path(folder) / f"kernel_{i}.py"
            path.write_text(job["source"], encoding="utf-8")
            job["path"] = str(path)
        # AMD's targets switch our assembly off in the process that compiles for them, which is then of no further use.
        apart, pooled = (
            [i for i, job in enumerate(jobs) if isinstance(job["capability"], str) == amd] for amd in (True, False)
        )
        shares = [apart] * bool(apart) + [pooled[k::CORES] for k in range(min(len(pooled), CORES))]
        with ThreadPoolExecutor(max(len(shares), 1)) as pool:
            tasks = [([jobs[i] for i in share], share[0] not in apart) for share in shares]
            done = list(pool.map(lambda task: _compile_elsewhere(*task), tasks))
    reports = {i: facts for share, found in zip(shares, done) for i, facts in zip(share, found)}
    found = [Report(**reports[i]) for i in range(len(jobs))]
    for job, report in zip(jobs, found):
        _keep(job, report)
    return found


# Listings for machines without a compiler


def _key(job: dict[str, Any]) -> str:
    """Return what a compilation is known by: a hash of all that was asked for, the kernel's source included."""
    since = "num_stages", "signature", "lines"  # asked for since the record was made, and by no chapter
    asked = {
        name: value for name, value in job.items()
        if name not in ("path", "origins") and not (name in since and value == DEFAULTS[name])
    }  # fmt: skip
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


def _keep(job: dict[str, Any], report: Report) -> None:
    """Write a report where FLASHKAT_LISTINGS names a folder: `python book/tools listings` makes the record of them."""
    if folder := os.environ.get("FLASHKAT_LISTINGS"):
        facts = {name: value for name, value in dataclasses.asdict(report).items() if name != "origins"}
        text = json.dumps({"name": job["name"]} | facts)
        (Path(folder) / f"{_key(job)}.json").write_text(text, encoding="utf-8")


@functools.cache
def listings() -> dict[str, Any]:
    """Return the record of the chapters' compilations: {"triton": version, "chapters": {name: {_key: report}}}.

    A stage's text that the chapter does not read is left out.
    """
    path = records.root() / "book" / "data" / "listings.json.gz"
    return json.loads(gzip.decompress(path.read_bytes()))


def _recorded(jobs: list[dict[str, Any]]) -> list[Report]:
    kept, found = listings(), []
    reports = {key: report for chapter in kept["chapters"].values() for key, report in chapter.items()}
    for job in jobs:
        report = reports.get(_key(job))
        if report is None:
            raise RuntimeError(
                f"There is no compiler here, and no record of {job['name']} as it was asked for: compile it where "
                "Triton has a wheel, on Linux, in WSL 2 or in a container"
            )
        found.append(Report(**{name: value for name, value in report.items() if name != "name"}))
    print(f"There is no compiler here: what follows was compiled elsewhere by Triton {kept['triton']}, and recorded.")
    return found


class _Compiler:
    """A process that compiles: a line of JSON asks for one compilation, a line of JSON answers.

    The process ends when its input does: at `close`, or when this process ends.
    """

    def __init__(self, environment: dict[str, str]):
        self.settings, self.owner = _settings(environment), os.getpid()
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115, closed by close()
        command = console.python("inspection", "_serve()")
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, encoding="utf-8")
        self.process = subprocess.Popen(command, env=environment, **pipes)

    def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        try:
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())
        except (OSError, ValueError):  # the compiler took its process down: LLVM does
            self.process.wait()
            self.errors.seek(0)
            words = self.errors.read().decode(errors="replace").strip()
            return {"error": words or f"the compiler's process ended with {self.process.returncode}"}

    def close(self) -> None:
        with contextlib.suppress(OSError):  # of a process that is no more
            self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()
        self.errors.close()


def _settings(environment: dict[str, str]) -> dict[str, str]:
    """Return the variables of an environment that a compiler's output can depend on."""
    return {k: v for k, v in environment.items() if k.startswith(("TRITON", "PYTHON", "LLVM", "MLIR", "CUDA"))}


_idle: list[_Compiler] = []
_lock = threading.Lock()


def _environment() -> dict[str, str]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return environment | {"TRITON_DISABLE_LINE_INFO": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def start_compilers(count: int) -> None:
    """Start processes that compile, which import for seconds, before anything is asked of them."""
    with _lock:
        _idle.extend(_Compiler(_environment()) for _ in range(count))


def _compile_elsewhere(jobs: list[dict[str, Any]], keep: bool) -> list[dict[str, Any]]:
    environment = _environment()
    with _lock:
        wanted = (_settings(environment), os.getpid())
        alive = [c for c in _idle if c.process.poll() is None]
        fits = [c for c in alive if (c.settings, c.owner) == wanted] if keep else []
        _idle[:] = [c for c in alive if c not in fits[-1:]]
    compiler = fits[-1] if fits else _Compiler(environment)
    done = []
    for job in jobs:
        done.append(compiler(job))
        if "error" in done[-1]:
            compiler.close()
            raise RuntimeError(done[-1]["error"][-4000:])
    if keep:
        with _lock:
            _idle.append(compiler)
    else:
        compiler.close()
    return done


@atexit.register
def _close() -> None:
    mine = [compiler for compiler in _idle if compiler.owner == os.getpid()]
    for compiler in mine:  # all end at the same time
        with contextlib.suppress(OSError):
            compiler.process.stdin.close()
    for compiler in mine:
        compiler.close()


def source_of(kernel: Any, origins: list | None = None) -> str:
    """Return the text of a module that defines `kernel` and what it uses; `origins` is told where functions come from.

    What a module defines is imported from it. What a notebook defined is not to be had in another process, so its
    source is copied: functions with all that they call, and the values of constexprs.
    """
    lines, seen = ["import triton", "import triton.language as tl"], set()

    def add(name: str, value: Any) -> None:
        if name in seen:
            return
        seen.add(name)
        function = getattr(value, "fn", None)
        if inspect.ismodule(value):
            lines.append(f"import {value.__name__} as {name}")
        elif function is not None and function.__module__ != "__main__":
            lines.append(f"from {function.__module__} import {function.__name__} as {name}")
        elif function is not None:
            for inner in sorted(set(function.__code__.co_names)):
                if inner in function.__globals__:
                    add(inner, function.__globals__[inner])
            text, first = inspect.getsourcelines(function)
            if origins is not None:
                at = sum(line.count("\n") + 1 for line in lines) + 1
                origins.append((at, len(text), inspect.getsourcefile(function), first))
            lines.append(textwrap.dedent("".join(text)).rstrip("\n"))
        elif type(value).__name__ == "constexpr":
            lines.append(f"{name} = tl.constexpr({value.value!r})")

    add(kernel.fn.__name__, kernel)
    return "\n".join(lines) + "\n"


def _compile(job: dict[str, Any]) -> dict[str, Any]:
    from importlib.util import module_from_spec, spec_from_file_location

    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    knobs.compilation.disable_line_info = not job["lines"]

    spec = spec_from_file_location(Path(job["path"]).stem, job["path"])
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    kernel = getattr(module, job["name"])
    while hasattr(kernel, "fn") and not hasattr(kernel, "params"):  # what tunes it, or sets its constants
        kernel = kernel.fn

    def kind(name: str) -> str:
        if name in job["constexprs"]:
            return "constexpr"
        if job["signature"]:
            return job["signature"][name]
        if not name.endswith("_ptr"):
            return "i32"
        dtypes = dict.fromkeys(ELEMENTS, job["dtype"]) | (job["pointers"] or {})
        return "*" + dtypes.get(name, "fp32")

    defaults = {p.name: p.default for p in kernel.params if p.is_constexpr and p.has_default}
    for name, value in (defaults | job["constexprs"]).items():
        job["constexprs"][name] = triton.language.dtype(value["dtype"]) if isinstance(value, dict) else value
    signature = {name: kind(name) for name in kernel.arg_names}
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(kernel.arg_names)
        if (
            name in job["aligned"] if isinstance(job["aligned"], list) else job["aligned"] and signature[name][0] == "*"
        )
    }
    capability = job["capability"]
    amd = isinstance(capability, str)
    if amd:
        from .kernels import polynomial

        polynomial.FAST = polynomial.tl.constexpr(False)
    options = dict(num_warps=job["num_warps"], enable_fp_fusion=True)
    if job["maxnreg"] and not amd:
        options["maxnreg"] = job["maxnreg"]
    if job["num_stages"]:
        options["num_stages"] = job["num_stages"]
    compiled = triton.compile(
        ASTSource(kernel, signature, job["constexprs"], attributes),
        target=GPUTarget("hip", capability, 64) if amd else GPUTarget("cuda", capability, 32),
        options=options,
    )
    if amd:
        assembly = compiled.asm["amdgcn"]
        registers, spills = (int(re.search(rf"\.{what}:\s+(\d+)", assembly)[1]) for what in AMD_FACTS)
        opcodes = re.findall(r"^\s+([a-z]\w+_\w+)", assembly, re.M)
    else:
        registers, spills, assembly = _disassemble(compiled.asm["cubin"], job["lines"])
        opcodes = re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", assembly, re.M)
    return dict(
        capability=capability,
        registers=registers,
        spills=spills,
        shared=compiled.metadata.shared,
        instructions=Counter(opcodes),
        ttir=compiled.asm["ttir"],
        ttgir=compiled.asm["ttgir"],
        ptx="" if amd else compiled.asm["ptx"],
        sass=assembly,
        origins=job["origins"],
    )


def _disassemble(cubin: bytes, lines: bool) -> tuple[int, int, str]:
    """Return (registers of a thread, bytes of its local memory, SASS), kept in Triton's cache: nvdisasm takes 0.6 s."""
    from triton import knobs
    from triton.runtime.cache import get_cache_manager

    tool = knobs.nvidia.nvdisasm
    key = hashlib.sha256(cubin + f"{tool.version} {lines}".encode()).hexdigest()
    with contextlib.suppress(OSError, TypeError, ValueError):  # none kept, or none that can be read
        kept = Path(get_cache_manager(key).get_file("listing.json")).read_text(encoding="utf-8")
        registers, local, sass = json.loads(kept)
        return registers, local, sass
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        run = dict(capture_output=True, encoding="utf-8", check=True)
        usage = subprocess.run([knobs.nvidia.cuobjdump.path, "-res-usage", file.name], **run).stdout
        # -ndf: without a search for the targets of indirect jumps, of which Triton makes none.
        sass = subprocess.run([tool.path, *["-g"] * lines, "-ndf", "-c", file.name], **run).stdout
    registers, stack, local = (int(re.search(rf"{what}:(\d+)", usage)[1]) for what in ("REG", "STACK", "LOCAL"))
    with contextlib.suppress(OSError):  # a folder that takes no more keeps none
        get_cache_manager(key).put(json.dumps([registers, stack + local, sass]), "listing.json")
    return registers, stack + local, sass


def _serve() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # what a kernel's module prints is no answer
    with contextlib.suppress(ImportError):  # which a compilation reports
        import triton.compiler  # noqa: F401, while whoever asks is still busy
    for line in sys.stdin:
        try:
            answer = _compile(json.loads(line))
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)
