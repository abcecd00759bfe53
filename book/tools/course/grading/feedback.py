"""The pages that `make grade` writes: one for each notebook, and an index with the class's results.

Whatever a student wrote is escaped, and the pages may load and run nothing.
"""

import dataclasses
import hashlib
from html import escape
from pathlib import PurePosixPath
from urllib.parse import quote

from . import table

# By the name of the error that a message begins with.
MEANINGS = {
    "NotImplementedError": "The stub is as it was handed out.",
    "Wrong": "Your code ran, and its answer is not the expected one.",
    "NameError": "A name that the check needs is missing: was its cell changed, or did it fail?",
    "SyntaxError": "The cell is not valid Python, so nothing in it was defined.",
    "TimeoutError": "It took longer than a cell may take: look for a loop that does not end.",
    "KeyboardInterrupt": "It took longer than a cell may take: look for a loop that does not end.",
}
HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>
body {{ font: 16px/1.5 sans-serif; max-width: 48rem; margin: 2rem auto; padding: 0 1rem; color-scheme: light dark }}
table {{ border-collapse: collapse }} td, th {{ padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; border-left: 3px solid; padding-left: .8rem }}
</style></head><body>
<h1>{title}</h1>
"""


@dataclasses.dataclass
class Graded:
    """A graded notebook: its name in the folder, its exercises' stubs, their rows, and the other cells that failed."""

    name: str
    stubs: dict
    rows: list
    failed: list
    page: str = ""  # its place below the folder of feedback
    guesses: list = dataclasses.field(default_factory=list)

    @property
    def points(self):
        return sum(row.points for row in self.rows)

    @property
    def worth(self):
        return sum(row.worth for row in self.rows)

    @property
    def seen(self):
        """What a teacher may want to look at; the student's page has none of it."""
        return [one for row in self.rows for one in row.seen.split("; ") if one]

    def line(self):
        troubles = f" ({self.troubles})" if self.troubles else ""
        return f"{self.name}: {self.points:g} of {self.worth:g}{troubles}"

    @property
    def troubles(self):
        """What is to be said of the file as a whole."""
        notes = [row.note for row in self.rows if not row.note.startswith(("defined", table.BY_HAND, "before it"))]
        return "; ".join(dict.fromkeys(filter(None, [*(r.message for r in self.rows if not r.exercise), *notes])))


def places(names):
    """The place of each name's page below the folder of feedback; no two differ by case alone."""
    made = {name: "/".join(map(_part, PurePosixPath(f"{name}.html").parts)) for name in names}
    taken = {}
    for name, place in made.items():
        taken.setdefault(place.casefold(), []).append(name)
    for place, sharing in taken.items():
        if len(sharing) > 1 or place == "index.html":
            made |= {name: other_place(name) for name in sharing}
    return made


def other_place(name):
    """A place that any system can hold."""
    return f"page-{hashlib.sha256(name.encode()).hexdigest()[:16]}.html"


def _part(part):
    """A part of a path, as it is or, where a system would refuse it, shortened and with a hash."""
    long = len(part.encode()) > 200
    if not long and part not in ("..", ".", "/"):
        return part
    stem = part.encode()[:100].decode(errors="ignore") if long else "up"
    return f"{stem}-{hashlib.sha256(part.encode()).hexdigest()[:16]}{'.html' if part.endswith('.html') else ''}"


def page(one):
    """A student's page."""
    parts = [f"<p><strong>{one.points:g} of {one.worth:g} points</strong></p>"]
    for row in one.rows:
        if not row.exercise:
            parts.append(f"<p>{escape(row.message)}</p>")
            continue
        parts.append(f"<h2>{escape(row.exercise)}: {row.points:g} of {row.worth:g}</h2>")
        if row.note:
            parts.append(f"<p>{escape(row.note[:1].upper() + row.note[1:])}.</p>")
        if row.speed:
            parts.append(f"<p>Speed: {escape(row.speed)}.</p>")
        if row.message:
            parts += [f"<pre>{escape(row.message)}</pre>", f"<p>{escape(meaning(row))}</p>"]
            if not row.points and row.exercise in one.stubs:
                parts.append(f"<p>Hint: {escape(one.stubs[row.exercise].hint)}</p>")
        else:
            parts.append("<p>All points.</p>")
        if row.printed:
            parts.append(f"<p>The check printed:</p><pre>{escape(row.printed)}</pre>")
    if one.failed:
        parts.append("<h2>Other cells that failed</h2>")
        parts += [f"<pre>{escape(source)}\n{escape(message)}</pre>" for source, message in one.failed[:10]]
    if one.guesses:
        parts.append(
            "<h2>Predictions</h2><table><tr><th>question</th><th>guess</th><th>measured</th><th>over</th></tr>"
        )
        for found in one.guesses:
            numbers = ("–" if n is None else f"{n:,.4g}" for n in (found.guess, found.value, found.quotient))
            cells = "".join(f"<td>{number}</td>" for number in numbers)
            unit = f", in {found.unit}" if found.unit else ""
            parts.append(f"<tr><td>{escape(f'{found.source}: {found.question}{unit}')}</td>{cells}</tr>")
        parts.append("</table>")
    return HEAD.format(title=escape(one.name)) + "\n".join(parts) + "\n</body></html>\n"


def meaning(row):
    if row.note.startswith(table.BY_HAND):
        return "That is what the check said."
    if row.points:
        return "The answer is right; a faster kernel earns the rest."
    name = row.message.partition(":")[0]
    if name in MEANINGS:
        return MEANINGS[name]
    return "Your code failed while the check called it." if name.endswith(("Error", "Exception")) else ""


def index(graded):
    """The class: points of each notebook, then how many solved each exercise."""
    lines = ["<table><tr><th>notebook</th><th>points</th><th>of</th><th></th></tr>"]
    solved, tried, earned = {}, {}, {}
    for one in graded:
        link = f'<a href="{quote(one.page)}">{escape(one.name)}</a>' if one.page else escape(one.name)
        numbers = f"<td>{one.points:g}</td><td>{one.worth:g}</td>"
        lines.append(f"<tr><td>{link}</td>{numbers}<td>{escape(one.troubles)}</td></tr>")
        for row in one.rows:
            if row.exercise:
                tried[row.exercise] = tried.get(row.exercise, 0) + 1
                solved[row.exercise] = solved.get(row.exercise, 0) + (row.points == row.worth)
                earned[row.exercise] = earned.get(row.exercise, 0) + (row.points / row.worth if row.worth else 0)
    lines.append("</table>\n<h2>Exercises</h2>")
    lines.append("<table><tr><th>exercise</th><th>all points</th><th>notebooks</th><th>mean</th></tr>")
    for name in sorted(tried):
        mean = f"{earned[name] / tried[name]:.0%}"
        lines.append(f"<tr><td>{escape(name)}</td><td>{solved[name]}</td><td>{tried[name]}</td><td>{mean}</td></tr>")
    lines.append("</table>")
    if noticed := [one for one in graded if one.seen]:
        lines.append("<h2>Seen, not judged</h2><p>Points do not depend on it. Look at the code, and ask.</p><ul>")
        lines += [f"<li>{escape(one.name)}: {escape('; '.join(one.seen))}</li>" for one in noticed]
        lines.append("</ul>")
    return HEAD.format(title="Grades") + "\n".join(lines) + "\n</body></html>\n"
