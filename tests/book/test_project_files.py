"""What surrounds the book: licences, citation, forms for issues, the Slurm script, links between them."""

import os
import re
import shutil
import subprocess
from datetime import date
from pathlib import Path

import pytest
import yaml

from flashkat_lite import records

ROOT = Path(__file__).resolve().parents[2]
FORMS = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config")
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
INPUTS = {"markdown", "textarea", "input", "dropdown", "checkboxes"}
SBATCH = ROOT / "examples" / "slurm" / "execute.sbatch"


def test_the_readmes_speeds_are_the_records(root):
    rows = records.load("models", "h100").data["results"]
    share = {(r["size"], r["mode"], r["variant"]): r for r in rows}
    lines = (root / "README.md").read_text(encoding="utf-8").splitlines()

    def shown(start):
        (line,) = (line for line in lines if line.startswith(f"| {start}"))
        return [cell.strip() for cell in line.split("|")[2:-1]]

    def by_kernels(variant, beside):
        tiny = (share["tiny", "eager", name] for name in (variant, beside))
        own, of_vit = (row["gpu_ms"] for row in tiny)
        return f"{share['tiny', 'eager', variant]['fraction_of_vit']:.2f} (by its kernels {of_vit / own:.2f})"

    for start, variant, beside in (
        ("timm's ViT with", "timm-kat-norm", "timm-vit"),
        ("ours beside our ViT, eager", "kat-norm", "vit"),
        ("that with all", "kat-ours", "vit"),
    ):
        others = [f"{share[size, 'eager', variant]['fraction_of_vit']:.2f}" for size in ("small", "base")]
        assert shown(start) == [by_kernels(variant, beside), *others]
    on_an_h200 = {
        r["mode"]: r for r in records.load("models_base", "h200").data["results"] if r["variant"] == "kat-norm"
    }
    for start, mode in (("ours beside our ViT, `torch", "compiled"), ("ours beside our ViT, CUDA", "graphs")):
        others = [f"{share[size, mode, 'kat-norm']['fraction_of_vit']:.2f}" for size in ("tiny", "small")]
        assert shown(start) == [*others, f"{on_an_h200[mode]['fraction_of_vit']:.2f} (an H200)"]


def test_both_licences_are_there_in_full():
    code, text = (ROOT / "LICENSE").read_text(encoding="utf-8"), (ROOT / "LICENSE-text").read_text(encoding="utf-8")
    assert code.startswith("MIT License") and "WITHOUT WARRANTY OF ANY KIND" in code
    sections = re.findall(r"^Section (\d) -- ", text, re.MULTILINE)
    assert sections == list("12345678") and text.rstrip().endswith("creativecommons.org.")
    assert all("the FlashKAT from Scratch authors" in licence for licence in (code, text))


def test_the_citation_has_what_its_format_asks_for():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation.keys() >= {"message", "title", "authors", "version", "license"}
    for work in citation["references"]:
        assert work.keys() >= {"type", "title", "authors", "year"} and work["year"] <= date.today().year
        assert all(author.keys() == {"family-names", "given-names"} for author in work["authors"])


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_is_one_that_github_shows(path):
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert form["name"] and form["description"]
    assert {item["type"] for item in form["body"]} <= INPUTS
    asked = [item for item in form["body"] if item["type"] != "markdown"]
    assert all(item["attributes"]["label"] for item in asked)
    assert len({item["id"] for item in asked}) == len(asked)
    assert "doctor" in path.read_text(encoding="utf-8")


def test_there_is_a_form_for_kernels_errata_gpus_and_courses_and_the_pages_name_theirs():
    assert [path.stem for path in FORMS] == ["erratum", "gpu", "kernel", "taught"]
    for form, page in (("erratum", "errata"), ("taught", "teaching")):
        name = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / f"{form}.yml").read_text(encoding="utf-8"))["name"]
        assert f"*{name}*" in (ROOT / "book" / f"{page}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PAGES)
def test_files_that_a_page_links_to_exist(name):
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / name).read_text(encoding="utf-8"))
    assert [target for target in targets if "://" not in target and not (ROOT / target).exists()] == []


def test_the_security_page_names_no_address_of_its_own():
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    assert "Report a vulnerability" in text
    assert not re.search(r"\S@\S|https?://", text)


@pytest.fixture
def sbatch(tmp_path):
    """Runs the batch script with a stand-in for make, which writes down how it was called."""
    (tmp_path / "bin").mkdir()
    make = tmp_path / "bin" / "make"
    make.write_text('#!/bin/sh\necho "$PWD|$PYTHONPATH|$(dirname "$TRITON_CACHE_DIR")|$*"\n', encoding="utf-8")
    make.chmod(0o755)

    def run(*chapters, **environment):
        environment |= {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "TMPDIR": str(tmp_path)}
        return subprocess.run(["bash", str(SBATCH), *chapters], env=environment, capture_output=True, encoding="utf-8")

    return run


def test_the_batch_script_executes_chapters_from_the_folder_of_the_book(sbatch, tmp_path):
    done = sbatch("07", "09", SLURM_SUBMIT_DIR=str(tmp_path), PYTHON="/opt/python")
    assert done.returncode == 0, done.stderr
    execute, compare = (line.split("|") for line in done.stdout.splitlines())
    assert execute[0] == str(tmp_path) and execute[1] == f"{tmp_path}/site:{tmp_path}"
    assert execute[3] == "execute PY=/opt/python CHAPTERS=07 09" and compare[3] == "compare PY=/opt/python"
    assert execute[2].startswith(str(tmp_path)) and not os.path.exists(execute[2])


def test_the_batch_script_outside_of_slurm_says_how_to_submit_it(sbatch):
    done = sbatch()
    assert done.returncode != 0 and done.stdout == "" and "sbatch" in done.stderr


def test_slurm_sees_every_line_that_is_meant_for_it():
    """It stops looking at the first command."""
    lines = SBATCH.read_text(encoding="utf-8").splitlines()
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert "#SBATCH --gres=gpu:1" in lines[:first]
    assert not any(line.startswith("#SBATCH") for line in lines[first:])


@pytest.fixture
def make(tmp_path):
    """Runs make with a stand-in for Python, in a folder with a space, and returns the words that it was called with."""
    python = tmp_path / "my python"
    python.write_text('#!/bin/sh\nfor word; do printf "%s\\0" "$word"; done\n', encoding="utf-8")
    python.chmod(0o755)

    def run(*words, **environment):
        done = subprocess.run(
            ["make", "--no-print-directory", "-C", str(ROOT), f"PY={python}", *words],
            env={**os.environ, **environment}, capture_output=True, encoding="utf-8",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.split("\0")[:-1]

    return run


@pytest.mark.parametrize("folder", ["HW 07", "O'Brien", 'a "quote"', "a;b&c|d", "`date`", "*", "-rf", "ü", "a  b"])
def test_make_grade_takes_a_folder_of_any_name(make, folder):
    tool = ["book/tools", "grade"]
    assert make("grade", f"SUBMISSIONS={folder}") == [*tool, "--", folder]
    words = make("grade", f"SUBMISSIONS={folder}", f"OUT={folder}", "ARGS=--jobs 4 --memory 2")
    assert words == [*tool, f"--out={folder}", "--jobs", "4", "--memory", "2", "--", folder]


def test_make_grade_takes_no_folder_from_somebody_elses_variable(make):
    assert make("grade", OUT="/elsewhere", ARGS="--cell 1", SUBMISSIONS="") == ["book/tools", "grade", "--", ""]


@pytest.mark.parametrize("before", ["", "/mine"])
def test_make_puts_the_newest_triton_in_front_of_the_pinned_one(make, tmp_path, before):
    (tmp_path / "my python").write_text('#!/bin/sh\nprintf "%s\\0" "$PYTHONPATH" "$@"\n', encoding="utf-8")
    for target, command in (("newest-compiler", "compilers"), ("newest-tests", "tested")):
        words = make(target, PYTHONPATH=before)
        folder = ROOT / words[words.index("--target") + 1]
        assert words[0] == before and words[1:3] == ["-m", "pip"]
        assert words[-4].split(os.pathsep) == [str(folder), *filter(None, [before])]
        assert words[-3:] == ["book/tools", command, "--check"]


def test_make_takes_several_chapters_and_one_port(make):
    assert make("execute", "CHAPTERS=07 09") == ["book/tools", "execute", "07", "09"]
    assert make("serve", "PORT=90 00")[-1] == "90 00"


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is missing: apt install shellcheck")
def test_shellcheck_finds_no_fault_in_the_scripts():
    done = subprocess.run(["shellcheck", str(SBATCH), str(ROOT / ".ci" / "run")], capture_output=True, encoding="utf-8")
    assert done.stdout == ""
