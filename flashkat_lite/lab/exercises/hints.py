"""Hints, which unfold a step at a time: a step for each sentence of the hint in a stub's metadata."""

import functools
import json
import re
from html import escape

from IPython.display import HTML, display

from flashkat_lite import records

from ..xraying import wanted

SENTENCE = re.compile(r"(?<=[.?!]) +(?=\S)")


@functools.cache
def of_chapter(chapter: str) -> dict[str, list[str]]:
    """Return the steps to each exercise of a chapter, such as "09"; none where the chapters are not at hand."""
    found = {}
    for path in (records.REPOSITORY / "chapters").glob(f"{chapter}_*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            facts = cell["metadata"].get("exercise", {})
            if "hint" in facts:
                found[facts["id"]] = SENTENCE.split(facts["hint"])
    return found


def hint(number: str) -> None:
    """Show the hints to an exercise, as `hint("09-3")`: folded, each in the one before.

    Raises ValueError where there is none.
    """
    steps = of_chapter(number[:2]).get(number)
    if not steps:
        raise ValueError(f"no hint to {number!r}: expected an exercise of a chapter in this clone, such as '09-3'")
    inner = ""
    for place, step in reversed(list(enumerate(steps))):
        text = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(step, quote=False))
        inner = f"<details><summary>{'Another hint' if place else 'Hint'}</summary><p>{text}</p>{inner}</details>"
    display(HTML(inner))


def offered(number: str) -> str:
    """Return the line that offers the hints to an exercise: in a reader's notebook, where there are some, else ""."""
    return (
        f'Stuck? lab.hint("{number}") unfolds a hint, a step at a time.' if wanted() and of_chapter(number[:2]) else ""
    )
