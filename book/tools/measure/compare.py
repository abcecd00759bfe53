"""`make compare`: are the fresh measurements in _build/records as good as the last ones in book/data?

Times differ from machine to machine; ratios to a limit that was measured in the same minute hardly do: by about 3 %
at most between the records of the H200 that this repository has kept, faster kernels apart. So what counts, of each
experiment that both sides hold, is

- a time beside the time of `add` or `copy`, the two limits of `hardware.limits`: the time over the limit's;
- a number called `fraction_of_…` (of the limit, of a ViT's rate, of linear scaling): one over it.

Either grows as a kernel gets slower. Where one has grown by 10 % or more, this fails and says which. All else is
reported and judges nothing: an experiment without such a ratio, a new one, a GPU that has no records yet. Compare
before `make record`, which moves the fresh records away.
"""

import json
import sys

from flashkat_lite.records import problems

from ..paths import FRESH, KEPT

ALLOWED = 1.10
LIMITS = ("add", "copy")
FRACTION = "fraction_of_"
# A row's whole numbers say what was measured, but for these.
FOUND = ("ms", "low", "high", "repeats", "bytes", "peak_bytes", "parameters", "atomics")


def ratios(node, path=()):
    """The ratios in a record's data by what they belong to; each grows as something gets slower."""
    if isinstance(node, list):
        return {name: ratio for row in node for name, ratio in ratios(row, (*path, *_labels(row))).items()}
    if not isinstance(node, dict):
        return {}
    found = {}
    limit = next((node[name]["ms"] for name in LIMITS if _is_timing(node.get(name))), None)
    for name, value in node.items():
        if name.startswith(FRACTION) and value:
            found[(*path, name)] = 1 / value
        elif limit and _is_timing(value):
            if name not in LIMITS:
                found[(*path, name)] = value["ms"] / limit
        else:
            found |= ratios(value, (*path, name))
    return found


def _is_timing(value):
    return isinstance(value, dict) and isinstance(value.get("ms"), int | float)


def _labels(row):
    """What tells a row of a table from the others: its words, its whole numbers, its lists of these."""
    if not isinstance(row, dict):
        return ()
    named = {key: value for key, value in row.items() if key not in FOUND and _is_label(value)}
    return tuple(value if isinstance(value, str) else f"{key} {value}" for key, value in named.items())


def _is_label(value):
    return isinstance(value, str | int) or (isinstance(value, list) and all(isinstance(item, int) for item in value))


def judge(old, new):
    """What a fresh record says: the ratios that are worse, in words, and a line on the others; None without any."""
    before, after = ratios(old["data"]), ratios(new["data"])
    both = [name for name in after if name in before]
    if not both or old["device"]["count"] != new["device"]["count"]:
        return [], None
    moved = {name: after[name] / before[name] for name in both}
    worse = [
        f"{', '.join(name)}: {before[name]:.3g} → {after[name]:.3g}, {moved[name] - 1:.0%} worse"
        for name in both
        if moved[name] >= ALLOWED
    ]
    said = [f"{len(both)} ratios, {min(moved.values()) - 1:+.1%} to {max(moved.values()) - 1:+.1%}"]
    if len(before) > len(both):
        said.append(f"{len(before) - len(both)} of the last record's are gone")
    return worse, ", ".join([*said, *_versions(old, new)])


def _versions(old, new):
    kept, fresh = old["versions"], new["versions"]
    names = [name for name in kept | fresh if kept.get(name) != fresh.get(name)]
    return [f"{name} {kept.get(name)} → {fresh.get(name)}" for name in names]


def compare(fresh=FRESH, kept=KEPT):
    """Prints what each fresh record says; returns how many were compared, and how many faults there are."""
    faults, judged, others = 0, 0, {}
    for folder in sorted(path for path in fresh.glob("*") if any(path.glob("*.json"))):
        for path in sorted(folder.glob("*.json")):
            name, new = f"{folder.name}/{path.stem}", json.loads(path.read_text(encoding="utf-8"))
            older = kept / folder.name / path.name
            if wrong := problems(new, path):
                print(f"{name}: not a record: {'; '.join(wrong)}")
                faults += 1
            elif not older.exists():
                others.setdefault("new" if older.parent.exists() else "new, as is their GPU", []).append(name)
            else:
                worse, said = judge(json.loads(older.read_text(encoding="utf-8")), new)
                if said is None:
                    others.setdefault("without a ratio that both records hold", []).append(name)
                    continue
                print("\n".join([f"{name}: {said}", *(f"  WORSE {line}" for line in worse)]))
                judged += 1
                faults += len(worse)
        absent = {path.stem for path in (kept / folder.name).glob("*.json")} - {path.stem for path in folder.glob("*")}
        if absent:
            others["not measured anew"] = sorted(f"{folder.name}/{name}" for name in absent)
    for why, names in others.items():
        print(f"{why}: {', '.join(names)}")
    return judged, faults


def main():
    if not any(FRESH.glob("*/*.json")):
        sys.exit("No fresh measurement in _build/records: make execute, on a GPU, writes them.")
    judged, faults = compare()
    if faults:
        sys.exit(f"{faults} to look at: a ratio that is worse by {ALLOWED - 1:.0%} or more, or a broken record")
    print(f"{judged} record(s) compared; no ratio is worse by {ALLOWED - 1:.0%} or more.")
