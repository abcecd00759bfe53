"""`make grade SUBMISSIONS=folder`: runs students' notebooks with our checks in them and writes folder/grades.csv.

Checks are taken from our chapters by cell id, so that editing or deleting one gains nothing. Notebooks run with the
rights of whoever grades: grade strangers' work in a container.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import execute
import nbformat
import notebooks

CELL_LIMIT, LIMIT = 120, 900  # seconds
HEADER = ("file", "exercise", "points", "out of", "message")
# What a student's cell did to the names and functions that a check uses is undone before it runs.
GUARD = """import importlib, sys
from flashkat_lite import lab
for name in [name for name in sys.modules if name.startswith("flashkat_lite.lab.checks")]:
    del sys.modules[name]
lab.checks = importlib.import_module("flashkat_lite.lab.checks")
"""


# What is run


def points(chapter):
    """The points of each exercise, in order."""
    stubs = [cell.metadata.exercise for cell in chapter.cells if "exercise" in notebooks.tags(cell)]
    return {stub.id: stub.points for stub in stubs}


def chapter_of(submission, path):
    """The chapter that a submission answers, by what `make student` wrote in it, else by its name; or None."""
    handed_out = submission.metadata.get("flashkat", {}).get("chapter")
    ours = notebooks.select([])
    named = [chapter for chapter in ours if chapter.stem == handed_out] or [c for c in ours if c.stem in path.stem]
    return named[0] if named else None


def assemble(submission, chapter):
    """The submission with our checks in place of the student's: where they were, else after the stub, else last."""
    checks = {notebooks.exercise(cell): cell for cell in chapter.cells if "check" in notebooks.tags(cell)}
    stubs = {notebooks.exercise(cell): cell.id for cell in chapter.cells if "exercise" in notebooks.tags(cell)}
    by_id = {cell.id: name for name, cell in checks.items()}

    for number, cell in enumerate(submission.cells):
        cell.id = cell.get("id") or cell.metadata.get("id") or f"cell-{number}"  # Colab keeps ids in the metadata

    def answers(cell):
        return by_id.get(cell.id) or (notebooks.exercise(cell) if "check" in notebooks.tags(cell) else None)

    kept = {answers(cell) for cell in submission.cells}
    cells, placed = [], set()

    def place(name):
        if name in checks and name not in placed:
            placed.add(name)
            cells.extend(_ours(checks[name]))

    for cell in submission.cells:
        if answers(cell) in checks:
            place(answers(cell))
            continue
        cells.append(cell)
        is_stub = "exercise" in notebooks.tags(cell) or cell.id in stubs.values()
        if is_stub and notebooks.exercise(cell) not in kept:
            place(notebooks.exercise(cell))
    for name in checks:
        place(name)
    return nbformat.v4.new_notebook(cells=cells)


def _ours(check):
    metadata = {"exercise": {"id": notebooks.exercise(check)}, "tags": ["check"]}
    return [
        nbformat.v4.new_code_cell(GUARD, id=f"guard-{check.id}"),
        nbformat.v4.new_code_cell(check.source, id=check.id, metadata=metadata),
    ]


# Running it


def outcomes(notebook, env, cell_limit=CELL_LIMIT, limit=LIMIT):
    """Runs a notebook to its end in a fresh process, whatever fails; returns what each cell that ran said, by id.

    "" is a cell that ran without an error.
    """
    with tempfile.TemporaryDirectory(prefix="flashkat-") as folder:
        path = Path(folder) / "notebook.ipynb"
        notebooks.write(notebook, path)
        command = [sys.executable, __file__, "--run", str(path), str(cell_limit), str(limit)]
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])
        return json.loads(path.with_suffix(".json").read_text())


def run(path, cell_limit, limit):
    """The fresh process of `outcomes`."""
    from nbclient import NotebookClient
    from nbclient.exceptions import DeadKernelError

    notebook = notebooks.read(path)
    said = {}

    def note(cell, cell_index, execute_reply):
        content = execute_reply["content"]
        failed = content["status"] != "ok"
        said[cell.id] = f"{content.get('ename')}: {content.get('evalue', '')}".partition("\n")[0] if failed else ""

    client = NotebookClient(notebook, kernel_name="python3", allow_errors=True, interrupt_on_timeout=True)
    client.error_on_timeout = {"ename": "TimeoutError", "evalue": "ran past its time limit", "traceback": []}
    client.on_cell_executed = note
    deadline = time.monotonic() + limit
    with client.setup_kernel():
        for index, cell in enumerate(notebook.cells):
            client.timeout = min(cell_limit, round(deadline - time.monotonic()))
            if client.timeout <= 0:
                break
            try:
                client.execute_cell(cell, index)
            except DeadKernelError:
                said[cell.id] = "DeadKernelError: the notebook's process ended"
                break
    path.with_suffix(".json").write_text(json.dumps(said))


def grade(path, env, cell_limit=CELL_LIMIT, limit=LIMIT):
    """One submission's rows: exercise, points, out of, message."""
    try:
        submission = notebooks.read(path)
        found = chapter_of(submission, path)
        if found is None:
            return [("", 0, 0, "answers no chapter that is here")]
        chapter = notebooks.read(found)
        notebook = assemble(submission, chapter)
        said = outcomes(notebook, env, cell_limit, limit)
    except Exception as error:  # what students hand in may be anything, and the next one waits
        return [("", 0, 0, f"cannot be run: {type(error).__name__}: {error}".partition("\n")[0])]
    checks = {notebooks.exercise(cell): cell.id for cell in notebook.cells if "check" in notebooks.tags(cell)}
    rows = []
    for name, worth in points(chapter).items():
        message = said.get(checks[name], "did not run: the notebook ended or ran past its time limit before")
        rows.append((name, 0 if message else worth, worth, message))
    return rows


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("submissions", nargs="?", type=Path, help="a folder of students' notebooks, at any depth")
    parser.add_argument("--cell-limit", type=int, default=CELL_LIMIT, help="seconds a cell (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=LIMIT, help="seconds a notebook (default: %(default)s)")
    options = parser.parse_args(arguments)
    if not options.submissions or not options.submissions.is_dir():
        sys.exit("Which folder holds the students' notebooks? make grade SUBMISSIONS=folder")
    paths = sorted(p for p in options.submissions.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
    env = execute.environment(notebooks.BUILD / "grade")
    table = options.submissions / "grades.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        for path in paths:
            name = path.relative_to(options.submissions)
            rows = grade(path, env, options.cell_limit, options.limit)
            writer.writerows((name, *row) for row in rows)
            troubles = [f" ({message})" for exercise, _, _, message in rows if not exercise]
            print(
                f"{name}: {sum(row[1] for row in rows)} of {sum(row[2] for row in rows)}{''.join(troubles)}", flush=True
            )
    print(f"{len(paths)} notebook(s); {table}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        run(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
