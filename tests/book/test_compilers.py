"""The page Compilers shows every column and every run of the tests; those that are committed found no fault."""

import platform
import shutil
import subprocess
from importlib import metadata
from types import SimpleNamespace

import pytest

from tools.measure import columns, tested
from tools.site import compilers_page

REPORT = """<testsuites><testsuite>
<testcase name="good"/><testcase name="fine"><system-out/></testcase><testcase name="left out"><skipped/></testcase>
<testcase name="wrong"><failure/></testcase><testcase name="broken"><error/></testcase>
<testcase name="wrong"><error/></testcase>
</testsuite></testsuites>"""


@pytest.fixture
def house(root, tmp_path):
    """A house with the committed columns alone."""
    shutil.copytree(root / "book" / "data" / "compilers", tmp_path / "book" / "data" / "compilers")
    shutil.copy(root / "requirements.txt", tmp_path)
    return tmp_path


def test_the_page_shows_every_column_whole_and_what_it_was_tested_with(house):
    text = compilers_page.write_compilers_page(house).read_text(encoding="utf-8")
    for version, record in columns.columns(columns.TRITON, house).items():
        assert f"- Triton {version}\n" in text
        for row in record.data["rows"]:
            table = text.partition(f"`{row['kernel']}`, {row['what']}\n")[2].partition(":::")[0]
            cells = table.partition(f"* - sm_{row['capability']}\n")[2].partition("* - ")[0]
            assert f"  - {row['instructions']:.1f} · {row['registers']}\n" in cells, (version, row)
    for version, record in columns.columns(columns.TESTS, house).items():
        assert f"* - {version}\n  - {record.versions['torch']}\n" in text


def test_a_spill_narrower_loads_and_a_test_that_failed_are_on_the_page(house):
    for kind in (columns.TRITON, columns.TESTS):
        version, record = list(columns.columns(kind, house).items())[-1]
        if kind == columns.TRITON:
            record.data["rows"][0] |= {"spills": 24, "load_bytes": 8}
        else:
            next(iter(record.data.values()))["failed"] = ["test_one", "test_two"]
        record.save(house / "book" / "data" / "compilers" / f"{columns.experiment(kind, version)}.json")
    text = compilers_page.write_compilers_page(house).read_text(encoding="utf-8")
    assert text.count("**24 bytes spilled**") == 1 and text.count("**2 failed**") == 1
    assert text.count("  - 16, 8\n") == 1


def test_every_recorded_run_of_the_tests_passed():
    held = columns.columns(columns.TESTS)
    assert held and held.keys() <= columns.columns(columns.TRITON).keys()
    for record in held.values():
        assert record.data and [*record.data] == [name for name in columns.TESTED if name in record.data]
        assert [found["failed"] for found in record.data.values() if found["failed"]] == []
        assert all(found["passed"] > 90 for found in record.data.values())


def test_a_report_is_counted_and_a_run_without_one_has_failed(tmp_path, monkeypatch):
    def pytest_writes(text, code):
        def run(command, **_):
            (place,) = (word.partition("=")[2] for word in command if word.startswith("--junitxml="))
            if text:
                with open(place, "w", encoding="utf-8") as file:
                    file.write(text)
            return subprocess.CompletedProcess(command, code)

        monkeypatch.setattr(tested.subprocess, "run", run)
        return tested.run("op", 2)

    assert pytest_writes(REPORT, 1) == {"passed": 2, "skipped": 1, "failed": ["broken", "wrong"]}
    assert pytest_writes("", 4) == {"passed": 0, "skipped": 0, "failed": ["pytest ended with 4"]}


def test_every_run_of_the_tests_ends_with_the_versions_that_it_ran_with(request, root):
    lines = []
    plugin = request.config.pluginmanager.get_plugin(str(root / "tests" / "conftest.py"))
    plugin.pytest_terminal_summary(SimpleNamespace(write_line=lines.append))
    assert f"Python {platform.python_version()}," in lines[0]
    assert f"torch {metadata.version('torch')}" in lines[0]
    if platform.system() == "Linux":
        assert f"triton {metadata.version('triton')}" in lines[0]
