"""What pyproject.toml cannot say: the wheel's links, and a description without links that lead nowhere."""

import os
import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "book" / "tools"))

import address  # noqa: E402

setup(
    long_description=address.description((ROOT / "README.md").read_text(encoding="utf-8"), os.environ),
    long_description_content_type="text/markdown",
    project_urls=address.urls(os.environ),
)
