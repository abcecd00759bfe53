"""Claims of the prose, checked in the cell below it."""

from collections.abc import Callable
from html import escape
from typing import Any

from IPython.display import HTML, display

from flashkat_lite import hardware

from .records import DEFAULT_GPU, Record


def claim(sentence: str, measured: Any, holds: bool | Callable[[Any], bool], source: Record | None = None) -> None:
    """Show `sentence`, the figure behind it, and whether it holds here.

    `holds` is the verdict or a function of `measured`. Without a `source` the figure was counted or derived, and a
    claim that fails raises AssertionError. With one it was measured: a failure raises where the record comes from the
    default GPU, and on another GPU says that this one differs, because a claim about speed is a claim about a machine.
    """
    true = bool(holds(measured) if callable(holds) else holds)
    form = {str: "", float: ",.4g"}.get(type(measured), ",")
    figure = format(measured, form)
    other = source is not None and hardware.slug(source.gpu) != DEFAULT_GPU
    if not true and not other:
        raise AssertionError(f"This claim does not hold: {sentence} Found: {figure}.")
    kind, mark = ("fk-claim", "✓") if true else ("fk-claim fk-differs", f"✗ not on this {source.gpu}:")
    where = f' <span class="fk-source">({escape(source.where)})</span>' if source else ""
    line = f'<span class="fk-mark">{escape(mark)}</span> {escape(sentence)} <strong>{escape(figure)}</strong>{where}'
    display(HTML(f'<p class="{kind}">{line}</p>'))
