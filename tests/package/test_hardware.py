import datetime
import itertools
import json
import subprocess
import time

import pytest
import torch

from flashkat_lite import hardware

SLUGS = {
    "NVIDIA H200": "h200",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H100 PCIe": "h100-pcie",
    "NVIDIA A100-SXM4-40GB": "a100",
    "NVIDIA A100 80GB PCIe": "a100-pcie",
    "NVIDIA GH200 144G HBM3e": "gh200",
    "NVIDIA H100 80GB HBM3 MIG 1g.10gb": "h100-mig-1g-10gb",
    "Tesla T4": "t4",
    "NVIDIA GeForce RTX 4090": "rtx-4090",
    "NVIDIA GeForce RTX 3080 Ti Laptop GPU": "rtx-3080-ti-laptop",
    "AMD Instinct MI300X": "mi300x",
}


@pytest.mark.parametrize("name", SLUGS)
def test_slug(name):
    assert hardware.slug(name) == SLUGS[name]


def test_every_gpu_of_the_datasheet_table_has_a_slug_that_can_name_a_folder():
    for name in hardware.DATASHEET_BANDWIDTH:
        assert hardware.slug(name).replace("-", "").isalnum()


def test_schedule_gives_each_function_its_calls_evenly_and_at_most_one_a_round():
    repeats = {"fast": 100, "middling": 37, "slow": 3}
    rounds = hardware.schedule(repeats)
    assert len(rounds) == 100
    for name, count in repeats.items():
        assert sum(names.count(name) for names in rounds) == count
        assert max(names.count(name) for names in rounds) == 1
    slow = [i for i, names in enumerate(rounds) if "slow" in names]
    assert max(b - a for a, b in itertools.pairwise(slow)) <= 34
    assert hardware.schedule({}) == []


def test_summary_is_median_and_quantiles():
    timing = hardware.summary([5.0, 1.0, 2.0, 4.0, 3.0, 6.0])
    assert timing.repeats == 6
    assert (timing.median, timing.low, timing.high) == pytest.approx((3.5, 2.0, 5.0))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the processor's clock is used without a GPU only")
def test_time_interleaved_on_a_cpu_times_each_function_and_alternates():
    calls = []

    def sleeper(name, seconds):
        def function():
            calls.append(name)
            time.sleep(seconds)

        return function

    functions = {"short": sleeper("short", 0.002), "long": sleeper("long", 0.02)}
    timings = hardware.time_interleaved(functions, seconds=0.1, warmup=0, most=20)
    assert 1.9 < timings["short"].median < timings["long"].median
    assert timings["long"].median > 19
    assert timings["short"].repeats > timings["long"].repeats >= 3
    assert "short" in calls[calls.index("long") + 2 : -2], "the short calls run among the long ones"
    assert all(t.low <= t.median <= t.high for t in timings.values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="faked GPU")
def test_time_interleaved_on_a_gpu_flushes_before_every_timed_call_and_reads_clocks_last(monkeypatch):
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append("record")

        def synchronize(self):
            log.append("wait")

        def elapsed_time(self, end):
            return 100.0

    class Scratch:
        def zero_(self):
            log.append("flush")

        def view(self, dtype):
            return self

        def sum(self):
            log.append("read")

    sizes = []
    facts = hardware.Device("NVIDIA H200", "h200", "9.0", 132, 2**37, 60 * 2**20, None, None)
    monkeypatch.setattr(hardware, "device", lambda: facts)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch, "empty", lambda size, **options: sizes.append(size) or Scratch())
    cycles = []
    monkeypatch.setattr(torch.cuda, "_sleep", cycles.append)
    timings = hardware.time_interleaved({"f": lambda: log.append("f")}, seconds=0.3, warmup=0)
    assert sizes[0] >= 4 * facts.l2_bytes
    timed = ["flush", "record", "f", "record"]
    assert log == ["f"] + timed + ["wait"] + 3 * timed + 3 * ["wait"]
    assert timings["f"] == hardware.Timing(100.0, 100.0, 100.0, 3)

    log.clear()
    hardware.time_interleaved({"f": lambda: log.append("f")}, seconds=0.3, warmup=0, cold_l2=False)
    assert "flush" not in log and log[1:5] == ["f", "record", "f", "record"]

    log.clear()
    hardware.time_interleaved({"f": lambda: log.append("f")}, seconds=0.3, warmup=0, clean=True)
    assert "flush" not in log and log[1:5] == ["read", "record", "f", "record"], "nothing is left to be written back"

    cycles.clear()
    slow = {"f": lambda: time.sleep(1e-3)}
    hardware.time_interleaved(slow, seconds=0.3, warmup=0, cold_l2=False)
    assert not cycles
    hardware.time_interleaved(slow, seconds=0.3, warmup=0)
    assert len(cycles) == 3 and min(cycles) >= 2 * 1e-3 * 2e9, "the host's millisecond is not the function's"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_limits_compute_what_they_are_named_after(dtype):
    functions = hardware.limits(5, 7, dtype)
    copy, total = functions["copy"]().clone(), functions["add"]()
    assert copy.shape == total.shape == (5, 7)
    assert copy.dtype == total.dtype == dtype
    assert copy.float().abs().sum() > 0 and not torch.equal(copy, total)
    assert hardware.limit_bytes(5, 7, dtype) == {"copy": 70 * dtype.itemsize, "add": 105 * dtype.itemsize}


def test_a_limit_is_the_fastest_of_its_kernels_at_that_size(monkeypatch):
    monkeypatch.setattr(hardware, "_FASTEST", {})
    timed = []

    def time(functions, **options):
        timed.append(list(functions))
        return {name: hardware.Timing(ms, 0.0, 0.0, 3) for name, ms in zip(functions, (0.3, 0.2, 0.25))}

    monkeypatch.setattr(hardware, "time_interleaved", time)
    three = dict.fromkeys(("PyTorch", "a", "b"))
    for _ in range(2):
        assert hardware._fastest("add", 5, 7, torch.float32, three) == "a"
    assert hardware.limit_kernels(5, 7) == {"copy": "PyTorch", "add": "a"}
    assert hardware._fastest("add", 5, 8, torch.float32, three) == "a"
    assert timed == [["PyTorch", "a", "b"]] * 2


def test_bandwidth_is_in_units_of_1e9_bytes_a_second():
    assert hardware.bandwidth(4.8e9, 1.0) == pytest.approx(4800)
    assert hardware.measured_copy_bandwidth(2**20) > 0.01


def test_provenance_can_be_written_as_json_and_names_what_a_measurement_depends_on():
    record = json.loads(json.dumps(hardware.provenance(count=2)))
    assert set(record) == {"device", "versions", "date"}
    assert set(record["versions"]) == {"python", "torch", "triton", "flashkat_lite"}
    assert record["versions"]["torch"] == torch.__version__
    assert datetime.date.fromisoformat(record["date"])
    if torch.cuda.is_available():
        assert record["device"]["count"] == 2 and record["device"]["slug"]
    else:
        assert record["device"] is None


def test_nvidia_smi_gives_the_first_line_or_none(monkeypatch):
    answers = {0: "580.159.04\n580.159.04\n", 9: ""}
    for code, text in answers.items():
        answer = subprocess.CompletedProcess([], code, stdout=text)
        monkeypatch.setattr(hardware.shutil, "which", lambda name: name)
        monkeypatch.setattr(hardware.subprocess, "run", lambda *a, answer=answer, **k: answer)
        assert hardware._nvidia_smi("driver_version") == (None if code else "580.159.04")
    monkeypatch.setattr(hardware.shutil, "which", lambda name: None)
    assert hardware._nvidia_smi("driver_version") is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_described_and_its_copy_stays_below_the_datasheet():
    facts = hardware.device()
    assert facts.name and facts.multiprocessors > 0 and facts.l2_bytes > 0 and facts.memory_bytes > 2**30
    measured = hardware.measured_copy_bandwidth() * 1e9
    assert measured > 1e10
    if facts.datasheet_bandwidth:
        assert 0.5 < measured / facts.datasheet_bandwidth < 1.02
