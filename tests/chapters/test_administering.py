"""A course that is administered: forty hand-ins of all kinds graded unattended, twice; tables that gradebooks import.

Cells are executed here, in this process: what keeps processes apart has its tests in test_students and test_attacks.
"""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile

import nbformat
import pytest
from test_students import CHECKS, RIGHT, cell, chapter, submission  # noqa: F401

from flashkat_lite import lab
from tools import notebooks
from tools.course import grade
from tools.course.grading import feedback, scripts, table, totals


@pytest.fixture
def executed(chapter, monkeypatch):  # noqa: F811
    """Grading that executes cells in this process."""

    def outcomes(notebook, *_):
        names, said = {"__name__": "__main__", "lab": lab}, {}
        for one in [*notebook.cells, *(c for c in notebook.cells if grade.is_check(c))]:
            id = one.id + grade.AGAIN if one.id in said else one.id
            if id != one.id and not said[one.id]["message"]:
                continue
            try:
                exec(compile(one.source, "<cell>", "exec"), names)
                said[id] = {"message": ""}
            except Exception as error:
                said[id] = {"message": f"{type(error).__name__}: {error}".partition("\n")[0]}
        return said

    monkeypatch.setattr(grade, "outcomes", outcomes)
    monkeypatch.setattr(grade.subprocess, "run", lambda *_, **__: None)  # the list of fonts


def rows(folder, name="grades.csv"):
    with (folder / name).open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def solved(chapter, which=("01-1", "01-2", "01-3")):  # noqa: F811
    given = {word: RIGHT[name] for word, name in zip(("one", "two", "three"), RIGHT, strict=True) if name in which}
    return submission(chapter, **given)


LONG = """
def triple(x):
    total = torch.zeros_like(x)
    for _ in range(3):
        total = total + x
    for unused in range(0):
        total = total - x * unused
    return total
"""


@pytest.fixture
def forty(chapter, tmp_path):  # noqa: F811
    """Forty students' hand-ins, each in its own way; {student: points of 9}."""
    folder, expected = tmp_path / "HW 07 – all", {}
    full = notebooks.text(solved(chapter))

    def put(place, text, points, who=None):
        path = os.fsencode(folder) + b"/" + (place if isinstance(place, bytes) else os.fsencode(place))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(text if isinstance(text, bytes) else text.encode())
        expected[who or os.fsdecode(place).split("/")[0]] = points

    for name in ("ann", "Łukasz Ü", 'o\'neil "x"', "李", "=cmd", "-rf", "a,b;c"):  # names
        put(f"{name}/01_first.ipynb", full, 9, "'" * name.startswith(("=", "-")) + name)
    put(b"\xdcbung/01_first.ipynb", full, 9, r"\xdcbung")
    put("x" * 200 + "/01_first.ipynb", full, 9)
    put("IPYNB/01_FIRST.IPYNB", full, 9)
    put("txt/01_first.ipynb.txt", full, 9)
    put("json/01_first.json", full, 9)
    put("renamed/hw 7 final (2).ipynb", full, 9)
    put("bom/01_first.ipynb", full.encode("utf-8-sig"), 9)
    put("utf16/01_first.ipynb", full.encode("utf-16"), 9)
    made = submission(chapter)  # right answers, elsewhere
    cell(made, "check-1").source = f"{RIGHT['01-1']}\n{cell(made, 'check-1').source}"
    put("in the check/01.ipynb", notebooks.text(made), 2)
    made = submission(chapter)
    made.cells.append(nbformat.v4.new_code_cell("\n".join(RIGHT.values())))
    put("at the bottom/01_first.ipynb", notebooks.text(made), 9)
    together = ["import torch\nfrom flashkat_lite import lab", *(f"{RIGHT[name]}\n{CHECKS[name]}" for name in RIGHT)]
    merged = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("\n".join(together))])
    put("merged/work.ipynb", notebooks.text(merged), 9)
    bare = solved(chapter)
    for one in bare.cells:
        one.metadata = nbformat.NotebookNode()
        del one["id"]
    bare.metadata, bare.nbformat_minor = nbformat.NotebookNode(), 4
    put("stripped/hand-in.ipynb", json.dumps(bare), 9)
    put("beside/01_first.ipynb", notebooks.text(submission(chapter)), 9)
    put("beside/answers.py", "\n".join(RIGHT.values()), 9)
    put("partly/01_first.ipynb", notebooks.text(solved(chapter, ["01-1"])), 2)
    put("wrong/01_first.ipynb", notebooks.text(submission(chapter, one="double = lambda x: 3")), 0)
    put("untouched/01_first.ipynb", notebooks.text(submission(chapter)), 0)
    put("twice/first try.ipynb", notebooks.text(solved(chapter, ["01-1"])), 5)
    put("twice/01_first.ipynb", notebooks.text(solved(chapter, ["01-2"])), 5)
    for name in ("zipped", "mac"):  # archives
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            archive.writestr("hw/01_first.ipynb", full)
            if name == "mac":
                archive.writestr("__MACOSX/hw/._01_first.ipynb", "\0\5\x16\7")
        expected[name] = 9
    put(
        "Ada Lovelace_1234567_assignsubmission_file_/01_first.ipynb", full, 9, "1234567"
    )  # as Moodle and Canvas name them
    put("leebob_LATE_4711_90210_01_first-1.ipynb", full, 9, "4711")
    for name, text in {"broken": "{", "html": "<html>", "empty": "", "old": '{"nbformat": 9, "cells": []}'}.items():
        put(f"{name}/01_first.ipynb", text, 0)
    put("word/report.docx", "PK", 0)
    put("tarred.tar.gz", "", 0, "tarred")
    (folder / "nothing").mkdir()
    os.mkfifo(folder / "pipe.ipynb")
    (folder / "link").symlink_to(folder / "ann")
    (folder / "dangling.ipynb").symlink_to(tmp_path / "nowhere")
    expected |= {"nothing": 0, "pipe": 0, "link": 0, "dangling": 0}
    for name in ("eve", "mallory"):  # the same but for names
        made = submission(chapter, two=LONG.replace("total", "total" if name == "eve" else "s"), first="import time")
        put(f"{name}/01_first.ipynb", notebooks.text(made), 3)
    (folder / ".DS_Store").write_text("", encoding="utf-8")
    return folder, expected


def test_forty_hand_ins_of_all_kinds_graded_unattended_twice_have_the_same_table(executed, forty, capsys):
    folder, expected = forty
    assert len(expected) >= 40
    grade.main([str(folder)])
    tables = [(folder / name).read_bytes() for name in ("grades.csv", *totals.FILES)]
    found = {line["id"]: line for line in rows(folder, "totals.csv")}
    assert {who: float(line["points"]) for who, line in found.items()} == expected
    assert {line["out of"] for line in found.values()} == {"9"}
    assert all(
        found[who]["problems"] for who, points in expected.items() if not points and who not in ("wrong", "untouched")
    )
    assert found["1234567"]["name"] == "Ada Lovelace" and found["4711"]["late"] == "late"
    assert "more than once: the best counts" in found["twice"]["problems"]
    assert "triple is that of mallory/01_first.ipynb, but for names" in found["eve"]["problems"]
    index = (folder / "feedback" / "index.html").read_text(encoding="utf-8")
    assert "Seen, not judged" in index and "triple is that of eve/01_first.ipynb" in index
    page = (folder / "feedback" / "eve" / "01_first.ipynb.html").read_text(encoding="utf-8")
    assert "mallory" not in page, "a student's page says nothing of others"
    grade.main([str(folder)])
    assert [(folder / name).read_bytes() for name in ("grades.csv", *totals.FILES)] == tables
    assert len([*folder.glob("grades.2*.csv")]) == 1


# What was set


def test_only_what_was_set_is_graded_and_counted(executed, chapter, tmp_path):  # noqa: F811
    notebooks.write(solved(chapter, ["01-1", "01-3"]), tmp_path / "a" / "01.ipynb")
    grade.main([str(tmp_path), "--exercises", "1.1, 01-2"])
    assert [(row["exercise"], row["points"]) for row in rows(tmp_path)] == [("01-1", "2"), ("01-2", "0")]
    (line,) = rows(tmp_path, "totals.csv")
    assert (line["points"], line["out of"], line["percent"]) == ("2", "5", "40.0")
    page = (tmp_path / "feedback" / "a" / "01.ipynb.html").read_text(encoding="utf-8")
    assert "01-3" not in page and "times itself" not in page
    with pytest.raises(SystemExit, match=r"there is no exercise 9\.9, x"):
        grade.main([str(tmp_path), "--exercises", "9.9 x 1.1"])


def test_a_teachers_own_pattern_says_whose_a_file_is(executed, chapter, tmp_path):  # noqa: F811
    for name in ("hw1_s042_late.ipynb", "hw1_s007.ipynb", "other.ipynb"):
        notebooks.write(solved(chapter), tmp_path / name)
    grade.main([str(tmp_path), "--student", r"_(?P<id>s\d+)(?P<late>_late)?"])
    found = {line["id"]: (line["late"], line["problems"]) for line in rows(tmp_path, "totals.csv")}
    assert found == {"s042": ("late", ""), "s007": ("", ""), "other.ipynb": ("", "STUDENT does not match its name")}
    with pytest.raises(SystemExit, match="is no regular expression"):
        grade.main([str(tmp_path), "--student", "("])


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (["ann/07.ipynb", "bob/x/07.ipynb"], ["ann", "bob"]),
        (["class.zip/ann/07.ipynb", "class.zip/bob/07.ipynb"], ["ann", "bob"]),
        (["ann.zip/07.ipynb", "bob.zip/07.ipynb"], ["ann", "bob"]),
        (["ann/07.ipynb"], ["ann"]),
        (["ann/07.ipynb", "ann/08.ipynb"], ["ann", "ann"]),
        (["ann_07_atomic_backward.ipynb", "07_atomic_backward (3).ipynb"], ["ann", "3"]),
        (["07_atomic_backward.ipynb"], ["07_atomic_backward"]),
        (["all/José Ruiz_55_assignsubmission_file/07.ipynb"], ["55"]),
        (["anndoe_123_4567_07_atomic_backward-2.ipynb"], ["123"]),
        (["x.zip/anndoe_123_4567_07.ipynb", "x.zip/beedoe_LATE_124_4568_07.ipynb"], ["123", "124"]),
        (["ann/hw_07_3_final.ipynb", "bob/hw_12_34567_final.ipynb"], ["ann", "bob"]),
        (["hw_07_3_final.ipynb"], ["hw_07_3_final"]),
    ],
)
def test_students_are_told_from_names_as_systems_make_them(names, ids):
    which = totals.Which("", ["07_atomic_backward"])
    assert [which(name, totals.lead(names)).id for name in names] == ids


# Gradebooks


def canvas(text):
    """Canvas's import as its source has it: {"header": …, assignment: {"points possible": …, student: score}}."""
    lines = list(csv.reader(io.StringIO(text)))
    header = lines[0]
    assert "Student" in header[0] and "ID" in header[1]
    assert (
        re.search(r"SIS\s+User\s+ID", header[2])
        and re.search(r"SIS\s+Login\s+ID", header[3])
        and "Section" in header[4]
    )
    points, found = {}, {}
    for line in lines[1:]:
        assert len(line) == len(header)
        if "Points Possible" in line[0]:
            points = dict(zip(header[5:], map(float, line[5:]), strict=True))
            continue
        assert re.fullmatch(r"\d*", line[1]), "Canvas reads any other text there as a number of its own"
        found[int(line[1]) if line[1] else line[2] or line[3] or line[0]] = dict(zip(header[5:], line[5:], strict=True))
    return points, found


def moodle(data, id, grade):
    """Moodle's import: UTF-8, a column that says who, mapped by the teacher, and one with a number."""
    lines = list(csv.DictReader(io.StringIO(data.decode("utf-8").lstrip("\ufeff"))))
    return {line[id]: float(line[grade]) for line in lines}


def worksheet(data):
    """What Moodle's importer of a grading worksheet takes from it, by its three columns: {participant: grade}."""
    lines = list(csv.reader(io.StringIO(data.decode("utf-8-sig"))))
    id, grade, modified = (lines[0].index(name) for name in ("Identifier", "Grade", "Last modified (grade)"))
    assert all(line[modified] == "-" for line in lines[1:])
    return {int(line[id].removeprefix("Participant ")): float(line[grade]) for line in lines[1:]}


def test_the_tables_are_what_canvas_moodle_and_gradescope_import(executed, chapter, tmp_path):  # noqa: F811
    for name in ("leebob_4711_90210_01.ipynb", "ann@x.edu/01.ipynb", "s042/01.ipynb", "=1+1/01.ipynb"):
        notebooks.write(solved(chapter, ["01-1"]), tmp_path / "in" / name)
    grade.main([str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--assignment", "Homework 1"])
    data = (tmp_path / "out" / "canvas.csv").read_bytes()
    assert data.startswith(b"\xef\xbb\xbf")
    points, found = canvas(data.decode("utf-8"))
    assert points == {"Homework 1": 9}
    assert found == {who: {"Homework 1": "2"} for who in (4711, "ann@x.edu", "s042", "'=1+1")}
    data = (tmp_path / "out" / "totals.csv").read_bytes()
    assert data.startswith(b"\xef\xbb\xbf")
    assert moodle(data, "id", "points") == dict.fromkeys(("4711", "ann@x.edu", "s042", "'=1+1"), 2)
    assert not (tmp_path / "out" / "moodle.csv").exists()
    named_by_moodle = tmp_path / "class" / "Ann Lee_1234567_assignsubmission_file_" / "01.ipynb"
    notebooks.write(solved(chapter, ["01-1"]), named_by_moodle)
    grade.main([str(tmp_path / "class")])
    assert worksheet((tmp_path / "class" / "moodle.csv").read_bytes()) == {1234567: 2}
    with pytest.raises(SystemExit, match="files of one student, and there are 4"):
        grade.main(
            [str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--gradescope", str(tmp_path / "results.json")]
        )
    arguments = ["--out", str(tmp_path / "one"), "--gradescope", str(tmp_path / "results.json")]
    grade.main([str(tmp_path / "in" / "s042"), *arguments])
    said = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert said["score"] == 2 and [test["max_score"] for test in said["tests"]] == [2, 3, 4]
    assert {*said} <= {"score", "output", "visibility", "tests"} and said["tests"][0]["status"] == "passed"
    assert all({*test} <= {"name", "score", "max_score", "output", "visibility", "status"} for test in said["tests"])


def test_no_cell_of_a_table_is_run_by_a_spreadsheet(tmp_path):
    for nasty in ("=HYPERLINK(1)", "+1", "-1", "@x", "\t=1", "\r=1", "=1\n=2"):
        row = table.Row("", 0, 0, nasty, nasty, "", nasty, nasty)
        one = feedback.Graded(nasty, {}, [row], [])
        totals.write(tmp_path, totals.of_class([one], totals.Which(), {"01-1": 2}), nasty)
        table.Table(tmp_path).write([one])
        for name in ("grades.csv", *totals.FILES):
            with (tmp_path / name).open(encoding="utf-8-sig", newline="") as file:
                for text in (text for line in list(csv.reader(file))[1:] for text in line):
                    assert not text.startswith(("=", "+", "@", "\t", "\r")) and not re.match(r"-\D|-1$", text), (
                        name,
                        text,
                    )


# Scripts


def test_a_script_beside_a_notebook_counts_for_what_the_notebook_misses(executed, chapter, tmp_path):  # noqa: F811
    notebooks.write(solved(chapter, ["01-1"]), tmp_path / "a" / "01.ipynb")
    exported = f"# In[1]:\nimport math\n\n# In[ ]:\n{RIGHT['01-2']}\n{CHECKS['01-2']}\n# In[3]:\n%magic\ndouble = 0\n"
    (tmp_path / "a" / "mine.py").write_text(exported, encoding="utf-8")
    grade.main([str(tmp_path)])
    found = {row["exercise"]: row for row in rows(tmp_path)}
    assert [found[name]["points"] for name in RIGHT] == ["2", "3", "0"]
    assert "in a script beside it" in found["01-2"]["note"] and not found["01-1"]["note"]


def test_a_script_in_place_of_a_notebook_is_graded(executed, chapter, tmp_path):  # noqa: F811
    text = "import torch\nfrom flashkat_lite import lab\n" + "\n".join(RIGHT.values())
    (tmp_path / "01_first.py").write_text(f"{text}\nlab.check('01-1', double)\n", encoding="utf-8")
    (tmp_path / "other.py").write_text(text, encoding="utf-8")
    grade.main([str(tmp_path)])
    assert [row["points"] for row in rows(tmp_path) if row["file"] == "01_first.py"] == ["2", "3", "4"]
    assert [row["message"] for row in rows(tmp_path) if row["file"] == "other.py"] == ["passed over: not a notebook"]


def test_what_a_script_defines_is_known_whatever_it_is_written_in():
    names = {"f", "g", "h"}
    assert scripts.defines("def f(): pass\ng = f\nclass h: pass", names) == names
    assert scripts.defines("%magic\ndef f(): pass\n  g = 1", names) == {"f"}
    assert scripts.defines("from mine import f, x as g", names) == {"f", "g"}
    assert scripts.cells("# %% [markdown]\n# text\n# %%\nx = 1\n# %%\n\n# %%\ny = 2") == ["x = 1", "y = 2"]


# By make


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        (["student", "CHAPTERS=02 03"], ["student", "02", "03"]),
        (
            ["grade", "SUBMISSIONS=a", "EXERCISES=2.1 3.1", r"STUDENT=^(?P<id>\d+) \w+$$", "ARGS=--jobs 2"],
            ["grade", "--exercises=2.1 3.1", r"--student=^(?P<id>\d+) \w+$", "--jobs", "2", "--", "a"],
        ),
        (["exam", "SEED=spring 27"], ["exam", "--", "spring 27"]),
        (["slides"], ["slides"]),
    ],
)
def test_words_reach_the_tools_as_they_were_typed(root, tmp_path, words, arguments):
    told = tmp_path / "python"
    told.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n", encoding="utf-8")
    told.chmod(0o755)
    done = subprocess.run(
        ["make", "-s", f"PY={told}", *words], cwd=root, capture_output=True, encoding="utf-8",
        env=os.environ | {"EXERCISES": "not make's", "STUDENT": "not make's", "OUT": "not make's"},
    )  # fmt: skip
    assert json.loads(done.stdout) == ["book/tools", *arguments], done.stderr


# Shared memory


def test_what_a_notebook_leaves_in_shared_memory_is_gone_and_what_others_have_stays(tmp_path):
    (tmp_path / "before").write_text("", encoding="utf-8")
    before = {path.name for path in tmp_path.iterdir()}
    (tmp_path / "left").write_text("", encoding="utf-8")
    (tmp_path / "folder").mkdir()
    with (tmp_path / "held").open("w", encoding="utf-8"):
        grade.empty_shared_memory(before, tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {"before", "held"}
