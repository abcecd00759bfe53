"""Price lists for `flashkat_lite.xray`, computed from the records in book/data: `make prices`.

Every GPU whose records can be priced gets flashkat_lite/xray/prices/<gpu>.json. What one lacks is scaled from the
H200's, and the list says so.
"""

import functools

from flashkat_lite import records
from flashkat_lite.xray import prices

from ..paths import KEPT

FIRST = "h200"  # the one whose records are complete


def record(gpu: str, experiment: str) -> records.Record | None:
    """Return a GPU's own record of an experiment; None where it has none."""
    path = KEPT / gpu / f"{experiment}.json"
    return records.read(path) if path.exists() else None


def lists() -> dict[str, prices.Prices]:
    """Return the price list of every GPU with records from which streams can be priced."""
    found = {FIRST: prices.computed(functools.partial(record, FIRST))}
    for folder in sorted(KEPT.glob("*")):
        if folder.name != FIRST and any((folder / f"{name}.json").exists() for name in ("ladder", "norm_sweep")):
            found[folder.name] = prices.computed(functools.partial(record, folder.name), found[FIRST])
    return found


def main() -> None:
    for gpu, one in lists().items():
        one.save(prices.FOLDER / f"{gpu}.json")
        scaled = sum("scaled" in source for source in one.sources.values())
        rates = f"HBM {one.read:,.0f} and {one.write:,.0f} GB/s, L2 {one.l2:,.0f} GB/s"
        print(f"{gpu}: {rates}, a launch {one.overhead / 1e3:.1f} µs; {scaled} prices scaled")
