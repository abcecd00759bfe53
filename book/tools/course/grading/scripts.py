"""Python files that students hand in: beside a notebook, or in its place (exported as a script)."""

import ast
import re

import nbformat

CELL = re.compile(r"^# (?:In\[[\d* ]*\]:|%%)(?P<rest>.*)$", re.MULTILINE)
CHECKED = re.compile(rb"^[ \t]*lab\.check\(", re.MULTILINE)


def cells(text):
    """The sources of a script's cells: as it is exported, one for each of the notebook's; else one."""
    at = [(found.start(), found.end(), found["rest"]) for found in CELL.finditer(text)]
    if not at:
        return [text]
    ends = [start for start, _, _ in at[1:]] + [len(text)]
    parts = [text[end:stop] for (_, end, rest), stop in zip(at, ends, strict=True) if "[markdown]" not in rest]
    return [part.strip("\n") for part in (text[: at[0][0]], *parts) if _is_code(part)]


def _is_code(text):
    return any(line.strip() and not line.startswith("#") for line in text.splitlines())


def as_notebook(data):
    """A script as a notebook's text, or None where it calls no check of ours."""
    if not CHECKED.search(data):
        return None
    made = [nbformat.v4.new_code_cell(source) for source in cells(data.decode("utf-8-sig", "replace"))]
    return nbformat.writes(nbformat.v4.new_notebook(cells=made)).encode()


def defines(text, names):
    """Which of these names a script defines at its top level."""
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # a magic, say: by its text
        return {name for name in names if re.search(rf"^(?:def\s+{name}\b|{name}\s*=)", text, re.MULTILINE)}
    found = {node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for node in body:
        if isinstance(node, ast.Assign):
            found |= {getattr(one, "id", "") for one in node.targets}
        elif isinstance(node, ast.ImportFrom):
            found |= {one.asname or one.name for one in node.names}
    return found & {*names}
