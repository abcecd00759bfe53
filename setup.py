"""What pyproject.toml cannot say: the wheel's links, and a description without links that lead nowhere."""

import os
import runpy
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
ADDRESS = runpy.run_path(str(ROOT / "book" / "tools" / "address.py"))  # beside it are names of packages

setup(
    long_description=ADDRESS["description"]((ROOT / "README.md").read_text(encoding="utf-8"), os.environ),
    long_description_content_type="text/markdown",
    project_urls=ADDRESS["urls"](os.environ),
)
