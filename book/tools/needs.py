"""What is missing here and optional: one line each, with what to install and what is done without it."""

import os
import platform
import shutil
from importlib.util import find_spec

CHROMIUM_PLACES = ("chromium", "chromium-browser", "google-chrome", "/usr/lib/chromium/chromium")


def chromium() -> str | None:
    """Path of a Chromium that the browser tests can drive: FLASHKAT_CHROMIUM, or one in a usual place."""
    chosen = os.environ.get("FLASHKAT_CHROMIUM")
    return chosen or next((path for path in map(shutil.which, CHROMIUM_PLACES) if path), None)


def missing() -> list[str]:
    """A line for each optional tool that is not here."""
    lines = []
    if chromium() is None:
        lines.append(
            "Chromium is missing: the browser tests are skipped. On Debian: apt install chromium; elsewhere set "
            "FLASHKAT_CHROMIUM to its path."
        )
    if shutil.which("npm") is None:
        lines.append(
            "npm is missing: the pages load MathJax from a CDN, and tests of pages that ask no third "
            "party are skipped. On Debian: apt install npm"
        )
    if find_spec("triton") is None:
        why = "pip install triton" if platform.system() == "Linux" else f"there is none for {platform.system()}"
        lines.append(f"Triton is missing ({why}): the tests that need kernels are skipped, the reference is tested.")
    return lines


if __name__ == "__main__":
    print(*missing(), sep="\n", end="\n" if missing() else "")
