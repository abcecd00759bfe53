"""Triton's interpreter: with a stand-in where Triton has no wheel, quickened, and mended for newer versions of NumPy.

Where there is no compiled Triton, its own Python files come from its wheel for Linux: `python book/tools standin`,
which a clone's set-up runs. They lie on no path of modules, so that nothing but `activate` finds them.
"""

import dataclasses
import functools
import importlib.util
import inspect
import os
import re
import sys
from pathlib import Path

from ._torch import interpreted

FOLDER = Path(sys.prefix) / "share" / "flashkat-triton"


def folder() -> Path | None:
    """Return the folder with Triton's Python files where a stand-in serves, or would: there is no compiled Triton.

    FLASHKAT_STANDIN names another folder, and prefers it to a Triton that is installed and not yet imported.
    """
    chosen = os.environ.get("FLASHKAT_STANDIN")
    if standing_in():
        return Path(sys.modules["triton"].__file__).parents[1]
    if sys.modules.get("triton") or (not chosen and importlib.util.find_spec("triton")):
        return None
    place = Path(chosen or FOLDER)
    return place if (place / "triton" / "__init__.py").is_file() else None


def version(place: Path | None) -> str | None:
    """Return the version of the Triton whose Python files lie in a folder; None where there are none."""
    file = place and place / "triton" / "__init__.py"
    text = file.read_text(encoding="utf-8") if file and file.is_file() else ""
    return next(iter(re.findall(r"^__version__ = '(.+)'", text, re.M)), None)


def standing_in() -> bool:
    """Return whether the stand-in is what `import triton` has loaded."""
    compiled = sys.modules.get("triton._C.libtriton")
    return compiled is not None and not hasattr(compiled, "__file__")


def activate() -> bool:
    """Have `import triton` find Triton's Python files with the stand-in; return whether it does.

    Only where kernels are to be interpreted, the files are there and Triton is not yet imported. PyTorch is told
    before that there is no Triton: it would take this one for a compiler.
    """
    if standing_in():
        return True
    place = folder() if interpreted() else None
    if place is None:
        return False
    from . import _standin

    _tell_torch()
    sys.modules |= _standin.modules()
    spec = importlib.util.spec_from_file_location("triton", place / "triton" / "__init__.py")
    triton = sys.modules["triton"] = importlib.util.module_from_spec(spec)
    before = os.environ.get("TRITON_BACKENDS_IN_TREE")
    os.environ["TRITON_BACKENDS_IN_TREE"] = "1"  # of which there are none; those of an installed Triton are not asked
    try:
        spec.loader.exec_module(triton)
    except BaseException:
        for name in [name for name in sys.modules if name.partition(".")[0] == "triton"]:
            del sys.modules[name]
        raise
    finally:
        del os.environ["TRITON_BACKENDS_IN_TREE"]
        if before is not None:
            os.environ["TRITON_BACKENDS_IN_TREE"] = before
    # TorchInductor asks on a CPU too, for products of matrices; Triton's own would read the compiled module.
    key = f"{triton.__version__}, with a stand-in"
    for module in (triton.runtime.cache, triton.runtime.autotuner):
        module.triton_key = lambda: key
    return True


def _tell_torch() -> None:
    """Have PyTorch ask for Triton while there is none: it keeps the answers."""
    from torch.utils import _triton

    sys.modules["triton"] = None
    for question in ("has_triton_package", "get_triton_version", "has_triton"):
        asked = getattr(_triton, question, None)
        if asked is not None:
            asked.cache_clear()
            asked()
    del sys.modules["triton"]


def prepare() -> bool:
    """Make the interpreter ready; twice is once. Return whether a stand-in serves it.

    Raises ImportError where Triton does not load. Nothing happens where kernels are not interpreted.
    """
    standing_in = activate()
    if interpreted():
        quicken()
        mend()
    return standing_in


def mend() -> None:
    """Have tensors of one element, of any dimensions, be indices: Triton 3.6 relies on what NumPy 2.4 refuses."""
    from triton.runtime import interpreter

    patch = getattr(interpreter, "_patch_lang_tensor", None)
    if patch is None or hasattr(patch, "__wrapped__"):
        return

    @functools.wraps(patch)
    def patch_and_mend(tensor, *scope):
        patch(tensor, *scope)
        scope[0].set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_and_mend


def quicken() -> None:
    """Have the interpreter leave out what comes to nothing; twice is once.

    At each call of a device function it searches `triton.language` for what to replace. That is half of a kernel's time
    where programs are small, and finds nothing, since the launch has replaced it all: a namespace is searched whole
    only while it holds something to replace. Each sum and product of integers is computed once more, in 64 bits, for an
    assertion that is made in debugging alone: a tenth to a third of what is left.
    """
    from triton.language.core import is_builtin
    from triton.runtime import interpreter

    search = getattr(interpreter, "_patch_builtin", None)
    if search is None or hasattr(search, "__wrapped__"):
        return
    found: dict[object, list[str]] = {}

    @functools.wraps(search)
    def search_once(namespace, *rest):
        if namespace not in found:
            found[namespace] = [name for name, member in inspect.getmembers(namespace) if is_builtin(member)]
        if any(is_builtin(getattr(namespace, name)) for name in found[namespace]):
            search(namespace, *rest)

    interpreter._patch_builtin = search_once
    options = getattr(interpreter.interpreter_builder, "options", None)
    if not getattr(options, "debug", True) and hasattr(options, "sanitize_overflow"):
        interpreter.interpreter_builder.options = dataclasses.replace(options, sanitize_overflow=False)
