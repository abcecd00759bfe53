"""The pages that `make grade` writes: one for each notebook, and an index with the class's results.

Whatever a student wrote is escaped, and the pages may load and run nothing.
"""

import dataclasses
from html import escape
from urllib.parse import quote

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

    @property
    def points(self):
        return sum(row.points for row in self.rows)

    @property
    def worth(self):
        return sum(row.worth for row in self.rows)

    def line(self):
        troubles = "".join(f" ({row.message})" for row in self.rows if not row.exercise)
        return f"{self.name}: {self.points:g} of {self.worth}{troubles}"


def pages(graded):
    """The text of each page, by its place in the folder of feedback."""
    return {"index.html": index(graded)} | {f"{one.name}.html": page(one) for one in graded}


def page(one):
    """A student's page."""
    parts = [f"<p><strong>{one.points:g} of {one.worth} points</strong></p>"]
    for row in one.rows:
        if not row.exercise:
            parts.append(f"<p>{escape(row.message)}</p>")
            continue
        parts.append(f"<h2>{escape(row.exercise)}: {row.points:g} of {row.worth}</h2>")
        if row.speed:
            parts.append(f"<p>Speed: {escape(row.speed)}.</p>")
        if row.message:
            parts += [f"<pre>{escape(row.message)}</pre>", f"<p>{escape(meaning(row))}</p>"]
            if not row.points:
                parts.append(f"<p>Hint: {escape(one.stubs[row.exercise].hint)}</p>")
        else:
            parts.append("<p>All points.</p>")
        if row.printed:
            parts.append(f"<p>The check printed:</p><pre>{escape(row.printed)}</pre>")
    if one.failed:
        parts.append("<h2>Other cells that failed</h2>")
        parts += [f"<pre>{escape(source)}\n{escape(message)}</pre>" for source, message in one.failed[:10]]
    return HEAD.format(title=escape(one.name)) + "\n".join(parts) + "\n</body></html>\n"


def meaning(row):
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
        troubles = " ".join(row.message for row in one.rows if not row.exercise)
        link = f'<a href="{quote(one.name)}.html">{escape(one.name)}</a>'
        lines.append(f"<tr><td>{link}</td><td>{one.points:g}</td><td>{one.worth}</td><td>{escape(troubles)}</td></tr>")
        for row in one.rows:
            if row.exercise:
                tried[row.exercise] = tried.get(row.exercise, 0) + 1
                solved[row.exercise] = solved.get(row.exercise, 0) + (row.points == row.worth)
                earned[row.exercise] = earned.get(row.exercise, 0) + row.points / row.worth
    lines.append("</table>\n<h2>Exercises</h2>")
    lines.append("<table><tr><th>exercise</th><th>all points</th><th>notebooks</th><th>mean</th></tr>")
    for name in sorted(tried):
        mean = f"{earned[name] / tried[name]:.0%}"
        lines.append(f"<tr><td>{escape(name)}</td><td>{solved[name]}</td><td>{tried[name]}</td><td>{mean}</td></tr>")
    return HEAD.format(title="Grades") + "\n".join(lines) + "\n</table></body></html>\n"
