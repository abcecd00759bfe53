"""The processes that check an answer beside a notebook: started when they are needed, or while a chapter waits."""

import atexit
import contextlib
import os
import subprocess
import sys

from flashkat_lite import console

ASKED = "asked"  # as FLASHKAT_TURN: a process's turn at the GPU comes when something is written to it
KINDS = {"interpreter": {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}, "clock": {}}  # and their environments

_started: dict[str, subprocess.Popen] = {}


def process(kind: str, asleep: bool = False) -> subprocess.Popen:
    """Return the process of that kind, which is started where none runs; asleep: to leave the GPU alone till asked."""
    if kind not in _started or _started[kind].poll() is not None:
        path = os.pathsep.join(p for p in sys.path if p)
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8", **KINDS[kind]}
        environment |= {"FLASHKAT_TURN": ASKED} if asleep else {}
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8")
        command = console.python("lab.exercises.beside", "serve()")
        _started[kind] = subprocess.Popen(command, env=environment, **pipes)
    return _started[kind]


@atexit.register
def close() -> None:
    """End all, at the same time; each ends when its input does."""
    for one in _started.values():
        with contextlib.suppress(OSError):
            one.stdin.close()
    for one in _started.values():
        one.wait()
    _started.clear()
