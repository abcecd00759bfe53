"""What `make wheel` builds installs and works in a folder of its own, without the repository."""

import os
import subprocess
import sys
import zipfile

import pytest
import tomllib
import yaml

import flashkat_lite
from tools import notebooks

USE = """
import pathlib, sys
import torch
import flashkat_lite
from flashkat_lite import GRKAN, rational
from flashkat_lite.coefficients import initial

assert pathlib.Path(flashkat_lite.__file__).is_relative_to(sys.argv[1]), flashkat_lite.__file__
numerator, denominator = (table.float()[None].requires_grad_() for table in initial("silu"))
x = torch.linspace(-3, 3, 64).reshape(8, 8).requires_grad_()
y = rational(x, numerator, denominator)
assert (y - torch.nn.functional.silu(x)).abs().max() < 0.01
y.sum().backward()
assert all(t.grad.abs().sum() > 0 for t in (x, numerator, denominator))
assert GRKAN(16)(torch.ones(2, 16)).shape == (2, 16)

from flashkat_lite import records
try:
    records.load("ladder")
except records.MissingRecord as missing:
    assert "Clone the book's repository" in str(missing)
else:
    raise AssertionError("a record outside of the repository")

import flashkat_lite.__main__ as command
try:
    command.main(["doctor", "--help"])
except SystemExit as stopped:
    assert stopped.code == 0
"""


@pytest.fixture(scope="module")
def wheel(root, tmp_path_factory):
    pytest.importorskip("build")
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(root)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(out.glob("*.tar.gz"))) == 1
    (made,) = out.glob("*.whl")
    return made


def test_it_holds_the_whole_package_but_the_books_lab_and_nothing_else(wheel, root):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = notebooks.files(root / "flashkat_lite", without=("__pycache__", "lab"))
    ours = {path.relative_to(root).as_posix() for path in files}
    assert held == ours and "flashkat_lite/py.typed" in ours


def test_it_carries_the_licence_and_what_it_needs(wheel):
    archive = zipfile.ZipFile(wheel)
    (metadata,) = [name for name in archive.namelist() if name.endswith("METADATA")]
    text = archive.read(metadata).decode()
    assert "License-Expression: MIT" in text and "Requires-Dist: torch>=2.11" in text
    assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())


def test_it_installs_and_works_elsewhere(wheel, tmp_path):
    site = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--no-index", "--no-deps", "--no-compile", "--target", str(site), str(wheel)]
    subprocess.run(command, check=True)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", USE, str(site)]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment | {"PYTHONPATH": str(site)}, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    assert "usage: python -m flashkat_lite doctor" in done.stdout


def test_one_version_everywhere(root):
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    heading = next(
        line for line in (root / "CHANGELOG.md").read_text(encoding="utf-8").splitlines() if line.startswith("## ")
    )
    assert flashkat_lite.__version__ == project["version"] == citation["version"] == heading.strip("# ").split(",")[0]
