"""`make mutants`: seeds the faults of tests/mutants.toml, one at a time in a copy, and sees the tests notice each.

Each fault is a text that occurs once in its file, what stands there instead, and the narrowest tests that must fail.
Where one survives, a test is missing. Where its text is gone, the fault is to be seeded anew.
"""

import argparse
import os
import queue
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import tomllib

from .paths import ROOT, copy

LIMIT = 300  # seconds for the tests of one fault


class Mutant(NamedTuple):
    name: str
    file: str
    old: str
    new: str
    tests: str  # pytest's arguments


def listed(path=ROOT / "tests" / "mutants.toml"):
    """The faults of the file, in order."""
    files = tomllib.loads(path.read_text(encoding="utf-8"))
    return [Mutant(name, file, *fault) for file, faults in files.items() for name, fault in faults.items()]


def found_once(mutant, root=ROOT):
    return (root / mutant.file).read_text(encoding="utf-8").count(mutant.old) == 1


def run(tests, tree, limit=LIMIT):
    """(pytest's exit status or None past the time limit, the test that failed, seconds)."""
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "-p", "no:xdist", "-p", "no:cacheprovider"]
    said = {"capture_output": True, "encoding": "utf-8", "errors": "replace"}
    start = time.monotonic()
    try:
        done = subprocess.run([*command, *split(tests)], cwd=tree, env=environment, timeout=limit, **said)
    except subprocess.TimeoutExpired:
        return None, f"ran past {limit} s", time.monotonic() - start
    if done.returncode < 0:
        return done.returncode, f"the process ended by signal {-done.returncode}", time.monotonic() - start
    failed = re.search(r"^(?:FAILED|ERROR) (?:\S*/)?(\S+\.py.*?)(?: - |$)", done.stdout, re.MULTILINE)
    last = (done.stdout + done.stderr).strip().splitlines()[-1:]
    return done.returncode, failed[1] if failed else "".join(last), time.monotonic() - start


def split(tests):
    files, _, words = tests.partition(" -k ")
    return [*files.split(), *(["-k", words] if words else [])]


def judge(mutant, tree, limit=LIMIT):
    """Seeds the fault in `tree`, runs its tests, and takes it out again: (killed?, what was said, seconds)."""
    if not found_once(mutant, tree):
        return False, "its text is no longer found exactly once", 0.0
    path = tree / mutant.file
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        status, said, seconds = run(mutant.tests, tree, limit)
    finally:
        path.write_text(text, encoding="utf-8")
    if status in (1, None) or status < 0:  # a test failed, ran too long, or took the process with it
        return True, said, seconds
    return False, "SURVIVED" if status == 0 else f"no test ran: {said}", seconds


def main(arguments=None, mutants=None, root=ROOT):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--list", action="store_true", help="name the faults and run nothing")
    parser.add_argument("--only", metavar="NAME", help="the faults whose name or file holds this")
    parser.add_argument("--jobs", type=int, default=1, help="so many at a time, each in a copy of its own")
    options = parser.parse_args(arguments)
    chosen = [m for m in mutants or listed() if not options.only or options.only in f"{m.name} {m.file}"]
    if not chosen:
        sys.exit(f"no fault is called {options.only!r}; --list names them")
    if options.list:
        for mutant in chosen:
            print(f"{mutant.file}: {mutant.name}")
        return
    left = []
    with tempfile.TemporaryDirectory(prefix="flashkat-mutants-") as folder, ThreadPoolExecutor(options.jobs) as pool:
        trees = queue.SimpleQueue()
        for number in range(options.jobs):
            trees.put(copy(root, Path(folder) / f"tree{number}"))

        def in_a_tree(function, argument):
            tree = trees.get()
            try:
                return function(argument, tree)
            finally:
                trees.put(tree)

        tests = [*dict.fromkeys(mutant.tests for mutant in chosen)]  # what fails without a fault says nothing
        for words, (status, said, _) in zip(tests, pool.map(partial(in_a_tree, run), tests), strict=True):
            if status != 0:
                sys.exit(f"{words}: fails without any fault: {said}")
        print("| file | fault | noticed by | seconds |\n|---|---|---|---|", flush=True)
        for mutant, judged in zip(chosen, pool.map(partial(in_a_tree, judge), chosen), strict=True):
            killed, said, seconds = judged
            print(f"| {mutant.file} | {mutant.name} | {said} | {seconds:.0f} |", flush=True)
            left += [] if killed else [mutant.name]
    print(f"{len(chosen) - len(left)} of {len(chosen)} faults noticed.")
    if left:
        sys.exit(f"Not noticed: {'; '.join(left)}")
