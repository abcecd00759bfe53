"""How each recorded result was made: every command exists, and the page lists every record with who shows it."""

import json
import re
import shlex

import pytest

from flashkat_lite import __main__ as command_line
from tools import notebooks
from tools.paths import ROOT
from tools.site import records_page

RECORDS = sorted(ROOT.glob("book/data/*/*.json"))
WITHOUT_A_COMMAND = {"public_kernels"}  # timed outside of this repository: those kernels carry no licence

every_record = pytest.mark.parametrize("path", RECORDS, ids=lambda path: f"{path.parent.name}-{path.stem}")


def record(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def targets(root):
    return set(re.findall(r"^([a-z-]+):", (root / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


@pytest.fixture(scope="module")
def made_by():
    """The experiments that each chapter reads or measures."""
    return {path.stem: records_page.experiments(notebooks.read(path)) for path in notebooks.chapters()}


def check(step, experiment, root, targets, made_by):
    """Raises unless a step of a record's command can be typed in this repository."""
    words = shlex.split(step)
    if re.fullmatch(r"FLASHKAT_\w+=\S+", words[0]):  # a setting for the command behind it
        del words[0]
    if words[0] == "make":
        assert words[1] in targets
        chapters = [word.removeprefix("CHAPTERS=").split() for word in words[2:]]
        for chapter in [name for names in chapters for name in names]:
            assert any(stem.startswith(f"{chapter}_") and experiment in names for stem, names in made_by.items())
    elif words[:3] == ["python", "-m", "flashkat_lite"]:
        with pytest.raises(SystemExit) as stopped:
            command_line.main([*words[3:], "--help"])
        assert stopped.value.code == 0
    else:
        assert words[:2] == ["python", "book/tools"]
        (tool,) = (root / "book" / "tools").glob(f"*/{words[2]}.py")
        source = tool.read_text(encoding="utf-8")
        assert all(f'"{word}"' in source for word in words[3:] if word.startswith("--"))


@every_record
def test_its_command_exists(path, root, targets, made_by):
    command = record(path)["command"]
    if path.stem in WITHOUT_A_COMMAND:
        assert command.startswith("none here: ")
        return
    for step in command.split("&&"):
        check(step, path.stem, root, targets, made_by)


@pytest.mark.parametrize("step", ["make fly", 'make execute CHAPTERS="02"', "python book/tools none", "bench"])
def test_a_command_that_does_not_exist_is_noticed(step, root, targets, made_by):
    with pytest.raises((AssertionError, ValueError)):
        check(step, "atomic_backward", root, targets, made_by)


def test_the_page_lists_every_record_with_its_pages(root):
    text = records_page.write_records_page(root).read_text(encoding="utf-8")
    rows = {}
    for row in text.split("* - ")[1:]:
        if "(`" in row:
            rows.setdefault(re.search(r"\(`(\w+)`\)", row)[1], []).append(row)
    for path in RECORDS:
        held = record(path)
        said = [held["title"], held["date"], *(step.strip() for step in held["command"].split("&&"))]
        assert any(all(word in row for word in said) for row in rows[path.stem]), path
    rows = {name: "".join(found) for name, found in rows.items()}
    assert "{doc}`chapter 7 </chapters/07_atomic_backward>`" in rows["atomic_backward"]
    assert "{doc}`/book/intro`" in rows["ladder"]


def test_software_is_said_once_and_where_it_differs(tmp_path):
    folder = tmp_path / "book" / "data" / "h200"
    folder.mkdir(parents=True)
    (tmp_path / "_toc.yml").write_text("root: book/intro\n", encoding="utf-8")
    good = record(RECORDS[0])
    for name, torch, count in (("a", "2.13", 1), ("b", "2.13", 2), ("c", "2.14", 1)):
        changed = {"versions": good["versions"] | {"torch": torch}, "device": good["device"] | {"count": count}}
        (folder / f"{name}.json").write_text(json.dumps(good | changed | {"experiment": name}), encoding="utf-8")
    text = records_page.write_records_page(tmp_path).read_text(encoding="utf-8")
    assert text.count("torch 2.13") == 1 and text.count("torch 2.14") == 1
    assert "torch 2.14" in text[text.index("(`c`)") :] and "(`b`), on 2 GPUs" in text


def test_every_record_is_shown_or_went_into_the_package(root):
    shown = records_page.shown_in(root)
    assert {path.stem for path in RECORDS} - shown.keys() <= {"sweep"}


def test_without_records_the_page_says_so(tmp_path):
    (tmp_path / "book").mkdir()
    (tmp_path / "_toc.yml").write_text("root: book/intro\n", encoding="utf-8")
    assert "None is recorded yet" in records_page.write_records_page(tmp_path).read_text(encoding="utf-8")
