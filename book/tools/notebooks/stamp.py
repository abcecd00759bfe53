"""Say whether a chapter is fresh: hashes of its code and of the package's modules that it uses, by syntax tree."""

import ast
import functools
import hashlib
import json

from ..paths import ROOT
from . import PACKAGE, code_cells, tags

# Presentation, and what runs where there is no GPU: neither must send a chapter back to one.
UNHASHED = (
    f"{PACKAGE}.lab",
    *(f"{PACKAGE}.{name}" for name in ("__main__", "console", "_interpreter", "_memory", "_standin")),
)


@functools.lru_cache(2000)  # all chapters' cells, which each page of the book's own is written from
def parse(source):
    """The syntax tree of a cell, which may hold IPython magics; to look at, not to change."""
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
    listed = ", ".join(f"[{json.dumps(name)}, {_compared(package.tree(name))}]" for name in modules)
    return hashlib.sha256(f"[{listed}]".encode()).hexdigest()


# A module's source is parsed once for all chapters.


@functools.cache
def _tree(source):
    return ast.parse(source)


@functools.cache
def _compared(tree):
    return json.dumps(syntax(tree, docstrings=False))


@functools.cache
def _import_statements(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


class Package:
    """flashkat_lite as files: which module imports which, found without importing any."""

    def __init__(self, root=ROOT):
        self.root = root
        self.tree = functools.cache(lambda module: _tree(self.path(module).read_text(encoding="utf-8")))

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
        for node in _import_statements(tree):
            if isinstance(node, ast.Import):
                found |= {name for alias in node.names for name in self.reach(alias.name)}
            elif isinstance(node, ast.ImportFrom):
                source = self._absolute(node, module)
                for alias in node.names:
                    found |= self.reach(source) if alias.name == "*" else {self.definer(source, alias.name)}
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
