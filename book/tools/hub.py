"""`make hub`: lays out in _build/hub the source of a kernel for the Hugging Face Hub, as kernel-builder takes it."""

import os
import shutil
from pathlib import Path

from .address import repository
from .paths import BUILD, ROOT

PACKAGE = "flashkat_lite"
LEFT_OUT = shutil.ignore_patterns("lab", "__pycache__")  # the chapters' own; what Python leaves


def lay_out(folder: Path, environ=os.environ) -> None:
    """Write the kernel's source tree: build.toml, flake.nix, the card, the licence, and torch-ext/flashkat_lite."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "hub", folder)
    shutil.copy(ROOT / "LICENSE", folder)
    shutil.copytree(ROOT / PACKAGE, folder / "torch-ext" / PACKAGE, ignore=LEFT_OUT)
    address = repository(environ)
    if address:
        build = folder / "build.toml"
        text = build.read_text(encoding="utf-8")
        build.write_text(text.replace("[general]\n", f'[general]\nupstream = "{address}"\n'), encoding="utf-8")


def main() -> None:
    lay_out(BUILD / "hub")
    print(f"{BUILD / 'hub'}: CONTRIBUTING.md says how to build and upload it.")
