"""Student notebooks hold no solutions; grading scores our checks, whatever students did to them or to the machine."""

import csv
import subprocess
import sys
from pathlib import Path

import grade
import grade_feedback
import grade_kernel
import nbformat
import notebooks
import psutil
import pytest
import student
import torch

from flashkat_lite.lab.checks import Wrong, common

CHAPTERS = notebooks.select([])
CHEAPEST = "07_atomic_backward"  # the one that is tried without a GPU too
EXERCISES = {
    "01-1": {"points": 2, "level": 1, "hint": "twice <b>"},
    "01-2": {"points": 3, "level": 2, "hint": "thrice"},
    "01-3": {"points": 4, "level": 3, "hint": "times itself"},
}
CHECKS = {
    "01-1": "lab.checks.common.same_number('2 · 3', double(3), 6)",
    "01-2": "lab.checks.common.same_tensor('3 · x', triple(torch.ones(2)), 3 * torch.ones(2), 0.0)",
    "01-3": "assert square(3) == 9, 'expected 9 <script>'",
}
RIGHT = {"01-1": "double = lambda x: 2 * x", "01-2": "triple = lambda x: 3 * x", "01-3": "square = lambda x: x * x"}
STUB = "def {}(x):\n    raise NotImplementedError"


@pytest.fixture(scope="module")
def chapter(tmp_path_factory):
    """A chapter with three exercises, in a book of its own."""
    code = nbformat.v4.new_code_cell
    cells = [nbformat.v4.new_markdown_cell("# A chapter", id="heading")]
    cells += [code("import torch\nfrom flashkat_lite import lab", id="setup")]
    for number, (name, facts) in enumerate(EXERCISES.items(), 1):
        function = RIGHT[name].partition(" ")[0]
        of = {"exercise": {"id": name}}
        asked = {"tags": ["exercise"], "exercise": {"id": name} | facts}
        cells += [
            code(STUB.format(function), id=f"stub-{number}", metadata=asked),
            code(CHECKS[name], id=f"check-{number}", metadata=of | {"tags": ["check", "skip-execution"]}),
            code(
                f"{function}_solution = 1", id=f"solution-{number}", metadata=of | {"tags": ["solution", "hide-cell"]}
            ),
        ]
    made = nbformat.v4.new_notebook(cells=cells)
    made.cells[1].outputs = [nbformat.v4.new_output("stream", encoding="utf-8")]
    made.metadata.flashkat = {"gpu": "NVIDIA H200"}
    made.metadata.widgets = {notebooks.WIDGET_STATE: {"state": {}}}
    folder = tmp_path_factory.mktemp("book")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(notebooks, "CHAPTERS", folder / "chapters")
        patch.setattr(notebooks, "BUILD", folder / "build")
        notebooks.write(made, folder / "chapters" / "01_first.ipynb")
        yield made


@pytest.fixture
def handed_out(chapter):
    return student.for_student(chapter, "01_first")


def cell(notebook, id):
    return next(cell for cell in notebook.cells if cell.id == id)


def submission(chapter, first="pass", **answers):
    """A handed-out notebook with another first cell and other stubs: submission(chapter, one="double = …")."""
    made = student.for_student(chapter, "01_first")
    made.cells.insert(1, nbformat.v4.new_code_cell(first, id="first"))
    for number, name in enumerate(("one", "two", "three"), 1):
        cell(made, f"stub-{number}").source = answers.get(name, cell(made, f"stub-{number}").source)
    return made


# What is handed out


def test_a_student_notebook_holds_no_solution_and_no_output(handed_out):
    text = notebooks.text(handed_out)
    assert "_solution" not in text and "said" not in text
    assert [cell.id for cell in handed_out.cells][:4] == ["heading", "setup", "stub-1", "check-1"]
    assert cell(handed_out, "check-1").metadata.tags == ["check", "raises-exception"]
    assert cell(handed_out, "stub-1").metadata.exercise.hint == "twice <b>"
    assert "widgets" not in handed_out.metadata
    assert handed_out.metadata.flashkat == {"chapter": "01_first", "version": notebooks.version()}


def test_the_chapter_itself_is_left_alone(chapter):
    before = notebooks.text(chapter)
    student.for_student(chapter, "01_first")
    assert notebooks.text(chapter) == before


# Our checks in a student's notebook


def placed(notebook, chapter):
    return [item.source for item in grade.assemble(notebook, chapter).cells if "check" in notebooks.tags(item)]


def test_editing_or_deleting_a_check_gains_nothing(handed_out, chapter, code):
    cell(handed_out, "check-1").source = "pass"
    for id in ("check-2", "stub-3", "check-3"):
        handed_out.cells.remove(cell(handed_out, id))
    handed_out.cells.append(code("pass", "check-9", "check", metadata={"exercise": {"id": "01-2"}}))
    assert placed(handed_out, chapter) == list(CHECKS.values())


def test_a_deleted_check_returns_after_its_stub(handed_out, chapter):
    handed_out.cells.remove(cell(handed_out, "check-1"))
    assert [item.id for item in grade.assemble(handed_out, chapter).cells][1:3] == ["stub-1", "check-1"]


def test_a_copy_without_cell_ids_is_matched_by_its_exercises(handed_out, chapter):
    for item in handed_out.cells:
        del item["id"]
    handed_out.nbformat_minor = 0
    assert placed(handed_out, chapter) == list(CHECKS.values())


# A class

CHEATS = """
import builtins, sys, torch, types, unittest.mock
from IPython import get_ipython
from flashkat_lite import lab
from flashkat_lite.lab.checks import common

yes = lambda *_, **__: True
lab.checks = unittest.mock.MagicMock()
sys.modules["flashkat_lite.lab.checks"] = lab.checks
sys.modules["flashkat_lite.lab.checks.common"] = unittest.mock.MagicMock()
common.Wrong = common.right
common.same_number.__code__ = (lambda what, got, expected, causes=None: None).__code__
builtins.AssertionError = types.SimpleNamespace
builtins.isinstance, builtins.abs = yes, lambda x: 0
torch.allclose = torch.equal = torch.testing.assert_close = yes
torch.Tensor.abs = lambda self: 0 * self
torch.as_tensor = lambda *_, **__: torch.full((2,), float("inf"))
ours, builtins.__import__ = builtins.__import__, lambda name, *rest: (
    lab.checks if "checks" in name else ours(name, *rest))
shell = get_ipython()
shell.input_transformers_cleanup.append(lambda lines: ["pass"] if "check" in "".join(lines) else lines)
shell.user_ns["__builtins__"] = {"__import__": builtins.__import__}
sys.meta_path.insert(0, types.SimpleNamespace(find_spec=lambda *_: None))
"""
DELETES = """
import atexit, os, pathlib, shutil, subprocess, sys
import flashkat_lite
for place in (os.getcwd(), os.environ["HOME"], {prey!r}, pathlib.Path(flashkat_lite.__file__).parent):
    shutil.rmtree(place, ignore_errors=True)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", {mark!r}], start_new_session=True)
atexit.register(os._exit, 0)
"""
IGNORES = """
import signal, time
def square(x):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        time.sleep(1)
"""
EXITS = """
import os
double = lambda x: os._exit(0)
"""
EATS = """
def triple(x):
    hoard = []
    while True:
        hoard.append(b"x" * 10**8)
"""
FLOODS = """
from IPython.display import display
while True:
    display({"text/plain": "x" * 10**6}, raw=True)
"""
REPLACES = """
from ipykernel.ipkernel import IPythonKernel
kernel = type(get_ipython().kernel)
async def fine(self, *_, **__):
    return {"status": "ok", "execution_count": 1, "payload": [], "user_expressions": {}, "answer": {"message": ""}}
kernel.do_execute = fine
"""
one, two, three = RIGHT.values()


@pytest.fixture
def graded(chapter, tmp_path):
    """A class of all kinds, graded in one run: its folder, and {file: {exercise: row}}."""
    folder = tmp_path / "class"
    folder.mkdir()
    mark = f"left-behind-{folder}"
    students = {
        "ann/deletes": submission(
            chapter, DELETES.format(prey=str(folder / "prey"), mark=mark), one=one, two=two, three=three + "\nquit()"
        ),
        "bob/partly": submission(
            chapter, "while True:\n    print('x' * 10**5)", one=one, two="triple = lambda x: x + 1"
        ),
        "cheats": submission(chapter, CHEATS, one="double = lambda x: 0", two="triple = lambda x: x", three=three),
        "hangs": submission(chapter, one=one, three=IGNORES),
        "prey/crashes": submission(chapter, FLOODS, one=EXITS, two=EATS, three=three),
        "replaces": submission(chapter, REPLACES),
    }
    for name, made in students.items():
        notebooks.write(made, folder / f"{name}.ipynb")
    notebooks.write(nbformat.v4.new_notebook(), folder / "bob" / "holidays.ipynb")
    (folder / "bob" / "broken.ipynb").write_text("{", encoding="utf-8")
    limits = ["--cell", "10", "--grace", "1", "--memory", "2", "--output", "1000000"]
    grade.main([str(folder), "--jobs", "3", *limits])
    with (folder / "grades.csv").open(encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert tuple(rows[0]) == grade.HEADER
    found = {}
    for row in rows[1:]:
        found.setdefault(row[0], {})[row[1]] = row
    assert not [p for p in psutil.process_iter(["cmdline"]) if mark in (p.info["cmdline"] or [])] or not LINUX
    return folder, found


LINUX = sys.platform.startswith("linux")


def points(graded, name):
    return [row[2] for row in graded[1][f"{name}.ipynb"].values()]


def messages(graded, name):
    return [row[4] for row in graded[1][f"{name}.ipynb"].values()]


def test_a_class_of_all_kinds(graded, subtests):
    """One run for the time that it takes."""
    with subtests.test("every notebook is graded in the order of their names"):
        names = list(graded[1])
        assert names == sorted(names) and len(names) == 8
    with subtests.test("each check is scored by its own outcome"):
        assert points(graded, "bob/partly") == ["2", "0", "0"]
        _, wrong, untouched = messages(graded, "bob/partly")
        assert wrong.startswith("Wrong: 3 · x: 2 of 2 are wrong; the first at index (0,): expected 3, got 2")
        assert untouched == "NotImplementedError: "
    with subtests.test("deleting files and leaving processes behind changes no score"):
        assert points(graded, "ann/deletes") == ["2", "3", "4"]
        assert points(graded, "prey/crashes") == ["0", "0", "4"]
        assert (graded[0] / "prey" / "crashes.ipynb").exists() or not grade_kernel.landlock()
    with subtests.test("what a cell did to python torch ipython or the checks is undone before a check"):
        assert points(graded, "cheats") == ["0", "0", "4"]
        assert messages(graded, "cheats")[0] == "Wrong: 2 · 3: expected 6, got 0."
        assert messages(graded, "cheats")[1].startswith("Wrong: 3 · x: 2 of 2 are wrong")
    with subtests.test("who replaces what runs the checks scores nothing"):
        assert points(graded, "replaces") == ["0", "0", "0"]
        assert "kept from running" in messages(graded, "replaces")[0]
    with subtests.test("a crash a flood and too much memory cost their own points only"):
        assert points(graded, "prey/crashes") == ["0", "0", "4"]
        first, second, _ = messages(graded, "prey/crashes")
        assert "process ended" in first and "more than 2 GiB" in second
        assert "put out too much" in (graded[0] / "feedback/prey/crashes.ipynb.html").read_text(encoding="utf-8")
    with subtests.test("a cell that prints too much fails and the notebook goes on"):
        assert points(graded, "bob/partly")[0] == "2"
        assert "prints at most 1,000,000 characters" in (graded[0] / "feedback/bob/partly.ipynb.html").read_text(
            encoding="utf-8"
        )
    with subtests.test("a hang that ignores interrupts keeps what was earned before"):
        assert points(graded, "hangs") == ["2", "0", "0"]
        assert messages(graded, "hangs")[2].startswith("TimeoutError")
    with subtests.test("what cannot be run says why"):
        assert graded[1]["bob/holidays.ipynb"][""][4] == "answers no chapter that is here"
        assert graded[1]["bob/broken.ipynb"][""][4].startswith("cannot be run: NotJSONError")
    with subtests.test("a page of feedback holds points message meaning and the hint of what was missed"):
        page = (graded[0] / "feedback" / "cheats.ipynb.html").read_text(encoding="utf-8")
        assert "<strong>4 of 9 points</strong>" in page
        assert "expected 6, got 0" in page and grade_feedback.MEANINGS["Wrong"] in page
        assert "Hint: twice &lt;b&gt;" in page and "times itself" not in page
        index = (graded[0] / "feedback" / "index.html").read_text(encoding="utf-8")
        assert 'href="ann/deletes.ipynb.html"' in index
        assert "<td>01-1</td><td>3</td><td>6</td><td>50%</td>" in index


# Without a process


def said(message="", **more):
    return {"message": message, **more}


def test_a_page_runs_nothing_that_a_student_wrote():
    row = grade.Row("01-1", 0, 2, "Wrong: <script>alert(1)</script>", "", "<img src=x>")
    page = grade_feedback.page(
        grade_feedback.Graded("<b>.ipynb", {"01-1": nbformat.from_dict({"hint": "<i>"})}, [row], [("<u>", "")])
    )
    assert not [tag for tag in ("<script", "<img", "<b>", "<i>", "<u>") if tag in page]
    assert "default-src 'none'" in page


def test_a_slow_kernel_earns_a_share_of_its_worst_band():
    speeds = [["at once", "good", 1], ["2²⁰: fair", "fair", 0.5]]
    assert grade.row("01-1", 5, said(speeds=speeds)) == grade.Row("01-1", 2.5, 5, "2²⁰: fair", "fair", "")
    assert grade.row("01-1", 5, said(speeds=speeds[:1])) == grade.Row("01-1", 5, 5, "", "good", "")
    assert grade.row("01-1", 5, said("Wrong: no", speeds=speeds)).points == 0
    assert grade.row("01-1", 5, None).points == 0


def test_an_answer_counts_only_with_its_seal():
    process = grade.Process([], Path(), grade.Limits(), 0)
    check = nbformat.v4.new_code_cell("", id="check-1", metadata={"tags": ["check"]})
    answer = said(id="check-1", printed="", speeds=[])
    good = {"status": "ok", "answer": answer, "proof": grade_kernel.seal(process.secret, answer)}
    assert process.outcome(check, good) == answer
    for forged in (
        {"proof": "0"},
        {"proof": None, "answer": None},
        {"answer": answer | {"id": "check-2"}, "proof": grade_kernel.seal(process.secret, answer | {"id": "check-2"})},
    ):
        assert "kept from running" in process.outcome(check, good | forged)["message"]


def test_interrupting_keeps_what_is_graded(chapter, tmp_path, monkeypatch):
    for name in ("a", "b"):
        notebooks.write(submission(chapter), tmp_path / f"{name}.ipynb")

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(grade, "outcomes", lambda *_: {"check-1": said()})
    monkeypatch.setattr(grade_feedback.Graded, "line", interrupt)  # Ctrl-C as the first result is announced
    with pytest.raises(SystemExit, match="Stopped: 1 of 2"):
        grade.main([str(tmp_path)])
    assert (tmp_path / "grades.csv").read_text(encoding="utf-8").count("ipynb,01-1,2,2,") == 1


def test_a_missing_folder_gets_one_line():
    with pytest.raises(SystemExit, match="SUBMISSIONS=folder"):
        grade.main([])


CONFINED = """
import os, signal, sys
sys.path.insert(0, {tools!r})
import grade_kernel
if not grade_kernel.confine({inside!r}):
    sys.exit(77)
open({inside!r} + "/new", "w").write("written")
for act in (lambda: open({outside!r}, "a"), lambda: os.remove({outside!r}), lambda: os.truncate({outside!r}, 0),
            lambda: os.kill(os.getppid(), signal.SIGCONT)):
    try:
        act()
    except PermissionError:
        print("refused")
"""


def test_a_notebook_writes_in_its_own_folder_only(tmp_path):
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.write_text("kept", encoding="utf-8")
    inside.mkdir()
    script = CONFINED.format(tools=str(Path(grade.__file__).parent), inside=str(inside), outside=str(outside))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, encoding="utf-8")
    if done.returncode == 77:
        pytest.skip("this system lets no process confine itself")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("refused") >= 3, "signals are kept in since Linux 6.12"
    assert (inside / "new").read_text(encoding="utf-8") == "written" and outside.read_text(encoding="utf-8") == "kept"


class Agrees(torch.Tensor):
    """Whatever is computed with it is true."""

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), options=None):
        return torch.ones((), dtype=torch.bool)


class Equals(int):
    __hash__ = int.__hash__

    def __eq__(self, other):
        return True


def test_an_answer_whose_type_agrees_with_everything_is_wrong():
    with pytest.raises(Wrong, match="expected a tensor, got Agrees"):
        common.same_tensor("x", torch.zeros(3).as_subclass(Agrees), torch.ones(3), 0.0)
    with pytest.raises(Wrong, match="expected a number, got 0"):
        common.same_number("n", Equals(0), 6)


# Speed, by a clock that we set


@pytest.fixture
def clock(monkeypatch):
    """Sets what a call takes, in milliseconds: clock(yours=…, ours=…)."""

    def set_to(**ms):
        times = {name.replace("_", " "): common.hardware.Timing(t, t, t, 3) for name, t in ms.items()}
        monkeypatch.setattr(
            common.hardware, "time_interleaved", lambda functions, **_: {n: times[n] for n in functions}
        )

    monkeypatch.setattr(common, "speeds", [])
    return set_to


@pytest.mark.parametrize(
    ("ms", "good", "band", "share"),
    [
        (0.5, 1.2, "excellent", 1),
        (1.05, 1.2, "excellent", 1),
        (1.2, 1.2, "good", 1),
        (1.25, 1.3, "good", 1),
        (1.25, 1.2, "fair", 0.5),
        (1.5, 1.2, "fair", 0.5),
        (2.0, 1.2, "slow", 0.25),
    ],
)
def test_speed_is_scored_in_bands(clock, capsys, ms, good, band, share):
    clock(yours=ms, ours=1.0)
    common.timed(torch.neg, torch.neg, (torch.ones(3),), "3 numbers", good=good)
    (speed,) = common.speeds
    assert (speed.band, speed.share) == (band, share)
    assert capsys.readouterr().out == f"{speed.line}\n"
    assert f"({ms:.2f}×): {band}" in speed.line
    assert (f"{share:.0%} of the points; {good} is good" in speed.line) == (share < 1)


def test_beyond_the_last_band_a_right_kernel_is_wrong(clock):
    clock(yours=2.1, ours=1.0)
    with pytest.raises(Wrong, match=r"correct, but 2.10 times as slow.*within 1.2 counts as good"):
        common.timed(torch.neg, torch.neg, (torch.ones(3),), "3 numbers")
    assert common.speeds == []


def test_the_line_holds_bandwidths_and_a_copy(clock):
    clock(yours=1.0, ours=2.0, a_copy=0.5)
    common.timed(
        torch.neg, torch.neg, (torch.ones(250_000),), "2 million bytes", nbytes=2_000_000, copied=torch.ones(250_000)
    )
    line = common.speeds[0].line
    times = "yours 1.000 ms (2 GB/s), ours 2.000 ms (1 GB/s), a copy 0.500 ms (4 GB/s)"
    assert line == f"2 million bytes: {times} (0.50×): excellent."


def test_a_kernel_that_is_wrong_at_the_timed_size_is_not_timed(clock):
    clock(yours=0.1, ours=1.0)
    with pytest.raises(Wrong, match="before it is timed: 1 of 3 are wrong"):
        common.timed(lambda x: x * torch.tensor([1, 1, 0]), torch.clone, (torch.ones(3),), "3 numbers")


# The chapters themselves


def solved(chapter):
    """What a student would write who had our solutions, by exercise."""
    solutions = [item for item in notebooks.code_cells(chapter) if "solution" in notebooks.tags(item)]
    return {notebooks.exercise(item): item.source.replace("_solution", "") for item in solutions}


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[] if path.stem == CHEAPEST else pytest.mark.full, id=path.stem) for path in CHAPTERS],
)
def test_an_untouched_copy_earns_nothing_and_a_solved_one_all_points(path, tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks, "CHAPTERS", path.parent)
    chapter = notebooks.read(path)
    submission = student.for_student(chapter, path.stem)
    notebooks.write(submission, tmp_path / "untouched.ipynb")
    for stub in [item for item in submission.cells if "exercise" in notebooks.tags(item)]:
        stub.source = solved(chapter)[notebooks.exercise(stub)]
    notebooks.write(submission, tmp_path / "solved.ipynb")
    grade.main([str(tmp_path), "--jobs", "1" if torch.cuda.is_available() else "2"])
    with (tmp_path / "grades.csv").open(encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    best, nothing = ([row for row in rows if row[0] == f"{name}.ipynb"] for name in ("solved", "untouched"))
    assert len(best) == len(nothing) == len(solved(chapter))
    assert [row[2] for row in best] == [row[3] for row in best]
    assert [row[2] for row in nothing] == ["0"] * len(nothing)
