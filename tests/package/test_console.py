"""What programs, and a chapter's first cell, do about a machine that lacks a home or asks for colours."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import flashkat_lite

PACKAGE = Path(flashkat_lite.__file__).parent
SAY = """
import os, site, sys
home = os.path.expanduser("~")
open(os.path.join(home, "kept"), "w", encoding="utf-8").close()
print(home, os.environ.get("PYTHONUSERBASE"), {"FORCE_COLOR", "PYTHON_COLORS"} & {*os.environ}, sep="\\n")
"""
PREPARE = f"import site; site.ENABLE_USER_SITE = True; import console; console.prepare(){SAY}"


def say(command, **environ):
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONUSERBASE"} | environ
    done = subprocess.run(command, env=environ, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-3:]


def prepared(home, temporary):
    environ = {"PYTHONPATH": str(PACKAGE), "FORCE_COLOR": "1", "PYTHON_COLORS": "1", "TMPDIR": str(temporary)}
    return say([sys.executable, "-c", PREPARE], HOME=str(home), **environ)


@pytest.mark.parametrize("home", ["gone", "a file"])
def test_where_there_is_no_home_one_is_lent_for_as_long_as_the_program_runs(home, tmp_path):
    (tmp_path / "a file").touch()
    lent, base, coloured = prepared(tmp_path / home, tmp_path)
    assert Path(lent).parent == tmp_path and not Path(lent).exists()
    assert base == str(tmp_path / home / ".local"), "packages of the user's are still found"
    assert coloured == "set()"


def test_a_home_that_can_be_written_to_is_left_alone(tmp_path):
    assert prepared(tmp_path, tmp_path)[:2] == [str(tmp_path), "None"]
    assert (tmp_path / "kept").exists()


def test_a_chapters_first_cell_finds_a_home_too(tmp_path, warm):
    lent, *_ = say(
        warm([sys.executable, "-c", f"from flashkat_lite import lab{SAY}"]),
        HOME=str(tmp_path / "gone"),
        TMPDIR=str(tmp_path),
        PYTHONPATH=os.pathsep.join(entry for entry in sys.path if entry),
    )
    assert Path(lent).name.startswith("flashkat-home-")
