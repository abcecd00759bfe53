"""What is read, written, run and printed does not depend on the machine's locale."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    path
    for folder in ("book/theme", "book/tools", "examples", "flashkat_lite", "tests")
    for path in (ROOT / folder).rglob("*.py")
)
OTHERS = {"os", "Image", "tarfile", "zipfile", "archive"}  # whose `open` opens no text
PROGRAMS = [ROOT / folder / "__main__.py" for folder in ("book/tools", "flashkat_lite")] + [*ROOT.glob("examples/*.py")]
TOOLS = sorted({*ROOT.glob("book/tools/*.py"), *ROOT.glob("book/tools/*/*.py")})
ASKING = [path for path in [*TOOLS, *PROGRAMS[1:]] if "ArgumentParser" in path.read_text(encoding="utf-8")]
SOME = [path for path in ASKING if path not in TOOLS or path.stem in ("grade", "models")]  # all tools begin alike
TEXT_FILES = {"open", "fdopen", "NamedTemporaryFile", "TemporaryFile", "SpooledTemporaryFile"}


def left_to_the_locale(tree):
    """The lines that open, read or write text, or run a program for its text, in whatever encoding the machine has."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        if "encoding" in keywords:
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        owner = getattr(getattr(node.func, "value", None), "id", None)
        if name in ("read_text", "write_text", "TextIOWrapper", "FileHandler"):
            yield node.lineno
        elif name in TEXT_FILES and owner not in OTHERS - ({"os"} if name == "fdopen" else set()):
            words = [a.value for a in (*node.args, keywords.get("mode")) if isinstance(a, ast.Constant)]
            modes = [word for word in words if isinstance(word, str) and word.strip("rwax+tU") in ("", "b")]
            binary = any("b" in mode for mode in modes) or (name.endswith("TemporaryFile") and not modes)
            if not binary:
                yield node.lineno
        elif any(getattr(keywords.get(word), "value", None) is True for word in ("text", "universal_newlines")):
            yield node.lineno


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_text_has_an_encoding(path):
    assert list(left_to_the_locale(ast.parse(path.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    "line, found",
    [
        ("open(p)", True),
        ("open(p, 'rb')", False),
        ("p.open('w', newline='')", True),
        ("p.open(mode='ab')", False),
        ("os.open(p, os.O_PATH)", False),
        ("p.read_text()", True),
        ("p.write_text('b', encoding='utf-8')", False),
        ("NamedTemporaryFile()", False),
        ("NamedTemporaryFile('w')", True),
        ("run(c, text=True)", True),
        ("dict(stdout=PIPE, text=True)", True),
        ("run(c, encoding='utf-8')", False),
        ("new_output('stream', text=t)", False),
    ],
)
def test_the_rule_sees_what_is_left_to_the_locale(line, found):
    assert bool(list(left_to_the_locale(ast.parse(line)))) == found


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.parent.name)
def test_each_program_prepares_its_output_first(path):
    """By `console.prepare`, before anything is printed or parsed."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    (preparing,) = [call.lineno for call in calls if "prepare" in ast.unparse(call.func)]
    asking = [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id in ("print", "main")]
    last = tree.body[-1]
    assert isinstance(last, ast.If) and last.test.left.id == "__name__"
    inside = preparing > last.lineno
    assert preparing < min(line for line in asking if (line > last.lineno) == inside)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_whatever_is_printed_arrives(encoding, tmp_path):
    """Names too that are no text at all, as a file's may be."""
    script = tmp_path / "script.py"
    text = "Übung … \udcff"
    script.write_text(f"import console\nconsole.prepare()\nprint({text!r})\n", encoding="utf-8")
    environ = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT / "flashkat_lite")}
    done = subprocess.run([sys.executable, str(script)], env=environ, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode(encoding).strip() == text.encode(encoding, "backslashreplace").decode(encoding)


@pytest.mark.parametrize("path", SOME, ids=lambda path: path.stem)
def test_a_program_explains_itself_where_the_locale_knows_only_ascii(path, ascii_locale):
    named = [str(ROOT / "book" / "tools"), path.stem] if path in TOOLS else [str(path)]
    named = ["-m", "flashkat_lite"] if path.stem == "__main__" else named
    environ = ascii_locale | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *named, "--help"], cwd=ROOT, env=environ, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"usage:" in done.stdout
