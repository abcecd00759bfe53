"""Every experiment that a chapter names has a record, so that no cell needs to ask whether there is one."""

import re

import pytest

from flashkat_lite import records
from tools import notebooks

CHAPTERS = notebooks.select([])
NAMED = re.compile(r'\b(?:measure|load)\(\s*"(\w+)"')


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_each_experiment_that_a_chapter_names_has_a_record(path):
    sources = [cell.source for cell in notebooks.code_cells(notebooks.read(path))]
    named = {name for source in sources for name in NAMED.findall(source)}
    kept = {file.stem for file in (records.root() / "book" / "data").glob("*/*.json")}
    assert named <= kept
    assert not [source for source in sources if "MissingRecord" in source]


def test_the_chapters_name_experiments():
    text = "".join(notebooks.text(notebooks.read(path)) for path in CHAPTERS)
    assert len(re.findall(r"lab\.measure\(", text)) > 30
