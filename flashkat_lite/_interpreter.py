"""Triton's interpreter, quickened: at each call of a device function it searches `triton.language` for what to replace.

That is half of a kernel's time where programs are small, and finds nothing, since the launch has replaced it all.
"""

import functools
import inspect


def quicken() -> None:
    """Have the interpreter search a namespace whole only while it holds something to replace; twice is once."""
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
