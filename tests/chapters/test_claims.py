"""What became of each claim: read from executed notebooks, kept by machine, shown on a page."""

import nbformat
import pytest

from flashkat_lite import records
from flashkat_lite.lab import show
from tools import notebooks
from tools.notebooks import claims

H200 = {"name": "NVIDIA H200", "slug": "h200", "count": 1, "driver": "580.1"}
H100 = {"name": "NVIDIA H100 80GB HBM3", "slug": "h100", "count": 1, "driver": "580.1"}
VERSIONS = {"torch": "2.11.0", "triton": "3.6.0"}


def record(device, live):
    return records.Record("e", "t", device, VERSIONS, "2026-11-28", "make it", None, live)


@pytest.fixture
def executed(monkeypatch, notebook, code):
    """A chapter on a machine: a counted claim, a measured one, and one that a record is held to."""

    def run(device, ms):
        shown = []
        monkeypatch.setattr(show, "display", lambda item: shown.append(item.data))
        measured = record(device, True) if device else record(H200, False)
        show.claim("Registers <at most>", 40, within=(None, 64))
        show.claim("Takes (ms):", ms, measured, within=(1, 2.5))
        show.claim("Recorded:", "a; b", record(H200, False), holds=True)
        made = notebook(code("lab.claim()", "cell"))
        made.cells[1].outputs = [
            {"output_type": "display_data", "metadata": {}, "data": {"text/html": h}} for h in shown
        ]
        return made

    return run


def test_a_claim_is_read_with_its_figure_its_bound_and_where_it_was_found(executed):
    counted, measured, recorded = claims.of(executed(H100, 3.0))
    assert counted == {
        "cell": "cell",
        "sentence": "Registers <at most>",
        "found": "40",
        "claimed": "at most 64",
        "where": "",
        "holds": True,
    }
    assert (measured["found"], measured["claimed"], measured["holds"]) == ("3", "1 to 2.5", False)
    assert measured["where"] == "measured here" and recorded["where"] == "recorded on NVIDIA H200"
    assert (recorded["found"], recorded["claimed"]) == ("a; b", "")


def test_each_machine_keeps_its_claims_chapter_by_chapter(executed, tmp_path):
    facts = {"gpu": H100["name"], "device": H100, "versions": VERSIONS, "date": "2026-11-28"}
    fresh, kept = tmp_path / "fresh", tmp_path / "kept"
    for stem, ms in (("02_b", 2.0), ("01_a", 3.0), ("02_b", 1.5)):
        claims.keep(stem, claims.of(executed(H100, ms)), facts, fresh, kept)
    path = fresh / "h100" / "claims.json"
    data = records.read(path).data
    assert list(data) == ["01_a", "02_b"] and data["02_b"][1]["found"] == "1.5"
    (kept / "h100").mkdir(parents=True)
    path.rename(kept / "h100" / "claims.json")
    claims.keep("03_c", [], facts, fresh, kept)
    assert list(records.read(path).data) == ["01_a", "02_b", "03_c"], "what `make record` moved is still known"


def test_the_page_shows_each_claim_on_each_machine(executed, tmp_path):
    (tmp_path / "_toc.yml").write_text("root: book/intro\nchapters:\n  - file: chapters/01_a\n", encoding="utf-8")
    titled = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# 1. A\n\nText.")])
    (tmp_path / "chapters").mkdir()
    nbformat.write(titled, tmp_path / "chapters" / "01_a.ipynb")
    for device, ms in ((H100, 3.0), (None, 2.0)):
        facts = {"gpu": device and device["name"], "device": device, "versions": VERSIONS, "date": "2026-11-28"}
        claims.keep("01_a", claims.of(executed(device, ms)), facts, tmp_path / "book" / "data", tmp_path)
    page = claims.write_claims_page(tmp_path).read_text(encoding="utf-8")
    rows = [row.splitlines() for row in page.split("* - ")[1:]]
    table = {row[0]: [cell.strip().removeprefix("- ").strip() for cell in row[1:5]] for row in rows}
    assert table["Claim"] == ["Claimed", "H200", "H100 80GB HBM3", "no GPU"]
    assert table["Registers \\<at most\\>"] == ["at most 64", "–", "40", "40"]
    assert table["Takes (ms):"] == ["1 to 2.5", "2", "✗ 3", "–"], "the H200's by its record, which no GPU was shown"
    assert "1 of these figures lies outside" in page and "## 1. A\n" in page


def test_every_claim_of_the_committed_chapters_is_read():
    for path in notebooks.chapters():
        made = notebooks.read(path)
        marks = sum(str(cell.get("outputs")).count("fk-mark") for cell in notebooks.code_cells(made))
        assert len(claims.of(made)) == marks, path.stem
