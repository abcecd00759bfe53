"""Run the tests that depend on Triton under this Python's version of it, and keep what they said; half an hour.

`python book/tools tested` writes what the page *Compilers* shows of this version, `python book/tools tested op` one
folder's part of it. With `--check` it goes to _build/records. A test that fails is named, and fails the command too.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from flashkat_lite import hardware
from flashkat_lite.records import Record, read

from ..paths import FRESH, KEPT, ROOT
from .columns import DEVICE, FOLDER, TESTED, TESTS, experiment


def outcome(report: Path) -> dict[str, Any]:
    """What a report of pytest's in JUnit's form says: how many passed and were skipped, and which failed."""
    cases = list(ElementTree.parse(report).iter("testcase"))
    ended = [next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "") for case in cases]
    failed = [case.get("name") for case, end in zip(cases, ended) if end in ("failure", "error")]
    return {"passed": ended.count(""), "skipped": ended.count("skipped"), "failed": sorted(set(failed))}


def run(folder: str, jobs: int) -> dict[str, Any]:
    """Run a folder's tests in a process of its own, since some interpret and some compile.

    A run that ends before them, for want of a package say, has failed by itself.
    """
    with tempfile.TemporaryDirectory() as place:
        report = Path(place) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-n", str(jobs), f"--junitxml={report}", f"tests/{folder}"]
        done = subprocess.run(command, cwd=ROOT)
        found = outcome(report) if report.exists() else {"passed": 0, "skipped": 0, "failed": []}
        if done.returncode and not found["failed"]:
            found["failed"] = [f"pytest ended with {done.returncode}"]
        return found


def main() -> int | str:
    parser = argparse.ArgumentParser(prog="python book/tools tested", description=__doc__.partition("\n\n")[0])
    parser.add_argument("folders", nargs="*", metavar="FOLDER", help=f"{', '.join(TESTED)}; all where none is named")
    parser.add_argument("--check", action="store_true", help="keep what they said in _build/records")
    parser.add_argument("--jobs", type=int, default=2, help="processes of a folder's tests")
    asked = parser.parse_args()
    if unknown := set(asked.folders) - set(TESTED):
        parser.error(f"no such folder: {', '.join(sorted(unknown))}")
    facts = hardware.provenance()
    name = experiment(TESTS, facts["versions"]["triton"])
    path = (FRESH if asked.check else KEPT) / FOLDER / f"{name}.json"
    # Folder by folder, since a night may end before them all.
    results = read(path).data if path.exists() and asked.folders else {}
    for folder in asked.folders or TESTED:
        results[folder] = run(folder, asked.jobs)
        ordered = {name: results[name] for name in TESTED if name in results}
        title = f"Tests under Triton {facts['versions']['triton']}"
        Record(name, title, command="python book/tools tested", data=ordered, **facts | {"device": DEVICE}).save(path)
    print(path.relative_to(ROOT))
    failed = [f"tests/{folder}: {test}" for folder, found in results.items() for test in found["failed"]]
    return "\n".join(failed) or 0


if __name__ == "__main__":
    sys.exit(main())
