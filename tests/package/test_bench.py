"""What bench measures: the ladder, verified first; both passes together, other shapes, bounds; and the sweep."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from flashkat_lite import __main__ as command
from flashkat_lite import bench, hardware, ops, records, testing
from flashkat_lite.bench import ladder, shapes
from flashkat_lite.reference import rational_gradients, rational_reference

ROOT = Path(__file__).resolve().parents[2]
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="what happens without a GPU")


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
    assert shapes.pairs(RESULTS[:5]) == [
        dict(columns=768, dtype="float32", ms=0.8, gelu_ms=pytest.approx(0.8), ratio=pytest.approx(1.0))
    ]


def test_the_larger_bound_counts(monkeypatch):
    facts = hardware.Device("NVIDIA H200", "h200", "9.0", 100, 0, 0, None, None)
    monkeypatch.setattr(hardware, "device", lambda: facts)
    monkeypatch.setattr(shapes, "instructions_an_element", lambda dtype: 128.0)
    # 100 multiprocessors, four warps of 32 threads a cycle, 1000 MHz: 12.8e12 instructions a second.
    rows = 100_000_000 // 768
    wide, narrow = shapes.issue_bounds(RESULTS, rows, 1000)
    assert wide["issue_ms"] == pytest.approx(rows * 768 * 128 / 12.8e12 * 1e3)
    assert wide["fraction_of_bound"] == pytest.approx(wide["issue_ms"] / 0.5)
    assert shapes.issue_bounds(RESULTS, rows, 10**9)[1]["fraction_of_bound"] == pytest.approx(0.5)
    assert narrow["dtype"] == "bfloat16"


@pytest.mark.parametrize(("dtype", "least", "most"), [(torch.float32, 41, 50), (torch.bfloat16, 41, 46)])
def test_instructions_are_counted_in_the_loop(dtype, least, most):
    assert least < shapes.instructions_an_element(dtype) < most


def test_other_shapes_and_the_sweep_run_in_the_interpreter(warm):
    code = """if True:
        import json, torch
        from tools.measure import sweep
        from flashkat_lite import hardware
        from flashkat_lite.bench import shapes
        if not torch.cuda.is_available():
            from flashkat_lite._interpreter import quicken
            quicken()
            hardware.time_interleaved.__kwdefaults__["least"] = 1
        sweep.FORWARD, sweep.BACKWARD = [(64, 2)], [(64, 1, 2, 1)]
        shapes.GROUPS, shapes.SHAPES = 2, shapes.SHAPES[::4]
        found = sweep.sweep(3, 48, torch.float32, 0.001)
        print("\\n" + json.dumps([shapes.other_shapes(3, (torch.float32,), 0.001), found]))
    """
    environment = os.environ | ({} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"})
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    command = warm([sys.executable, "-c", code])
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8")
    assert not done.returncode, done.stderr
    measured, found = json.loads(done.stdout.splitlines()[-1])
    assert [(tuple(s["degrees"]), s["width"]) for s in measured[::2]] == [(d, w) for d, w in shapes.SHAPES[::4]]
    assert measured[0]["per_byte"] == measured[1]["per_byte"] == 1
    assert [line["kernel"] for line in found] == ["forward", "backward"]
    assert all(line["slower"] >= 0 and len(line["all"]) == 2 for line in found)


def test_the_committed_sweep_finds_the_launch_rule_within_three_per_cent_of_the_best():
    from flashkat_lite.kernels import INTERPRETED, backward_stationary, forward

    kept = json.loads((ROOT / "book" / "data" / "h200" / "sweep.json").read_text(encoding="utf-8"))["data"]
    rows = {(row["kernel"], row["columns"], row["dtype"]): row for row in kept["results"]}
    assert len(rows) == len(kept["results"]) == 2 * 3 * 2 and kept["rows"] == 1024 * 197
    for (kernel, _, dtype), row in rows.items():
        assert row["slower"] <= 0.03 and len(row["all"]) > 6, row
        cpu = torch.device("cpu")
        of = getattr(torch, dtype).itemsize
        rule = forward.launch_size() if kernel == "forward" else backward_stationary.launch_size(of, cpu)
        if not INTERPRETED:
            assert row["rule"] == list(rule), "the rule has changed: sweep again"


@without_gpu
def test_bench_refuses_without_a_gpu(capsys):
    assert command.main(["bench"]) == 2
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_bench_asks_where_to_write_outside_the_repository(capsys, monkeypatch, tmp_path, h200):
    monkeypatch.setattr(records, "REPOSITORY", tmp_path)
    assert command.main(["bench"]) == 2
    assert "--out" in capsys.readouterr().out


def test_bench_writes_a_record(monkeypatch, tmp_path, h200):
    asked = []
    monkeypatch.setattr(ladder, "ladder", lambda *arguments: asked.append(arguments) or {"results": []})
    monkeypatch.setattr(bench, "other_measurements", lambda data: {"pairs": len(data["results"])})
    out = tmp_path / "deep" / "ladder.json"
    assert command.main(["bench", "--out", str(out)]) == 0
    record = json.loads(out.read_text(encoding="utf-8"))
    assert set(record) == {"experiment", "title", "device", "versions", "date", "command", "data"}
    assert record["experiment"] == "ladder" and record["device"]["slug"] == "h200"
    assert record["data"] == {"results": [], "pairs": 0}
    assert asked[0][:2] == (1024 * 197, (192, 768, 3072))
    assert command.main(["bench", "--quick"]) == 0
    assert asked[1][1] == (768,)


def test_bench_goes_on_where_nothing_can_be_kept_and_stops_at_once_where_it_was_asked_to(
    capsys, monkeypatch, tmp_path, h200
):
    measured = []
    monkeypatch.setattr(bench, "full_bench", lambda: measured.append(1) or {})
    monkeypatch.setattr(records, "REPOSITORY", tmp_path)
    (tmp_path / "book").mkdir()
    (tmp_path / "_build").touch()  # where a folder would have to be
    assert command.main(["bench"]) == 0 and measured
    said = capsys.readouterr().out
    assert "will not be kept" in said and "--out FILE" in said and "Written" not in said
    assert command.main(["bench", "--out", str(tmp_path / "_build" / "ladder.json")]) == 2 and len(measured) == 1


def test_atomic_additions_are_counted():
    assert ladder.atomics("backward_atomic", 1000, 768) == 10 * 1000 * 768
    assert ladder.atomics("forward", 1000, 768) == 0
    one_tile_rows = next(r for r in range(1, 10**6) if ladder.atomics("backward_block", r + 1, 768) > 10 * 8)
    assert ladder.atomics("backward_block", 1000 * one_tile_rows, 768) == 1000 * 10 * 8


def test_the_ladder_verifies_then_times_every_rung(warm):
    """In Triton's interpreter where there is no GPU, and so in a process of its own."""
    code = """if True:
        import json, torch
        from flashkat_lite.bench import ladder
        if not torch.cuda.is_available():
            from flashkat_lite._interpreter import quicken
            quicken()
        data = ladder.ladder(5, (24,), (torch.float32, torch.bfloat16), 0.001, False)
        print("\\n" + json.dumps(data))
    """
    environment = os.environ | ({} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"})
    command = warm([sys.executable, "-c", code])
    answer = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("agrees with the reference") == 2
    results = json.loads(answer.stdout.splitlines()[-1])["results"]
    timed = {(line["dtype"], line["what"]) for line in results}
    assert {("float32", f"backward_{name}") for name in ops.BACKWARDS} <= timed
    assert ("bfloat16", "backward_atomic") not in timed and ("bfloat16", "backward_block") in timed
    by_what = {line["what"]: line for line in results if line["dtype"] == "float32"}
    assert by_what["forward"]["bytes"] == 2 * 5 * 24 * 4 and by_what["gelu_backward"]["bytes"] == 3 * 5 * 24 * 4
    for what, limit in {"forward": "copy", "eager_backward": "add"}.items():
        share = by_what[limit]["ms"] / by_what[what]["ms"]
        assert by_what[what]["fraction_of_limit"] == pytest.approx(share)
    assert all(line["low"] <= line["ms"] <= line["high"] and line["repeats"] >= 3 for line in results)


@pytest.mark.parametrize("spoiled", range(4))
def test_verification_notices_a_wrong_kernel(monkeypatch, spoiled):
    """y, dx, dnumerator and ddenominator, each off by one part in a thousand in one place."""

    def spoil(tensor, place):
        if place == spoiled:
            tensor.view(-1)[tensor.abs().argmax()] *= 1.001
        return tensor

    kernel = types.SimpleNamespace(forward=lambda *inputs: spoil(rational_reference(*inputs), 0))
    monkeypatch.setitem(sys.modules, "flashkat_lite.kernels.forward", kernel)

    def backward(*inputs):
        return [spoil(gradient, place) for place, gradient in enumerate(rational_gradients(*inputs), 1)]

    monkeypatch.setitem(ops.BACKWARDS, "block", backward)
    inputs = testing.random_inputs(37, 48)
    with pytest.raises(AssertionError, match=["y", "dx", "dnumerator", "ddenominator"][spoiled]):
        testing.check_kernels(*inputs, ["block"])
    monkeypatch.setattr(kernel, "forward", rational_reference)
    monkeypatch.setitem(ops.BACKWARDS, "block", rational_gradients)
    testing.check_kernels(*inputs, ["block"])
