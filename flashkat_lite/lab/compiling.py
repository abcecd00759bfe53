"""Would a kernel that ran in the interpreter compile for a GPU? It is asked of Triton's compiler, in another process.

The interpreter is Python: it takes globals that are no constexpr, variables that change their type in a loop, and
tensors where a scalar must stand. No GPU does.
"""

import atexit
import contextlib
import functools
import inspect
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MOST = 6  # variants of a check's kernels that are compiled


class Launches:
    """Collects what was launched: each kernel once for each set of types and constexprs."""

    def __init__(self) -> None:
        self.requests: dict[str, dict[str, Any]] = {}

    def __call__(self, kernel: Any, arguments: dict[str, Any], options: dict[str, Any]) -> None:
        start()
        if len(self.requests) < MOST and (request := _request(kernel, arguments, options)):
            self.requests.setdefault(json.dumps(request), request)


def refused(launches: Launches) -> str:
    """Return what the compiler says of the first kernel that it refuses, with the line; "" where it takes all.

    Raises OSError where there is no compiler for GPUs.
    """
    for key, request in launches.requests.items():
        said = _said(key)
        if "unavailable" in said:
            raise OSError(said["unavailable"])
        if said["refused"]:
            word = re.sub(r"""^\w+\((["'])(.*)\1\)$""", r"\2", said["refused"]).partition("  Alternatively")[0]
            line = f" at `{said['line']}`" if said.get("line") else ""
            return f"{request['name']}{line}: {word.rstrip('.')}.{_advice(word)}"
    return ""


ADVICE = {
    r"Cannot access global variable (\w+)": "write {0} = tl.constexpr(…), or hand it to the kernel as an argument",
    r"Loop-carried variable (\w+) has initial type": (
        "give {0} before the loop the type and the shape that it has inside, as in tl.zeros([BLOCK], tl.float32)"
    ),
    r"[Mm]ismatched type for (\w+) between then block": "both branches must leave {0} with one type and shape",
    r"'tensor' object cannot be interpreted as an integer|constexpr.*expected|must be a? ?`?constexpr": (
        "this must be known when the kernel is compiled: a tl.constexpr argument"
    ),
    r"only scalar|scalar|Unsupported conditional|[Bb]oolean value of Tensor": (
        "a tensor stands where a scalar must: reduce it first, or use tl.where"
    ),
}


def _advice(word: str) -> str:
    for pattern, advice in ADVICE.items():
        if found := re.search(pattern, word):
            return f" Likely cause: {advice.format(*found.groups())}."
    return ""


# The kernel's text


def _request(kernel: Any, arguments: dict[str, Any], options: dict[str, Any]) -> dict[str, Any] | None:
    """Return a compilation as JSON-able; None for arguments that have no plain type (tuples, descriptors)."""
    from triton.runtime.jit import mangle_type

    signature, constexprs = {}, {}
    for name, parameter in inspect.signature(kernel.fn).parameters.items():
        given = arguments.get(name, parameter.default)
        annotation = parameter.annotation
        if "constexpr" in (annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")):
            signature[name], constexprs[name] = "constexpr", given
        elif given is None:
            signature[name], constexprs[name] = "constexpr", None
        elif hasattr(given, "data_ptr") or isinstance(given, bool | int | float):
            signature[name] = mangle_type(given)
        else:
            return None
    source = Source()
    source.add(kernel.fn.__name__, kernel)
    try:
        values = ", ".join(f"{name!r}: {source.value(value)}" for name, value in constexprs.items())
    except ValueError:
        return None
    text = "\n".join([*source.lines, f"CONSTEXPRS = {{{values}}}"]) + "\n"
    kept = {k: v for k, v in options.items() if k in ("num_warps", "num_stages", "num_ctas")}
    return {"name": kernel.fn.__name__, "source": text, "signature": signature, "options": kept}


class Source:
    """The text of a module that defines a kernel and all that it uses, as the kernel's own module has it."""

    def __init__(self) -> None:
        self.lines, self.seen = ["import triton", "import triton.language as tl"], set()

    def value(self, value: Any) -> str:
        """Return an expression; raises ValueError for what has none."""
        if type(value).__name__ == "constexpr":
            return f"tl.constexpr({self.value(value.value)})"
        if type(value).__name__ == "dtype" and hasattr(value, "primitive_bitwidth"):
            return f"tl.dtype({value.name!r})"
        if isinstance(value, float):
            return f"float({str(value)!r})"
        if value is None or isinstance(value, bool | int | str):
            return repr(value)
        if isinstance(value, tuple | list):
            inner = "".join(f"{self.value(v)}, " for v in value)
            return f"({inner})" if isinstance(value, tuple) else f"[{inner}]"
        if hasattr(value, "fn"):
            self.add(value.fn.__name__, value)
            return value.fn.__name__
        raise ValueError(value)

    def add(self, name: str, value: Any) -> None:
        if name in self.seen:
            return
        self.seen.add(name)
        function = getattr(value, "fn", None)
        while hasattr(function, "fn"):  # autotuned
            function = function.fn
        if inspect.ismodule(value):
            self.lines.append(f"import {value.__name__} as {name}")
        elif function is not None and function.__module__.partition(".")[0] == "triton":
            self.lines.append(f"from {function.__module__} import {function.__name__} as {name}")
        elif function is not None:
            annotated = function.__globals__.get("__annotations__", {})
            for inner in sorted(self.names(function.__code__)):
                if inner in function.__globals__ and inner not in self.seen:
                    with contextlib.suppress(ValueError):
                        self.global_(inner, function.__globals__[inner], annotated.get(inner))
            text = textwrap.dedent(inspect.getsource(function))
            self.lines.append("@triton.jit\n" + text[re.search(r"^def ", text, re.MULTILINE).start() :])
            if function.__name__ != name:
                self.lines.append(f"{name} = {function.__name__}")

    def names(self, code: Any) -> Iterator[str]:
        """The names that a function's code looks up, and those of functions inside of it."""
        yield from code.co_names
        for inner in code.co_consts:
            if inspect.iscode(inner):
                yield from self.names(inner)

    def global_(self, name: str, value: Any, annotation: Any) -> None:
        if inspect.ismodule(value) or hasattr(value, "fn"):
            self.add(name, value)
        elif "constexpr" in str(annotation):
            self.lines.append(f"{name}: tl.constexpr = {self.value(value)}")
        else:
            self.lines.append(f"{name} = {self.value(value)}")


# The other process

_process: subprocess.Popen | None = None


def start() -> None:
    """Start the process that compiles, if it does not run: it imports Triton while the check runs."""
    global _process
    if _process is None or _process.poll() is not None:
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        environment |= {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "PYTHONIOENCODING": "utf-8"}
        text = Path(__file__).with_name("_compiler.py").read_text(encoding="utf-8")
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8")
        _process = subprocess.Popen([sys.executable, "-c", text], env=environment, **pipes)


@functools.lru_cache(maxsize=256)
def _said(key: str) -> dict[str, str]:
    start()
    try:
        _process.stdin.write(key + "\n")
        _process.stdin.flush()
        return json.loads(_process.stdout.readline())
    except (OSError, ValueError):  # it took its process down, or there is none that can start
        _process.kill()
        return {"unavailable": f"the compiler ended with status {_process.wait()}"}


@atexit.register
def _close() -> None:
    if _process is not None and _process.poll() is None:
        _process.stdin.close()
        _process.wait()
