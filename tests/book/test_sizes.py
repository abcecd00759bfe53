"""What chapters take on small GPUs, counted without one: the record, its page, and one chapter counted anew."""

import json
import re
import subprocess
import sys
import warnings

import pytest

from tools import notebooks
from tools.measure import rehearse
from tools.notebooks import stamp
from tools.site import sizes_page

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton's compiler is on Linux only")
MINUTES = 5
# What needs a listing, or trains, or had no record when it was counted; small on the GPU, as the capped runs show.
UNCOUNTED = {"05": {"bytes_in_flight"}, "12": {"flushed", "tensor_sums", "twice"}}
UNCOUNTED |= {"13": {"digits_training", "kat_atomic", "step_by_kernel"}}
PYTHON = 90  # seconds of a chapter that are not the GPU's: imports, compilation, figures


@pytest.fixture(scope="module")
def kept(root):
    return json.loads((root / sizes_page.REHEARSAL).read_text(encoding="utf-8"))


def test_every_chapter_fits_its_memory_and_a_t4s_five_minutes(kept):
    assert kept.keys() == {path.stem for path in notebooks.chapters()}
    for stem, chapter in kept.items():
        for run, found in chapter["runs"].items():
            assert "error" not in found, f"{stem}, {run}: {found.get('error')}"
            memory = rehearse.RUNS[run][1] or 40
            assert found["peak_gb"] < 0.97 * memory, f"{stem} takes {found['peak_gb']} GB of {run}"
            assert found["t4_seconds"] + PYTHON < 60 * MINUTES or run == "paper", f"{stem}, {run}"


def test_what_measures_was_counted_but_for_what_the_page_names(kept, root):
    page = sizes_page.write_sizes_page(root).read_text(encoding="utf-8")
    for path in notebooks.chapters():
        missed = sizes_page.uncounted(notebooks.read(path), kept[path.stem]["runs"])
        assert {*missed} <= UNCOUNTED.get(path.stem[:2], set()) and all(name in page for name in missed), path.stem


def test_every_launch_compiles_for_every_target_or_is_said_not_to(kept, root):
    page = sizes_page.write_sizes_page(root).read_text(encoding="utf-8")
    for stem, chapter in kept.items():
        wrong = {key.split()[0] for found in chapter["runs"].values() for key in found["wrong"]}
        assert all(f"{{doc}}`/chapters/{stem}`: {name}" in page for name in wrong)
    assert set(rehearse.TARGETS) == {75, 80, 86, 89, 90, 100, 120}


def test_chapters_that_changed_since_are_listed(kept):
    for path in notebooks.chapters():
        if kept.get(path.stem, {}).get("code_sha256") != stamp.code_sha256(notebooks.read(path)):
            warnings.warn(f"{path.stem}: count it anew with `python book/tools rehearse --compile`", stacklevel=1)


def test_the_page_lists_what_is_smaller(root):
    page = sizes_page.write_sizes_page(root).read_text(encoding="utf-8")
    picks = [pick for path in notebooks.chapters() for pick in sizes_page.smaller(notebooks.read(path))]
    assert len(picks) > 4 and all(cell in page for pick in picks for cell in pick)


def test_what_a_capped_run_took_stands_on_the_page_and_within_its_cap(root):
    page = sizes_page.write_sizes_page(root).read_text(encoding="utf-8")
    for path in root.glob("book/data/*/within_*_gb.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        cap = float(re.search(r"of ([\d.]+) GB", record["title"])[1])
        assert record["title"] in page and all((peak or 0) < cap for peak in record["data"].values())


def test_a_chapter_is_counted_on_a_gpu_that_is_not_here(root):
    """Chapter 4, which needs 20 GB at the paper's size: every cell that launches is reached, within 7.5 GB."""
    command = [sys.executable, str(root / "book" / "tools"), "rehearse", "04", "--run", "7.5", "--jobs", "1"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    assert 3 < float(re.search(r"'peak_gb': ([\d.]+)", done.stdout)[1]) < 7, done.stdout
    assert int(re.search(r"'launches': (\d+)", done.stdout)[1]) > 30
    failed = re.findall(r"^    \('([\w-]+)', ", done.stdout, re.MULTILINE)
    assert {*failed} <= {
        "claim-square",
        "order",
        "claim-narrow",
        "claim-overflow",
        "gelu-limit-solution",
        "silu-strided-solution",
    }, "these read a listing, a value, or a count"


TTIR = """
  tt.atomic_rmw fadd, acq_rel, gpu, %1, %2, %3 : (tensor<256x!tt.ptr<f32>>, tensor<256xf32>, tensor<256xi1>) -> tensor<256xf32>
  tt.atomic_rmw fadd, relaxed, gpu, %1, %2, %3 : (!tt.ptr<f64>, f64, i1) -> f64
  tt.atomic_rmw fadd, relaxed, gpu, %1, %2 : (tensor<64x128x!tt.ptr<f32>>, tensor<64x128xf32>) -> tensor<64x128xf32>
"""  # noqa: E501


def test_additions_are_counted_from_shapes_and_priced_by_calls():
    assert rehearse.additions(TTIR) == 256 + 1 + 64 * 128
    seen = rehearse.Rehearsal()
    work = [(32e9, None), (0, ("m.kernel", 1000, {}))]  # 100 ms of bytes, 2 million additions of 2.2 ns
    seen.timed = [({"seconds": 0.01, "warmup": 0.0, "least": 3}, work)]
    found = rehearse.cost(seen, {"m.kernel": "".join(TTIR.splitlines(True)[:2]).replace("256", "2000")})
    assert found["additions"] == 5 * 2_000_000 and found["gb"] == pytest.approx(5 * 32 + 4 * 0.27, abs=1)
    assert found["t4_seconds"] == pytest.approx(5 * (0.1 + 0.0044) + 4 * 0.27 / 320, abs=0.1)
