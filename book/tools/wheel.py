"""`make wheel`: the package's wheel and source archive, in dist."""

import shutil
import subprocess
import sys

from .paths import ROOT


def main():
    for stale in ("dist", "flashkat_lite.egg-info"):
        shutil.rmtree(ROOT / stale, ignore_errors=True)
    done = subprocess.run([sys.executable, "-m", "build", "--no-isolation", "."], cwd=ROOT)
    print(*sorted((ROOT / "dist").glob("*")), sep="\n")
    return done.returncode
