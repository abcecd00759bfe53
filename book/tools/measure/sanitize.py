"""compute-sanitizer on all our kernels at odd shapes: `python book/tools sanitize`, on a GPU. Fails on any error."""

import argparse
import os
import shutil
import subprocess
import sys
import time

import torch

from flashkat_lite import ops

from ..paths import TOOLS

CHECKERS = ("memcheck", "racecheck", "initcheck")
# rows, columns, groups, degrees, dtype: widths that no vector divides, one row, several tiles, a strided gradient
SHAPES = (
    (37, 56, 8, (5, 4), "float32"),
    (1, 24, 1, (3, 2), "bfloat16"),
    (1001, 192, 8, (5, 4), "bfloat16"),
    (333, 800, 8, (6, 5), "float32"),
    (70, 5000, 1, (1, 1), "float16"),
)


def launch_all():
    """Every kernel once at each shape, x and dy contiguous and as columns of wider tensors.

    Inputs are made on the CPU: the fewer kernels of PyTorch's run, the less there is to instrument.
    """
    from flashkat_lite.kernels.forward import forward

    torch.manual_seed(0)
    for rows, columns, groups, (m, n), dtype in SHAPES:
        dtype = getattr(torch, dtype)
        start = time.perf_counter()
        a, b = torch.randn(groups, m + 1).cuda(), torch.randn(groups, n).cuda()
        wide = torch.randn(2, rows, columns + 24).to(dtype)
        for x, dy in (wide[:, :, :columns].contiguous().cuda(), wide.cuda()[:, :, :columns]):
            forward(x, a, b)
            for backward in ops.BACKWARDS.values():
                backward(dy, x, a, b)
        torch.cuda.synchronize()
        print(f"{rows} × {columns}, {dtype}: {time.perf_counter() - start:.1f} s", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--launch", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--tools", nargs="+", choices=CHECKERS, default=CHECKERS, help="which to run (default: all)")
    options = parser.parse_args()
    if options.launch:
        launch_all()
        return 0
    if not torch.cuda.is_available() or shutil.which("compute-sanitizer") is None:
        print("This needs a CUDA device and compute-sanitizer, of the CUDA toolkit, on the PATH.")
        return 2
    # Each tensor in an allocation of its own, so that a step beyond its end is seen.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    failed = 0
    for tool in options.tools:
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
        if tool != "initcheck":  # which must see every write, PyTorch's zeros too
            for name in ("forward", "backward", "sum_partials"):
                command += ["--kernel-name", f"kns={name}"]
        print(f"{tool} …", flush=True)
        done = subprocess.run([*command, sys.executable, str(TOOLS), "sanitize", "--launch"], env=environment)
        print(f"{tool}: exit {done.returncode}", flush=True)
        failed += done.returncode != 0
    return 1 if failed else 0
