"""Guesses at the chapters' predictions: of a notebook as it runs, and of files that the book's page saves. No points.

predictions.csv beside the table of grades has a line for each; the lines of a file are replaced as it is graded anew.
"""

import contextlib
import csv
import io
import json
import math
import re
from typing import NamedTuple

from . import table

FILE = "predictions.csv"
SAVED = re.compile(r"predictions\b.*\.json(\.txt)?", re.IGNORECASE)  # "predictions (1).json"
HEADER = ("file", "prediction", "question", "unit", "guess", "measured", "guess over measured")
LARGEST, MOST = 1_000_000, 500  # bytes of a file, guesses in it


class Guess(NamedTuple):
    """A guess at the prediction `source`; `value` is None where its answer was not reached."""

    source: str
    question: str
    unit: str
    guess: float
    value: float | None

    @property
    def quotient(self):
        return self.guess / self.value if self.value and self.value > 0 and self.guess > 0 else None


def read(data):
    """The guesses in a file's bytes, in order; whatever else is there is left out."""
    try:
        entries = json.loads(data.decode(json.detect_encoding(data))) if len(data) <= LARGEST else {}
    except (ValueError, RecursionError):
        return []
    found = []
    for source, one in entries.items() if isinstance(entries, dict) else ():
        if re.fullmatch(r"\d\d-[a-z0-9-]{1,40}", source) and isinstance(one, dict):
            guess, value = (_number(one.get(name)) for name in ("guess", "value"))
            if guess is not None:
                question, unit = (_word(one.get(name)) for name in ("question", "unit"))
                found.append(Guess(source, question, unit, guess, value))
    return sorted(found)[:MOST]


def _number(value):
    return float(value) if type(value) in (int, float) and abs(value) < 1e300 else None


def _word(value):
    return value[:500] if isinstance(value, str) else ""


def kept(folder):
    """What predictions.csv holds, by file; nothing where there is none, or it is not ours."""
    found = {}
    with contextlib.suppress(OSError, csv.Error):
        header, lines = table.read_lines((folder / FILE).read_bytes())
        for line in lines if header == list(HEADER) else ():
            numbers = [_given(line.get(name, "")) for name in ("guess", "measured")]
            if numbers[0] is not None:
                words = (line.get(name, "") for name in HEADER[1:4])
                found.setdefault(line["file"], []).append(Guess(*words, *numbers))
    return found


def _given(text):
    with contextlib.suppress(ValueError):
        return float(text) if math.isfinite(float(text)) else None
    return None


def write(folder, by_file):
    """Replaces predictions.csv; makes none where nobody has guessed."""
    if not any(by_file.values()) and not (folder / FILE).exists():
        return
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(HEADER)
    for name in sorted(by_file):
        for one in by_file[name]:
            words = map(table.cell, (name, one.source, one.question, one.unit))
            numbers = ("" if n is None else f"{n:.12g}" for n in (one.guess, one.value))
            writer.writerow((*words, *numbers, "" if one.quotient is None else f"{one.quotient:.4g}"))
    table.replace(folder / FILE, text.getvalue())
