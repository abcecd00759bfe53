"""On a GPU: the same check in the interpreter, in a process beside, and the clock in another.

A GPU does not tell what a kernel reads, adds or stores. So a student's functions go, by their text, to a process
without a GPU, which checks them as on any machine; and to one with it, where nothing of the notebook is, which times.
"""

import ast
import contextlib
import dis
import importlib.util
import inspect
import io
import json
import sys
import tempfile
import textwrap
import types
from pathlib import Path
from typing import Any

import torch

from .. import ahead
from ..compiling import Source
from . import common
from .common import Speed, Wrong

START = "answer: "


class Answer(Source):
    """The text of a module that defines a student's functions and all that they use."""

    def value(self, value: Any) -> str:
        if isinstance(value, torch.dtype | torch.device):
            self.add("torch", torch)
            return repr(value) if isinstance(value, torch.dtype) else f"torch.{value!r}"
        if isinstance(value, dict):
            return "{" + ", ".join(f"{self.value(k)}: {self.value(v)}" for k, v in value.items()) + "}"
        return super().value(value)

    def add(self, name: str, value: Any) -> None:
        if name in self.seen:
            return
        function = inspect.unwrap(value) if callable(value) else value
        while hasattr(function, "fn"):
            function = function.fn
        if inspect.ismodule(value) or not isinstance(function, types.FunctionType | type):
            super().add(name, value)
        elif not _is_students(function):
            self.seen.add(name)
            self.lines.append(f"from {function.__module__} import {function.__name__} as {name}")
        else:
            self.seen.add(name)
            self.copy(name, function)

    def copy(self, name: str, function: Any) -> None:
        if function.__name__ == "<lambda>" or getattr(function, "__closure__", None):
            raise ValueError(f"{function.__name__}: define it with def, outside of any other function")
        text, module = inspect.getsource(function), sys.modules[function.__module__].__dict__
        used = _globals(function, ast.parse(textwrap.dedent(text)).body[0])
        for one in sorted(used & module.keys() - self.seen):
            self.global_(one, module[one], module.get("__annotations__", {}).get(one))
        self.lines.append(text)
        if function.__name__ != name:
            self.lines.append(f"{name} = {function.__name__}")

    def global_(self, name: str, value: Any, annotation: Any) -> None:
        if inspect.ismodule(value) or hasattr(value, "fn") or isinstance(value, types.FunctionType | type):
            self.add(name, value)
        else:
            super().global_(name, value, annotation)


def _globals(function: types.FunctionType | type, node: ast.AST) -> set[str]:
    """Return the names that a function or class looks for outside of itself: its own variables hide a notebook's."""
    if not isinstance(node, ast.FunctionDef):
        return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    head = [*node.decorator_list, node.args, *([node.returns] if node.returns else [])]
    codes, names = [function.__code__], {p.id for h in head for p in ast.walk(h) if isinstance(p, ast.Name)}
    for code in codes:
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
        names |= {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return names


def _is_students(function: Any) -> bool:
    package, module = common.LAB.partition(".")[0], sys.modules.get(function.__module__)
    file = getattr(module, "__file__", None) or ""
    return function.__module__.partition(".")[0] != package and not file.startswith(common.LIBRARIES)


def text_of(answers: tuple) -> tuple[str, list[str]]:
    """Return a module's text and the names of the answers in it. Raises Wrong for what cannot be had by its text."""
    answer, names = Answer(), []
    for given in answers:
        try:
            if not isinstance(given, types.FunctionType):
                raise ValueError(f"{given!r} is no function")
            answer.add(given.__name__, given)
        except (ValueError, OSError, TypeError) as error:
            raise Wrong(
                f"your function could not be taken to the process that counts ({error}). Likely cause: it uses what "
                "has no text, such as a tensor made outside; define functions, kernels and constants in cells"
            ) from None
        names.append(given.__name__)
    return "\n".join(answer.lines) + "\n", names


class Process:
    """A process that checks answers; kept for the next check, and ended with this one."""

    def __init__(self, kind: str):
        self.process = ahead.process(kind)

    def wake(self) -> None:
        with contextlib.suppress(OSError):  # of a process that has ended: its next answer says so
            self.process.stdin.write("\n")
            self.process.stdin.flush()

    def __call__(self, number: str, text: str, names: list[str], clock: bool) -> dict[str, Any]:
        try:
            asked = {"number": number, "text": text, "names": names, "clock": clock}
            self.process.stdin.write(json.dumps(asked) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
            while line and not line.startswith(START):  # what importing the lab shows
                line = self.process.stdout.readline()
            return json.loads(line.removeprefix(START))
        except (OSError, ValueError):
            self.process.kill()
            return {"wrong": f"the process that checks beside this one ended with status {self.process.wait()}"}


def start() -> None:
    """Start both processes, which import for seconds, while the notebook's own check goes on."""
    for kind in ahead.KINDS:
        Process(kind).wake()


def judged(number: str, answers: tuple, clock: bool) -> str:
    """Return what is right of answers by the interpreter's count; with `clock`, time them too. Raises Wrong."""
    text, names = text_of(answers)
    counted = Process("interpreter")(number, text, names, False)
    if "wrong" in counted:
        raise Wrong(f"right on the GPU; in the interpreter, which counts: {counted['wrong']}")
    here, there = common.state.launches, counted.get("launches", ())
    if len(here) == len(there):  # else the check asks a GPU for other calls
        for mine, expected in zip(here, there, strict=True):
            if mine < expected:
                raise Wrong(
                    f"expected {expected} launches of Triton kernels in a call, as in the interpreter, got {mine} on "
                    "the GPU. Likely cause: PyTorch does there what a kernel does elsewhere"
                )
    if clock:
        took = Process("clock")(number, text, names, True)
        if "wrong" in took:
            raise Wrong(took["wrong"])
        for speed in took["speeds"]:
            common.speeds.append(Speed(*speed))
            print(speed[0])
    return counted["right"]


def serve() -> None:
    answers, sys.stdout = sys.stdout, io.StringIO()
    for line in filter(str.strip, sys.stdin):
        print(START + json.dumps(answer(json.loads(line))), file=answers, flush=True)


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    right = sys.modules[__package__].right  # which imports this module

    common.state.here = True
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "answer.py"
        path.write_text(asked["text"], encoding="utf-8")
        spec = importlib.util.spec_from_file_location("answer", path)
        sys.modules["answer"] = module = importlib.util.module_from_spec(spec)
        common.speeds.clear()
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                spec.loader.exec_module(module)
                said = right(asked["number"], *(getattr(module, name) for name in asked["names"]))
        except Wrong as wrong:
            return {"wrong": str(wrong)}
        except BaseException as error:
            return {"wrong": f"{type(error).__name__}: {error}"}
        speeds = [[speed.line, speed.band, speed.share] for speed in common.speeds]
        return {"right": said, "speeds": speeds if asked["clock"] else [], "launches": common.state.launches}
