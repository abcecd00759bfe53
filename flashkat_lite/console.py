"""What a program does first, so that no locale stops it; and how it starts another that finds this package."""

import os
import sys
from pathlib import Path

COMMAND = f"python -m {__package__}"
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
    """Print as an escape what the terminal's encoding lacks; have each Python that is started print UTF-8."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.reconfigure(errors="backslashreplace")
    os.environ["PYTHONIOENCODING"] = "utf-8"


def python(module: str, call: str) -> list[str]:
    """Return the command that starts a Python which imports a module of this package and evaluates `module.call`.

    The package is found by its file, whatever name it was imported under, on a path or not.
    """
    file = Path(__file__).with_name("__init__.py")
    name = __package__
    return [sys.executable, "-c", START.format(name=name, file=str(file), module=f"{name}.{module}", call=call)]
