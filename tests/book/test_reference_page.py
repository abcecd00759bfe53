"""The page "Reference": every public name is on it, and docstrings of plain text come through as they were written."""

import ast
import importlib
import inspect
import re

import docstrings
import pytest
from docutils.core import publish_doctree

import flashkat_lite
from flashkat_lite import __main__ as command
from flashkat_lite import ops

OWN = {"kernels", "ops", "console", "doctor"}  # launchers, rational and commands have their own places on the page
MODULES = sorted({path.stem for path in docstrings.ROOT.glob("flashkat_lite/[a-z]*.py")} - OWN)


def public(module):
    """{name: object} of a module: those of __all__, or functions and classes without an underscore defined there."""
    found = {name: value for name, value in vars(module).items() if inspect.isfunction(value) or inspect.isclass(value)}
    if hasattr(module, "__all__"):
        return {name: getattr(module, name) for name in module.__all__}
    return {n: v for n, v in found.items() if not n.startswith("_") and v.__module__ == module.__name__}


def everything():
    """{full name: object} of all that the page has to have."""
    found = {f"flashkat_lite.{name}": getattr(flashkat_lite, name) for name in flashkat_lite.__all__}
    for stem in MODULES:
        module = importlib.import_module(f"flashkat_lite.{stem}")
        found |= {f"{module.__name__}.{n}": v for n, v in public(module).items() if v not in found.values()}
    return found


def test_every_public_name_is_on_the_page_with_words(html):
    page = (html / "book" / "reference.html").read_text(encoding="utf-8")
    launchers = [f"flashkat_lite.kernels.{n}.{n}" for n in ("forward", *(f"backward_{rung}" for rung in ops.BACKWARDS))]
    assert len(everything()) > 50
    missing = [name for name in (*everything(), *launchers) if f'id="{name}"' not in page]
    assert not missing
    assert [name for name, value in everything().items() if not value.__doc__] == []
    assert not re.search(r"object at 0x|&lt;function|/home/", page), "what differs from machine to machine"


def test_every_command_and_option_is_on_the_page(root, capsys):
    page = (root / "book" / "reference.md").read_text(encoding="utf-8")
    for arguments in (["--help"], ["doctor", "--help"], ["bench", "--help"], ["xray", "--help"]):
        with pytest.raises(SystemExit):
            command.main(arguments)
    options = set(re.findall(r"--[a-z]+", capsys.readouterr().out)) - {"--help"}
    assert options >= {"--json", "--quick", "--out", "--optional"} and all(option in page for option in options)
    by_module = [
        p for p in (root / "flashkat_lite" / "bench").glob("*.py") if "__main__" in p.read_text(encoding="utf-8")
    ]
    assert by_module and all(f"python -m flashkat_lite.bench.{path.stem}" in page for path in by_module)


def words(text):
    """The text without marks for code, its blanks made one."""
    return " ".join(text.replace("`", "").split())


def test_docstrings_become_restructuredtext_that_says_the_same(root):
    found = []
    for path in root.glob("flashkat_lite/**/*.py"):
        if "lab" not in path.parts:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
            found += filter(None, (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)))
    assert len(found) > 150
    settings = {"report_level": 5, "halt_level": 5, "smart_quotes": False}
    for text in found:
        document = publish_doctree(docstrings.as_rst(text, ("x", "sources")), settings_overrides=settings)
        assert not list(document.findall(lambda node: node.tagname in ("system_message", "problematic"))), text
        bare = re.sub(r"^ *- ", "", text, flags=re.MULTILINE)
        assert words(document.astext()) == words(bare)


def test_marks_that_mean_something_elsewhere_are_letters_here():
    text = "|x| is *no* emphasis, `a*b`s is code, x_ no link; see `f`(x).\n\n"
    text += "    F = |a|  ,\n      b_\n\n- one\n  more\n- two"
    document = publish_doctree(docstrings.as_rst(text), settings_overrides={"report_level": 1, "halt_level": 2})
    paragraph, formula, items = document
    assert paragraph.astext() == "|x| is *no* emphasis, a*bs is code, x_ no link; see f(x)."
    assert [node.astext() for node in paragraph.findall(lambda node: node.tagname == "literal")] == ["a*b", "f"]
    assert formula.tagname == "literal_block" and formula.astext() == "F = |a|  ,\n  b_"
    assert [item.astext() for item in items] == ["one more", "two"]


def test_a_parameter_is_set_as_code_where_it_is_told_about_and_nowhere_else():
    text = docstrings.as_rst("x_ptr: the input. A pointer x_ptr, or y: none.", ("x_ptr",))
    assert text == r"``x_ptr``: the input. A pointer x\_ptr, or y: none."
