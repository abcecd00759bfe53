"""What a program does first, so that no locale stops it."""

import os
import sys


def prepare() -> None:
    """Print as an escape what the terminal's encoding lacks; have each Python that is started print UTF-8."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.reconfigure(errors="backslashreplace")
    os.environ["PYTHONIOENCODING"] = "utf-8"
