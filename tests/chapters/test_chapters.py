"""The chapters themselves: they run, what is committed is clean, and they keep to the conventions."""

import ast
import collections
import re
import warnings
from importlib import metadata

import nbformat
import pytest
import torch

from tools import notebooks
from tools.notebooks import execute, listings, stamp, status

CHAPTERS = notebooks.select([])
PLACES = re.compile(r"/home/|/root/|/tmp/|\b[A-Z]:\\")
LIMIT = 1.5e6  # bytes

every_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def read():
    """Reads a chapter, once."""
    kept = {}
    return lambda path: kept.setdefault(path, notebooks.read(path))


def outputs(notebook):
    return [(cell, output) for cell in notebooks.code_cells(notebook) for output in cell.outputs]


def texts(node):
    """All strings in an output but pictures' bytes."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key != "image/png":
                yield from texts(value)
    elif isinstance(node, list):
        for item in node:
            yield from texts(item)
    elif isinstance(node, str):
        yield node


def exercises(notebook):
    """The cells of each exercise by their role."""
    found = collections.defaultdict(dict)
    for cell in notebook.cells:
        for role in {"exercise", "check", "solution"} & set(notebooks.tags(cell)):
            assert role not in found[notebooks.exercise(cell)], f"two {role} cells of {notebooks.exercise(cell)}"
            found[notebooks.exercise(cell)][role] = cell
    return found


def facts(reports):
    return {key: (one["registers"], one["spills"], one["instructions"]) for key, one in reports.items()}


@every_chapter
def test_it_runs_and_every_exercise_can_fail_and_can_be_solved(path, warm_environment, tmp_path):
    """In one run for the time that it takes: each check rejects the stub, and accepts the solution after it. What it
    compiles is what the record has for machines without a compiler."""
    chapter = notebooks.read(path)
    checks = [cell for cell in notebooks.code_cells(chapter) if "check" in notebooks.tags(cell)]
    for check in checks:
        check.metadata.tags = ["raises-exception"]
    notebooks.write(chapter, tmp_path / path.name)
    (tmp_path / "listings").mkdir()
    environ = warm_environment | {"FLASHKAT_LISTINGS": str(tmp_path / "listings")}
    executed, failed = execute.nbmake(tmp_path / path.name, environ)
    assert failed is None, failed
    errors = {cell.id: output.ename for cell, output in outputs(executed) if output.output_type == "error"}
    assert errors == {check.id: "NotImplementedError" for check in checks}
    if not torch.cuda.is_available():
        found = listings.read(tmp_path / "listings", listings.code(path))
        kept = listings.kept()["chapters"].get(path.stem, {})
        again = f"python book/tools listings {path.stem[:2]}"
        assert found.keys() == kept.keys(), again
        if metadata.version("triton") == listings.kept()["triton"]:
            assert facts(found) == facts(kept), again


@every_chapter
def test_what_is_committed_was_executed_by_make(path, read):
    """JupyterLab may rewrite the notebook's metadata when a typo is mended; outputs come from `make execute` alone."""
    made, canonical = read(path), notebooks.canonical(read(path))
    assert [output for _, output in outputs(made)] == [output for _, output in outputs(canonical)]
    assert made.metadata.get("widgets") == canonical.metadata.get("widgets")


@every_chapter
def test_no_committed_output_is_an_error_or_names_a_place_on_a_machine(path, read):
    for cell, output in outputs(read(path)):
        assert output.output_type != "error", f"{cell.id}: {output.evalue}"
        places = [text for text in texts(output) if PLACES.search(text)]
        assert places == [], cell.id


@every_chapter
def test_it_is_a_valid_notebook(path, read):
    nbformat.validate(read(path))


@every_chapter
def test_it_is_small(path):
    assert path.stat().st_size <= LIMIT


def test_stale_chapters_are_listed():
    for name, why in status.stale().items():
        warnings.warn(f"{name}: {', '.join(why)}", stacklevel=1)


def test_the_table_of_contents_holds_every_chapter_in_order():
    assert notebooks.chapters() == CHAPTERS


@every_chapter
def test_it_begins_as_every_chapter_does(path, read):
    notebook = read(path)
    assert (notebook.nbformat, notebook.nbformat_minor) >= (4, 5)
    assert re.match(r"# \S", notebook.cells[0].source)
    first = stamp.parse(notebooks.code_cells(notebook)[0].source).body[0]
    assert ast.unparse(first) == "from flashkat_lite import lab"


@every_chapter
def test_its_box_asks_and_its_summary_answers(path, read):
    cells = read(path).cells
    assert "**Question.**" in cells[0].source and "**Result.**" not in cells[0].source
    headings = re.findall(r"^## (.+)$", "\n".join(c.source for c in cells if c.cell_type == "markdown"), re.MULTILINE)
    assert headings.index("Exercises") < headings.index("Summary")


@every_chapter
def test_its_exercises_are_complete(path, read):
    for name, cells in exercises(read(path)).items():
        assert cells.keys() == {"exercise", "check", "solution"}, name
        stub, check, solution = cells["exercise"], cells["check"], cells["solution"]
        assert re.fullmatch(rf"{path.stem[:2]}-\d+", name)
        assert stub.metadata.exercise.keys() == {"id", "points", "level", "hint"}, name
        assert stub.metadata.exercise.points in range(1, 11) and stub.metadata.exercise.level in (1, 2, 3), name
        assert stub.metadata.exercise.hint.strip(), name
        assert "skip-execution" in check.metadata.tags, name
        assert "hide-cell" in solution.metadata.tags, name
        order = [read(path).cells.index(cell) for cell in (stub, check, solution)]
        assert order == sorted(order), name


@every_chapter
def test_its_stubs_raise_only_when_called(path, read):
    for name, cells in exercises(read(path)).items():
        stub = stamp.definitions(stamp.parse(cells["exercise"].source))
        raising = [defined for defined, tree in stub.items() if "NotImplementedError" in ast.unparse(tree)]
        assert raising, name
        exec_free = all(isinstance(node, ALLOWED) for node in stamp.parse(cells["exercise"].source).body)
        assert exec_free, f"{name}: a stub defines, and does nothing else"
        solution = stamp.parse(cells["solution"].source)
        assert {f"{defined}_solution" for defined in raising} <= stamp.definitions(solution).keys(), name
        assert "_solution" not in cells["check"].source, f"{name}: its check needs what students do not have"
        (check,) = stamp.parse(cells["check"].source).body
        last = solution.body[-1]
        assert ast.unparse(check) == ast.unparse(last).replace("_solution", ""), name


ALLOWED = (ast.FunctionDef, ast.Import, ast.ImportFrom, ast.Assign)
NO_UNIT = re.compile(r"(of|in) |times\b|points?$|[mb]illion$")  # "Your guess, in times a copy"


def calls(cell, name):
    """The calls of lab.name in a code cell."""
    found = [node for node in ast.walk(stamp.parse(cell.source)) if isinstance(node, ast.Call)]
    return [node for node in found if ast.unparse(node.func) == f"lab.{name}"]


@every_chapter
def test_its_predictions_are_asked_once_without_a_guess_and_answered_below(path, read):
    waiting, asked = set(), set()
    for cell in notebooks.code_cells(read(path)):
        asks = calls(cell, "predict")
        assert ("predict" in notebooks.tags(cell)) == bool(asks), f"{cell.id}: the tag predict goes with lab.predict"
        assert len(asks) <= 1 and (not asks or cell.source.startswith("guess = None")), cell.id
        for one in asks:
            question, unit, source = map(ast.literal_eval, one.args[:3])
            assert question.endswith("?") and ast.unparse(one.args[3]) == "guess", cell.id
            assert isinstance(unit, str) and not NO_UNIT.match(unit), f"{cell.id}: Your guess, in {unit}"
            assert re.fullmatch(rf"{path.stem[:2]}-[a-z0-9-]{{1,40}}", source) and source not in asked, source
            waiting.add(source)
            asked.add(source)
        for one in calls(cell, "reveal"):
            source = ast.literal_eval(one.args[0])
            assert source in waiting, f"{cell.id}: {source} is not asked above, or was answered already"
            waiting.remove(source)
    assert not waiting, "asked and never answered"


@every_chapter
def test_its_figures_have_a_caption_a_name_and_a_description(path, read):
    for cell in notebooks.code_cells(read(path)):
        pictured = any(kind.startswith("image/") for output in cell.outputs for kind in output.get("data", {}))
        settings = cell.metadata.get("mystnb", {})
        if pictured or "figure" in settings:
            assert settings["figure"]["caption"].strip(), cell.id
            assert settings["figure"]["name"].strip(), cell.id
        if pictured:
            assert settings["image"]["alt"].strip(), cell.id
    state = read(path).metadata.get("widgets", {}).get(notebooks.WIDGET_STATE, {}).get("state", {})
    frames = [model.state.get("value") for model in state.values() if model.model_name == "HTMLModel"]
    assert [frame for frame in frames if "<svg" in frame and not re.search(r'aria-label="[^"]+"', frame)] == []


def test_no_two_figures_share_a_name(read):
    settings = [cell.metadata.get("mystnb", {}) for path in CHAPTERS for cell in read(path).cells]
    names = collections.Counter(setting["figure"]["name"] for setting in settings if "figure" in setting)
    assert [name for name, count in names.items() if count > 1] == []


@every_chapter
def test_its_tagged_definitions_are_the_packages(path, read):
    package = stamp.Package()
    for cell in read(path).cells:
        for module in [tag.removeprefix("source:") for tag in notebooks.tags(cell) if tag.startswith("source:")]:
            here = stamp.definitions(stamp.parse(cell.source))
            there = stamp.definitions(package.tree(module))
            assert here, f"{cell.id} defines nothing"
            for name, tree in here.items():
                assert name in there, f"{cell.id}: {module} defines no {name}"
                assert stamp.syntax(tree) == stamp.syntax(there[name]), f"{cell.id}: {name} differs from {module}'s"
