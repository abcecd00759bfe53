"""Records of measurements: one experiment on one machine, with its device, versions, date and command.

Fresh ones are written to _build/records/<gpu>, and `make record` moves them to book/data/<gpu>.
"""

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

from . import hardware

DEFAULT_GPU = "h200"
REPOSITORY = Path(__file__).resolve().parents[1]


class MissingRecord(FileNotFoundError):
    """There is no record of the experiment; the message names the command that makes one."""


@dataclasses.dataclass(frozen=True)
class Record:
    """One experiment on one machine; `data` is JSON-able. `live`: measured by this process, not loaded."""

    experiment: str
    title: str
    device: dict[str, Any]
    versions: dict[str, str | None]
    date: str
    command: str
    data: Any
    live: bool = dataclasses.field(default=False, compare=False)

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

    def save(self, path: Path) -> None:
        """Write the record as JSON, in one move: a process that is killed leaves the old file or the new one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".part")
        fresh.write_text(
            json.dumps({name: getattr(self, name) for name in SCHEMA}, indent=1, ensure_ascii=False) + "\n",
            encoding="utf-8",
        )
        fresh.replace(path)


SCHEMA = {"experiment": str, "title": str, "device": dict, "versions": dict, "date": str, "command": str}
SCHEMA |= {"data": dict | list}


def problems(record: dict[str, Any], path: Path) -> list[str]:
    """Return what is wrong with a record's JSON that lies at `path`; [] for a good one."""
    found = [
        f"{name} is missing" if name not in record else f"{name} is a {type(record[name]).__name__}"
        for name, kind in SCHEMA.items()
        if not isinstance(record.get(name), kind)
    ]
    found += [f"{name} is not part of a record" for name in record.keys() - SCHEMA.keys()]
    if not found:
        found += [f"device has no {name}" for name in ("name", "count", "driver") if name not in record["device"]]
        found += [f"versions has no {name}" for name in ("torch", "triton") if name not in record["versions"]]
        if record["experiment"] != path.stem:
            found.append(f"experiment is {record['experiment']!r}, the file {path.stem!r}")
    return found


def make(experiment: str, *, title: str, command: str, data: Any, gpus: int = 1) -> Record:
    """Return a record of `data`, measured now on this machine's GPU, of which `gpus` took part."""
    provenance = hardware.provenance(gpus)
    return Record(experiment=experiment, title=title, command=command, data=data, live=True, **provenance)


def in_clone() -> bool:
    """Return whether this package lies in the book's repository, where `make`, tests and pages are."""
    return (REPOSITORY / "Makefile").is_file() and (REPOSITORY / "book" / "data").is_dir()


def root() -> Path:
    """Return the book's repository, the folder that holds this package and book/data; MissingRecord outside of it."""
    if not (REPOSITORY / "book").is_dir():
        raise MissingRecord(
            f"{REPOSITORY} holds no book/data. Clone the book's repository and install with `pip install -e .`"
        )
    return REPOSITORY


def fresh_path(experiment: str) -> Path:
    """Return where a fresh record of this machine's GPU is written."""
    return root() / "_build" / "records" / hardware.device().slug / f"{experiment}.json"


def why_not_kept(path: Path) -> str:
    """Return why a record cannot be written to `path`, whose folder is made where it can be; "" where it can."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            return ""
    except OSError as error:
        return f"{path.parent}: {error.strerror}"


def read(path: Path) -> Record:
    """Return the record in a JSON file."""
    return Record(**json.loads(path.read_text(encoding="utf-8")))


def load(experiment: str, gpu: str = DEFAULT_GPU, *, command: str = "make execute && make record") -> Record:
    """Return the committed record of an experiment: that GPU's or, where it has none, another's.

    Raises MissingRecord with the command that makes it.
    """
    data = root() / "book" / "data"
    path = data / gpu / f"{experiment}.json"
    if not path.exists():
        path = next(iter(sorted(data.glob(f"*/{experiment}.json"))), path)
    if not path.exists():
        raise MissingRecord(f"book/data/{gpu}/{experiment}.json is missing. On a machine with that GPU: {command}")
    return read(path)


def on_other_gpus(record: Record) -> list[Record]:
    """Return the committed records of the same experiment on other GPUs."""
    paths = sorted((root() / "book" / "data").glob(f"*/{record.experiment}.json"))
    return [read(path) for path in paths if path.parent.name != record.device["slug"]]
