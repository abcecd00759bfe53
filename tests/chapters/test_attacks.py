"""Ways to points that were not earned: each earns what its honest answer would, and is seen.

Each attack runs in a process forked from one that has the checks, confined as a graded notebook is.
"""

import json
import subprocess
import sys

import pytest

from tools.course.grading import kernel, seen
from tools.paths import ROOT

RUNNER = """
import contextlib, importlib, io, json, os, sys, tempfile, traceback
with contextlib.redirect_stdout(io.StringIO()):
    from flashkat_lite import lab
from tools.course.grading import kernel
for number in ("07", "02"):
    importlib.import_module(f"{kernel.CHECKS}.ch{number}")
asked, variables = json.load(sys.stdin), {"__name__": "__main__"}
variables["asked"], tempfile.tempdir = asked, asked["folder"]
places = [os.path.join(place, "") for place in asked["readable"]]
libraries = [*places, os.path.join(asked["root"], "flashkat_lite", ""), kernel.__file__]
watch = kernel.Watch([*places, asked["folder"], "/proc/", "/dev/"], libraries)
check = kernel.checker(lab, lambda: variables, watch)
for name, (attack, source) in asked["attacks"].items():
    reading, writing = os.pipe()
    if not os.fork():
        said = {"message": "the process ended"}
        try:
            kernel.confine(asked["folder"], asked["readable"])
            sys.addaudithook(watch)
            try:
                exec(compile(attack, "<cell>", "exec"), variables)
            except BaseException as error:
                variables.setdefault("failed", f"{type(error).__name__}: {error}")
            said = check("check-1", source, False) | {"failed": variables.get("failed", "")}
        except BaseException:
            traceback.print_exc()
        finally:
            os.write(writing, json.dumps(said).encode())
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as file:
        print(name, file.read().decode(), flush=True)
    os.wait()
"""
COUNT = 'lab.check("07-1", count_work)'
SUMS = 'lab.check("07-2", coefficient_gradients)'
WRONG = "def count_work(*_): return 0, 0, 0\n"
ZEROS = "import torch\ndef coefficient_gradients(dy, x, a, b): return torch.zeros_like(a), torch.zeros_like(b)\n"
RIGHT = """
def count_work(rows, columns, groups, m, n):
    return 12 * rows * columns, (m + 1 + n) * rows * columns, (m + 1 + n) * groups
"""
COMMON = "from flashkat_lite.lab.exercises import common\n"
TRACER = """
import sys
def tracer(frame, event, argument):
    found = frame.f_locals  # asked once: asking again undoes what was written
    if "got" in found and "expected" in found:
        found["got"] = found["expected"]
    return tracer
"""
ATTACKS = {
    "honest": (RIGHT, COUNT),
    "wrong": (WRONG, COUNT),
    "zeros": (ZEROS, SUMS),
    "the check is replaced": (WRONG + "from flashkat_lite import lab\nlab.check = print", COUNT),
    "the register of checks": (WRONG + COMMON + "common.CHECKS['07-1'] = lambda f: 'fine'", COUNT),
    "the comparison": (WRONG + COMMON + "common.same_number = lambda *_, **__: None", COUNT),
    "the comparison's code": (
        WRONG + COMMON + "common.same_number.__code__ = (lambda what, got, expected, causes=0, within=1: 0).__code__",
        COUNT,
    ),
    "its defaults": (WRONG + COMMON + "common.same_number.__defaults__ = (None, 1e30)", COUNT),
    "the error": (WRONG + COMMON + "common.Wrong.__new__ = lambda *_: Exit()\nclass Exit: pass", COUNT),
    "built-in functions": (WRONG + "import builtins\nbuiltins.isinstance = builtins.all = lambda *_: True", COUNT),
    "modules": (
        WRONG + "import sys, unittest.mock\nsys.modules['flashkat_lite.lab.exercises'] = unittest.mock.Mock()",
        COUNT,
    ),
    "tensors' methods": (
        ZEROS + "torch.Tensor.any = lambda self: False\ntorch.Tensor.abs = lambda self: 0 * self",
        SUMS,
    ),
    "a type that equals all": (
        "class Same(int):\n    __hash__ = int.__hash__\n    __eq__ = lambda self, other: True\n"
        "def count_work(*_): return Same(), Same(), Same()",
        COUNT,
    ),
    "a trace": (ZEROS + WRONG + TRACER + "sys.settrace(tracer)", COUNT),
    "a trace from within": (TRACER + "def count_work(*_):\n    sys.settrace(tracer)\n    return 0, 0, 0", COUNT),
    "a profiler": (TRACER + WRONG + "sys.setprofile(tracer)", COUNT),
    "callers' variables": (
        "import sys\ndef count_work(*case):\n    frame = sys._getframe(1)\n    while 'right' not in frame.f_locals:\n"
        "        frame = frame.f_back\n    return tuple(part[1] for part in frame.f_locals['right'](*case))",
        COUNT,
    ),
    "callers' variables by an error": (
        "def count_work(*case):\n    try:\n        1 / 0\n    except ZeroDivisionError as error:\n"
        "        frame = error.__traceback__.tb_frame.f_back\n    while 'right' not in frame.f_locals:\n"
        "        frame = frame.f_back\n    return tuple(part[1] for part in frame.f_locals['right'](*case))",
        COUNT,
    ),
    "callers' variables by another module": (
        "import inspect\ndef count_work(*case):\n    for frame in (one.frame for one in inspect.stack(0)):\n"
        "        if 'right' in frame.f_locals: return tuple(part[1] for part in frame.f_locals['right'](*case))",
        COUNT,
    ),
    "a debugger": (
        TRACER + "import bdb\nclass Mine(bdb.Bdb):\n    def trace_dispatch(self, *told): return tracer(*told)\n"
        "def count_work(*_):\n    Mine().set_trace()\n    return 0, 0, 0",
        COUNT,
    ),
    "a mode": (
        ZEROS + "from torch.overrides import TorchFunctionMode\nclass Mode(TorchFunctionMode):\n"
        "    def __torch_function__(self, function, types, arguments=(), named=None):\n"
        "        said = function(*arguments, **(named or {}))\n"
        "        return torch.ones_like(said) if function.__name__ in ('le', '__le__') else said\nMode().__enter__()",
        SUMS,
    ),
    "a mode below": (
        ZEROS + "from torch.utils._python_dispatch import TorchDispatchMode\nclass Mode(TorchDispatchMode):\n"
        "    def __torch_dispatch__(self, function, types, arguments=(), named=None):\n"
        "        said = function(*arguments, **(named or {}))\n"
        "        return torch.zeros_like(said) if 'sub' in str(function) else said\nMode().__enter__()",
        SUMS,
    ),
    "a thread that patches again": (
        WRONG + COMMON + "import sys, threading\nsys.setswitchinterval(1e-6)\ndef again():\n    while True:\n"
        "        sys.modules[common.__name__].same_number = lambda *_, **__: None\n"
        "threading.Thread(target=again, daemon=True).start()",
        COUNT,
    ),
    "a patch while it is called": (
        "import sys\ndef count_work(*_):\n    sys.modules['flashkat_lite.lab.exercises.common'].same_number = print\n"
        "    return 0, 0, 0",
        COUNT,
    ),
    "an exit": ("import os\ndef count_work(*_): os._exit(0)", COUNT),
    "a quiet exit": ("def count_work(*_): raise SystemExit(0)", COUNT),
    "the solutions on disk": (
        "import json\ncells = json.load(open(asked['root'] + '/chapters/07_atomic_backward.ipynb'))['cells']\n"
        "for cell in cells:\n    if 'solution' in cell['metadata'].get('tags', []): exec(''.join(cell['source']))",
        COUNT,
    ),
    "another's file": ("exec(open(asked['other']).read())", COUNT),
    "another's file by its folder": ("import os\nos.listdir(os.path.dirname(asked['other']))", COUNT),
    "other processes": (
        "import os\nfound = [open(f'/proc/{p}/cmdline').read() for p in os.listdir('/proc') if p.isdigit()]",
        COUNT,
    ),
    "a clock": (WRONG + "import time\ntime.perf_counter = lambda: 0.0", "import time\nassert time.perf_counter() == 0"),
    "a GPU's clock": (
        "import torch\ntorch.cuda.Event.elapsed_time = lambda *_: 1e-3",
        "import torch\nassert torch.cuda.Event.elapsed_time(0, 0) == 1e-3",
    ),
    "what times": (
        "from flashkat_lite import hardware\nhardware.time_interleaved = lambda *_, **__: {}",
        "from flashkat_lite import hardware\nassert hardware.time_interleaved.__name__ == '<lambda>'",
    ),
}  # fmt: skip
EARN = {"honest"}


@pytest.fixture(scope="module")
def said(tmp_path_factory, warm):
    from tools.course import grade

    folder, other = tmp_path_factory.mktemp("mine"), tmp_path_factory.mktemp("others") / "answer.py"
    other.write_text(RIGHT, encoding="utf-8")
    readable = [*grade.readable(), str(ROOT / "flashkat_lite")]
    asked = {"attacks": ATTACKS, "readable": readable, "root": str(ROOT), "folder": str(folder)}
    done = subprocess.run(
        warm([sys.executable, "-c", f"import sys; sys.path[:0] = [{str(ROOT / 'book')!r}, {str(ROOT)!r}]\n{RUNNER}"]),
        input=json.dumps(asked | {"other": str(other)}), capture_output=True, encoding="utf-8", timeout=120,
    )  # fmt: skip
    found = {}
    for line in done.stdout.splitlines():
        name, _, answer = line.partition(" {")
        found[name.strip()] = json.loads("{" + answer) if answer else {"message": "the process ended"}
    assert found.keys() == ATTACKS.keys(), done.stderr
    return found


def test_no_attack_earns_more_than_its_honest_answer(said):
    assert {name for name, one in said.items() if not one["message"]} == EARN
    assert len(ATTACKS) - len(EARN) - 2 >= 15


def test_what_was_on_or_opened_at_a_check_is_seen(said):
    assert said["honest"]["seen"] == []
    assert "a trace was on at a check" in said["a trace"]["seen"]
    assert "a mode of PyTorch was on at a check" in said["a mode"]["seen"]
    assert "threads were running at a check" in said["a thread that patches again"]["seen"]
    assert "was changed while the check ran" in said["a patch while it is called"]["message"]
    assert any(one.startswith("opened ") for one in said["another's file"]["seen"])


def test_files_of_others_are_not_read(said):
    if not kernel.landlock():
        pytest.skip("this system lets no process confine itself")
    for name in ("the solutions on disk", "another's file", "another's file by its folder", "other processes"):
        assert said[name]["failed"].startswith("PermissionError"), name


# What reading a notebook tells


def test_what_no_exercise_asks_for_is_seen_in_a_cell():
    for cell, line in {
        "from flashkat_lite.lab.exercises.ch07 import column_sums_solution": "imports flashkat_lite.lab.exercises.ch07",
        "import flashkat_lite.lab.exercises as e": "imports flashkat_lite.lab.exercises",
        "f = lab.exercises.ch07.f_solution": "uses a solution",
        "import sys; sys.settrace(f)": "sets a trace",
        "getattr(sys, 'settrace')(f)": "sets a trace",
        "%%time\nx = sys._getframe()": "looks at callers' frames",
        "with M(TorchFunctionMode): pass": "uses a mode of PyTorch",
        "time.perf_counter = lambda: 0": "changes time.perf_counter",
        "setattr(torch.cuda.Event, 'elapsed_time', f)": "changes torch.cuda.Event.elapsed_time",
        "open('/proc/1/cmdline')": "names the file /proc/1/cmdline",
        "json.load(open('../other/07.ipynb'))": "names the file ../other/07.ipynb",
        "!cat /etc/passwd": "starts programs",
        "import os; os.system('ls')": "starts programs",
        "broken syntax settrace(": "sets a trace",
    }.items():
        assert any(one.startswith(line) for one in seen.mentions([cell])), cell


def test_ordinary_cells_are_not_remarkable():
    fine = ["torch.backends.cuda.matmul.allow_tf32 = True", "plt.rcParams['x'] = 1", "x = open('mine.txt').read()"]
    fine += ["def f_solution(x): return x\nf_solution(1)", "self.total = 3", "# settrace\n'settrace'", "x = a / 2"]
    assert seen.mentions(fine) == set()


FUNCTION = """
def column_means(dy, scale=2):
    \"\"\"Means.\"\"\"
    total = torch.zeros(dy.shape[1])
    for row in range(dy.shape[0]):
        total += dy[row].float() * scale  # one after the other
    return total / dy.shape[0]
"""


def test_a_function_is_known_under_other_names_and_with_other_notes():
    renamed = FUNCTION.replace("column_means", "f").replace("total", "s").replace("row", "i").replace("dy", "gradient")
    renamed = (
        renamed.replace('    """Means."""\n', "")
        .replace("  # one after the other", "")
        .replace(".shape[0]\n", ".shape[0]\n\n")
    )
    (shape,), (other,) = seen.shapes([FUNCTION]), seen.shapes([renamed])
    assert shape == other
    assert not {shape} & {*seen.shapes([FUNCTION.replace("*", "+")]), *seen.shapes([FUNCTION.replace("[1]", "[0]")])}
    assert not seen.shapes(["def f(x):\n    return 2 * x"])


def test_our_solutions_are_known_and_what_we_hand_out_is_nobodys(root):
    from tools import notebooks

    (path,) = notebooks.select(["07"])
    cells = notebooks.code_cells(notebooks.read(path))
    ours = [cell.source.replace("_solution", "") for cell in cells if "solution" in notebooks.tags(cell)]
    given = [cell.source for cell in cells if "solution" not in notebooks.tags(cell)]
    classes = {"a": given, "b": [*given, *ours], "c": [FUNCTION], "d": [FUNCTION.replace("dy", "y")]}
    found = seen.of_class(classes, [notebooks.read(path)])
    assert found["a"] == []
    assert found["b"] and all("is our solution of 07-" in line for line in found["b"])
    assert found["c"] == ["column_means is that of d, but for names"]
    classes["e"] = classes["d"]
    found = seen.of_class(classes, [notebooks.read(path)], {"c": "ann", "e": "ann"}.get)
    assert found["c"] == ["column_means is that of d, but for names"] and "and 1 more" in found["d"][0]
