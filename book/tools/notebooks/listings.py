"""`python book/tools listings [CHAPTERS]`: keeps what the compiler says of chapters' kernels, for machines without one.

Runs the chapters that compile as a machine without a GPU does, with the Triton that is installed. With names it runs
these alone, and what the record has of others stays.
"""

import argparse
import gzip
import json
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from .. import notebooks
from ..paths import KEPT
from . import execute

RECORD = KEPT / "listings.json.gz"


def code(path: Path) -> str:
    return "\n".join(cell.source for cell in notebooks.code_cells(notebooks.read(path)))


def compiles(path: Path) -> bool:
    return "inspect_many(" in code(path)


def read(folder: Path, source: str) -> dict[str, dict]:
    """What a chapter's process wrote where FLASHKAT_LISTINGS said: reports by their keys, without texts of stages that
    the chapter's code does not read."""
    unread = {stage: "" for stage in ("ttir", "ttgir", "ptx") if f".{stage}" not in source}
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) | unread for file in sorted(folder.glob("*.json"))}


def kept() -> dict:
    return json.loads(gzip.decompress(RECORD.read_bytes())) if RECORD.exists() else {"triton": None, "chapters": {}}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("chapters", nargs="*", help="04, 04_first_kernel or a path; all that compile without")
    options = parser.parse_args(arguments)
    version, old = metadata.version("triton"), kept()
    if options.chapters and old["triton"] not in (None, version):
        sys.exit(f"The record was made with Triton {old['triton']}, and {version} is installed: run all chapters")
    chapters = old["chapters"] if options.chapters else {}
    for path in filter(compiles, notebooks.select(options.chapters)):
        print(f"{path.stem} … ", end="", flush=True)
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "listings"
            folder.mkdir()
            env = execute.environment(Path(place)) | {"CUDA_VISIBLE_DEVICES": "", "FLASHKAT_LISTINGS": str(folder)}
            _, failed = execute.nbmake(path, env)
            if failed:
                sys.exit(f"failed; the record is as it was\n  {failed}")
            chapters[path.stem] = read(folder, code(path))
        print(f"{len(chapters[path.stem])} compilations", flush=True)
    text = json.dumps({"triton": version, "chapters": chapters}, sort_keys=True)
    RECORD.write_bytes(gzip.compress(text.encode(), mtime=0))  # the same bytes for the same reports
