"""Which chapters are fresh: the page book/status.md, and `make release-check`."""

import argparse
import json
import sys

import notebooks

PAGE = """# Status

Executed chapters carry a stamp: what they ran on, and hashes of their code and of the modules that they use. A chapter
is *stale* where either has changed since, so that what it shows may not be what its code gives today. Prose, comments
and docstrings do not count. `make execute` on a GPU makes a chapter fresh; this page is written anew at each build.

{chapters}

Measurements that no single notebook can make, or that a reader without a GPU is shown, are recorded in `book/data`.

{records}
"""
CHAPTER_HEADER = ["Chapter", "State", "Executed on", "When", "Seconds"]
RECORD_HEADER = ["Experiment", "Measured on", "When", "Made by"]


def write_status_page(root=notebooks.ROOT):
    """Writes book/status.md; returns its path."""
    page = root / "book" / "status.md"
    chapters = [_chapter_row(path, root) for path in notebooks.chapters(root)]
    records = [_record_row(json.loads(path.read_text())) for path in sorted(root.glob("book/data/*/*.json"))]
    text = PAGE.format(
        chapters=_table("What each chapter was executed on", CHAPTER_HEADER, chapters),
        records=_table("Recorded measurements", RECORD_HEADER, records) if records else "None is recorded yet.",
    )
    if not page.exists() or page.read_text(encoding="utf-8") != text:
        page.write_text(text, encoding="utf-8")
    return page


def _chapter_row(path, root):
    notebook = notebooks.read(path)
    stamp = notebook.metadata.get("flashkat", {})
    reasons = notebooks.staleness(notebook, root)
    return [
        f"{{doc}}`/chapters/{path.stem}`",
        f"stale: {', '.join(reasons)}" if reasons else "fresh",
        stamp and _machine(stamp["gpu"] or "a CPU", stamp["driver"], stamp["versions"]),
        stamp.get("date"),
        stamp.get("seconds"),
    ]


def _machine(name, driver, versions):
    software = {"driver": driver, "torch": versions["torch"], "Triton": versions["triton"]}
    return ", ".join([name, *(f"{what} {version}" for what, version in software.items() if version)])


def _record_row(record):
    device, made = record["device"], record["command"]
    name = device["name"] if device["count"] == 1 else f"{device['count']} × {device['name']}"
    return [
        f"{record['title']} (`{record['experiment']}`)",
        _machine(name, device["driver"], record["versions"]),
        record["date"],
        made if made.startswith("none") else f"`{made}`",
    ]


def _table(caption, header, rows):
    lines = [f":::{{list-table}} {caption}", ":header-rows: 1", ":stub-columns: 1", ""]
    for row in [header, *rows]:
        cells = [value or "–" for value in row]
        lines += [f"{'  ' if number else '* '}- {value}" for number, value in enumerate(cells)]
    return "\n".join([*lines, ":::"])


def stale(root=notebooks.ROOT):
    """Each stale chapter's name with the reasons."""
    reasons = {path.stem: notebooks.staleness(notebooks.read(path), root) for path in notebooks.chapters(root)}
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


if __name__ == "__main__":
    main()
