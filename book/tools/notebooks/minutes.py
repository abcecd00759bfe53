"""Says how long each chapter takes to read, counted: words, visible lines of code, predictions; exercises apart."""

import math
import re

from .. import notebooks

WORDS, LINES, MINUTES = 2600, 200, 45  # the most that a chapter should have
HIDDEN = {"hide-input", "hide-cell", "remove-cell", "remove-input", "predict"}  # a prediction has minutes of its own
FORMULA = re.compile(r"\$\$.*?\$\$(?: \(eq-[\w-]+\))?", re.DOTALL)
ANSWERS = 5  # minutes for a self-test
A_POINT = 4  # minutes for an exercise's point


def parts(notebook):
    """The chapter's markdown as (prose, exercises); prose is all the rest: recap, folds, self-test and summary too."""
    prose, exercises, where = [], [], None
    for cell in notebook.cells:
        if cell.cell_type != "markdown":
            continue
        for section in re.split(r"(?m)^(?=## )", cell.source):
            if section.startswith("## ") or where is None:
                where = exercises if section.startswith("## Exercises") else prose
            where.append(section)
    return "\n".join(prose), "\n".join(exercises)


def words(text):
    """Words of a text; a displayed formula is none, and a formula in a line is one for each blank in it."""
    return len(re.findall(r"\S*[\w$]\S*", FORMULA.sub(" ", text)))


def visible_lines(notebook):
    """Lines of code that the page shows unasked and that are not blank, without exercises and predictions."""
    shown = [cell for cell in notebooks.code_cells(notebook) if not HIDDEN & set(notebooks.tags(cell))]
    return sum(
        bool(line.strip()) for cell in shown if not notebooks.exercise(cell) for line in cell.source.splitlines()
    )


def predictions(notebook):
    return sum("predict" in notebooks.tags(cell) for cell in notebook.cells)


def count(notebook):
    """{"words", "lines", "predictions", "minutes", "exercises"}: minutes are full fives, rounded up."""
    found = {"words": words(parts(notebook)[0]), "lines": visible_lines(notebook), "predictions": predictions(notebook)}
    minutes = found["words"] / 150 + found["lines"] / 10 + 2 * found["predictions"]
    stubs = [cell for cell in notebooks.code_cells(notebook) if "exercise" in notebooks.tags(cell)]
    exercises = A_POINT * sum(cell.metadata.exercise.points for cell in stubs) + ANSWERS
    return found | {"minutes": _fives(minutes), "exercises": _fives(exercises)}


def _fives(minutes):
    return 5 * math.ceil(minutes / 5)


def said(found):
    """How the head of a chapter says it."""
    return f"**Time.** {found['minutes']} minutes, exercises {found['exercises']};"


def main():
    print("chapter                 words  lines  predictions  minutes  exercises")
    for path in notebooks.select([]):
        found = count(notebooks.read(path))
        columns = zip(found.values(), (7, 7, 13, 9, 11))
        print(f"{path.stem:22}" + "".join(f"{value:{width}}" for value, width in columns))
