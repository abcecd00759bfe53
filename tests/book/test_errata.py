"""The table of errata: each row names a place, the day, and words that stand there no more."""

import datetime
import re

import pytest

from tools import notebooks
from tools.paths import ROOT

ERRATA = (ROOT / "book" / "errata.md").read_text(encoding="utf-8")
HEAD = "| since / corrected | place | what stood there | what is right | how it was found |"
LINES = [line for line in ERRATA[ERRATA.index(HEAD) :].splitlines()[2:] if line.startswith("|")]


def cells(line):
    return [cell.strip() for cell in line.strip("| ").split(" | ")]


def pages(line):
    """The files that a row's place names."""
    stems = [ROOT / "book" / name for name in re.findall(r"\{doc\}`([^`]+)`", cells(line)[1])]
    found = [(stem.parent / f"{stem.name}{end}").resolve() for stem in stems for end in (".md", ".ipynb")]
    return found + [ROOT / "README.md"] * cells(line)[1].startswith("README")


def text(path):
    """What a page says, in one line: of a chapter all sources, captions and descriptions, and no outputs."""
    if path.suffix == ".md":
        said = [path.read_text(encoding="utf-8")]
    else:
        said = []
        for cell in notebooks.read(path).cells:
            settings = cell.metadata.get("mystnb", {})
            said += [
                cell.source,
                settings.get("figure", {}).get("caption", ""),
                settings.get("image", {}).get("alt", ""),
            ]
    return " ".join("\n".join(said).split())


def quote(line):
    """The words that stood there: between quotation marks, or code between backticks."""
    return re.fullmatch(r'"(.+)"|`(.+)`', cells(line)[2])


every_row = pytest.mark.parametrize("line", LINES)


def test_there_are_rows():
    assert LINES


@every_row
def test_a_row_says_all_five_things_and_when(line):
    since, *rest = cells(line)
    assert len(rest) == 4 and all(rest)
    version, day = since.split(" / ")
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert datetime.date(2026, 11, 1) <= datetime.date.fromisoformat(day)


@every_row
def test_what_stood_there_stands_there_no_more(line):
    found = [path for path in pages(line) if path.is_file()]
    assert found, "the place is no page"
    assert quote(line), "not between quotation marks or backticks"
    old = quote(line)[1] or quote(line)[2]
    assert len(old) > 15
    for path in found:
        assert old not in text(path), path.name


def test_chapters_come_in_order_and_before_other_pages():
    named = [next(path.stem for path in pages(line) if path.is_file()) for line in LINES]
    chapters = [name for name in named if name[:2].isdigit()]
    assert chapters == sorted(chapters, key=lambda name: name[:2])
    assert named[: len(chapters)] == chapters
