"""The page "Reference": docstrings are plain text, which autodoc would take for reStructuredText.

Paragraphs, lists, `code` and "strings" stay what they are, indented lines are shown as they stand, and nothing else
means anything: |x| is no substitution, a*b no emphasis. A parameter's name is set as code where a docstring tells about
it.
"""

import importlib.util
import inspect
import re
import sys
from pathlib import Path

from sphinx.errors import PycodeError
from sphinx.pycode import ModuleAnalyzer

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "autodoc_default_options": {"members": True, "member-order": "bysource"},
    "autodoc_inherit_docstrings": False,
    "autodoc_typehints_format": "short",
    "python_use_unqualified_type_names": True,
    "python_maximum_signature_line_length": 90,
    "add_module_names": False,
    "toc_object_entries_show_parents": "hide",
}

# Of one parameter a line Sphinx makes a list of definitions without terms.
PARAMETERS = re.compile(r"<dl>\s*((?:<dd>.*?</dd>\s*)+)</dl>", re.DOTALL)


def as_rst(text: str, parameters: tuple[str, ...] = ()) -> str:
    """Return the reStructuredText that shows a docstring of plain text."""
    return "\n\n".join(_block(block, parameters) for block in re.split(r"\n\s*\n", text.strip("\n")) if block.strip())


def _block(block: str, parameters: tuple[str, ...]) -> str:
    lines = block.split("\n")
    if lines[0].startswith(">>> "):
        return block
    if lines[0].startswith("    "):
        return "\n".join(["::", "", *lines])
    if lines[0].startswith("- "):
        items = re.split(r"^- ", block, flags=re.MULTILINE)[1:]
        return "\n".join(f"- {_line(item, parameters)}" for item in items)
    return _line(block, parameters)


def _line(text: str, parameters: tuple[str, ...]) -> str:
    """One paragraph in one line, of which no word can begin a list."""
    text = re.sub(r'(`[^`]+`)|("[^\s"]+")', lambda found: found[1] or f"`{found[2]}`", " ".join(text.split()))
    parts = re.split(r"`([^`]+)`", text)
    for i, part in enumerate(parts):
        # Code that touches a word needs a blank that is not shown.
        parts[i] = f"\\ ``{part}``\\ " if i % 2 else _prose(part, parameters)
    return "".join(parts).strip()


def _prose(text: str, parameters: tuple[str, ...]) -> str:
    text = re.sub(r"([\\*|_`])", r"\\\1", text)
    if parameters:
        names = "|".join(re.escape(name.replace("_", r"\_")) for name in parameters)
        text = re.sub(rf"(?<![\w.])({names})(?=: )", lambda found: f"``{found[0]}``".replace(r"\_", "_"), text)
    return text


def process(app, what, name, obj, options, lines: list[str]) -> None:
    try:
        parameters = tuple(inspect.signature(obj).parameters)
    except (TypeError, ValueError):
        parameters = ()
    lines[:] = [*as_rst("\n".join(lines), parameters).split("\n"), ""]


def mend_parameters(app, pagename, templatename, context, doctree) -> None:
    def lines(found: re.Match) -> str:
        return f'<div class="fk-parameters">{found[1].replace("<dd>", "<div>").replace("</dd>", "</div>")}</div>'

    if "body" in context:
        context["body"] = PARAMETERS.sub(lines, context["body"])


def read_own_sources_only() -> None:
    """Of what our classes inherit from PyTorch no attribute is shown, so Sphinx need not parse PyTorch for it."""
    parse = ModuleAnalyzer.for_module.__func__

    def for_module(cls, modname: str) -> ModuleAnalyzer:
        if modname.partition(".")[0] == "torch":
            raise PycodeError(f"{modname}: its source is not needed")
        return parse(cls, modname)

    ModuleAnalyzer.for_module = classmethod(for_module)


def configure(app, config) -> None:
    """Lay the settings; where there is no Triton, as on macOS, kernels are documented all the same."""
    for name, value in SETTINGS.items():
        config[name] = value
    config.nitpick_ignore_regex = [*config.nitpick_ignore_regex, (r"py:.*", r".*")]  # types of others, in signatures
    if importlib.util.find_spec("triton") is None:
        config.autodoc_mock_imports = [*config.autodoc_mock_imports, "triton"]


def setup(app) -> None:
    sys.path.insert(0, str(ROOT))
    app.setup_extension("sphinx.ext.autodoc")
    read_own_sources_only()
    app.connect("config-inited", configure)
    app.connect("autodoc-process-docstring", process)
    app.connect("html-page-context", mend_parameters)
