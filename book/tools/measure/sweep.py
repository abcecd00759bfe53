"""The launches that the kernels choose, against a sweep of others: `python book/tools sweep [--out FILE]`, on a GPU.

Writes _build/records/<gpu>/sweep.json. The rule is `launch_size` of each kernel's file.
"""

import argparse
import functools
import itertools
from pathlib import Path

import torch

from flashkat_lite import hardware, records
from flashkat_lite.testing import random_inputs

ROWS, WIDTHS, DTYPES = 1024 * 197, (192, 768, 3072), (torch.float32, torch.bfloat16)
FORWARD = [(128, 1), (128, 2), (128, 4), (256, 1), (256, 2), (512, 1), (512, 2)]  # positions, UNROLL
BACKWARD = list(itertools.product((128, 256), (2, 3, 4), (1, 2), (3, 4)))  # positions, programs, UNROLL, STAGES


def sweep(rows, columns, dtype, seconds):
    """The best launch and the rule's, for each kernel: a list of records' rows."""
    from flashkat_lite.kernels import backward_stationary as backward
    from flashkat_lite.kernels import forward

    dy, x, a, b = random_inputs(rows, columns, dtype=dtype)
    found = []
    for name, rule, sizes, call in (
        ("forward", forward.launch_size(), FORWARD, lambda size: forward.forward(x, a, b, size)),
        (
            "backward",
            backward.launch_size(x.element_size(), x.device),
            BACKWARD,
            lambda size: backward.backward_stationary(dy, x, a, b, size),
        ),
    ):
        variants = {size: functools.partial(call, size) for size in [rule, *sizes]}
        times = hardware.time_interleaved(variants, seconds=seconds, most=40, warmup=0.0)
        best = min(times, key=lambda size: times[size].median)
        found.append(
            dict(
                kernel=name,
                columns=columns,
                dtype=str(dtype).removeprefix("torch."),
                rule=list(rule),
                rule_ms=times[rule].median,
                best=list(best),
                best_ms=times[best].median,
                slower=times[rule].median / times[best].median - 1,
                all={",".join(map(str, size)): t.median for size, t in times.items()},
            )
        )
        line = found[-1]
        print(
            f"{line['dtype']:<9} D = {columns:<5} {name:<9} rule {rule} {line['rule_ms']:.4f} ms, best {best} "
            f"{line['best_ms']:.4f} ms: {100 * line['slower']:.1f} % slower",
            flush=True,
        )
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    if hardware.device() is None:
        print("The sweep needs a CUDA device, and there is none here.")
        return 2
    results = [line for d, c in itertools.product(DTYPES, WIDTHS) for line in sweep(ROWS, c, d, 0.1)]
    record = records.make(
        "sweep",
        title="The kernels' own launches against a sweep",
        command="python book/tools sweep",
        data={"rows": ROWS, "groups": 8, "degrees": [5, 4], "results": results},
    )
    path = out or records.fresh_path("sweep")
    record.save(path)
    print(f"Written: {path}")
    return 0
