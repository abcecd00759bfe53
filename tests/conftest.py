"""What folders of tests share. Imports neither torch nor Triton: tests/kernels sets the interpreter up first."""

import functools
import gc
import itertools
import json
import os
import platform
import sys
from importlib import metadata
from pathlib import Path

import pytest
from filelock import FileLock

import tools  # noqa: F401 (before nbformat: see there)

ROOT = Path(__file__).resolve().parents[1]
NAMED = ("torch", "triton", "triton-windows", "numpy")
os.environ["PYTHONIOENCODING"] = "utf-8"  # of programs that tests run and read


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") or item.get_closest_marker("full"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


# Ten seconds each or more; begun first, so that none is left alone at the end. The first builds the pages, for which
# nothing else waits meanwhile: those that need them come last.
SLOW = (
    "test_the_life_of_a_build",
    "test_it_runs_and_every_exercise",
    "test_a_class_of_all_kinds",
    "test_it_installs_and_works_elsewhere",
    "test_two_processes_",
    "test_other_processes_or_parts",
    "test_everything_but_the_kernels",
    "test_the_compiled_model_is",
    "test_a_model_compiles_to_one_graph",
    "test_pytorchs_own_checks",
    "test_page[",
)


def slowness(item):
    """The place of a slow test among the slow; None for another."""
    return next((place for place, name in enumerate(SLOW) if item.name.startswith(name)), None)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Gives each worker its share of the slow tests before the rest: worksteal hands out equal runs of a list."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    slow = sorted((item for item in items if slowness(item) is not None), key=slowness)
    quick = iter([item for item in items if slowness(item) is None])
    given = []
    for worker in range(workers):
        share = (len(items) - len(given)) // (workers - worker)
        first = slow[worker::workers][:share]
        given += [*first, *itertools.islice(quick, share - len(first))]
    items[:] = [*given, *(item for item in slow if item not in given), *quick]


def pytest_collection_finish():
    """What was imported stays: a fifth of some tests' time was the search for garbage among it."""
    gc.freeze()


def pytest_terminal_summary(terminalreporter):
    """Says what the tests were run with, where -q hides the header; asks what is installed, and imports nothing."""
    found = [next(metadata.distributions(name=name), None) for name in NAMED]
    versions = [f"{package.name} {package.version}" for package in found if package]
    terminalreporter.write_line(f"run with Python {platform.python_version()}, {', '.join(versions)}")


@pytest.fixture(scope="session")
def root():
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """A folder that all workers of this run share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def environment(tmp_path_factory, shared):
    """The environment in which chapters run."""
    from tools.notebooks import execute

    fonts = {"MPLCONFIGDIR": str(shared / "matplotlib")}  # one cache of them for all workers
    return execute.environment(tmp_path_factory.mktemp("environment")) | fonts


@pytest.fixture(scope="session")
def warm(environment, shared):
    """Makes of a command that starts a Python with -m or -c the one that starts it warm, where there is no GPU.

    It is forked from one process for all workers; kernels are interpreted: see warm.py.
    """
    import torch
    import warm

    if sys.platform != "linux" or torch.cuda.is_available():
        yield lambda command: command
        return
    with FileLock(shared / "warm.lock"):
        holder = warm.hold(shared, environment)
    yield functools.partial(warm.command, shared)
    holder.close()


@pytest.fixture(scope="session")
def warm_environment(tmp_path_factory, environment, warm):
    """The environment in which chapters run, whose kernels start warm."""
    from tools.notebooks import execute

    folder = tmp_path_factory.mktemp("environment")
    made = execute.environment(folder) | {"MPLCONFIGDIR": environment["MPLCONFIGDIR"]}
    file = folder / "jupyter" / "kernels" / "python3" / "kernel.json"
    spec = json.loads(file.read_text(encoding="utf-8"))
    command = warm(spec["argv"])
    if command != spec["argv"]:
        file.write_text(json.dumps(spec | {"argv": command}), encoding="utf-8")
        made["TRITON_INTERPRET"] = "1"
    return made


@pytest.fixture
def one_thread():
    """PyTorch with one thread: the order of sums is one, and small tensors' threads would wait for one another."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
