"""Columns of the page *Compilers*: records in book/data/compilers, one of each kind for each version of Triton."""

import re
from pathlib import Path
from typing import Any

from flashkat_lite.records import Record, read

from ..paths import ROOT

FOLDER = "compilers"  # of book/data and of _build/records
DEVICE = {"name": "No GPU", "count": 0, "driver": None, "slug": FOLDER}
TRITON, TESTS = "triton", "tests"  # what it makes of every kernel; the tests under it
MORE = 1.05  # times the pinned version's instructions, at most
TESTED = ("kernels", "exercises", "op", "codegen")  # folders of tests


def experiment(kind: str, version: str) -> str:
    """The name of a column's record."""
    return f"{kind}_{re.sub(r'[^0-9a-z]', '_', version)}"


def columns(kind: str, root: Path = ROOT) -> dict[str, Record]:
    """The committed columns by Triton's version, oldest first."""
    found = {record.versions["triton"]: record for record in map(read, root.glob(f"book/data/{FOLDER}/{kind}_*.json"))}
    return dict(sorted(found.items(), key=lambda item: [int(part) for part in re.findall(r"\d+", item[0])]))


def pinned(root: Path = ROOT) -> str:
    """The version of Triton in requirements.txt."""
    return re.search(r"^triton==([\d.]+)", (root / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE)[1]


def by_place(record: Record) -> dict[tuple[str, str, int], dict[str, Any]]:
    """A column's rows by kernel, what it was compiled for, and target."""
    return {(row["kernel"], row["what"], row["capability"]): row for row in record.data["rows"]}


def more(fresh: Record, held: Record) -> dict[tuple[str, str, int], float]:
    """Where a column has over MORE times the other's instructions an element, and how many times as many."""
    before, after = by_place(held), by_place(fresh)
    ratios = {place: after[place]["instructions"] / before[place]["instructions"] for place in after.keys() & before}
    return {place: ratios[place] for place in after if ratios.get(place, 0) > MORE}
