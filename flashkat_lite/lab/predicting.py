"""Predictions: a question before its number, the reader's guess, and how far the number is from it.

Guesses are kept on the reader's machine, in a small file, and so outlive a notebook: `predictions` shows them all.
"""

import contextlib
import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

from IPython.display import HTML, display

from flashkat_lite import records

FILE = "FLASHKAT_PREDICTIONS"  # where guesses are kept, for clones that cannot be written
SOURCE = re.compile(r"\d\d-[a-z0-9-]{1,40}")


@dataclasses.dataclass
class Prediction:
    """A question, its unit, the reader's guess and, once it was revealed, the value."""

    question: str
    unit: str
    guess: float | None = None
    value: float | None = None


_asked: dict[str, Prediction] = {}  # by source, in this process


def predict(question: str, unit: str, source: str, guess: Any = None) -> None:
    """Show a question that `reveal(source, …)` answers later in the chapter, and keep the guess, a number of `unit`.

    source: a name in the book, such as "04-launch": the chapter's two digits, then a word; one question each.
    guess: a number of Python, NumPy or PyTorch, or None for none yet; then a quiet line says how to give one.
    Raises TypeError or ValueError where the guess is no finite number, ValueError where the source is no such name.
    """
    if not SOURCE.fullmatch(source):
        raise ValueError(f"source={source!r}: expected a chapter's two digits and a word, such as '04-launch'")
    number = None if guess is None else _number("guess", guess, f"a number{f' of {unit}' if unit else ''} or None")
    _asked[source] = one = Prediction(question, unit, number)
    if number is None:
        place = f", in {unit}" if unit else ""
        said = f"Your number first{place}: write it after <code>guess =</code> in this cell, and run the cell again."
    else:
        said = f"Your guess: {escape(amount(number, unit))}. It is held against the answer below."
        _keep(source, one)
    facts = f'data-source="{escape(source)}" data-unit="{escape(unit)}"'
    asked = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(question))
    display(HTML(f'<div class="fk-predict" {facts}><p>{asked}</p><p class="fk-note">{said}</p></div>'))


def reveal(source: str, value: Any) -> None:
    """Show the measured value that `source` asked for, in its unit, and by what factor the guess is off.

    Where the cell that asks was not run, the value is shown and the line says so. Raises TypeError or ValueError where
    the value is no finite number.
    """
    number = _number("value", value, "the measured number")
    one = _asked.get(source)
    words = f"Measured: {escape(amount(number, one.unit if one else ''))}."
    if one is None:
        words += f" Its question, <code>{escape(source)}</code>, has not been asked: run the cell with the guess first."
    elif one.guess is not None:
        one.value = number
        words += f" {escape(compared(one.guess, number, one.unit))}"
        _keep(source, one)
    display(HTML(f'<p class="fk-reveal" data-source="{escape(source)}" data-value="{number!r}">{words}</p>'))


def predictions(path: str | os.PathLike | None = None) -> None:
    """Show every guess that this machine keeps beside what was measured, and by what factor they are off; save them.

    path: a file to write, to hand in or to take elsewhere: JSON, {source: {question, unit, guess, value}}.
    """
    kept = kept_on_this_machine() | {k: v for k, v in _asked.items() if v.guess is not None}
    if path is not None:
        Path(path).write_text(_text(kept), encoding="utf-8")
    if not kept:
        display(
            HTML('<p class="fk-note">No guesses yet: each chapter has cells that ask, with <code>guess =</code>.</p>')
        )
        return
    heads = "".join(f'<th scope="col">{head}</th>' for head in ("question", "guess", "measured", "off by"))
    rows = ""
    for source, one in sorted(kept.items()):
        measured = "–" if one.value is None else amount(one.value, one.unit)
        off = quotient(one)
        cells = amount(one.guess, one.unit), measured, "–" if off is None else f"× {factor(off)}"
        asked = f"{int(source[:2])}. {one.question}"
        rows += f'<tr><th scope="row">{escape(asked)}</th>{"".join(f"<td>{escape(c)}</td>" for c in cells)}</tr>'
    found = [abs(math.log(off)) for one in kept.values() if (off := quotient(one))]
    under = ""
    if found:
        high = sum((quotient(one) or 0) > 1 for one in kept.values())
        under = (
            f'<p class="fk-source">Half of the {len(found)} are off by a factor of {factor(math.exp(median(found)))} '
        )
        under += f"or less; {high} are too high.</p>"
    display(HTML(f'<table class="fk-table"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>{under}'))


# In words


def compared(guess: float, value: float, unit: str) -> str:
    """Return the sentence about a guess; a quotient is said of two numbers above zero."""
    mine = f"Your guess, {amount(guess, unit)}, "
    if guess == value:
        return f"{mine}is right."
    if guess <= 0 or value <= 0:
        return f"{mine}is too {'high' if guess > value else 'low'}."
    times = max(guess / value, value / guess)
    if times < 1.05:
        return f"{mine}is within 5 %."
    return f"{mine}is {factor(times)} times too {'high' if guess > value else 'low'}."


def quotient(one: Prediction) -> float | None:
    """Return guess over value; None where either is missing or not above zero."""
    return one.guess / one.value if one.guess and one.value and one.guess > 0 and one.value > 0 else None


def factor(times: float) -> str:
    """Return a factor with two digits."""
    return _figure(float(f"{times:.2g}"))


def amount(number: float, unit: str) -> str:
    """Return a number with four digits, or all of an integer's, and its unit."""
    return f"{_figure(number if number == int(number) else float(f'{number:.4g}'))} {unit}".rstrip()


def _figure(number: float) -> str:
    if number == int(number) and abs(number) < 1e15:
        return f"{int(number):,}"
    return f"{number:,}" if 1e-4 <= abs(number) < 1e15 else f"{number:.4g}"


def _number(what: str, given: Any, expected: str) -> float:
    if isinstance(given, bool | str | bytes | complex) or not hasattr(given, "__float__"):
        raise TypeError(f"{what}={given!r}: expected {expected}")
    try:
        number = float(given)
    except (TypeError, ValueError, RuntimeError, OverflowError):  # a tensor of several numbers, say
        raise TypeError(f"{what}={given!r}: expected {expected}") from None
    if not math.isfinite(number):
        raise ValueError(f"{what}={given!r}: expected {expected}, and a finite one")
    return number


# On this machine


def file() -> Path | None:
    """Return where guesses are kept: what FLASHKAT_PREDICTIONS names, else in the clone's _build; else None."""
    if given := os.environ.get(FILE):
        return Path(given)
    return records.root() / "_build" / "predictions.json" if records.in_clone() else None


def kept_on_this_machine() -> dict[str, Prediction]:
    """Return what the file holds, by source; nothing where there is none, or it is not ours."""
    try:
        return read(json.loads(file().read_text(encoding="utf-8")))
    except (AttributeError, OSError, ValueError):
        return {}


def read(data: Any) -> dict[str, Prediction]:
    """Return the predictions in a file's JSON; what is none of ours is left out."""
    found = {}
    for source, one in data.items() if isinstance(data, Mapping) else ():
        if SOURCE.fullmatch(source) and isinstance(one, Mapping):
            words = [one.get(name) for name in ("question", "unit")]
            numbers = [one.get(name) for name in ("guess", "value")]
            is_ours = [type(n) in (int, float) and abs(n) < 1e300 for n in numbers]
            if all(isinstance(word, str) for word in words) and is_ours[0] and (is_ours[1] or numbers[1] is None):
                found[source] = Prediction(*words, *(None if n is None else float(n) for n in numbers))
    return found


def _text(kept: Mapping[str, Prediction]) -> str:
    plain = {source: dataclasses.asdict(one) for source, one in sorted(kept.items())}
    return json.dumps(plain, indent=1, ensure_ascii=False) + "\n"


def _keep(source: str, one: Prediction) -> None:
    """Keep a guess; one that is given anew forgets its value. Where the file cannot be written, keep nothing."""
    path = file()
    if path is None:
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(_text(kept_on_this_machine() | {source: one}), encoding="utf-8")
        partial.replace(path)
