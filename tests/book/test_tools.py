"""`python book/tools NAME` runs each tool from anywhere; none of our modules takes the name of another's."""

import ast
import os
import shutil
import subprocess
import sys
from importlib import metadata

import pytest

from tools import notebooks
from tools.paths import ROOT, TOOLS

WITH_A_MAIN = sorted(
    path.stem
    for path in (*TOOLS.glob("[a-z]*.py"), *TOOLS.glob("*/[a-z]*.py"))
    if "main" in {node.name for node in ast.parse(path.read_text(encoding="utf-8")).body if hasattr(node, "name")}
)
# Folders that our commands and tests put on Python's path.
ON_THE_PATH = [ROOT, ROOT / "book", ROOT / "book/theme", TOOLS / "course/grading", *(ROOT / "tests").glob("*/")]


def run(*words, tools=TOOLS, **options):
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, str(tools), *words]
    return subprocess.run(
        command, env=environ | options.pop("environ", {}), capture_output=True, encoding="utf-8", **options
    )


def test_each_tool_is_listed_with_what_it_is_for():
    lines = run().stdout.splitlines()[1:]
    assert sorted(line.split()[0] for line in lines) == WITH_A_MAIN
    assert all(len(line.split()) > 4 and len(line) < 160 for line in lines)


def test_a_tool_that_is_not_there_is_named():
    done = run("bulid")
    assert done.returncode == 1 and "no tool 'bulid'" in done.stderr and "build" in done.stdout


@pytest.mark.parametrize("safe", ["", "1"])
def test_tools_run_from_any_folder_and_from_a_clone_whose_path_has_a_space(tmp_path, safe):
    clone = tmp_path / "my clone"
    shutil.copytree(TOOLS, clone / "book" / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("flashkat_lite/console.py", "tests/mutants.toml"):
        (clone / name).parent.mkdir(parents=True)
        shutil.copy(ROOT / name, clone / name)
    environ = {"PYTHONSAFEPATH": safe}
    for tools, place in ((clone / "book" / "tools", tmp_path), ("tools", clone / "book"), (".", clone / "book/tools")):
        done = run("mutants", "--list", "--only", "fence", tools=tools, cwd=place, environ=environ)
        assert done.returncode == 0 and done.stdout.count("\n") == 1, done.stderr


def test_tools_explain_themselves_where_python_drops_docstrings():
    done = subprocess.run(
        [sys.executable, "-OO", str(TOOLS), "mutants", "--help"], capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0 and "seeds the faults" in done.stdout, done.stderr


# As root, whom nothing keeps from writing: every permission to write below the clone is denied where it is asked for.
DENIED = """if True:
    import os, runpy, sys
    clone, allowed = sys.argv[1], os.access
    os.access = lambda path, mode: not (mode & os.W_OK and f"{path}/".startswith(f"{clone}/")) and allowed(path, mode)
    sys.argv[:] = [f"{clone}/book/tools", *sys.argv[2:]]
    sys.path[0] = sys.argv[0]
    runpy.run_path(f"{clone}/book/tools/__main__.py", run_name="__main__")
"""


def test_where_a_clone_can_only_be_read_tools_work_on_a_copy_that_stays(tmp_path, notebook):
    clone, temporary = tmp_path / "a clone", tmp_path / "of mine"
    temporary.mkdir()
    for name in ("flashkat_lite/console.py", "flashkat_lite/__init__.py", "pyproject.toml"):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, clone / name)
    shutil.copytree(TOOLS, clone / "book" / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    chapter = clone / "chapters" / "01_one.ipynb"
    notebooks.write(notebook(), chapter)
    for path in (*clone.rglob("*"), clone):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = sorted((path, path.stat().st_mtime_ns) for path in clone.rglob("*"))
    command = [sys.executable, "-B", "-c", DENIED, str(clone), "student"]
    environ = os.environ | {"TMPDIR": str(temporary)}

    def student():
        done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, encoding="utf-8")
        assert done.returncode == 0, done.stderr
        (copy,) = temporary.glob("flashkat-*")
        assert f"working on a copy, in {copy}" in done.stderr and copy.stat().st_mode & 0o77 == 0
        assert done.stdout.strip() == str(copy / "_build" / "student" / "01_one.ipynb")
        return copy

    kept = student() / "chapters" / "01_one.ipynb"
    kept.write_text(kept.read_text(encoding="utf-8").replace("A chapter", "Mine"), encoding="utf-8")
    copy = student()
    assert "Mine" in (copy / "_build" / "student" / "01_one.ipynb").read_text(encoding="utf-8")
    os.utime(chapter, (4e9, 4e9))  # the clone's is newer
    assert "Mine" not in (student() / "_build" / "student" / "01_one.ipynb").read_text(encoding="utf-8")
    os.utime(chapter, ns=(0, dict(before)[chapter]))
    assert before == sorted((path, path.stat().st_mtime_ns) for path in clone.rglob("*"))


def test_a_capture_keeps_the_fullest_slice_beside_the_mean():
    from tools.measure import counters

    told = {"lts__t_sectors_op_atom.avg": "1,510,000", "lts__t_sectors_op_atom.max": "29,000,000"}
    untold = {"lts__t_sectors_op_red.avg": "n/a", "lts__cycles_elapsed.max": ""}
    assert counters.slices_of(told | untold) == {"l2_atomic_sectors": {"avg": 1.51e6, "max": 2.9e7}}


def test_an_ncu_that_does_not_know_the_slices_is_asked_again_without(monkeypatch):
    from tools.measure import counters

    asked = []

    def run(command, **_):
        asked.append(next((word for word in command if "gpu__time_duration" in word), ""))
        answer = "Kernel Name\n\nbackward_atomic_kernel\n" if "--import" in command else ""
        return subprocess.CompletedProcess(command, int("lts__cycles_elapsed" in asked[-1]), answer, "")

    monkeypatch.setattr(counters.subprocess, "run", run)
    assert [row["Kernel Name"] for row in counters.capture()] == ["backward_atomic_kernel"]
    assert ["lts__cycles_elapsed.max" in metrics for metrics in asked] == [True, False, False]


@pytest.mark.parametrize("name", ["counters", "sanitize"])
def test_what_a_profiler_is_to_start_is_the_tool_itself(name, tmp_path, monkeypatch):
    """ncu and compute-sanitizer get words that Python can run, from any folder."""
    from importlib import import_module

    tool, started = import_module(f"tools.measure.{name}"), []
    monkeypatch.setattr(tool.subprocess, "run", lambda command, **_: started.append(command) or exit("started"))
    monkeypatch.setattr(sys, "argv", [name])
    if name == "sanitize":
        monkeypatch.setattr(tool.torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(tool.shutil, "which", lambda _: "/bin/compute-sanitizer")
    with pytest.raises(SystemExit, match="started"):
        tool.main() if name == "sanitize" else tool.capture()
    words = started[0][started[0].index(sys.executable) :]
    assert words[2:] == [name, "--launch"]
    monkeypatch.undo()
    done = subprocess.run([*words[:3], "--help"], cwd=tmp_path, capture_output=True, encoding="utf-8")
    assert done.returncode == 0 and "usage" in done.stdout, done.stderr


def ours():
    """The top-level names that our folders bring."""
    for folder in ON_THE_PATH:
        yield from (path.stem for path in folder.glob("*.py"))
        yield from (path.parent.name for path in folder.glob("*/__init__.py"))


def test_no_module_of_ours_takes_the_name_of_a_package_that_is_used():
    """A `build.py` of ours on the path would be imported, and run, in place of PyPI's."""
    taken = {name for name, owners in metadata.packages_distributions().items() if {*owners} != {"flashkat-lite"}}
    assert "pytest" in taken
    assert not {*ours()} & (taken | {"build"} | sys.stdlib_module_names)


def imported(path):
    """The modules that a file imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)


def test_nothing_imports_what_stands_above_it():
    """Chapters import the lab, the lab the package, and tools all of these."""
    package = [*(ROOT / "flashkat_lite").rglob("*.py")]
    assert len(package) > 20
    for path in package:
        names = {part for name in imported(path) for part in name.split(".")}
        assert "tools" not in names, path
        assert "lab" not in names or "lab" in path.parts, path
