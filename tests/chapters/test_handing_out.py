"""What `make student` writes: only what was asked for, never over work, for nbgrader too."""

import json
import re

import nbformat
import pytest
from test_students import CHAPTERS, CHEAPEST, chapter, handed_out  # noqa: F401

from tools import notebooks
from tools.course import grade, student


@pytest.fixture
def folder(chapter, tmp_path, monkeypatch):  # noqa: F811
    """Where notebooks are handed out; two chapters to hand out."""
    notebooks.write(chapter, tmp_path / "chapters" / "01_first.ipynb")
    notebooks.write(chapter, tmp_path / "chapters" / "02_second.ipynb")
    monkeypatch.setattr(notebooks, "CHAPTERS", tmp_path / "chapters")
    monkeypatch.setattr(student, "FOLDER", tmp_path / "student")
    return tmp_path / "student"


def test_only_the_chapters_that_were_asked_for_are_written(folder, capsys):
    student.main(["02"])
    assert {path.name for path in folder.iterdir()} == {"02_second.ipynb", "AGENTS.md", student.WRITTEN}
    assert capsys.readouterr().out == f"{folder / '02_second.ipynb'}\n"
    student.main([])
    assert {path.name for path in folder.glob("*.ipynb")} == {"01_first.ipynb", "02_second.ipynb"}
    with pytest.raises(SystemExit, match="CHAPTERS: no chapter '09'"):
        student.main(["09"])


def test_what_was_worked_in_is_never_written_over(folder, monkeypatch, capsys):
    student.main(["01"])
    before = (folder / "01_first.ipynb").read_bytes()
    monkeypatch.setattr(notebooks, "version", lambda: "9.0")
    student.main(["01"])  # nobody worked in it
    assert b"version 9.0" in (folder / "01_first.ipynb").read_bytes() != before
    work = (folder / "01_first.ipynb").read_bytes().replace(b"raise NotImplementedError", b"return 2 * x")
    (folder / "01_first.ipynb").write_bytes(work)
    (folder / "AGENTS.md").write_text("mine", encoding="utf-8")
    monkeypatch.setattr(notebooks, "version", lambda: "9.1")
    for _ in range(2):
        student.main(["01"])
        assert (folder / "01_first.ipynb").read_bytes() == work
        assert b"version 9.1" in (folder / "01_first.9.1.ipynb").read_bytes()
    assert "01_first.ipynb was worked in, and is left as it is" in capsys.readouterr().out
    (folder / "01_first.9.1.ipynb").write_bytes(work)
    student.main(["01"])
    assert (folder / "01_first.9.1.ipynb").read_bytes() == work and "were worked in" in capsys.readouterr().out
    assert (folder / "AGENTS.md").read_text(encoding="utf-8") == "mine"


def test_work_is_known_without_the_note_of_what_was_written(folder):
    student.main(["01"])
    (folder / student.WRITTEN).unlink()
    student.main(["01"])
    assert [path.name for path in folder.glob("*.ipynb")] == ["01_first.ipynb"]
    (folder / student.WRITTEN).unlink()
    (folder / "01_first.ipynb").write_text("work", encoding="utf-8")
    student.main(["01"])
    assert (folder / "01_first.ipynb").read_text(encoding="utf-8") == "work"


def test_the_version_is_told(handed_out):  # noqa: F811
    assert handed_out.cells[0].source == f"# A chapter\n\n*Handed out with version {notebooks.version()}.*"


def test_nothing_is_said_of_solutions_that_are_not_there():
    for path in (path for path in CHAPTERS if path.stem[:2] in ("01", "07")):
        made = student.for_student(grade.chapter_at(path), path.stem)
        text = "\n".join(one.source for one in made.cells)
        assert "olutions are folded" not in text and text.count("Restart Kernel and Run All Cells") == 1
        stubs = [one for one in made.cells if "exercise" in notebooks.tags(one)]
        assert text.count("<summary>Hint</summary>") == len(stubs)


def test_a_notebook_of_another_version_is_noticed(handed_out, chapter):  # noqa: F811
    handed_out.metadata.flashkat.version = "0.0.1"
    assert grade.prepare("01_first.ipynb", json.dumps(handed_out).encode()).seen == ["handed out with version 0.0.1"]


def test_our_exercises_have_the_cell_metadata_of_nbgrader():
    (path,) = (path for path in CHAPTERS if path.stem == CHEAPEST)
    made = student.for_student(grade.chapter_at(path), path.stem)
    told = {one.id: one.metadata.nbgrader for one in made.cells if "nbgrader" in one.metadata}
    required = {"schema_version", "grade", "locked", "solution", "task", "grade_id"}
    for id, facts in told.items():
        assert {*facts} == required | ({"points"} if facts.grade else set()), id
        assert facts.schema_version == 3 and facts.grade_id == id and re.fullmatch(r"[\w-]+", id, re.ASCII)
        assert facts.grade != facts.solution and facts.grade == facts.locked
    worth = grade.stubs(grade.chapter_at(path))
    assert sum(facts.points for facts in told.values() if facts.grade) == sum(one.points for one in worth.values())
    assert len(told) == 2 * len(worth)


def test_nbgrader_itself_finds_them_valid():
    validator = pytest.importorskip("nbgrader.nbgraderformat.v3", reason="nbgrader is not installed")
    for path in CHAPTERS:
        made = nbformat.from_dict(student.for_student(grade.chapter_at(path), path.stem))
        validator.MetadataValidatorV3().validate_nb(made)
