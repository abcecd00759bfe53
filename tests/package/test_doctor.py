import itertools
import json
import os
import platform
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

import flashkat_lite.__main__ as command
from flashkat_lite import hardware, ops
from flashkat_lite.reference import rational_gradients, rational_reference

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="what happens without a GPU")
H200 = hardware.Device("NVIDIA H200", "h200", "9.0", 132, 2**37, 60 * 2**20, "580.159.04", 4.8e12)


def by_name(findings):
    return {finding.name: finding for finding in findings}


@without_gpu
def test_doctor_says_what_is_there_and_for_each_thing_missing_what_to_do(capsys, monkeypatch):
    monkeypatch.setattr(command, "check_interpreter", lambda: None)
    monkeypatch.setattr(command.shutil, "which", lambda name: None)
    assert command.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f" ok  Python           {platform.python_version()} on {platform.system()} {platform.machine()}"
    missing = [line.split()[1] for line in lines if line.startswith(" --")]
    assert {"GPU", "ncu", "make", "npm", "chromium"} <= set(missing)
    assert all(after.strip().startswith("->") for line, after in itertools.pairwise(lines) if line.startswith(" --"))
    assert max(map(len, lines)) <= 130 and "".join(lines).isascii(), "fits a terminal, and any encoding"


@without_gpu
def test_doctor_in_json_is_one_document_with_the_versions(capsys, monkeypatch):
    monkeypatch.setattr(command, "check_interpreter", lambda: None)
    assert command.main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["versions"]["torch"] == torch.__version__
    assert {"name", "status", "value", "advice"} == set(report["findings"][0])


def test_doctor_fails_only_where_the_reference_does(capsys, monkeypatch):
    def broken():
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(command, "check_interpreter", broken)
    monkeypatch.setattr(command, "check_kernels", broken)
    assert command.main(["doctor"]) == 0
    assert "RuntimeError: first line\n" in capsys.readouterr().out
    monkeypatch.setattr(command, "check_reference", broken)
    assert command.main(["doctor"]) == 1


@pytest.mark.parametrize(
    "system,words", [("Darwin", "none for Darwin"), ("Windows", "none for Windows"), ("Linux", "not installed")]
)
def test_without_triton_doctor_says_whether_it_can_be_had(monkeypatch, system, words):
    monkeypatch.setattr(command.platform, "system", lambda: system)
    finding = command._triton(None)
    assert finding.status == "missing" and words in finding.value and finding.advice


@without_gpu
def test_the_command_runs_where_triton_cannot_be_imported(tmp_path):
    """As on macOS and Windows: a stand-in that refuses comes first on the path."""
    (tmp_path / "triton.py").write_text("raise ImportError('no Triton here')", encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), str(Path(command.__file__).parents[1])])
    code = (
        "import flashkat_lite.__main__ as c; versions = c.hardware.versions() | {'triton': None};"
        "c.hardware.versions = lambda: versions; raise SystemExit(c.main(['doctor']))"
    )
    answer = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True)
    assert answer.returncode == 0, answer.stderr.decode()
    assert b"--  Triton" in answer.stdout and b"ok  reference" in answer.stdout and b"interpreter " not in answer.stdout


@pytest.mark.parametrize(
    "smi,cuda,words", [(None, None, "none"), ("nvidia-smi", None, "without CUDA"), ("nvidia-smi", "13.0", "not start")]
)
def test_doctor_tells_no_gpu_from_no_cuda_build_from_no_driver(monkeypatch, smi, cuda, words):
    monkeypatch.setattr(command.shutil, "which", lambda name: smi)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    value, advice = command._why_no_gpu()
    assert words in value and "interpreter" in advice


@pytest.mark.parametrize("measured,share,advice", [(4200.0, "88%", False), (2000.0, "42%", True)])
def test_with_a_gpu_doctor_compares_the_measured_copy_with_the_datasheet(monkeypatch, measured, share, advice):
    monkeypatch.setattr(hardware, "measured_copy_bandwidth", lambda: measured)
    monkeypatch.setattr(command, "check_kernels", lambda: None)
    found = by_name(command._gpu(H200, "3.7.1"))
    assert found["GPU"].value == "NVIDIA H200" and found["driver"].value == "580.159.04"
    assert share in found["copy bandwidth"].value and "4800" in found["copy bandwidth"].value
    assert bool(found["copy bandwidth"].advice) == advice
    assert found["kernels"].status == "ok" and "interpreter" not in found
    assert "kernels" not in by_name(command._gpu(H200, None)), "there are none without Triton"


@pytest.mark.parametrize(
    "restricted,capabilities,expected",
    [
        (1, "0000000000000000", False),
        (1, "00000000a80425fb", False),
        (1, "000001ffffffffff", True),
        (0, "0" * 16, True),
    ],
)
def test_counters_are_readable_by_administrators_or_by_all_as_the_driver_was_told(
    tmp_path, restricted, capabilities, expected
):
    for path, text in {
        "driver/nvidia/params": f"EnableMSI: 1\nRmProfilingAdminOnly: {restricted}\n",
        "self/status": f"Name:\tpython\nCapPrm:\t{'f' * 16}\nCapEff:\t{capabilities}\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(text, encoding="utf-8")
    assert command.may_read_counters(tmp_path) is expected


@pytest.mark.parametrize("allowed,status", [(True, "ok"), (False, "missing")])
def test_doctor_reports_ncu_and_whether_it_may_count(monkeypatch, allowed, status):
    text = "NVIDIA (R) Nsight Compute Command Line Profiler\nVersion 2025.3.1.0 (build 1)\n"
    monkeypatch.setattr(command.shutil, "which", lambda name: "/usr/bin/ncu")
    monkeypatch.setattr(command.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0, stdout=text))
    monkeypatch.setattr(command, "may_read_counters", lambda: allowed)
    finding = command._ncu()
    assert finding.status == status and finding.value.startswith("Version 2025.3.1.0")
    assert ("NVreg" in finding.advice) != allowed


@without_gpu
def test_bench_refuses_without_a_gpu(capsys):
    assert command.main(["bench"]) == 2
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_bench_asks_where_to_write_outside_the_repository(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(hardware, "device", lambda: H200)
    monkeypatch.setattr(command, "__file__", str(tmp_path / "flashkat_lite" / "__main__.py"))
    assert command.main(["bench"]) == 2
    assert "--out" in capsys.readouterr().out


def test_bench_writes_a_record(monkeypatch, tmp_path):
    monkeypatch.setattr(hardware, "device", lambda: H200)
    asked = []
    monkeypatch.setattr(command, "ladder", lambda *arguments: asked.append(arguments) or {"results": []})
    monkeypatch.setattr(command, "beside", lambda data: {"pairs": len(data["results"])})
    out = tmp_path / "deep" / "ladder.json"
    assert command.main(["bench", "--out", str(out)]) == 0
    record = json.loads(out.read_text(encoding="utf-8"))
    assert set(record) == {"experiment", "title", "device", "versions", "date", "command", "data"}
    assert record["experiment"] == "ladder" and record["device"]["slug"] == "h200"
    assert record["data"] == {"results": [], "pairs": 0}
    assert asked[0][:2] == (1024 * 197, (192, 768, 3072))
    assert command.main(["bench", "--quick"]) == 0
    assert asked[1][1] == (768,)


def test_atomic_additions_are_counted():
    pytest.importorskip("triton")
    assert command.atomics("backward_atomic", 1000, 768) == 10 * 1000 * 768
    assert command.atomics("forward", 1000, 768) == 0
    one_tile_rows = next(r for r in range(1, 10**6) if command.atomics("backward_block", r + 1, 768) > 10 * 8)
    assert command.atomics("backward_block", 1000 * one_tile_rows, 768) == 1000 * 10 * 8


def test_the_ladder_verifies_then_times_every_rung(tmp_path):
    """In Triton's interpreter where there is no GPU, and so in a process of its own."""
    pytest.importorskip("triton")
    code = """if True:
        import json, torch, flashkat_lite.__main__ as command
        data = command.ladder(20, (24,), (torch.float32, torch.bfloat16), 0.01, False)
        print("\\n" + json.dumps(data))
    """
    environment = os.environ | ({} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"})
    answer = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, encoding="utf-8")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("agrees with the reference") == 2
    results = json.loads(answer.stdout.splitlines()[-1])["results"]
    timed = {(line["dtype"], line["what"]) for line in results}
    assert {("float32", f"backward_{name}") for name in ops.BACKWARDS} <= timed
    assert ("bfloat16", "backward_atomic") not in timed and ("bfloat16", "backward_block") in timed
    by_what = {line["what"]: line for line in results if line["dtype"] == "float32"}
    assert by_what["forward"]["bytes"] == 2 * 20 * 24 * 4 and by_what["gelu_backward"]["bytes"] == 3 * 20 * 24 * 4
    for what, floor in {"forward": "copy", "eager_backward": "add"}.items():
        share = by_what[floor]["ms"] / by_what[what]["ms"]
        assert by_what[what]["fraction_of_floor"] == pytest.approx(share)
    assert all(line["low"] <= line["ms"] <= line["high"] and line["repeats"] >= 3 for line in results)


@pytest.mark.parametrize("spoiled", range(4))
def test_verification_notices_a_wrong_kernel(monkeypatch, spoiled):
    """y, dx, dnumerator and ddenominator, each off by one part in a thousand in one place."""

    def spoil(tensor, place):
        if place == spoiled:
            tensor.view(-1)[tensor.abs().argmax()] *= 1.001
        return tensor

    kernel = types.SimpleNamespace(forward=lambda *inputs: spoil(rational_reference(*inputs), 0))
    monkeypatch.setitem(sys.modules, "flashkat_lite.kernels", types.SimpleNamespace(forward=kernel, INTERPRETED=False))
    monkeypatch.setitem(sys.modules, "flashkat_lite.kernels.forward", kernel)

    def backward(*inputs):
        return [spoil(gradient, place) for place, gradient in enumerate(rational_gradients(*inputs), 1)]

    monkeypatch.setitem(ops.BACKWARDS, "block", backward)
    inputs = command.random_inputs(37, 48, torch.float32)
    with pytest.raises(AssertionError, match=["y", "dx", "dnumerator", "ddenominator"][spoiled]):
        command.verify(*inputs, ["block"])
    monkeypatch.setattr(kernel, "forward", rational_reference)
    monkeypatch.setitem(ops.BACKWARDS, "block", rational_gradients)
    command.verify(*inputs, ["block"])
