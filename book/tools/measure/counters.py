"""Nsight Compute's counters of our kernels, on a GPU where ncu may read them: `python book/tools counters`.

Writes _build/records/<gpu>/counters.json: throughputs, issue, registers, and the cycles that a warp waits for each
reason between two instructions it issues. Clocks are left as they are (`--clock-control none`).
"""

import argparse
import csv
import io
import subprocess
import sys
import tempfile
from pathlib import Path

from flashkat_lite import hardware, ops, records
from flashkat_lite.testing import random_inputs

from ..paths import TOOLS

SMALL, FULL, COLUMNS = 64 * 197, 1024 * 197, 768  # the atomic kernel alone would take a second at full size
METRICS = {
    "gpu__time_duration.sum": "ns",
    "smsp__inst_executed.sum": "warp_instructions",
    "smsp__issue_active.avg.pct_of_peak_sustained_active": "issue_active_percent",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "sm_percent",
    "l1tex__throughput.avg.pct_of_peak_sustained_active": "l1_percent",
    "lts__throughput.avg.pct_of_peak_sustained_elapsed": "l2_percent",
    "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed": "dram_percent",
    "dram__bytes.sum": "dram_bytes",
    "lts__t_sectors_op_red.sum": "l2_reduction_sectors",
    "lts__t_sectors_op_atom.sum": "l2_atomic_sectors",
    "sm__inst_executed_pipe_fma.avg.pct_of_peak_sustained_active": "fma_pipe_percent",
    "sm__inst_executed_pipe_alu.avg.pct_of_peak_sustained_active": "alu_pipe_percent",
    "sm__inst_executed_pipe_xu.avg.pct_of_peak_sustained_active": "xu_pipe_percent",
    "sm__warps_active.avg.per_cycle_active": "warps_active",
    "smsp__warps_eligible.avg.per_cycle_active": "warps_eligible",
    "launch__registers_per_thread": "registers",
    "smsp__cycles_active.avg": "cycles",
}
STALL = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
STALLS = (
    "barrier", "branch_resolving", "dispatch_stall", "drain", "imc_miss", "lg_throttle", "long_scoreboard",
    "math_pipe_throttle", "membar", "mio_throttle", "misc", "no_instruction", "not_selected", "selected",
    "short_scoreboard", "sleeping", "tex_throttle", "wait",
)  # fmt: skip
# Of the L2's slices: a mean hides one that never rests, so each has its maximum, too.
SLICES = {
    "lts__t_sectors_op_atom": "l2_atomic_sectors",
    "lts__t_sectors_op_red": "l2_reduction_sectors",
    "lts__d_atomic_input_cycles_active": "l2_atomic_input_cycles",
    "lts__cycles_elapsed": "l2_cycles",
    "lts__t_sectors_srcunit_ltcfabric": "l2_fabric_sectors",
}
OVER = ("avg", "max", "min", "sum")
RUNS = (  # name, rung or forward, rows, dtype; each launches its kernels once
    ("atomic_float32", "atomic", SMALL, "float32"),
    ("block_float32", "block", FULL, "float32"),
    ("stationary_float32", "stationary", FULL, "float32"),
    ("stationary_bfloat16", "stationary", FULL, "bfloat16"),
    ("block_bfloat16", "block", FULL, "bfloat16"),
    ("forward_float32", "forward", FULL, "float32"),
    ("forward_bfloat16", "forward", FULL, "bfloat16"),
)


def launch_all():
    """What ncu looks at: after a warm-up, each run's kernels between two marks of the profiler."""
    import torch

    from flashkat_lite.kernels.forward import forward

    for measured in (False, True):
        if measured:
            torch.cuda.profiler.start()
        for _, what, rows, dtype in RUNS:
            dy, x, a, b = random_inputs(rows, COLUMNS, dtype=getattr(torch, dtype))
            torch.cuda.synchronize()
            forward(x, a, b) if what == "forward" else ops.BACKWARDS[what](dy, x, a, b)
            torch.cuda.synchronize()
    torch.cuda.profiler.stop()


def capture(slices=True):
    """ncu's table: a row for each kernel launch, as dictionaries by metric.

    Not every version of ncu knows what SLICES asks for: then the table is made again without.
    """
    asked = [*METRICS, *(STALL.format(name) for name in STALLS)]
    asked += [f"{unit}.{over}" for unit in SLICES for over in OVER] if slices else []
    metrics = ",".join(asked)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report"
        run = ["ncu", "--clock-control", "none", "--profile-from-start", "off"]
        run += ["-k", "regex:^(forward|backward).*_kernel$"]
        run += ["--metrics", metrics, "-f", "-o", str(report), sys.executable, str(TOOLS), "counters", "--launch"]
        done = subprocess.run(run, capture_output=True, encoding="utf-8", errors="replace")
        if done.returncode and slices:
            print(f"Without the slices of the L2, which this ncu does not count:\n{done.stdout[-500:]}")
            return capture(slices=False)
        if done.returncode:
            sys.exit(f"ncu failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        show = ["ncu", "--import", f"{report}.ncu-rep", "--csv", "--page", "raw", "--print-units", "base"]
        text = subprocess.run(show, capture_output=True, encoding="utf-8", check=True).stdout
    header, _, *rows = csv.reader(io.StringIO(text))
    return [dict(zip(header, row)) for row in rows]


def number(text):
    return float(text.replace(",", "")) if text not in ("", "n/a") else None


def results(rows):
    """One entry for each run: its main kernel's figures."""
    found = {}
    ours = [row for row in rows if row["Kernel Name"].startswith(("forward", "backward"))]
    for (name, what, count, dtype), row in zip(RUNS, ours, strict=True):
        figures = {key: number(row[metric]) for metric, key in METRICS.items() if metric in row}
        stalls = {key: number(row[STALL.format(key)]) for key in STALLS if STALL.format(key) in row}
        found[name] = dict(kernel=row["Kernel Name"], rung=what, rows=count, columns=COLUMNS, dtype=dtype)
        found[name] |= figures | {"stalls": {k: v for k, v in stalls.items() if v}}
        if slices := slices_of(row):
            found[name]["slices"] = slices
    return found


def slices_of(row):
    """{name: {"avg", "max", "min", "sum"}} of what the slices of the L2 did, as far as ncu's row tells."""
    told = {
        key: {
            over: number(row[f"{unit}.{over}"]) for over in OVER if row.get(f"{unit}.{over}") not in (None, "", "n/a")
        }
        for unit, key in SLICES.items()
    }
    return {key: figures for key, figures in told.items() if figures}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--launch", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if hardware.device() is None:
        print("Counters need a CUDA device, and there is none here.")
        return 2
    if options.launch:
        launch_all()
        return 0
    version = subprocess.run(["ncu", "--version"], capture_output=True, encoding="utf-8").stdout
    record = records.make(
        "counters",
        title="What Nsight Compute counted",
        command="python book/tools counters",
        data={"ncu": version.strip().splitlines()[-1], "groups": 8, "degrees": [5, 4], "runs": results(capture())},
    )
    path = options.out or records.fresh_path("counters")
    record.save(path)
    for name, run in record.data["runs"].items():
        share = {key: run.get(key) for key in ("ns", "issue_active_percent", "dram_percent", "registers")}
        print(name, share, dict(sorted(run["stalls"].items(), key=lambda s: -s[1])[:4]))
    print(f"Written: {path}")
    return 0
