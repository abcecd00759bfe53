"""`python book/tools standin`: Triton's own Python files, for kernels where Triton has no wheel (macOS, Windows).

They come from its wheel for Linux, which pip downloads once; with --to from a Triton that is installed. The stand-in
for its compiled module is flashkat_lite/_standin.py. --test runs the kernels' and the exercises' tests with both.
"""

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from .measure.wheelhouse import download, pins
from .paths import BUILD, ROOT


def wanted(name: str) -> bool:
    """Whether a file of the wheel is needed: Triton's Python files without its compilers', and its licence."""
    ours = name.startswith("triton/") and name.endswith(".py") and not re.match(r"triton/backends/\w+/", name)
    return ours or bool(re.search(r"dist-info/(licenses/)?LICENSE$", name))


def installed() -> Iterator[tuple[str, bytes]]:
    """The files of the Triton that is installed here, by their names in its wheel."""
    root = Path(importlib.util.find_spec("triton").origin).parents[1]
    for path in sorted(root.glob("triton/**/*.py")):
        yield path.relative_to(root).as_posix(), path.read_bytes()


def pinned() -> str:
    """The version of Triton that requirements.txt asks for."""
    return pins((ROOT / "requirements.txt").read_text(encoding="utf-8"))["triton"]


def downloaded() -> Iterator[tuple[str, bytes]]:
    """The files of the wheel of that version; those in Python are the same in all its wheels."""
    print(f"Downloading Triton {pinned()} for its Python files: 200 MB, of which 1.4 are kept", flush=True)
    with tempfile.TemporaryDirectory() as place:
        try:
            download([f"triton=={pinned()}"], f"3.{sys.version_info[1]}", "x86_64", Path(place))
        except subprocess.CalledProcessError:
            sys.exit("pip could not download it")
        with zipfile.ZipFile(*Path(place).glob("*.whl")) as wheel:
            for name in filter(wanted, wheel.namelist()):
                yield name, wheel.read(name)


def put(files: Iterator[tuple[str, bytes]], folder: Path) -> None:
    """Write the wanted ones below a folder in place of older ones, the package's own __init__.py last: without it
    nothing is there."""
    found = {name: data for name, data in files if wanted(name)}
    shutil.rmtree(folder / "triton", ignore_errors=True)
    for name in sorted(found, key=lambda name: name == "triton/__init__.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(found[name])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="where to put them, for FLASHKAT_STANDIN=FOLDER")
    parser.add_argument("--test", nargs=argparse.REMAINDER, metavar="ARGUMENT", help="run tests; the rest is pytest's")
    options = parser.parse_args(arguments)
    from flashkat_lite import _interpreter

    here = importlib.util.find_spec("triton") is not None
    folder = options.to or (BUILD / "standin" if here and options.test is not None else _interpreter.FOLDER)
    if here and folder == _interpreter.FOLDER:
        print("Triton is installed: no stand-in is needed")
        return 0
    if here or _interpreter.version(folder) != pinned():
        put(installed() if here else downloaded(), folder)
        print(f"Triton's Python files are in {folder}")
    if options.test is None:
        return 0
    environ = os.environ | {"FLASHKAT_STANDIN": str(folder), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", *options.test, "tests/kernels", "tests/exercises"]
    return subprocess.call(command, cwd=ROOT, env=environ)
