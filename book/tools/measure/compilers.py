"""What this Python's Triton makes of every kernel of the package, for GPUs that need not be here; in minutes.

`python book/tools compilers` writes the column of this Triton's version on the page *Compilers*, in place of the older
one. With `--check` it goes to _build/records, from where `make record` takes it, and is held to the pinned version's:
a spill fails, and so do 5 % more instructions an element.

Kernels are compiled with the arguments that their launchers pass, caught on the way, for the book's size: 768 columns
in 8 groups, degrees (5, 4).
"""

import argparse
import contextlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from triton import knobs
from triton.runtime.jit import JITFunction

from flashkat_lite import hardware, inspection
from flashkat_lite.kernels import (
    backward_atomic,
    backward_block,
    backward_stationary,
    forward,
    launch,
    norm_backward,
    norm_forward,
    stream,
)
from flashkat_lite.records import Record

from ..paths import FRESH, KEPT, ROOT
from . import columns as kept
from .columns import MORE, by_place, more

TARGETS = (75, 80, 86, 89, 90, 100, 120)
COLUMNS, GROUPS, DEGREES = 768, 8, (5, 4)
MODULES = (backward_atomic, backward_block, backward_stationary, forward, launch, norm_backward, norm_forward, stream)
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}


# What is launched


class Launch(NamedTuple):
    kernel: JITFunction
    grid: tuple[int, ...]
    arguments: tuple
    keywords: dict[str, Any]


@contextlib.contextmanager
def caught(capability: int) -> Iterator[list[Launch]]:
    """Within, launchers plan for a GPU of NVIDIA's of that compute capability; what they launch joins the list."""
    launches = []

    def bound(self, *tensors):
        launches.append(Launch(self.kernel, self.grid, (*tensors, *self.scalars), self.keywords))

    def run(self, *arguments, grid, warmup, **keywords):
        launches.append(Launch(self, grid, arguments, keywords))

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(launch.BoundLaunch, "__call__", bound))
        stack.enter_context(mock.patch.object(JITFunction, "run", run))
        for module in MODULES:
            # Of a launch that was planned for a GPU which is not there, nothing may stay.
            uncached = getattr(getattr(module, "launch_config", None), "__wrapped__", None)
            for name, value in {"capability": lambda device: capability, "launch_config": uncached}.items():
                if hasattr(module, name):
                    stack.enter_context(mock.patch.object(module, name, value))
        yield launches


def request(caught: Launch, capability: int) -> dict[str, Any]:
    """A launch as `inspection.inspect_many` takes it."""
    names, keywords = caught.kernel.arg_names, caught.keywords
    tensors = {name: value for name, value in zip(names, caught.arguments) if isinstance(value, Tensor)}
    return dict(
        kernel=caught.kernel,
        constexprs={name: value for name, value in keywords.items() if name in names},
        pointers={name: NAMES[tensor.dtype] for name, tensor in tensors.items()},
        capability=capability,
        **{name: keywords[name] for name in ("num_warps", "maxnreg") if name in keywords},
    )


def passes() -> Iterator[tuple[str, Callable[[], object]]]:
    """Every launcher, with what its kernels are compiled for."""
    a, b = torch.zeros(GROUPS, DEGREES[0] + 1), torch.zeros(GROUPS, DEGREES[1])
    for dtype in (torch.float32, torch.bfloat16):
        x, name = torch.zeros(64, COLUMNS, dtype=dtype), str(dtype).removeprefix("torch.")
        yield name, partial(forward.forward, x, a, b)
        yield name, partial(backward_atomic.backward_atomic, x, x, a, b)
        yield name, partial(backward_block.backward_block, x, x, a, b)
        yield name, partial(backward_stationary.backward_stationary, x, x, a, b)
    half = torch.bfloat16
    for columns in (192, COLUMNS):
        x, z = torch.zeros(64, columns), torch.zeros(64, columns, dtype=half)
        parameters = torch.ones(columns), torch.ones(columns), a, b
        name = f"{columns} columns, float32; bfloat16 out"
        yield name, partial(norm_forward.norm_forward, x, z, *parameters, dtype=half)
        statistics = torch.ones(64), torch.ones(64)
        yield name, partial(norm_backward.norm_backward, z, x, x, *statistics, *parameters, branch_dtype=half)
    x = torch.zeros(64, COLUMNS)
    for size in (stream.SIZES[0], stream.SIZES[-1]):
        yield "x + y, float32" + (", in a loop" if size[2] else ""), partial(stream.stream, x, x, x, True, size)


def requests(capability: int) -> dict[tuple[str, str], dict[str, Any]]:
    """What `passes` launches on such a GPU: {(kernel, what for): request}, each compilation once."""
    found = {}
    for what, call in passes():
        with caught(capability) as launches:
            call()
        for launched in launches:
            made = request(launched, capability)
            if made not in found.values():
                name = made["kernel"].__name__
                found[name, what.partition(";")[0] if "sum" in name else what] = made
    return found


# What came out

# The elements that a program takes in at once: rows × columns, or partial sums.
ELEMENTS = {
    "forward_kernel": lambda VECTOR, BLOCK, UNROLL, **_: VECTOR * BLOCK * UNROLL,
    "backward_atomic_kernel": lambda BLOCK, **_: BLOCK,
    "backward_block_kernel": lambda ROWS, **_: ROWS * COLUMNS // GROUPS,
    "backward_stationary_kernel": lambda VECTOR, BLOCK, UNROLL, **_: VECTOR * BLOCK * UNROLL,
    "sum_partials_kernel": lambda TILE, **_: TILE,
    "norm_forward_kernel": lambda SEGMENTS, SEGMENT, VECTOR, BLOCK, LANES, **_: (
        SEGMENTS * SEGMENT * VECTOR * BLOCK // LANES
    ),
    "norm_sums_kernel": lambda TILE, COLUMNS, **_: TILE * COLUMNS,
    "stream_kernel": lambda BLOCK, VECTOR, **_: BLOCK * VECTOR,
}
ELEMENTS["norm_backward_kernel"] = ELEMENTS["norm_forward_kernel"]
LOOPS = ("backward_stationary_kernel", "sum_partials_kernel", "norm_backward_kernel", "norm_sums_kernel")


def facts(made: dict[str, Any], report: inspection.Report) -> dict[str, Any]:
    """What a column holds of one compilation.

    Instructions an element are those of the loop over rows, or of the whole kernel where there is none, over the
    elements that a thread takes in; fused multiply-adds are among them, and a pair of them is one instruction.
    """
    name, constants = made["kernel"].__name__, made["constexprs"]
    threads = 32 * made["num_warps"]
    elements = ELEMENTS[name](**constants) / threads
    if name in LOOPS or constants.get("STAGES", 1) > 1:
        opcodes = [re.sub(r"^@!?\S+\s+", "", line).split()[0] for line in report.loop]
    else:
        opcodes = [opcode for opcode, count in report.instructions.items() for _ in range(count)]
    counted = len(opcodes) - opcodes.count("NOP")
    if name == "backward_stationary_kernel":
        # Once in PASSES_PER_FLUSH passes: the parts join the totals and start again.
        counted -= 2 * (constants["M1"] + constants["N"]) * constants["BLOCK"] // threads
    fused = sum(bool(re.match(r"FFMA|HFMA2", opcode)) for opcode in opcodes)
    return dict(
        registers=report.registers,
        spills=report.spills,
        instructions=round(counted / elements, 2),
        multiply_adds=round(fused / elements, 2),
        load_bytes=report.load_bytes,
    )


def column(targets: tuple[int, ...] = TARGETS, only: Iterable[tuple[str, str]] = ()) -> Iterator[dict[str, Any]]:
    """Compile every kernel, or some, for each target: the rows of a record."""
    wanted = {target: requests(target) for target in targets}
    for name, what in only or wanted[targets[0]]:
        made = [wanted[target][name, what] for target in targets]
        for one, report in zip(made, inspection.inspect_many(made)):
            yield dict(kernel=name, what=what, capability=report.capability, **facts(one, report))


def assemblers() -> dict[str, str]:
    """The releases of NVIDIA's assembler that came with this Triton, by the first target that each is used for."""
    found = {}
    for first, name in ((TARGETS[0], "ptxas"), (100, "ptxas_blackwell")):
        tool = getattr(knobs.nvidia, name, None)
        if tool:
            said = subprocess.run([tool.path, "--version"], capture_output=True, encoding="utf-8", check=True).stdout
            found[f"sm_{first}"] = re.search(r"release \S+, V(\S+)", said)[1]
    return found


# Columns and what is wrong with them


def faults(fresh: Record, held: Record, *newer: Record) -> list[str]:
    """What fails in a column: spills, and over 5 % more instructions than in every column held.

    The first is the pinned version's; of the others each was accepted when it was committed, and the page shows it.
    """
    rows, columns = by_place(fresh), [by_place(record) for record in (held, *newer)]
    found = [f"{_named(place)}: {row['spills']} bytes spilled" for place, row in rows.items() if row["spills"]]
    if rows.keys() != columns[0].keys():
        others = map(_named, rows.keys() ^ columns[0].keys())
        return [*found, *(f"{name}: in one of the columns alone" for name in sorted(others))]
    for place, row in rows.items():
        most = max(column[place]["instructions"] for column in columns if place in column)
        if row["instructions"] > MORE * most:
            ratio = row["instructions"] / columns[0][place]["instructions"]
            found.append(f"{_named(place)}: {100 * (ratio - 1):.1f} % more instructions an element")
    return found


def _named(place: tuple[str, str, int]) -> str:
    return f"{place[0]}, {place[1]}, sm_{place[2]}"


def record() -> Record:
    """This Triton's column."""
    rows = []
    for row in column():
        rows.append(row)
        if row["capability"] == TARGETS[-1]:
            print(f"  {row['kernel']}, {row['what']}", flush=True)
    facts = hardware.provenance()
    version = facts["versions"]["triton"]
    return Record(
        experiment=kept.experiment(kept.TRITON, version),
        title=f"Every kernel as Triton {version} compiles it",
        command="python book/tools compilers",
        device=kept.DEVICE,
        versions=facts["versions"],
        date=facts["date"],
        data={"assemblers": assemblers(), "rows": rows},
    )


def main() -> int | str:
    parser = argparse.ArgumentParser(prog="python book/tools compilers", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="into _build/records, and held to the pinned version's")
    checked = parser.parse_args().check
    made = record()
    path = (FRESH if checked else KEPT) / kept.FOLDER / f"{made.experiment}.json"
    made.save(path)
    print(path.relative_to(ROOT))
    if not checked:
        return 0
    held = kept.columns(kept.TRITON)
    later = list(held.values())[list(held).index(kept.pinned()) :]
    found = faults(made, *later)
    known = len(more(made, later[0]))
    print(f"Beside Triton {kept.pinned()}: {known} of {len(made.data['rows'])} need over 5 % more; {len(found)} faults")
    return "\n".join(found) or 0


if __name__ == "__main__":
    sys.exit(main())
