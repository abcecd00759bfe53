import itertools
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flashkat_lite import __main__ as command
from flashkat_lite import doctor, hardware

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="what happens without a GPU")


def by_name(findings):
    return {finding.name: finding for finding in findings}


@without_gpu
def test_doctor_says_what_is_there_and_for_each_thing_missing_what_to_do(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "check_interpreter", lambda: None)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert command.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f" ok  Python           {platform.python_version()} on {platform.system()} {platform.machine()}"
    missing = [line.split()[1] for line in lines if line.startswith(" --")]
    assert {"GPU", "ncu", "make", "npm", "chromium"} <= set(missing)
    assert all(after.strip().startswith("->") for line, after in itertools.pairwise(lines) if line.startswith(" --"))
    assert max(map(len, lines)) <= 130 and "".join(lines).isascii(), "fits a terminal, and any encoding"


def test_of_what_the_tests_can_do_without_doctor_says_what_is_missing(capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("FLASHKAT_CHROMIUM", raising=False)
    monkeypatch.setattr(doctor, "CHROMIUM_NAMES", ("chromium",))
    assert command.main(["doctor", "--optional"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[:4:2]] == ["chromium", "npm"]
    assert all("->" in line for line in lines[1::2])
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(hardware, "versions", lambda: {"triton": "3.7.1"})
    assert command.main(["doctor", "--optional"]) == 0 and capsys.readouterr().out == ""


@without_gpu
def test_doctor_in_json_is_one_document_with_the_versions_and_says_that_a_home_is_missing(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "check_interpreter", lambda: None)
    monkeypatch.setenv("HOME", "/tmp/flashkat-home-1")
    assert command.main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["versions"]["torch"] == torch.__version__
    assert {"name", "status", "value", "advice"} == set(report["findings"][0])
    assert [f["status"] for f in report["findings"] if f["name"] == "home"] == ["missing"]


def test_doctor_fails_only_where_the_reference_does(capsys, monkeypatch):
    def broken():
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(doctor, "check_interpreter", broken)
    monkeypatch.setattr(doctor, "kernels_agree", broken)
    assert command.main(["doctor"]) == 0
    assert "RuntimeError: first line\n" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "check_reference", broken)
    assert command.main(["doctor"]) == 1


@pytest.mark.parametrize(
    "system,words", [("Darwin", "none for Darwin"), ("Windows", "none for Windows"), ("Linux", "not installed")]
)
def test_without_triton_doctor_says_whether_it_can_be_had(monkeypatch, system, words):
    monkeypatch.setattr(doctor.platform, "system", lambda: system)
    finding = doctor._triton(None)
    assert finding.status == "missing" and words in finding.value and finding.advice


@without_gpu
def test_the_command_runs_where_triton_cannot_be_imported(tmp_path):
    """As on macOS and Windows: a stand-in that refuses comes first on the path."""
    (tmp_path / "triton.py").write_text("raise ImportError('no Triton here')", encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), str(Path(doctor.__file__).parents[1])])
    code = (
        "import flashkat_lite.__main__ as c; from flashkat_lite import hardware;"
        "versions = hardware.versions() | {'triton': None};"
        "hardware.versions = lambda: versions; raise SystemExit(c.main(['doctor']))"
    )
    answer = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True)
    assert answer.returncode == 0, answer.stderr.decode()
    assert b"--  Triton" in answer.stdout and b"ok  reference" in answer.stdout and b"interpreter " not in answer.stdout


@pytest.mark.parametrize(
    "smi,cuda,words", [(None, None, "none"), ("nvidia-smi", None, "without CUDA"), ("nvidia-smi", "13.0", "not start")]
)
def test_doctor_tells_no_gpu_from_no_cuda_build_from_no_driver(monkeypatch, smi, cuda, words):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: smi)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    value, advice = doctor._why_no_gpu()
    assert words in value and "interpreter" in advice


@pytest.mark.parametrize("measured,share,advice", [(4200.0, "88%", False), (2000.0, "42%", True)])
def test_with_a_gpu_doctor_compares_the_measured_copy_with_the_datasheet(monkeypatch, h200, measured, share, advice):
    monkeypatch.setattr(hardware, "measured_copy_bandwidth", lambda: measured)
    monkeypatch.setattr(doctor, "kernels_agree", lambda: None)
    found = by_name(doctor._gpu(h200, "3.7.1"))
    assert found["GPU"].value == "NVIDIA H200" and found["driver"].value == "580.159.04"
    assert share in found["copy bandwidth"].value and "4800" in found["copy bandwidth"].value
    assert bool(found["copy bandwidth"].advice) == advice
    assert found["kernels"].status == "ok" and "interpreter" not in found
    assert "kernels" not in by_name(doctor._gpu(h200, None)), "there are none without Triton"


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
    assert doctor.may_read_counters(tmp_path) is expected


@pytest.mark.parametrize("allowed,status", [(True, "ok"), (False, "missing")])
def test_doctor_reports_ncu_and_whether_it_may_count(monkeypatch, allowed, status):
    text = "NVIDIA (R) Nsight Compute Command Line Profiler\nVersion 2025.3.1.0 (build 1)\n"
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/ncu")
    monkeypatch.setattr(doctor.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0, stdout=text))
    monkeypatch.setattr(doctor, "may_read_counters", lambda: allowed)
    finding = doctor._ncu()
    assert finding.status == status and finding.value.startswith("Version 2025.3.1.0")
    assert ("NVreg" in finding.advice) != allowed
