"""compute-sanitizer on all our kernels at odd shapes: `python book/tools/sanitize.py`, on a GPU. Fails on any error."""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("memcheck", "racecheck", "initcheck")
# rows, columns, groups, degrees, dtype: widths that no vector divides, one row, several tiles, a strided gradient
SHAPES = (
    (37, 56, 8, (5, 4), "float32"),
    (1, 24, 1, (3, 2), "bfloat16"),
    (1001, 192, 8, (5, 4), "bfloat16"),
    (333, 800, 8, (6, 5), "float32"),
    (70, 5000, 1, (1, 1), "float16"),
)


def launch_all():
    """Every kernel once at each shape, x and dy contiguous and as columns of wider tensors."""
    import torch

    from flashkat_lite import ops
    from flashkat_lite.kernels.forward import forward

    torch.manual_seed(0)
    for rows, columns, groups, (m, n), dtype in SHAPES:
        dtype = getattr(torch, dtype)
        a, b = torch.randn(groups, m + 1, device="cuda"), torch.randn(groups, n, device="cuda")
        wide = torch.randn(2, rows, columns + 24, device="cuda").to(dtype)
        for x, dy in (wide[:, :, :columns].contiguous(), wide[:, :, :columns]):
            forward(x, a, b)
            for backward in ops.BACKWARDS.values():
                backward(dy, x, a, b)
    torch.cuda.synchronize()
    print(f"{len(SHAPES)} shapes ran")


def main():
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--launch", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=TOOLS, help="which to run (default: all)")
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
        for name in ("forward", "backward", "sum_partials"):
            command += ["--kernel-name", f"kns={name}"]
        done = subprocess.run([*command, sys.executable, __file__, "--launch"], env=environment, capture_output=True)
        lines = done.stdout.decode(errors="replace").strip().splitlines()
        print(f"{tool}: exit {done.returncode}; " + " ".join(lines[-2:]), flush=True)
        if done.returncode:
            print("\n".join(lines[-40:]), done.stderr.decode(errors="replace")[-2000:])
        failed += done.returncode != 0
    return 1 if failed else 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
