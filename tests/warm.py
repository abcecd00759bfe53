"""Python processes that have imported what most of ours import first, in 6 s: forked from one that did so once.

    warm.py serve FOLDER             imports, then forks for whoever asks, until nobody holds its socket any more
    warm.py ask FOLDER ARGUMENTS     is, to whoever starts it, `python ARGUMENTS`, which begin with -m or -c

Such a process interprets kernels. PyTorch, Triton and IPython are imported; the package is not. What it starts with
`sys.executable -c` to compile kernels, without the interpreter, is forked likewise from a second server.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback

MODULES = (
    *("IPython", "ipykernel.kernelapp", "ipywidgets", "matplotlib.pyplot", "matplotlib.backends.backend_svg"),
    *("matplotlib_inline.backend_inline", "sklearn.datasets", "sympy", "torch", "torch._dynamo", "torch.func"),
    *("torch.utils.flop_counter", "triton.language", "triton.runtime.interpreter"),
)

TO_COMPILE = ("torch", "triton.language", "triton.compiler")
# Stands for Python in processes that interpret, where they start others.
PYTHON = """#!/bin/sh
[ "$1" = -c ] && [ -z "$TRITON_INTERPRET" ] && exec {python} {warm} ask {folder} "$@"
exec {python} "$@"
"""


@contextlib.contextmanager
def address(folder):
    """The socket's address, which may have a hundred letters, however long the folder's name is."""
    handle = os.open(folder, os.O_RDONLY)
    yield f"/proc/self/fd/{handle}/warm"
    os.close(handle)


def connect(folder):
    """A connection to the server; None where there is none."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        with address(folder) as name:
            connection.connect(name)
        return connection
    except OSError:
        connection.close()


# Who needs the server


def hold(folder, environ):
    """Starts servers where there are none; returns what closes the connections that keep them."""
    compiling = folder / "compiling"
    compiling.mkdir(exist_ok=True)
    words = dict(python=sys.executable, warm=__file__, folder=compiling)
    (folder / "python").write_text(
        PYTHON.format(**{k: shlex.quote(str(v)) for k, v in words.items()}), encoding="utf-8"
    )
    (folder / "python").chmod(0o755)
    held = contextlib.ExitStack()
    held.enter_context(_hold(folder, environ | {"TRITON_INTERPRET": "1"}))
    held.enter_context(_hold(compiling, {k: v for k, v in environ.items() if k != "TRITON_INTERPRET"}))
    return held


def _hold(folder, environ):
    if connection := connect(folder):
        return connection
    with contextlib.suppress(FileNotFoundError):
        os.unlink(folder / "warm")
    command = [sys.executable, __file__, "serve", str(folder)]
    server = subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL)
    while not (connection := connect(folder)):
        assert server.poll() is None, "the server of warm processes ended"
        time.sleep(0.05)
    return connection


def command(folder, argv):
    """The command that is a warm `argv`, which begins with Python."""
    return [argv[0], __file__, "ask", str(folder), *argv[1:]]


def ask(folder, arguments):
    connection = connect(folder)
    if connection is None:
        return "the server of warm processes is gone"
    request = {"arguments": arguments, "environ": dict(os.environ), "cwd": os.getcwd()}
    socket.send_fds(connection, [json.dumps(request).encode() + b"\n"], [0, 1, 2])
    answers = connection.makefile()
    process = int(answers.readline())

    def pass_on(number, _):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, pass_on)
    return int(answers.readline() or 1)


# The server


def serve(folder):
    listener = socket.socket(socket.AF_UNIX)
    with address(folder) as name:
        listener.bind(name)
    listener.listen(64)  # who comes early waits for the imports
    interpreting = "TRITON_INTERPRET" in os.environ
    if interpreting:
        sys.executable = os.path.join(folder, "python")
    for name in MODULES if interpreting else TO_COMPILE:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    if not interpreting:
        with contextlib.suppress(ImportError):
            importlib.import_module("triton.runtime.cache").triton_key()  # a hash of all Triton: 0.5 s a process
    gc.freeze()  # what all share is written to by none
    os.cpu_count = lambda: 1  # a test has a core at best: one process that compiles is enough
    connections = [listener.accept()[0]]
    while connections:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        for one in select.select([listener, *connections], [], [], 1)[0]:
            if one is listener:
                connections.append(listener.accept()[0])
                continue
            said, files, _, _ = socket.recv_fds(one, 2**20, 3)
            if said and not os.fork():
                for other in {listener, *connections} - {one}:
                    other.close()
                become(one, said, files)
            for file in files:
                os.close(file)
            connections.remove(one)
            one.close()


def become(connection, said, files):
    """In a child of the server: be what was asked for, and end with it or with the one that asked."""
    while not said.endswith(b"\n"):
        said += connection.recv(2**20)
    asked = json.loads(said)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    connection.sendall(f"{os.getpid()}\n".encode())
    threading.Thread(target=end_with, args=(connection,), daemon=True).start()
    os.environ.clear()
    os.environ.update(asked["environ"])
    os.chdir(asked["cwd"])
    sys.path[0] = ""
    sys.path[1:1] = [e for e in os.environ.get("PYTHONPATH", "").split(os.pathsep) if e and e not in sys.path]
    status = 1
    try:
        run(*asked["arguments"])
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if status and not isinstance(ended.code, int):
            print(ended.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        with contextlib.suppress(OSError):
            connection.sendall(f"{status}\n".encode())
        os._exit(status)


def run(option, what, *arguments):
    sys.argv = [option, *arguments]
    if option == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})


def end_with(connection):
    """Ends this process when whoever asked for it has ended, with all answers read or not (a reset)."""
    with contextlib.suppress(ConnectionResetError):
        if connection.recv(1):
            return
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    action, folder, *arguments = sys.argv[1:]
    sys.exit(serve(folder) if action == "serve" else ask(folder, arguments))
