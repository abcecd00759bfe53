"""X-rays: what is counted, what it is priced at, and how far forecasts are from what was recorded."""

import itertools
import json
import math
import re
import time

import pytest
import torch
import triton
import xray_kernels as kernels

from flashkat_lite import __main__, records
from flashkat_lite.lab.exercises import ch09
from flashkat_lite.xray import Outside, load, model, names, report, xray
from flashkat_lite.xray.counting import plan
from flashkat_lite.xray.stage import believing

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="counts are taken in the interpreter")
FORECASTS = records.root() / "book" / "forecasts"


@pytest.fixture(scope="module")
def seen():
    """What several functions should take, each x-rayed once."""
    return {
        name: xray(function, *inputs, seconds=0.5)
        for name, (function, *inputs) in {
            "doubled": (kernels.doubled, (1_000_000,)),
            "long rows": (kernels.centred, (4096, 65536)),
            "short rows": (kernels.centred, (131072, 2048)),
            "few places": (kernels.added, (2**22,), 4),
            "together": (kernels.strided, (2**24,), 1),
            "apart": (kernels.strided, (2**24,), 16),
            "alone": (kernels.scattered, (2**20,), 2**24),
            "turned": (kernels.turned, (2048, 2048)),
            "shifted": (kernels.shifted, (2**20,)),
        }.items()
    }


def only(forecast, kind):
    return [row for row in forecast.rows() if row.kind == kind]


def test_bytes_and_masked_lanes_are_counted_by_line_for_all_programs(seen):
    (load_,), (store,) = only(seen["doubled"], "load"), only(seen["doubled"], "store")
    for row in (load_, store):
        assert row.asked == pytest.approx(4e6, rel=0.06) and row.used == pytest.approx(1, abs=0.02)
        assert 0 <= row.masked < 0.05 and "tl.store" in row.text
    assert {load_.argument, store.argument} == {"source", "target"}


def test_a_long_loop_counts_whole_though_some_passes_are_made(seen):
    for name in ("long rows", "short rows"):
        once, again = only(seen[name], "load")
        assert once.asked == pytest.approx(2**30, rel=1e-6) == again.asked


def test_what_is_read_again_comes_from_hbm_where_more_is_in_flight_than_l2_holds(seen):
    read = {name: seen[name].estimates[-1].read for name in ("long rows", "short rows")}
    assert read["long rows"] == pytest.approx(2 * 2**30, rel=0.02)
    assert read["short rows"] == pytest.approx(2**30, rel=0.02)


def test_single_words_cost_more_of_hbm_than_whole_sectors(seen):
    together, apart = (seen[name].estimates[-1] for name in ("together", "apart"))
    assert together.written == pytest.approx(2**26, rel=0.01) and together.read == pytest.approx(2**26, rel=0.01)
    fetched, kept = 64 * 2**24, 32 * 2**24  # a sector is completed by the fetch that holds it, and written alone
    assert apart.read == pytest.approx(2**26 + fetched, rel=0.01) and apart.written == pytest.approx(kept, rel=0.01)
    (row,) = only(seen["apart"], "store")
    assert row.used == pytest.approx(1 / 8) and row.wasted == pytest.approx(28 * 2**24)


def test_words_all_over_memory_cost_more_than_words_apart(seen):
    apart, alone = (seen[name].estimates[-1] for name in ("apart", "alone"))
    assert alone.read > 1.8 * apart.read / 16 and alone.written > 4 * apart.written / 16  # a sixteenth as many
    (warning,) = [text for text in seen["alone"].warnings() if "of the bytes that its warps move" in text]
    assert "uses 12% of" in warning and not seen["together"].warnings()


def test_many_writers_on_few_addresses_are_said_where_they_bind(seen):
    few = seen["few places"]
    assert few.bound == "one unit's additions" and few.ms > 10 * few.least
    (row,), (warning,) = only(few, "add"), few.warnings()
    assert row.additions == 2**22 and row.addresses == 4
    assert row.turns == pytest.approx(2**22 / 4)  # of a warp, eight lanes at each of four words
    assert "4,194,304 additions meet at 4 addresses in 1 sectors" in warning and "sum within the warp" in warning
    assert not seen["doubled"].warnings()


def test_stores_that_other_programs_read_are_named(seen):
    assert any("stores to values where another program" in text for text in seen["shifted"].warnings())
    assert not any("another program" in text for text in seen["turned"].warnings()), "words of one sector are no race"


def test_what_the_model_does_not_know_is_refused_by_name():
    with pytest.raises(Outside, match=r"product uses tl\.dot"):
        xray(kernels.multiplied, (16, 16), (16, 16))


def test_a_forecast_is_a_line_with_a_range_a_picture_with_words_and_json(seen):
    one = seen["doubled"]
    assert one.low < one.ms < one.high and "H200 would take about" in str(one)
    data = json.loads(json.dumps(one.json()))
    assert data["ms"] == one.ms and len(data["rows"]) == 2


def test_the_picture_says_in_words_what_its_boxes_show(seen):
    one = seen["long rows"]
    html = report.picture(one, recorded=2 * one.ms)
    (label,) = re.findall(r'role="img" aria-label="(.*?)"', html)
    for words in ("forecast ", "recorded ", "its bytes once ", f"{one.bound} binds"):
        assert words in label
    widths = [float(w) for w in re.findall(r"left:0.00%;top:0;height:100%;width:([\d.]+)%", html)]
    forecast, recorded, *terms = widths
    assert recorded == 100 and forecast == pytest.approx(50, abs=0.1)
    assert terms == sorted(terms, reverse=True) and len(terms) == 6 and max(widths) <= 100
    assert html.count("border-left:2px dashed") == len(widths), "the copy's line stands at every bar"
    assert f"<strong>{one.bound}, binds</strong>" in html
    assert not re.search(r"[^-]width:\d+px", html), "it is as wide as there is room"


def test_the_source_stands_beside_its_numbers(seen):
    html = report.source(seen["few places"])
    _, loaded, added = html.split("<tr>")[1:]  # of one line
    assert "tl.atomic_add" in loaded and "4,194,304" in added and "1,048,576" in added and "overflow-x:auto" in html
    walked = report.source(seen["long rows"])
    assert "mean = tl.sum(sums, 0) / n" in walked, "lines between those that reach memory are shown"


def test_a_slow_answer_to_exercise_9_3_is_told_by_how_much_and_why(monkeypatch):
    from flashkat_lite.lab import xraying

    ours = ch09.column_sums_block_solution
    said = xraying.foretold(kernels.column_sums, ours, ((2**19, 96),), "524,288 rows of 96", torch.float32)
    assert "Not measured, a forecast for 524,288 rows of 96." in said
    assert float(re.search(r"That is ([\d.]+) times ours", said)[1]) > 2
    assert "Line " in said and "of the bytes that its warps move" in said, "and why"
    assert "No forecast: " in xraying.foretold(lambda x: x, kernels.doubled, ((8,),), "8", torch.float32)
    monkeypatch.delenv("FLASHKAT_FORECAST", raising=False)
    assert not xraying.wanted()
    monkeypatch.setenv("FLASHKAT_FORECAST", "1")
    assert xraying.wanted()


def test_draws_are_spread_over_the_grid_and_its_residues():
    drawn = [some[0] for some, alone in plan((100_000, 1, 1)) if alone]
    assert len(set(drawn)) == 256 and max(drawn) > 99_000 and min(drawn) < 800
    assert min(drawn[:8]) < 20_000 and max(drawn[:8]) > 80_000  # where the first few do, too
    for period in (2, 3, 8):
        counts = [sum(place % period == k for place in drawn) for k in range(period)]
        assert max(counts) - min(counts) <= 40
    assert [list(some) for some, _ in plan((5, 1, 1))] == [[0, 1, 2, 3, 4]]


def test_a_busy_machine_samples_the_same_programs(seen, monkeypatch):
    for clock in ("process_time", "perf_counter", "monotonic", "time", "thread_time"):
        monkeypatch.setattr(time, clock, itertools.count(0, 1000).__next__)
    again = xray(kernels.added, (2**22,), 4, seconds=0.5)
    monkeypatch.undo()
    launch, before = (next(one for one in x.launches if hasattr(one, "ran")) for x in (again, seen["few places"]))
    assert (launch.ran, launch.alone) == (before.ran, before.alone) and launch.side == 24 and launch.alone > 8
    assert again.ms == seen["few places"].ms


def test_programs_one_above_the_other_share_what_l2_keeps(seen):
    below = seen["turned"].estimates[-1]
    assert below.written == pytest.approx(2**24, rel=0.05)  # each sector is completed by eight rows of programs
    assert below.read == pytest.approx(2**24, rel=0.05)


def test_queues_lengthen_what_two_stations_ask_for():
    alone = model.throughput(1, 100.0, {"a": 10.0, "b": 5.0})
    assert alone == pytest.approx(1 / 115)
    assert model.throughput(64, 100.0, {"a": 10.0, "b": 5.0}) <= 1 / 10
    rates = [model.throughput(n, 100.0, {"a": 10.0, "b": 9.0}) for n in (1, 2, 4, 8, 16)]
    assert rates == sorted(rates)


@pytest.mark.parametrize("gpu", ["h200", "h100"])
def test_price_lists_are_what_the_records_give(gpu):
    from tools.measure.prices import lists

    assert lists()[gpu] == load(gpu)


def test_cards_known_from_data_sheets_are_labelled():
    cards = [load(name) for name in names()]
    assert {card.name for card in cards if card.extrapolated} >= {"NVIDIA T4", "NVIDIA L4", "NVIDIA B200"}
    assert not load("h200").extrapolated
    with pytest.raises(KeyError, match="there are h100, h200"):
        load("h2000")


def test_the_command_line_forecasts_a_function_and_a_kernel(capsys, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    asked = ["xray", "xray_kernels:doubled", "--shape", "4000000", "--gpu", "h200,h100", "--json"]  # more than a launch
    assert __main__.main(asked) == 0
    h200, h100 = json.loads(capsys.readouterr().out)
    assert h200["ms"] < h100["ms"] and not h100["extrapolated"]
    asked = ["xray", "xray_kernels:double", "--shape", "1000000", "--shape", "1000000", "--arg", "1000000"]
    assert __main__.main([*asked, "--grid", "977", "--set", "BLOCK=1024"]) == 0
    assert "double: An H200" in capsys.readouterr().out
    assert __main__.main(["xray", "xray_kernels:multiplied", "--shape", "16x16", "--shape", "16x16"]) == 1
    assert "outside of the model" in capsys.readouterr().err


def test_a_sweep_draws_how_the_bound_changes_with_the_size(capsys, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    asked = ["xray", "xray_kernels:doubled", "--shape", "1024", "--sizes", "1k:64M", "--gpu", "h200"]
    assert __main__.main(asked) == 0
    drawn = capsys.readouterr().out.splitlines()
    bars = [line for line in drawn if "█" in line]
    bounds = [line.strip() for line in drawn if line.endswith(":")]
    assert len(bars) == 9 and bars[-1].split()[0] == "67,108,864"
    assert bounds[0] == "waiting:" and bounds[-1] == "HBM:"
    assert float(bars[-1].split()[3]) < 1.1


def test_code_that_looks_for_a_gpu_finds_one():
    with believing(load("h100")):
        x = torch.zeros(2, device="cuda")
        assert x.is_cuda and x.device == torch.device("cuda", 0) and torch.empty_like(x).is_cuda
        assert torch.cuda.is_available() and "H100" in torch.cuda.get_device_name()
        assert torch.cuda.get_device_properties(x.device).multi_processor_count == 132
        assert triton.runtime.driver.active.get_current_target().arch == 90
        assert torch.equal(x.cpu(), torch.zeros(2, device=x.device))
    assert not x.is_cuda and not torch.cuda.is_available()


def test_an_autotuned_kernel_takes_the_settings_that_are_forecast_to_be_fastest():
    tuned = xray(kernels.tuned, (2**20,), seconds=0.3)
    (launch,) = [one for one in tuned.launches if hasattr(one, "grid")]
    assert launch.grid[0] == 2**20 // 1024, "not tiles of 32, whose programs take longest to start"


def rows(gpu):
    return json.loads((FORECASTS / f"{gpu}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("gpu", sorted(path.stem for path in FORECASTS.glob("*.json") if path.stem != "fresh"))
def test_forecasts_stay_near_what_was_recorded(gpu):
    off = [abs(math.log(row["ms"] / row["recorded"])) for row in rows(gpu)]
    assert len(off) > (150 if gpu == "h200" else 50)  # an H100 has records of chapters 10 and 11
    assert sum(one <= math.log(1.5) for one in off) >= 0.95 * len(off)
    assert sum(one <= math.log(1.25) for one in off) >= 0.85 * len(off)


def test_what_is_committed_is_what_is_computed_and_recorded():
    from tools.measure.forecasts import collect, rows_of

    committed = {row["case"]: row for row in rows("h200") if row["family"] == "bias"}
    computed = {row["case"]: row for row in rows_of(collect("bias", "h200"), "bias", "h200")}
    assert computed.keys() == committed.keys() == {"atomic", "owner"}
    for case, row in computed.items():
        assert row["recorded"] == committed[case]["recorded"]
        assert row["ms"] == pytest.approx(committed[case]["ms"], rel=0.02) and row["bound"] == committed[case]["bound"]


def test_the_page_is_what_the_forecasts_say():
    from tools.site import pencil_page

    assert pencil_page.PAGE.read_text(encoding="utf-8") == pencil_page.page()
