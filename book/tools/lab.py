"""`make lab`: JupyterLab on the chapters, whose kernels find this clone's package."""

import os
import subprocess
import sys

from .paths import CHAPTERS, ROOT


def main():
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "jupyterlab", f"--notebook-dir={CHAPTERS}", *sys.argv[1:]]
    try:
        return subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}).returncode
    except KeyboardInterrupt:  # it has asked, and ended
        return 0
