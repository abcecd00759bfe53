"""`make student`: the chapters without solutions and outputs, in _build/student."""

import re

import nbformat

from .. import notebooks
from ..paths import BUILD
from . import colab

FOLDER = BUILD / "student"
SENTENCE = re.compile(r"(?<=[.?!]) +(?=\S)")


def for_student(notebook, chapter):
    """The notebook to hand out: solutions dropped, checks run and may fail, nothing executed yet."""
    notebook = nbformat.from_dict(notebook)
    notebook.cells = [cell for cell in notebook.cells if "solution" not in notebooks.tags(cell)]
    for cell in notebooks.code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
        if "check" in notebooks.tags(cell):
            kept = [tag for tag in notebooks.tags(cell) if tag != "skip-execution"]
            cell.metadata.tags = [*kept, "raises-exception"]
    notebook.cells = [one for cell in notebook.cells for one in (cell, *_hints(cell))]
    notebook.metadata.pop("widgets", None)
    notebook.metadata.flashkat = {"chapter": chapter, "version": notebooks.version()}
    return notebooks.canonical(notebook)


def _hints(cell):
    """A cell below a stub with its hint, a step for each sentence, each folded in the one before."""
    if "exercise" not in notebooks.tags(cell):
        return
    steps = SENTENCE.split(cell.metadata.exercise.hint)
    opened = [f"<details>\n<summary>{'Another hint' if place else 'Hint'}</summary>\n\n{step}\n" for place, step in
              enumerate(steps)]  # fmt: skip
    text = "\n".join(opened) + "\n" + "</details>" * len(steps)
    yield nbformat.v4.new_markdown_cell(text, id=f"{cell.id[:50]}-hint")


def main():
    where = colab.address()
    for path in notebooks.select([]):
        notebook = for_student(notebooks.read(path), path.stem)
        notebooks.write(colab.with_cell(notebook, *where) if where else notebook, FOLDER / path.name)
        print(FOLDER / path.name)
