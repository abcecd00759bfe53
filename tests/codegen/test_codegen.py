"""What the compiler makes of every kernel, for GPUs that need not be here: no spill, wide loads, few atomics.

Kernels are compiled with the arguments that their launchers pass, caught on the way. 7, 24, 48, 96, 384 and 5000
columns in a group stand for odd widths, for those of real models, and for a group wider than a tile.
"""

import ast
import dataclasses
import functools
import importlib
import math
import os
import pkgutil
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest

if sys.platform != "linux":
    pytest.skip("Triton is on Linux only", allow_module_level=True)

import torch
import triton

from flashkat_lite import inspection, kernels
from flashkat_lite.inspection import inspect_kernel
from flashkat_lite.kernels import (
    backward_atomic,
    backward_block,
    backward_stationary,
    forward,
    norm_backward,
    norm_forward,
)
from flashkat_lite.kernels import launch as launching
from tools.measure import columns, compilers

CAPABILITIES = (75, 80, 90, 100, 120)  # one of each generation
PAPERS_AND_NEWEST = (90, 120)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
MODULES = {
    "forward": forward,
    "atomic": backward_atomic,
    "block": backward_block,
    "stationary": backward_stationary,
}

# Kernel, dtype, degrees, columns in a group. The forward kernel depends on the width through its vectors alone.
CASES = (
    ("forward", "fp32", (5, 4), 96),
    ("forward", "bf16", (5, 4), 96),
    ("forward", "fp16", (3, 2), 24),
    ("forward", "fp32", (6, 5), 7),
    ("atomic", "fp32", (5, 4), 96),
    ("atomic", "bf16", (6, 5), 96),
    ("atomic", "fp16", (2, 1), 7),
    ("block", "fp32", (6, 5), 384),
    ("block", "fp32", (5, 4), 96),
    ("block", "bf16", (5, 4), 96),
    ("block", "fp16", (2, 1), 24),
    ("block", "bf16", (3, 2), 48),
    ("block", "bf16", (5, 4), 5000),
    ("block", "bf16", (6, 5), 7),
    ("block", "bf16", (6, 5), 6),
    ("block", "bf16", (6, 5), 12),
    ("block", "fp32", (5, 4), 7),
    ("stationary", "fp32", (5, 4), 96),
    ("stationary", "bf16", (5, 4), 96),
    ("stationary", "bf16", (6, 5), 24),
    ("stationary", "fp16", (2, 1), 7),
)

reports = {}  # of what was asked for


def inspect_once(requests):
    """What `inspect_many` gives, which takes each most of a second; each is compiled once for all tests here."""
    keys = [repr(request | {"kernel": request["kernel"].fn.__qualname__}) for request in requests]
    new = {key: request for key, request in zip(keys, requests) if key not in reports}
    reports.update(zip(new, inspection.inspect_many([*new.values()])))
    return [reports[key] for key in keys]


@pytest.fixture(autouse=True, scope="module")
def compilers_start_warm(warm, shared):
    with pytest.MonkeyPatch.context() as patch:
        if warm(["python"]) != ["python"]:
            patch.setattr(sys, "executable", str(shared / "python"))
        yield


def label(value):
    return value if isinstance(value, str) else "-".join(map(str, value)) if isinstance(value, tuple) else f"w{value}"


def launch(name, x, degrees, groups, capability=90):
    """The launch that the launcher makes for x on a GPU of that compute capability."""
    a, b = (torch.empty(groups, k, device=x.device) for k in (degrees[0] + 1, degrees[1]))
    stem = MODULES[name].__name__.rpartition(".")[2]
    with compilers.caught(capability) as launches:
        getattr(MODULES[name], stem)(*((x, a, b) if name == "forward" else (x, x, a, b)))
    return launches[0]


def request(name, dtype, degrees, width, capability):
    launched = launch(name, torch.zeros(3, 2 * width, dtype=DTYPES[dtype]), degrees, 2, capability)
    return compilers.request(launched, capability)


def norm_request(name, x_dtype, columns, capability, branch=False):
    """As `request`, for x in that dtype, z in bfloat16, eight groups; a branch is bfloat16."""
    x, z = torch.zeros(64, columns, dtype=DTYPES[x_dtype]), torch.zeros(64, columns, dtype=torch.bfloat16)
    weight, a, b = torch.ones(columns), torch.ones(8, 6), torch.ones(8, 4)
    with compilers.caught(capability) as launches:
        if name == "norm_forward":
            norm_forward.norm_forward(x, z if branch else None, weight, weight, a, b, dtype=torch.bfloat16)
        else:
            also = torch.bfloat16 if branch and x_dtype == "fp32" else None
            statistics = torch.ones(64), torch.ones(64)
            gradients = z, x if branch else None
            norm_backward.norm_backward(*gradients, x, *statistics, weight, weight, a, b, branch_dtype=also)
    return compilers.request(launches[0], capability)


NORM_CASES = (
    ("norm_forward", "fp32", 768, False, PAPERS_AND_NEWEST),
    ("norm_backward", "fp32", 768, True, (75, 90, 120)),
    ("norm_forward", "bf16", 192, True, (90,)),
    ("norm_backward", "bf16", 384, False, (90,)),
)


@pytest.mark.parametrize(("name", "dtype", "columns", "branch", "capabilities"), NORM_CASES, ids=label)
def test_a_norms_kernels_do_not_spill_and_load_sixteen_bytes(name, dtype, columns, branch, capabilities):
    reports = inspect_once([norm_request(name, dtype, columns, c, branch) for c in capabilities])
    assert {r.capability: r.spills for r in reports if r.spills} == {}, "bytes spilled, by compute capability"
    for r in reports:
        assert r.atomics == 0 and r.load_bytes == 16 and r.registers <= 255
    moves = re.findall(r"tt\.addptr (%\w+), %\w+ : [^,]*, (?:tensor<\w+?x)?(i\d+)\b", reports[0].ttir)
    starts = set(re.findall(r"(%\w+) = tt\.splat %(?:x_ptr|dz_ptr|z_ptr|dx_ptr)\b", reports[0].ttir))
    assert {bits for base, bits in moves if base in starts} == {"i64"}


@pytest.mark.parametrize(("name", "dtype", "degrees", "width"), CASES, ids=label)
def test_no_spill_wide_loads_and_few_atomics(name, dtype, degrees, width):
    all_of_them = (degrees, width) == ((5, 4), 96) and name in ("block", "stationary")  # which have sums to spill
    capabilities = CAPABILITIES if all_of_them else PAPERS_AND_NEWEST
    reports = inspect_once([request(name, dtype, degrees, width, capability) for capability in capabilities])
    assert {r.capability: r.spills for r in reports if r.spills} == {}, "bytes spilled, by compute capability"
    constexprs = request(name, dtype, degrees, width, 90)["constexprs"]
    check_loads(name, dtype, degrees, width, reports, max(1, constexprs.get("BLOCK", 0) // 128))
    check_offsets(name, reports[0].ttir)
    coefficients = degrees[0] + 1 + degrees[1]
    on_90 = reports[capabilities.index(90)]
    # An atomic is one instruction: once a program in the block kernel, once a position in the atomic one.
    assert on_90.atomics == (0 if name in ("forward", "stationary") else coefficients)


def check_loads(name, dtype, degrees, width, reports, positions):
    """Positions move whole vectors; nothing but coefficients is loaded by less, for each of a thread's positions."""
    coefficients = positions * (degrees[0] + 1 + degrees[1])
    size = DTYPES[dtype].itemsize
    vector = 1 if name == "atomic" else math.gcd(16 // size, width)
    for r in reports:
        assert r.load_bytes == max(4, vector * size), f"sm_{r.capability} loads {r.load_bytes} bytes at once"
        if vector * size == 16:
            assert r.count(r"LDG\.") - r.count(r"LDG\..*128") <= coefficients
            narrow = coefficients if name == "stationary" else 0  # the partial sums
            assert r.count(r"STG\.") - r.count(r"STG\..*128") <= narrow and r.count(r"STG\..*128") > 0


def check_offsets(name, ttir):
    """Every pointer to activations is moved by 64 bits."""
    pointers = ("x_ptr", "y_ptr") if name == "forward" else ("x_ptr", "dy_ptr", "dx_ptr")
    starts = {f"%{pointer}": pointer for pointer in pointers}
    starts |= dict(re.findall(rf"(%\w+) = tt\.splat %({'|'.join(pointers)})\b", ttir))
    moves = re.findall(r"tt\.addptr (%\w+), %\w+ : [^,]*, (?:tensor<\w+?x)?(i\d+)\b", ttir)
    assert {(starts[base], bits) for base, bits in moves if base in starts} == {(p, "i64") for p in pointers}


@pytest.mark.parametrize("width", [24, 48, 96, 384, 7])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", ["forward", "block", "stationary"])
def test_launchers_choose_the_widest_vectors_that_divide_a_group(name, dtype, width):
    vector = request(name, dtype, (5, 4), width, 90)["constexprs"]["VECTOR"]
    assert vector * DTYPES[dtype].itemsize == 16 or (width == 7 and vector == 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [7, 96])
def test_a_huge_forward_covers_all_rows_with_numbers_of_32_bits(dtype, width):
    x = torch.empty(2**36 // width, width, dtype=dtype, device="meta")
    caught = launch("forward", x, (5, 4), 1)
    rows, period, period_rows = caught.arguments[4:7]
    positions = period * caught.keywords["BLOCK"]
    assert caught.grid[0] < 2**31 and positions < 2**31
    assert period_rows * (width // caught.keywords["VECTOR"]) == positions
    assert caught.grid[0] // period * period_rows * caught.keywords["UNROLL"] >= rows


@pytest.mark.parametrize(
    ("rows", "width"), [(201728, 24), (201728, 96), (201728, 384), (1576, 96), (3, 7), (99999, 100)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_partial_sums_take_8_megabytes_at_most(monkeypatch, dtype, rows, width):
    monkeypatch.setattr(backward_stationary, "multiprocessors", lambda device: 1000)
    caught = launch("stationary", torch.empty(rows, 8 * width, dtype=dtype, device="meta"), (5, 4), 8)
    partial, (rows, row_step, vectors_per_row) = caught.arguments[5], caught.arguments[6:9]
    assert partial.nbytes <= 8e6
    assert partial.numel() // 10 == caught.grid[0] * caught.keywords["BLOCK"] == row_step * vectors_per_row


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_sum_of_partial_sums_does_not_spill(capability):
    constexprs = dict(M1=6, N=4, TILE=16384)
    report = inspect_kernel(backward_stationary.sum_partials_kernel, constexprs, capability=capability, num_warps=32)
    assert report.spills == 0 and report.atomics == 0 and report.registers <= 64


def test_the_last_program_sees_what_the_others_stored():
    """A program's partial sum is stored, then its threads meet, then one of them counts, with a fence."""
    from flashkat_lite.lab.exercises.ch10 import last_sums_kernel

    pointers = {"done_ptr": "i32"}
    report = inspect_kernel(last_sums_kernel, {"BLOCK": 2048, "PARTS": 2048}, pointers=pointers, num_warps=8)
    steps = re.findall(r"st\.global|bar\.sync|atom\.\S+", report.ptx)
    before = " ".join(steps[: steps.index("atom.global.gpu.acq_rel.add.u32")])
    assert re.search(r"st\.global( bar\.sync)+$", before)


COLUMNS = columns.columns(columns.TRITON)


@pytest.mark.skipif(triton.__version__ not in COLUMNS, reason="this Triton has no column on the page Compilers")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["forward", "backward_block", "backward_stationary"])
def test_the_page_on_compilers_has_what_this_compiler_gives(name, dtype, monkeypatch):
    """Nothing is compiled that another test here has not. After a change of a kernel: `python book/tools compilers`."""
    monkeypatch.setattr(compilers, "inspection", SimpleNamespace(inspect_many=inspect_once))
    held = columns.by_place(COLUMNS[triton.__version__])
    rows = list(compilers.column(PAPERS_AND_NEWEST, [(f"{name}_kernel", dtype)]))
    assert rows == [held[row["kernel"], row["what"], row["capability"]] for row in rows]


def test_the_page_on_compilers_has_every_kernel_for_every_target_and_the_pinned_version():
    modules = [importlib.import_module(f"{kernels.__name__}.{m.name}") for m in pkgutil.iter_modules(kernels.__path__)]
    names = {name for module in modules for name in vars(module) if name.endswith("_kernel")}
    assert len(names) > 8 and columns.pinned() in COLUMNS and len(COLUMNS) > 2
    for record in COLUMNS.values():
        rows = columns.by_place(record)
        assert {(kernel, target) for kernel, _, target in rows} == {(n, t) for n in names for t in compilers.TARGETS}
        assert len(rows) == len(record.data["rows"])


def test_no_column_has_a_spill_and_a_worse_one_is_told():
    assert [row for record in COLUMNS.values() for row in record.data["rows"] if row["spills"]] == []
    held = COLUMNS[columns.pinned()]
    rows = [dict(row) for row in held.data["rows"]]
    rows[0]["spills"] = 8
    rows[1]["instructions"] *= 1.06
    rows[2]["instructions"] *= 1.04
    fresh = dataclasses.replace(held, data={"rows": rows})
    spilled, slower = compilers.faults(fresh, held)
    assert "8 bytes spilled" in spilled and f"sm_{rows[1]['capability']}: 6.0 % more" in slower
    assert compilers.faults(fresh, held, fresh) == [spilled], "what is committed of a newer version is known"
    gone = rows.pop()
    assert gone["kernel"] in compilers.faults(fresh, held)[1], "a kernel that one column lacks"


def test_kernels_of_calls_to_be_timed_are_compiled_together_and_not_launched(monkeypatch):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import CompiledKernel
    from triton.runtime import driver

    from flashkat_lite.lab import measuring
    from flashkat_lite.lab.exercises.ch07 import column_sums_copies_kernel as kernel

    class Driver:
        def __getattr__(self, name):
            answers = {
                "get_current_device": 90,
                "get_current_stream": 0,
                "get_current_target": GPUTarget("cuda", 90, 32),
            }
            return lambda *_: answers[name]

    def launched(self):
        raise AssertionError("a kernel was launched")

    monkeypatch.setattr(CompiledKernel, "_init_handles", launched)
    monkeypatch.setattr(launching, "INTERPRETED", False)
    monkeypatch.setattr(launching, "capability", lambda device: 90)
    x, out, tables = torch.zeros(11, 16), torch.zeros(16), (torch.ones(2, 6), torch.ones(2, 4))

    def sums(block):
        kernel[(1,)](x, out, 11, 16, 16, 1, 1, BLOCK=block)

    monkeypatch.setattr(driver, "_active", Driver())
    measuring.compile_side_by_side(
        [lambda: sums(64), lambda: sums(128), lambda: forward.forward(x, *tables), lambda: 1 / 0]
    )
    for compiled, count in ((kernel, 2), (forward.forward_kernel, 1)):
        ready = list(compiled.device_caches[90][0].values())
        assert [type(each) for each in ready] == count * [CompiledKernel], "nothing is left to be waited for"


def launches(path):
    """The calls `kernel[grid](…)` of a file: their keywords."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
            called = ast.unparse(node.func.value)
            if called.endswith("kernel") and "wrap_triton" not in called:
                yield called, {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}


def test_every_launch_asks_for_fused_multiply_adds():
    """Triton 3.9 warns that a later version fuses none where a launch does not say so."""
    folder = Path(forward.__file__).parent
    found = [(path.name, *launch) for path in sorted(folder.glob("*.py")) for launch in launches(path)]
    assert len(found) == 4, "BoundLaunch, the two rungs that launch without it, and the limits"
    assert [name for name, _, keywords in found if keywords.get("enable_fp_fusion") != "True"] == []


@pytest.mark.parametrize("name", MODULES)
def test_multiply_adds_are_fused_whatever_the_compilers_default(name, monkeypatch):
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "0")
    report = inspection.inspect_many([request(name, "fp32", (5, 4), 96, 90)])[0]
    assert report.count("FFMA") > 2 * report.count("FADD")


def test_a_notebooks_launches_fuse_multiply_adds_unless_its_reader_says_otherwise(script, monkeypatch):
    monkeypatch.delenv("TRITON_DEFAULT_FP_FUSION", raising=False)
    text = """
        import os
        from flashkat_lite import lab
        from triton import knobs

        name = "TRITON_DEFAULT_FP_FUSION"
        print(os.environ[name], knobs.language.default_fp_fusion)
        os.environ[name] = "0"
        lab.setup._set_up()
        print(os.environ[name], knobs.language.default_fp_fusion)
    """
    said = [word for word in script(text) if word in ("0", "1", "False", "True")]
    assert said == ["1", "True", "0", "False"]


def test_amds_mi300_compiles():
    cases = [("forward", "bf16"), ("stationary", "fp32"), ("stationary", "bf16")]
    jobs = [request(name, dtype, (5, 4), 96, 0) | dict(capability="gfx942") for name, dtype in cases]
    jobs += [norm_request("norm_forward", "fp32", 192, 0) | dict(capability="gfx942")]
    for report in inspection.inspect_many(jobs):
        assert report.spills == 0 and report.count("global_load_dwordx4|buffer_load_dwordx4") > 0
        assert "v_rcp_f32" in report.sass and report.count("global_atomic") == 0


def test_a_cubin_is_disassembled_once_for_all_processes_and_each_time_where_nothing_can_be_kept(tmp_path, monkeypatch):
    commands = []

    def run(command, **_):
        commands.append(command)
        return SimpleNamespace(stdout="REG:8 STACK:16 LOCAL:4" if "-res-usage" in command else "an instruction")

    def disassembled(cubin=b"one", lines=False):
        before = len(commands)
        assert inspection._disassemble(cubin, lines) == (8, 20, "an instruction")
        return len(commands) > before

    monkeypatch.setattr(inspection, "subprocess", SimpleNamespace(run=run))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "kept"))
    assert disassembled() and not disassembled()
    assert disassembled(b"two") and disassembled(lines=True) and not disassembled()
    for file in tmp_path.glob("kept/*/*.json"):
        file.write_text("[8, ", encoding="utf-8")
    assert disassembled() and not disassembled(), "what cannot be read is made anew"
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file"))
    assert disassembled() and disassembled()


@pytest.fixture
def script(tmp_path, warm):
    """What a file prints when it runs as __main__, as a notebook's cells do: script(text, NAME="1")."""
    return functools.partial(printed, tmp_path, warm)


def printed(tmp_path, warm, text, **environment):
    path = tmp_path / "cell.py"
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    run = f"import runpy; runpy.run_path({str(path)!r}, run_name='__main__')"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)} | environment
    start = [sys.executable, "-c", run]
    command = warm(start) if environment.get("TRITON_INTERPRET") != "0" else start
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8")
    assert not done.returncode, done.stderr
    return done.stdout.split()


NOTEBOOK = """
    import triton
    import triton.language as tl
    from flashkat_lite.inspection import inspect_kernel
    from flashkat_lite.kernels import INTERPRETED
    from flashkat_lite.kernels.backward_atomic import backward_atomic_kernel
    from flashkat_lite.kernels.polynomial import horner as polynomial

    SCALE = tl.constexpr(3.0)

    @triton.jit
    def scaled(x):
        return x * SCALE

    @triton.jit
    def kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
        i = tl.arange(0, BLOCK)
        x = tl.load(x_ptr + i, mask=i < n)
        tl.store(y_ptr + i, scaled(polynomial(x, (x, x, x))), mask=i < n)

    if __name__ == "__main__":
        report = inspect_kernel(kernel, dict(BLOCK=256), capability=80, num_warps=2)
        print(report.capability, report.spills, report.atomics, report.count("STG") > 0, "sm_80" in report.ptx)
        print(INTERPRETED, inspect_kernel(backward_atomic_kernel, dict(M1=3, N=1, BLOCK=256), num_warps=8).atomics)
"""


@pytest.mark.parametrize("interpret", ["0", "1"])
def test_a_notebooks_kernel_and_a_packages_are_compiled_with_the_interpreter_or_without(script, interpret):
    said = script(NOTEBOOK, TRITON_INTERPRET=interpret)
    assert said == ["80", "0", "0", "True", "True", str(interpret == "1"), "4"]


@triton.jit
def shapes_that_do_not_fit(x_ptr, BLOCK: triton.language.constexpr):
    i = triton.language.arange(0, BLOCK)
    triton.language.store(x_ptr + i, i + triton.language.arange(0, 2 * BLOCK))


def test_a_compile_error_says_what_the_compiler_said():
    with pytest.raises(RuntimeError, match=r"(?s)shapes_that_do_not_fit.*make_shape_compatible"):
        inspect_kernel(shapes_that_do_not_fit, dict(BLOCK=64))


def test_the_compilers_processes_are_kept_and_one_that_dies_is_replaced(monkeypatch):
    monkeypatch.setattr(inspection, "_idle", [])
    monkeypatch.setattr(inspection, "CORES", 1)
    requests = [request("atomic", "fp32", (n, 1), 96, 90) for n in (2, 3)]
    inspection.inspect_many(requests)
    kept = list(inspection._idle)
    assert [report.atomics for report in inspection.inspect_many(requests)] == [4, 5]
    assert len(kept) == 1 and inspection._idle == kept
    kept[0].process.kill()
    kept[0].process.wait()
    assert "ended with -9" in kept[0]({"path": "nowhere"})["error"], "one that dies at work says so"
    assert inspection.inspect_many(requests[:1])[0].atomics == 4, "one that died unseen is replaced"
    cache = os.environ.get("TRITON_CACHE_DIR", os.path.expanduser("~/.triton/cache"))
    monkeypatch.setenv("TRITON_CACHE_DIR", os.path.join(cache, "."))
    assert inspection.inspect_many(requests[:1])[0].atomics == 4, "other settings, another process"
    assert len(inspection._idle) == 2 and kept[0] not in inspection._idle
    inspection._close()
