"""The chapters' notebooks: which there are, read and written in one canonical form, so that diffs show what changed."""

import functools
import json
import os
import re
from pathlib import Path

import nbformat

from ..paths import CHAPTERS, ROOT

PACKAGE = "flashkat_lite"
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
# After "at", or as Linux hands them out; a mask or a constant in a PTX listing stays.
ADDRESS = re.compile(r"(?<=\bat )0x[0-9a-fA-F]{6,16}\b|\b0x(?:7f|5[4-6])[0-9a-f]{10}\b")
SAVED_ON = re.compile(r"\n?[ \t]*<dc:date>[^<]*</dc:date>")
# As Python prints it: where, of which kind, and the line of source below. It differs from machine to machine.
WARNING = re.compile(r"^\S+\.py:\d+: \w*Warning: .*\n?(?:[ \t]+.*\n?)*", re.MULTILINE)
TRANSIENT = ("execution", "ExecuteTime", "trusted")
COLAB = "colab"  # the tag of the cell that `make colab` puts first


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


def seen(path):
    """A notebook to look at, not to change: read once while its file stays the same."""
    status = path.stat()
    return _seen(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(32)
def _seen(path, *_):
    return read(path)


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
