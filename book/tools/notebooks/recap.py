"""Writes book/recap.md, folded, into every chapter from the fourth on, so that each can be read alone."""

import nbformat

from .. import notebooks
from ..paths import ROOT

CELL, FIRST = "recap", "04"  # the cell's id; the first chapter that has it
SUMMARY = "The book in twelve lines: the function, its sums, the ladder"


def source(root=ROOT):
    """The cell's text. JupyterLab renders no `{include}`, so each notebook holds the whole of it."""
    text = (root / "book" / "recap.md").read_text(encoding="utf-8").strip()
    return f"<details>\n<summary>{SUMMARY}</summary>\n\n{text}\n\n</details>"


def needed(path):
    return path.stem[:2] >= FIRST


def with_recap(notebook, text):
    """A copy of the notebook whose second cell is the recap; an older one is replaced."""
    notebook = nbformat.from_dict(notebook)
    notebook.cells = [cell for cell in notebook.cells if cell.id != CELL]
    notebook.cells.insert(1, nbformat.v4.new_markdown_cell(text, id=CELL))
    return notebook


def main():
    text = source()
    for path in filter(needed, notebooks.select([])):
        made = with_recap(notebooks.read(path), text)
        if notebooks.text(made) != path.read_text(encoding="utf-8"):
            notebooks.write(made, path)
            print(f"{path.stem}: the recap is new")
