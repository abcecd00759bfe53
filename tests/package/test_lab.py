"""The lab: claims that hold and fail, measurements and their records, tables, figures, and who imports whom."""

import graphlib
import itertools
import json
import math
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from flashkat_lite import hardware, inspection, records, testing
from flashkat_lite.lab import ahead, exercises, figures, fitting, measuring, setup, show
from flashkat_lite.lab.exercises import hints
from flashkat_lite.lab.exercises.common import Wrong, expect_tuple, same_tensor
from tools.notebooks import stamp

PROVENANCE = {
    "device": {"name": "NVIDIA H200", "slug": "h200", "driver": "580.1", "count": 1},
    "versions": {"python": "3.12", "torch": "2.11", "triton": "3.6", "flashkat_lite": "0.1"},
    "date": "2026-11-21",
}


def record(name="NVIDIA H200", slug="h200", live=False, data=None):
    device = PROVENANCE["device"] | {"name": name, "slug": slug}
    fields = PROVENANCE | {"device": device}
    return records.Record(experiment="e", title="t", command="make it", data=data, live=live, **fields)


@pytest.fixture
def shown(monkeypatch):
    html = []
    monkeypatch.setattr(show, "display", lambda item: html.append(item.data))
    return html


@pytest.mark.parametrize("value,word", [("1", "interpreter"), ("True", "interpreter"), ("no", "restart")])
def test_triton_may_come_first_where_it_interprets_by_whatever_word(monkeypatch, value, word):
    pytest.importorskip("triton")
    notes = []
    monkeypatch.setattr(setup, "GPU", False)
    monkeypatch.setattr(setup, "note", notes.append)
    monkeypatch.setenv("TRITON_INTERPRET", value)
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    setup._set_up()
    assert len(notes) == 1 and word in notes[0]


# Claims


def test_a_claim_shows_its_figure_its_bound_and_where_it_was_measured(shown):
    show.claim("Slower by", 1853.47, record(), within=(1000, 2500.5))
    assert "✓" in shown[0] and "<strong>1,853</strong>" in shown[0]
    assert "(claimed: 1,000 to 2,500; recorded on NVIDIA H200)" in re.sub("<[^>]+>", "", shown[0])


@pytest.mark.parametrize(
    ("bound", "words", "beyond"),
    [
        ({"within": (None, 2)}, "claimed: at most 2", [2.5]),
        ({"within": (1, None)}, "claimed: at least 1", [0.5, float("nan")]),
        ({"within": (1, 2)}, "claimed: 1 to 2", [0.5, 2.5, float("nan")]),
        ({"equals": 1}, "claimed: 1", [0, 2]),
    ],
)
def test_a_claims_bound_is_said_where_it_holds_and_where_it_does_not(shown, bound, words, beyond):
    show.claim("Slower by", 1, **bound)
    assert words in shown[0]
    for found in beyond:
        with pytest.raises(AssertionError, match=f"does not hold: Slower by Found: {found:g}; {words}"):
            show.claim("Slower by", found, **bound)


def test_each_of_several_figures_must_be_within_the_bound(shown):
    show.claim("Slower by", [1.5, 2], within=(1, 2))
    assert "<strong>1.5, 2</strong>" in shown[0]
    with pytest.raises(AssertionError, match=r"Found: 1\.5, 2\.5; claimed: 1 to 2"):
        show.claim("Slower by", [1.5, 2.5], within=(1, 2))
    with pytest.raises(AssertionError, match="Found: 80, 81; claimed: 80"):
        show.claim("Addresses:", [80, 81], equals=80)


def test_a_claim_in_words_holds_or_does_not(shown):
    show.claim("The first is", "atomic <1>", holds=True)
    assert "atomic &lt;1&gt;" in shown[0] and "claimed" not in shown[0]
    with pytest.raises(AssertionError, match=r"Found: atomic\.$"):
        show.claim("The first is", "atomic", holds=False)


@pytest.mark.parametrize("live", [True, False])
def test_a_claim_that_fails_on_the_default_gpu_raises(live):
    with pytest.raises(AssertionError, match="Slower by Found: 3; claimed: at least 1,000"):
        show.claim("Slower by", 3, record(live=live), within=(1000, None))


def test_a_claim_that_fails_on_another_gpu_says_so(shown):
    show.claim("Slower by", 3.0, record("NVIDIA L4", "l4", live=True), within=(1000, None))
    assert "not on this NVIDIA L4" in shown[0] and "fk-differs" in shown[0] and "✓" not in shown[0]


# Sizes


@pytest.fixture
def gpu(monkeypatch, shown):
    """A machine with a GPU of so many GB and GB/s; returns the lines that a notebook shows."""

    def machine(gb, gbps=3350):
        facts = hardware.Device("NVIDIA X", "x", "9.0", 132, int(gb * 1e9), 2**25, None, gbps and gbps * 1e9)
        monkeypatch.setattr(hardware, "device", lambda: facts)
        monkeypatch.setattr(setup, "GPU", True)
        monkeypatch.setattr(setup, "_told", [])
        monkeypatch.setattr(setup, "display", lambda item: shown.append(item.data))
        return shown

    return machine


@pytest.mark.parametrize(
    ("gb", "gbps", "cap", "rows"),
    [
        (80, 3350, None, 201_728),
        (24, 1008, None, 201_728),
        (15.8, 320, None, 25_216),
        (8, 272, None, 25_216),
        (80, 3350, "14.5", 25_216),
        (80, 3350, "22", 201_728),
        (80, 128, None, 25_216),
        (80, None, None, 201_728),
    ],
)
def test_memory_and_bandwidth_decide_a_size(gpu, monkeypatch, gb, gbps, cap, rows):
    said = gpu(gb, gbps)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace())
    monkeypatch.setenv("FLASHKAT_GPU_MEMORY", cap or "")
    for _ in range(2):
        assert setup.pick(gpu=201_728, small=25_216, cpu=8, gb=20) == rows
    assert len(said) == (rows == 25_216), "one line, where the size is not the book's"
    assert all("25,216 in place of 201,728" in line for line in said)


def test_a_size_without_a_smaller_one_is_the_books_on_any_gpu(gpu):
    assert gpu(4, 100) == [] and setup.pick(gpu=1024, cpu=8) == 1024


def test_bandwidth_comes_from_the_driver_where_no_datasheet_is_known(gpu, monkeypatch):
    gpu(12, None)
    found = SimpleNamespace(memory_clock_rate=7_501_000, memory_bus_width=192)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: found)
    assert setup.bandwidth() == pytest.approx(360, rel=0.01)  # an RTX 3060


@pytest.mark.parametrize("said", ["7,5", "-1", "0", "nan", "inf", "much"])
def test_a_limit_that_is_no_memory_is_refused_in_a_line(said):
    with pytest.raises(ValueError, match=rf"FLASHKAT_GPU_MEMORY='{said}': expected GB"):
        setup.cap({"FLASHKAT_GPU_MEMORY": said})


@pytest.mark.parametrize(("limit", "fraction"), [("7.5", [0.5]), ("40", []), ("", [])])
def test_a_limit_on_the_gpus_memory_is_set_and_said(gpu, monkeypatch, limit, fraction):
    said, given = gpu(15), []
    monkeypatch.setenv("FLASHKAT_GPU_MEMORY", limit)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA X")
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", given.append)
    setup._set_up()
    assert given == fraction and (f"in {limit} GB" in said[0]) == bool(limit)


def test_a_gpu_without_bfloat16_multiplies_in_float16_and_says_so(gpu, monkeypatch):
    said = gpu(15.8)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    monkeypatch.setattr(setup, "HALF", setup._half())
    setup._set_up()
    assert setup.HALF is torch.float16 and len(said) == 2 and "bfloat16" in said[1]


def test_a_chapter_waits_until_the_one_before_has_left_the_gpu(tmp_path, monkeypatch):
    fcntl, turn, started = pytest.importorskip("fcntl"), tmp_path / "turn", []
    monkeypatch.setattr(setup, "IMPORTS", ("json",))
    monkeypatch.setattr(ahead, "process", lambda kind, asleep: started.append((kind, asleep)))
    monkeypatch.setattr(inspection, "start_compilers", lambda count: started.append(("compilers", count)))
    with open(turn, "ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        waiting = threading.Thread(target=setup._wait_for_turn, args=(str(turn),))
        waiting.start()
        expected = [("interpreter", True), ("clock", True), ("compilers", min(inspection.CORES, 8))]
        for _ in range(60):
            waiting.join(1)
            if started == expected:
                break
        assert waiting.is_alive() and started == expected
    waiting.join(10)
    assert not waiting.is_alive()
    with open(turn, "ab") as again, pytest.raises(OSError):
        fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
    setup._turn.pop().close()


@pytest.mark.parametrize("said", ["\n", ""])
def test_what_is_started_ahead_works_once_it_is_asked_and_ends_where_it_is_not(said):
    code = "from flashkat_lite.lab import setup\nsetup.IMPORTS = ()\nsetup._wait_for_turn('asked')\nprint('works')"
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")
    process = subprocess.Popen([sys.executable, "-c", code], **pipes)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(3)
    assert ("works" in process.communicate(said)[0]) == bool(said) and process.returncode == 0


def test_under_a_limit_a_claim_that_fails_says_so_and_no_record_is_kept(library, shown, monkeypatch):
    folder, machine = library
    machine("NVIDIA H200", "h200")
    monkeypatch.setenv("FLASHKAT_GPU_MEMORY", "7.5")
    made = measuring.measure("speed", "A speed", lambda: 3.0)
    show.claim("Slower by", made.data, made, within=(1000, None))
    assert "not on this" in shown[0] and not (folder / "_build").exists()
    with pytest.raises(AssertionError):  # the book's own record is no less wrong here
        show.claim("Slower by", 3.0, record(), within=(1000, None))


# Measurements


@pytest.fixture
def library(monkeypatch, tmp_path):
    """A book of its own, and a machine whose GPU can be chosen."""

    def machine(name, slug):
        facts = PROVENANCE | {"device": name and PROVENANCE["device"] | {"name": name, "slug": slug}}
        monkeypatch.setattr(hardware, "provenance", lambda gpus=1: facts)
        monkeypatch.setattr(hardware, "device", lambda: name and SimpleNamespace(name=name, slug=slug))

    (tmp_path / "book" / "data").mkdir(parents=True)
    monkeypatch.setattr(records, "REPOSITORY", tmp_path)
    machine(None, None)
    return tmp_path, machine


def name_in_a_chapter(folder, experiment):
    """A chapter 07 whose cell measures the experiment."""
    cell = f'lab.measure(\n    "{experiment}", "A speed", time_it\n)'
    chapter = {"cells": [{"cell_type": "code", "source": cell.splitlines(keepends=True)}]}
    (folder / "chapters").mkdir()
    (folder / "chapters" / "07_atomic.ipynb").write_text(json.dumps(chapter, indent=1), encoding="utf-8")


def test_with_a_gpu_a_measurement_is_live_and_kept_with_the_command_that_makes_it(library):
    folder, machine = library
    name_in_a_chapter(folder, "kept_speed")
    machine("NVIDIA L4", "l4")
    made = measuring.measure("kept_speed", "A speed", lambda: {"ms": 1.5})
    kept = json.loads((folder / "_build" / "records" / "l4" / "kept_speed.json").read_text(encoding="utf-8"))
    assert made.live and made.source.startswith("measured here on NVIDIA L4")
    assert made.where == "measured here"
    assert kept["data"] == {"ms": 1.5} and kept["command"] == 'make execute CHAPTERS="07" && make record'
    assert "live" not in kept


def test_a_measurement_that_cannot_be_kept_says_so_once_and_goes_on(library, monkeypatch):
    folder, machine = library
    said = []
    monkeypatch.setattr(measuring, "note", said.append)
    measuring._say_that_nothing_is_kept.cache_clear()
    (folder / "_build").touch()  # where a folder would have to be: as in a clone that can only be read
    machine("NVIDIA L4", "l4")
    for name in ("one", "two"):
        made = measuring.measure(name, "A speed", lambda: {"ms": 1.5})
        assert made.live and made.data == {"ms": 1.5}
    assert len(said) == 1 and "not kept" in said[0]


def test_without_a_gpu_the_function_runs_and_the_record_is_shown(library):
    folder, machine = library
    machine("NVIDIA H200", "h200")
    measuring.measure("speed", "A speed", lambda: {"ms": 1.5})
    (folder / "_build" / "records" / "h200").rename(folder / "book" / "data" / "h200")
    machine(None, None)
    calls = []
    found = measuring.measure("speed", "A speed", lambda: calls.append(1) or {"ms": 99.0})
    assert calls and found.data == {"ms": 1.5} and not found.live
    assert found.source.startswith("recorded on NVIDIA H200")


def test_a_missing_record_names_the_command_that_makes_it(library):
    name_in_a_chapter(library[0], "missing_speed")
    words = r'h200/missing_speed\.json is missing.*: make execute CHAPTERS="07" && make record'
    with pytest.raises(records.MissingRecord, match=words):
        measuring.measure("missing_speed", "A speed", dict)


def test_without_a_gpu_timings_are_of_one_call_each(library):
    calls = []
    times = measuring.timings({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, seconds=1)
    assert calls == ["a", "b"] and times.keys() == {"a", "b"}
    assert times["a"]["repeats"] == 1 and times["a"]["ms"] == times["a"]["low"] == times["a"]["high"] >= 0


def test_checks_raise_where_python_leaves_asserts_out():
    """As under `python -O`: the checks' own code, compiled so."""
    source = Path(testing.__file__).read_text(encoding="utf-8")
    optimised = ModuleType("flashkat_lite.testing_optimised")
    optimised.__package__ = "flashkat_lite"
    exec(compile(source, testing.__file__, "exec", optimize=1), vars(optimised))
    dy, x, a, b = optimised.random_inputs(5, 16, device="cpu")
    with pytest.raises(AssertionError, match="what rounding explains"):
        optimised.check_dx(dy + 1, dy, x, a, b)
    with pytest.raises(AssertionError, match="has shape"):
        optimised.check_dx(dy[1:], dy, x, a, b)


# Tables and figures


def test_a_table_shows_every_gpu_that_has_a_record(library, shown):
    folder, _ = library
    for name, slug in (("NVIDIA H200", "h200"), ("NVIDIA L4", "l4")):
        record(name, slug, data=[{"what": "copy", "ms": 1.25}]).save(folder / "book" / "data" / slug / "e.json")
    show.table({"what": "what", "ms": "time (ms)|.2f"}, lambda data: data, records.load("e"))
    assert "NVIDIA L4" in shown[0] and "NVIDIA H200" in shown[0] and shown[0].count("1.25") == 2
    assert shown[0].count('<th scope="col"') == 3


def test_a_table_without_a_source_has_no_provenance(shown):
    show.table({"what": "what", "n": "count|,"}, [{"what": "<adds>", "n": 1234}, {"what": "none", "n": None}])
    assert "1,234" in shown[0] and "&lt;adds&gt;" in shown[0] and "–" in shown[0] and "fk-source" not in shown[0]


def test_in_a_table_words_stand_on_the_left_and_numbers_on_the_right(shown):
    rows = [dict(a=1, b="8 times as many", c="0.1, 2e-05", d=None), dict(a=2, b="–", c="nan", d="no fences")]
    show.table({"a": "n", "b": "what", "c": "values", "d": "how"}, [*rows, dict(a=3, b="two loops", c="3 ± 1")])
    left = re.findall(r'<th scope="col"[^>]*left">(\w+)', shown[0])
    assert left == ["what", "how"] and shown[0].count('<td class="fk-words"') == 6


def test_a_table_may_have_a_caption(shown):
    show.table({"what": "what"}, [{"what": "adds"}], caption="Additions & more")
    assert shown[0].startswith('<table class="fk-table"><caption>Additions &amp; more</caption><thead>')


@pytest.mark.parametrize(
    "value, text",
    [
        (0.019954, "0.01995"),
        (1842.52, "1,843"),
        (20460.3, "20,460"),
        (np.float32(122880), "122,900"),
        (1.5e-5, "1.5e-05"),
    ],
)
def test_a_large_figure_is_written_out(shown, value, text):
    show.claim("A figure:", value, within=(None, None))
    assert f"<strong>{text}</strong>" in shown[0]


def ladder():
    return figures.ladder([("atomic", 792.0), ("block", 0.79)], ("add", 0.43), "A title", "recorded on a GPU")


def test_a_figure_is_the_same_bytes_each_time_and_uses_our_palette():
    first, second = figures.svg(ladder()), figures.svg(ladder())
    assert first == second and "792 ms" in first and "1,842×" in first
    assert set(re.findall(r"#[0-9a-f]{6}\b", first)) <= set(figures.NAMES.values())


def crowded(columns=1):
    figure, panels = figures.new(7.2, 3, ncols=columns, squeeze=False)
    for axes in panels[0]:
        axes.set(
            xscale="log", xlim=(1, 1e5), ylim=(0, 1), xlabel="so many terms, on a logarithmic axis, of each of the sums"
        )
        axes.plot([1, 1e5], [0, 1], label="a curve with a long name, which fills a legend wholly")
        for x in (1e4, 8e3):
            axes.annotate("a label that runs out of the drawing", (x, 0.5))
        axes.set_title(
            "A title that states the finding in more words than seven inches can take in letters of this weight"
        )
        axes.legend()
    return figure


def wrong_words(figure):
    """Words that leave the drawing, and pairs of words that lie on one another."""
    found, sheet = fitting.written(figure), figure.bbox
    out = [text for text, box in found if not sheet.x0 <= box.x0 <= box.x1 <= sheet.x1]
    return out + [(a, b) for (a, one), (b, other) in itertools.combinations(found, 2) if fitting.overlap(one, other)]


def test_words_of_a_figure_stay_in_it_and_apart():
    figure = crowded()
    assert wrong_words(figure)
    fitting.finish(figure)
    assert not wrong_words(figure)
    assert {"1", "100", "10,000"} <= {text for text, _ in fitting.written(figure)}


def test_on_a_phone_panels_stand_under_one_another_and_words_keep_their_size():
    figure = crowded(columns=2)
    assert fitting.narrow(figure)
    assert figure.get_size_inches()[0] == fitting.PHONE and not wrong_words(figure)
    assert len({round(axes.get_position().x0, 1) for axes in figure.axes}) == 1
    assert all(text.get_fontsize() >= 8 for text in fitting._words(figure))


def test_a_word_at_a_bars_end_is_not_moved_onto_the_bar():
    figure, axes = figures.new(7.2, 2)
    axes.barh(["a name as long as they are"] * 2, [20000, 65536])
    word = axes.annotate("65,536 arrive", (65536, 0), (6, 0), textcoords="offset points", va="center")
    assert fitting.narrow(figure) and not wrong_words(figure)
    assert word.get_window_extent().x0 > max(bar.get_window_extent().x1 for bar in axes.patches)
    figure.set_size_inches(7.2, 2)
    fitting.finish(figure)
    assert "50,000" in {text for text, _ in fitting.written(figure)}


def test_a_label_keeps_off_curves_and_marks():
    """It moves by as little as it takes; one at a curve's end finds room behind it on a phone."""
    figure, axes = figures.new(7.2, 2.6)
    axes.plot([0, 1], [0, 1], "o-")
    crossed, far = axes.annotate("on the curve", (0.45, 0.48)), axes.annotate("off it", (0.1, 0.8))
    last = axes.annotate("a name at the end", (1, 1), (6, 0), textcoords="offset points", va="center")
    fitting._lay_out(figure)
    hits = lambda text: fitting._hits(text.get_window_extent(), fitting._drawn(axes))  # noqa: E731
    assert hits(crossed) and not hits(far)
    before = [text.get_window_extent().p0 for text in (crossed, far)]
    fitting.finish(figure)
    moved = [abs(text.get_window_extent().p0 - p).max() for text, p in zip((crossed, far), before)]
    assert not hits(crossed) and 0 < moved[0] < 60 and moved[1] < 1
    assert fitting.narrow(figure) and not wrong_words(figure) and not hits(crossed) and not hits(last)


def test_on_a_phone_words_of_a_sketch_grow_into_what_is_free():
    """A line over marks breaks upwards, a name keeps clear of the value in its row, and marks stay apart."""
    figure, axes = figures.new(5.6, 3)
    axes.axis("off")
    axes.set(xlim=(0, 32), ylim=(-4, 2))
    marks = axes.scatter(range(32), [0] * 32, s=80)
    above = axes.text(0, 0.5, "thirty-two threads of one row, all of which add to one and the same address")
    name, value = axes.text(0, -2, "warps that fit on a multiprocessor"), axes.text(32, -2, "48", ha="right")
    assert fitting.narrow(figure) and not wrong_words(figure)
    dots = axes.transData.transform((0, 0))[1] + math.sqrt(marks.get_sizes()[0]) / 2 * figure.dpi / 72
    assert "\n" in above.get_text() and above.get_window_extent().y0 > dots
    assert "\n" not in name.get_text() and name.get_window_extent().x1 < value.get_window_extent().x0
    assert math.sqrt(marks.get_sizes()[0]) < 72 * fitting.PHONE / 32


def test_a_figure_brings_its_drawing_for_phones_where_outputs_are_kept(monkeypatch):
    kept = []
    monkeypatch.setattr(figures, "display", kept.append)
    figures.show(ladder())
    monkeypatch.setenv("FLASHKAT_PHONES", "1")
    figures.show(ladder())
    plain, both = (one.data for one in kept)
    assert "for-phones" not in plain
    assert both.count("<svg ") == 1 and "&lt;svg " in both  # as text: no identifier is there twice


def test_a_dark_word_on_a_mark_stays_dark_on_a_dark_page():
    figure, axes = figures.new()
    axes.barh([0, 1], [1, 1], color=[figures.SKY, figures.GRID])
    words = [axes.text(0.5, y, "1.0", va="center") for y in (0, 1)]
    fitting.finish(figure)
    assert [word.get_color() for word in words] == [fitting.DARK, figures.INK]


def test_letters_of_a_formula_are_drawn_as_outlines():
    figure, axes = figures.new()
    axes.set(ylabel="error, in $2^{-24}\\sqrt{\\Sigma t^2}$", xlabel="terms")
    texts = re.findall(r"<text\b[^>]*>([^<]*)", figures.svg(figure))
    assert "terms" in texts and not [text for text in texts if "error" in text or "24" in text]


def test_a_formula_is_read_once_for_all_drawings():
    def draw():
        figure, axes = figures.new()
        axes.set(xlabel="$x_{formula}$", ylabel="$x_{formula}$")
        return figures.svg(figure)

    first, read = draw(), figures._parsed.cache_info().misses
    assert draw() == first and figures._parsed.cache_info().misses == read > 0


def test_an_inline_figure_has_a_name_and_no_colours_of_its_own():
    html = figures.inline(ladder(), 'two "bars"')
    assert 'role="img" aria-label="two &quot;bars&quot;"' in html
    assert not re.findall(r"[^,] #[0-9a-f]{6}\b", html), "a colour outside of var(…, fallback)"


# What checks share


def test_same_tensor_says_where_and_how_far():
    want = torch.arange(6.0).reshape(2, 3)
    got = want.clone()
    got[1, 2] += 0.5
    with pytest.raises(Wrong, match=r"1 of 6 are wrong; the first at index \(1, 2\): expected 5, got 5\.5"):
        same_tensor("y", got, want, 1e-6)
    with pytest.raises(Wrong, match=r"expected shape \[2, 3\], got \[3, 2\]"):
        same_tensor("y", got.T, want, 1e-6)
    with pytest.raises(Wrong, match=r"expected dtype torch\.float64, got torch\.float32"):
        same_tensor("y", want, want, 1e-6, dtype=torch.float64)
    with pytest.raises(Wrong, match="a NaN was computed, or it is memory from `empty` that nothing wrote"):
        same_tensor("y", got / 0 * 0, want, 1e-6)


@pytest.mark.parametrize(
    ("answer", "got"),
    [
        (3, "3"),
        (None, "None"),
        ((1,), "a tuple of 1"),
        ("ab", "'ab'"),
        (torch.ones(3), "Tensor"),
        ([1, 2, 3], "a list of 3"),
    ],
)
def test_what_is_no_tuple_of_the_named_parts_is_said_to_be_wrong(answer, got):
    assert expect_tuple((1, 2), "programs", "adds") == (1, 2)
    with pytest.raises(Wrong, match=rf"^expected a tuple \(programs, adds\), got {got}$"):
        expect_tuple(answer, "programs", "adds")


# Who imports whom

LAB = "flashkat_lite.lab"


def modules(root):
    """Every module of the package, by name, with its path."""
    for path in sorted((root / "flashkat_lite").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def test_nothing_but_chapters_tools_and_tests_imports_the_lab(root):
    outside = [path for name, path in modules(root) if not name.startswith(LAB)] + [*root.glob("examples/*.py")]
    mentions = re.compile(r"^\s*(?:from|import)\b.*\blab\b", re.MULTILINE)
    assert outside and [str(path) for path in outside if mentions.search(path.read_text(encoding="utf-8"))] == []


def test_no_modules_of_the_lab_import_one_another_in_a_circle(root):
    package = stamp.Package()
    names = [name for name, _ in modules(root) if name.startswith(LAB)]
    imports = {name: package.imports(package.tree(name), name) & set(names) for name in names}
    assert sum(map(len, imports.values())) > 40
    graphlib.TopologicalSorter(imports).prepare()  # raises CycleError


ALONE = """
import gc, importlib, os, sys
import IPython.display, ipywidgets, matplotlib.pyplot, numpy, torch, torch._dynamo  # others' modules: once for all
if importlib.util.find_spec("triton"):
    import triton.runtime.interpreter
IPython.display.display = lambda *_: None
gc.freeze()
for name in sys.argv[1:]:
    if not (child := os.fork()):
        importlib.import_module(name)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(f"{name} cannot be imported first")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_each_module_of_the_lab_can_be_the_first_to_be_imported(root):
    names = [name for name, _ in modules(root) if name.startswith(LAB)]
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *names], cwd=root, capture_output=True, encoding="utf-8",
        env=os.environ | {"TRITON_INTERPRET": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_flashkat_device_hides_every_gpu_before_anything_asks_for_one():
    environ = {"FLASHKAT_DEVICE": " CPU ", "CUDA_VISIBLE_DEVICES": "3"}
    setup.choose(environ)
    assert environ["CUDA_VISIBLE_DEVICES"] == environ["HIP_VISIBLE_DEVICES"] == ""
    for said in ("", "cuda"):
        environ = {"FLASHKAT_DEVICE": said, "CUDA_VISIBLE_DEVICES": "3"}
        setup.choose(environ)
        assert environ == {"FLASHKAT_DEVICE": said, "CUDA_VISIBLE_DEVICES": "3"}
    with pytest.raises(ValueError, match="FLASHKAT_DEVICE='tpu': expected cpu or cuda"):
        setup.choose({"FLASHKAT_DEVICE": "tpu"})


# Hints


def test_a_hint_unfolds_a_step_for_each_sentence(monkeypatch):
    html = []
    monkeypatch.setattr(hints, "display", lambda item: html.append(item.data))
    hints.hint("06-3")
    assert html[0].count("<details>") == html[0].count("</details>") == len(hints.of_chapter("06")["06-3"]) >= 3
    assert html[0].startswith("<details><summary>Hint</summary><p><code>tl.histogram(values, BINS)</code> counts")
    with pytest.raises(ValueError, match="no hint to '06-9'"):
        hints.hint("06-9")


def test_a_failed_check_offers_hints_in_a_readers_notebook_alone(monkeypatch):
    for wanted, lines in (("0", 1), ("1", 2)):
        monkeypatch.setenv("FLASHKAT_FORECAST", wanted)
        with pytest.raises(Wrong) as caught:
            exercises.check("05-3", lambda words: 0)
        shown = caught.value._render_traceback_()
        assert shown[0] == f"Wrong: {caught.value}" and len(shown) == lines
    assert shown[1] == 'Stuck? lab.hint("05-3") unfolds a hint, a step at a time.'
