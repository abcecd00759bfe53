"""Student notebooks hold no solutions; grading scores our checks, whatever the student did to them."""

import csv

import grade
import nbformat
import notebooks
import pytest
import student

CHAPTERS = notebooks.select([])
DOUBLE, TRIPLE = {"id": "01-1"}, {"id": "01-2"}


@pytest.fixture
def chapter(tmp_path, monkeypatch, notebook, code):
    """A chapter with two exercises, and its student notebook."""
    made = notebook(
        code("from flashkat_lite import lab", "setup"),
        code(
            "def double(x):\n    raise NotImplementedError",
            "stub-1",
            "exercise",
            metadata={"exercise": DOUBLE | {"points": 2, "level": 1, "hint": "twice"}},
        ),
        code("assert double(2) == 4, 'wrong'", "check-1", "check", "skip-execution", metadata={"exercise": DOUBLE}),
        code(
            "def double_solution(x):\n    return 2 * x\nassert double_solution(2) == 4",
            "solution-1",
            "solution",
            "hide-cell",
            metadata={"exercise": DOUBLE},
        ),
        code(
            "def triple(x):\n    raise NotImplementedError",
            "stub-2",
            "exercise",
            metadata={"exercise": TRIPLE | {"points": 3, "level": 2, "hint": "thrice"}},
        ),
        code("assert triple(2) == 6", "check-2", "check", "skip-execution", metadata={"exercise": TRIPLE}),
        code("def triple_solution(x):\n    return 3 * x", "solution-2", "solution", metadata={"exercise": TRIPLE}),
    )
    made.cells[1].outputs = [nbformat.v4.new_output("stream", text="said")]
    made.metadata.flashkat = {"gpu": "NVIDIA H200"}
    made.metadata.widgets = {notebooks.WIDGET_STATE: {"state": {}}}
    monkeypatch.setattr(notebooks, "CHAPTERS", tmp_path / "chapters")
    monkeypatch.setattr(notebooks, "BUILD", tmp_path / "build")
    notebooks.write(made, tmp_path / "chapters" / "01_first.ipynb")
    return made


@pytest.fixture
def handed_out(chapter):
    return student.for_student(chapter, "01_first")


def cell(notebook, id):
    return next(cell for cell in notebook.cells if cell.id == id)


def graded(notebook, environment, tmp_path):
    notebooks.write(notebook, tmp_path / "in" / "01_first.ipynb")
    rows = grade.grade(tmp_path / "in" / "01_first.ipynb", environment)
    assert [row[2] for row in rows] == [2, 3]
    return [row[1] for row in rows], [row[3] for row in rows]


def test_a_student_notebook_holds_no_solution_and_no_output(handed_out):
    text = notebooks.text(handed_out)
    assert "_solution" not in text and "said" not in text
    assert [cell.id for cell in handed_out.cells] == ["heading", "setup", "stub-1", "check-1", "stub-2", "check-2"]
    assert cell(handed_out, "check-1").metadata.tags == ["check", "raises-exception"]
    assert cell(handed_out, "stub-1").metadata.exercise.hint == "twice"
    assert "widgets" not in handed_out.metadata
    assert handed_out.metadata.flashkat == {"chapter": "01_first", "version": notebooks.version()}


def test_the_chapter_itself_is_left_alone(chapter):
    before = notebooks.text(chapter)
    student.for_student(chapter, "01_first")
    assert notebooks.text(chapter) == before


def test_an_untouched_copy_scores_nothing_and_every_check_is_tried(handed_out, environment, tmp_path):
    points, messages = graded(handed_out, environment, tmp_path)
    assert points == [0, 0]
    assert messages == ["NotImplementedError: ", "NotImplementedError: "]


def test_each_check_is_scored_by_its_own_outcome(handed_out, environment, tmp_path):
    cell(handed_out, "stub-1").source = "def double(x):\n    return 5 * x"
    cell(handed_out, "stub-2").source = "def triple(x):\n    return 3 * x"
    assert graded(handed_out, environment, tmp_path) == ([0, 3], ["AssertionError: wrong", ""])


def test_editing_or_deleting_a_check_gains_nothing(handed_out, environment, tmp_path, code):
    cell(handed_out, "check-1").source = "pass"
    handed_out.cells.remove(cell(handed_out, "check-2"))
    handed_out.cells.append(code("pass", "check-3", "check", metadata={"exercise": TRIPLE}))
    handed_out.cells.append(code("lab.checks = None", "vandal"))
    assert graded(handed_out, environment, tmp_path)[0] == [0, 0]


def test_a_solved_copy_gets_full_marks_without_its_checks_too(handed_out, environment, tmp_path):
    cell(handed_out, "stub-1").source = "double = lambda x: 2 * x"
    cell(handed_out, "stub-2").source = "triple = lambda x: 3 * x"
    handed_out.cells.remove(cell(handed_out, "check-1"))
    assert graded(handed_out, environment, tmp_path) == ([2, 3], ["", ""])


def test_a_copy_without_cell_ids_is_matched_by_its_exercises(handed_out, chapter):
    for item in handed_out.cells:
        del item["id"]
    handed_out.nbformat_minor = 0
    assembled = grade.assemble(handed_out, chapter)
    checks = [item.source for item in assembled.cells if "check" in notebooks.tags(item)]
    assert checks == ["assert double(2) == 4, 'wrong'", "assert triple(2) == 6"]


def test_an_endless_loop_costs_its_own_points_only(handed_out, environment, tmp_path, monkeypatch):
    cell(handed_out, "stub-1").source = "def double(x):\n    while True:\n        pass"
    cell(handed_out, "stub-2").source = "def triple(x):\n    return 3 * x"
    notebooks.write(handed_out, tmp_path / "01_first.ipynb")
    rows = grade.grade(tmp_path / "01_first.ipynb", environment, cell_limit=10)
    assert [row[1] for row in rows] == [0, 3]
    assert rows[0][3] == "TimeoutError: ran past its time limit"


def test_a_notebook_that_ends_its_process_keeps_what_it_earned(handed_out, environment, tmp_path):
    cell(handed_out, "stub-1").source = "def double(x):\n    return 2 * x"
    cell(handed_out, "stub-2").source = "import os\nos._exit(0)"
    points, messages = graded(handed_out, environment, tmp_path)
    assert points == [2, 0]
    assert "did not run" in messages[1]


def test_grades_are_written_for_every_file_in_the_folder(chapter, handed_out, tmp_path, monkeypatch, capsys):
    class_ = tmp_path / "class"
    notebooks.write(handed_out, class_ / "ann" / "mine.ipynb")
    notebooks.write(nbformat.v4.new_notebook(), class_ / "bob" / "holidays.ipynb")
    (class_ / "bob" / "broken.ipynb").write_text("{")
    monkeypatch.setattr(grade, "outcomes", lambda *_: {"check-1": "", "check-2": "ValueError: no"})
    grade.main([str(class_)])
    with (class_ / "grades.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["file", "exercise", "points", "out of", "message"]
    assert rows[1] == ["ann/mine.ipynb", "01-1", "2", "2", ""]
    assert rows[2] == ["ann/mine.ipynb", "01-2", "0", "3", "ValueError: no"]
    assert rows[3][0] == "bob/broken.ipynb" and rows[3][4].startswith("cannot be run: NotJSONError")
    assert rows[4] == ["bob/holidays.ipynb", "", "0", "0", "answers no chapter that is here"]
    said = capsys.readouterr().out
    assert "ann/mine.ipynb: 2 of 5\n" in said and "3 notebook(s)" in said


def test_a_missing_folder_gets_one_line():
    with pytest.raises(SystemExit, match="SUBMISSIONS=folder"):
        grade.main([])


@pytest.mark.full
@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_solved_chapter_gets_full_marks_and_an_untouched_one_none(path, environment, tmp_path):
    chapter = notebooks.read(path)
    submission = student.for_student(chapter, path.stem)
    notebooks.write(submission, tmp_path / "untouched.ipynb")
    for stub in [item for item in submission.cells if "exercise" in notebooks.tags(item)]:
        stub.source = solved(chapter)[notebooks.exercise(stub)]
    notebooks.write(submission, tmp_path / "solved.ipynb")
    untouched = grade.grade(tmp_path / "untouched.ipynb", environment)
    assert [row[1] for row in untouched] == [0] * len(untouched)
    best = grade.grade(tmp_path / "solved.ipynb", environment)
    assert [row[1] for row in best] == [row[2] for row in best]


def solved(chapter):
    """What a student would write who had our solutions, by exercise."""
    solutions = [item for item in notebooks.code_cells(chapter) if "solution" in notebooks.tags(item)]
    return {notebooks.exercise(item): item.source.replace("_solution", "") for item in solutions}
