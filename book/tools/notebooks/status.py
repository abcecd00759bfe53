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
GPU memory is the most that tensors took.
What chapters show from other runs is listed under {{doc}}`/book/records`.

{chapters}
"""
HEADER = ["Chapter", "State", "Executed on", "When", "Seconds", "GPU memory (GB)"]


def write_status_page(root=ROOT):
    """Writes book/status.md; returns its path."""
    page = root / "book" / "status.md"
    chapters = [_chapter_row(path, root) for path in notebooks.chapters(root)]
    text = PAGE.format(chapters=records_page.table("What each chapter was executed on", HEADER, chapters))
    if not page.exists() or page.read_text(encoding="utf-8") != text:
        page.write_text(text, encoding="utf-8")
    return page


def _chapter_row(path, root):
    notebook = notebooks.read(path)
    kept = notebook.metadata.get("flashkat", {})
    reasons = stamp.staleness(notebook, root)
    return [
        f"{{doc}}`/chapters/{path.stem}`",
        f"stale: {', '.join(reasons)}" if reasons else "fresh",
        kept and f"{kept['gpu'] or 'a CPU'}, {records_page.software(kept['driver'], kept['versions'])}",
        kept.get("date"),
        kept.get("seconds"),
        kept.get("peak_gb"),
    ]


def stale(root=ROOT):
    """Each stale chapter's name with the reasons."""
    reasons = {path.stem: stamp.staleness(notebooks.read(path), root) for path in notebooks.chapters(root)}
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
