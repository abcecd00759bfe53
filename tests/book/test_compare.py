"""Fresh measurements against the last: ratios to a limit of the same record, 10 % allowed."""

import copy
import json

import pytest

from tools.measure import compare

DATA = {
    "rows": 1024,
    "add": {"ms": 2.0, "low": 1.9, "high": 2.1, "repeats": 100},
    "block": {"ms": 4.0, "low": 3.9, "high": 4.1, "repeats": 90},
    "deep": [{"columns": 192, "times": {"copy": {"ms": 1.0}, "forward": {"ms": 1.5}}}],
    "results": [{"what": "kat", "gpus": 1, "ms": 5.0, "repeats": 7, "peak_bytes": 10, "fraction_of_vit": 0.5}],
}
RECORD = {
    "experiment": "e",
    "title": "An experiment",
    "device": {"name": "NVIDIA H200", "count": 1, "driver": "580.1", "slug": "h200"},
    "versions": {"torch": "2.11.0", "triton": "3.6.0"},
    "date": "2026-11-20",
    "command": "make execute",
    "data": DATA,
}


def record(**data):
    return copy.deepcopy(RECORD) | {"data": copy.deepcopy(DATA) | data}


@pytest.fixture
def run(tmp_path, capsys):
    """Compares these fresh records with these kept ones, {folder/experiment: record}; returns result and words."""

    def put(folder, records):
        for name, content in records.items():
            path = tmp_path / folder / f"{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content | {"experiment": path.stem}), encoding="utf-8")
        return tmp_path / folder

    def call(fresh, kept):
        result = compare.compare(put("fresh", fresh), put("kept", kept))
        return result, capsys.readouterr().out

    return call


def test_what_counts_is_a_time_over_its_limit_and_a_fraction():
    assert compare.ratios(DATA) == {
        ("block",): 2.0,
        ("deep", "columns 192", "times", "forward"): 1.5,
        ("results", "kat", "gpus 1", "fraction_of_vit"): 2.0,
    }


def test_a_slower_machine_is_no_worse(run):
    """Each time twice as long, the limits too."""
    slower = json.loads(json.dumps(DATA), parse_float=lambda text: 2 * float(text))
    slower["results"][0]["fraction_of_vit"] = 0.5
    result, said = run({"h200/e": record(**slower)}, {"h200/e": record()})
    assert result == (1, 0) and said == "h200/e: 3 ratios, +0.0% to +0.0%\n"


@pytest.mark.parametrize("ms, faults", [(4.39, 0), (4.44, 1), (2.0, 0)])
def test_a_ratio_worse_by_ten_percent_is_named(run, ms, faults):
    result, said = run({"h200/e": record(block={"ms": ms})}, {"h200/e": record()})
    assert result == (1, faults)
    assert ("WORSE block: 2 → 2.22, 11% worse" in said) == bool(faults)


def test_a_smaller_fraction_is_worse(run):
    rows = [DATA["results"][0] | {"fraction_of_vit": 0.4, "repeats": 5, "peak_bytes": 12}]
    result, said = run({"h200/e": record(results=rows)}, {"h200/e": record()})
    assert result == (1, 1) and "WORSE results, kat, gpus 1, fraction_of_vit: 2 → 2.5, 25% worse" in said


def test_what_has_no_counterpart_judges_nothing(run):
    fresh = {"h200/new": record(), "l4/e": record(), "h200/plain": RECORD | {"data": {"ms": 9.0}}}
    kept = {"h200/old": record(), "h200/plain": RECORD | {"data": {"ms": 1.0}}}
    result, said = run(fresh, kept)
    assert result == (0, 0)
    assert said.splitlines() == [
        "new: h200/new",
        "without a ratio that both records hold: h200/plain",
        "not measured anew: h200/old",
        "new, as is their GPU: l4/e",
    ]


def test_two_gpus_are_not_held_to_one(run):
    fresh = record(block={"ms": 400.0}) | {"device": RECORD["device"] | {"count": 2}}
    assert run({"h200/e": fresh}, {"h200/e": record()})[0] == (0, 0)


def test_a_row_that_went_is_said_and_so_are_other_versions(run):
    fresh = record(results=[]) | {"versions": {"torch": "2.13.0", "triton": "3.6.0"}}
    assert "1 of the last record's are gone, torch 2.11.0 → 2.13.0" in run({"h200/e": fresh}, {"h200/e": record()})[1]


def test_a_broken_record_is_a_fault(run):
    assert run({"h200/e": RECORD | {"data": None}}, {"h200/e": record()})[0] == (0, 1)


def test_main_fails_where_something_is_worse_or_nothing_was_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare, "FRESH", tmp_path)
    with pytest.raises(SystemExit, match="make execute"):
        compare.main()
    (tmp_path / "h200").mkdir()
    (tmp_path / "h200" / "e.json").write_text("{}", encoding="utf-8")
    monkeypatch.setattr(compare, "compare", lambda: (1, 0))
    compare.main()
    assert "no ratio is worse" in capsys.readouterr().out
    monkeypatch.setattr(compare, "compare", lambda: (1, 2))
    with pytest.raises(SystemExit, match="2 to look at"):
        compare.main()


def counted(node):
    """How many ratios some data hold, counted without naming them."""
    if isinstance(node, list):
        return sum(map(counted, node))
    if not isinstance(node, dict):
        return 0
    limited = any(isinstance(node.get(limit), dict) for limit in compare.LIMITS)
    timings = [name for name, value in node.items() if isinstance(value, dict) and "ms" in value]
    here = len(set(timings) - set(compare.LIMITS)) if limited else 0
    fractions = sum(bool(value) for name, value in node.items() if name.startswith(compare.FRACTION))
    return here + fractions + sum(counted(value) for name, value in node.items() if name not in timings)


def test_no_two_ratios_of_a_committed_record_share_a_name(root):
    held = {}
    for path in root.glob("book/data/*/*.json"):
        data = json.loads(path.read_text(encoding="utf-8"))["data"]
        held[path.stem] = len(compare.ratios(data))
        assert held[path.stem] == counted(data), path.stem
    assert {"ladder", "atomic_backward", "rungs_float32", "bf16_steps", "models"} <= {n for n, k in held.items() if k}
