"""`make grade SUBMISSIONS=folder`: runs students' notebooks with our checks in them, and writes what they earned.

folder/grades.csv holds the points of each exercise, totals.csv a row a student, predictions.csv what was guessed before
it was measured, feedback a page for each notebook and an index. Checks are taken from our chapters by cell id, so that
editing or deleting one gains nothing; in grading/, kernel.py says how they run, collect.py what is graded, table.py
what of an earlier table stays, totals.py whose a file is, and seen.py what a teacher may want to look at.
"""

import argparse
import concurrent.futures
import contextlib
import ctypes
import dataclasses
import functools
import json
import os
import re
import secrets
import shutil
import signal
import site
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import nbformat
import psutil

from .. import notebooks
from ..notebooks import execute
from ..paths import BUILD, ROOT, TOOLS
from .grading import collect, feedback, guesses, kernel, scripts, seen, table, totals
from .grading.kernel import AGAIN
from .grading.table import HEADER, Row  # noqa: F401

ATTEMPTS = 4  # processes of a notebook
DEFINED = re.compile(r"^(?:def|class)\s+(\w+)", re.MULTILINE)
ASKED = re.compile(r"(\w+)\)\s*$")  # the function that a check asks for
SHARED = Path("/dev/shm")
GUESSED = "#guesses"  # among what cells said, and no cell's id
# Variables of the grader's environment that a notebook sees: what finds Python, libraries, a compiler and a GPU. None
# that names a place to write (caches, dumps, XDG_…): a notebook has its own, below its home.
SEEN = ("PATH", "LANG", "LC_", "TZ", "LD_LIBRARY_PATH", "CUDA_", "NVIDIA_", "OMP_", "MKL_", "SLURM_CPUS", "PYTHONHASH")
SEEN += ("PYDEVD_", "PYTHONUTF8", "TRITON_")
SEEN_EXACTLY = {"FLASHKAT_DEVICE", "CC", "CXX", "CPATH", "C_INCLUDE_PATH", "LIBRARY_PATH", "PYTHONHOME"}
UNSEEN = ("CACHE", "DUMP", "OVERRIDE", "TRITON_HOME")


@dataclasses.dataclass(frozen=True)
class Limits:
    cell: int = 120  # seconds
    notebook: int = 900  # seconds
    memory: float = 8.0  # GiB of all processes of a notebook
    output: int = 1_000_000  # characters that a cell prints
    grace: int = 10  # seconds that a cell has to end once it is interrupted


# What is run


def stubs(chapter):
    """What the chapter says of each exercise, in order: id, points, level, hint."""
    cells = [cell.metadata.exercise for cell in chapter.cells if "exercise" in notebooks.tags(cell)]
    return {stub.id: stub for stub in cells}


def chapter_at(path):
    return _read(path, path.stat().st_mtime_ns)


@functools.cache
def _read(path, _):
    return notebooks.read(path)


def chapter_of(submission, name):
    """The chapter that a submission answers, or None.

    By what `make student` wrote in it, else by its name, else by what is left of its exercises, else by its heading.
    """
    handed_out = _dict(submission.metadata.get("flashkat")).get("chapter")
    ours = notebooks.select([])
    named = [chapter for chapter in ours if chapter.stem == handed_out] or [c for c in ours if c.stem in name.lower()]
    if named or not ours:
        return named[0] if named else None
    score, best = max((_evidence(submission, chapter_at(path)), path) for path in ours)
    return best if any(score) else None


def _evidence(submission, chapter):
    """How many of a chapter's exercises a notebook holds, by cell id, metadata or check; then, whether its heading."""
    of = [cell for cell in chapter.cells if notebooks.exercise(cell)]
    ids, names = {cell.id for cell in of}, {notebooks.exercise(cell) for cell in of}
    checks = [cell.source.strip() for cell in of if "check" in notebooks.tags(cell)]
    heading = chapter.cells[0].source.partition("\n")[0].strip().casefold()
    found = {cell.id for cell in submission.cells} & ids
    found |= {notebooks.exercise(cell) for cell in submission.cells} & names
    found |= {check for check in checks for cell in submission.cells if check in cell.source}
    headings = [line.strip().casefold() for cell in submission.cells for line in cell.source.splitlines()[:1]]
    return len(found), heading.startswith("# ") and heading in headings


def _dict(value):
    return value if isinstance(value, dict) else {}


def settle(submission):
    """The cells of anything that a tool may have saved: ids, unique; tags and exercises where there are some."""
    taken = set()
    for number, cell in enumerate(submission.cells):
        told = _dict(cell.get("metadata"))
        tags, name = told.get("tags"), _dict(told.get("exercise")).get("id")
        cell.source = str(cell.get("source", "")).encode("utf-8", "replace").decode()
        cell.id = str(cell.get("id") or told.get("id") or f"cell-{number}")  # Colab keeps ids in the metadata
        if cell.id in taken or not re.fullmatch(r"[\w-]{1,64}", cell.id, re.ASCII):
            cell.id = f"cell-{number}-{secrets.token_hex(4)}"
        taken.add(cell.id)
        cell.metadata = nbformat.from_dict({"tags": tags if isinstance(tags, list) else []})
        if isinstance(name, str):
            cell.metadata.exercise = nbformat.from_dict({"id": name})
    return submission


def assemble(submission, chapter, beside=()):
    """The submission with our checks in place of the student's: where they were, else after the stub, else last.

    What else a student wrote into a check's cell is run before ours. A script beside it (beside: {name: bytes}) that
    defines what a check asks for is run after all else: what is missed until then is tried once more.
    """
    settle(submission)
    checks = {notebooks.exercise(cell): cell for cell in chapter.cells if "check" in notebooks.tags(cell)}
    asked = {notebooks.exercise(cell): cell.id for cell in chapter.cells if "exercise" in notebooks.tags(cell)}
    by_id = {cell.id: name for name, cell in checks.items()}
    called = "|".join(re.escape(cell.source.strip()) for cell in checks.values())
    copied = re.compile(rf"^([ \t]*)(?:{called})[ \t]*(?:#.*)?$", re.MULTILINE)

    def answers(cell):
        return by_id.get(cell.id) or (notebooks.exercise(cell) if "check" in notebooks.tags(cell) else None)

    kept = {answers(cell) for cell in submission.cells}
    cells, placed = [], set()

    def place(name):
        if name in checks and name not in placed:
            placed.add(name)
            cells.append(_ours(checks[name]))

    for cell in submission.cells:
        theirs = copied.sub(r"\1pass", cell.source) if called else cell.source
        if cell.cell_type == "code" and notebooks.COLAB not in notebooks.tags(cell) and theirs.strip() != "pass":
            id = f"{cell.id[:50]}-theirs" if answers(cell) in checks else cell.id
            cells.append(nbformat.v4.new_code_cell(theirs, id=id))
        if answers(cell) in checks:
            place(answers(cell))
            continue
        is_stub = "exercise" in notebooks.tags(cell) or cell.id in asked.values()
        if is_stub and notebooks.exercise(cell) not in kept:
            place(notebooks.exercise(cell))
    for name in checks:
        place(name)
    asked = {
        name for cell in chapter.cells if "exercise" in notebooks.tags(cell) for name in DEFINED.findall(cell.source)
    }
    for number, (name, data) in enumerate(sorted(dict(beside).items())):
        text = data.decode("utf-8-sig", "replace") if name.lower().endswith(".py") else ""
        if scripts.defines(text, asked):
            sources = [copied.sub(r"\1pass", source) for source in scripts.cells(text)]
            made = [nbformat.v4.new_code_cell(s, id=f"beside-{number}-{at}") for at, s in enumerate(sources)]
            cells += [cell for cell in made if cell.source.strip() != "pass"]
    return nbformat.v4.new_notebook(cells=cells)


def _ours(check):
    metadata = {"exercise": {"id": notebooks.exercise(check)}, "tags": ["check"]}
    return nbformat.v4.new_code_cell(check.source, id=check.id, metadata=metadata)


# Running it

RUNNING = set()


def outcomes(notebook, env, limits=None, beside=()):
    """Runs a notebook to its end in fresh processes, whatever fails; returns what each cell that ran said, by id.

    {"message": "" where the cell ran without an error, and of a check "printed": …, "speeds": [[line, band, share]]}
    Under GUESSED stands what it guessed at the chapter's predictions.
    A check that failed at its place, and whose function is another at the notebook's end, is run there once more; it
    says so under its id with AGAIN. beside: {name: bytes} of files that the notebook finds where it runs.
    """
    limits, shared = limits or Limits(), _shared()
    with tempfile.TemporaryDirectory(prefix="flashkat-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "notebook.ipynb"
        notebooks.write(notebook, path)
        (path.parent / "beside").mkdir()
        for name, data in dict(beside).items():
            (path.parent / "beside" / name).write_bytes(data)
        facts = json.dumps({"limits": dataclasses.asdict(limits), "readable": readable()})
        command = [sys.executable, str(TOOLS), "grade", "--run", str(path), facts]
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
                empty_shared_memory(shared)
            errors.seek(0)
            said = path.with_suffix(".json")
            if not said.exists():
                raise RuntimeError((errors.read().strip().splitlines() or ["the process ended at once"])[-1])
        return json.loads(said.read_text(encoding="utf-8"))


@functools.cache
def readable():
    """The places outside of its folder that a notebook may read: what Python and compilers need, nobody's work."""
    places = ["/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/etc", "/sys", "/opt", "/nix", "/gnu", "/snap"]
    places += ["/run/current-system", "/run/opengl-driver", "/run/systemd/resolve", "/run/nvidia-persistenced"]
    places += ["/private/etc", "/System", "/Library"]
    for name in ("PATH", "LD_LIBRARY_PATH", "LIBRARY_PATH", "CPATH", "PYTHONPATH", "CUDA_HOME", "CUDA_PATH"):
        places += [place for place in os.environ.get(name, "").split(os.pathsep) if os.path.isabs(place)]
    given = [path for name, path in os.environ.items() if sees(name) and os.path.isabs(path)]
    places += [path if os.path.isdir(path) else os.path.dirname(path) for path in given if os.path.exists(path)]
    places += [*sys.path, site.getuserbase() if site.ENABLE_USER_SITE else ""]
    home = os.path.realpath(os.path.expanduser("~"))
    # A compiler's libraries lie beside its folder bin; at home, so may anything.
    places += [os.path.dirname(place) for place in places if place.endswith("/bin") and not place.startswith(home)]
    places = [place for place in places if len(Path(place).parts) > 1]
    hidden = [str(ROOT), home, tempfile.gettempdir(), *HIDDEN]
    hidden = [os.path.realpath(place) for place in hidden if len(Path(place).parts) > 1]
    python = [os.path.realpath(place) for place in (sys.prefix, sys.base_prefix, *site.getsitepackages())]
    ours = [inner for place in python for inner in kernel.around(place, [one for one in hidden if one != place])]
    given = [os.path.realpath(place) for place in GIVEN]
    return sorted({*given, *ours, *(inner for place in places for inner in kernel.around(place, hidden))})


HIDDEN, GIVEN = [], []  # what was handed in, and where grades are kept; what --readable names


def empty_shared_memory(before, folder=SHARED):
    """Deletes what has appeared in the memory that all processes share and that no process holds any more."""
    try:
        new = [path for path in folder.iterdir() if path.name not in before and path.stat().st_uid == os.getuid()]
    except (OSError, AttributeError):
        return
    held = set()
    for process in psutil.process_iter() if new else ():
        with contextlib.suppress(psutil.Error, OSError):
            held |= {one.path for one in [*process.memory_maps(), *process.open_files()]}
    for path in new:
        if str(path) not in held:
            with contextlib.suppress(OSError):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _shared():
    try:
        return {path.name for path in SHARED.iterdir()}
    except OSError:
        return set()


def end(pid):
    """Ends a process and all that it started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        kill([*process.children(recursive=True), process])


def run(path, limits, readable):
    """The fresh process of `outcomes`: a notebook whose process ends goes on in another, without the cell at fault."""
    notebook, said = notebooks.read(path), {}
    deadline = time.monotonic() + limits.notebook
    results = path.with_suffix(".json")

    def note(id, outcome):
        said[id] = outcome
        table.replace(results, json.dumps(said))

    adopt_orphans()
    os.environ["JUPYTER_RUNTIME_DIR"] = str(path.parent / "runtime")
    left_out = set()
    for attempt in range(ATTEMPTS):
        cells = [cell for cell in notebook.cells if cell.id not in left_out or is_check(cell)]
        if not any(is_check(cell) and (cell.id not in said or _waits(cell, cells, said)) for cell in cells):
            break
        process = Process(cells, path.parent / f"process-{attempt}", limits, deadline, readable)
        at_fault = process.run(note, said)
        if found := process.guesses():
            note(GUESSED, found)
        if at_fault is None:
            break
        left_out.add(at_fault)


def is_check(cell):
    return "check" in notebooks.tags(cell)


def _waits(check, cells, said):
    """Whether a check that failed has its function defined once more below it, and was not run there."""
    if not said[check.id]["message"] or check.id + AGAIN in said:
        return False
    function = ASKED.search(check.source)
    below = cells[cells.index(check) + 1 :]
    defined = rf"^(def|class)\s+{function[1]}\b|^{function[1]}\s*=" if function else "(?!)"
    return any(re.search(defined, cell.source, re.MULTILINE) for cell in below if not is_check(cell))


def adopt_orphans():
    """On Linux: what a notebook starts and leaves behind becomes our child, and is found when we look for it."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def kill(processes):
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def surroundings(place, limits, readable=None):
    """Makes a process's own folder: a copy of what chapters import and load, a home, a place for files. Its variables.

    Of the grader's own it sees what it needs to run, and no secrets.
    """
    book = place / "book"
    shutil.copytree(ROOT / notebooks.PACKAGE, book / notebooks.PACKAGE)
    shutil.copytree(ROOT / "book" / "data", book / "book" / "data")
    for name in ("home", "tmp", "work", "jupyter"):
        (place / name).mkdir()
    if os.path.isdir(os.environ.get("MPLCONFIGDIR", "")):  # its list of fonts takes seconds to make
        shutil.copytree(os.environ["MPLCONFIGDIR"], place / "home" / "matplotlib")
    (place / kernel.READABLE).write_text(json.dumps(readable), encoding="utf-8")
    spec = place / "jupyter" / "kernels" / "submission" / "kernel.json"
    argv = [sys.executable, kernel.__file__, str(place), str(limits.output), "-f", "{connection_file}"]
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"argv": argv, "display_name": "Submission", "language": "python"}), encoding="utf-8")
    found = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    others = [entry for entry in found if Path(entry).resolve() != ROOT]
    passed = {name: value for name, value in os.environ.items() if sees(name)}
    if site.ENABLE_USER_SITE:  # it hangs on the home, which is replaced
        passed["PYTHONUSERBASE"] = site.getuserbase()
    return passed | {
        "PYTHONPATH": os.pathsep.join([str(book), *others]),
        "HOME": str(place / "home"),
        "TMPDIR": str(place / "tmp"),
        "IPYTHONDIR": str(place / "home" / "ipython"),
        "JUPYTER_PATH": str(place / "jupyter"),
        "MPLCONFIGDIR": str(place / "home" / "matplotlib"),
        "FLASHKAT_FORECAST": "0",
        "FLASHKAT_PREDICTIONS": str(place / guesses.FILE),
    }


def sees(name):
    """Whether a notebook sees this variable of the grader's."""
    return name in SEEN_EXACTLY or (name.startswith(SEEN) and not any(part in name for part in UNSEEN))


class Tail(threading.Thread):
    """Keeps the end of what is written to `writing`."""

    def __init__(self):
        super().__init__(daemon=True)
        self.reading, self.writing = os.pipe()
        self.kept = b""

    def run(self):
        while data := os.read(self.reading, 65536):
            self.kept = (self.kept + data)[-4000:]
        os.close(self.reading)

    def close(self):
        """Leaves the writing to whoever inherited it."""
        if self.writing is not None:
            os.close(self.writing)
        self.writing = None

    def lines(self):
        """The last lines, as one."""
        self.close()
        self.join(2)
        lines = self.kept.decode("utf-8", "replace").strip().splitlines()[-3:]
        return " / ".join(line.strip() for line in lines) or "it said nothing"


class Process:
    """One process of a notebook, which may reach its limits."""

    def __init__(self, cells, place, limits, deadline, readable=None):
        self.cells, self.place, self.limits, self.deadline, self.readable = cells, place, limits, deadline, readable
        self.secret, self.why, self.printed = secrets.token_hex(16), None, 0

    def run(self, note, said):
        """Runs the cells and notes what they say; returns the id of the cell at which the process ended, or None."""
        env = surroundings(self.place, self.limits, self.readable)
        os.environ["JUPYTER_PATH"] = env["JUPYTER_PATH"]
        from jupyter_client import AsyncKernelManager
        from nbclient.exceptions import DeadKernelError

        manager = AsyncKernelManager(kernel_name="submission")
        client = self.client(manager)
        cell, errors = None, Tail()
        errors.start()
        try:
            devices = {"stdout": subprocess.DEVNULL, "stderr": errors.writing}
            with client.setup_kernel(env=env, cwd=str(self.place / "work"), **devices):
                errors.close()
                threading.Thread(target=self.watch, daemon=True).start()
                client.timeout = 120
                client.wait_for_reply(client.kc.execute(request(secret=self.secret), store_history=False))
                beside = self.place.parent / "beside"
                if beside.is_dir():  # only now, lest one is imported in place of what runs the checks
                    shutil.copytree(beside, self.place / "work", dirs_exist_ok=True)
                for cell in self.rounds(said):
                    client.timeout = min(self.limits.cell, int(self.deadline - time.monotonic()))
                    if client.timeout <= 0:
                        return None
                    self.printed = 0
                    source = cell.source
                    if is_check(cell):
                        source = request(id=cell.id, source=cell.source, only_look=cell.id in said)
                    sent = nbformat.from_dict({**cell, "source": source})
                    client.on_cell_executed = lambda cell, cell_index, execute_reply: (
                        None if is_check(cell) and cell.id in said
                        else note(cell.id, self.outcome(cell, execute_reply["content"]))
                    )  # fmt: skip
                    client.execute_cell(sent, 0)
                    client.timeout = self.limits.grace
                    if not client.wait_for_reply(client.kc.kernel_info()):
                        self.end("ran past its time limit and did not stop when interrupted")
                        raise DeadKernelError
        except DeadKernelError:
            if cell is None:
                raise RuntimeError(f"the notebook's process ended at its start: {errors.lines()}") from None
            if not (is_check(cell) and cell.id in said):
                why = self.why or "the notebook's process ended"
                note(cell.id, {"message": f"{why}: it was run again without this cell"})
            return cell.id
        except RuntimeError as error:  # jupyter_client's, of a kernel that does not start
            if cell is None:
                self.end()
                raise RuntimeError(f"{error}: {errors.lines()}".replace("\n", " ")) from None
            raise
        finally:
            self.end()
        return None

    def guesses(self):
        """What the notebook guessed at the chapter's predictions, as far as it came."""
        try:
            with (self.place / guesses.FILE).open("rb") as file:
                return guesses.read(file.read(guesses.LARGEST + 1))
        except OSError:
            return []

    def rounds(self, said):
        """The cells; then each check that has not earned all, once more under another id."""
        yield from self.cells
        for cell in self.cells:
            outcome = said.get(cell.id, {}) if is_check(cell) else {}
            missed = outcome.get("message") or any(share < 1 for _, _, share in outcome.get("speeds", ()))
            if missed and cell.id + AGAIN not in said:
                yield nbformat.from_dict({**cell, "id": cell.id + AGAIN})

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

        client = Client(nbformat.v4.new_notebook(cells=self.cells[:1]), km=manager, allow_errors=True)
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
        if answer.get("id") != cell.id or content.get("proof") != kernel.seal(self.secret, answer):
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
    return kernel.REQUEST + json.dumps(fields)


# What it is worth


@dataclasses.dataclass
class Submission:
    """What its chapter says of each exercise, the notebook as it is run, files beside it; or why it cannot be."""

    stubs: dict = dataclasses.field(default_factory=dict)
    notebook: nbformat.NotebookNode | None = None
    beside: dict = dataclasses.field(default_factory=dict)
    trouble: str = ""
    seen: list = dataclasses.field(default_factory=list)  # what a teacher may want to look at
    sources: list = dataclasses.field(default_factory=list)  # of its cells, as they were handed in
    chapter: Path | None = None
    guesses: list = dataclasses.field(default_factory=list)  # known once it was run


class Failed(Exception):
    """The grader failed, not the student."""


def prepare(name, data, beside=(), wanted=None):
    """Reads a submission. All are read before the first is run, which might delete the others.

    wanted: the exercises that were set; None for all.
    """
    try:
        if name.lower().endswith(".py"):
            data = scripts.as_notebook(data)
        submission = nbformat.reads(data.decode(json.detect_encoding(data)), as_version=4)
        handed_out = _dict(submission.metadata.get("flashkat")).get("version")
        found = chapter_of(settle(submission), name)
        if found is None:
            return Submission(trouble="answers no chapter that is here")
        chapter = chapter_at(found)
        asked = {name: stub for name, stub in stubs(chapter).items() if wanted is None or name in wanted}
        if not asked:
            return Submission(trouble="answers no exercise that was set")
        made = assemble(submission, chapter, beside)
        made.cells = [cell for cell in made.cells if not is_check(cell) or notebooks.exercise(cell) in asked]
        sources = [cell.source for cell in made.cells if not is_check(cell)]
        notes = [f"handed out with version {handed_out}"] if handed_out not in (None, notebooks.version()) else []
        return Submission(asked, made, dict(beside), "", [str(one)[:80] for one in notes], sources, found)
    except Exception as error:  # what students hand in may be anything, and the next one waits
        return Submission(trouble=f"cannot be run: {type(error).__name__}: {error}".partition("\n")[0])


def assess(submission, env, limits=None):
    """One submission's rows, and what its other cells said that failed: [(first line, message)].

    Raises:
        Failed: it could not be run here, whatever is in it.
    """
    if submission.trouble:
        return [Row("", 0, 0, submission.trouble)], []
    try:
        said = outcomes(submission.notebook, env, limits, submission.beside)
    except Exception as error:
        raise Failed(f"cannot be run: {type(error).__name__}: {error}".partition("\n")[0]) from error
    submission.guesses = [guesses.Guess(*one) for one in said.get(GUESSED, ())]
    cells = submission.notebook.cells
    failed = [(cell.source, said[cell.id]["message"]) for cell in cells if not is_check(cell) and cell.id in said]
    failed = [(source.strip().partition("\n")[0], message) for source, message in failed if message]
    missing = next((message for _, message in failed if message.startswith(("ModuleNotFound", "FileNotFound"))), "")
    checks = {notebooks.exercise(cell): cell.id for cell in cells if is_check(cell)}
    rows = [better(name, stub.points, checks[name], said, missing) for name, stub in submission.stubs.items()]
    checked = [said.get(cell.id + end, {}) for cell in cells if is_check(cell) for end in ("", AGAIN)]
    found = [*submission.seen, *(one for outcome in checked for one in outcome.get("seen", ()))]
    rows[0] = rows[0]._replace(seen="; ".join(dict.fromkeys(found)))
    return rows, failed


LATER = "defined once more below its check, or in a script beside it: the later definition is counted"


def better(exercise, worth, check, said, missing=""):
    """What an exercise earned at its check's place or, where its function is another one there, at the end."""
    first, again = row(exercise, worth, said.get(check)), said.get(check + AGAIN)
    if first.message.startswith("NameError") and missing:
        first = first._replace(note=f"before it, a cell failed: {missing}")
    if again is None or again.get("same"):
        return first
    last = row(exercise, worth, again)
    if last.points > first.points:
        return last._replace(note=LATER)
    if first.message.startswith(("NameError", "NotImplementedError")):
        return last._replace(note="defined below its check: that definition was tried at the notebook's end")
    return first


def row(exercise, worth, outcome):
    """What an exercise earned: nothing unless its check was right, and of a slow kernel's points a share."""
    if outcome is None:
        return Row(exercise, 0, worth, "did not run: the notebook ended or ran past its time limit before")
    printed, speeds = outcome.get("printed", ""), outcome.get("speeds", [])
    if outcome["message"]:
        return Row(exercise, 0, worth, outcome["message"], "", printed)
    line, band, share = min(speeds, key=lambda speed: speed[2], default=("", "", 1))
    return Row(exercise, worth if share == 1 else worth * share, worth, "" if share == 1 else line, band, printed)


def worths():
    """Points of every exercise of every chapter."""
    return {name: stub.points for path in notebooks.select([]) for name, stub in stubs(chapter_at(path)).items()}


def main(arguments=None):
    if arguments is None and sys.argv[1:2] == ["--run"]:
        facts = json.loads(sys.argv[3])
        return run(Path(sys.argv[2]), Limits(**facts["limits"]), facts["readable"])
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("submissions", nargs="?", help="a folder of students' notebooks, at any depth, also in zips")
    parser.add_argument("--out", metavar="FOLDER", help="where grades.csv and feedback go (default: submissions)")
    units = {"cell": "seconds a cell", "notebook": "seconds a notebook", "memory": "GiB a notebook"}
    units |= {"output": "characters that a cell prints", "grace": "seconds to stop in, when interrupted"}
    for field in dataclasses.fields(Limits):
        what = f"{units[field.name]} (default: %(default)s)"
        parser.add_argument(f"--{field.name}", type=field.type, default=field.default, metavar="N", help=what)
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="notebooks at a time; 1 where a GPU is timed")
    for name, what in {
        "exercises": "those that were set, as 2.1 3.1 (default: all)",
        "student": "a regular expression: what in a file's name says whose it is",
        "assignment": "its name in canvas.csv (default: the folder's)",
        "gradescope": "a file: of one student, what Gradescope's autograder reads",
        "readable": f"more places that notebooks may read, with {os.pathsep} between them",
    }.items():
        parser.add_argument(f"--{name}", default="", metavar="TEXT", help=what)
    options = parser.parse_args(arguments)
    if not options.submissions or not Path(options.submissions).is_dir():
        sys.exit("Which folder holds the students' notebooks? make grade SUBMISSIONS=folder, with options in ARGS=")
    folder = Path(options.submissions)
    limits = Limits(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Limits)})
    try:
        out = table.home(Path(options.out or folder))
        book = Class(out, options)
    except OSError as error:
        sys.exit(f"Grades cannot be kept there ({error}). OUT=folder (--out) writes elsewhere.")
    except ValueError as error:
        sys.exit(str(error))
    with contextlib.ExitStack() as stack:
        stack.enter_context(_stopping())
        try:
            _grade(folder, book, limits, max(1, options.jobs), stack)
        except KeyboardInterrupt:
            sys.exit(f"Stopped: {book.done} of {book.expected} are graded, and in {book.table.path}")


def _set(text):
    """The exercises that a list names, as "02-1"; None for an empty one. Raises ValueError for those that are not."""
    names = [name for name in re.split(r"[\s,;]+", text) if name]
    found = [re.fullmatch(r"(\d+)[-.](\d+)", name) for name in names]
    ours = [f"{int(one[1]):02}-{one[2]}" if one else "" for one in found]
    if unknown := [name for name, one in zip(names, ours, strict=True) if one not in worths()]:
        raise ValueError(f"EXERCISES: there is no exercise {', '.join(unknown)}")
    return dict.fromkeys(ours) or None


def _grade(folder, book, limits, jobs, stack):
    HIDDEN[:] = [str(folder), str(book.folder)]
    GIVEN[:] = [place for place in book.options.readable.split(os.pathsep) if place]
    readable.cache_clear()
    collection = collect.Collection(folder, book.folder, functools.partial(prepare, wanted=book.wanted))
    handed = list(collection)
    lead = totals.lead([one.name for one in handed])
    for one, lines in _seen(handed, lambda name: book.which(name, lead).id):
        one.content.seen += lines
    book.expect(handed)
    env = _environment(stack)
    subprocess.run([sys.executable, "-c", "import matplotlib.font_manager"], env=env, capture_output=True)
    if not kernel.landlock():
        print("Nothing here keeps a notebook from your files: grade strangers' work in a container.")

    pool = concurrent.futures.ThreadPoolExecutor(jobs)
    running = {pool.submit(assess, one.content, env, limits): one for one in handed if one.content}
    try:
        for one in handed:
            if one.content is None:
                book.add(one.name, {}, [Row("", 0, 0, one.why)], [], no_page=one.passed_over, guessed=one.guesses)
                print(f"{one.name}: {one.why}", flush=True)
        for done in concurrent.futures.as_completed(running):
            one = running[done]
            try:
                rows, failed = done.result()
                book.add(one.name, one.content.stubs, rows, failed, guessed=one.content.guesses)
            except Exception as error:  # ours; the others wait
                book.failed(one.name, str(error) if isinstance(error, Failed) else f"{type(error).__name__}: {error}")
            book.done += 1
            print(f"[{book.done}/{book.expected}] {book.graded[one.name].line()}", flush=True)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(RUNNING):
            end(process.pid)
    book.finish(collection.litter)


def _seen(handed, whose):
    """[(submission, lines)] of what is seen in a class by reading; if that fails, grading goes on."""
    given = {one.name: one for one in handed if one.content and not one.content.trouble}
    try:
        chapters = [chapter_at(path) for path in sorted({one.content.chapter for one in given.values()})]
        found = seen.of_class({name: one.content.sources for name, one in given.items()}, chapters, whose)
    except Exception as error:
        print(f"The notebooks were not compared: {type(error).__name__}: {error}")
        return []
    return [(given[name], lines) for name, lines in found.items()]


def _environment(stack):
    """What chapters run in; below _build, or where that cannot be written, in a folder for this run."""
    try:
        return execute.environment(BUILD / "grade")
    except OSError:
        return execute.environment(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flashkat-"))))


@contextlib.contextmanager
def _stopping():
    """Inside, what ends a process by a signal is a KeyboardInterrupt, so that notebooks are ended too."""

    def stop(*_):
        raise KeyboardInterrupt

    signals = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, stop) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Class:
    """A class: what was graded before and now, its table and its pages. Each file's rows are replaced as it is graded.

    Raises:
        ValueError: corrections by hand that cannot be read.
    """

    def __init__(self, folder, options):
        self.options, self.wanted = options, _set(options.exercises)
        self.which = totals.Which(options.student, [path.stem for path in notebooks.select([])])
        self.folder, self.table, self.overrides = folder, table.Table(folder), table.Overrides(folder)
        before = guesses.kept(folder)
        self.graded = {
            name: feedback.Graded(name, {}, rows, [], guesses=before.get(name, []))
            for name, rows in self.table.rows.items()
        }
        self.done = self.expected = 0
        self.troubles, self.kept = [*filter(None, [self.table.trouble]), *self.overrides.troubles], True
        self.worths = functools.cache(worths)
        self.students = {}

    def expect(self, handed):
        """Marks the rows of files that are gone, and forgets those that held no grade."""
        self.expected = sum(one.content is not None for one in handed)
        self.passed = sum(one.passed_over for one in handed)
        gone = self.graded.keys() - {one.name for one in handed}
        for name in gone:
            rows = [row._replace(note=_also(row.note, table.GONE)) for row in self.graded[name].rows]
            if any(row.exercise for row in rows):
                self.graded[name].rows = rows
            else:
                del self.graded[name]
        kept = sorted(gone & self.graded.keys())
        if kept:
            self.troubles.append(f"{len(kept)} graded before are gone, and keep their rows: {', '.join(kept[:5])}")
        self.places = feedback.places({*self.graded, *(one.name for one in handed)})
        for name, one in self.graded.items():
            found = [place for place in (self.places[name], feedback.other_place(name)) if self._exists(place)]
            one.page = (found or [""])[0]
        for trouble in self.troubles:
            print(trouble)

    def _exists(self, place):
        try:
            return (self.folder / "feedback" / place).is_file()
        except OSError:
            return False

    def add(self, name, stubs, rows, failed, no_page=False, guessed=()):
        """Takes a file's rows in place of those that it had, and writes them."""
        rows = self.overrides.apply(name, rows, self.worths)
        one = feedback.Graded(name, stubs, rows, failed, guesses=list(guessed))
        self.graded[name] = one
        if not no_page:
            one.page = self._page(one)
        self.keep()

    def failed(self, name, why):
        """Notes that a file could not be graded this time; a grade that it had stays."""
        before = [row for row in self.table.rows.get(name, ()) if row.exercise]
        if before:
            note = f"from before: {why}"
            rows = [row._replace(note=_also(row.note, note)) for row in before]
            self.add(name, {}, rows, [], no_page=True, guessed=self.graded[name].guesses)
        else:
            self.add(name, {}, [Row("", 0, 0, why)], [])

    def _page(self, one):
        """Writes a page where its name leads or, where no file can have this name, under another. Its place, or ""."""
        try:
            text = feedback.page(one)
            for place in (self.places[one.name], feedback.other_place(one.name)):
                try:
                    table.replace(self.folder / "feedback" / place, text)
                    return place
                except (OSError, ValueError) as error:
                    problem = error
        except Exception as error:
            problem = error
        note = f"its page could not be written: {type(problem).__name__}"
        one.rows = [row._replace(note=_also(row.note, note)) for row in one.rows]
        return ""

    def keep(self):
        """Writes what is known so far: the table and the index."""
        ordered = [self.graded[name] for name in sorted(self.graded)]
        try:
            self.table.write(ordered)
            self.students = self._totals(ordered)
            guesses.write(self.folder, {one.name: one.guesses for one in ordered})
            table.replace(self.folder / "feedback" / "index.html", feedback.index(ordered))
            self.kept = True
        except OSError as error:  # a full disk, say: the next one may have room
            self.kept = False
            print(f"The table could not be written: {error}", flush=True)

    def _totals(self, ordered):
        """Writes the tables with a row a student: out of what was set or, where nothing says so, all that came in."""
        worth = {row.exercise: row.worth for one in ordered for row in one.rows if row.exercise}
        if self.wanted:
            worth = {name: self.worths()[name] for name in self.wanted}
        found = totals.of_class(ordered, self.which, dict(sorted(worth.items())))
        totals.write(self.folder, found, self.options.assignment or self.folder.resolve().name)
        return found

    def finish(self, litter):
        self.keep()
        if self.options.gradescope:
            if len(self.students) != 1:
                sys.exit(f"--gradescope is for the files of one student, and there are {len(self.students)}")
            table.replace(Path(self.options.gradescope), totals.results(next(iter(self.students.values()))))
        for trouble in [*self.overrides.troubles, *self.overrides.unused()]:
            print(trouble)
        if litter:
            print(f"{litter} file(s) or folder(s) that systems leave behind (__MACOSX, ._*, …) were passed over")
        index = self.folder / "feedback" / "index.html"
        places = f"{self.table.path}, {self.folder / totals.FILES[0]}, {index}"
        print(f"{self.expected} notebook(s), {self.passed} passed over; {places}")
        if not self.kept:
            sys.exit(1)
        if not self.expected:
            sys.exit("No notebook was found there.")


def _also(note, more):
    return note if more in note else f"{note}; {more}".removeprefix("; ")
