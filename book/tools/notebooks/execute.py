"""`make execute [CHAPTERS="07 09"]`: runs chapters on this machine's GPU and keeps the outputs of those that pass.

A chapter that fails leaves the committed notebook as it was, and so does one that runs under a limit on the GPU's
memory (FLASHKAT_GPU_MEMORY=7.5) or with --apart; outputs are in _build/execute. What becomes of each claim, and the
most GPU memory that a chapter took, are kept too.
"""

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .. import WITHOUT_IT, notebooks
from ..paths import BUILD, ROOT
from . import claims, stamp

FOLDER = BUILD / "execute"
TIMEOUT = 1200  # seconds a cell
LOCAL_SETTINGS = ("MPLBACKEND", "TRITON_INTERPRET", "PYTEST_ADDOPTS")
LOCAL_SETTINGS += ("PYTHONOPTIMIZE", "PYTHONSAFEPATH", "PYTHONWARNINGS")
# nbmake leaves out what lies in a folder _build; a notebook's own may lie there, below TMPDIR.
NBMAKE = "import pytest, nbmake.pytest_plugin as p; p._should_collect = lambda *_: True; sys.exit(pytest.main())"
# In a process of its own, so that the chapters have the GPU to themselves. Matplotlib builds its font cache here, which
# it would otherwise announce in the first figure's output.
FACTS = """
import json
import matplotlib.font_manager
from flashkat_lite import hardware
gpu, made = hardware.device(), hardware.provenance()
facts = {"gpu": gpu and gpu.name, "driver": gpu and gpu.driver, "versions": made["versions"], "device": made["device"]}
print(json.dumps(facts))
"""


def environment(folder):
    """The environment of a chapter's process: this Python as the kernel, and no settings of the user's own."""
    spec = folder / "jupyter" / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True, exist_ok=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec.write_text(json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"}), encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if name not in LOCAL_SETTINGS}
    return kept | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [kept.get("PYTHONPATH")])]),
        "PYTHONHASHSEED": "0",
        "FLASHKAT_FORECAST": "0",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "JUPYTER_PATH": str(folder / "jupyter"),
        "JUPYTER_DATA_DIR": str(folder / "jupyter"),
        "JUPYTER_CONFIG_DIR": str(folder / "jupyter" / "config"),
        "IPYTHONDIR": str(folder / "ipython"),
        "MPLCONFIGDIR": str(folder / "matplotlib"),
    }


def machine(env):
    """What a stamp says of the machine: GPU, driver, versions."""
    command = [sys.executable, "-c", FACTS]
    done = subprocess.run(command, env=env, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode:
        sys.exit(f"Chapters cannot run here: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def nbmake(source, env, timeout=TIMEOUT):
    """Runs a copy of a notebook. Returns the copy as executed, and what failed (None where nothing did)."""
    with tempfile.TemporaryDirectory(prefix="flashkat-") as folder:
        copy = Path(shutil.copy(source, folder))
        options = ["-p", "nbmake.pytest_plugin", "-p", "no:cacheprovider", "--rootdir", folder, "-c", os.devnull]
        options += [
            "--nbmake",
            "--overwrite",
            "--nbmake-kernel=python3",
            f"--nbmake-timeout={timeout}",
            "--disable-warnings",
        ]
        command = [sys.executable, "-c", f"{WITHOUT_IT}{NBMAKE}", *options, str(copy)]
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, encoding="utf-8", errors="replace")
        executed = notebooks.read(copy)
    return executed, failure(executed, done.stdout + done.stderr) if done.returncode else None


def failure(notebook, log):
    """The cell that failed, in a few words; the end of pytest's log where no cell says that it failed."""
    for number, cell in enumerate(notebook.cells, 1):
        if cell.cell_type != "code" or "raises-exception" in notebooks.tags(cell):
            continue
        where = f"cell {number} of {len(notebook.cells)} (id {cell.get('id')}): {_first_line(cell.source)}"
        started = cell.metadata.get("execution")
        if started and "shell.execute_reply" not in started:
            return f"{where}\n    ran past its time limit"
        for output in cell.outputs:
            if output.output_type == "error":
                return f"{where}\n    {output.ename}: {output.evalue}"
    return "the run did not finish:\n    " + "\n    ".join(log.strip().splitlines()[-8:])


def _first_line(source):
    return source.strip().partition("\n")[0]


def keep(executed, original, facts, seconds, peak=None):
    """The executed notebook as it is committed: canonical and stamped."""
    committed = {cell.id: cell for cell in original.cells}
    for cell in notebooks.code_cells(executed):
        # nbmake empties the cells that it skips. What a check said once is no output of ours; anything else stays.
        if "skip-execution" in notebooks.tags(cell) and "check" not in notebooks.tags(cell):
            cell.outputs = committed[cell.id].outputs
    kept = notebooks.canonical(executed)
    kept.metadata.flashkat = {
        "code_sha256": stamp.code_sha256(kept),
        "package_sha256": stamp.package_sha256(kept),
        **{name: facts[name] for name in ("gpu", "driver", "versions")},
        "date": datetime.date.today().isoformat(),
        "seconds": round(seconds, 1),
    } | (peak or {})
    return kept


def execute(path, env, facts, apart=False):
    """Executes one chapter, in place unless `apart`; returns what failed, or None.

    Its seconds count from the end of the chapter before, which had the GPU until then.
    """
    original, told = notebooks.read(path), FOLDER / f"{path.stem}.memory.json"
    told.parent.mkdir(parents=True, exist_ok=True)
    told.write_text("{}", encoding="utf-8")
    start = time.perf_counter()
    executed, failed = nbmake(path, env | {"FLASHKAT_TELL_MEMORY": str(told), "FLASHKAT_PHONES": "1"})
    with _one_at_a_time:
        seconds, facts["before"] = time.perf_counter() - max(start, facts.get("before", start)), time.perf_counter()
        return settle(path, original, executed, failed, facts, seconds, told, apart)


_one_at_a_time = threading.Lock()


def settle(path, original, executed, failed, facts, seconds, told, apart):
    """Keeps what an execution made; returns what failed, or None."""
    kept = keep(executed, original, facts, seconds, json.loads(told.read_text(encoding="utf-8")))
    notebooks.write(kept, FOLDER / path.name)
    if failed:
        print(f"{path.stem} … failed after {seconds:.1f} s")
        print(f"  {failed}\n  {path.name} is as it was; the failed run is in {FOLDER / path.name}", flush=True)
    else:
        if not apart:
            notebooks.write(kept, path)
        dated, peak = facts | {"date": kept.metadata.flashkat["date"]}, kept.metadata.flashkat.get("peak_gb")
        if cap := os.environ.get("FLASHKAT_GPU_MEMORY"):  # at sizes that are nobody's own
            claims.keep_capped(path.stem, cap, peak, dated)
        else:
            claims.keep(path.stem, claims.of(kept), dated)
        print(f"{path.stem} … {seconds:.1f} s" + (f", {peak:.2f} GB of GPU memory at most" if peak else ""), flush=True)
    return failed


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("chapters", nargs="*", help="07, 07_atomic_backward or a path; all without")
    parser.add_argument("--cpu", action="store_true", help="keep outputs although there is no GPU")
    parser.add_argument(
        "--apart", action="store_true", help="leave the notebooks as they are; outputs go to _build/execute"
    )
    parser.add_argument("--jobs", type=int, help="so many chapters at the same time, where their times do not matter")
    options = parser.parse_args(arguments)
    apart = options.apart or bool(os.environ.get("FLASHKAT_GPU_MEMORY"))
    try:
        paths = notebooks.select(options.chapters)
    except ValueError as error:
        sys.exit(str(error))
    env = environment(FOLDER)
    facts = machine(env)
    if not facts["gpu"] and not options.cpu:
        sys.exit("No GPU here, and outputs from a CPU would replace measured ones: --cpu does it nevertheless.")
    if facts["gpu"] and options.jobs and not os.environ.get("FLASHKAT_GPU_MEMORY"):
        sys.exit("Chapters that share a GPU slow one another down: --jobs is for FLASHKAT_GPU_MEMORY or --cpu.")
    print(f"{len(paths)} chapter(s) on {facts['gpu'] or 'CPU'}", flush=True)
    jobs = options.jobs
    if not jobs:  # on a GPU the next chapter's process starts and imports, and waits for its turn, while one runs
        jobs, env["FLASHKAT_TURN"] = 2 if facts["gpu"] else 1, str(FOLDER / f"turn.{os.getpid()}")
    with ThreadPoolExecutor(jobs) as pool:
        results = list(pool.map(lambda path: execute(path, env, facts, apart), paths))
    (FOLDER / f"turn.{os.getpid()}").unlink(missing_ok=True)
    failed = [path.stem for path, wrong in zip(paths, results) if wrong]
    if failed:
        sys.exit(f"{len(failed)} of {len(paths)} failed: {', '.join(failed)}")
