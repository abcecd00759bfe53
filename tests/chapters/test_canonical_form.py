"""A notebook has one canonical text, and its stamp changes with what it computes and with nothing else."""

import copy
import json
import random

import nbformat
import pytest

from tools import notebooks
from tools.notebooks import stamp

VIEW = "application/vnd.jupyter.widget-view+json"
FACTORY = {
    "__init__.py": '__version__ = "1"\nfrom .ops import rational\n',
    "ops.py": "def rational(x):\n    from .kernels.forward import forward\n    return forward(x)\n",
    "kernels/__init__.py": "def as_rows(x):\n    return x\n",
    "kernels/forward.py": "from . import as_rows\ndef forward(x):\n    return as_rows(x)\n",
    "kernels/backward_a.py": "def backward_a(x):\n    return x\n",
    "lab/__init__.py": "from ..kernels import backward_a\n",
}


@pytest.fixture
def package(tmp_path):
    """A small flashkat_lite; returns the function that writes one of its files."""

    def write(name, source):
        path = tmp_path / "flashkat_lite" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")

    for name, source in FACTORY.items():
        write(name, source)
    write.root = tmp_path
    return write


def stream(name, text):
    return nbformat.v4.new_output("stream", name=name, text=text)


def display(data):
    return nbformat.v4.new_output("display_data", data=data)


def widgets(identities):
    """A slider joined by a link to a box of two pictures, under these ids, their order in the file as chance has it."""
    slider, link, box, first, second, layout = identities
    models = {
        layout: ("LayoutModel", {}),
        slider: ("IntSliderModel", {"layout": f"IPY_MODEL_{layout}"}),
        first: ("HTMLModel", {"value": "<b>1</b>"}),
        second: ("HTMLModel", {"value": "<b>2</b>"}),
        box: ("StackModel", {"children": [f"IPY_MODEL_{slider}", f"IPY_MODEL_{first}", f"IPY_MODEL_{second}"]}),
        link: ("LinkModel", {"source": [f"IPY_MODEL_{slider}", "value"], "target": [f"IPY_MODEL_{box}", "selected"]}),
    }
    state = {name: {"model_name": models[name][0], "state": models[name][1]} for name in sorted(models)}
    metadata = {notebooks.WIDGET_STATE: {"state": state, "version_major": 2, "version_minor": 0}}
    return display({VIEW: {"model_id": box, "version_major": 2, "version_minor": 0}}), metadata


def with_widgets(notebook, cell, seed):
    identities = [f"{random.Random(seed + number).getrandbits(128):032x}" for number in range(6)]
    output, metadata = widgets(identities)
    made = notebook(cell)
    made.cells[1].outputs = [output]
    made.metadata.widgets = metadata
    return made


def test_canonicalising_twice_changes_nothing(notebook, code, tmp_path):
    made = with_widgets(notebook, code("f", "f"), seed=0)
    made.cells[1].outputs += [stream("stderr", "e\n"), stream("stdout", "<f at 0x7f12345678ab>\n")]
    once = notebooks.canonical(made)
    notebooks.write(once, tmp_path / "once.ipynb")
    again = notebooks.canonical(notebooks.read(tmp_path / "once.ipynb"))
    assert notebooks.text(again) == (tmp_path / "once.ipynb").read_text(encoding="utf-8")


def test_the_given_notebook_is_left_alone(notebook, code):
    made = with_widgets(notebook, code("f", "f"), seed=0)
    before = copy.deepcopy(made)
    notebooks.canonical(made)
    assert made == before


def test_times_and_the_kernels_description_go(notebook, code):
    made = notebook(code("1", "one", "keep", metadata={"execution": {"iopub.status.busy": "2026-01-01"}}))
    made.metadata.language_info = {"name": "python", "version": "3.12.3"}
    made.metadata.kernelspec = {"name": "someone", "display_name": "Someone's"}
    result = notebooks.canonical(made)
    assert result.cells[1].metadata == {"tags": ["keep"]}
    assert result.metadata.kernelspec.name == "python3"
    assert result.metadata.language_info == {"name": "python"}


def test_addresses_go_and_masks_stay(notebook, code):
    made = notebook(code("f", "f"))
    shown = "<function f at 0x7f12345678ab> 0x7f12345678ab and.b32 %r1, 0x7fffffff; 0xffffffffffffffff; at 0x10"
    made.cells[1].outputs = [display({"text/plain": shown})]
    (output,) = notebooks.canonical(made).cells[1].outputs
    assert output.data["text/plain"] == "<function f at 0x…> 0x… and.b32 %r1, 0x7fffffff; 0xffffffffffffffff; at 0x10"


def test_the_day_on_which_a_figure_was_saved_goes(notebook, code):
    made = notebook(code("f", "f"))
    made.cells[1].outputs = [display({"image/svg+xml": "<svg>\n <dc:date>2026-01-01T00:00:00</dc:date>\n</svg>"})]
    assert notebooks.canonical(made).cells[1].outputs[0].data["image/svg+xml"] == "<svg>\n</svg>"


def test_streams_merge_between_displays(notebook, code):
    made = notebook(code("f", "f"))
    made.cells[1].outputs = [
        stream("stderr", "1\n"),
        stream("stdout", "a\n"),
        stream("stderr", "2\n"),
        stream("stdout", "b\n"),
        display({"text/plain": "shown"}),
        stream("stdout", "c\n"),
    ]
    outputs = notebooks.canonical(made).cells[1].outputs
    said = [(output.get("name"), output.get("text")) for output in outputs]
    assert said == [("stdout", "a\nb\n"), ("stderr", "1\n2\n"), (None, None), ("stdout", "c\n")]


def test_widget_ids_do_not_depend_on_chance(notebook, code):
    texts = {
        notebooks.text(notebooks.canonical(with_widgets(notebook, code("f", "f"), seed))) for seed in range(0, 80, 10)
    }
    assert len(texts) == 1


def test_widgets_keep_their_references(notebook, code):
    result = notebooks.canonical(with_widgets(notebook, code("f", "f"), seed=3))
    state = result.metadata.widgets[notebooks.WIDGET_STATE].state
    number = {model.model_name: name for name, model in state.items() if model.model_name != "HTMLModel"}
    assert result.cells[1].outputs[0].data[VIEW].model_id == number["StackModel"]
    assert state[number["StackModel"]].state.children[0] == f"IPY_MODEL_{number['IntSliderModel']}"
    assert state[number["LinkModel"]].state.source == [f"IPY_MODEL_{number['IntSliderModel']}", "value"]
    assert state[number["LinkModel"]].state.target == [f"IPY_MODEL_{number['StackModel']}", "selected"]
    assert [number[f"{name}Model"][-1] for name in ("Layout", "IntSlider", "Stack", "Link")] == ["1", "2", "5", "6"]


def test_the_text_is_json_with_sorted_keys(notebook, code):
    text = notebooks.text(notebooks.canonical(notebook(code("f", "f"))))
    assert text == json.dumps(json.loads(text), sort_keys=True, indent=1, ensure_ascii=False) + "\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("x = 1", "x = 1  # one"),
        ("x = (1, 2)", "x = (\n    1,\n    2,\n)"),
        ("def f():\n    return 1", 'def f():\n    "Says why."\n    return 1'),
        ("%time x = 1", "%time x = 1"),
    ],
)
def test_comments_formatting_and_docstrings_do_not_stale_a_chapter(notebook, code, before, after):
    assert stamp.code_sha256(notebook(code(before, "a"))) == stamp.code_sha256(notebook(code(after, "b")))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("x = 1", "x = 2"),
        ("x = 1", "x = 1.0"),
        ("x = None", "x = ''"),
        ("f(x)", "f(*x)"),
        ("'shown'", ""),
        ("@g\ndef f():\n    pass", "def f():\n    pass"),
        ("%time x = 1", "%time x = 2"),
    ],
)
def test_code_does(notebook, code, before, after):
    assert stamp.code_sha256(notebook(code(before, "a"))) != stamp.code_sha256(notebook(code(after, "a")))


def test_prose_does_not_stale_a_chapter(notebook, code):
    made = notebook(code("x = 1", "a"))
    before = stamp.code_sha256(made)
    made.cells[0].source = "# Another title"
    assert stamp.code_sha256(made) == before


IMPORTS = {
    "the name's own module": (
        "from flashkat_lite import rational",
        ["ops.py", "kernels/forward.py", "kernels/__init__.py"],
    ),
    "the whole package": (
        "import flashkat_lite",
        ["__init__.py", "ops.py", "kernels/forward.py", "kernels/__init__.py"],
    ),
    "a module": ("import flashkat_lite.kernels.backward_a as a", ["kernels/backward_a.py"]),
    "a module by its package": ("from flashkat_lite.kernels import backward_a", ["kernels/backward_a.py"]),
    "inside a function": (
        "def f():\n    from flashkat_lite.kernels.forward import forward",
        ["kernels/forward.py", "kernels/__init__.py"],
    ),
    "presentation": ("from flashkat_lite import lab", []),
    "nothing of ours": ("import torch", []),
}


@pytest.mark.parametrize("name", IMPORTS)
def test_a_chapter_is_stale_when_a_module_that_it_uses_changes(notebook, code, package, name):
    source, used = IMPORTS[name]
    made = notebook(code(source, "a"))
    before = stamp.package_sha256(made, package.root)
    changed = []
    for file, content in FACTORY.items():
        package(file, content + "changed = 1\n")
        if stamp.package_sha256(made, package.root) != before:
            changed.append(file)
        package(file, content)
    assert sorted(changed) == sorted(used)


def test_a_docstring_in_the_package_stales_nothing(notebook, code, package):
    made = notebook(code("from flashkat_lite.ops import rational", "a"))
    before = stamp.package_sha256(made, package.root)
    package("ops.py", '"""Says what."""  # and why\n' + FACTORY["ops.py"])
    assert stamp.package_sha256(made, package.root) == before


def test_a_source_tag_counts_as_an_import(notebook, code, package):
    made = notebook(code("x = 1", "a", "source:flashkat_lite.kernels.backward_a"))
    before = stamp.package_sha256(made, package.root)
    package("kernels/backward_a.py", "x = 1\n")
    assert stamp.package_sha256(made, package.root) != before


def test_a_module_that_is_gone_stales_its_users(notebook, code, package):
    made = notebook(code("from flashkat_lite.kernels import backward_a", "a"))
    before = stamp.package_sha256(made, package.root)
    (package.root / "flashkat_lite/kernels/backward_a.py").unlink()
    assert stamp.package_sha256(made, package.root) != before


def test_the_warnings_of_libraries_are_no_part_of_a_chapter():
    warning = (
        "/opt/lib/torch/profiler.py:224: UserWarning: Profiler clears events.To keep them, set acc_events=True.\n"
        "  _warn_once(\n"
    )
    made = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("f()", id="a"), nbformat.v4.new_code_cell("g()", id="b")]
    )
    made.cells[0].outputs = [stream("stdout", "1\n"), stream("stderr", warning)]
    made.cells[1].outputs = [stream("stderr", f"first\n{warning}last\n"), stream("stdout", warning)]
    first, second = ([(o.name, o.text) for o in cell.outputs] for cell in notebooks.canonical(made).cells)
    assert first == [("stdout", "1\n")]
    assert sorted(second) == [("stderr", "first\nlast\n"), ("stdout", warning)], "what a chapter prints itself stays"
