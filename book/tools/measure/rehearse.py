"""`python book/tools rehearse`: what the chapters would launch, move and keep on GPUs that are not here.

Cells run as on a GPU, with tensors that have shapes and no values, so nothing is computed; what a kernel would do is
counted at its launch. So a chapter's memory and its time by bytes and additions are known for a GPU of any size. With
--compile each launch is also compiled for every target. Writes book/rehearsal.json, from which the page on smaller GPUs
comes, chapter by chapter; no GPU.
"""

import argparse
import ast
import collections
import contextlib
import io
import json
import math
import os
import re
import sys
import traceback
import weakref
from concurrent.futures import ThreadPoolExecutor, as_completed
from unittest import mock

from .. import notebooks
from ..notebooks import stamp
from ..paths import ROOT

KEPT = ROOT / "book" / "rehearsal.json"
TARGETS = (75, 80, 86, 89, 90, 100, 120)
GPUS = {  # by name: what the driver and the datasheet say
    "h100": ("NVIDIA H100 80GB HBM3", "9.0", 132, 85.0e9, 50 * 2**20, 3.35e12),
    "t4": ("Tesla T4", "7.5", 40, 15.8e9, 4 * 2**20, 320e9),
}
# What a GPU pays on a T4, at most: GB/s by its datasheet; ns an atomic addition, one address's 1.76 on an H200 at 1.98
# GHz, at 1.59 GHz; ns a step of a walk through memory; µs a launch.
BANDWIDTH, ADDITION, STEP, LAUNCH = 320.0, 2.2, 1000.0, 10.0
FLUSH = 2**28  # bytes that `hardware` overwrites before each timed call
# Additions that stand in a loop: how often it runs, from the launch's whole numbers and its programs.
LOOPS = {
    "rmsnorm_backward_kernel": lambda n, programs: math.ceil(n["rows"] / programs),
    "chase_kernel": lambda n, programs: n["rounds"] / programs,  # one program adds
}


class Rehearsal:
    """What the cells of one chapter asked of the GPU so far.

    work: (bytes, launch or None) of each operation outside of a timed call. timed: (options, work) of each timed call.
    launches: {key: (kernel, arguments, options)}. kept, peak: bytes of tensors that live, and the most that ever did.
    failed: {cell: error}; a cell may need values, which there are none of.
    """

    def __init__(self):
        self.work, self.timed, self.launches, self.failed = [], [], {}, {}
        self.kept = self.peak = 0
        self.living = set()

    def keep(self, tensor):
        storage = tensor.untyped_storage()
        address, nbytes = storage._cdata, storage.nbytes()
        if address not in self.living:
            self.living.add(address)
            self.kept += nbytes
            self.peak = max(self.peak, self.kept)
            weakref.finalize(storage, self.drop, address, nbytes)

    def drop(self, address, nbytes):
        self.living.discard(address)
        self.kept -= nbytes

    def launch(self, kernel, arguments, grid, options):
        import torch

        named = dict(zip(kernel.arg_names, arguments)) | {k: v for k, v in options.items() if k in kernel.arg_names}
        tensors = [value for value in named.values() if isinstance(value, torch.Tensor)]
        plain = [value.dtype if isinstance(value, torch.Tensor) else value for value in arguments]
        kept = {k: v.dtype if isinstance(v, torch.Tensor) else v for k, v in options.items()}
        numbers = {k: v for k, v in named.items() if isinstance(v, int)}
        said = [str(value) for value in plain if not isinstance(value, int) or value == 1]  # others are only numbers
        key = f"{kernel.fn.__module__}.{kernel.fn.__name__} {' '.join(said)} {sorted(kept.items(), key=str)}"
        self.launches.setdefault(key, (kernel, plain, kept))
        grid = grid(named) if callable(grid) else grid
        nbytes = sum(t.numel() * t.itemsize for t in tensors) * numbers.get("passes", 1)
        self.work.append((nbytes, (key, math.prod(grid), numbers)))


def pretended_modes(seen):
    """What stands between cells and PyTorch: CUDA's tensors are on `meta`, without values; what they do is counted."""
    import torch
    from torch import Tensor
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves, tree_map

    to_host = ("cpu", "item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__")
    mixed = ("index_add", "index_add_", "__getitem__", "__setitem__", "mul", "add")

    def there(where):
        is_place = isinstance(where, str | torch.device)
        return torch.device("meta") if is_place and torch.device(where).type == "cuda" else where

    def ones(like):
        return torch.ones(like.shape, dtype=like.dtype)

    class Functions(TorchFunctionMode):
        def __torch_function__(self, function, types, arguments=(), options=None):
            options, name = dict(options or {}), getattr(function, "__name__", "")
            first = arguments[0] if arguments and isinstance(arguments[0], Tensor) else None
            away = first is not None and first.is_meta
            if function is Tensor.is_cuda.__get__:
                return away
            if name == "cuda":
                return first.to("meta")
            if name == "to":
                places = [a for a in (*arguments[1:], options.get("device")) if isinstance(a, str | torch.device)]
                if away and places and torch.device(places[0]).type == "cpu":
                    return ones(first)
                arguments = tuple(map(there, arguments))
            if away and name in to_host:
                return ones(first) if name == "cpu" else getattr(ones(first), name)()
            if away and name == "__iter__":
                return iter(first.unbind(0))
            if away and name == "bincount":
                return torch.ones(1)
            if away and name == "nonzero":
                return torch.zeros(1, first.ndim, dtype=torch.int64)
            if name in ("equal", "allclose") and any(isinstance(a, Tensor) and a.is_meta for a in arguments):
                return True
            if "device" in options:
                options["device"] = there(options["device"])
                if str(options["device"]) == "meta":
                    options.pop("generator", None)
                    if name == "randperm":
                        return torch.empty(arguments[0], dtype=torch.int64, device="meta")
            if name in mixed and any(isinstance(a, Tensor) and a.is_meta for a in tree_leaves((arguments, options))):
                arguments, options = tree_map(
                    lambda a: a.detach().to("meta") if isinstance(a, Tensor) and a.ndim and not a.is_meta else a,
                    (arguments, options),
                )
            return function(*arguments, **options)

    class Operations(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, arguments=(), options=None):
            result = operation(*arguments, **(options or {}))
            made = [t for t in tree_leaves(result) if isinstance(t, Tensor) and t.is_meta]
            for tensor in made:
                seen.keep(tensor)
            if made and not operation.is_view and "empty" not in operation.name():
                taken = [t for t in tree_leaves((arguments, options)) if isinstance(t, Tensor) and t.is_meta]
                seen.work.append((sum(t.numel() * t.itemsize for t in taken + made), None))
            return result

    return Functions(), Operations()


def patches(seen, gpu):
    """(object, name, stand-in) of all that would ask a GPU, or a tensor's values."""
    import torch
    import triton

    from flashkat_lite import hardware, inspection
    from flashkat_lite.kernels.launch import BoundLaunch

    name, capability, many, memory, l2, rate = GPUS[gpu]
    facts = hardware.Device(name, hardware.slug(name), capability, many, int(memory), l2, None, rate)
    number = int(capability.replace(".", ""))

    class Generator(torch.Generator):
        def __new__(cls, device=None):
            return super().__new__(cls)

    def time_interleaved(functions, **options):
        for function in functions.values():
            outside, seen.work = seen.work, []
            function()
            seen.timed.append((options, seen.work))
            seen.work = outside
        return {name: hardware.Timing(1.0, 1.0, 1.0, 1) for name in functions}

    def unbound(launch, *tensors):
        launch.kernel[launch.grid](*tensors, *launch.scalars, **launch.keywords, enable_fp_fusion=True)

    class Profile(contextlib.nullcontext):
        def __init__(self, **_):
            super().__init__(self)

        def key_averages(self):
            return []

        events = key_averages

    report = inspection.Report(number, 64, 0, 16384, {}, "", "", "", "")
    cuda = torch.cuda
    yield from (
        (cuda, "is_available", lambda: True),
        (cuda, "get_device_name", lambda *_: name),
        (cuda, "current_device", lambda: 0),
        (cuda, "synchronize", lambda *_: None),
        (cuda, "get_device_capability", lambda *_: divmod(number, 10)),
        (cuda, "is_bf16_supported", lambda including_emulation=True: number >= 80),
        (cuda, "set_per_process_memory_fraction", lambda *_: None),
        (torch, "Generator", Generator),
        (torch, "compile", lambda function, **_: function),
        (torch.profiler, "profile", Profile),
        (torch.testing, "assert_close", lambda *_, **__: None),
        (hardware, "device", lambda: facts),
        (hardware, "sm_clock_mhz", lambda: 1590),
        (hardware, "time_interleaved", time_interleaved),
        (inspection, "inspect_many", lambda requests: [report] * len(requests)),
        (BoundLaunch, "__call__", unbound),
        (
            triton.JITFunction,
            "run",
            lambda kernel, *arguments, grid, warmup, **options: seen.launch(kernel, arguments, grid, options),
        ),
    )


def lenient(check):
    """A check of an exercise, which may find what it likes wrong: there are no values."""

    def checked(*arguments, **options):
        with contextlib.suppress(Exception):
            return check(*arguments, **options)

    return checked


def later_patches(gpu):
    """As `patches`, of what can be imported only where a GPU is believed in."""
    import torch

    from flashkat_lite import lab, records
    from flashkat_lite.lab import measuring
    from flashkat_lite.lab.exercises import beside

    _, capability, many, *_ = GPUS[gpu]
    stand_ins = {
        "capability": lambda *_: int(capability.replace(".", "")),
        "multiprocessors": lambda *_: many,
        "check_backward": lambda *_, **__: torch.ones(10),
        "check_forward": lambda *_, **__: None,
    }
    for path, module in [*sys.modules.items()]:
        if path.startswith("flashkat_lite") and module:
            yield from ((module, name, value) for name, value in stand_ins.items() if hasattr(module, name))
        if path.startswith("flashkat_lite.lab.exercises"):
            checks = [
                name for name in vars(module) if re.match(r"(same_|_check|repeats)(?!.*_(solution|kernel)$)", name)
            ]
            yield from ((module, name, lenient(vars(module)[name])) for name in checks)

    def measure(experiment, title, function):
        function()
        return records.load(experiment)

    yield from ((lab, name, lambda *_, **__: None) for name in ("claim", "table"))
    yield from ((lab.figures, name, lambda *_, **__: "") for name in ("show", "movable", "inline"))
    yield beside, "judged", lambda *_, **__: "not judged"  # in processes beside this one, which count by values
    yield measuring, "compile_side_by_side", lambda *_: None
    yield lab, "measure", measure


def rehearse(path, gpu, memory_gb=None, loud=False):
    """Run a chapter's cells in this process, which is of no further use; returns a `Rehearsal`."""
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ["FLASHKAT_GPU_MEMORY"] = str(memory_gb or "")
    seen = Rehearsal()
    with contextlib.ExitStack() as stack:
        for place in patches(seen, gpu):
            stack.enter_context(mock.patch.object(*place))
        for mode in pretended_modes(seen):
            stack.enter_context(mode)
        import IPython
        from IPython.core.interactiveshell import InteractiveShell

        stack.enter_context(mock.patch.object(IPython.display, "display", lambda *_, **__: None))
        shell = InteractiveShell.instance()
        import importlib

        for number in range(1, 16):
            importlib.import_module(f"flashkat_lite.lab.exercises.ch{number:02}")
        for place in later_patches(gpu):
            stack.enter_context(mock.patch.object(*place))
        for cell in notebooks.code_cells(notebooks.read(path)):
            if "check" in notebooks.tags(cell):
                continue
            with contextlib.redirect_stdout(io.StringIO()):
                done = shell.run_cell(without_assertions(cell.source))
            if error := done.error_before_exec or done.error_in_exec:
                seen.failed[cell.id] = f"{type(error).__name__}: {error}"[:200]
                if loud:
                    traceback.print_exception(error)
    return seen


def without_assertions(source):
    """A cell's source without its assertions, which ask for values."""
    if "assert " not in source:
        return source

    class Drop(ast.NodeTransformer):
        def visit_Assert(self, node):
            return ast.Pass()

    return ast.unparse(Drop().visit(ast.parse(source)))


# What the work costs


def compile_all(seen, targets):
    """Compile each launch for each target, as Triton itself would; returns {key: {target: error}}, and {key: TTIR}."""
    import torch
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    class Driver:
        def __init__(self, target):
            self.target = target

        def get_current_device(self):
            return self.target

        def get_current_stream(self, device):
            return 0

        def get_current_target(self):
            return GPUTarget("cuda", self.target, 32)

        def get_active_torch_device(self):
            return torch.device("cpu")

    wrong, ttir = collections.defaultdict(dict), {}
    for target in targets:
        driver.set_active(Driver(target))
        for key, (kernel, arguments, options) in seen.launches.items():
            options = {k: v for k, v in options.items() if k != "launch_pdl" or target >= 90}
            try:
                ttir[key] = kernel.warmup(*arguments, grid=(1,), **options).asm["ttir"]
            except Exception as error:
                wrong[key][target] = " ".join(f"{type(error).__name__}: {error}".split())[-300:]
    return wrong, ttir


def additions(ttir):
    """The atomic additions of one program, loops run once."""
    types = re.findall(r"tt\.atomic_rmw fadd.*?: \((?:tensor<([\dx]+)x!tt\.ptr|!tt\.ptr)", ttir)
    types += re.findall(r"tt\.atomic_rmw add,.*?: \((?:tensor<([\dx]+)x!tt\.ptr|!tt\.ptr)", ttir)
    return sum(math.prod(map(int, shape.split("x"))) if shape else 1 for shape in types)


def milliseconds(work, each):
    """(ms, bytes, additions) of some work on a T4, at most."""
    nbytes = adds = steps = launches = 0
    for moved, launch in work:
        nbytes, launches = nbytes + moved, launches + 1
        if launch:
            key, programs, numbers = launch
            name = key.split()[0].rpartition(".")[2]
            adds += each.get(key, 0) * programs * LOOPS.get(name, lambda *_: 1)(numbers, programs)
            steps += numbers.get("steps", 0) + numbers.get("rounds", 0)
    ms = nbytes / BANDWIDTH / 1e6 + adds * ADDITION / 1e6 + steps * STEP / 1e6 + launches * LAUNCH / 1e3
    return ms, nbytes, adds


def cost(seen, ttir):
    """What a chapter does, and how long a T4 needs at most; timed calls are made as often as `hardware` does."""
    each = {key: additions(text) for key, text in ttir.items()}
    ms, nbytes, adds = milliseconds(seen.work, each)
    for options, work in seen.timed:
        once, moved, added = milliseconds(work, each)
        once = max(once, 1e-3)
        most, least = options.get("most", 100), options.get("least", 3)
        repeats = max(least, min(most, int(1e3 * options.get("seconds", 1.0) / once)))
        warm = min(most, int(1e3 * options.get("warmup", 0.05) / once))
        cold = options.get("cold_l2", True)
        calls = 2 + warm + repeats + (0 if cold else 1 + repeats)
        flushes = (1 + repeats) * cold * FLUSH
        ms += calls * once + flushes / BANDWIDTH / 1e6
        nbytes, adds = nbytes + calls * moved + flushes, adds + calls * added
    return {"t4_seconds": round(ms / 1e3, 1), "gb": round(nbytes / 1e9), "additions": round(adds)}


def facts(path, gpu, memory_gb, targets, loud=False):
    """What the record holds of one run."""
    seen = rehearse(path, gpu, memory_gb, loud)
    found = {"peak_gb": round(seen.peak / 1e9, 2), "launches": len(seen.launches), "failed": seen.failed}
    if targets:
        wrong, ttir = compile_all(seen, targets)
        found |= cost(seen, ttir) | {"wrong": {key: errors for key, errors in wrong.items() if errors}}
    return found


def apart(path, gpu, memory_gb, targets, loud=False):
    """`facts` in a process of its own, since this one would go on believing in a GPU."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        try:
            said = json.dumps(facts(path, gpu, memory_gb, targets, loud))
        except BaseException:
            said = json.dumps({"error": traceback.format_exc()[-2000:]})
        with open(writing, "w", encoding="utf-8") as pipe:
            pipe.write(said)
        os._exit(0)
    os.close(writing)
    with open(reading, encoding="utf-8") as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return json.loads(said)


RUNS = {"paper": ("h100", None), "14.5": ("t4", 14.5), "7.5": ("t4", 7.5)}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("chapters", nargs="*", help="as of `make execute`")
    parser.add_argument("--compile", action="store_true", help="also compile every launch for every target")
    parser.add_argument("--targets", type=int, nargs="*", default=list(TARGETS), help="which, without their dots")
    parser.add_argument("--run", choices=RUNS, nargs="*", default=list(RUNS), help="which memory")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--loud", action="store_true", help="show the errors of cells")
    options = parser.parse_args(arguments)
    paths = notebooks.select(options.chapters)
    # Each target is compiled for in a process of its own.
    targets = [[target] for target in options.targets] if options.compile else [[]]
    tasks = [(path, run, few) for path in paths for run in options.run for few in targets]
    complete = options.compile and len(options.run) == len(RUNS) and {*options.targets} == {*TARGETS}
    found = collections.defaultdict(dict)

    def one(task):
        path, run, few = task
        return path, run, apart(path, *RUNS[run], few, options.loud)

    with ThreadPoolExecutor(options.jobs) as pool:
        left = collections.Counter(path for path, *_ in tasks)
        for done in as_completed([pool.submit(one, task) for task in tasks]):
            path, run, part = done.result()
            found[path][run] = together(found[path].get(run), part)
            left[path] -= 1
            if left[path]:
                continue
            for run, of_run in found[path].items():
                few = {key: value for key, value in of_run.items() if key not in ("failed", "wrong")}
                lines = (*of_run.get("failed", {}).items(), *of_run.get("wrong", {}).items())
                print(path.stem, run, few, *lines, sep="\n    ", flush=True)
            if complete:
                keep(path, {run: found[path][run] for run in RUNS})


def together(one, other):
    """What two runs of a chapter found, which differ in their targets."""
    if one is None or "error" in other:
        return other
    wrong = {key: one["wrong"].get(key, {}) | errors for key, errors in other.get("wrong", {}).items()}
    return one | ({"wrong": one["wrong"] | wrong} if "wrong" in one else {})


def keep(path, runs):
    """Write what was found of a chapter at once: another may take long."""
    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    kept[path.stem] = {"code_sha256": stamp.code_sha256(notebooks.read(path)), "runs": runs}
    KEPT.write_text(json.dumps(dict(sorted(kept.items())), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
