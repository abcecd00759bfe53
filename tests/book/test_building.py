"""The life of a build, on a small book of its own: what stops it, what a second one does, what a reader gets."""

import re
import shutil
from pathlib import Path

import ipywidgets
import nbformat
import pytest
import yaml
from ipywidgets.embed import embed_data
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from visits import FAULTS, FRAMES, move_sliders, visit

from tools.site import build

ROOT = Path(__file__).resolve().parents[2]
TAKEN = (
    "_config.yml",
    "pyproject.toml",
    "requirements.txt",
    "book/data/compilers",
    "book/data/h200",
    "book/theme",
    "book/tools",
    "book/images",
    "book/references.bib",
    "book/extra",
    "flashkat_lite",
)
SVG = """<svg xmlns="http://www.w3.org/2000/svg" width="300pt" height="150pt" viewBox="0 0 300 150" {name}>
<rect width="300" height="150" fill="#ffffff"/><rect x="9" y="9" width="99" height="99" style="fill: #0072b2"/></svg>"""
LEFT_OUT = ("data", "_build", "_static", "__pycache__", "node_modules", ".ipynb_checkpoints", "book", "chapters", ".w")
FIGURE = {"figure": {"caption": "A bar, $x^2$ high.", "name": "fig-bar"}, "image": {"alt": "A bar"}}


def chapter(title, mystnb):
    """A notebook with maths, a numbered figure, and three frames under a slider."""
    slider = ipywidgets.IntSlider(value=0, max=2, description="Step $n$")
    named = SVG.format(name='aria-label="A frame"')
    stack = ipywidgets.Stack([ipywidgets.HTML(f"<p>Frame {n}</p>{named}") for n in range(3)], selected_index=0)
    link = ipywidgets.jslink((slider, "value"), (stack, "selected_index"))
    box = ipywidgets.VBox([slider, stack])
    embedded = embed_data([box, link])
    text = f"# {title}\n\nSee {{numref}}`fig-bar` and {{cite:t}}`kat`; $\\frac{{a}}{{b}}$.\n\n$$\n\\sum_i a_i x^i\n$$\n"
    figure = new_output("display_data", {"image/svg+xml": SVG.format(name="")})
    view = new_output("display_data", {"application/vnd.jupyter.widget-view+json": embedded["view_specs"][0]})
    cells = [
        new_markdown_cell(text, id="text"),
        new_code_cell("figure()", id="figure", outputs=[figure], metadata={"mystnb": mystnb}),
        new_code_cell("box", id="widget", outputs=[view]),
    ]
    state = {"application/vnd.jupyter.widget-state+json": embedded["manager_state"]}
    language = {"name": "python", "pygments_lexer": "ipython3"}
    return new_notebook(cells=cells, metadata={"language_info": language, "widgets": state})


class Sample:
    """A small book beside the real one, built by its own copy of the tools."""

    def __init__(self, root, build_book, **settings):
        self.root, self.html = root, root / "_build" / "html"
        self.build = lambda: build_book(root, **settings)
        for name in TAKEN:
            source, target = ROOT / name, root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            elif source.exists():
                shutil.copy(source, target)
        parts = [{"caption": "All", "chapters": [{"file": "chapters/01_one"}, {"file": "book/references"}]}]
        (root / "_toc.yml").write_text(
            yaml.safe_dump({"format": "jb-book", "root": "book/intro", "parts": parts}), encoding="utf-8"
        )
        (root / "book" / "intro.md").write_text("# Intro\n\nA [chapter](../chapters/01_one.ipynb).\n", encoding="utf-8")
        (root / "book" / "references.md").write_text("# References\n\n```{bibliography}\n```\n", encoding="utf-8")
        (root / "chapters").mkdir()

    def write(self, title="1. One", mystnb=FIGURE):
        nbformat.write(chapter(title, mystnb), str(self.root / "chapters" / "01_one.ipynb"))


def test_the_life_of_a_build(tmp_path, build_book, html, ascii_locale, browser, serve, subtests):
    """In a clone below folders that are left out where they lie within it, and under a locale without UTF-8.

    Made after the real book was built, whose vendored scripts it takes; one clone for the time that builds take.
    """
    sample = Sample(tmp_path.joinpath(*LEFT_OUT, "clone"), build_book, environ=ascii_locale)
    sample.write()
    done = sample.build()
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^[1-9]\d* pages", done.stdout, re.MULTILINE)
    assert done.stdout.splitlines()[-1] == str(sample.html / "index.html")
    with subtests.test("a chapter's figure has its description, its number and the page's colours"):
        text = (sample.html / "chapters" / "01_one.html").read_text(encoding="utf-8")
        assert 'aria-label="A bar"' in text
        assert "Fig. 1" in text
        assert "fill: var(--fk-blue, #0072b2)" in text
    with subtests.test("a chapter in the browser"):
        vendored = (sample.html / "vendor").exists()
        with visit(browser, serve(sample.html), "chapters/01_one", "dark", vendored=vendored) as (tab, faults):
            faults += tab.evaluate(FAULTS)
            assert "Frame 0" in tab.evaluate(FRAMES)
            assert move_sliders(tab) == []
            assert "Frame 1" in tab.evaluate(FRAMES)
        assert not faults
    with subtests.test("a second build does nothing until something changes"):
        assert "Nothing has changed" in sample.build().stdout
        sample.write(title="1. Another title")
        sample.build()
        assert "Another title" in (sample.html / "book" / "references.html").read_text(encoding="utf-8")
    with subtests.test("a figure without alternative text stops the build"):
        sample.write(mystnb={"figure": FIGURE["figure"]})
        done = sample.build()
        assert done.returncode != 0
        assert "no alternative text" in done.stdout
        assert len(done.stdout.splitlines()) < 10
        assert not (sample.html / ".built").exists()


@pytest.mark.parametrize("parent", LEFT_OUT)
def test_pages_depend_on_the_same_files_wherever_the_clone_lies(parent, tmp_path):
    here = [path.relative_to(ROOT) for path in build.inputs()]
    assert Path("_toc.yml") in here and Path("book/theme/static/flashkat.css") in here
    there = tmp_path / parent / "clone"
    for name in (*here, "book/data/h200/ladder.json", "book/theme/__pycache__/flashkat_theme.pyc"):
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).touch()
    assert [path.relative_to(there) for path in build.inputs(there)] == here
