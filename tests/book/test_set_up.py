"""The .venv that `make` sets up: by which Python, what is said where none fits, and when it is made anew."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("sh", "make", "head", "dirname", "mkdir", "cat", "getconf", "expr", "sed")
# A Python of another version, as far as the script asks: it runs code, says its version, and makes an environment whose
# Python writes down what is installed.
STAND_IN = """\
#!/bin/sh
case "$1" in
  -c) exec "{python}" -c "import sys; sys.version_info = {version!r} + ('final', 0); sys.version = '{dotted} x'
for name in {without!r}: sys.modules[name] = None
{more}
exec(sys.argv[1])" "$2";;
  -V) echo "Python {dotted}";;
  -m) mkdir -p .venv/bin; cat "$0.made" > .venv/bin/python; chmod +x .venv/bin/python;;
esac
"""
MADE = """\
#!/bin/sh
case "$*" in
  *"pip check"*) exit {checked};;
  *"-r requirements.txt"*) echo "{name} $*" >> installed && env >> environment && exit;;
  *" pip "*) exit {newer};;
esac
exit {finished}
"""


@pytest.fixture
def clone(tmp_path):
    """A clone with the Makefile and nothing to build, and a PATH that is empty but for the tools it needs."""
    folder, bin = tmp_path / "a clone", tmp_path / "my bin"
    (folder / "book" / "tools").mkdir(parents=True)
    bin.mkdir()
    for name in ("Makefile", "requirements.txt", "pyproject.toml", "book/tools/venv.sh"):
        shutil.copy(ROOT / name, folder / name)
    for name in (*NEEDED, "chmod", "env"):
        (bin / name).symlink_to(shutil.which(name))
    return Clone(folder, bin)


class Clone:
    def __init__(self, folder, bin):
        self.folder, self.bin = folder, bin

    def python(self, name, *version, without=(), finished=0, checked=0, newer=0, more=""):
        path, dotted = self.bin / name, ".".join(map(str, version))
        text = STAND_IN.format(python=sys.executable, version=version, dotted=dotted, without=without, more=more)
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)
        made = MADE.format(name=name, finished=finished, checked=checked, newer=newer)
        path.with_name(f"{name}.made").write_text(made, encoding="utf-8")

    def make(self, *words, **environ):
        environ = {"PATH": str(self.bin), "LC_ALL": "C.UTF-8"} | environ
        command = ["make", "--no-print-directory", ".venv/.ready", *words]
        return subprocess.run(command, cwd=self.folder, env=environ, capture_output=True, encoding="utf-8")

    @property
    def installed(self):
        """The Python of each installation so far."""
        log = self.folder / "installed"
        return [line.split()[0] for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []


def test_the_first_python_that_fits_is_taken_and_only_once(clone):
    clone.python("python3", 3, 9, 2)
    clone.python("python3.13", 3, 13, 0, without=("ensurepip",))
    clone.python("python3.12", 3, 12, 1)
    clone.python("python3.11", 3, 11, 2)
    done = clone.make()
    assert done.returncode == 0 and "with Python 3.12.1" in done.stdout, done.stderr
    assert clone.make().returncode == 0
    assert clone.installed == ["python3.12"]


def test_changed_requirements_are_installed_into_the_same_environment(clone):
    clone.python("python3", 3, 11, 2)
    clone.make()
    clone.python("python3", 3, 12, 1)
    os.utime(clone.folder / "requirements.txt", (4e9, 4e9))
    done = clone.make()
    assert "Setting up" not in done.stdout and clone.installed == ["python3", "python3"]


def test_where_no_python_fits_each_is_named_with_the_reason(clone):
    clone.python("python3", 3, 9, 2)
    clone.python("python3.12", 3, 12, 1, without=("ensurepip",))
    done = clone.make()
    assert done.returncode != 0 and not clone.installed and not (clone.folder / ".venv").exists()
    assert "Python 3.11 to 3.14 is needed" in done.stderr
    assert "python3 is Python 3.9.2" in done.stderr
    assert "python3.12 lacks its venv module (on Debian: apt install python3.12-venv)" in done.stderr
    assert "python3.13 is not there" in done.stderr


@pytest.mark.parametrize(
    "more",
    [
        "sys.implementation.name = 'pypy'",
        "sys.maxsize = 2**31 - 1",
        "import sysconfig; sysconfig.get_config_var = lambda name: name == 'Py_GIL_DISABLED'",
    ],
)
def test_a_python_that_pytorch_is_not_built_for_is_passed_over(clone, more):
    clone.python("python3", 3, 14, 0, more=more)
    clone.python("python3.13", 3, 13, 0)
    assert clone.make().returncode == 0 and clone.installed == ["python3.13"]
    shutil.rmtree(clone.folder / ".venv")
    assert "python3 is " in clone.make("PYTHON=python3").stderr and clone.installed == ["python3.13"]


@pytest.mark.parametrize(
    "version, taken", [((3, 10, 14), False), ((3, 11, 0), True), ((3, 14, 3), True), ((3, 15, 0), False)]
)
def test_a_python_is_taken_from_the_first_to_the_last_that_is_pinned_for(clone, version, taken):
    clone.python("python3", *version)
    assert (clone.make().returncode == 0) == taken
    assert clone.installed == ["python3"] * taken


@pytest.mark.parametrize("newer", [0, 1])
def test_what_wheels_ask_for_beyond_the_pins_is_installed_with_a_newer_pip_or_without(clone, newer):
    clone.python("python3", 3, 12, 1, newer=newer)
    assert clone.make().returncode == 0
    clone.python("python3", 3, 12, 1, newer=newer, checked=1)
    shutil.rmtree(clone.folder / ".venv")
    assert clone.make().returncode == 0
    lines = (clone.folder / "installed").read_text(encoding="utf-8").splitlines()
    assert ["--no-deps" in line for line in lines] == [True, True, False]


def test_the_python_that_is_named_is_the_only_one_asked(clone):
    clone.python("python3", 3, 12, 1)
    clone.python("old python", 3, 10, 1)
    done = clone.make("PYTHON=old python")
    assert done.returncode != 0 and "old python is Python 3.10.1" in done.stderr and "python3 " not in done.stderr
    clone.python("new python", 3, 13, 1)
    assert clone.make("PYTHON=new python").returncode == 0
    assert "new" in clone.installed


def test_variables_that_are_for_other_pythons_and_folders_lead_nothing_astray(clone, tmp_path):
    other = tmp_path / "other"
    (other / "book" / "tools").mkdir(parents=True)
    clone.python("python3", 3, 12, 1)
    elsewhere = ("PYTHONHOME", "PYTHONPATH", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT")
    settings = {"PYTHONOPTIMIZE": "1", "PYTHONWARNINGS": "error", "PYTHONSAFEPATH": "1"}
    done = clone.make(CDPATH=str(other), PIP_USER="1", **dict.fromkeys(elsewhere, str(other)), **settings)
    assert done.returncode == 0, done.stderr
    assert clone.installed == ["python3"] and not [*other.rglob("*.*")]
    assert "--no-user" in (clone.folder / "installed").read_text(encoding="utf-8")
    seen = (clone.folder / "environment").read_text(encoding="utf-8").splitlines()
    assert not {line.partition("=")[0] for line in seen} & {*elsewhere, *settings}
    assert "up to date" in clone.make(CDPATH=str(other)).stdout


def test_an_environment_whose_python_is_gone_is_made_anew(clone):
    clone.python("python3", 3, 12, 1)
    clone.make()
    (clone.folder / ".venv" / "bin" / "python").unlink()
    (clone.folder / ".venv" / "bin" / "python").symlink_to(clone.folder / "gone")
    assert clone.make().returncode == 0
    assert clone.installed == ["python3", "python3"]


def test_a_real_environment_finds_its_clone_under_any_locale_and_a_copy_of_both_is_made_anew(clone):
    """What was installed belongs to the clone that it was copied from. Only pip is a stand-in."""
    folder = clone.folder.rename(clone.folder.with_name("ein Übungs-#1 50%"))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / ".venv")], check=True)
    (folder / "flashkat_lite").mkdir()
    (folder / "flashkat_lite" / "__init__.py").touch()
    (site,) = folder.glob(".venv/lib/python*/site-packages")
    (site / "pip.py").touch()
    latin = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    subprocess.run(["sh", "book/tools/venv.sh"], cwd=folder, env=os.environ | latin, check=True)
    command = [str(folder / ".venv" / "bin" / "python"), "-c", "import flashkat_lite"]
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    assert subprocess.run(command, cwd=folder.parent, env=environ | latin).returncode == 0
    copied = shutil.copytree(folder, folder.parent / "copied", symlinks=True)
    said = [
        subprocess.run(["sh", "book/tools/venv.sh", "--stale"], cwd=place, capture_output=True, encoding="utf-8").stdout
        for place in (folder, copied)
    ]
    assert said == ["", "anew\n"]


def test_tools_find_one_another_where_python_keeps_to_safe_paths():
    command = ["make", "--no-print-directory", f"PY={sys.executable}", "colab", "REPO_URL="]
    environ = os.environ | {"PYTHONSAFEPATH": "1", "GITHUB_REPOSITORY": ""}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, encoding="utf-8")
    assert "Say where the repository is" in done.stderr, done.stderr
