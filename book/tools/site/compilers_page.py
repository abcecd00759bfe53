"""What compilers make of the kernels: the page book/compilers.md, written anew at each build."""

import itertools

from ..measure.columns import TESTED, TESTS, TRITON, by_place, columns, more, pinned
from ..paths import ROOT
from .records_page import table

PAGE = """# Compilers

The same source is other instructions under another Triton. This page has what each version makes of every kernel of
the package, for NVIDIA's GPUs from Turing to Blackwell. Nothing here was timed, and no GPU was needed: Triton brings
NVIDIA's assembler with it. `python book/tools compilers` writes the column of the Triton in whose Python it runs.

## Tested with

Tests of the kernels, the exercises, the op and the generated code, on Linux without a GPU: kernels are interpreted, or
compiled and read. `python book/tools tested` writes a row, and every run of the tests ends with the versions that it
ran with.

{tested}

## How to read a column

- *Instructions an element*: of the loop over rows where the kernel has one, otherwise of the whole kernel, over the
  elements that a thread takes in. Where a kernel waits for its instructions, as the backward does in 16 bits
  ({{doc}}`/chapters/11_sixteen_bits`), 5 % more of these are 5 % more time.
- *Registers* of a thread: a multiprocessor has 65,536, so a kernel that takes more of them has fewer threads there. A
  {{term}}`spill` is a value that found none; it goes to memory and back, and fails the tests.
- *Bytes a load*: the widest load from global memory. A thread can ask for 16 at once; with 4 it asks four times.

## What changed, and why it matters

{changes}

{known}

**Fused multiply-adds.** A multiplication and the addition behind it are one instruction, if the compiler may round once
where the source rounds twice. So far Triton does so unless told otherwise, and 3.9 warns that a later version will not
unless asked. {fused} So each launch of the package says `enable_fp_fusion=True`, and
`from flashkat_lite import lab` sets it for the chapters' own kernels; tests hold both.

**Pairs.** On Blackwell (sm_100, sm_120) one instruction can do two multiply-adds, and which of them the compiler pairs
differs from version to version. {pairs}

**What is held.** Register counts go up and down from release to release, with no change of ours. What costs time is
held: no spill for any target in any column, and every night at most 5 % more instructions under the newest Triton than
under {pinned}, which all other tests run with, or than in a newer column that is committed here.

## Every kernel

{kernels}
"""
LEGEND = "A version's column: instructions an element · registers."


def write_compilers_page(root=ROOT):
    """Writes book/compilers.md; returns its path."""
    held, pin = columns(TRITON, root), pinned(root)
    text = PAGE.format(
        tested=tested(columns(TESTS, root)),
        changes=changes(held),
        known="\n".join(known(held, pin)),
        fused=fused(held[pin]),
        pairs=pairs(held, pin),
        pinned=pin,
        kernels="\n\n".join(kernels(held)),
    )
    page = root / "book" / "compilers.md"
    if not page.exists() or page.read_text(encoding="utf-8") != text:
        page.write_text(text, encoding="utf-8")
    return page


def tested(records):
    rows = []
    for record in records.values():
        versions, found = record.versions, record.data
        cells = [said(found[folder]) if folder in found else "" for folder in TESTED]
        rows.append([versions["triton"], versions["torch"], versions["python"], *cells, record.date])
    return table("Versions that the tests were run with", ["Triton", "torch", "Python", *TESTED, "When"], rows)


def said(found):
    """A folder's tests in a cell."""
    failed = f", **{len(found['failed'])} failed**" if found["failed"] else ""
    return f"{found['passed']:,} passed{failed}"


def changes(records):
    """From each version to the next: how many compilations gained instructions, how many lost, and the furthest."""
    lines = []
    for before, after in itertools.pairwise(records.values()):
        old, new = by_place(before), by_place(after)
        ratios = {place: new[place]["instructions"] / old[place]["instructions"] for place in old.keys() & new.keys()}
        more, fewer = (sum(sign * (ratio - 1) > 0.01 for ratio in ratios.values()) for sign in (1, -1))
        most, least = max(ratios, key=ratios.get), min(ratios, key=ratios.get)
        lines.append(
            f"- From Triton {before.versions['triton']} to {after.versions['triton']} "
            f"(NVIDIA's assembler {assemblers(before)}, then {assemblers(after)}): of {len(ratios)} compilations "
            f"{more} need over 1 % more instructions and {fewer} over 1 % fewer. Furthest: {named(most, ratios)}, and "
            f"{named(least, ratios)}."
        )
    return "\n".join(lines)


def assemblers(record):
    (_, first), *others = record.data["assemblers"].items()
    return " and ".join([first, *(f"from {target} on {version}" for target, version in others)])


def named(place, ratios):
    kernel, what, capability = place
    return f"`{kernel}` ({what}) for sm_{capability}, {_percent(ratios[place])}"


def _percent(ratio):
    return f"{100 * (ratio - 1):+.1f} %".replace("-", "−")


def known(records, pin):
    """Which compilations a later version than the pinned one makes much longer."""
    for version in itertools.dropwhile(lambda version: version != pin, records):
        by_kernel = {}
        for (kernel, what, capability), ratio in more(records[version], records[pin]).items():
            by_kernel.setdefault(f"`{kernel}` ({what})", []).append(f"sm_{capability} {_percent(ratio)}")
        if by_kernel:
            yield f"Over 5 % more instructions under {version} than under {pin}:\n"
        yield from (f"- {name}: {', '.join(targets)}" for name, targets in by_kernel.items())


def fused(record):
    row = by_place(record)["backward_stationary_kernel", "float32", 90]
    few, fused = row["instructions"], row["multiply_adds"]
    return (
        f"In the default backward (float32, sm_90) {fused:.1f} of {few:.1f} instructions an element are such; with two "
        f"for each of them there would be up to {few + fused:.1f}."
    )


def pairs(records, pin):
    newest, said = list(records)[-1], []
    for kernel, what in (("norm_forward_kernel", "768 columns, float32; bfloat16 out"), ("forward_kernel", "bfloat16")):
        old, new = (by_place(records[version])[kernel, what, 100]["multiply_adds"] for version in (pin, newest))
        said.append(f"{old:.1f} and {new:.1f} in `{kernel}` ({what})")
    return f"Such instructions an element on sm_100, under {pin} and {newest}: {', '.join(said)}."


def kernels(records):
    """A table for each kernel and what it was compiled for: a row for each target, a column for each version."""
    held = [by_place(record) for record in records.values()]
    places = list(dict.fromkeys(place for rows in held for place in rows))
    header = ["Target", *(f"Triton {version}" for version in records), "Bytes a load"]
    yield LEGEND
    for kernel in sorted({place[0] for place in places}, key=lambda name: [place[0] for place in places].index(name)):
        yield f"### `{kernel}`"
        for what in dict.fromkeys(place[1] for place in places if place[0] == kernel):
            rows = []
            for place in (place for place in places if place[:2] == (kernel, what)):
                found = [rows_of.get(place) for rows_of in held]
                wide = dict.fromkeys(str(row["load_bytes"]) for row in found if row)
                rows.append([f"sm_{place[2]}", *map(cell, found), ", ".join(wide)])
            yield table(f"`{kernel}`, {what}", header, rows)


def cell(row):
    if row is None:
        return ""
    spilled = f", **{row['spills']} bytes spilled**" if row["spills"] else ""
    return f"{row['instructions']:.1f} · {row['registers']}{spilled}"
