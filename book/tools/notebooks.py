"""What the tools share: where the chapters are, notebooks in one canonical form, and the hashes that make a stamp."""

import ast
import functools
import hashlib
import json
import os
import re
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = ROOT / "chapters"
BUILD = ROOT / "_build"
PACKAGE = "flashkat_lite"
# Presentation: a changed colour must not send a chapter back to the GPU.
UNHASHED = (f"{PACKAGE}.lab", f"{PACKAGE}.__main__")

WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
# After "at", or as Linux hands them out; a mask or a constant in a PTX listing stays.
ADDRESS = re.compile(r"(?<=\bat )0x[0-9a-fA-F]{6,16}\b|\b0x(?:7f|5[4-6])[0-9a-f]{10}\b")
SAVED_ON = re.compile(r"\n?[ \t]*<dc:date>[^<]*</dc:date>")
# As Python prints it: where, of which kind, and the line of source below. It differs from machine to machine.
WARNING = re.compile(r"^\S+\.py:\d+: \w*Warning: .*\n?(?:[ \t]+.*\n?)*", re.MULTILINE)
TRANSIENT = ("execution", "ExecuteTime", "trusted")
COLAB = "colab"  # the tag of the cell that book/tools/colab.py puts first


# Chapters


def chapters(root=ROOT):
    """The chapters' paths, in the order of `_toc.yml`."""
    listed = re.findall(r"file:\s*[\"']?(chapters/\w+)", (root / "_toc.yml").read_text(encoding="utf-8"))
    return [root / f"{name}.ipynb" for name in listed]


def select(names):
    """The chapters that `names` ("07", "07_atomic_backward", a path) mean, all of them without names.

    Raises:
        ValueError: a name that no chapter answers to.
    """
    everything = sorted(CHAPTERS.glob("*.ipynb"))
    if not names:
        return everything
    chosen = []
    for name in names:
        stem = Path(name).stem
        found = [path for path in everything if path.stem == stem or path.stem.startswith(f"{stem}_")]
        if not found:
            known = ", ".join(path.stem for path in everything) or "none yet"
            raise ValueError(f"no chapter {name!r}; there are: {known}")
        chosen += found
    return list(dict.fromkeys(chosen))


def tags(cell):
    return cell.metadata.get("tags", [])


def code_cells(notebook):
    """The chapter's code cells; the one for Colab is none of them."""
    return [cell for cell in notebook.cells if cell.cell_type == "code" and COLAB not in tags(cell)]


def exercise(cell):
    """The exercise that a cell belongs to ("07-1"), or None."""
    return cell.metadata.get("exercise", {}).get("id")


def version():
    """The package's version, read rather than imported."""
    source = (ROOT / PACKAGE / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"', source, re.MULTILINE)[1]


# Files


def files(folder, pattern="*", without=()):
    """The files below `folder` that match, in order, but for those in folders named in `without`.

    Only names below `folder` count: a clone may lie anywhere, in a folder named `data` too.
    """
    for path in sorted(folder.rglob(pattern)):
        if path.is_file() and not {*without} & {*path.relative_to(folder).parts[:-1]}:
            yield path


def read(path):
    return nbformat.read(path, as_version=4)


def write(notebook, path):
    """Writes the notebook's one text; a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text(notebook), encoding="utf-8", newline="\n")
    os.replace(partial, path)


def text(notebook):
    return nbformat.writes(notebook, version=4) + "\n"


# The canonical form


def canonical(notebook):
    """The notebook without what differs from run to run and from machine to machine.

    That is times, addresses, widget ids, the kernel's own description and the warnings of libraries.
    """
    notebook = nbformat.from_dict(notebook)
    for cell in notebook.cells:
        for key in TRANSIENT:
            cell.metadata.pop(key, None)
        if cell.cell_type == "code":
            cell.outputs = [_settle(output) for output in _merge_streams(_without_warnings(cell.outputs))]
    notebook.metadata.kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata.language_info = {"name": "python"}
    if "widgets" in notebook.metadata:
        notebook.metadata.widgets = _settle(notebook.metadata.widgets)
    return _number_widgets(notebook)


def _without_warnings(outputs):
    for output in outputs:
        if output.output_type == "stream" and output.name == "stderr":
            output.text = WARNING.sub("", output.text)
    return [output for output in outputs if output.output_type != "stream" or output.text]


def _merge_streams(outputs):
    """One stdout and one stderr between two displays: how they interleave is a matter of chance."""
    merged, pending = [], {}
    for output in outputs:
        if output.output_type == "stream":
            if output.name in pending:
                pending[output.name].text += output.text
            else:
                pending[output.name] = output
            continue
        merged += [pending[name] for name in sorted(pending, reverse=True)]
        pending = {}
        merged.append(output)
    return merged + [pending[name] for name in sorted(pending, reverse=True)]


def _settle(value):
    if isinstance(value, dict):
        return nbformat.from_dict({key: _settle(item) for key, item in value.items()})
    if isinstance(value, list):
        return [_settle(item) for item in value]
    return SAVED_ON.sub("", ADDRESS.sub("0x…", value)) if isinstance(value, str) else value


def _number_widgets(notebook):
    """Renames widgets 1, 2, 3 … much as ipywidgets opens them: in order of display, the parts of one before itself."""
    state = notebook.metadata.get("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
    if not state:
        return notebook
    any_id = re.compile("|".join(map(re.escape, sorted(state, key=len, reverse=True))))
    opened, order = set(), {}

    def visit(node):
        for name in any_id.findall(_json(node)):
            if name not in opened:
                opened.add(name)
                visit(state[name])
                order[name] = f"{len(order) + 1:032x}"

    def content(name, within=()):
        def known(found):
            return order.get(found[0]) or ("" if found[0] in within else content(found[0], (*within, name)))

        return any_id.sub(known, _json(state[name]))

    visit([cell.get("outputs", []) for cell in notebook.cells])
    # Links are displayed nowhere and nothing refers to them: they follow, sorted by what they say.
    while unseen := [name for name in state if name not in order]:
        inner = {name for other in unseen for name in any_id.findall(_json(state[other]))}
        visit(min([name for name in unseen if name not in inner] or unseen, key=content))
    return nbformat.from_dict(json.loads(any_id.sub(lambda found: order[found[0]], _json(notebook))))


def _json(node):
    return json.dumps(node, sort_keys=True, ensure_ascii=False)


# Syntax trees and stamps


def parse(source):
    """The syntax tree of a cell, which may hold IPython magics."""
    try:
        return ast.parse(source)
    except SyntaxError:
        from IPython.core.inputtransformer2 import TransformerManager

        return ast.parse(TransformerManager().transform_cell(source))


def definitions(tree):
    """The functions and classes that a tree defines at its top level, by name."""
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def syntax(node, docstrings=True):
    """A syntax tree as nested lists without positions, the same on every Python (`ast.dump` is not)."""
    if isinstance(node, ast.AST):
        fields = dict(ast.iter_fields(node))
        if not docstrings and _has_docstring(node):
            fields["body"] = node.body[1:]
        kept = [[name, syntax(value, docstrings)] for name, value in fields.items() if value not in (None, [])]
        return [type(node).__name__, *(pair for pair in kept if pair[0] not in ("kind", "type_comment"))]
    if isinstance(node, list):
        return [syntax(item, docstrings) for item in node]
    return repr(node)


def _has_docstring(node):
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    return isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None


def _sha256(value):
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def code_sha256(notebook):
    """Of the code cells' syntax trees: comments, prose, docstrings and formatting do not count."""
    # Wrapped in a list of statements, since a cell's leading string is an output rather than a docstring.
    return _sha256([syntax(parse(cell.source).body, docstrings=False) for cell in code_cells(notebook)])


def package_sha256(notebook, root=ROOT):
    """Of the syntax trees of the package's modules that the code cells import, directly or through one another."""
    package = Package(root)
    direct = {module for cell in code_cells(notebook) for module in package.imports(parse(cell.source))}
    direct |= {
        tag.removeprefix("source:") for cell in notebook.cells for tag in tags(cell) if tag.startswith("source:")
    }
    modules = sorted(package.closure(direct))
    return _sha256([[name, syntax(package.tree(name), docstrings=False)] for name in modules])


class Package:
    """flashkat_lite as files: which module imports which, found without importing any."""

    def __init__(self, root=ROOT):
        self.root = root
        self.tree = functools.cache(lambda module: ast.parse(self.path(module).read_text(encoding="utf-8")))

    def path(self, module):
        """The file of a module, or None where the package has no such module."""
        stem = self.root.joinpath(*module.split("."))
        return next((file for file in (stem.with_suffix(".py"), stem / "__init__.py") if file.is_file()), None)

    def closure(self, modules):
        """The modules, and all that they import inside the package."""
        found, todo = set(), set(modules)
        while todo:
            module = todo.pop()
            if self.path(module) and not module.startswith(UNHASHED):
                found.add(module)
                # A module that asks the package for its version does not use all that the package re-exports.
                todo |= self.imports(self.tree(module), module) - found - {PACKAGE}
        return found

    def imports(self, tree, module=None):
        """The package's modules that a tree imports, at any depth; a name counts as the module that defines it."""
        found = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found |= {name for alias in node.names for name in self.reach(alias.name)}
            elif isinstance(node, ast.ImportFrom):
                source = self._absolute(node, module)
                for alias in node.names:
                    found |= self.reach(source) if alias.name == "*" else {self.definer(source, alias.name)}
            elif isinstance(node, ast.Call):
                found |= self._imported_by_name(node)
        return {name for name in found if name.split(".")[0] == PACKAGE}

    def reach(self, module):
        """What `import module` makes usable: the module and, of a package, whatever it re-exports."""
        return {module} | {self.definer(module, name) for name in self._exports(module)}

    def definer(self, module, name):
        """The module that defines what `from module import name` brings."""
        if self.path(f"{module}.{name}"):
            return f"{module}.{name}"
        source = self._exports(module).get(name)
        return self.definer(source, name) if source else module

    def _exports(self, module):
        """The names that a package's __init__ imports from its own modules, each with that module."""
        path = self.path(module)
        if path is None or path.name != "__init__.py":
            return {}
        imports = [node for node in self.tree(module).body if isinstance(node, ast.ImportFrom)]
        pairs = [(alias.name, self._absolute(node, module)) for node in imports for alias in node.names]
        return {name: source for name, source in pairs if source.startswith(f"{PACKAGE}.")}

    def _absolute(self, node, module):
        if not node.level:
            return node.module
        is_package = self.path(module).name == "__init__.py"
        parents = module.split(".")
        return ".".join([*parents[: len(parents) - node.level + is_package], *filter(None, [node.module])])

    def _imported_by_name(self, call):
        """The modules that `import_module("a.b")` or `import_module(f"a.b_{x}")`, any of its b_…, may import."""
        if getattr(call.func, "id", getattr(call.func, "attr", None)) != "import_module":
            return set()
        name = call.args[0]
        if isinstance(name, ast.Constant):
            return {name.value}
        start = name.values[0].value if isinstance(name, ast.JoinedStr) else ""
        folder = self.root.joinpath(*start.split(".")[:-1])
        return {f"{start.rpartition('.')[0]}.{file.stem}" for file in folder.glob(f"{start.rpartition('.')[2]}*.py")}


def staleness(notebook, root=ROOT):
    """Why the notebook's outputs may not be what its code gives on a GPU today; [] where they are."""
    stamp = notebook.metadata.get("flashkat")
    if not stamp:
        return ["never executed on a GPU"]
    reasons = []
    if stamp["code_sha256"] != code_sha256(notebook):
        reasons.append("its code changed")
    if stamp["package_sha256"] != package_sha256(notebook, root):
        reasons.append("the package changed")
    if not stamp["gpu"]:
        reasons.append("executed without a GPU")
    return reasons
