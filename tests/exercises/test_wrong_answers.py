"""Each exercise's check accepts a right answer, and rejects common wrong ones with the message that says why.

The answers are in chNN.py, a file for each chapter, by the number of the exercise.
"""

import ast
import importlib
import inspect
import re
import subprocess
import sys
import traceback
import warnings
from pathlib import Path

import invented
import numpy as np
import pytest
import reported
import torch
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from flashkat_lite import lab
from flashkat_lite.kernels import INTERPRETED
from flashkat_lite.lab.counting import accesses
from flashkat_lite.lab.exercises.ch07 import column_sums_copies_solution
from flashkat_lite.lab.exercises.common import Wrong, same_number, timed
from tools import notebooks
from tools.notebooks import stamp

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="make test runs these in a process of their own")

CHAPTERS = [path.stem[:2] for path in notebooks.select([])]
ANSWERS = {chapter: importlib.import_module(f"ch{chapter}") for chapter in CHAPTERS}


def timed_exercises():
    """(module, number, name of the solution) of every exercise whose time is taken on a GPU: a kernel's."""
    for chapter in CHAPTERS:
        module = importlib.import_module(f"flashkat_lite.lab.exercises.ch{chapter}")
        for check in stamp.definitions(stamp.Package().tree(module.__name__)).values():
            calls = [node for node in ast.walk(check) if isinstance(node, ast.Call)]
            for call in calls:
                if getattr(call.func, "id", "") == "timed":
                    yield module, check.decorator_list[0].args[0].value, call.args[1].id


TIMED = [*timed_exercises()]
# An exercise of each chapter that has kernels to write: `make test` runs these with the stand-in too.
SAMPLE = {number[:2]: number for _, number, _ in reversed(TIMED)}.values()


def marks(number, first=True):
    return [pytest.mark.standin] if first and number in SAMPLE else []


def of(table):
    """(number, answer, words) of every chapter."""
    for answers in [*ANSWERS.values(), reported, invented]:
        for number, listed in getattr(answers, table, {}).items():
            for place, entry in enumerate(listed if isinstance(listed, list) else [listed]):
                answer, words = (entry, "") if table == "RIGHT" else entry
                sampled = marks(number, table == "WRONG" and place == 0)
                yield pytest.param(number, answer, words, id=f"{number}-{words}", marks=sampled)


# Lines of the checks that no other file has by chance.
SOURCE = {
    line.strip()
    for path in Path(lab.exercises.__file__).parent.glob("*.py")
    for line in path.read_text(encoding="utf-8").splitlines()
    if len(line.strip()) > 20 and not line.strip().startswith(("import ", "from ", "@"))
}


@pytest.fixture(scope="module")
def shell():
    """IPython, without colours and without a history on the disk."""
    made = InteractiveShell.instance(colors="nocolor", config=Config({"HistoryManager": {"enabled": False}}))
    made.run_cell("import torch\nfrom flashkat_lite import lab", silent=True)
    yield made
    InteractiveShell.clear_instance()


def shows_no_check(text):
    return "lab/exercises" not in text and not [
        line for line in text.splitlines() if line.strip(" ->0123456789") in SOURCE
    ]


def judge(number, answer):
    lab.check(number, *answer if isinstance(answer, tuple) else [answer])


@pytest.mark.parametrize(("number", "answer", "words"), [*of("RIGHT")])
def test_a_right_answer_is_accepted(number, answer, words, capsys):
    judge(number, answer)
    assert "Right: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("module", "number", "name"), [pytest.param(*one, id=one[1], marks=marks(one[1])) for one in TIMED]
)
def test_a_timed_solution_is_right_and_takes_what_it_is_timed_with(module, number, name, monkeypatch):
    calls = []
    monkeypatch.setattr(module, "timed", lambda *arguments, **options: calls.append((arguments, options)))
    lab.check(number, getattr(module, name))
    (((_, ours, cases), options),) = calls
    assert ours is getattr(module, name) and cases
    for arguments in cases.values():
        inspect.signature(ours).bind(*arguments)
        assert isinstance(arguments[0], tuple | torch.Tensor) or callable(arguments[0])
    inspect.signature(timed).bind(*calls[0][0], **options)


@pytest.mark.parametrize(("number", "answer", "words"), [*of("WRONG"), *of("FIXED")])
def test_a_wrong_answer_is_rejected_with_its_cause_alone(number, answer, words, shell, capsys):
    with pytest.raises(Wrong, match=words) as caught:
        judge(number, answer)
    capsys.readouterr()
    shell.showtraceback((caught.type, caught.value, caught.tb))
    assert capsys.readouterr().out == f"Wrong: {caught.value}\n"
    assert shows_no_check("".join(traceback.format_exception(caught.value)))


def exercises():
    """(stub, check) of every exercise, as they are handed out."""
    for path in notebooks.select([]):
        cells = notebooks.read(path).cells
        found = {notebooks.exercise(cell): cell.source for cell in cells if "exercise" in notebooks.tags(cell)}
        for cell in cells:
            if "check" in notebooks.tags(cell):
                name = notebooks.exercise(cell)
                yield pytest.param(found[name], cell.source, id=name)


@pytest.mark.parametrize(("stub", "check"), [*exercises()])
def test_a_stub_is_not_done_yet_and_shows_no_answer(stub, check, shell, capsys):
    shell.run_cell(stub)
    capsys.readouterr()
    shell.run_cell(check)
    name = re.search(r", (\w+)", check)[1]
    assert capsys.readouterr().out == f"NotImplementedError: not done yet ({name})\n"


RAISES = """try:
        [][1]
    except IndexError as first:
        raise ValueError("a student's") from first"""


@pytest.mark.parametrize(("stub", "check"), [*exercises()])
def test_of_an_answer_that_raises_the_students_lines_are_shown_alone(stub, check, shell, capsys):
    shell.run_cell(stub.replace("raise NotImplementedError", RAISES))
    capsys.readouterr()
    shell.run_cell(check)
    text = capsys.readouterr().out
    assert text.index("----> ") < text.index("[][1]") < text.index("raise ValueError(") < text.index(": a student's")
    assert text.count(check) == 1 and shows_no_check(text)
    assert "contextlib" not in text and "site-packages" not in text


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("exec('1 +')", "SyntaxError"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise ExceptionGroup('two', [ValueError(1)])", "two"),
        ("import warnings; warnings.warn('the line above', stacklevel=2); return 0", "expected 896, got 0"),
        ("return 'no number'", "expected a number, got 'no number'"),
        ("return f(program, block)", "RecursionError"),
    ],
)
def test_no_error_of_any_kind_shows_a_check(line, shown, shell, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = lambda *found, **_: print(warnings.formatwarning(*found[:4]))
        shell.run_cell(f"def f(program, block):\n    {line}\nlab.check('04-2', f)")
    written = "".join(capsys.readouterr())
    assert shown in written and shows_no_check(written)


def test_an_answer_that_its_check_cannot_use_shows_no_check(shell, capsys):
    shell.run_cell("lab.check('13-4', lambda module, x: module(x).sum() if x.requires_grad else 1)")
    assert shows_no_check("".join(capsys.readouterr()))


def test_of_a_kernels_error_the_kernels_own_line_is_shown(shell, capsys):
    kernel = [
        "import triton, triton.language as tl",
        "@triton.jit",
        "def kernel(x_ptr, BLOCK: tl.constexpr):",
        "    tl.load(x_ptr + tl.arange(0, BLOCK), othr=0.0)",
        "def silu(x):",
        "    kernel[(1,)](x, 16)",
        "lab.check('04-3', silu)",
    ]
    shell.run_cell("\n".join(kernel))
    text = capsys.readouterr().out
    assert "----> 4     tl.load(" in text and "----> 6     kernel[(1,)]" in text
    assert "unexpected keyword argument 'othr'" in text.splitlines()[-1]
    assert shows_no_check(text) and "site-packages" not in text


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_check_of_a_chapter_is_tried_on_three_wrong_answers_or_more(chapter):
    (path,) = notebooks.select([chapter])
    cells = [cell for cell in notebooks.read(path).cells if "check" in notebooks.tags(cell)]
    called = {re.fullmatch(r'lab\.check\("(.+?)", .+\)', cell.source)[1]: notebooks.exercise(cell) for cell in cells}
    assert len(called) >= 3 and all(number == exercise for number, exercise in called.items())
    answers = ANSWERS[chapter]
    assert answers.FIXED.keys() == called.keys(), "one that is hard-coded, or right at one size"
    assert {number for number, wrong in answers.WRONG.items() if len(wrong) >= 2} == called.keys()


def test_a_check_imports_its_own_chapter_alone_and_no_compiler_of_pytorchs():
    code = "import sys; from flashkat_lite import lab; lab.check('09-3', lambda dy: 1)"
    names = "'flashkat_lite.lab.exercises.ch', 'torch._dynamo', 'torch._inductor'"
    found = f"print([name[-4:] for name in sys.modules if name.startswith(({names}))])"
    script = f"try:\n    {code}\nexcept AssertionError:\n    {found}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.splitlines()[-1] == "['ch09']"


def test_a_number_is_wrong_by_a_part_in_ten_thousand():
    same_number("a ratio", 0.25 * (1 + 1e-7), 0.25)
    with pytest.raises(Wrong, match=r"a ratio: expected 0\.25, got 0\.250025"):
        same_number("a ratio", 0.25 * (1 + 1e-4), 0.25)


def test_numpys_numbers_are_numbers():
    same_number("a count", np.int64(7), 7)
    same_number("a count", torch.tensor([7]), 7)


def test_accesses_and_programs_are_counted():
    with accesses() as seen:
        column_sums_copies_solution(torch.randn(400, 8), copies=2)
    assert seen.adds.elements == 3200 and len(seen.adds.addresses) == 16
    assert seen.loads.elements == 3200 and seen.loads.nbytes == 12800 and seen.loads.sectors == 400
    assert seen.stores.elements == 0 and seen.programs == [(program, 0, 0) for program in range(4)]


def test_accesses_to_a_tensor_are_told_from_those_beside_it():
    x = torch.arange(300.0)
    with accesses() as seen:
        column_sums_copies_solution(x[100:150].view(10, 5), copies=1)
    assert seen.loads.of(x[100:150]).elements == 50 and seen.loads.of(x[120:130]).elements == 10
    assert seen.loads.of(x[150:]).elements == 0 and seen.loads.of(x[150:], margin=10).elements == 10
