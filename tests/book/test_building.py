"""The life of a build, on a small book of its own: what stops it, what a second one does, what a reader gets."""

import json
import re
import shutil
from pathlib import Path
from unittest import mock

import ipywidgets
import nbformat
import pytest
import yaml
from ipywidgets.embed import embed_data
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from visits import FAULTS, FRAMES, TOO_WIDE, move_sliders, visit

from flashkat_lite import lab
from flashkat_lite.lab import predicting
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
ASKED = "How long does `one` launch take, $t$ < 9?", "ms", "01-launch"
PREDICT = {"tags": ["predict", "hide-input"]}
NAMES = ("Hint", "Another hint")
HINT = "Mind `tl.where`. Then $x < 1$? Try 1.5 first."
HINTS = """Some text.

<details>
<summary>Hint</summary>

The first **step**.

</details>

<details><summary>Hint</summary>

The second step, $y$.

</details>
"""
CHOICES = """**1.** Which?

- (a) the *bytes*
- (b) the additions, $n$

<details>
<summary>Answer</summary>

**(b)**, since they queue.

</details>
"""
FIGURE = {"figure": {"caption": "A bar, $x^2$ high.", "name": "fig-bar"}, "image": {"alt": "A bar"}}


def shown(function, *arguments):
    """What a cell's call shows."""
    with mock.patch.object(predicting, "display") as display:
        function(*arguments)
    return [new_output("display_data", {"text/html": call.args[0].data}) for call in display.call_args_list]


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
        new_code_cell("guess = None", id="predict", outputs=shown(lab.predict, *ASKED), metadata=PREDICT),
        new_code_cell("guess = None", id="waits", outputs=shown(lab.predict, "And?", "", "01-and"), metadata=PREDICT),
        new_code_cell("reveal", id="reveal", outputs=shown(lab.reveal, "01-launch", 0.73)),
        new_markdown_cell(HINTS, id="hints"),
        new_code_cell("def f(): ...", id="stub", metadata={"tags": ["exercise"], "exercise": {"hint": HINT}}),
        new_markdown_cell(CHOICES, id="self-test"),
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
        parts = [
            {
                "caption": "All",
                "chapters": [{"file": name} for name in ("chapters/01_one", "book/predictions", "book/references")],
            }
        ]
        (root / "_toc.yml").write_text(
            yaml.safe_dump({"format": "jb-book", "root": "book/intro", "parts": parts}), encoding="utf-8"
        )
        (root / "book" / "intro.md").write_text("# Intro\n\nA [chapter](../chapters/01_one.ipynb).\n", encoding="utf-8")
        shutil.copy(ROOT / "book" / "predictions.md", root / "book")
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
    with subtests.test("a prediction asks, keeps the guess in the browser, and then compares"):
        with visit(browser, serve(sample.html), "chapters/01_one", width=360, vendored=vendored) as (tab, faults):
            folded, below = tab.get_by_text("Measured: 0.73 ms.").all()
            assert not folded.is_visible() and below.is_visible() and tab.locator("#predict-01-launch .math").count()
            assert "guess = None" not in tab.locator(".bd-article").inner_text()
            field = tab.get_by_label("Your guess, in ms")
            for typed, said in (
                ("four", "A number of ms, please"),
                ("4 ms", "Your guess, 4 ms, is 5.5 times too high."),
            ):
                field.fill(typed)
                tab.keyboard.press("Enter")
                assert said in tab.get_by_role("status").inner_text()
            assert folded.is_visible() and below.inner_text().endswith("is 5.5 times too high.")
            tab.reload()
            assert field.input_value() == "4" and folded.is_visible()
            tab.get_by_role("link", name="Your predictions").first.evaluate("(link) => link.click()")
            assert "1 of 1 guesses given." in tab.get_by_role("status").inner_text()
            assert "× 5.5, 1 guess" in tab.locator(".fk-predictions-drawing svg").get_attribute("aria-label")
            assert tab.locator(".fk-predictions li").inner_text().endswith("is 5.5 times too high.")
            tab.locator(".fk-predictions li :is(.katex, mjx-container)").wait_for()
            assert not tab.evaluate(TOO_WIDE)
            with tab.expect_download() as saved:
                tab.get_by_role("button", name="Save to a file").press("Enter")
            kept = predicting.read(json.loads(Path(saved.value.path()).read_text(encoding="utf-8")))
            assert kept == {"01-launch": predicting.Prediction(ASKED[0].replace("`", ""), "ms", 4.0, 0.73)}
            tab.on("dialog", lambda dialog: dialog.accept())
            tab.get_by_role("button", name="Forget all").press("Enter")
            assert "No guesses in this browser yet" in tab.get_by_role("status").inner_text()
        assert not faults
    with subtests.test("hints unfold a step at a time, and a choice is made before the answer"):
        with visit(browser, serve(sample.html), "chapters/01_one", vendored=vendored) as (tab, faults):
            for steps in (("The first step.", "The second step"), ("Mind tl.where.", "Then", "Try 1.5 first.")):
                for place, words in enumerate(steps):
                    step = tab.get_by_text(words)
                    assert not step.is_visible()
                    around = step.locator("xpath=ancestor::details[1]")
                    around.locator("summary").first.press("Enter")
                    assert step.is_visible() and around.locator("summary").first.inner_text() == NAMES[place > 0]
            assert not tab.get_by_text("since they queue").is_visible()
            for choice, said in (("(a) the bytes", "Not (a)."), ("(b) the additions", "(b) is right.")):
                tab.get_by_role("button", name=choice).press("Enter")
                assert tab.locator(".fk-choices-said").inner_text() == said
            assert tab.get_by_text("since they queue").is_visible()
            assert tab.get_by_text("Not measured yet.").is_visible()
        assert not faults
    with subtests.test("without scripts answers and hints are folded"):
        with visit(browser, serve(sample.html), "chapters/01_one", scripts=False) as (tab, faults):
            folded = tab.locator(".fk-predict details p")
            assert not folded.is_visible() and not tab.get_by_label("Your guess, in ms").is_visible()
            tab.get_by_text("Show me the answer").press("Enter")
            assert folded.is_visible() and folded.inner_text() == "Measured: 0.73 ms."
            for name in ("Hint", "Another hint"):
                tab.get_by_text(name, exact=True).first.press("Enter")
            assert tab.get_by_text("The second step").is_visible() and not tab.get_by_text("since they").is_visible()
            tab.get_by_text("Answer", exact=True).press("Enter")
            assert tab.get_by_text("since they queue").is_visible()
        assert not faults
    with subtests.test("a second build does nothing until something changes"):
        assert "Nothing has changed" in sample.build().stdout
        sample.write(title="1. Another title", mystnb={"figure": FIGURE["figure"]})
        done = sample.build()
        assert "Another title" in (sample.html / "book" / "references.html").read_text(encoding="utf-8")
    with subtests.test("a figure without alternative text stops the build"):
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
