"""What became of each claim on each machine: kept by `make execute`, shown on the page book/claims.md."""

import json
import re
from html import unescape

from flashkat_lite import hardware
from flashkat_lite.records import DEFAULT_GPU

from .. import notebooks
from ..paths import FRESH, KEPT, ROOT
from ..site import records_page

PAGE = """# Claims

Each sentence that a chapter checks with a figure, and what the figure was on each machine. *No GPU* is a run in
Triton's interpreter: what is counted or derived is checked there too, and a measured claim is held to a record, so that
it has no figure of its own. A cross (✗) marks a figure outside of what is claimed. {summary} `make execute` keeps the
results of its machine, `make record` puts them here.

{chapters}
"""
CLAIM = re.compile(
    r'<p class="fk-claim[^"]*"><span class="fk-mark">(?P<mark>.*?)</span> (?P<sentence>.*?) '
    r'<strong>(?P<found>.*?)</strong>(?: <span class="fk-source">\((?P<small>.*?)\)</span>)?</p>',
    re.DOTALL,
)
NOWHERE = {"name": "no GPU", "slug": "cpu", "count": 0, "driver": None}


def of(notebook):
    """The claims that an executed notebook shows, in order."""
    found = []
    for cell in notebooks.code_cells(notebook):
        for output in cell.outputs:
            html = output.get("data", {}).get("text/html", "")
            for claim in CLAIM.finditer("".join(html)):
                parts = {name: unescape(text or "") for name, text in claim.groupdict().items()}
                bound, _, where = parts["small"].rpartition("; ")
                if not where.startswith(("measured", "recorded")):
                    bound, where = parts["small"], ""
                found.append(
                    {"cell": cell.id, "sentence": parts["sentence"], "found": parts["found"]}
                    | {"claimed": bound.removeprefix("claimed: "), "where": where, "holds": parts["mark"] == "✓"}
                )
    return found


def keep(stem, found, facts, fresh=None, kept=None):
    """Put a chapter's claims in place of those that this machine's record holds, in _build/records."""
    command = "make execute" if facts["gpu"] else "python book/tools execute --cpu --apart"
    merge("claims", "What became of each claim", command, {stem: found}, facts, fresh, kept)


def keep_capped(stem, memory, peak, facts, fresh=None, kept=None):
    """Put the GB that a chapter took, where it might take `memory`, into this machine's record of such runs."""
    name, title = f"within_{memory.replace('.', '_')}_gb", f"What chapters take of {memory} GB of GPU memory"
    merge(name, title, f"FLASHKAT_GPU_MEMORY={memory} make execute", {stem: peak}, facts, fresh, kept)


def merge(experiment, title, command, parts, facts, fresh=None, kept=None):
    """Put some of a record's data in place of what the newest record of this machine has."""
    from flashkat_lite import records

    fresh, kept, device = fresh or FRESH, kept or KEPT, facts.get("device") or NOWHERE
    path = fresh / device["slug"] / f"{experiment}.json"
    older = next((p for p in (path, kept / device["slug"] / path.name) if p.exists()), None)
    data = json.loads(older.read_text(encoding="utf-8"))["data"] if older else {}
    records.Record(
        experiment=experiment,
        title=title,
        device=device,
        versions=facts["versions"],
        date=facts["date"],
        command=f"{command} && make record",
        data=dict(sorted((data | parts).items())),
    ).save(path)


def write_claims_page(root=ROOT):
    """Writes book/claims.md; returns its path."""
    machines = [json.loads(path.read_text(encoding="utf-8")) for path in root.glob("book/data/*/claims.json")]
    # A machine that was not executed on anew may still be the one whose records another one shows.
    names = {record["device"]["name"] for record in machines}
    for name in sorted({n for record in machines for n in _recorded(record)} - names, reverse=True):
        machines.insert(0, {"device": {"name": name, "count": 1}, "data": {}})

    def place(record):  # the GPU of the book's figures comes first
        name, count = record["device"]["name"], record["device"]["count"]
        return count == 0, hardware.slug(name) != DEFAULT_GPU, name

    machines.sort(key=place)
    sections, fails = [], 0
    for path in notebooks.chapters(root):
        rows, failed = _rows(path.stem, machines)
        fails += failed
        if rows:
            header = ["Claim", "Claimed", *(record["device"]["name"].removeprefix("NVIDIA ") for record in machines)]
            title = notebooks.seen(path).cells[0].source.partition("\n")[0].removeprefix("# ")
            table = records_page.table(f"Claims of {records_page.link(f'/chapters/{path.stem}')}", header, rows)
            sections.append(f"## {title}\n\n{table}")
    said = (
        f"{fails or 'None'} of these figures {'lies' if fails == 1 else 'lie'} outside."
        if sections
        else "None is kept yet."
    )
    page = root / "book" / "claims.md"
    text = PAGE.format(summary=said, chapters="\n\n".join(sections))
    if not page.exists() or page.read_text(encoding="utf-8") != text:
        page.write_text(text, encoding="utf-8")
    return page


def _recorded(record):
    claims = [claim for chapter in record["data"].values() for claim in chapter]
    return {c["where"].removeprefix("recorded on ") for c in claims if c["where"].startswith("recorded on ")}


def _rows(stem, machines):
    by_machine = [{(c["cell"], c["sentence"]): c for c in record["data"].get(stem, [])} for record in machines]
    keys = dict.fromkeys(key for found in sorted(by_machine, key=len, reverse=True) for key in found)
    rows, failed = [], 0
    for key in keys:
        claims = [_on(record["device"]["name"], key, found, by_machine) for record, found in zip(machines, by_machine)]
        bound = next(found[key]["claimed"] for found in by_machine if key in found)
        failed += sum(claim is not None and not claim["holds"] for claim in claims)
        rows.append([_plain(key[1]), _plain(bound), *map(_cell, claims)])
    return rows, failed


def _on(name, key, own, by_machine):
    """The claim as it stands for a machine: its own figure, or its record's, which another machine was shown."""
    claim = own.get(key)
    if claim and claim["where"] in ("", "measured here", f"recorded on {name}"):
        return claim
    shown = (found.get(key) for found in by_machine)
    return next((claim for claim in shown if claim and claim["where"] == f"recorded on {name}"), None)


def _cell(claim):
    return claim and f"{'' if claim['holds'] else '✗ '}{_plain(claim['found'])}"


def _plain(text):
    return re.sub(r"([\\`*_$<>\[\]{}])", r"\\\1", " ".join(text.split()))
