"""Measurements with their provenance: made here where there is a GPU, loaded from book/data where there is none."""

import dataclasses
import json
import time
from collections.abc import Callable, Iterable
from html import escape
from pathlib import Path
from typing import Any

from IPython.display import HTML, display

from flashkat_lite import hardware

DEFAULT_GPU = "h200"


class MissingRecord(FileNotFoundError):
    """No GPU here, and no record of the experiment; the message names the command that makes one."""


@dataclasses.dataclass(frozen=True)
class Record:
    """One experiment on one machine. `live`: measured by this process, not loaded."""

    experiment: str
    title: str
    device: dict[str, Any]
    versions: dict[str, str | None]
    date: str
    command: str
    data: Any
    live: bool = False

    @property
    def gpu(self) -> str:
        return self.device["name"]

    @property
    def where(self) -> str:
        return "measured here" if self.live else f"recorded on {self.gpu}"

    @property
    def source(self) -> str:
        """Where the figures come from, in a phrase that fits under a table or in a figure."""
        how = "measured here on" if self.live else "recorded on"
        return (
            f"{how} {self.gpu}, torch {self.versions['torch']}, Triton {self.versions['triton']}, "
            f"driver {self.device['driver']}, {self.date}"
        )


def root() -> Path:
    """The book's folder: the one that holds this package and book/data."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / "book").is_dir():
        raise MissingRecord(
            f"{folder} holds no book/data. Clone the book's repository and install with `pip install -e .`"
        )
    return folder


def measure(experiment: str, title: str, function: Callable[[], Any], *, command: str) -> Record:
    """With a GPU: `function()`, JSON-able, kept under _build/records (`make record` moves it to book/data).

    Without one, the function runs too, at the sizes that the chapter picks for a CPU, so that its code is tested; its
    figures are thrown away and the record on the default GPU is returned. `command` is what makes the record.
    """
    facts = hardware.provenance()
    data = function()
    if facts["device"] is None:
        return load(experiment, command=command)
    record = Record(experiment=experiment, title=title, command=command, data=data, live=True, **facts)
    path = root() / "_build" / "records" / facts["device"]["slug"] / f"{experiment}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = {f.name: getattr(record, f.name) for f in dataclasses.fields(record) if f.name != "live"}
    path.write_text(json.dumps(fields, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return record


def load(experiment: str, gpu: str = DEFAULT_GPU, *, command: str | None = None) -> Record:
    """The committed record of an experiment. Raises MissingRecord with the command that makes it."""
    path = root() / "book" / "data" / gpu / f"{experiment}.json"
    if not path.exists():
        command = command or "make execute && make record"
        raise MissingRecord(f"book/data/{gpu}/{experiment}.json is missing. On a machine with that GPU: {command}")
    return Record(**json.loads(path.read_text(encoding="utf-8")))


def elsewhere(record: Record) -> list[Record]:
    """The committed records of the same experiment on other GPUs."""
    paths = sorted((root() / "book" / "data").glob(f"*/{record.experiment}.json"))
    return [load(record.experiment, p.parent.name) for p in paths if p.parent.name != record.device["slug"]]


def table(
    headers: dict[str, str],
    rows: Iterable[dict[str, Any]] | Callable[[Any], Iterable[dict[str, Any]]],
    source: Record | None = None,
) -> None:
    """Show rows under `headers`: {key: "heading"} or {key: "heading|format"}, such as {"ms": "time (ms)|.3f"}.

    With a `source`, the provenance stands under the table, and `rows` may be a function of a record's data: then other
    GPUs that have a record of the experiment add their rows.
    """
    records = [source] + (elsewhere(source) if callable(rows) else []) if source else []
    body = []
    for record in records or [None]:
        for row in rows(record.data) if callable(rows) else rows:
            body.append(({"gpu": record.gpu} if len(records) > 1 else {}) | row)
    columns = ({"gpu": "GPU"} if len(records) > 1 else {}) | headers
    head = "".join(f'<th scope="col">{escape(h.split("|")[0])}</th>' for h in columns.values())
    lines = "".join(
        "<tr>" + "".join(_cell(row.get(k), h, first=i == 0) for i, (k, h) in enumerate(columns.items())) + "</tr>"
        for row in body
    )
    under = "".join(f'<p class="fk-source">{escape(_sentence(r.source))}</p>' for r in records)
    display(HTML(f'<table class="fk-table"><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>{under}'))


def _cell(value: Any, header: str, first: bool) -> str:
    form = header.partition("|")[2]
    text = "–" if value is None else format(value, form) if form and not isinstance(value, str) else str(value)
    return f'<th scope="row">{escape(text)}</th>' if first else f"<td>{escape(text)}</td>"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _once(function: Callable[[], Any]) -> dict[str, float]:
    start = time.perf_counter()
    function()
    elapsed = 1e3 * (time.perf_counter() - start)
    return {"ms": elapsed, "low": elapsed, "high": elapsed, "repeats": 1}


def timings(functions: dict[str, Callable[[], Any]], **options) -> dict[str, dict[str, float]]:
    """`hardware.time_interleaved`, ready for JSON: {name: {"ms", "low", "high", "repeats"}}; one call each on a CPU."""
    if hardware.device() is None:
        return {name: _once(function) for name, function in functions.items()}
    times = hardware.time_interleaved(functions, **options)
    return {k: {"ms": t.median, "low": t.low, "high": t.high, "repeats": t.repeats} for k, t in times.items()}
