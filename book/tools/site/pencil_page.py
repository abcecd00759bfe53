"""The page *How far the pencil reaches*: forecasts over records, from book/forecasts and book/data, misses first.

`python book/tools pencil_page` writes book/pencil.md anew; so does `python book/tools forecasts`.
"""

import json
import math
from collections.abc import Iterable
from typing import Any

from ..paths import KEPT, ROOT

FORECASTS, PAGE = ROOT / "book" / "forecasts", ROOT / "book" / "pencil.md"
WORDS = {
    "forward_ladder": "forward passes (chapter 4)",
    "bytes_in_flight": "bytes in flight (5)",
    "strides_and_alignment": "strides (5)",
    "atomic_rate": "additions by addresses (6)",
    "atomic_sharing": "one warp's additions (6)",
    "suspects": "suspects (8)",
    "collisions": "lanes that add (8)",
    "contention": "sums spread (8)",
    "block_tiles": "tiles (9)",
    "block_widths": "widths (9)",
    "in_flight": "stages and programs (10)",
    "second_stage": "second launches (10)",
    "rungs_float32": "rungs (10)",
    "bf16_steps": "steps in bfloat16 (11)",
    "rmsnorm": "RMSNorm's backward (15)",
    "bias": "a bias's gradient (15)",
    "embedding": "an embedding's gradient (15)",
}
# Which cases a price was computed from: these say nothing about the model.
FITTED = {
    "forward_ladder": ("an element a thread float32 768",),
    "atomic_rate": tuple(f"{k} at 32 bytes" for k in (1, 2, 4, 8, 32)) + ("131072 at 128 bytes", "each lane its own"),
    "second_stage": ("and a launch, 32 warps, tiles of 16,384",),
}
WHY = {
    "one unit's additions": "where lines lie at L2's units is known for neighbours only; the range spans placements",
    "additions": "where additions meet within a short time is not modelled, only where they meet in all",
    "waiting": "how late loads come while others wait too is a mean; warps here wait in step",
    "HBM": "bytes bind by the model; what else the kernel does hides less well than assumed",
    "L2": "what L2 keeps, and for how long, is a rule of thumb",
    "issue": "ports and pairings of instructions are only partly known",
    "programs": "starting a program costs more where it asks for more",
}
TEXT = """# How far the pencil reaches

`flashkat_lite.xray` says how long a kernel should take on a GPU that is not there: it counts in Triton's interpreter
what some programs do, compiles the kernel for the GPU, and prices both. This page holds each forecast to the recorded
time of a kernel of ours: the quotient is forecast over record, so 0.8 means that the pencil was 20 % too fast. Left out
are PyTorch's own operations and `tl.dot`. `python book/tools forecasts` computes the page anew.

{shares}

*Bytes alone*: bytes of HBM over bandwidth, and the launch. *Slowest term*: the largest of all terms, without queues.
Both use the same counts and prices.

**What was fitted on what.** Prices are computed from records by `make prices`: bandwidth and a launch from plain
streams, additions, programs and a second launch from {fitted} cases below (marked *price*), the rest from experiments
that are not listed here. Six constants were chosen by hand: the cost of a barrier behind loads (RMSNorm), of reading
and of completing a word that is alone in its page of HBM (two of the fresh kernels, *gathered* and *scattered*), the
evenness of L2's hash (`atomic_rate`), the half of L2 that holds what is added to (an embedding's gradient), L2's knee
(`bandwidth_by_size`). The model's structure was chosen with the
H200's table in view. So the table cannot show how it
does on kernels that nobody has seen; the fresh ones at the end are for that.

{figure}

{families}

## Misses

{misses}

## Fresh kernels

{fresh}

## Every case

{cases}
"""


def quotient(row: dict[str, Any]) -> float:
    return row["ms"] / row["recorded"]


def share(quotients: Iterable[float], factor: float) -> float:
    """Return the share of quotients within a factor, either way."""
    values = list(quotients)
    return sum(abs(math.log(q)) <= math.log(factor) for q in values) / max(len(values), 1)


def is_fitted(row: dict[str, Any]) -> bool:
    return row["case"] in FITTED.get(row["family"], ())


def forecasts() -> dict[str, list[dict[str, Any]]]:
    """Return {GPU: rows} of the committed forecasts beside records."""
    paths = sorted(FORECASTS.glob("*.json"), key=lambda path: (path.stem != "h200", path.stem))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths if path.stem != "fresh"}


def table(caption: str, header: list[str], rows: list[list[str]]) -> str:
    lines = [f":::{{list-table}} {caption}", ":header-rows: 1", ":stub-columns: 1", ""]
    for row in [header, *rows]:
        lines += [f"{'  ' if k else '* '}- {cell or '–'}" for k, cell in enumerate(row)]
    return "\n".join([*lines, ":::"])


def page() -> str:
    """Return the page's text."""
    found = forecasts()
    fitted = sum(map(is_fitted, next(iter(found.values()), [])))
    return TEXT.format(
        shares=_shares(found), fitted=fitted, figure=_figure(found), families=_families(found),
        misses=_misses(found), fresh=_fresh(), cases=_cases(found),
    )  # fmt: skip


def _shares(found: dict[str, list]) -> str:
    rows = []
    for gpu, all_ in found.items():
        for what, some in (
            (f"{gpu.upper()}, all", all_),
            (f"{gpu.upper()}, without those a price comes from", [r for r in all_ if not is_fitted(r)]),
        ):
            q = [quotient(r) for r in some]
            rows.append(
                [
                    what,
                    f"{len(some)}",
                    *(f"{share(q, f):.0%}" for f in (1.1, 1.25, 1.5)),
                    f"{min(q):.2f} to {max(q):.2f}",
                ]
            )
        for name in ("bytes", "slowest term"):
            q = [r["simpler"][name] / r["recorded"] for r in all_]
            label = {"bytes": "bytes alone", "slowest term": "slowest term alone"}[name]
            rows.append(
                [
                    f"{gpu.upper()}, {label}",
                    f"{len(q)}",
                    *(f"{share(q, f):.0%}" for f in (1.1, 1.25, 1.5)),
                    f"{min(q):.2f} to {max(q):.2f}",
                ]
            )
    return table(
        "Forecasts over records",
        ["forecasts", "cases", "within 10 %", "within 25 %", "within 1.5 ×", "quotients"],
        rows,
    )


def _families(found: dict[str, list]) -> str:
    rows = []
    for gpu, all_ in found.items():
        for family in dict.fromkeys(r["family"] for r in all_):
            q = [quotient(r) for r in all_ if r["family"] == family]
            rows.append(
                [
                    f"{WORDS[family]}, {gpu.upper()}",
                    f"{len(q)}",
                    *(f"{share(q, f):.0%}" for f in (1.1, 1.25, 1.5)),
                    f"{min(q):.2f} to {max(q):.2f}",
                ]
            )
    return table("By family", ["family", "cases", "within 10 %", "within 25 %", "within 1.5 ×", "quotients"], rows)


def _misses(found: dict[str, list]) -> str:
    rows = []
    for gpu, all_ in found.items():
        far = sorted(
            (r for r in all_ if abs(math.log(quotient(r))) > math.log(1.25)), key=lambda r: -abs(math.log(quotient(r)))
        )
        for r in far:
            spans = r["low"] <= r["recorded"] <= r["high"]
            why = WHY.get(r["bound"], "a pipe's throughput is a known figure of the architecture, not measured here")
            within = "inside the range given" if spans else "outside of the range given"
            rows.append(
                [
                    f"{WORDS[r['family']]}: {r['case']}, {gpu.upper()}",
                    f"{quotient(r):.2f}",
                    r["bound"],
                    f"{within}; {why}",
                ]
            )
    if not rows:
        return "None is off by more than 25 %."
    return table(
        "Off by more than 25 %, farthest first",
        ["case", "forecast over record", "said to bind", "why, as far as we know"],
        rows,
    )


def _cases(found: dict[str, list]) -> str:
    parts = []
    for gpu, all_ in found.items():
        rows = []
        for r in all_:
            name = f"{WORDS[r['family']]}: {r['case']}{' (price)' * is_fitted(r)}"
            rows.append([name, f"{r['recorded']:.4g}", f"{r['ms']:.4g}", f"{quotient(r):.2f}", r["bound"]])
        parts.append(
            table(f"{gpu.upper()}", ["case", "recorded (ms)", "forecast (ms)", "quotient", "said to bind"], rows)
        )
    return "\n\n".join(parts)


def _fresh() -> str:
    path = FORECASTS / "fresh.json"
    if not path.exists():
        return "None has been forecast yet."
    cases, parts = json.loads(path.read_text(encoding="utf-8")), []
    records = {p.parent.name: json.loads(p.read_text(encoding="utf-8")) for p in KEPT.glob("*/xray_fresh.json")}
    parts.append(
        f"{len(cases)} kernels that the model had not seen, forecast and committed before they were measured "
        "(`python book/tools fresh --forecast`)."
    )
    for gpu, record in sorted(records.items()):
        ms = {row["what"]: row["ms"] for row in record["data"]}
        q = [cases[name][gpu]["ms"] / ms[name] for name in cases if name in ms and "ms" in cases[name].get(gpu, {})]
        worst = f"{min(q):.2f} to {max(q):.2f}"
        parts.append(
            f"On {record['device']['name']} ({record['date']}): {share(q, 1.25):.0%} of {len(q)} within 25 %, "
            f"{share(q, 1.5):.0%} within 1.5; {worst}."
        )
    if records:
        parts.append(
            "The forecasts below are the first ones. What they missed was mended afterwards: words scattered over "
            "memory cost more than bytes, a fetch completes all sectors that it holds, and few programs leave most of "
            "the GPU idle. So these kernels are fresh no more. Still too fast, and not explained: a transpose by rows, "
            "a histogram that counts in the program first."
        )
    else:
        parts.append("They have not been measured yet: `python book/tools fresh` on a GPU, then `make record`.")
    rows = []
    for name, by_gpu in cases.items():
        for gpu, one in by_gpu.items():
            ms = next((r["ms"] for r in records.get(gpu, {"data": []})["data"] if r["what"] == name), None)
            if "ms" not in one:
                rows.append([f"{name}, {gpu.upper()}", "outside of the model", "", "", ""])
                continue
            said = f"{one['ms']:.4g} ({one['low']:.3g} to {one['high']:.3g})"
            beside = [f"{ms:.4g}", f"{one['ms'] / ms:.2f}"] if ms else ["", ""]
            rows.append([f"{name}, {gpu.upper()}", said, *beside, one["bound"]])
    parts.append(table("Fresh kernels", ["case", "forecast (ms)", "recorded (ms)", "quotient", "said to bind"], rows))
    return "\n\n".join(parts)


def _figure(found: dict[str, list]) -> str:
    """Return a picture: each case a dot, by its record (logarithmic) and its quotient."""
    if not found:
        return ""
    rows = [(gpu, r) for gpu, all_ in found.items() for r in all_]
    logs = [math.log10(r["recorded"]) for _, r in rows]
    least, most = math.floor(min(logs)), math.ceil(max(logs))

    def x(ms: float) -> float:
        return 60 + 600 * (math.log10(ms) - least) / max(most - least, 1)

    def y(q: float) -> float:
        return 130 - 100 * max(min(math.log(q) / math.log(2), 1.2), -1.2)

    parts = []
    text = '<text x="{:.1f}" y="{:.1f}" text-anchor="{}" font-size="14" fill="currentColor">{}</text>'
    for q, label in ((1.5, "1.5"), (1.25, "1.25"), (1, "1"), (0.8, "0.8"), (1 / 1.5, "0.67")):
        height, strength = y(q), 0.8 if q == 1 else 0.25
        line = f'<line x1="60" x2="660" y1="{height:.1f}" y2="{height:.1f}" stroke="currentColor"'
        parts += [f'{line} stroke-opacity="{strength}"/>', text.format(52, height + 5, "end", label)]
    parts += [text.format(x(10.0**k), 268, "middle", f"{10.0**k:g}") for k in range(least, most + 1)]
    parts.append(text.format(360, 290, "middle", "recorded (ms)"))
    colours = dict(zip(found, ("var(--fk-blue, #0072b2)", "var(--fk-orange, #d55e00)", "var(--fk-green, #009e73)")))
    for gpu, r in rows:
        place = f'cx="{x(r["recorded"]):.1f}" cy="{y(quotient(r)):.1f}"'
        parts.append(f'<circle {place} r="3.2" fill="{colours[gpu]}" fill-opacity="0.65"/>')
    for k, (gpu, colour) in enumerate(colours.items()):
        parts.append(f'<circle cx="{74 + 90 * k}" cy="14" r="5" fill="{colour}"/>')
        parts.append(text.format(84 + 90 * k, 19, "start", gpu.upper()))
    within = "; ".join(
        f"{gpu.upper()}: {share(map(quotient, all_), 1.25):.0%} of {len(all_)} within 25 %"
        for gpu, all_ in found.items()
    )
    label = f"Forecast over record, a dot a case, against the recorded time. {within}"
    box = 'viewBox="0 0 680 300" style="width:100%;max-width:680px;height:auto"'
    return f'<svg role="img" aria-label="{label}" {box}>{"".join(parts)}</svg>'


def write() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


def main() -> None:
    write()
