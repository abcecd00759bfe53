"""The first cell that Colab runs, off Colab and on it, with a real clone and a stand-in for pip."""

import json
import subprocess
import sys

import pytest

from tools import notebooks
from tools.course import colab, student
from tools.notebooks import stamp

REPOSITORY = {"REPO_URL": "https://github.com/owner/book", "REPO_BRANCH": "trunk"}
# Runs the cell twice in a Python without site-packages; argv: the cell, then "colab" or nothing.
RUN = """
import importlib.util, json, os, subprocess, sys, types
if "colab" in sys.argv:
    sys.modules["google.colab"] = types.ModuleType("google.colab")
real, called = subprocess.run, []
def run(command, **options):
    called.append([str(word) for word in command])
    if "pip" not in command:
        real(command, **options)
    elif os.environ.get("NO_NETWORK"):
        raise subprocess.CalledProcessError(1, command)
subprocess.run = run
before, found = list(sys.path), []
for _ in range(2):
    try:
        exec(sys.argv[1], {})
    except subprocess.CalledProcessError:
        os.environ.pop("NO_NETWORK")
    found.append(importlib.util.find_spec("flashkat_lite") is not None)
print(json.dumps({"called": called, "found": found, "touched": sys.path != before}))
"""


@pytest.fixture
def chapter(notebook, code):
    return notebook(code("from flashkat_lite import lab", "setup"), code("lab.GPU", "gpu"))


@pytest.fixture
def run(tmp_path):
    """Runs the cell twice in an empty folder, beside a repository that holds the package."""
    source = tmp_path / "source"
    (source / "flashkat_lite").mkdir(parents=True)
    (source / "flashkat_lite" / "__init__.py").write_text("", encoding="utf-8")
    git = ["git", "-C", str(source), "-c", "user.name=a", "-c", "user.email=a@b"]
    for step in (["init", "-q", "-b", "trunk"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *step], check=True)
    cell = colab.CELL.format(address=source.as_uri(), branch="trunk")
    (tmp_path / "content").mkdir()

    def call(*arguments, **environment):
        command = [sys.executable, "-I", "-S", "-c", RUN, cell, *arguments]
        done = subprocess.run(command, cwd=tmp_path / "content", env=environment, capture_output=True, encoding="utf-8")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout), tmp_path / "content" / "flashkat"

    return call


def test_on_colab_the_first_run_clones_and_installs_and_the_second_does_nothing(run):
    did, folder = run("colab", PATH="/usr/bin:/bin")
    clone, install = did["called"]
    assert clone[:2] == ["git", "clone"] and (folder / "flashkat_lite").is_dir()
    assert install[1:4] == ["-m", "pip", "install"] and install[-1] == f"{folder}[lab]"
    assert did["found"] == [True, True]


def test_an_installation_that_failed_is_tried_again_without_a_second_clone(run):
    did, _ = run("colab", PATH="/usr/bin:/bin", NO_NETWORK="1")
    assert [command[1] for command in did["called"]] == ["clone", "-m", "-m"]
    assert did["found"] == [False, True]


def test_off_colab_it_does_nothing(run):
    did, folder = run()
    assert did == {"called": [], "found": [False, False], "touched": False} and not folder.exists()


def test_the_cell_is_the_first_code_cell_and_hidden_from_the_pages(chapter):
    made = colab.with_cell(chapter, *colab.address(REPOSITORY))
    first = next(cell for cell in made.cells if cell.cell_type == "code")
    assert first.metadata.tags == ["colab", "remove-cell"] and made.cells.index(first) == 1
    assert "https://github.com/owner/book" in first.source and "--branch=trunk" in first.source


def test_a_second_time_changes_nothing_and_another_address_replaces_the_first(chapter):
    once = colab.with_cell(chapter, "https://a.net/b", "main")
    assert notebooks.text(colab.with_cell(once, "https://a.net/b", "main")) == notebooks.text(once)
    other = colab.with_cell(once, "https://c.net/d", "main")
    assert "a.net" not in notebooks.text(other) and len(other.cells) == len(once.cells)


def test_no_stamp_goes_stale_by_it(chapter):
    made = colab.with_cell(chapter, "https://a.net/b", "main")
    assert stamp.code_sha256(made) == stamp.code_sha256(chapter)
    assert stamp.package_sha256(made) == stamp.package_sha256(chapter)
    assert notebooks.code_cells(made)[0].id == "setup"


@pytest.mark.parametrize("environ", [{}, REPOSITORY])
def test_students_copies_have_it_where_there_is_an_address(chapter, tmp_path, monkeypatch, environ):
    path = tmp_path / "chapters" / "01_first.ipynb"
    notebooks.write(chapter, path)
    monkeypatch.setattr(notebooks, "CHAPTERS", path.parent)
    monkeypatch.setattr(student, "FOLDER", tmp_path / "student")
    found = colab.address(environ)
    monkeypatch.setattr(colab, "address", lambda: found)
    student.main()
    assert ("git" in (tmp_path / "student" / path.name).read_text(encoding="utf-8")) == bool(environ)


def test_make_colab_writes_the_chapters_and_asks_for_an_address(chapter, tmp_path, monkeypatch):
    path = tmp_path / "01_first.ipynb"
    notebooks.write(chapter, path)
    monkeypatch.setattr(notebooks, "CHAPTERS", tmp_path)
    for name in ("REPO_URL", "GITHUB_REPOSITORY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit, match="REPO_URL="):
        colab.main()
    monkeypatch.setenv("REPO_URL", "https://github.com/owner/book.git")
    colab.main()
    assert "https://github.com/owner/book\\" in path.read_text(encoding="utf-8")
