"""`make student`: the chapters without solutions and outputs, in _build/student; CHAPTERS="07 09" writes those alone.

What was worked in is never written over: the fresh notebook then lies beside it, under a name with the version.
"""

import hashlib
import json
import re
import shutil
import sys
from pathlib import Path

import nbformat

from .. import notebooks
from ..paths import BUILD
from . import colab

FOLDER = BUILD / "student"
WRITTEN = ".written.json"  # {file: digest} of what an earlier run wrote
ASSISTANTS = Path(__file__).with_name("AGENTS.md")
FOLDED = re.compile(r"\s*\bSolutions are folded\.")
RUN = "Before you hand in: *Kernel → Restart Kernel and Run All Cells*, and see that each check finds your function."
# nbgrader's cell metadata, for those who use it: https://nbgrader.readthedocs.io
SCHEMA = {"schema_version": 3, "grade": False, "solution": False, "locked": False, "task": False}
SENTENCE = re.compile(r"(?<=[.?!]) +(?=\S)")


def for_student(notebook, chapter):
    """The notebook to hand out: solutions dropped, hints folded, checks run and may fail, nothing executed yet."""
    notebook = nbformat.from_dict(notebook)
    worth = {notebooks.exercise(cell): cell.metadata.exercise for cell in notebook.cells if _is_stub(cell)}
    notebook.cells = [cell for cell in notebook.cells if "solution" not in notebooks.tags(cell)]
    for cell in notebooks.code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
        name = notebooks.exercise(cell)
        if _is_stub(cell):
            cell.metadata.nbgrader = SCHEMA | {"solution": True, "grade_id": cell.id}
        if "check" in notebooks.tags(cell):
            kept = [tag for tag in notebooks.tags(cell) if tag != "skip-execution"]
            cell.metadata.tags = [*kept, "raises-exception"]
            graded = {"grade": True, "locked": True, "grade_id": cell.id, "points": worth[name].points}
            cell.metadata.nbgrader = SCHEMA | graded
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and FOLDED.search(cell.source):
            cell.source = FOLDED.sub("", cell.source, count=1) + f"\n\n{RUN}"
    notebook.cells = [one for cell in notebook.cells for one in (cell, *_hints(cell))]
    if notebook.cells and notebook.cells[0].cell_type == "markdown":
        notebook.cells[0].source += f"\n\n*Handed out with version {notebooks.version()}.*"
    notebook.metadata.pop("widgets", None)
    notebook.metadata.flashkat = {"chapter": chapter, "version": notebooks.version()}
    return notebooks.canonical(notebook)


def _is_stub(cell):
    return "exercise" in notebooks.tags(cell)


def _hints(cell):
    """A cell below a stub with its hint, a step for each sentence, each folded in the one before."""
    if "exercise" not in notebooks.tags(cell):
        return
    steps = SENTENCE.split(cell.metadata.exercise.hint)
    opened = [f"<details>\n<summary>{'Another hint' if place else 'Hint'}</summary>\n\n{step}\n" for place, step in
              enumerate(steps)]  # fmt: skip
    text = "\n".join(opened) + "\n" + "</details>" * len(steps)
    yield nbformat.v4.new_markdown_cell(text, id=f"{cell.id[:50]}-hint")


def hand_out(notebook, path, written):
    """Writes a notebook, beside what is there if that was worked in; returns where, and notes it in `written`."""
    fresh = hashlib.sha256(notebooks.text(notebook).encode()).hexdigest()
    if path.exists() and _digest(path) not in (written.get(path.name), fresh):
        path = path.with_name(f"{path.stem}.{notebooks.version()}.ipynb")
        if path.exists() and _digest(path) not in (written.get(path.name), fresh):
            return None
    notebooks.write(notebook, path)
    written[path.name] = fresh
    return path


def _digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(arguments=None):
    where, note = colab.address(), FOLDER / WRITTEN
    try:
        chosen = notebooks.select(sys.argv[1:] if arguments is None else arguments)
    except ValueError as error:
        sys.exit(f"CHAPTERS: {error}")
    try:
        written = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        written = {}
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path in chosen:
        notebook = for_student(notebooks.read(path), path.stem)
        place = hand_out(colab.with_cell(notebook, *where) if where else notebook, FOLDER / path.name, written)
        note.write_text(json.dumps(written, indent=1), encoding="utf-8")
        if place is None:
            print(f"{FOLDER / path.name} and the one of version {notebooks.version()} were worked in: left as they are")
        else:
            kept = "" if place.name == path.name else f" ({path.name} was worked in, and is left as it is)"
            print(f"{place}{kept}")
    if not (FOLDER / ASSISTANTS.name).exists():
        shutil.copyfile(ASSISTANTS, FOLDER / ASSISTANTS.name)
