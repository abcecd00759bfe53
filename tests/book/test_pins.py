"""requirements.txt installs on every Python that the README promises; uv asks the index, for metadata only."""

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tools.measure import wheelhouse

ROOT = Path(__file__).resolve().parents[2]
PROMISE = r"Python 3\.(\d+) to 3\.(\d+)"
FIRST, LAST = map(int, re.search(PROMISE, (ROOT / "README.md").read_text(encoding="utf-8")).groups())
PYTHONS = [f"3.{minor}.0" for minor in range(FIRST, LAST + 1)]  # and so Debian 12's 3.11.2
LINUX = "x86_64-manylinux_2_36"
OTHERS = ("aarch64-manylinux_2_36", "aarch64-apple-darwin", "x86_64-pc-windows-msvc")
BROUGHT = ("appnope", "colorama", "pywinpty")  # by macOS and Windows: what their terminals need
CUDA = ("nvidia-", "cuda-")  # what PyPI's torch brings on Linux, in the versions that it asks for


def resolve(requirements, python, folder, platform=LINUX):
    """(name: version of all that these requirements bring on that Python, what uv said). folder: what it keeps."""
    uv = pytest.importorskip("uv", reason="uv is missing: pip install -r requirements.txt")
    command = [uv.find_uv_bin(), "pip", "compile", str(requirements), "--no-header", "--no-annotate", "--no-config"]
    command += ["--python", sys.executable, "--python-version", python, "--python-platform", platform]
    command += ["--only-binary", ":all:", "--cache-dir", str(folder / "uv")]
    environ = os.environ | {"MACOSX_DEPLOYMENT_TARGET": "14.0"}  # the first that PyTorch is built for
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, encoding="utf-8")
    if done.returncode == 2 and "Failed to fetch" in done.stderr:
        pytest.skip(f"no package index answers: {done.stderr.strip().splitlines()[-1].strip()}")
    return wheelhouse.pins(done.stdout), done.stderr


@pytest.mark.parametrize(
    "python, platform", [*((python, LINUX) for python in PYTHONS), *((PYTHONS[-1], other) for other in OTHERS)]
)
def test_the_pins_resolve_and_leave_nothing_to_chance(python, platform, shared):
    found, said = resolve(ROOT / "requirements.txt", python, shared, platform)
    pinned = wheelhouse.pins((ROOT / "requirements.txt").read_text(encoding="utf-8"))
    assert found, said
    assert "yanked" not in said, said
    free = {name: version for name, version in found.items() if not name.startswith(CUDA + BROUGHT)}
    assert free.items() <= pinned.items()


def too_new(asked, pinned):
    """The pins that ask for a newer Python than the first or an older one than the last; asked: {name: specifiers}."""
    promised = (PYTHONS[0], f"{PYTHONS[-1].rpartition('.')[0]}.99")
    return {name for name in asked if name in pinned and not all(map(SpecifierSet(asked[name]).contains, promised))}


def test_without_an_index_too_no_installed_pin_asks_for_another_python():
    pinned = wheelhouse.pins((ROOT / "requirements.txt").read_text(encoding="utf-8"))
    installed = {canonicalize_name(d.name): d for d in metadata.distributions()}
    asked = {
        name: d.metadata["Requires-Python"] or "" for name, d in installed.items() if pinned.get(name) == d.version
    }
    assert "pytest" in asked or len(pinned.keys() & installed.keys()) < len(pinned) / 2, "another's environment"
    assert not too_new(asked, pinned)
    assert too_new({"pytest": ">=3.11.5", "torch": "<3.14,>=3.9", "ruff": ""}, pinned) == {"pytest", "torch"}


def test_a_pin_that_asks_for_a_newer_python_is_noticed(tmp_path, shared):
    asks = tmp_path / "requirements.txt"
    asks.write_text("soupsieve==4.1.1\n", encoding="utf-8")  # Python 3.11.5
    assert resolve(asks, PYTHONS[-1], shared)[0] == {"soupsieve": "4.1.1"}
    found, said = resolve(asks, "3.11.2", shared)
    assert not found and "3.11.5" in said


def test_all_places_promise_the_same_pythons(root):
    for name in ("README.md", "CONTRIBUTING.md", "book/running.md", "book/tools/venv.sh"):
        text = (root / name).read_text(encoding="utf-8")
        assert set(re.findall(PROMISE, text)) == {(str(FIRST), str(LAST))}, name
        assert "3.11 or newer" not in text, name
    compared = re.search(r"\(3, (\d+)\) <= sys\.version_info\[:2\] <= \(3, (\d+)\)", text)
    assert compared.groups() == (str(FIRST), str(LAST))
