"""The lab: claims that hold and fail, records and their provenance, figures, and the checks' own messages."""

import json
import re

import pytest
import torch

from flashkat_lite.lab import checks, claims, figures, records

PROVENANCE = {
    "device": {"name": "NVIDIA H200", "slug": "h200", "driver": "580.1", "count": 1},
    "versions": {"python": "3.12", "torch": "2.11", "triton": "3.6", "flashkat_lite": "0.1"},
    "date": "2026-11-21",
}


def record(name="NVIDIA H200", slug="h200", live=False, data=None):
    device = PROVENANCE["device"] | {"name": name, "slug": slug}
    fields = PROVENANCE | {"device": device}
    return records.Record(experiment="e", title="t", command="make it", data=data, live=live, **fields)


def text(capsys, shown):
    return re.sub("<[^>]+>", "", " ".join(shown))


@pytest.fixture
def shown(monkeypatch):
    html = []
    for module in (claims, records):
        monkeypatch.setattr(module, "display", lambda item: html.append(item.data))
    return html


def test_a_claim_shows_its_figure_and_where_it_was_measured(shown):
    claims.claim("Slower by", 1853.47, lambda x: x > 1000, record())
    assert "1,853" in shown[0] and "recorded on NVIDIA H200" in shown[0] and "✓" in shown[0]


def test_a_counted_claim_that_fails_raises():
    with pytest.raises(AssertionError, match=r"does not hold: Addresses: Found: 81"):
        claims.claim("Addresses:", 81, lambda x: x == 80)


@pytest.mark.parametrize("live", [True, False])
def test_a_claim_that_fails_on_the_recorded_gpu_raises(live):
    with pytest.raises(AssertionError, match="Slower by Found: 3"):
        claims.claim("Slower by", 3.0, False, record(live=live))


def test_a_claim_that_fails_on_another_gpu_says_so(shown):
    claims.claim("Slower by", 3.0, lambda x: x > 1000, record("NVIDIA L4", "l4", live=True))
    assert "not on this NVIDIA L4" in shown[0] and "fk-differs" in shown[0] and "✓" not in shown[0]


@pytest.fixture
def library(monkeypatch, tmp_path):
    """A book of its own, and a machine whose GPU can be chosen."""

    def machine(name, slug):
        facts = PROVENANCE | {"device": name and PROVENANCE["device"] | {"name": name, "slug": slug}}
        monkeypatch.setattr(records.hardware, "provenance", lambda: facts)

    (tmp_path / "book" / "data").mkdir(parents=True)
    monkeypatch.setattr(records, "root", lambda: tmp_path)
    machine(None, None)
    return tmp_path, machine


def test_with_a_gpu_a_measurement_is_live_and_kept(library):
    folder, machine = library
    machine("NVIDIA L4", "l4")
    made = records.measure("speed", "A speed", lambda: {"ms": 1.5}, command="make speed")
    kept = json.loads((folder / "_build" / "records" / "l4" / "speed.json").read_text(encoding="utf-8"))
    assert made.live and made.source.startswith("measured here on NVIDIA L4")
    assert kept["data"] == {"ms": 1.5} and kept["command"] == "make speed" and "live" not in kept


def test_without_a_gpu_the_function_runs_and_the_record_is_shown(library):
    folder, machine = library
    machine("NVIDIA H200", "h200")
    records.measure("speed", "A speed", lambda: {"ms": 1.5}, command="make speed")
    (folder / "_build" / "records" / "h200").rename(folder / "book" / "data" / "h200")
    machine(None, None)
    calls = []
    shown = records.measure("speed", "A speed", lambda: calls.append(1) or {"ms": 99.0}, command="make speed")
    assert calls and shown.data == {"ms": 1.5} and not shown.live
    assert shown.source.startswith("recorded on NVIDIA H200")


def test_a_missing_record_names_its_command(library):
    with pytest.raises(records.MissingRecord, match=r"h200/speed\.json is missing.*make speed"):
        records.measure("speed", "A speed", dict, command="make speed")


def test_a_table_shows_every_gpu_that_has_a_record(library, shown):
    folder, _ = library
    for name, slug in (("NVIDIA H200", "h200"), ("NVIDIA L4", "l4")):
        path = folder / "book" / "data" / slug / "e.json"
        path.parent.mkdir()
        fields = {**record(name, slug, data=[{"what": "copy", "ms": 1.25}]).__dict__}
        path.write_text(json.dumps({k: v for k, v in fields.items() if k != "live"}), encoding="utf-8")
    records.table({"what": "what", "ms": "time (ms)|.2f"}, lambda data: data, records.load("e"))
    assert "NVIDIA L4" in shown[0] and "NVIDIA H200" in shown[0] and shown[0].count("1.25") == 2
    assert shown[0].count('<th scope="col">') == 3


def test_a_table_without_a_source_has_no_provenance(shown):
    records.table({"what": "what", "n": "count|,"}, [{"what": "<adds>", "n": 1234}, {"what": "none", "n": None}])
    assert "1,234" in shown[0] and "&lt;adds&gt;" in shown[0] and "–" in shown[0] and "fk-source" not in shown[0]


def ladder():
    return figures.ladder([("atomic", 792.0), ("block", 0.79)], ("add", 0.43), "A title", "recorded on a GPU")


def test_a_figure_is_the_same_bytes_each_time_and_uses_our_palette():
    first, second = figures.svg(ladder()), figures.svg(ladder())
    assert first == second and "792 ms" in first and "1,842×" in first
    assert set(re.findall(r"#[0-9a-f]{6}\b", first)) <= set(figures.NAMES.values())


def test_an_inline_figure_has_a_name_and_no_colours_of_its_own():
    html = figures.inline(ladder(), 'two "bars"')
    assert 'role="img" aria-label="two &quot;bars&quot;"' in html
    assert not re.findall(r"[^,] #[0-9a-f]{6}\b", html), "a colour outside of var(…, fallback)"


def test_same_tensor_says_where_and_how_far():
    want = torch.arange(6.0).reshape(2, 3)
    got = want.clone()
    got[1, 2] += 0.5
    with pytest.raises(checks.Wrong, match=r"1 of 6 are wrong; the first at index \(1, 2\): expected 5, got 5\.5"):
        checks.common.same_tensor("y", got, want, 1e-6)
    with pytest.raises(checks.Wrong, match=r"expected shape \[2, 3\], got \[3, 2\]"):
        checks.common.same_tensor("y", got.T, want, 1e-6)
    with pytest.raises(checks.Wrong, match="missing mask"):
        checks.common.same_tensor("y", got / 0 * 0, want, 1e-6)
