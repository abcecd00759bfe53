"""Which chapters are fresh: the page book/status.md, and `make release-check`."""

import argparse
import sys

from .. import notebooks
from ..paths import ROOT
from ..site import records_page
from . import stamp

PAGE = """# Status

Executed chapters carry a stamp: what they ran on, and hashes of their code and of the modules that they use. A chapter
is *stale* where either has changed since, so that what it shows may not be what its code gives today. Prose, comments
and docstrings do not count. `make execute` on a GPU makes a chapter fresh; this page is written anew at each build.
GPU memory is the most that tensors took.{usual}
What chapters show from other runs is listed under {{doc}}`/book/records`.

{chapters}
"""
HEADER = ["Chapter", "State", "When", "Seconds", "GPU memory (GB)"]


def write_status_page(root=ROOT):
    """Writes book/status.md; returns its path."""
    page = root / "book" / "status.md"
    paths = notebooks.chapters(root)
    machines = [_machine(path) for path in paths]
    known = [machine for machine in machines if machine]
    usual = max(known, key=known.count, default=None)
    rows = [_row(path, root, None if machine == usual else machine) for path, machine in zip(paths, machines)]
    said = f"\nChapters were executed on {usual}, unless a row says otherwise." if usual else ""
    text = PAGE.format(usual=said, chapters=records_page.table("When each chapter was executed", HEADER, rows))
    if not page.exists() or page.read_text(encoding="utf-8") != text:
        page.write_text(text, encoding="utf-8")
    return page


def _machine(path):
    """What a chapter was executed on; None where it never was."""
    kept = notebooks.seen(path).metadata.get("flashkat")
    return kept and f"{kept['gpu'] or 'a CPU'}, {records_page.software(kept['driver'], kept['versions'])}"


def _row(path, root, machine):
    notebook = notebooks.seen(path)
    kept = notebook.metadata.get("flashkat", {})
    reasons = stamp.staleness(notebook, root)
    state = f"stale: {', '.join(reasons)}" if reasons else "fresh"
    return [
        f"{{doc}}`/chapters/{path.stem}`",
        f"{state}; on {machine}" if machine else state,
        kept.get("date"),
        kept.get("seconds"),
        kept.get("peak_gb"),
    ]


def stale(root=ROOT):
    """Each stale chapter's name with the reasons."""
    reasons = {path.stem: stamp.staleness(notebooks.seen(path), root) for path in notebooks.chapters(root)}
    return {name: why for name, why in reasons.items() if why}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail where a chapter is stale")
    options = parser.parse_args(arguments)
    found = stale()
    for name, why in found.items():
        print(f"{name}: {', '.join(why)}")
    if not found:
        print("Every chapter is fresh.")
    elif options.check:
        sys.exit(f"{len(found)} chapter(s) to execute on a GPU: make execute")
