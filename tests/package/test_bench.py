"""What bench measures beside the ladder: both passes together, other shapes, bounds; and the sweep."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from flashkat_lite import bench, hardware

ROOT = Path(__file__).resolve().parents[2]


def line(what, ms, columns=768, dtype="float32"):
    return dict(what=what, ms=ms, columns=columns, dtype=dtype)


RESULTS = [
    line("forward", 0.3),
    line("backward_stationary", 0.5),
    line("gelu_forward", 0.2),
    line("gelu_backward", 0.6),
    line("add", 0.4),
    line("add", 0.2, dtype="bfloat16"),
    line("backward_stationary", 0.4, dtype="bfloat16"),
]


def test_pairs_add_both_passes():
    assert bench.pairs(RESULTS[:5]) == [
        dict(columns=768, dtype="float32", ms=0.8, gelu_ms=pytest.approx(0.8), ratio=pytest.approx(1.0))
    ]


def test_the_larger_bound_counts(monkeypatch):
    facts = hardware.Device("NVIDIA H200", "h200", "9.0", 100, 0, 0, None, None)
    monkeypatch.setattr(hardware, "device", lambda: facts)
    monkeypatch.setattr(bench, "instructions_an_element", lambda dtype: 128.0)
    # 100 multiprocessors, four warps of 32 lanes a cycle, 1000 MHz: 12.8e12 instructions a second.
    rows = 100_000_000 // 768
    wide, narrow = bench.issue_bounds(RESULTS, rows, 1000)
    assert wide["issue_ms"] == pytest.approx(rows * 768 * 128 / 12.8e12 * 1e3)
    assert wide["fraction_of_bound"] == pytest.approx(wide["issue_ms"] / 0.5)
    assert bench.issue_bounds(RESULTS, rows, 10**9)[1]["fraction_of_bound"] == pytest.approx(0.5)
    assert narrow["dtype"] == "bfloat16"


@pytest.mark.parametrize(("dtype", "least", "most"), [(torch.float32, 41, 50), (torch.bfloat16, 41, 46)])
def test_instructions_are_counted_in_the_loop(dtype, least, most):
    assert least < bench.instructions_an_element(dtype) < most


def test_other_shapes_and_the_sweep_run_in_the_interpreter():
    code = """if True:
        import json, sys, torch
        sys.path.insert(0, "book/tools")
        import sweep
        from flashkat_lite import bench
        from flashkat_lite.kernels import backward_stationary, forward
        rules = backward_stationary.launch_size, forward.launch_size
        sweep.FORWARD, sweep.BACKWARD = [(64, 2)], [(64, 1, 2, 1)]
        bench.GROUPS, bench.SHAPES = 2, bench.SHAPES[::4]
        found = sweep.sweep(9, 48, torch.float32, 0.01)
        assert rules == (backward_stationary.launch_size, forward.launch_size)
        print("\\n" + json.dumps([bench.other_shapes(9, (torch.float32,), 0.01), found]))
    """
    environment = os.environ | ({} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"})
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, encoding="utf-8")
    assert not done.returncode, done.stderr
    shapes, found = json.loads(done.stdout.splitlines()[-1])
    assert [(tuple(s["degrees"]), s["width"]) for s in shapes[::2]] == [(d, w) for d, w in bench.SHAPES[::4]]
    assert shapes[0]["per_byte"] == shapes[1]["per_byte"] == 1
    assert [line["kernel"] for line in found] == ["forward", "backward"]
    assert all(line["slower"] >= 0 and len(line["all"]) == 2 for line in found)


def test_the_committed_sweep_finds_the_launch_rule_within_three_per_cent_of_the_best():
    from flashkat_lite.kernels import INTERPRETED, backward_stationary, forward

    kept = json.loads((ROOT / "book" / "data" / "h200" / "sweep.json").read_text(encoding="utf-8"))["data"]
    rows = {(row["kernel"], row["columns"], row["dtype"]): row for row in kept["results"]}
    assert len(rows) == len(kept["results"]) == 2 * 3 * 2 and kept["rows"] == 1024 * 197
    for (kernel, columns, dtype), row in rows.items():
        assert row["slower"] <= 0.03 and len(row["all"]) > 6, row
        rule = (forward if kernel == "forward" else backward_stationary).launch_size
        like = torch.empty(1, columns, dtype=getattr(torch, dtype), device="meta")
        if not INTERPRETED:
            assert row["rule"] == list(rule(like)), "the rule has changed: sweep again"
