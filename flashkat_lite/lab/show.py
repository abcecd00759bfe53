"""What a cell shows beside its figures: claims of the prose, checked, and tables with their provenance."""

import numbers
import re
from collections.abc import Callable, Iterable
from html import escape
from typing import Any

from IPython.display import HTML, display

from flashkat_lite import hardware
from flashkat_lite.records import DEFAULT_GPU, Record, on_other_gpus

from .setup import cap


def claim(
    sentence: str,
    found: Any,
    source: Record | None = None,
    *,
    within: tuple[float | None, float | None] | None = None,
    equals: Any = None,
    holds: bool | None = None,
) -> None:
    """Show `sentence`, the figure behind it, the bound that was claimed, and whether it holds here.

    found: a number, or several, each of which must hold; or any text, with `holds`. The bound is one of: within,
    (least, most), either of which may be None; equals; or holds, the verdict of a condition that the sentence states.

    Without a `source` the figure was counted or derived, and a claim that fails raises AssertionError. With one it was
    measured: a failure raises where the record comes from the default GPU, and on another GPU says that this one
    differs, because a claim about speed is a claim about a machine; so does one measured under a limit on its memory.
    """
    values = list(found) if isinstance(found, list | tuple) else [found]
    if within:
        least, most = within
        true = all((least is None or least <= v) and (most is None or v <= most) for v in values)
    else:
        true = all(v == equals for v in values) if holds is None else bool(holds)
    figure, bound = ", ".join(map(_figure, values)), _bound(within, equals)
    ours = source is None or (hardware.slug(source.gpu) == DEFAULT_GPU and not (source.live and cap()))
    if not true and ours:
        raise AssertionError(f"This claim does not hold: {sentence} Found: {figure}{bound and f'; {bound}'}.")
    kind, mark = ("fk-claim", "✓") if true else ("fk-claim fk-differs", f"✗ not on this {source.gpu}:")
    small = f"{bound}; {source.where}" if bound and source else bound or (source.where if source else "")
    small = f' <span class="fk-source">({escape(small)})</span>' if small else ""
    line = f'<span class="fk-mark">{escape(mark)}</span> {escape(sentence)} <strong>{escape(figure)}</strong>{small}'
    display(HTML(f'<p class="{kind}">{line}</p>'))


def _bound(within: tuple | None, equals: Any) -> str:
    if within is None:
        return "" if equals is None else f"claimed: {_figure(equals)}"
    least, most = (None if end is None else _figure(end) for end in within)
    if least is None or most is None:
        return f"claimed: at most {most}" if least is None else f"claimed: at least {least}"
    return f"claimed: {least} to {most}"


def _figure(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, numbers.Number):
        return str(value)
    if isinstance(value, numbers.Integral):
        return f"{value:,}"
    short = format(value, ",.4g")
    return f"{float(short.replace(',', '')):,.0f}" if isinstance(value, numbers.Real) and "e+0" in short else short


def table(
    headers: dict[str, str],
    rows: Iterable[dict[str, Any]] | Callable[[Any], Iterable[dict[str, Any]]],
    source: Record | None = None,
    *,
    caption: str = "",
) -> None:
    """Show rows under `headers`: {key: "heading"} or {key: "heading|format"}, such as {"ms": "time (ms)|.3f"}.

    caption: what the table shows, in a line above it; without one the page takes the section's heading.
    With a `source`, the provenance stands under the table, and `rows` may be a function of a record's data: then other
    GPUs that have a record of the experiment add their rows.
    """
    records = [source] + (on_other_gpus(source) if callable(rows) else []) if source else []
    body = []
    for record in records or [None]:
        for row in rows(record.data) if callable(rows) else rows:
            body.append(({"gpu": record.gpu} if len(records) > 1 else {}) | row)
    columns = ({"gpu": "GPU"} if len(records) > 1 else {}) | headers
    kinds = [_kind([row.get(k) for row in body]) for k in columns]
    head = "".join(f'<th scope="col"{a}>{escape(h.split("|")[0])}</th>' for h, a in zip(columns.values(), kinds))
    lines = "".join(
        "<tr>"
        + "".join(_cell(row.get(k), h, a, i == 0) for i, ((k, h), a) in enumerate(zip(columns.items(), kinds)))
        + "</tr>"
        for row in body
    )
    under = "".join(f'<p class="fk-source">{escape(r.source[0].upper() + r.source[1:])}.</p>' for r in records)
    named = f"<caption>{escape(caption)}</caption>" if caption else ""
    display(HTML(f'<table class="fk-table">{named}<thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>{under}'))


def _kind(values: list[Any]) -> str:
    """An attribute for a column's cells: words stand on the left, as numbers do on the right."""
    told = [value for value in values if value not in (None, "", "–", "-")]
    words = all(isinstance(one, str) and re.search(r"[^\W\d_]{2}", re.sub("nan|inf", "", one)) for one in told)
    begin = sum(one[0].isalpha() for one in told) if words else 0
    return ' class="fk-words" style="text-align: left"' if begin and 2 * begin >= len(told) else ""


def _cell(value: Any, header: str, kind: str, first: bool) -> str:
    form = header.partition("|")[2]
    text = "–" if value is None else format(value, form) if form and not isinstance(value, str) else str(value)
    return f'<th scope="row"{kind}>{escape(text)}</th>' if first else f"<td{kind}>{escape(text)}</td>"
