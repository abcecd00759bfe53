"""`make grade SUBMISSIONS=folder`: runs students' notebooks with our checks in them, and writes what they earned.

folder/grades.csv holds the points of each exercise, folder/feedback a page for each notebook and an index. Checks are
taken from our chapters by cell id, so that editing or deleting one gains nothing; grade_kernel.py says how they run.
"""

import argparse
import concurrent.futures
import contextlib
import csv
import ctypes
import dataclasses
import io
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import console
import execute
import grade_feedback as feedback
import grade_kernel
import nbformat
import notebooks
import psutil

HEADER = ("file", "exercise", "points", "out of", "message", "speed")
LARGEST = 100_000_000  # bytes of a notebook: more is output, which is not read
ATTEMPTS = 4  # processes of a notebook
# Variables of the grader's environment that a notebook sees.
SEEN = ("PATH", "LANG", "LC_", "TZ", "LD_LIBRARY_PATH", "CUDA_", "NVIDIA_", "OMP_", "MKL_", "SLURM_CPUS", "PYTHONHASH")
SEEN += ("PYDEVD_", "PYTHONUTF8")


@dataclasses.dataclass(frozen=True)
class Limits:
    cell: int = 120  # seconds
    notebook: int = 900  # seconds
    memory: float = 8.0  # GiB of all processes of a notebook
    output: int = 1_000_000  # characters that a cell prints
    grace: int = 10  # seconds that a cell has to end once it is interrupted


class Row(NamedTuple):
    """What one exercise of one submission earned; `exercise` is "" where there is nothing to score."""

    exercise: str
    points: float
    worth: int
    message: str  # "" for all points
    speed: str = ""
    printed: str = ""


# What is run


def stubs(chapter):
    """What the chapter says of each exercise, in order: id, points, level, hint."""
    cells = [cell.metadata.exercise for cell in chapter.cells if "exercise" in notebooks.tags(cell)]
    return {stub.id: stub for stub in cells}


def chapter_of(submission, path):
    """The chapter that a submission answers, by what `make student` wrote in it, else by its name; or None."""
    handed_out = submission.metadata.get("flashkat", {}).get("chapter")
    ours = notebooks.select([])
    named = [chapter for chapter in ours if chapter.stem == handed_out] or [c for c in ours if c.stem in path.stem]
    return named[0] if named else None


def assemble(submission, chapter):
    """The submission with our checks in place of the student's: where they were, else after the stub, else last."""
    checks = {notebooks.exercise(cell): cell for cell in chapter.cells if "check" in notebooks.tags(cell)}
    asked = {notebooks.exercise(cell): cell.id for cell in chapter.cells if "exercise" in notebooks.tags(cell)}
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
            cells.append(_ours(checks[name]))

    for cell in submission.cells:
        if answers(cell) in checks:
            place(answers(cell))
            continue
        if cell.cell_type == "code" and notebooks.COLAB not in notebooks.tags(cell):
            cells.append(nbformat.v4.new_code_cell(cell.source, id=cell.id))
        is_stub = "exercise" in notebooks.tags(cell) or cell.id in asked.values()
        if is_stub and notebooks.exercise(cell) not in kept:
            place(notebooks.exercise(cell))
    for name in checks:
        place(name)
    return nbformat.v4.new_notebook(cells=cells)


def _ours(check):
    metadata = {"exercise": {"id": notebooks.exercise(check)}, "tags": ["check"]}
    return nbformat.v4.new_code_cell(check.source, id=check.id, metadata=metadata)


# Running it

RUNNING = set()


def outcomes(notebook, env, limits=None):
    """Runs a notebook to its end in fresh processes, whatever fails; returns what each cell that ran said, by id.

    {"message": "" where the cell ran without an error, and of a check "printed": …, "speeds": [[line, band, share]]}
    """
    limits = limits or Limits()
    with tempfile.TemporaryDirectory(prefix="flashkat-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "notebook.ipynb"
        notebooks.write(notebook, path)
        command = [sys.executable, __file__, "--run", str(path), json.dumps(dataclasses.asdict(limits))]
        with (Path(folder) / "errors").open("w+", encoding="utf-8", errors="replace") as errors:
            process = subprocess.Popen(
                command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors,
                start_new_session=True,
            )  # fmt: skip
            RUNNING.add(process)
            try:
                process.wait(limits.notebook + 60)
            except subprocess.TimeoutExpired:
                pass  # what it had earned is kept
            finally:
                end(process.pid)
                process.wait()
                RUNNING.discard(process)
            errors.seek(0)
            said = path.with_suffix(".json")
            if not said.exists():
                raise RuntimeError((errors.read().strip().splitlines() or ["the process ended at once"])[-1])
        return json.loads(said.read_text(encoding="utf-8"))


def end(pid):
    """Ends a process and all that it started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        kill([*process.children(recursive=True), process])


def run(path, limits):
    """The fresh process of `outcomes`: a notebook whose process ends goes on in another, without the cell at fault."""
    notebook, said = notebooks.read(path), {}
    deadline = time.monotonic() + limits.notebook
    results = path.with_suffix(".json")

    def note(id, outcome):
        said[id] = outcome
        _replace(results, json.dumps(said))

    adopt_orphans()
    os.environ["JUPYTER_RUNTIME_DIR"] = str(path.parent / "runtime")
    left_out = set()
    for attempt in range(ATTEMPTS):
        cells = [
            cell for cell in notebook.cells if cell.id not in left_out and not (is_check(cell) and cell.id in said)
        ]
        if not any(is_check(cell) for cell in cells):
            break
        process = Process(cells, path.parent / f"process-{attempt}", limits, deadline)
        at_fault = process.run(note, said)
        if at_fault is None:
            break
        left_out.add(at_fault)


def is_check(cell):
    return "check" in notebooks.tags(cell)


def adopt_orphans():
    """On Linux: what a notebook starts and leaves behind becomes our child, and is found when we look for it."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def kill(processes):
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def surroundings(place, limits):
    """Makes a process's own folder: a copy of what chapters import and load, a home, a place for files. Its variables.

    Of the grader's own it sees what it needs to run, and no secrets.
    """
    book = place / "book"
    shutil.copytree(notebooks.ROOT / notebooks.PACKAGE, book / notebooks.PACKAGE)
    shutil.copytree(notebooks.ROOT / "book" / "data", book / "book" / "data")
    for name in ("home", "tmp", "work", "jupyter"):
        (place / name).mkdir()
    if os.path.isdir(os.environ.get("MPLCONFIGDIR", "")):  # its list of fonts takes seconds to make
        shutil.copytree(os.environ["MPLCONFIGDIR"], place / "home" / "matplotlib")
    spec = place / "jupyter" / "kernels" / "submission" / "kernel.json"
    argv = [sys.executable, grade_kernel.__file__, str(place), str(limits.output), "-f", "{connection_file}"]
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"argv": argv, "display_name": "Submission", "language": "python"}), encoding="utf-8")
    found = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    others = [entry for entry in found if Path(entry).resolve() != notebooks.ROOT]
    return {name: value for name, value in os.environ.items() if name.startswith(SEEN)} | {
        "PYTHONPATH": os.pathsep.join([str(book), *others]),
        "HOME": str(place / "home"),
        "TMPDIR": str(place / "tmp"),
        "IPYTHONDIR": str(place / "home" / "ipython"),
        "JUPYTER_PATH": str(place / "jupyter"),
        "MPLCONFIGDIR": str(place / "home" / "matplotlib"),
    }


class Process:
    """One process of a notebook, which may reach its limits."""

    def __init__(self, cells, place, limits, deadline):
        self.cells, self.place, self.limits, self.deadline = cells, place, limits, deadline
        self.secret, self.why, self.printed = secrets.token_hex(16), None, 0

    def run(self, note, said):
        """Runs the cells and notes what they say; returns the id of the cell at which the process ended, or None."""
        env = surroundings(self.place, self.limits)
        os.environ["JUPYTER_PATH"] = env["JUPYTER_PATH"]
        from jupyter_client import AsyncKernelManager
        from nbclient.exceptions import DeadKernelError

        manager = AsyncKernelManager(kernel_name="submission")
        client = self.client(manager)
        cell = None
        try:
            devices = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            with client.setup_kernel(env=env, cwd=str(self.place / "work"), **devices):
                threading.Thread(target=self.watch, daemon=True).start()
                client.timeout = 120
                client.wait_for_reply(client.kc.execute(request(secret=self.secret), store_history=False))
                for index, cell in enumerate(self.cells):
                    client.timeout = min(self.limits.cell, int(self.deadline - time.monotonic()))
                    if client.timeout <= 0:
                        return None
                    self.printed = 0
                    source = request(id=cell.id, source=cell.source) if is_check(cell) else cell.source
                    sent = nbformat.from_dict({**cell, "source": source})
                    client.on_cell_executed = lambda cell, cell_index, execute_reply: note(
                        cell.id, self.outcome(cell, execute_reply["content"])
                    )
                    client.execute_cell(sent, index)
                    client.timeout = self.limits.grace
                    if not client.wait_for_reply(client.kc.kernel_info()):
                        self.end("ran past its time limit and did not stop when interrupted")
                        raise DeadKernelError
        except DeadKernelError:
            if cell is None:
                raise
            if not (is_check(cell) and cell.id in said):
                why = self.why or "the notebook's process ended"
                note(cell.id, {"message": f"{why}: it was run again without this cell"})
            return cell.id
        finally:
            self.end()
        return None

    def client(self, manager):
        """nbclient's client, which keeps no outputs, and counts them while a cell runs."""
        from nbclient import NotebookClient

        process = self

        class Client(NotebookClient):
            def process_message(self, message, cell, cell_index):
                if message["msg_type"] == "status":
                    return super().process_message(message, cell, cell_index)
                process.printed += len(json.dumps(message["content"], default=str))
                process.printed += sum(map(len, message.get("buffers", ())))
                if process.printed > 2 * process.limits.output + 100_000:  # past what the kernel lets it print
                    process.end("put out too much")
                return None

        client = Client(nbformat.v4.new_notebook(cells=self.cells), km=manager, allow_errors=True)
        client.interrupt_on_timeout, client.shell_timeout_interval, client.startup_timeout = True, 1, 120
        client.error_on_timeout = {"ename": "TimeoutError", "evalue": "ran past its time limit", "traceback": []}
        return client

    def outcome(self, cell, content):
        """What a cell said; of a check, nothing counts but what is sealed with our secret."""
        if content["status"] != "ok":
            return {"message": f"{content.get('ename')}: {content.get('evalue', '')}".partition("\n")[0][:2000]}
        if not is_check(cell):
            return {"message": ""}
        answer = content.get("answer") or {}
        if answer.get("id") != cell.id or content.get("proof") != grade_kernel.seal(self.secret, answer):
            return {"message": "the check was kept from running: the notebook changed what runs it"}
        return answer

    def watch(self):
        """Ends the notebook's processes where they take too much memory."""
        while self.why is None:
            taken = 0
            for member in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    taken += member.memory_info().rss
            if taken > self.limits.memory * 2**30:
                self.end(f"took more than {self.limits.memory:g} GiB of memory")
            time.sleep(0.1)

    def end(self, why=""):
        self.why = self.why or why
        kill(psutil.Process().children(recursive=True))


def request(**fields):
    return grade_kernel.REQUEST + json.dumps(fields)


# What it is worth


@dataclasses.dataclass
class Submission:
    """What its chapter says of each exercise, and the notebook as it is run; or why it cannot be."""

    path: Path
    stubs: dict = dataclasses.field(default_factory=dict)
    notebook: nbformat.NotebookNode | None = None
    trouble: str = ""


def prepare(path):
    """Reads a submission. All are read before the first is run, which might delete the others."""
    try:
        if path.stat().st_size > LARGEST:
            return Submission(path, trouble=f"larger than {LARGEST // 10**6} MB: clear its outputs and save it again")
        submission = notebooks.read(path)
        found = chapter_of(submission, path)
        if found is None:
            return Submission(path, trouble="answers no chapter that is here")
        chapter = notebooks.read(found)
        return Submission(path, stubs(chapter), assemble(submission, chapter))
    except Exception as error:  # what students hand in may be anything, and the next one waits
        return Submission(path, trouble=f"cannot be run: {type(error).__name__}: {error}".partition("\n")[0])


def assess(submission, env, limits=None):
    """One submission's rows, and what its other cells said that failed: [(first line, message)]."""
    if submission.trouble:
        return [Row("", 0, 0, submission.trouble)], []
    try:
        said = outcomes(submission.notebook, env, limits)
    except Exception as error:
        return [Row("", 0, 0, f"cannot be run: {type(error).__name__}: {error}".partition("\n")[0])], []
    cells = submission.notebook.cells
    checks = {notebooks.exercise(cell): cell.id for cell in cells if is_check(cell)}
    rows = [row(name, stub.points, said.get(checks[name])) for name, stub in submission.stubs.items()]
    others = [(cell.source, said[cell.id]["message"]) for cell in cells if not is_check(cell) and cell.id in said]
    return rows, [(source.strip().partition("\n")[0], message) for source, message in others if message]


def row(exercise, worth, outcome):
    """What an exercise earned: nothing unless its check was right, and of a slow kernel's points a share."""
    if outcome is None:
        return Row(exercise, 0, worth, "did not run: the notebook ended or ran past its time limit before")
    printed, speeds = outcome.get("printed", ""), outcome.get("speeds", [])
    if outcome["message"]:
        return Row(exercise, 0, worth, outcome["message"], "", printed)
    line, band, share = min(speeds, key=lambda speed: speed[2], default=("", "", 1))
    return Row(exercise, worth if share == 1 else worth * share, worth, "" if share == 1 else line, band, printed)


def grade(path, env, limits=None):
    """One submission's rows."""
    return assess(prepare(path), env, limits)[0]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("submissions", nargs="?", type=Path, help="a folder of students' notebooks, at any depth")
    units = {"cell": "seconds a cell", "notebook": "seconds a notebook", "memory": "GiB a notebook"}
    units |= {"output": "characters that a cell prints", "grace": "seconds to stop in, when interrupted"}
    for field in dataclasses.fields(Limits):
        what = f"{units[field.name]} (default: %(default)s)"
        parser.add_argument(f"--{field.name}", type=field.type, default=field.default, metavar="N", help=what)
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="notebooks at a time; 1 where a GPU is timed")
    options = parser.parse_args(arguments)
    folder = options.submissions
    if not folder or not folder.is_dir():
        sys.exit("Which folder holds the students' notebooks? make grade SUBMISSIONS=folder")
    limits = Limits(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Limits)})
    paths = list(notebooks.files(folder, "*.ipynb", without=(".ipynb_checkpoints",)))
    submissions = [prepare(path) for path in paths]
    env = execute.environment(notebooks.BUILD / "grade")
    subprocess.run([sys.executable, "-c", "import matplotlib.font_manager"], env=env, capture_output=True)

    if not grade_kernel.landlock():
        print("Nothing here keeps a notebook from your files: grade strangers' work in a container.")

    graded = {}
    keep(folder, graded)
    pool = concurrent.futures.ThreadPoolExecutor(max(1, options.jobs))
    running = {pool.submit(assess, submission, env, limits): submission for submission in submissions}
    try:
        for done in concurrent.futures.as_completed(running):
            submission = running[done]
            name = str(submission.path.relative_to(folder))
            graded[name] = feedback.Graded(name, submission.stubs, *done.result())
            keep(folder, graded)
            print(f"[{len(graded)}/{len(paths)}] {graded[name].line()}", flush=True)
    except KeyboardInterrupt:
        sys.exit(f"Stopped: {len(graded)} of {len(paths)} are graded, and in {folder / 'grades.csv'}")
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(RUNNING):
            end(process.pid)
    keep(folder, graded)
    print(f"{len(paths)} notebook(s); {folder / 'grades.csv'}, {folder / 'feedback' / 'index.html'}")


def keep(folder, graded):
    """Writes what is known so far: the table, and the pages of feedback."""
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(HEADER)
    ordered = [graded[name] for name in sorted(graded)]
    writer.writerows((one.name, *row[:5]) for one in ordered for row in one.rows)
    _replace(folder / "grades.csv", table.getvalue())
    for path, page in feedback.pages(ordered).items():
        _replace(folder / "feedback" / path, page)


def _replace(path, text):
    """Writes a file so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8", newline="")
    os.replace(partial, path)


if __name__ == "__main__":
    console.prepare()
    if sys.argv[1:2] == ["--run"]:
        run(Path(sys.argv[2]), Limits(**json.loads(sys.argv[3])))
    else:
        main()
