"""The process in which `make grade` runs a submission: IPython's kernel, in which our checks are run by us.

kernel.py FOLDER CHARACTERS -f CONNECTION_FILE: writes below FOLDER only, reads there and at the places that
FOLDER/readable.json names, prints so much a cell.

Before the notebook begins it imports what the checks use and keeps it. A check comes as a request of its own, which
IPython's hooks and input transformers never see; what the notebook changed in the meantime is put back first, the
checks are loaded anew from memory, traces and modes are turned off, and the answer, which says what was seen, is sealed
with a key that was never in the notebook's variables.
All this is one process, and Python hides nothing: it stops the plain ways to a better grade, not a determined one.
"""

import builtins
import contextlib
import ctypes
import functools
import glob
import hmac
import importlib.abc
import importlib.util
import inspect
import io
import json
import linecache
import os
import resource
import signal
import stat
import sys
import threading
import traceback
import types
import unittest.mock  # noqa: F401 (kept by snapshot)
from pathlib import Path

from ipykernel import iostream, ipkernel, kernelapp

CHECKS = "flashkat_lite.lab.exercises"
REQUEST = "#flashkat "
AGAIN = "-again"  # ends the id of a check that is run once more, at the notebook's end
FILE_LIMIT = 2**30  # bytes
READABLE = "readable.json"  # in a notebook's folder: the places outside of it that it may read
# What checks call, beside all of flashkat_lite.
WATCHED = {
    *("builtins", "collections", "contextlib", "ctypes", "functools", "hashlib", "hmac", "importlib", "inspect", "io"),
    *("itertools", "json", "json.encoder", "math", "numpy", "numpy.testing", "operator", "os", "signal", "statistics"),
    *("time", "torch", "torch._tensor", "torch.autograd", "torch.cuda", "torch.linalg", "torch.nn.functional"),
    *("torch.cuda.streams", "torch.overrides", "torch.utils._python_dispatch"),
    *("torch.testing", "torch.utils.benchmark", "triton", "triton.language", "triton.runtime.interpreter", "types"),
    *("linecache", "unittest.mock"),
}


def seal(secret, answer):
    """What only the holder of the secret can say of an answer."""
    return hmac.new(secret.encode(), json.dumps(answer, sort_keys=True).encode(), "sha256").hexdigest()


# Files and other processes, where Linux lets a process confine itself (Landlock, since 5.13)

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # system calls, the same on every architecture
NO_NEW_PRIVILEGES = 38
# Write to a file, remove a folder, a file, make a device, folder, file, socket, pipe, block device, link: since the
# first version. Move between folders since the second, truncate since the third.
WRITES = {1: 1 << 1 | sum(1 << bit for bit in range(4, 13)), 2: 1 << 13, 3: 1 << 14}
READS = 1 << 0 | 1 << 2 | 1 << 3  # execute, read a file, list a folder: since the first version
OF_FILES = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14  # what a rule for a file, not a folder, may hold
SCOPES = {6: 1 << 1}  # signals to processes outside
# What Linux, Python, Triton and CUDA ask of /proc and /dev, beside a process's own folder there.
ASKED = [f"/proc/{name}" for name in ("cpuinfo", "meminfo", "stat", "filesystems", "version", "devices", "modules")]
DEVICES = ("null", "zero", "full", "tty", "ptmx", "pts", "shm", "nvidia*", "dri", "kfd", "dxg", "infiniband")
ASKED += ["/proc/driver", "/proc/sys", "/proc/uptime", "/proc/loadavg", "/proc/cgroups"]


def landlock():
    """The version of Landlock that this system offers; 0 where it has none."""
    if not sys.platform.startswith("linux"):
        return 0
    return max(0, ctypes.CDLL(None).syscall(CREATE_RULESET, None, ctypes.c_size_t(0), 1))


def has_gpu():
    return any(map(os.path.exists, ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")))


def confine(folder, readable=None):
    """From here on this process and its children write below `folder` only; False where the system does not offer it.

    readable: the other places that they may read from; None for all. Of /proc they have their own; where there is a GPU
    they read all of it, as CUDA's children need theirs. They may write to devices. The network stays as it is.
    """
    version, libc = landlock(), ctypes.CDLL(None)
    if not version:
        return False
    writes = sum(bits for since, bits in WRITES.items() if since <= version)
    handled = writes if readable is None else writes | READS
    scopes = sum(bits for since, bits in SCOPES.items() if since <= version)
    rules = (ctypes.c_uint64 * 3)(handled, 0, scopes)
    size = 8 if version < 4 else 16 if version < 6 else 24  # the network's field came fourth, the scopes sixth
    ruleset = libc.syscall(CREATE_RULESET, rules, ctypes.c_size_t(size), 0)
    if ruleset < 0:
        return False
    may = [(folder, handled), ("/proc/self", handled)]
    may += [(path, handled) for name in DEVICES for path in glob.glob(f"/dev/{name}")]
    if readable is not None:
        may += [(place, READS) for place in [*readable, "/dev", *(["/proc"] if has_gpu() else ASKED)]]
    for place, bits in may:
        try:
            opened = os.open(place, os.O_PATH)
        except OSError:
            continue
        if not stat.S_ISDIR(os.fstat(opened).st_mode):
            bits &= OF_FILES
        beneath = (ctypes.c_char * 12).from_buffer_copy(
            (bits & handled).to_bytes(8, sys.byteorder) + opened.to_bytes(4, sys.byteorder)
        )
        libc.syscall(ADD_RULE, ruleset, 1, beneath, 0)
        if place != "/proc/self":  # Linux forgets a process's folder that nobody holds, and the rule with it
            os.close(opened)
    confined = libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0 and libc.syscall(RESTRICT_SELF, ruleset, 0) == 0
    os.close(ruleset)
    return confined


def around(place, hidden):
    """The parts of a place that hold none of `hidden`: itself, where none lies in it."""
    place = os.path.realpath(place)
    if place in hidden or not os.path.exists(place):
        return
    if not any(one.startswith(os.path.join(place, "")) for one in hidden):
        yield place
        return
    try:
        inner = sorted(os.listdir(place))
    except OSError:
        return
    for name in inner:
        if not os.path.islink(os.path.join(place, name)):
            yield from around(os.path.join(place, name), hidden)


# What a notebook may change, and its way back


def snapshot():
    """Keeps the functions and classes of the watched modules; returns what puts them back."""
    modules = dict(sys.modules)
    watched = [module for name, module in modules.items() if module is not None and _watched(name)]
    attributes = [(vars(module), _callables(module) | _constants(module)) for module in watched]
    classes, codes = {}, []
    for _, kept in attributes:
        for value in kept.values():
            if isinstance(value, type) and _watched(value.__module__):
                classes[value] = _callables(value)
    functions = [value for kept in [*(k for _, k in attributes), *classes.values()] for value in kept.values()]
    for function in functions:
        if isinstance(function, types.FunctionType):
            codes.append((function, function.__code__, function.__defaults__, function.__kwdefaults__))
    tensor, tensor_names = modules["torch"].Tensor, set(vars(modules["torch"].Tensor))
    put_back_builtins, kept_builtins = vars(builtins).update, _callables(builtins)

    def restore():
        put_back_builtins(kept_builtins)  # first: what follows uses them
        sys.modules.update(modules)
        for namespace, kept in attributes:
            namespace.update(kept)
        for holder, kept in classes.items():
            for name, value in kept.items():
                if vars(holder).get(name) is not value:
                    setattr(holder, name, value)
        for name in set(vars(tensor)) - tensor_names:  # methods of its base class, hidden by others
            delattr(tensor, name)
        for function, code, defaults, keyword_defaults in codes:
            if function.__code__ is not code:
                function.__code__ = code
            function.__defaults__, function.__kwdefaults__ = defaults, keyword_defaults

    def state():
        """What a check stands on, as it is now: {(where, name): (value, code)}."""
        found = {}
        for name, module in [*sys.modules.items()]:
            if module is not None and _watched(name):
                for attribute, value in _callables(module).items():
                    found[name, attribute] = value, _code(value)
                    if isinstance(value, type) and _watched(value.__module__):
                        found |= {(value, one): (inner, _code(inner)) for one, inner in _callables(value).items()}
        return found | {(tensor, name): (vars(tensor)[name], None) for name in vars(tensor)}

    def changed(before, is_librarys):
        """Which of these is another now, or ""; built-in functions are put back at once, as this uses them.

        PyTorch wraps functions of its own as parts of it are imported.
        """
        theirs = {name for name, value in kept_builtins.items() if vars(builtins)[name] is not value}
        put_back_builtins(kept_builtins)
        now = state()
        for (where, name), (value, code) in before.items():
            new, new_code = now.get((where, name), (value, code))
            if new is not value or new_code is not code:
                ours = CHECKS in str(where) or where == "builtins"
                if not ours and new_code and new.__name__ == name and is_librarys(new_code):
                    continue
                return f"{getattr(where, '__name__', where)}.{name}"
        new = {name for where, name in now.keys() - before.keys() if where is tensor}
        return next((str(name) for name in {*theirs, *new}), "")

    return restore, state, changed


class Quiet:
    """Turns off what would follow a check's steps, and says what was on."""

    def __init__(self):
        import torch

        modes = torch._C
        self.stacks = [
            (modes._len_torch_function_stack, modes._pop_torch_function_stack),
            (modes._len_torch_dispatch_stack, functools.partial(modes._pop_torch_dispatch_stack, None)),
        ]
        self.off = sys.settrace, sys.setprofile, threading.settrace, threading.setprofile
        self.on, self.grad = (sys.gettrace, sys.getprofile), (torch.is_grad_enabled, torch.set_grad_enabled)
        self.dtype = torch.get_default_dtype, torch.set_default_dtype, torch.get_default_dtype()
        self.threads = threading.enumerate

    def __call__(self, is_librarys):
        seen = ["a trace was on at a check"] if any(on() for on in self.on) else []
        for off in self.off:
            off(None)
        for tool in range(6) if hasattr(sys, "monitoring") else ():
            if sys.monitoring.get_tool(tool):
                sys.monitoring.set_events(tool, 0)
        for length, pop in self.stacks:
            if length():
                seen.append("a mode of PyTorch was on at a check")
            while length():
                pop()
        is_on, set_on = self.grad
        if not is_on():
            seen.append("gradients were off at a check")
            set_on(True)
        get, put, first = self.dtype
        if get() is not first:
            put(first)
        for thread in self.threads():
            codes = [
                _code(getattr(function, "__func__", function))
                for function in (thread.run, thread.__dict__.get("_target"))
            ]
            if any(code and not is_librarys(code) for code in codes):
                seen.append("threads were running at a check")
                break
        return seen


class Watch:
    """Hears of every file that is opened and of ways to a check's own variables (PEP 578), which it bars meanwhile."""

    TRACES = ("sys.settrace", "sys.setprofile")
    BARRED = ("sys._getframe", "sys._current_frames", "gc.get_objects", "gc.get_referrers", "gc.get_referents")
    ON_BEHALF = (inspect.__file__, traceback.__file__)  # what hands frames on to whoever asks
    FRAMES = ("tb_frame", "gi_frame", "cr_frame", "ag_frame")

    def __init__(self, allowed, libraries=()):
        self.allowed, self.libraries = tuple(allowed), (*libraries, "<frozen", "<check>")
        self.seen, self.checking, self.busy = [], False, False

    def __call__(self, event, arguments):
        if event == "open":
            if isinstance(arguments[0], str) and len(self.seen) < 20:
                with contextlib.suppress(OSError, ValueError):  # a folder that is gone, say
                    path = os.path.abspath(arguments[0])
                    if not path.startswith(self.allowed) and path not in self.seen:
                        self.seen.append(path)
        elif self.checking and not self.busy:
            frames = event == "object.__getattr__" and arguments[1] in self.FRAMES
            if event in self.TRACES or ((frames or event in self.BARRED) and self._is_students()):
                raise RuntimeError("a check's variables are its own")

    def _is_students(self):
        self.busy = True
        try:
            frame = sys._getframe(2)
            while frame.f_back and frame.f_code.co_filename in self.ON_BEHALF:
                frame = frame.f_back
            return not self.is_librarys(frame.f_code)
        finally:
            self.busy = False

    def is_librarys(self, code):
        return code.co_filename.startswith(self.libraries)


def _watched(name):
    return name in WATCHED or name.partition(".")[0] == "flashkat_lite"


def _code(value):
    return value.__code__ if isinstance(value, types.FunctionType) else None


def _callables(holder):
    kinds = types.ModuleType, property, staticmethod, classmethod
    return {name: value for name, value in vars(holder).items() if callable(value) or isinstance(value, kinds)}


def _constants(module):
    """Settings of our own modules, such as whether there is a GPU to time a kernel on."""
    ours = module.__name__.partition(".")[0] == "flashkat_lite"
    return {name: value for name, value in vars(module).items() if ours and isinstance(value, bool | int | float | str)}


class FromMemory(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the checks from code that was read before the notebook could change a file."""

    def __init__(self):
        modules = {name: module for name, module in sys.modules.items() if f"{name}.".startswith(f"{CHECKS}.")}
        self.codes = {name: module.__loader__.get_code(name) for name, module in modules.items()}
        self.sources = {name: module.__loader__.get_source(name) for name, module in modules.items()}

    def find_spec(self, name, path=None, target=None):
        known = name in self.codes
        return importlib.util.spec_from_loader(name, self, is_package=name == CHECKS) if known else None

    def exec_module(self, module):
        code, source = self.codes[module.__name__], self.sources[module.__name__]
        # Where Triton reads a kernel's source; without a date, no file is looked at.
        linecache.cache[code.co_filename] = len(source), None, source.splitlines(True), code.co_filename
        exec(code, vars(module))


# Running a check


class Few(io.StringIO):
    """Keeps the first characters that are written to it."""

    def write(self, text):
        return super().write(text[: max(0, 4000 - self.tell())])


def reached(source, variables):
    """The notebook's variables that a check and the functions among them name, directly or through one another."""
    found, todo = {}, [compile(source, "<check>", "exec")]
    while todo:
        code = todo.pop()
        todo += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
        for name in code.co_names:
            if name in variables and name not in found:
                found[name] = variables[name]
                todo += [function.__code__ for function in _functions(variables[name])]
    return found


def _functions(value):
    """A function, also behind Triton's decorator or one of functools."""
    inner = []
    with contextlib.suppress(Exception):  # it is a student's
        inner = [vars(value).get(name) for name in ("fn", "__wrapped__")]
    return [one for one in (value, *inner) if isinstance(one, types.FunctionType)]


def _same(found, before):
    return before is not None and found.keys() == before.keys() and all(found[name] is before[name] for name in found)


def _plain(text):
    return text.encode("utf-8", "replace").decode()


def checker(lab, names, watch=None):
    """Makes check(id, source, only_look): runs it on the notebook's variables, and says what came of it.

    The answer's "seen" says what was on, or opened, that no exercise needs; watch: who hears of files.

    Only to look notes what it would reach; at the notebook's end it says "same" where it would reach nothing else.
    """
    (restore, state, changed), finder, finders = snapshot(), FromMemory(), list(sys.meta_path)
    quiet, watch = Quiet(), watch or Watch(("/",))
    tried = {}  # what each check reached when it was run at its place

    def check(id, source, only_look):
        restore()
        seen = [*quiet(watch.is_librarys), *(f"opened {path}" for path in watch.seen)]
        found, at_its_place = reached(source, names()), id.removesuffix(AGAIN)
        if only_look or (id != at_its_place and _same(found, tried.get(at_its_place))):
            tried.setdefault(at_its_place, found)
            return {"message": "", "same": True, "seen": seen}
        tried.setdefault(at_its_place, found)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.meta_path[:] = [finder, *finders]
        for name in finder.codes:
            sys.modules.pop(name, None)
        lab.exercises = importlib.import_module(CHECKS)
        lab.check = lab.exercises.check
        common = sys.modules[f"{CHECKS}.common"]
        printed, message, before, watch.checking = Few(), "", state(), True
        try:
            with contextlib.redirect_stdout(printed):
                exec(compile(source, "<check>", "exec"), {**names(), "lab": lab, "__builtins__": builtins})
        except BaseException as error:  # SystemExit too
            message = f"{type(error).__name__}: {error}".partition("\n")[0][:2000]
        watch.checking, during = False, changed(before, watch.is_librarys)
        if during and not message:  # a thread, or the function itself, changed what judges it
            message = f"Refused: {during} was changed while the check ran"
        speeds = [[speed.line, speed.band, speed.share] for speed in common.speeds]
        said = {"message": _plain(message), "printed": _plain(printed.getvalue()), "speeds": speeds}
        return said | {"seen": [_plain(one) for one in seen]}

    return check


class Output(iostream.OutStream):
    """The notebook's stdout and stderr: more than `most` characters in a cell, of both together, are an error there."""

    most = written = 0

    def write(self, string):
        Output.written += len(string)
        if Output.written > Output.most:
            raise OSError(f"a cell prints at most {Output.most:,} characters")
        return super().write(string)


def kernel_class(check):
    """IPython's kernel; {"secret": …} and {"id": …, "source": …, "only_look": …} after REQUEST are for us."""
    secret = None

    class Kernel(ipkernel.IPythonKernel):
        async def do_execute(self, code, silent, *arguments, **options):
            nonlocal secret
            Output.written = 0
            if not code.startswith(REQUEST):
                return await super().do_execute(code, silent, *arguments, **options)
            request, answer, proof = json.loads(code.removeprefix(REQUEST)), None, None
            if secret is None:
                secret = request["secret"]
            else:
                answer = {"id": request["id"], **check(request["id"], request["source"], request["only_look"])}
                proof = seal(secret, answer)
            reply = {"status": "ok", "execution_count": self.execution_count, "payload": [], "user_expressions": {}}
            return reply | {"answer": answer, "proof": proof}

    return Kernel


def main():
    folder, characters = sys.argv[1], int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT, FILE_LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open(os.path.join(folder, READABLE), encoding="utf-8") as file:
        readable = json.load(file)
    confine(folder, readable and [*readable, sys.argv[-1]])  # the connection's file too
    os.chdir(os.path.join(folder, "work"))
    sys.path[0] = ""

    Output.most = characters
    with contextlib.redirect_stdout(io.StringIO()):  # what lab displays when it is imported
        from flashkat_lite import lab
    with contextlib.suppress(ImportError):  # no Triton
        import triton.runtime.interpreter  # noqa: F401
    for chapter in Path(lab.exercises.__file__).parent.glob("ch*.py"):
        importlib.import_module(f"{CHECKS}.{chapter.stem}")

    variables = {}
    places = [os.path.join(place, "") for place in readable or ()]
    mine = [*(os.path.join(place, "") for place in ("/proc", "/dev", folder)), sys.argv[-1]]
    watch = Watch([*mine, *places] if places else ("/",), [*places, os.path.join(folder, "book", ""), __file__])
    sys.addaudithook(watch)
    app = kernelapp.IPKernelApp.instance(outstream_class="__main__.Output")
    app.kernel_class = kernel_class(checker(lab, lambda: variables, watch))
    app.initialize(sys.argv[3:])
    variables = app.shell.user_ns
    app.shell.ask_exit = lambda: None  # a cell that says quit() ends itself only
    app.start()


if __name__ == "__main__":
    main()
