"""Student notebooks hold no solutions; grading scores our checks, whatever students did to them or to the machine."""

import contextlib
import csv
import json
import os
import signal
import site
import stat
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import nbformat
import psutil
import pytest
import torch

from flashkat_lite.lab.exercises import common
from flashkat_lite.lab.exercises.common import Wrong
from tools import notebooks
from tools.course import grade, student
from tools.course.grading import collect as grade_collect
from tools.course.grading import feedback as grade_feedback
from tools.course.grading import kernel as grade_kernel
from tools.course.grading import table as grade_table
from tools.paths import TOOLS

CHAPTERS = notebooks.select([])
CHEAPEST = "07_atomic_backward"  # the one that is tried without a GPU too
EXERCISES = {
    "01-1": {"points": 2, "level": 1, "hint": "Twice <b>. Is `x` a number? Add it."},
    "01-2": {"points": 3, "level": 2, "hint": "thrice"},
    "01-3": {"points": 4, "level": 3, "hint": "times itself"},
}
CHECKS = {
    "01-1": "lab.exercises.common.same_number('2 · 3', double(3), 6)",
    "01-2": "lab.exercises.common.same_tensor('3 · x', triple(torch.ones(2)), 3 * torch.ones(2), 0.0)",
    "01-3": "assert square(3) == 9 and lab.setup.DEVICE, 'expected 9 <script>'",
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
    made.cells[1].outputs = [nbformat.v4.new_output("stream", text="said")]
    made.metadata.flashkat = {"gpu": "NVIDIA H200"}
    made.metadata.widgets = {notebooks.WIDGET_STATE: {"state": {}}}
    folder = tmp_path_factory.mktemp("book")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(notebooks, "CHAPTERS", folder / "chapters")
        patch.setattr(grade, "BUILD", folder / "build")
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
    assert [cell.id for cell in handed_out.cells][:5] == ["heading", "setup", "stub-1", "stub-1-hint", "check-1"]
    assert cell(handed_out, "check-1").metadata.tags == ["check", "raises-exception"]
    assert cell(handed_out, "stub-1").metadata.exercise.hint == EXERCISES["01-1"]["hint"]
    first, second, third = cell(handed_out, "stub-1-hint").source.split("<details>\n")[1:]
    assert first == "<summary>Hint</summary>\n\nTwice <b>.\n\n"
    assert second == "<summary>Another hint</summary>\n\nIs `x` a number?\n\n"
    assert third == "<summary>Another hint</summary>\n\nAdd it.\n\n</details></details></details>"
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


def test_what_was_typed_into_a_checks_cell_is_run_before_our_check(handed_out, chapter):
    check = cell(handed_out, "check-1")
    check.source = f"{RIGHT['01-1']}\n{check.source}  # mine\nif True:\n    {check.source}\nafter = 1"
    cells = grade.assemble(handed_out, chapter).cells
    at = next(number for number, item in enumerate(cells) if item.id == "check-1")
    assert cells[at].source == CHECKS["01-1"]
    assert cells[at - 1].source == f"{RIGHT['01-1']}\npass\nif True:\n    pass\nafter = 1"
    assert [item.id for item in cells].count("check-1") == 1 and len(cells) == len({item.id for item in cells})


def test_checks_that_were_left_alone_add_no_cell(handed_out, chapter):
    assert [item.id for item in grade.assemble(handed_out, chapter).cells] == [
        *("setup", "stub-1", "check-1", "stub-2", "check-2", "stub-3", "check-3")
    ]


@pytest.mark.parametrize("metadata", [{"tags": "check"}, {"exercise": "01-1"}, {"exercise": {"id": 3}}, {"id": [1]}])
def test_strange_metadata_keep_nobody_from_a_grade(handed_out, chapter, metadata):
    for item in handed_out.cells:
        item.metadata = nbformat.from_dict(metadata)
    handed_out.metadata.flashkat = "mine"
    handed_out.cells[2].source = "'\udcff'"
    data = json.dumps(handed_out).encode()
    prepared = grade.prepare("01_first.ipynb", data)
    assert prepared.trouble == "" and len(prepared.stubs) == 3


@pytest.mark.parametrize("kept", ["ids", "exercises", "checks", "heading"])
def test_a_renamed_notebook_is_known_by_whatever_is_left_of_it(handed_out, chapter, kept):
    del handed_out.metadata["flashkat"]
    for number, item in enumerate(handed_out.cells):
        item.id = item.id if kept == "ids" else f"other-{number}"
        item.metadata = item.metadata if kept == "exercises" else nbformat.NotebookNode()
        if kept != "checks" and item.source.startswith(("lab.exercises", "assert")):
            item.source = "pass"
        if kept != "heading" and item.cell_type == "markdown":
            item.source = "# Homework"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        prepared = grade.prepare("hw7.ipynb", json.dumps(handed_out).encode(encoding))
        assert prepared.trouble == "" and len(prepared.stubs) == 3


def test_another_courses_notebook_is_no_chapter_of_ours(chapter):
    other = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# 1. Introduction", id="text-01")])
    assert grade.prepare("hw1.ipynb", json.dumps(other).encode()).trouble == "answers no chapter that is here"


# A class

CHEATS = """
import builtins, sys, torch, types, unittest.mock
from IPython import get_ipython
from flashkat_lite import lab
from flashkat_lite.lab.exercises import common

yes = lambda *_, **__: True
lab.check = lab.exercises = unittest.mock.MagicMock()
lab.setup.DEVICE = ""
sys.modules["flashkat_lite.lab.exercises"] = lab.exercises
sys.modules["flashkat_lite.lab.exercises.common"] = unittest.mock.MagicMock()
common.Wrong = common.near
common.same_number.__code__ = (lambda what, got, expected, causes=None: None).__code__
builtins.AssertionError = types.SimpleNamespace
builtins.isinstance, builtins.abs = yes, lambda x: 0
torch.allclose = torch.equal = torch.testing.assert_close = yes
torch.Tensor.abs = lambda self: 0 * self
torch.as_tensor = lambda *_, **__: torch.full((2,), float("inf"))
ours, builtins.__import__ = builtins.__import__, lambda name, *rest: (
    lab.exercises if "exercises" in name else ours(name, *rest))
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


def late(chapter):
    """Right answers where a check's place does not find them: in its cell, at the end, through a helper at the end."""
    made = submission(chapter, three="def square(x):\n    return helper(x)")
    check = cell(made, "check-1")
    check.source = f"{one}\n{check.source}"
    made.cells.insert(made.cells.index(cell(made, "setup")) + 1, nbformat.v4.new_code_cell(GUESSES))
    made.cells += [nbformat.v4.new_code_cell(f"{two}\n{CHECKS['01-2']}"), nbformat.v4.new_code_cell(HELPER)]
    return made


GUESSES = """guess = 4
lab.predict("=How long?", "ms", "01-launch", guess)
lab.reveal("01-launch", 0.8)
lab.predict("How many?", "", "01-adds")"""
HELPER = "import time\nhelper = lambda x: x * x"


def bare(chapter):
    """All ids and metadata lost, another name, and an answer that comes from a file beside the notebook."""
    made = submission(chapter, "import helpers", one=one, two=two, three="square = helpers.square")
    for item in made.cells:
        item.metadata = nbformat.NotebookNode()
        del item["id"]
    made.metadata, made.nbformat_minor = nbformat.NotebookNode(), 4
    return json.dumps(made)


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
    notebooks.write(late(chapter), folder / "late.ipynb")
    saved = {"03-bytes": {"question": "<b>", "unit": "ms", "guess": -2, "value": None}, "no": 3}
    (folder / "bob" / "Predictions (1).json").write_text(json.dumps(saved), encoding="utf-8")
    with zipfile.ZipFile(folder / "dora.zip", "w") as archive:
        archive.writestr("../hw/any.ipynb", bare(chapter))
        archive.writestr("../hw/helpers.py", three)
    limits = ["--cell", "10", "--grace", "1", "--memory", "2", "--output", "1000000"]
    grade.main([str(folder), "--jobs", "6", *limits])  # a hang or a crash waits, and takes no processor
    with (folder / "grades.csv").open(encoding="utf-8-sig") as file:
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
        assert names == sorted(names) and len(names) == 12
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
    with subtests.test("what was on at a check or is written down is seen and ordinary work is not"):
        seen = {name: rows[next(iter(rows))][7] for name, rows in graded[1].items()}
        assert "changes builtins.isinstance" in seen["cheats.ipynb"] and "changes IPython" in seen["replaces.ipynb"]
        assert {seen[f"{name}.ipynb"] for name in ("late", "hangs", "bob/partly", "dora.zip/../hw/any")} == {""}
        assert "Seen, not judged" in (graded[0] / "feedback" / "index.html").read_text(encoding="utf-8")
    with subtests.test("what cannot be run says why"):
        assert graded[1]["bob/holidays.ipynb"][""][4] == "answers no chapter that is here"
        assert graded[1]["bob/broken.ipynb"][""][4].startswith("cannot be run: NotJSONError")
    with subtests.test("right answers in the checks cell or at the end earn their points and the page says so"):
        assert points(graded, "late") == ["2", "3", "4"]
        notes = [row[6] for row in graded[1]["late.ipynb"].values()]
        assert notes[0] == "" and all("later definition is counted" in note for note in notes[1:])
        assert "later definition is counted" in (graded[0] / "feedback" / "late.ipynb.html").read_text(encoding="utf-8")
    with subtests.test("a notebook in a zip without ids or metadata finds the file beside it"):
        name = "dora.zip/../hw/any"
        assert points(graded, name) == ["2", "3", "4"]
        assert graded[1]["dora.zip/../hw/helpers.py"][""][4].startswith("passed over: not a notebook, brought along")
    with subtests.test("a page of feedback holds points message meaning and the hint of what was missed"):
        page = (graded[0] / "feedback" / "cheats.ipynb.html").read_text(encoding="utf-8")
        assert "<strong>4 of 9 points</strong>" in page
        assert "expected 6, got 0" in page and grade_feedback.MEANINGS["Wrong"] in page
        assert "Hint: Twice &lt;b&gt;." in page and "times itself" not in page
        index = (graded[0] / "feedback" / "index.html").read_text(encoding="utf-8")
        assert 'href="ann/deletes.ipynb.html"' in index
        assert "<td>01-1</td><td>5</td><td>8</td><td>62%</td>" in index

    with subtests.test("guesses of notebooks and of the page's file are listed and earn nothing"):
        lines = (graded[0] / "predictions.csv").read_text(encoding="utf-8").splitlines()[1:]
        assert lines == [
            "bob/Predictions (1).json,03-bytes,<b>,ms,-2,,",
            "late.ipynb,01-launch,'=How long?,ms,4,0.8,5",
        ]
        assert [row[4] for row in graded[1]["bob/Predictions (1).json"].values()] == [
            "no notebook: 1 guess(es), in predictions.csv"
        ]
        page = (graded[0] / "feedback" / "late.ipynb.html").read_text(encoding="utf-8")
        assert "01-launch: =How long?, in ms</td><td>4</td><td>0.8</td><td>5</td>" in page


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


def test_the_better_of_two_definitions_counts():
    def earned(first, again):
        row = grade.better("01-1", 4, "check-1", {"check-1": first, "check-1-again": again})
        return row.points, bool(row.note)

    slow, right, wrong = said(speeds=[["", "slow", 0.25]]), said(), said("Wrong: no")
    assert earned(wrong, right) == (4, True) and earned(slow, right) == (4, True)
    assert earned(slow, wrong) == (1, False) and earned(wrong, said(same=True)) == (0, False)
    assert earned(said("NameError: name 'f' is not defined"), wrong) == (0, True)


def test_a_missing_name_is_explained_by_the_import_that_failed(chapter, monkeypatch):
    cells = grade.assemble(submission(chapter, "import mine"), chapter)
    outcome = {"first": said("ModuleNotFoundError: No module named 'mine'"), "check-1": said("NameError: no double")}
    monkeypatch.setattr(grade, "outcomes", lambda *_: outcome)
    rows, _ = grade.assess(grade.Submission(grade.stubs(chapter), cells), {})
    assert "No module named 'mine'" in rows[0].note


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


def row_of(folder, name, exercise="01-1", out=None):
    return next(line for line in table(out or folder) if line[:2] == [name, exercise])


def table(folder):
    with (folder / "grades.csv").open(encoding="utf-8-sig") as file:
        return list(csv.reader(file))[1:]


@pytest.fixture
def quick(chapter, monkeypatch):
    """Grading without a process: quick.said holds what every notebook's cells say."""

    class Quick:
        said = {"check-1": said()}  # noqa: RUF012

        def __call__(self, notebook, *_):
            return self.said

    made = Quick()
    monkeypatch.setattr(grade, "outcomes", made)
    monkeypatch.setattr(grade.subprocess, "run", lambda *_, **__: None)  # the list of fonts
    return made


ODD = {
    "not UTF-8": (b"\xfc", r"\xfc"),
    "long": (b"x" * 240, "x" * 240),
    "long in Cyrillic": ("ж".encode() * 120, "ж" * 120),
    "a newline": (b"a\nb", r"a\u000ab"),
    "an escape": (b"\x1b[31m", r"\u001b[31m"),
    "a dash": (b"-rf", "'-rf"),
    "a formula": (b"=1+1", "'=1+1"),
    "a quote": (b"'\"'", "''\"'"),
    "markup": (b"<b>&", "<b>&"),
    "a backslash": (b"\\xfc", r"\\xfc"),
}


@pytest.mark.parametrize("where", ["file", "folder"])
def test_no_name_keeps_the_others_from_their_grades(quick, chapter, tmp_path, where, capsys):
    text, folder = notebooks.text(submission(chapter)), tmp_path / "class"
    for name, _ in ODD.values():
        path = os.fsencode(folder) + b"/" + name + (b".ipynb" if where == "file" else b"/01_first.ipynb")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(os.fsdecode(path)).write_text(text, encoding="utf-8")
    notebooks.write(submission(chapter), folder / "zoe.ipynb")
    grade.main([str(folder)])
    ending = ".ipynb" if where == "file" else "/01_first.ipynb"
    names = [line[0] for line in table(folder) if line[1] == "01-1"]
    assert {*names} == {f"{shown}{ending}" for _, shown in ODD.values()} | {"zoe.ipynb"}
    assert [line[2] for line in table(folder) if line[1] == "01-1"] == ["2"] * len(names)
    pages = [path for path in (folder / "feedback").rglob("*.html") if path.name != "index.html"]
    grades = (folder / "grades.csv").read_text(encoding="utf-8")
    assert len(pages) == len(names) and "could not be written" not in grades
    assert f"{len(names)} notebook(s), 0 passed over" in capsys.readouterr().out
    (folder / "feedback" / "index.html").read_text(encoding="utf-8")


def test_names_that_would_share_a_page_have_two(quick):
    names = ["A/x.ipynb", "a/X.ipynb", "index", "b" * 300, "b" * 299 + "c", "../up", "up", "z.zip/../../up"]
    places = grade_feedback.places(names)
    assert len({place.casefold() for place in [*places.values(), "index.html"]}) == len(names) + 1
    assert not [place for place in places.values() if ".." in Path(place).parts or place.startswith("/")]
    assert all(len(part.encode()) < 240 for place in places.values() for part in Path(place).parts)


def test_a_page_that_cannot_be_written_costs_its_student_the_page_only(quick, chapter, tmp_path, monkeypatch):
    for name in ("a", "b"):
        notebooks.write(submission(chapter), tmp_path / f"{name}.ipynb")
    (tmp_path / "feedback" / "a.ipynb.html").mkdir(parents=True)  # nothing can be written over it
    grade.main([str(tmp_path)])
    assert (tmp_path / "feedback" / grade_feedback.other_place("a.ipynb")).exists()
    monkeypatch.setattr(grade_feedback, "page", lambda one: 1 / (one.name != "a.ipynb") and "page")
    grade.main([str(tmp_path)])
    assert row_of(tmp_path, "a.ipynb")[2] == row_of(tmp_path, "b.ipynb")[2] == "2"
    assert "page could not be written: ZeroDivisionError" in row_of(tmp_path, "a.ipynb")[6]


def test_an_error_of_the_graders_own_is_a_row_and_the_next_is_graded(quick, chapter, tmp_path, monkeypatch):
    for name in ("a", "b"):
        notebooks.write(submission(chapter, name), tmp_path / f"{name}.ipynb")
    ours = grade.assess

    def assess(submission, *rest):
        if any(cell.source == "a" for cell in submission.notebook.cells):
            raise LookupError("lost")
        return ours(submission, *rest)

    monkeypatch.setattr(grade, "assess", assess)
    grade.main([str(tmp_path)])
    assert row_of(tmp_path, "a.ipynb", "")[4] == "LookupError: lost" and row_of(tmp_path, "b.ipynb")[2] == "2"


# What is graded, and what is passed over


def test_everything_that_was_handed_in_is_graded_or_listed_with_why(quick, chapter, tmp_path, capsys):
    text, folder = notebooks.text(submission(chapter)), tmp_path / "class"
    for name in ("a.IPYNB", "b.ipynb.txt", "c/01.ipynb", "c/plots/p.png", "d.py", "e/f/notes.txt", "g.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text if "ipynb" in name.lower() else "{}", encoding="utf-8")
    for name in ("__MACOSX/._c.ipynb", "._c.ipynb", "c/.ipynb_checkpoints/01-checkpoint.ipynb", ".DS_Store"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "empty").mkdir()
    (folder / "h").symlink_to(folder / "c")
    (folder / "i.ipynb").symlink_to(tmp_path / "nowhere")
    (folder / "j.zip").write_text("no zip", encoding="utf-8")
    os.mkfifo(folder / "k.ipynb")
    (folder / "l.tar.gz").write_text("", encoding="utf-8")
    grade.main([str(folder)])
    grade.main([str(folder)])  # what the first run wrote is handed in by nobody
    assert {line[0] for line in table(folder) if line[2] == "2"} == {"a.IPYNB", "b.ipynb.txt", "c/01.ipynb"}
    assert {line[0]: line[4] for line in table(folder) if not line[1]} == {
        "c/plots/p.png": "passed over: not a notebook",
        "d.py": "passed over: not a notebook",
        "e": "a folder without a notebook",
        "e/f/notes.txt": "passed over: not a notebook",
        "empty": "a folder without a notebook",
        "g.json": "passed over: not a notebook",
        "h": "passed over: a link to a folder is not followed",
        "i.ipynb": "cannot be read: No such file or directory: a link that leads nowhere",
        "j.zip": "cannot be unpacked: BadZipFile: File is not a zip file",
        "k.ipynb": "passed over: it is no file",
        "l.tar.gz": "passed over: an archive that is not unpacked here",
    }
    printed = capsys.readouterr().out
    assert "3 notebook(s), 9 passed over" in printed and "4 file(s) or folder(s) that systems leave" in printed
    assert "d.py: passed over: not a notebook" in printed


def test_a_folder_without_any_notebook_fails_and_says_so(quick, tmp_path):
    (tmp_path / "a.py").write_text("", encoding="utf-8")
    with pytest.raises(SystemExit, match="No notebook was found"):
        grade.main([str(tmp_path)])
    assert row_of(tmp_path, "a.py", "")[4] == "passed over: not a notebook"


def test_a_zip_leads_nowhere_and_fills_nothing(quick, chapter, tmp_path, monkeypatch):
    text, folder = notebooks.text(submission(chapter)), tmp_path / "class"
    folder.mkdir()
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("../../../../up/01.ipynb", "/root/01.ipynb", "win\\01.ipynb", "same.ipynb", "__MACOSX/._s.ipynb"):
            archive.writestr(name, text)
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("same.ipynb", text)
        link = zipfile.ZipInfo("link.ipynb")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("big.ipynb", " " * 3_000_000)
    (folder / "b").mkdir()
    with zipfile.ZipFile(folder / "b" / "outer.zip", "w") as archive:
        archive.write(folder / "a.zip", "inner.zip")
    with zipfile.ZipFile(folder / "c.zip", "w") as archive:
        archive.writestr("only.txt", "")
    monkeypatch.setattr(grade_collect, "LARGEST", 2_000_000)
    monkeypatch.setattr(grade_collect, "UNPACKED", 4_000_000)
    before = sorted(tmp_path.rglob("*"))
    grade.main([str(folder)])
    good = ["../../../../up/01.ipynb", "root/01.ipynb", "same.ipynb", "same.ipynb (2)", "win/01.ipynb"]
    expected = {f"{zip}/{name}" for zip in ("a.zip", "b/outer.zip/inner.zip") for name in good}
    assert {line[0] for line in table(folder) if line[2] == "2"} == expected
    said = {line[0]: line[4] for line in table(folder) if not line[1]}
    assert said["a.zip/link.ipynb"] == "passed over: a link is not followed"
    assert said["a.zip/big.ipynb"].startswith("larger than 2 MB")
    assert said["c.zip"] == "an archive without a notebook"
    new = {path for path in tmp_path.rglob("*")} - {*before}
    tables = {"grades.csv", "totals.csv", "canvas.csv"}
    assert {path for path in new if (folder / "feedback") not in (path, *path.parents)} == {folder / t for t in tables}
    monkeypatch.setattr(grade_collect, "UNPACKED", 1_000_000)
    collection = grade_collect.Collection(folder, folder, lambda *_: "taken")
    assert {one.name: one.why for one in collection}["a.zip"].startswith("cannot be unpacked: ValueError: it would")


def test_files_are_brought_along_only_from_a_notebooks_own_folder(tmp_path):
    for name in ("a/01.ipynb", "a/mine.py", "a/02.zip", "a/large.csv", "b/02.ipynb", "b/other.py", "c.ipynb", "top.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x" * (2_000_000 if "large" in name else 1), encoding="utf-8")
    brought = {}
    [*grade_collect.Collection(tmp_path, tmp_path, lambda name, _, beside: brought.update({name: {*beside}}))]
    assert brought == {"01.ipynb": {"mine.py"}, "02.ipynb": {"other.py"}, "c.ipynb": set()}


# Grading once more


def test_regrading_replaces_the_rows_of_each_file_as_it_is_graded(quick, chapter, tmp_path, monkeypatch):
    for name in ("a", "b", "gone"):
        notebooks.write(submission(chapter), tmp_path / f"{name}.ipynb")
    grade.main([str(tmp_path)])
    first = (tmp_path / "grades.csv").read_text(encoding="utf-8")
    (tmp_path / "gone.ipynb").unlink()
    quick.said = {}

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(grade_feedback.Graded, "line", interrupt)
    with pytest.raises(SystemExit, match="Stopped: 1 of 2"):
        grade.main([str(tmp_path)])
    points = {name: row_of(tmp_path, f"{name}.ipynb")[2] for name in ("a", "b", "gone")}
    assert points["gone"] == "2" and sorted([points["a"], points["b"]]) == ["0", "2"]
    assert row_of(tmp_path, "gone.ipynb")[6] == "the file is gone"
    (dated,) = tmp_path.glob("grades.2*.csv")
    assert dated.read_text(encoding="utf-8") == first
    monkeypatch.undo()


@pytest.mark.parametrize("moment", ["collecting", "environment", "running"])
def test_a_run_that_ends_early_leaves_every_grade_that_was_there(quick, chapter, tmp_path, monkeypatch, moment):
    notebooks.write(submission(chapter), tmp_path / "a.ipynb")
    grade.main([str(tmp_path)])
    first = (tmp_path / "grades.csv").read_text(encoding="utf-8")

    def stop(*_, **__):
        raise KeyboardInterrupt

    holder, name = {
        "collecting": (grade_collect, "shown"),
        "environment": (grade.execute, "environment"),
        "running": (grade.concurrent.futures, "as_completed"),
    }[moment]
    monkeypatch.setattr(holder, name, stop)
    with pytest.raises(SystemExit, match="Stopped"):
        grade.main([str(tmp_path)])
    assert (tmp_path / "grades.csv").read_text(encoding="utf-8") == first


def test_a_grade_and_a_guess_stay_where_the_grader_fails_later(quick, chapter, tmp_path, monkeypatch):
    quick.said = quick.said | {grade.GUESSED: [["01-a", "How?", "ms", 4.0, None]]}
    notebooks.write(submission(chapter), tmp_path / "a.ipynb")
    grade.main([str(tmp_path)])

    def fails(*_):
        raise RuntimeError("no kernel")

    monkeypatch.setattr(grade, "outcomes", fails)
    grade.main([str(tmp_path)])
    assert (tmp_path / "predictions.csv").read_text(encoding="utf-8").splitlines()[1:] == ["a.ipynb,01-a,How?,ms,4,,"]
    assert row_of(tmp_path, "a.ipynb")[2] == "2"
    assert row_of(tmp_path, "a.ipynb")[6] == "from before: cannot be run: RuntimeError: no kernel"


def test_sigterm_stops_like_ctrl_c(quick, chapter, tmp_path, monkeypatch):
    notebooks.write(submission(chapter), tmp_path / "a.ipynb")
    monkeypatch.setattr(grade, "outcomes", lambda *_: time.sleep(3) or {})
    threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with pytest.raises(SystemExit, match="Stopped: 0 of 1"):
            grade.main([str(tmp_path)])
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "grades.csv"
    grade_table.replace(path, "old")
    monkeypatch.setattr(grade_table.os, "replace", lambda *_: 1 / 0)
    with contextlib.suppress(ZeroDivisionError):
        grade_table.replace(path, "new")
    assert path.read_text(encoding="utf-8") == "old" and [*tmp_path.iterdir()] == [path]


def test_corrections_by_hand_outlive_every_run(quick, chapter, tmp_path, capsys):
    notebooks.write(submission(chapter), tmp_path / "a.ipynb")
    notebooks.write(submission(chapter), tmp_path / "=b.ipynb")
    lines = ["file;exercise;points;comment", "a.ipynb;01-2;1,5;typo", "'=b.ipynb;1.1;0;copied", "nobody;01-1;1;"]
    (tmp_path / "overrides.csv").write_text("\n".join([*lines, "a.ipynb;01-3;lots;"]), encoding="utf-8-sig")
    for _ in range(2):
        grade.main([str(tmp_path)])
        assert row_of(tmp_path, "a.ipynb", "01-2")[2] == "1.5"
        assert row_of(tmp_path, "a.ipynb", "01-2")[6] == "by hand: typo"
        assert row_of(tmp_path, "'=b.ipynb")[2] == "0"
    printed = capsys.readouterr().out
    assert "overrides.csv: no 01-1 of 'nobody'" in printed and "overrides.csv, line 5" in printed
    assert "By hand: typo." in (tmp_path / "feedback" / "a.ipynb.html").read_text(encoding="utf-8")
    (tmp_path / "overrides.csv").write_text("a.ipynb,01-2,1\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="must name the columns"):
        grade.main([str(tmp_path)])


def test_a_correction_reaches_a_file_that_cannot_be_run(quick, chapter, tmp_path):
    (tmp_path / "a.ipynb").write_text("{", encoding="utf-8")
    (tmp_path / "overrides.csv").write_text("file,exercise,points,comment\na.ipynb,01-3,4,on paper\n", encoding="utf-8")
    grade.main([str(tmp_path)])
    assert row_of(tmp_path, "a.ipynb", "01-3")[2:4] == ["4", "4"]


def test_a_table_that_is_not_ours_is_kept_beside(quick, chapter, tmp_path, capsys):
    notebooks.write(submission(chapter), tmp_path / "a.ipynb")
    (tmp_path / "grades.csv").write_bytes(b"\xff\xfesomething else")
    grade.main([str(tmp_path)])
    (dated,) = tmp_path.glob("grades.2*.csv")
    assert dated.read_bytes() == b"\xff\xfesomething else" and "no table of ours" in capsys.readouterr().out
    assert row_of(tmp_path, "a.ipynb")[2] == "2"


def test_grades_go_where_out_says(quick, chapter, tmp_path):
    notebooks.write(submission(chapter), tmp_path / "in" / "a.ipynb")
    grade.main([str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    assert row_of(tmp_path, "a.ipynb", out=tmp_path / "out")[2] == "2"
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["a.ipynb"]
    assert (tmp_path / "out" / "feedback" / "a.ipynb.html").exists()


def test_a_folder_that_cannot_be_written_gets_one_line(quick, chapter, tmp_path):
    notebooks.write(submission(chapter), tmp_path / "in" / "a.ipynb")
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"Grades cannot be kept there .*OUT=folder"):
        grade.main([str(tmp_path / "in"), "--out", str(tmp_path / "file" / "out")])


def test_a_clone_that_cannot_be_written_grades_all_the_same(quick, chapter, tmp_path, monkeypatch):
    notebooks.write(submission(chapter), tmp_path / "in" / "a.ipynb")
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setattr(grade, "BUILD", tmp_path / "file" / "_build")
    grade.main([str(tmp_path / "in")])
    assert row_of(tmp_path / "in", "a.ipynb")[2] == "2"


# Where a notebook runs


def test_a_notebook_sees_what_finds_python_and_a_gpu_and_no_place_to_write(tmp_path, monkeypatch):
    seen = {
        "CC": "cc",
        "CUDA_HOME": "/c",
        "CUDA_VISIBLE_DEVICES": "0",
        "LD_LIBRARY_PATH": "/l",
        "TRITON_PTXAS_PATH": "/p",
    }
    unseen = ("TRITON_CACHE_DIR", "TRITON_HOME", "TRITON_DUMP_DIR", "CUDA_CACHE_PATH", "XDG_CACHE_HOME", "AWS_SECRET")
    for name, value in [*seen.items(), *((name, "/outside") for name in unseen)]:
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(site, "ENABLE_USER_SITE", True)
    monkeypatch.setattr(site, "getuserbase", lambda: "/home/me/.local")
    env = grade.surroundings(tmp_path / "place", grade.Limits())
    assert {name: env.get(name) for name in seen} == seen and not {*unseen} & env.keys()
    assert env["PYTHONUSERBASE"] == "/home/me/.local" and env["HOME"] == str(tmp_path / "place" / "home")


def test_a_notebook_may_read_what_runs_it_and_nothing_of_anybodys(tmp_path, monkeypatch):
    for name in ("home/bin", "home/secret", "sw/gcc/bin", "sw/gcc/lib", "data", "class"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", os.pathsep.join(map(str, (tmp_path / "home" / "bin", tmp_path / "sw" / "gcc" / "bin"))))
    monkeypatch.setattr(grade.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    monkeypatch.setattr(grade, "HIDDEN", [str(tmp_path / "class")])
    monkeypatch.setattr(grade, "GIVEN", [str(tmp_path / "data")])
    found = [Path(place) for place in grade.readable.__wrapped__()]

    def may_read(place):
        return any(one == place or one in place.parents for one in found)

    for name in ("home/bin", "sw/gcc/bin", "sw/gcc/lib", "data"):
        assert may_read(tmp_path / name), name
    for place in (tmp_path / "home" / "secret", tmp_path / "class", notebooks.CHAPTERS, Path("/")):
        assert not may_read(place), place
    assert may_read(Path(sys.prefix)) and may_read(Path("/usr"))


def test_what_holds_something_hidden_is_opened_around_it(tmp_path):
    for name in ("opt/a/x", "opt/b", "opt/b/c"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "opt" / "link").symlink_to(tmp_path)
    opt = tmp_path / "opt"
    assert [*grade_kernel.around(opt, [])] == [str(opt)]
    assert [*grade_kernel.around(opt, [str(opt / "b" / "c")])] == [str(opt / "a")]
    assert [*grade_kernel.around(opt, [str(opt)])] == [*grade_kernel.around(tmp_path / "none", [])] == []


def test_packages_of_the_user_site_are_found_under_another_home(tmp_path, monkeypatch):
    base = tmp_path / "base"
    mine = base / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages" / "mine.py"
    mine.parent.mkdir(parents=True)
    mine.write_text("print('found')", encoding="utf-8")
    monkeypatch.setattr(site, "ENABLE_USER_SITE", True)
    monkeypatch.setattr(site, "getuserbase", lambda: str(base))
    env = grade.surroundings(tmp_path / "place", grade.Limits())
    python = Path(sys.base_prefix) / "bin" / "python3"  # a virtual environment has no user site
    done = subprocess.run([str(python), "-c", "import mine"], env=env, capture_output=True, encoding="utf-8")
    assert done.stdout == "found\n", done.stderr


def test_a_kernel_that_does_not_start_says_its_last_words(chapter, environment, monkeypatch, tmp_path):
    words = "import sys; print('first\\nlast words', file=sys.stderr); sys.exit(3)"
    broken = tmp_path / "broken.py"
    broken.write_text(words.replace("\\\\n", "\\n"), encoding="utf-8")
    monkeypatch.setattr(grade_kernel, "__file__", str(broken))
    monkeypatch.setattr(grade, "kill", lambda _: None)  # this process's children are other tests' too
    process = grade.Process(grade.assemble(submission(chapter), chapter).cells, tmp_path / "p", grade.Limits(), 1e12)
    with pytest.raises(RuntimeError, match="last words"):
        process.run(lambda *_: None, {})


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
from tools.course.grading import kernel as grade_kernel
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
    script = CONFINED.format(tools=str(TOOLS.parent), inside=str(inside), outside=str(outside))
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
    """Sets what a call takes, in milliseconds: clock(yours=…, ours=…, a_copy=…)."""

    def set_to(**ms):
        times = {name.replace("_", " "): common.hardware.Timing(t, t, t, 3) for name, t in ms.items()}

        def time(functions, before, **_):
            for function in functions.values():
                before()
                function()
            return {name: times[name] for name in functions}

        monkeypatch.setattr(common.hardware, "time_interleaved", time)

    return set_to


def timed(f, ours=torch.neg, arguments=((3,),), good=1.2):
    return common.measured("a size", f, ours, arguments, torch.float32, good)


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
        (999.0, 1.2, "slow", 0.25),
    ],
)
def test_speed_is_scored_in_bands(clock, ms, good, band, share):
    clock(yours=ms, ours=1.0, a_copy=0.1)
    speed = timed(torch.neg, good=good)
    assert (speed.band, speed.share) == (band, share)
    assert f"({ms:.2f}×): {band}" in speed.line
    assert (f"{share:.0%} of the points; {good} is good" in speed.line) == (share < 1)


def test_the_line_holds_the_share_of_a_copys_speed(clock):
    clock(yours=1.0, ours=2.0, a_copy=0.9)
    line = timed(torch.neg, arguments=((1 << 20,),)).line
    times = "yours 1.000 ms (90% of a copy's speed), ours 2.000 ms (45% of a copy's speed), a copy 0.900 ms"
    assert line == f"a size: {times} (0.50×): excellent."


def test_a_time_below_what_a_copy_of_the_bytes_takes_is_not_believed(clock):
    clock(yours=0.5, ours=1.0, a_copy=0.9)
    with pytest.raises(Wrong, match=r"0\.500 ms is not believed: copying as many bytes takes 0\.900 ms"):
        timed(torch.neg, arguments=((1 << 20,),))


def test_a_kernel_that_is_wrong_at_the_timed_size_is_not_timed(clock):
    clock(yours=0.1, ours=1.0, a_copy=0.1)
    with pytest.raises(Wrong, match="before it is timed: 1 of 3 are wrong"):
        timed(lambda x: -x * torch.tensor([1, 1, 0]))


@pytest.mark.parametrize("argument", [(64,), lambda: torch.randn(64), torch.arange(64.0)])
def test_each_timed_call_has_numbers_of_its_own_so_none_can_be_remembered(argument):
    remembered = {}

    def cached(x):
        return remembered.setdefault(x.shape, -x)

    assert timed(torch.neg, arguments=(argument,)).share
    with pytest.raises(Wrong, match=r"a size, a timed call: .* are wrong"):
        timed(cached, arguments=(argument,))


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
    with (tmp_path / "grades.csv").open(encoding="utf-8-sig") as file:
        rows = list(csv.reader(file))[1:]
    best, nothing = ([row for row in rows if row[0] == f"{name}.ipynb"] for name in ("solved", "untouched"))
    assert len(best) == len(nothing) == len(solved(chapter))
    assert [row[2] for row in best] == [row[3] for row in best]
    assert [row[2] for row in nothing] == ["0"] * len(nothing)
    assert all("is our solution of" in line for line in best[0][7].split("; ") if line) and not nothing[0][7]
