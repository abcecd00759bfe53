"""`python -m flashkat_lite xray module:function --shape 201728x768`: a forecast from the command line.

The function takes its tensors in the order of `--shape`, then the values of `--arg`. A Triton kernel is launched itself
where `--grid` says how; its constants and options come from `--set`.
"""

import argparse
import importlib
import json
import math
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to a parser."""
    parser.add_argument("function", metavar="MODULE:FUNCTION", help="what to call: module:function or file.py:function")
    shape = (
        "a tensor, as 201728x768, 4096:bfloat16, or 4096:int64:50000 for indices below 50,000; once for each, in order"
    )
    parser.add_argument("--shape", action="append", default=[], metavar="SHAPE", help=shape)
    parser.add_argument(
        "--arg", action="append", default=[], metavar="VALUE", help="a number or word after the tensors"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a named argument, such as num_warps=8"
    )
    parser.add_argument("--grid", metavar="X[,Y[,Z]]", help="launch a kernel itself, on this grid")
    parser.add_argument("--dtype", default="float32", help="of tensors that do not say their own; default: float32")
    parser.add_argument("--gpu", default="h200", metavar="NAME,…", help="default: h200; 'all' for every price list")
    parser.add_argument("--sizes", metavar="FROM:TO", help="a sweep of the first dimension, as 1k:1M")
    parser.add_argument("--json", action="store_true", help="print JSON")


def find(what: str) -> Callable:
    """Return the function that module:function names. Raises SystemExit with what is wrong."""
    place, _, name = what.rpartition(":")
    if not place or not name:
        raise SystemExit(f"{what!r}: expected module:function, such as my_kernels:softmax")
    sys.path[:0] = [str(Path.cwd())]
    if place.endswith(".py"):
        path = Path(place).resolve()
        sys.path[:0], place = [str(path.parent)], path.stem
    try:
        module = importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name != place.partition(".")[0] and error.name != place:
            raise
        raise SystemExit(f"there is no module {place!r}") from None
    found = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise SystemExit(f"{place} has no {name!r}")
        found = getattr(found, part)
    return found


def value_of(text: str) -> Any:
    """Return a number, a truth, or the word itself."""
    if text in ("True", "False", "None"):
        return {"True": True, "False": False, "None": None}[text]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def tensor_of(text: str, dtype: str, rows: tuple[int, int] | None = None) -> Any:
    """Return the tensor that a --shape names; rows: (old, new) first dimension, in a sweep."""
    import torch

    shape, _, rest = text.partition(":")
    kind, _, below = rest.partition(":")
    kind = getattr(torch, kind or dtype, None)
    try:
        sizes = [int(n) for n in shape.replace("×", "x").split("x")]
    except ValueError:
        sizes = []
    if not sizes or not isinstance(kind, torch.dtype):
        raise SystemExit(f"--shape {text!r}: expected sizes and a dtype, such as 201728x768 or 4096:int64:50000")
    if rows and sizes[0] == rows[0]:
        sizes[0] = rows[1]
    if kind.is_floating_point:
        return torch.empty(sizes, dtype=kind)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(int(below or 1), sizes, generator=generator, dtype=kind)


def number(text: str) -> int:
    """Return 1024 for 1k, 1048576 for 1M."""
    factor = {"k": 2**10, "M": 2**20, "G": 2**30}.get(text[-1:], 1)
    return int(float(text[: -1 if factor > 1 else None]) * factor)


def sweep_of(text: str) -> list[int]:
    """Return powers of two (and the ends) from FROM to TO, at most nine."""
    first, _, last = text.partition(":")
    try:
        first, last = number(first), number(last)
    except ValueError:
        raise SystemExit(f"--sizes {text!r}: expected FROM:TO, such as 1k:1M") from None
    if not 0 < first <= last:
        raise SystemExit(f"--sizes {text!r}: expected FROM:TO with 0 < FROM ≤ TO")
    steps = min(max(round(math.log2(last / first)), 0), 8)
    return sorted({round(first * (last / first) ** (k / max(steps, 1))) for k in range(steps + 1)})


def run(options: argparse.Namespace) -> int:
    """Print forecasts as the options ask; return the exit status: 1 where there is none."""
    os.environ["TRITON_INTERPRET"] = "1"
    from .xray import Outside, load, names, xray
    from .xray.stage import believing

    gpus = names() if options.gpu == "all" else options.gpu.split(",")
    try:
        known = {gpu: load(gpu) for gpu in gpus}
    except KeyError as error:
        print(error.args[0], file=sys.stderr)
        return 1
    with believing(known[gpus[0]]):  # some look for a GPU when they are imported
        function, name = find(options.function), options.function.rpartition(":")[2]
    settings = {k: value_of(v) for k, _, v in (text.partition("=") for text in options.set)}
    if options.grid:
        grid = tuple(int(n) for n in options.grid.split(","))
        function = function[grid]
    elif hasattr(function, "fn") and hasattr(function, "run"):
        raise SystemExit(f"{name} is a kernel: say on which --grid, and its constants by --set NAME=VALUE")
    call = partial(function, **settings)
    first = int(options.shape[0].partition(":")[0].split("x")[0]) if options.shape else 0
    sizes = sweep_of(options.sizes) if options.sizes else [first]
    results = []
    for gpu in gpus:
        for size in sizes:
            inputs = [partial(tensor_of, text, options.dtype, (first, size)) for text in options.shape]
            inputs += [value_of(text) for text in options.arg]
            try:
                with believing(known[gpu]):
                    results.append((gpu, size, xray(call, *inputs, gpu=gpu, name=name)))
            except (Outside, ValueError) as error:
                print(error.args[0] if error.args else error, file=sys.stderr)
                return 1
    if options.json:
        print(json.dumps([{"size": size} | found.json() for _, size, found in results], indent=1, ensure_ascii=False))
    elif options.sizes:
        print(drawn(results))
    else:
        print("\n\n".join(found.table() for _, _, found in results))
    return 0


def drawn(results: list[tuple[str, int, Any]]) -> str:
    """Return a line a size: its time, how many times its bytes' once, and as a bar; where the bound changes, which."""
    lines, before = [], ("", "")
    longest = max(found.ms / found.least for _, _, found in results)
    for gpu, size, found in results:
        if gpu != before[0]:
            lines.append(f"{found.prices.name}: a full bar is {longest:.1f} times moving its bytes once")
        if (gpu, found.bound) != before:
            lines.append(f"  {found.bound}:")
        times = found.ms / found.least
        bar = "█" * max(round(40 * times / longest), 1)
        lines.append(f"{size:>14,} {found.ms:>11.4f} ms {times:>7.2f} × {bar}")
        before = gpu, found.bound
    return "\n".join(lines)
