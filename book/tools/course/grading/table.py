"""The table of grades: rows that outlive a run that was cut short, and corrections made by hand.

grades.csv is replaced in one step, with the rows of files that were not graded this time as they were; the table of the
run before is kept beside it, with its date. overrides.csv (file, exercise, points, comment) is read at each run.
"""

import csv
import datetime
import io
import math
import os
import re
from pathlib import Path
from typing import NamedTuple

HEADER = ("file", "exercise", "points", "out of", "message", "speed", "note", "seen")
GONE = "the file is gone"
BY_HAND = "by hand"


class Row(NamedTuple):
    """What one exercise of one submission earned; `exercise` is "" where there is nothing to score."""

    exercise: str
    points: float
    worth: int
    message: str  # "" for all points
    speed: str = ""
    printed: str = ""
    note: str = ""
    seen: str = ""  # in the file's first row: what a teacher may want to look at


def replace(path, text):
    """Writes a file so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        if isinstance(text, str):
            text = text.encode("utf-8", "backslashreplace")
        partial.write_bytes(text)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def cell(text):
    """What somebody wrote as a cell: one line, which a spreadsheet does not take for a formula."""
    return _safe("".join(c if c.isprintable() else " " for c in text))


def _safe(text):
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "'", "\t", "\r")) else text


def _plain(text):
    return text[1:] if re.match(r"'[=+\-@'\t\r]", text) else text


def _number(text):
    """A number as people write it in a table, or None."""
    try:
        number = float(text.strip().replace(",", "."))
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def read_lines(data):
    """A table's lines as {column: text}, as spreadsheets write them: with a mark in front, or semicolons."""
    text = data.decode("utf-8-sig", "backslashreplace").replace("\0", "")
    separator = ";" if text.partition("\n")[0].count(";") > text.partition("\n")[0].count(",") else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    header = [name.strip().lower() for name in next(reader, [])]
    return header, [dict(zip(header, map(_plain, line))) for line in reader if any(line)]


class Table:
    """grades.csv in a folder: `rows` holds what it held before this run, by file."""

    def __init__(self, folder):
        self.path, self.rows, self.trouble = folder / "grades.csv", {}, ""
        self.before = self.path.read_bytes() if self.path.exists() else None
        try:
            header, lines = read_lines(self.before or b"")
        except csv.Error as error:
            header, lines, self.trouble = [], [], f"grades.csv could not be read ({error}): begun anew"
        if self.before and not {*HEADER[:5]} <= {*header}:
            lines, self.trouble = [], "grades.csv was no table of ours: begun anew"
        for line in lines:
            points, worth = _number(line.get("points", "")), _number(line.get("out of", ""))
            note = line.get("note", "")
            if points is None:
                note = f"points were {line.get('points')!r}; {note}".rstrip("; ")
            row = Row(line.get("exercise", ""), points or 0, worth or 0, line.get("message", ""), line.get("speed", ""))
            self.rows.setdefault(line["file"], []).append(row._replace(note=note, seen=line.get("seen", "")))

    def write(self, graded):
        """Replaces the table by the rows of `graded`; the first time, keeps the one that was there under its date."""
        if self.before is not None:
            stamp = f"{datetime.datetime.now():%Y-%m-%d-%H%M%S}"
            number, kept = 1, self.path.with_name(f"grades.{stamp}.csv")
            while kept.exists():
                number += 1
                kept = self.path.with_name(f"grades.{stamp}-{number}.csv")
            replace(kept, self.before)
            self.before = None
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(HEADER)
        for one in graded:
            for row in one.rows:
                numbers = f"{row.points:g}", f"{row.worth:g}"
                words = map(cell, (row.message, row.speed, row.note, row.seen))
                writer.writerow((_safe(one.name), row.exercise, *numbers, *words))
        replace(self.path, "\ufeff" + text.getvalue())  # the mark tells spreadsheets that it is UTF-8


class Overrides:
    """overrides.csv in a folder, and what could not be understood of it."""

    def __init__(self, folder):
        self.path, self.troubles, self.given, self.used = folder / "overrides.csv", [], {}, set()
        if not self.path.exists():
            return
        header, lines = read_lines(self.path.read_bytes())
        if not {"file", "exercise", "points"} <= {*header}:
            raise ValueError(f"{self.path}: its first line must name the columns file, exercise, points, comment")
        for number, line in enumerate(lines, 2):
            exercise, points = line.get("exercise", "").strip(), _number(line.get("points") or "")
            if exact := re.fullmatch(r"(\d+)[-.](\d+)", exercise):
                exercise = f"{int(exact[1]):02}-{exact[2]}"
            if points is None or not exercise:
                self.troubles.append(f"overrides.csv, line {number}: points must be a number and exercise be given")
            else:
                self.given[line["file"].strip(), exercise] = points, (line.get("comment") or "").strip()

    def apply(self, name, rows, worths):
        """The rows of a file with its corrections; `worths` says what an exercise that has no row is worth."""
        rows = list(rows)
        for (file, exercise), (points, comment) in self.given.items():
            if file != name:
                continue
            at = next((at for at, row in enumerate(rows) if row.exercise == exercise), None)
            if at is None:
                if exercise not in worths():
                    continue
                at = len(rows)
                rows.append(Row(exercise, 0, worths()[exercise], ""))
            note = f"{BY_HAND}: {comment}" if comment else BY_HAND
            rows[at] = rows[at]._replace(points=points, note=note)
            self.used.add((file, exercise))
        return rows

    def unused(self):
        return [f"overrides.csv: no {exercise} of {file!r}" for file, exercise in self.given if (file, exercise) not in
                self.used]  # fmt: skip


def home(folder):
    """The folder, made where it is missing; OSError where it cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    tried = folder / ".grades.csv.partial"
    tried.write_bytes(b"")
    tried.unlink()
    return Path(folder)
