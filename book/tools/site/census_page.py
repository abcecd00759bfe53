"""The page *Census*: what public backward kernels add where, their forecasts, and times where there is a record.

`python book/tools census_page` writes book/census.md anew; so does `python book/tools census`.
"""

import json
import math
from typing import Any

from flashkat_lite import records
from flashkat_lite.xray.report import bars

from ..paths import KEPT, ROOT
from .pencil_page import share, table

CENSUS, PAGE = ROOT / "book" / "census.json", ROOT / "book" / "census.md"
HOMES = {
    "liger-kernel": "https://github.com/linkedin/Liger-Kernel",
    "fla-core": "https://github.com/fla-org/flash-linear-attention",
}
TEXT = """# Census

Who else lets many programs add to few places? This page counts it in {calls} calls from {packages} packages that
install from PyPI: backward passes, and a few others that sum or count. None was written by us, and none is copied
here. Each is the package's own function; `flashkat_lite.xray` ran some of its programs in Triton's interpreter and
counted. {sizes} {timed}

{versions}

They were chosen because they sum, not because they are slow: norms, losses, embeddings, mixtures of experts, attention.
A package moves on; what stands here holds for these versions at these sizes, and for nothing else. A forecast is off
by up to a factor of 1.5 (*[](pencil.md)*), more for kernels that wait, and an autotuned kernel has the settings that
are forecast to be fastest of at most six.

## Who adds to shared places

{verdict}

{adding}

{pictures}

*Meet*: how many additions an address gets, on average. *Ordered*: whether each waits at a fence. *Additions alone*: the
time for which they would keep L2 busy, beside *the rest*: the slowest of the kernel's other terms. Only where the first
is larger, and additions queue at one unit of L2, does the kernel have the disease of chapters 7 and 8; and only where
the call would be faster by a quarter or more without them is it said to be ill. Sums of floats by such additions differ
from run to run, whether they cost time or not.

## Forecasts and times

{near}

{others}

{waiting}

## Outside of the model

Tensor cores (`tl.dot`), TMA and locks have no price here, so these calls have no forecast; what they add is counted all
the same.

{outside}
"""


def ms(value: float) -> str:
    return f"{value:.3g} ms" if value >= 0.1 else f"{1e3 * value:.3g} µs"


def _size(one: dict) -> str:
    return one["size"] + ("" if one["chosen"].startswith("a size of its own") else "; our size")


def many(value: float) -> str:
    return f"{round(value):,}"


def recorded() -> dict[str, dict[str, dict[str, Any]]]:
    """Return {GPU: {case: row}} of the committed records of times."""
    found = {}
    for path in sorted(KEPT.glob("*/census.json")):
        record = records.read(path)
        found[path.parent.name] = {row["what"]: row | {"record": record} for row in record.data}
    return found


def page() -> str:
    """Return the page's text."""
    census = json.loads(CENSUS.read_text(encoding="utf-8"))
    cases, times = census["cases"], recorded()
    known = {name: one for name, one in cases.items() if "forecast" in one}
    return TEXT.format(
        sizes=_sizes(cases), calls=len(cases), packages=len({one["package"] for one in cases.values()}),
        timed=_timed(census, times),
        versions=_versions(cases), verdict=_verdict(known), adding=_adding(known),
        pictures=_pictures(known, times), near=_near(known, times), others=_others(known, times),
        waiting=_waiting(known), outside=_outside(cases),
    )  # fmt: skip


def _timed(census: dict, times: dict) -> str:
    text = f"Counted on {census['date']}."
    for rows in times.values():
        record = next(iter(rows.values()))["record"]
        text += (
            f" {sum('ms' in row for row in rows.values())} of them were timed with a cold L2 cache: {record.source}."
        )
    return text


def _sizes(cases: dict) -> str:
    theirs = sum(one["chosen"].startswith("a size of its own") for one in cases.values())
    return (
        f"{theirs} sizes are among those of the package's own benchmarks; the other {len(cases) - theirs} we chose, as "
        "their tables say."
    )


def ill(forecast: dict) -> bool:
    """Whether a call's forecast says that many writers on few addresses hold it back by a quarter or more."""
    return forecast["ill"] and forecast["ms"] >= 1.25 * forecast["cured"]


def _versions(cases: dict) -> str:
    rows = []
    for package in dict.fromkeys(one["package"] for one in cases.values()):
        mine = [one for one in cases.values() if one["package"] == package]
        name = f"[{package}]({HOMES.get(package, f'https://pypi.org/project/{package}/')})"
        rows.append([name, mine[0]["version"], str(len(mine))])
    return table("Packages, which `pip install flashkat-lite[census]` pins", ["package", "version", "calls"], rows)


def _verdict(known: dict) -> str:
    adding = [name for name, one in known.items() if one["adds"]]
    found = {name: {gpu: f for gpu, f in known[name]["forecast"].items() if ill(f)} for name in adding}
    found = {name: by_gpu for name, by_gpu in found.items() if by_gpu}
    text = (
        f"{len(adding)} of {len(known)} calls with a forecast add to places that other programs add to; the others "
        "keep partial sums, or let a row stay within its program. "
    )
    if not found:
        return text + "In none of them do these additions take longest: **by forecast, none has the disease.**"
    for name, by_gpu in found.items():
        times = [f"{ms(f['ms'])} on an {gpu.upper()}, {ms(f['cured'])} if nothing met" for gpu, f in by_gpu.items()]
        text += f"**By forecast, {name} has the disease:** {'; '.join(times)}. "
    return text + f"In the other {len(adding) - len(found)} these additions hide behind the rest, or cost little."


def _adding(known: dict) -> str:
    rows = []
    for name, one in known.items():
        if not one["adds"]:
            continue
        h200 = one["forecast"]["h200"]
        rows.append([
            f"{name} ({_size(one)})", one["sums"], many(sum(a["additions"] for a in one["adds"])),
            many(sum(a["addresses"] for a in one["adds"])),
            many(sum(a["additions"] for a in one["adds"]) / sum(a["addresses"] for a in one["adds"])),
            "yes" if one["fences"] else "no", ms(h200["additions"]), ms(h200["rest"]), "yes" if ill(h200) else "no",
        ])  # fmt: skip
    header = ["call", "what is summed", "additions", "addresses", "meet", "ordered", "additions alone"]
    header += ["the rest", "disease"]
    return table("Additions to shared places, forecast on an H200", header, rows)


def _pictures(known: dict, times: dict) -> str:
    """Return a picture of each call that has the disease, on the first GPU where it has it."""
    parts = []
    for name, one in known.items():
        gpu = next((gpu for gpu, f in one["forecast"].items() if ill(f)), None)
        if gpu:
            f, taken = one["forecast"][gpu], times.get(gpu, {}).get(name, {}).get("ms")
            parts.append(bars(
                name, gpu.upper(), f["ms"], f["low"], f["high"], f["least"], f["terms"], f["bound"], taken
            ))  # fmt: skip
            parts += [f"*{name}, {one['size']}, on an {gpu.upper()}.* {' '.join(f['warnings'])}"]
    return "\n\n".join(parts)


def _others(known: dict, times: dict) -> str:
    rows = []
    for name, one in known.items():
        row = [f"{name} ({_size(one)})", "" if one["adds"] else one["sums"]]
        for gpu in ("h200", "h100"):
            f = one["forecast"][gpu]
            row += [f"{ms(f['ms'])} ({f['ms'] / f['least']:.1f} ×)", f["bound"]] if gpu == "h200" else [ms(f["ms"])]
        for gpu, taken in times.items():
            measured = taken.get(name, {})
            if "ms" in measured and gpu in one["forecast"]:
                row.append(f"{ms(measured['ms'])} ({one['forecast'][gpu]['ms'] / measured['ms']:.2f})")
            else:
                row.append(measured.get("error", ""))
        rows.append(row)
    header = ["call", "what is summed", "H200 (times its bytes once)", "said to bind", "H100"]
    header += [f"recorded, {gpu.upper()} (forecast over it)" for gpu in times]
    return table("What each call should take, and took", header, rows)


def _waiting(known: dict) -> str:
    slow = [name for name, one in known.items() if one["forecast"]["h200"]["bound"] == "waiting" and not one["adds"]
            and one["forecast"]["h200"]["ms"] > 2 * one["forecast"]["h200"]["least"]]  # fmt: skip
    if not slow:
        return ""
    return (
        f"{len(slow)} of those without additions are forecast at more than twice what their bytes take, and they wait: "
        f"{', '.join(slow)}. Most have one program a multiprocessor, which keeps partial sums few, and with it too few "
        "loads under way (chapter 10). That is no disease; it is what the cure costs when it stops there."
    )


def _outside(cases: dict) -> str:
    rows = []
    for name, one in cases.items():
        if "forecast" in one:
            continue
        adds = "; ".join(
            f"{many(a['additions'])} additions on {many(a['addresses'])} addresses ({a['argument']})"
            for a in one.get("adds", [])
        )
        rows.append([f"{name} ({_size(one)})", one.get("outside") or one.get("error", ""), one["sums"], adds])
    return table("Not forecast", ["call", "why", "what is summed", "additions counted"], rows)


def _near(known: dict, times: dict) -> str:
    """Return how near the forecasts were, GPU by GPU, and which were far off."""
    parts = []
    for gpu, rows in times.items():
        off = {
            name: known[name]["forecast"][gpu]["ms"] / row["ms"]
            for name, row in rows.items()
            if "ms" in row and gpu in known.get(name, {}).get("forecast", {})
        }
        far = [f"{name} ({q:.2f})" for name, q in off.items() if abs(math.log(q)) > math.log(1.5)]
        late = [name for name, q in off.items() if q < 1 / 1.5 and known[name]["fences"]]
        parts.append(
            f"Of {len(off)} calls that were timed on an {gpu.upper()}, {share(off.values(), 1.25):.0%} were forecast "
            f"within 25 %, {share(off.values(), 1.5):.0%} within a factor of 1.5."
        )
        if far:
            parts.append(
                f"Far off, forecast over time: {', '.join(far)}. Nothing is concluded about those calls, whose "
                "verdicts above are the forecasts' alone. The forecasts were made before the times were taken, and "
                "stand as they were."
            )
        if late:
            parts.append(
                f"A likely reason for what takes longer ({', '.join(late)}), which we have not shown: each of its "
                'additions is ordered (`tl.atomic_add` without `sem="relaxed"`), so a warp waits at a fence until all '
                "that it stored before is seen everywhere. The model prices a fence with nothing to wait for. A sum "
                "needs no order."
            )
    return " ".join(parts)


def write() -> None:
    PAGE.write_text(page(), encoding="utf-8")


def main() -> None:
    write()
