"""What a teacher may want to look at in a class's notebooks: seen here, judged by nobody.

A function that is our solution or another student's but for its names; what a notebook says that no exercise asks for:
solutions imported, traces, modes, patches of what checks and clocks use, files that are somebody else's.
"""

import ast
import builtins
import collections
import functools
import re

from ... import notebooks

LEAST = 40  # nodes of a syntax tree: below, many write the same
PATCHED = {"builtins", "common", "flashkat_lite", "hardware", "lab", "math", "operator", "time", "tl", "torch"}
SETTINGS = re.compile(r"torch\.(backends|_dynamo\.config|_inductor\.config|set_)|\.(rcParams|options)\b")
NOTABLE = {
    "settrace": "sets a trace", "setprofile": "sets a trace", "set_trace": "sets a trace", "f_trace": "sets a trace",
    "monitoring": "sets a trace", "PyEval_SetTrace": "sets a trace", "SetTrace": "sets a trace",
    "TorchFunctionMode": "uses a mode of PyTorch", "TorchDispatchMode": "uses a mode of PyTorch",
    "_getframe": "looks at callers' frames", "currentframe": "looks at callers' frames",
    "f_back": "looks at callers' frames", "tb_frame": "looks at callers' frames",
    "f_locals": "looks at callers' frames",
    "get_objects": "searches memory", "get_referrers": "searches memory", "get_referents": "searches memory",
    "__code__": "replaces a function's code", "pythonapi": "uses Python's C interface",
    "meta_path": "changes imports", "input_transformers_cleanup": "changes IPython", "do_execute": "changes IPython",
    "system": "starts programs", "Popen": "starts programs", "check_output": "starts programs",
}  # fmt: skip
FILES = re.compile(r"^(/(proc|etc|root|home|Users|tmp|var|dev/shm|mnt|srv)\b|~/|\.\./)|\.ipynb$|lab/exercises")


# What it says


def mentions(sources):
    """What these cells say that no exercise asks for: {line}."""
    found = set()
    for source in sources:
        lines = source.splitlines()
        if any(line.lstrip().startswith("!") for line in lines):
            found.add("starts programs")
        plain = "\n".join("pass" if line.lstrip().startswith(("!", "%")) else line for line in lines)
        tree = _parsed(plain)
        if tree is None:
            found |= {what for name, what in NOTABLE.items() if re.search(rf"\b{name}\b", plain)}
            continue
        defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        for node in ast.walk(tree):
            found |= set(_said(node, defined))
    return found


def _said(node, defined):
    name = getattr(node, "attr", None) or getattr(node, "id", None)
    if isinstance(node, ast.Attribute | ast.Name):
        if name in NOTABLE:
            yield NOTABLE[name]
        if name.endswith("_solution") and name not in defined and isinstance(node.ctx, ast.Load):
            yield "uses a solution"
    if isinstance(node, ast.Import | ast.ImportFrom):
        for one in node.names:
            whole = f"{getattr(node, 'module', None) or ''}.{one.name}".strip(".")
            if re.search(r"\bexercises\b|_solution$|\blab\.solutions\b", whole):
                yield f"imports {whole}"
            if one.name in NOTABLE:
                yield NOTABLE[one.name]
    for target in _targets(node):
        root = target.partition(".")[0]
        if root in PATCHED and not SETTINGS.search(target):
            yield f"changes {target}"
    if isinstance(node, ast.Call):
        for given in [*node.args, *(keyword.value for keyword in node.keywords)]:
            if isinstance(given, ast.Constant) and isinstance(given.value, str):
                if FILES.search(given.value) and "\n" not in given.value:
                    yield f"names the file {given.value[:80]}"
                if given.value in NOTABLE:
                    yield NOTABLE[given.value]


def _targets(node):
    """What a node assigns to, as "torch.cuda.Event.elapsed_time"."""
    if isinstance(node, ast.Assign | ast.AugAssign | ast.Delete):
        targets = getattr(node, "targets", None) or [node.target]
        parts = [part for target in targets for part in getattr(target, "elts", [target])]
        return [ast.unparse(part) for part in parts if isinstance(part, ast.Attribute)]
    if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ("setattr", "patch"):
        first = node.args[:2]
        names = [str(part.value) if isinstance(part, ast.Constant) else ast.unparse(part) for part in first]
        return [".".join(names)]
    return []


@functools.lru_cache(4096)
def _parsed(source):
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


# What it equals


def shapes(sources):
    """{shape: name} of the functions defined in these cells, larger than LEAST: alike where all but names is."""
    found = {}
    for source in sources:
        for node in ast.walk(_parsed(source) or ast.Module([], [])):
            if isinstance(node, ast.FunctionDef) and sum(1 for _ in ast.walk(node)) >= LEAST:
                found[_shape(node)] = node.name
    return found


class Nameless(ast.NodeTransformer):
    """Names are numbered in the order in which they appear; notes for readers go."""

    def __init__(self):
        self.numbers = {}

    def named(self, name):
        return name if hasattr(builtins, name) else self.numbers.setdefault(name, f"v{len(self.numbers)}")

    def visit_Name(self, node):
        return ast.Name(self.named(node.id), ast.Load())

    def visit_arg(self, node):
        return ast.arg(self.named(node.arg))

    def visit_keyword(self, node):
        return ast.keyword(self.numbers.get(node.arg, node.arg), self.visit(node.value))

    def visit_FunctionDef(self, node):
        made = self.generic_visit(node)
        made.name, made.returns = self.named(node.name), None
        if ast.get_docstring(made, clean=False) is not None:
            made.body = made.body[1:] or [ast.Pass()]
        return made

    def visit_AnnAssign(self, node):
        return self.visit(ast.Assign([node.target], node.value)) if node.value else None

    def visit_Global(self, node):
        return None


@functools.lru_cache(4096)
def _shape_of(text):
    return ast.dump(Nameless().visit(ast.parse(text).body[0]))


def _shape(node):
    return _shape_of(ast.unparse(node))


def _ours(chapter):
    """A chapter's cells that are handed out, and {shape: exercise} of its solutions."""
    cells = notebooks.code_cells(chapter)
    given = [cell.source for cell in cells if "solution" not in notebooks.tags(cell)]
    solutions = {}
    for cell in cells:
        if "solution" in notebooks.tags(cell):
            solutions |= dict.fromkeys(shapes([cell.source]), notebooks.exercise(cell))
    return given, solutions


def of_class(sources, chapters, whose=lambda name: name):
    """{name: [line]} for {name: sources of its cells}; what our chapters say themselves is nobody's.

    whose: the student who handed in a name; what one student wrote twice is no copy.
    """
    given, solutions = [], {}
    for chapter in chapters:
        its, solved = _ours(chapter)
        given, solutions = given + its, solutions | solved
    known, common = {*shapes(given)}, mentions(given)
    of, written = collections.defaultdict(list), {}
    for name, cells in sources.items():
        written[name] = {shape: function for shape, function in shapes(cells).items() if shape not in known}
        for shape in written[name]:
            of[shape].append(name)
    found = {}
    for name, cells in sources.items():
        lines = []
        for shape, function in written[name].items():
            if shape in solutions:
                lines.append(f"{function} is our solution of {solutions[shape]}, but for names")
            elif others := [other for other in of[shape] if whose(other) != whose(name)]:
                more = f" and {len(others) - 1} more" if others[1:] else ""
                lines.append(f"{function} is that of {others[0]}{more}, but for names")
        found[name] = [*lines, *sorted(mentions(cells) - common)]
    return found
