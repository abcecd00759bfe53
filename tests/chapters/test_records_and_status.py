"""Fresh records replace older ones; the status page says what is fresh and why the rest is not."""

import copy
import json
import subprocess
import sys

import pytest

from flashkat_lite import records
from tools import notebooks
from tools.measure import record
from tools.notebooks import stamp, status

RECORD = {
    "experiment": "ladder",
    "title": "Every rung",
    "device": {"name": "NVIDIA H200", "count": 1, "driver": "580.1", "slug": "h200"},
    "versions": {"python": "3.12.3", "torch": "2.11.0", "triton": "3.6.0", "flashkat_lite": "0.1.0"},
    "date": "2026-11-20",
    "command": "make execute CHAPTERS=07",
    "data": {"rows": [{"D": 192, "ms": 2.0}, {"D": 768, "ms": 8.0}]},
}
STAMP = {"gpu": "NVIDIA H200", "driver": "580.1", "versions": RECORD["versions"], "date": "2026-11-20", "seconds": 31.2}


@pytest.fixture
def house(tmp_path):
    """A house with one chapter to come, and one module."""
    (tmp_path / "book").mkdir()
    (tmp_path / "_toc.yml").write_text(
        "root: book/intro\nchapters:\n  - file: chapters/01_first\n  - file: book/status\n", encoding="utf-8"
    )
    (tmp_path / "flashkat_lite").mkdir()
    (tmp_path / "flashkat_lite" / "ops.py").write_text("x = 1\n", encoding="utf-8")
    return tmp_path


@pytest.fixture
def chapter(house, notebook, code):
    """Writes the chapter with this stamp and code."""

    def write(facts=None, source="from flashkat_lite import ops"):
        made = notebook(code("from flashkat_lite import ops", "a"))
        if facts:
            hashes = {
                "code_sha256": stamp.code_sha256(made),
                "package_sha256": stamp.package_sha256(made, house),
            }
            made.metadata.flashkat = hashes | facts
        made.cells[1].source = source
        notebooks.write(made, house / "chapters" / "01_first.ipynb")

    return write


def put(folder, content, gpu="h200"):
    path = folder / gpu / f"{content['experiment']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_a_fresh_record_wholly_replaces_the_older_one(tmp_path, capsys):
    fresh, kept = tmp_path / "fresh", tmp_path / "kept"
    older = put(kept, RECORD | {"title": "Gone"})
    newer = copy.deepcopy(RECORD) | {"date": "2026-11-21"}
    newer["versions"]["triton"] = "3.7.0"
    newer["data"]["rows"][1]["ms"] = 9.0
    source = put(fresh, newer)
    assert record.move(fresh, kept) == (1, 0)
    assert json.loads(older.read_text(encoding="utf-8")) == newer
    assert not source.exists()
    said = capsys.readouterr().out
    assert (
        said
        == "h200/ladder.json: 2026-11-20 → 2026-11-21, triton 3.6.0 → 3.7.0, 1 of 4 numbers moved, by 12.5% at most\n"
    )


def test_another_gpu_gets_its_own_folder(tmp_path, capsys):
    fresh, kept = tmp_path / "fresh", tmp_path / "kept"
    put(kept, RECORD)
    put(fresh, RECORD | {"device": {"name": "NVIDIA A100", "count": 1, "driver": "1"}}, gpu="a100")
    record.move(fresh, kept)
    assert sorted(path.parent.name for path in kept.glob("*/ladder.json")) == ["a100", "h200"]
    assert capsys.readouterr().out == "a100/ladder.json: new\n"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"title": None}, "title is a NoneType"),
        ({"device": {"name": "NVIDIA H200", "driver": "1"}}, "device has no count"),
        ({"versions": {"torch": "2.11.0"}}, "versions has no triton"),
        ({"device": None}, "device is a NoneType"),
        ({"extra": 1}, "extra is not part of a record"),
    ],
)
def test_a_record_that_breaks_the_schema_stays_where_it_is(tmp_path, capsys, wrong, said):
    source = put(tmp_path / "fresh", RECORD | wrong)
    assert record.move(tmp_path / "fresh", tmp_path / "kept") == (0, 1)
    assert source.exists() and not (tmp_path / "kept").exists()
    assert said in capsys.readouterr().out


def test_nothing_to_move_says_how_to_measure(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(record, "move", lambda: (0, 0))
    record.main()
    assert "make execute" in capsys.readouterr().out


def test_records_in_the_book_keep_to_the_schema(root):
    for path in root.glob("book/data/*/*.json"):
        assert records.problems(json.loads(path.read_text(encoding="utf-8")), path) == [], path


def test_a_record_that_is_read_and_saved_again_is_the_same_bytes(root, tmp_path):
    for path in root.glob("book/data/*/*.json"):
        records.read(path).save(tmp_path / path.name)
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path


def test_a_fresh_chapter(house, chapter):
    chapter(STAMP)
    assert status.stale(house) == {}
    page = status.write_status_page(house).read_text(encoding="utf-8")
    row = page[page.index("{doc}`/chapters/01_first`") :]
    assert "on NVIDIA H200, driver 580.1, torch 2.11.0, Triton 3.6.0, unless a row says otherwise" in page
    assert row.splitlines()[1:4] == [f"  - {cell}" for cell in ("fresh", "2026-11-20", "31.2")]


def test_why_a_chapter_is_stale(house, chapter):
    chapter()
    assert status.stale(house) == {"01_first": ["never executed on a GPU"]}
    chapter(STAMP | {"gpu": None})
    assert status.stale(house) == {"01_first": ["executed without a GPU"]}
    chapter(STAMP, "from flashkat_lite import ops as changed")
    assert status.stale(house) == {"01_first": ["its code changed"]}
    chapter(STAMP)
    (house / "flashkat_lite" / "ops.py").write_text("x = 2\n", encoding="utf-8")
    assert status.stale(house) == {"01_first": ["the package changed"]}
    assert "stale: the package changed" in status.write_status_page(house).read_text(encoding="utf-8")


def test_release_check_fails_on_a_stale_chapter(monkeypatch, capsys):
    monkeypatch.setattr(status, "stale", lambda: {"01_first": ["its code changed", "executed without a GPU"]})
    status.main([])
    with pytest.raises(SystemExit) as stopped:
        status.main(["--check"])
    assert stopped.value.code not in (0, None)
    assert "01_first: its code changed, executed without a GPU\n" in capsys.readouterr().out
    monkeypatch.setattr(status, "stale", lambda: {})
    status.main(["--check"])


# Notebooks' set-up chooses the interpreter for the whole process, so the package's side runs in one of its own.
ASK = """
import dataclasses, json
from flashkat_lite.lab import records
try:
    records.load("nothing", command="make execute CHAPTERS=07 && make record")
except records.MissingRecord as missing:
    message = str(missing)
fields = [field.name for field in dataclasses.fields(records.Record) if field.name != "live"]
print(json.dumps({"message": message, "fields": fields}))
"""


def test_a_missing_record_names_the_command_that_makes_it(environment):
    asked = subprocess.run(
        [sys.executable, "-c", ASK], env=environment, capture_output=True, encoding="utf-8", check=True
    )
    answer = json.loads(asked.stdout.splitlines()[-1])
    assert "book/data/h200/nothing.json" in answer["message"]
    assert "make execute CHAPTERS=07 && make record" in answer["message"]
    assert set(answer["fields"]) == records.SCHEMA.keys()
