"""What folders of tests share. Imports neither torch nor Triton: tests/kernels sets the interpreter up first."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book" / "tools"))
os.environ["PYTHONIOENCODING"] = "utf-8"  # of programs that tests run and read


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") or item.get_closest_marker("full"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def root():
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """The environment in which chapters run."""
    import execute

    return execute.environment(tmp_path_factory.mktemp("environment"))


@pytest.fixture(scope="session")
def ascii_locale():
    """An environment in which Python reads, writes and prints ASCII unless it is told otherwise."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONIOENCODING"}
    return environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


@pytest.fixture
def code():
    """Makes a code cell: code(source, id, tag, …, metadata={})."""
    import nbformat

    def make(source, id, *tags, metadata=None):
        return nbformat.v4.new_code_cell(source, id=id, metadata={"tags": list(tags), **(metadata or {})})

    return make


@pytest.fixture
def notebook():
    """Makes a notebook under a heading: notebook(cell, …)."""
    import nbformat

    def make(*cells):
        heading = nbformat.v4.new_markdown_cell("# A chapter", id="heading")
        return nbformat.v4.new_notebook(cells=[heading, *cells])

    return make
