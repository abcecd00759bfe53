"""The chapters' exercises once more, in Triton's interpreter, where accesses and programs can be watched."""

import os
import subprocess
import sys
from pathlib import Path


def test_exercises_in_the_interpreter():
    files = sorted(Path(__file__).parent.glob("test_ch[0-9][0-9].py"))
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider", *map(str, files)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
