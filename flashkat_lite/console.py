"""What a program does first, so that no locale stops it."""

import sys


def prepare() -> None:
    """Print as an escape what the terminal's encoding lacks."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.reconfigure(errors="backslashreplace")
