"""The census of public kernels: its data, its page, and the versions that it names."""

import json

import pytest

from tools import notebooks
from tools.measure import wheelhouse
from tools.measure.census_kernels import CASES
from tools.site import census_page

DATA = json.loads(census_page.CENSUS.read_text(encoding="utf-8"))["cases"]


def test_the_page_is_what_the_data_say():
    assert census_page.PAGE.read_text(encoding="utf-8") == census_page.page()


def test_each_case_was_counted_at_the_version_that_the_extra_pins(root):
    pinned = wheelhouse.pins(
        "\n".join(wheelhouse.extra_of((root / "pyproject.toml").read_text(encoding="utf-8"), "census"))
    )
    assert DATA.keys() == CASES.keys()
    for name, one in DATA.items():
        assert one["version"] == pinned[one["package"]], name
        assert (one["size"], one["sums"]) == (CASES[name].size, CASES[name].adds)


def test_at_least_twenty_are_forecast_and_none_failed():
    known = [one for one in DATA.values() if "forecast" in one]
    assert len(known) >= 20 and len({one["package"] for one in known}) >= 3
    for name, one in DATA.items():
        assert "forecast" in one or "outside" in one, name
        for f in one.get("forecast", {}).values():
            assert 0 < f["low"] < f["ms"] < f["high"] and f["least"] <= 1.1 * f["ms"], name


def test_no_alarm_where_nothing_is_added_to_shared_places():
    for one in DATA.values():
        for f in one.get("forecast", {}).values():
            assert one["adds"] or not f["ill"]
            assert f["ill"] or not any("additions meet at" in text for text in f["warnings"])
    assert not census_page.ill({"ill": True, "ms": 1.2, "cured": 1.0})
    assert census_page.ill({"ill": True, "ms": 1.3, "cured": 1.0})


def test_an_extra_without_exact_versions_is_refused():
    text = '[project.optional-dependencies]\nloose = ["one==1", "two>=2"]'
    with pytest.raises(ValueError, match="does not pin two>=2"):
        wheelhouse.extra_of(text, "loose")
    with pytest.raises(KeyError):
        wheelhouse.extra_of(text, "none")


def test_chapter_15_tells_what_the_page_tells():
    known = [one for one in DATA.values() if "forecast" in one]
    adding = [one for one in known if one["adds"]]
    ill = [one for one in adding if census_page.ill(one["forecast"]["h200"])]
    (path,) = notebooks.select(["15"])
    prose = "\n".join(cell.source for cell in notebooks.read(path).cells if cell.cell_type == "markdown")
    assert f"{len(adding)} of {len(known)} calls add to shared places" in prose
    assert len(ill) == 1 and "which by forecast holds back one" in prose
