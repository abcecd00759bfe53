"""What a program does first, so that no locale and no missing home stops it; how it starts another that finds us."""

import atexit
import os
import shutil
import site
import sys
import tempfile
from pathlib import Path

COMMAND = f"python -m {__package__}"
LENT = "flashkat-home-"  # begins the name of a home that is not the user's
START = """
import importlib.util, sys, types
for end in (i for i, letter in enumerate({name!r}) if letter == "."):
    sys.modules[{name!r}[:end]] = types.ModuleType({name!r}[:end])
spec = importlib.util.spec_from_file_location({name!r}, {file!r})
sys.modules[{name!r}] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules[{name!r}])
importlib.import_module({module!r}).{call}
"""


def prepare() -> None:
    """Print as an escape what the terminal's encoding lacks; have what is started print UTF-8, without colours, and
    find a home (`settle`).
    """
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.reconfigure(errors="backslashreplace")
    os.environ["PYTHONIOENCODING"] = "utf-8"
    for name in ("FORCE_COLOR", "CLICOLOR_FORCE", "PY_COLORS", "PYTHON_COLORS"):
        os.environ.pop(name, None)
    settle()


def settle() -> None:
    """Lend this process and what it starts a home, for as long as it runs, where the user's cannot be written to.

    Triton, PyTorch's compiler, Matplotlib, Jupyter and npm keep files there, and stop or complain where they cannot.
    """
    home = os.path.expanduser("~")
    if os.path.isdir(home) and os.access(home, os.W_OK | os.X_OK):
        return
    try:
        lent = tempfile.mkdtemp(prefix=LENT)
    except OSError:  # nothing can be written here at all
        return
    if site.ENABLE_USER_SITE:  # packages of the user's hang on the home
        os.environ.setdefault("PYTHONUSERBASE", site.getuserbase())
    os.environ["HOME"] = lent
    atexit.register(_give_back, lent, os.getpid())


def _give_back(lent: str, owner: int) -> None:
    if os.getpid() == owner:  # not a process that was forked from it
        shutil.rmtree(lent, ignore_errors=True)


def python(module: str, call: str) -> list[str]:
    """Return the command that starts a Python which imports a module of this package and evaluates `module.call`.

    The package is found by its file, whatever name it was imported under, on a path or not.
    """
    file = Path(__file__).with_name("__init__.py")
    name = __package__
    return [sys.executable, "-c", START.format(name=name, file=str(file), module=f"{name}.{module}", call=call)]
