"""What `make wheel` builds installs and works in a folder of its own, without the repository."""

import os
import re
import subprocess
import sys
import zipfile
from email import message_from_bytes

import pytest
import tomllib
import yaml
from markdown_it import MarkdownIt

import flashkat_lite
from tools import address, hub, notebooks

ADDRESS = {"REPO_URL": "https://github.com/owner/book.git", "REPO_BRANCH": "trunk"}

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

from flashkat_lite import doctor
doctor.shutil.which = lambda name: None
doctor.hardware.device = lambda: None
import triton
def no_numpy():
    raise RuntimeError("ModuleNotFoundError: No module named 'numpy'")
doctor.check_interpreter = no_numpy
command.main(["doctor"])
command.main(["doctor", "--optional"])
"""


@pytest.fixture(scope="module")
def wheel(root, tmp_path_factory):
    pytest.importorskip("build")
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(root)]
    done = subprocess.run(command, env=os.environ | ADDRESS, capture_output=True, encoding="utf-8")
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


def links(markdown):
    """Where links and pictures of a text go."""
    inside = [inline for block in MarkdownIt().enable("table").parse(markdown) for inline in block.children or ()]
    return [token.attrs[name] for token in inside for name in ("href", "src") if name in token.attrs]


def test_its_links_are_the_repositorys_and_its_description_has_none_that_leads_nowhere(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith("METADATA")]
    metadata = message_from_bytes(archive.read(name))
    base = "https://github.com/owner/book"
    assert f"Repository, {base}" in metadata.get_all("Project-URL")
    assert f"Changelog, {base}/blob/trunk/CHANGELOG.md" in metadata.get_all("Project-URL")
    found = links(archive.read(name).decode().partition("\n\n")[2])
    assert all(link.startswith("https://") for link in found)
    assert f"{base}/raw/trunk/book/images/ladder.svg" in found and f"{base}/blob/trunk/book/running.md" in found


def test_without_an_address_the_description_keeps_words_and_drops_links_and_pictures(root):
    readme = (root / "README.md").read_text(encoding="utf-8")
    text = address.description(readme, {})
    assert address.urls({}) == {} and all(link.startswith("https://") for link in links(text))
    assert "How to run it tells" in text and "![" not in text
    assert links(text) == [link for link in links(readme) if "://" in link]


def test_code_anchors_and_pictures_in_links_are_told_apart():
    text = "[![a](b.svg)](c.md) [d](#e) [f](mailto:g) ![h](i.png)\n```\n[j](k)\n```\n"
    assert address.description(text, {}) == " [d](#e) [f](mailto:g) \n```\n[j](k)\n```\n"
    at = "https://github.com/owner/book/{}/main/".format
    expected = f"[![a]({at('raw')}b.svg)]({at('blob')}c.md) [d](#e) [f](mailto:g) ![h]({at('raw')}i.png)"
    assert address.description(text, {"REPO_URL": "https://github.com/owner/book"}).startswith(expected)


def test_one_setting_is_the_address_of_all_and_the_environment_has_the_last_word(root, tmp_path):
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    set_ = tmp_path / "pyproject.toml"
    set_.write_text(text.replace('repository = ""', 'repository = "https://a.net/b/"'), encoding="utf-8")
    assert tomllib.loads(set_.read_text(encoding="utf-8"))["tool"]["flashkat"] == {"repository": "https://a.net/b/"}
    assert address.repository({}, set_) == "https://a.net/b"
    assert address.repository({"GITHUB_REPOSITORY": "owner/book"}, set_) == "https://github.com/owner/book"
    assert address.urls({}, set_)["Issues"] == "https://a.net/b/issues"


@pytest.mark.parametrize("environ, upstream", [({}, None), (ADDRESS, "https://github.com/owner/book")])
def test_the_hubs_tree_is_what_kernel_builder_reads(root, tmp_path, environ, upstream):
    hub.lay_out(tmp_path / "hub", environ)
    build = tomllib.loads((tmp_path / "hub" / "build.toml").read_text(encoding="utf-8"))
    general = build["general"]
    assert build.keys() == {"general", "torch-noarch"} and set(general["backends"]) == {"cpu", "cuda"}
    assert (general["edition"], general["license"], general.get("upstream")) == (5, "MIT", upstream)
    assert isinstance(general["version"], int) and general["name"] == "flashkat-lite"
    assert {path.name for path in (tmp_path / "hub").iterdir()} == {
        "build.toml", "flake.nix", "CARD.md", "LICENSE", "torch-ext"
    }  # fmt: skip
    there = tmp_path / "hub" / "torch-ext" / general["name"].replace("-", "_")
    files = [path.relative_to(there) for path in notebooks.files(there)]
    ours = notebooks.files(root / "flashkat_lite", without=("__pycache__", "lab"))
    assert files == [path.relative_to(root / "flashkat_lite") for path in ours]
    assert {path.suffix.lstrip(".") for path in files} == set(build["torch-noarch"]["pyext"])


def test_the_readmes_snippets_run_as_printed_on_a_cpu(root):
    snippets = re.findall(r"^```python\n(.*?)^```$", (root / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    assert snippets
    for snippet in snippets:
        names = {}
        exec(snippet, names)
        assert names["z"].shape == names["y"].shape == (4, 768) and names["z"].grad_fn is not None


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
    help, usage, said = done.stdout.partition("usage: python -m flashkat_lite doctor")
    assert usage and "-> pip install numpy" in said
    of_a_clone = r"\bmake\b|\bnpm\b|chromium|chapter|\bpages\b|Makefile|clone|recorded|\bncu\b|\btests?\b"
    assert re.findall(of_a_clone, help + said) == []


def test_one_version_everywhere(root):
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    heading = next(
        line for line in (root / "CHANGELOG.md").read_text(encoding="utf-8").splitlines() if line.startswith("## ")
    )
    assert flashkat_lite.__version__ == project["version"] == citation["version"] == heading.strip("# ").split(",")[0]
