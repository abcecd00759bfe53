"""Exercises and self-tests in the pages: hints unfold a step at a time, and a choice is made before the answer is read.

All are details elements, which work by keyboard and without scripts; exercises.js makes choices of lists.
"""

import re
from html import escape

import typeset
from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform

SENTENCE = re.compile(r"(?<=[.?!]) +(?=\S)")
FIRST, NEXT = "Hint", "Another hint"
# Hints of an exercise's text, one after another
HINT = r"<details>\s*<summary>(?:Hint|Another hint)</summary>((?:(?!</?details\b).)*)</details>"
HINTS = re.compile(rf"{HINT}(?:\s*{HINT})+", re.DOTALL)
# A list of (a), (b), … whose answer begins with one of them
CHOICES = re.compile(
    r"<ul class=\"simple\">(?P<items>(?:\s*<li><p>\([a-h]\) (?:(?!</?[uo]l\b).)*?</li>)+\s*</ul>)"
    r"(?=\s*<details>\s*<summary>Answer</summary>\s*<p><strong>\((?P<right>[a-h])\))",
    re.DOTALL,
)


def folded(steps: list[str]) -> str:
    """HTML of steps, each folded in the one before."""
    inner = ""
    for place, step in reversed(list(enumerate(steps))):
        inner = f"<details><summary>{NEXT if place else FIRST}</summary>{step}{inner}</details>"
    return inner


def paragraph(step: str) -> str:
    """A step of plain text, with `code` and $maths$, as HTML."""
    text = re.sub(r"`([^`]+)`", r'<code class="literal">\1</code>', escape(step, quote=False))
    return f"<p>{typeset.in_text(text)}</p>"


class Hints(SphinxPostTransform):
    """Show below an exercise's stub the hint of its metadata: a step for each sentence."""

    default_priority = 11
    formats = ("html",)

    def run(self, **kwargs) -> None:
        for cell in list(self.document.findall(nodes.container)):
            if "tag_exercise" in cell["classes"]:
                hint = cell.get("cell_metadata", {}).get("exercise", {}).get("hint", "")
                if hint:
                    made = folded([paragraph(step) for step in SENTENCE.split(hint)])
                    cell.parent.insert(cell.parent.index(cell) + 1, nodes.raw("", made, format="html"))


def unfold_in_steps(body: str) -> str:
    """Hints that follow one another in the text, each folded in the one before."""
    return HINTS.sub(lambda run: folded(re.findall(HINT, run[0], re.DOTALL)), body)


def mark_choices(body: str) -> str:
    """Lists of choices, with the right one as a fact for the script."""
    return CHOICES.sub(lambda f: f'<ul class="simple fk-choices" data-right="{f["right"]}">{f["items"]}', body)


def change_page(app, pagename, templatename, context, doctree) -> None:
    if "<details>" in context.get("body", ""):
        context["body"] = mark_choices(unfold_in_steps(context["body"]))
        if "fk-choices" in context["body"]:
            app.add_css_file("exercises.css", priority=901)
            app.add_js_file("exercises.js")


def setup(app) -> None:
    app.add_post_transform(Hints)
    app.connect("html-page-context", change_page)
