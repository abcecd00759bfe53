"""`make record`: moves fresh measurements from _build/records to book/data, each in place of the older one."""

import json
import sys

from flashkat_lite.records import problems

from ..paths import FRESH, KEPT


def changes(old, new):
    """How a record differs from the one that it replaces, in a few words."""
    before, after = dict(_leaves(old["data"])), dict(_leaves(new["data"]))
    said = [f"{old['date']} → {new['date']}"]
    for name in ("device", "versions"):
        both = old[name] | new[name]
        said += [
            f"{key} {old[name].get(key)} → {new[name].get(key)}" for key in both if _differ(old[name], new[name], key)
        ]
    said += [f"{len(gone)} values gone"] if (gone := before.keys() - after.keys()) else []
    said += [f"{len(added)} values added"] if (added := after.keys() - before.keys()) else []
    ratios = [
        abs(after[key] / before[key] - 1)
        for key in before.keys() & after.keys()
        if _comparable(before[key], after[key])
    ]
    if ratios:
        said.append(
            f"{sum(ratio > 0 for ratio in ratios)} of {len(ratios)} numbers moved, by {max(ratios):.1%} at most"
        )
    return ", ".join(said)


def _differ(old, new, key):
    return old.get(key) != new.get(key)


def _comparable(*values):
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values) and values[0] != 0


def _leaves(node, path=()):
    if isinstance(node, dict | list):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _leaves(value, (*path, key))
    else:
        yield path, node


def move(fresh=FRESH, kept=KEPT):
    """Moves every good record, saying what it changes; returns how many it moved and how many it refused."""
    moved = refused = 0
    for path in sorted(fresh.glob("*/*.json")):
        name = f"{path.parent.name}/{path.name}"
        record = json.loads(path.read_text(encoding="utf-8"))
        if wrong := problems(record, path):
            print(f"{name}: left where it is: {'; '.join(wrong)}")
            refused += 1
            continue
        target = kept / path.parent.name / path.name
        old = json.loads(target.read_text(encoding="utf-8")) if target.exists() else None
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
        path.unlink()
        print(f"{name}: {changes(old, record) if old else 'new'}")
        moved += 1
    return moved, refused


def main():
    moved, refused = move()
    if not moved + refused:
        print("No fresh measurement in _build/records: chapters write them when they run on a GPU (make execute).")
    if refused:
        sys.exit(f"{refused} record(s) refused")
