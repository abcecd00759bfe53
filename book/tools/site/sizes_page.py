"""What chapters ask of a GPU, and what they take where it is small: the page book/sizes.md, written at each build."""

import ast
import json
import re

from .. import notebooks
from ..notebooks import stamp
from ..paths import ROOT
from . import records_page

REHEARSAL = "book/rehearsal.json"
MEASURED = re.compile(r'lab\.measure\(\s*"(\w+)"')
PAGE = """# On a smaller GPU

A chapter measures at the paper's sizes where the GPU has room for them. Where it has not, or its memory gives less than
300 GB/s, some sizes are smaller, and a line below the cell says which. `FLASHKAT_GPU_MEMORY=7.5 make execute` shows
what happens on a GPU with 7.5 GB: outputs go to `_build/execute`, and of its measurements only the memory is kept.

## What is smaller

{smaller}

## What the chapters take

Counted by running the cells with tensors that have shapes and no values (`python book/tools rehearse --compile`), not
measured. GPU memory is the most that tensors take at once. Bytes, atomic additions and seconds are those of a Tesla T4
with 14.5 GB free, at its 320 GB/s and 2.2 ns for each addition, as if none went beside another: an H200 takes 1.76 ns
on one address, at a clock 1.25 times a T4's. Compilation and Python come on top, half a minute to a minute. *Kernels*
are compiled for compute capability 7.5, 8.0, 8.6, 8.9, 9.0, 10.0 and 12.0. {exceptions}{uncounted}

{taken}

## What they took

{measured}
"""
HEADER = ["Chapter", "Kernels", "GB, paper's size", "GB of 14.5", "GB of 7.5", "GB moved", "Additions", "Seconds"]


def write_sizes_page(root=ROOT):
    """Writes book/sizes.md; returns its path."""
    file = root / REHEARSAL
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    picks, rows, wrong = [], [], []
    for path in notebooks.chapters(root):
        link = f"{{doc}}`/chapters/{path.stem}`"
        picks += [[link, *pick] for pick in smaller(notebooks.seen(path))]
        runs = kept.get(path.stem, {}).get("runs")
        if runs:
            rows.append([link, *_taken(runs)])
            wrong += [f"{link}: {key.split()[0]}" for run in runs.values() for key in run.get("wrong", {})]
    text = PAGE.format(
        smaller=records_page.table(
            "Sizes that follow the GPU's memory", ["Chapter", "Paper's", "Small", "Below (GB)"], picks
        )
        if picks
        else "Nothing.",
        taken=records_page.table("Counted for each chapter", HEADER, rows) if rows else "Nothing is counted yet.",
        measured=_measured(root),
        uncounted=_said_uncounted(root, kept),
        exceptions=f"These do not compile everywhere: {'; '.join(dict.fromkeys(wrong))}." if wrong else "",
    )
    page = root / "book" / "sizes.md"
    if not page.exists() or page.read_text(encoding="utf-8") != text:
        page.write_text(text, encoding="utf-8")
    return page


def smaller(notebook):
    """[the book's size, the small one, the GB from which on it is the book's], as the chapter's code says them."""
    found = []
    for cell in notebooks.code_cells(notebook):
        for call in ast.walk(stamp.parse(cell.source)) if "lab.pick" in cell.source else ():
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "lab.pick":
                said = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
                if "small" in said:
                    found.append([f"`{said[name]}`" for name in ("gpu", "small", "gb")])
    return found


def _taken(runs):
    t4 = runs["14.5"]
    peaks = [f"{runs[run]['peak_gb']:.1f}" for run in ("paper", "14.5", "7.5")]
    counts = [f"{t4[name]:,}" if name in t4 else None for name in ("gb", "additions", "t4_seconds")]
    return [str(max(run["launches"] for run in runs.values())), *peaks, *counts]


def _measured(root):
    """The runs on a GPU that was allowed so much memory, as tables."""
    found = []
    for path in sorted(root.glob("book/data/*/within_*_gb.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        rows = [[f"{{doc}}`/chapters/{stem}`", f"{peak or 0:.2f}"] for stem, peak in record["data"].items()]
        said = f"{record['title']}: {record['device']['name']}, {record['date']}"
        found.append(records_page.table(said, ["Chapter", "GB at most"], rows))
    return "\n\n".join(found) or "No run with less memory is recorded yet."


def uncounted(notebook, runs):
    """The experiments that a count could not run: they needed values, a listing, or a record that there was not yet."""
    failed = {id for found in runs.values() for id in found.get("failed", ())}
    cells = [cell for cell in notebooks.code_cells(notebook) if cell.id in failed]
    return sorted({name for cell in cells for name in MEASURED.findall(cell.source)})


def _said_uncounted(root, kept):
    found = {
        path.stem: uncounted(notebooks.seen(path), kept[path.stem]["runs"])
        for path in notebooks.chapters(root)
        if path.stem in kept
    }
    said = [f"{{doc}}`/chapters/{stem}`: {', '.join(names)}" for stem, names in found.items() if names]
    return f"Not counted, and in the capped runs below alone: {'; '.join(said)}." if said else ""
