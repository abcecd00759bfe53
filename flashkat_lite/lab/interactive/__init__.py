"""Figures that the reader moves, drawn by interactive.js in a page and in JupyterLab.

Where no script runs, what is in fallback/ stands instead: what the script draws first. `python book/tools fallbacks`
writes it, a test compares.
"""

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path

from IPython.display import HTML, display

from flashkat_lite import coefficients
from flashkat_lite.records import Record

SCRIPT, STYLE = (Path(__file__).with_name(f"interactive.{kind}") for kind in ("js", "css"))
SUBSCRIPTS = "₀₁₂₃₄₅"
FALLBACK = Path(__file__).with_name("fallback")
RUNGS = {"atomic": "Atomic additions", "block": "Block reduction", "stationary": "Stationary sums"}


def race(ladder: Record) -> None:
    """The three backward kernels on one clock: bytes and additions as they go. From the record that `bench` writes."""
    _show("race", _kernels(ladder))


def roofline(ladder: Record) -> None:
    """What memory and the queue of additions allow, and where the three backward kernels stand."""
    _show("roofline", _kernels(ladder))


def rational() -> None:
    """A rational function of degrees (5, 4), its derivative and its denominator, with a slider for each number."""
    presets = []
    for name in ("silu", "gelu", "tanh", "identity"):
        a, b = coefficients.initial(name)
        presets.append({"name": name, "table": [round(c, 4) for c in [*a.flatten().tolist(), *b.flatten().tolist()]]})
    names = [*(f"a{SUBSCRIPTS[i]}" for i in range(6)), *(f"b{SUBSCRIPTS[i]}" for i in range(1, 5))]
    _show("rational", {"names": names, "presets": presets})


def _kernels(ladder: Record) -> dict:
    """The float32 cases of the bench's record: each rung's time, bytes and additions, and the limit's."""
    lines = {(r["columns"], r["what"]): r for r in ladder.data["results"] if r["dtype"] == "float32"}
    cases = [
        {
            "title": str(columns),
            "limit": _numbers(lines[columns, "add"]),
            "rungs": [
                {"kind": kind, "name": name, **_numbers(lines[columns, f"backward_{kind}"])}
                for kind, name in RUNGS.items()
            ],
        }
        for columns in ladder.data["columns"]
        if (columns, "backward_atomic") in lines
    ]
    return {
        "cases": cases,
        "start": min(1, len(cases) - 1),
        "source": f"{ladder.data['rows']:,} rows, float32; times {ladder.source}.",
    }


def _numbers(line: Mapping) -> dict:
    return {"ms": line["ms"], "bytes": line["bytes"], "atomics": line["atomics"]}


def _show(figure: str, settings: Mapping) -> None:
    style, script, fallback = (p.read_text(encoding="utf-8") for p in (STYLE, SCRIPT, FALLBACK / f"{figure}.html"))
    box = (
        f'<div class="fk-motion" data-figure="{figure}" data-settings="{escape(json.dumps(settings))}">{fallback}</div>'
    )
    display(HTML(f"<style>{style}</style>{box}<script>{script}</script>"))
