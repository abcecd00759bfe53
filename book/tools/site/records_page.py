"""How each recorded result was made: the page book/records.md, written anew at each build."""

import ast
import json
import re

from .. import notebooks
from ..notebooks import stamp
from ..paths import ROOT

PAGE = """# Recorded measurements

Measurements that no single notebook can make, or that a reader without a GPU is shown, are kept in `book/data`, a
folder for each GPU, each with its device, driver, versions, date and command; what needs no GPU is in
`book/data/compilers`, which {{doc}}`/book/compilers` shows. Where a table or a figure says
*recorded on*, it comes from here. The command, on such a machine, makes the record again; `make compare` tells by how
much its ratios have moved, before `make record` puts it in place of the older one. A record that no page shows went
into the package: launch sizes come from a sweep.

{gpus}
"""
HEADER = ["Record", "Made by", "When", "Shown in"]
READERS = ("load", "measure", "measured", "recorded")  # lab.records' functions, and chapters' short forms
HEADINGS = {"compilers": "Compiled without a GPU", "cpu": "Executed without a GPU"}
WRITTEN = {
    "ladder": ["/book/intro"],
    "claims": ["/book/claims"],
    "xray_fresh": ["/book/pencil"],
    "census": ["/book/census"],
    "models_base": ["/chapters/14_norm"],
    "within_7_5_gb": ["/book/sizes"],
    "within_14_5_gb": ["/book/sizes"],
}  # by tools


def write_records_page(root=ROOT):
    """Writes book/records.md; returns its path."""
    shown = shown_in(root)
    gpus = [_section(folder, shown) for folder in sorted(root.glob("book/data/*")) if any(folder.glob("*.json"))]
    text = PAGE.format(gpus="\n\n".join(gpus) or "None is recorded yet.")
    page = root / "book" / "records.md"
    if not page.exists() or page.read_text(encoding="utf-8") != text:
        page.write_text(text, encoding="utf-8")
    return page


def shown_in(root=ROOT):
    """The pages that show each experiment: the chapters whose code reads it, and what tools write from it."""
    found = {name: list(pages) for name, pages in WRITTEN.items()}
    found |= {path.stem: ["/book/compilers"] for path in root.glob("book/data/compilers/*.json")}
    for path in notebooks.chapters(root):
        for name in sorted(experiments(notebooks.seen(path))):
            found.setdefault(name, []).append(f"/chapters/{path.stem}")
    return found


def experiments(notebook):
    """The experiments that a notebook's code measures or loads."""
    trees = [stamp.parse(cell.source) for cell in notebooks.code_cells(notebook)]
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args]
    named = [call.args[0] for call in calls if getattr(call.func, "attr", getattr(call.func, "id", None)) in READERS]
    return {name.value for name in named if isinstance(name, ast.Constant)}


def _section(folder, shown):
    """A GPU's records. Most were made with the same software, which is said once."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    used = [software(record["device"]["driver"], record["versions"]) for record in records]
    usual = max(used, key=used.count)
    rows = [
        _row(record, "" if with_ == usual else with_, shown.get(record["experiment"], []))
        for record, with_ in zip(records, used)
    ]
    with_what = f"With {usual}, unless a row says otherwise."
    listed = table(f"Records in book/data/{folder.name}", HEADER, rows)
    return f"## {HEADINGS.get(folder.name, records[0]['device']['name'])}\n\n{with_what}\n\n{listed}"


def _row(record, other, pages):
    count = record["device"]["count"]
    where = f", on {count} GPUs" if count > 1 else ""
    return [
        f"{record['title']} (`{record['experiment']}`){where}",
        command(record["command"]),
        ", ".join(filter(None, [record["date"], other])),
        ", ".join(map(link, pages)),
    ]


def link(page):
    number = re.match(r"/chapters/(\d+)", page)
    return f"{{doc}}`chapter {int(number[1])} <{page}>`" if number else f"{{doc}}`{page}`"


def command(text):
    """A record's command as code, a line for each step; where there is none, the reason."""
    return text if text.startswith("none") else " and ".join(f"`{step}`" for step in re.split(r"\s*&&\s*", text))


def software(driver, versions):
    named = {"driver": driver, "torch": versions["torch"], "Triton": versions["triton"]}
    return ", ".join(f"{what} {version}" for what, version in named.items() if version)


def table(caption, header, rows):
    """A list-table whose first column names its rows; what is empty becomes a dash."""
    lines = [f":::{{list-table}} {caption}", ":header-rows: 1", ":stub-columns: 1", ""]
    for row in [header, *rows]:
        cells = [value or "–" for value in row]
        lines += [f"{'  ' if number else '* '}- {value}" for number, value in enumerate(cells)]
    return "\n".join([*lines, ":::"])
