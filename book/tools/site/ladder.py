"""`python book/tools ladder`: draws the ladder and chapters' openings, and writes the ladder's table, from records."""

from pathlib import Path

from ..paths import ROOT
from . import openings

COLUMNS, DTYPE = 768, "float32"
NAMES = {
    "backward_atomic": "Atomic additions (chapter 7)",
    "eager_backward": "PyTorch, eager",
    "compiled_backward": "torch.compile",
    "backward_block": "Block reduction (chapter 9)",
    "backward_stationary": "Stationary sums (the default)",
    "gelu_backward": "GELU's backward, nothing to learn",
}
PICTURES = {"ladder": 7.2, "ladder-narrow": 3.56}  # inches; a page shows the narrow one on a phone
START, END = "<!-- ladder: written by `python book/tools ladder` -->", "<!-- end of ladder -->"


def results(record) -> dict[str, dict]:
    rows = record.data["results"]
    return {row["what"]: row for row in rows if row["columns"] == COLUMNS and row["dtype"] == DTYPE}


def table(record) -> str:
    """The ladder as a Markdown table."""
    at = results(record)
    limit = at["add"]["ms"]
    lines = ["| backward pass | time (ms) | times the limit | our atomic additions |", "|---|--:|--:|--:|"]
    for what, name in NAMES.items():
        ms = at[what]["ms"]
        additions = f"{at[what]['atomics']:,}" if what.startswith("backward_") else ""  # counted for our kernels only
        lines.append(f"| {name} | {ms:,.3f} | {ms / limit:,.2f} | {additions} |")
    lines.append(f"| *the limit: read two tensors, write one* | {limit:,.3f} | 1.00 | |")
    note = f"{record.data['rows']:,} rows × {COLUMNS} columns, {DTYPE}, 8 groups, degrees (5, 4); medians of one run, "
    return "\n".join([*lines, "", note + f"{record.source}. Recorded by `{record.command}`.", "", shares(record)])


def shares(record) -> str:
    """A sentence: what part of the limit the default backward reaches at all recorded widths."""
    found = {}
    for row in record.data["results"]:
        if row["what"] == "backward_stationary":
            found.setdefault(row["dtype"], {})[row["columns"]] = row["fraction_of_limit"]
    parts = [f"{', '.join(f'{share:.2f}' for share in by.values())} of it in {dtype}" for dtype, by in found.items()]
    widths = ", ".join(map(str, next(iter(found.values()))))
    return f"At {widths} columns, stationary sums reach {' and '.join(parts)} (the limit's time over the kernel's)."


def drawn(record, width: float):
    """The ladder as a figure, so many inches wide."""
    from flashkat_lite.lab import figures

    at = results(record)
    limit = at["add"]["ms"]
    rungs = [(name, at[what]["ms"]) for what, name in NAMES.items()]
    first, last = (at[what]["ms"] / limit for what in ("backward_atomic", "backward_stationary"))
    title = f"The obvious kernel is {first:,.0f} times too slow, the last one {100 * (last - 1):.0f} %"
    return figures.ladder(rungs, ("the limit", limit), title, record.source, width)


def insert(text: str, block: str) -> str:
    before, rest = text.split(START)
    return f"{before}{START}\n\n{block}\n\n{END}{rest.split(END)[1]}"


def outputs() -> dict[Path, str]:
    """What each generated file should hold."""
    from flashkat_lite.lab import figures, records

    record = records.load("ladder")
    files = {
        ROOT / "book" / "images" / f"{name}.svg": figures.svg(drawn(record, width)) for name, width in PICTURES.items()
    }
    for path in (ROOT / "README.md", ROOT / "book" / "intro.md"):
        files[path] = insert(path.read_text(encoding="utf-8"), table(record))
    return files


def main() -> None:
    openings.DRAWINGS.mkdir(exist_ok=True)
    for path, text in (outputs() | openings.outputs()).items():
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))
