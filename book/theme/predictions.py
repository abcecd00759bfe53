"""Predictions in the pages: what `lab.predict` asks becomes a field, and what `lab.reveal` said waits for the number.

Without scripts the answer is folded below its question. What a reader types stays in the browser (predictions.js).
"""

import json
import re
from collections.abc import Iterator
from html import escape, unescape
from pathlib import Path

import typeset
from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]
ASKED = re.compile(r'<div class="fk-predict" data-source="([^"]+)" data-unit="([^"]*)"><p>(.*?)</p>', re.DOTALL)
REVEALED = re.compile(r'<p class="fk-reveal" data-source="([^"]+)" data-value="([^"]+)">(Measured: .*?\.)(?: |</p>)')


def html(source: str, unit: str, question: str, value: str, words: str) -> str:
    """A question with its field, which needs a script, and its answer, folded; or that it is not known here yet."""
    asked = typeset.in_text(question)
    if not value:
        return f'<div class="fk-predict"><p class="fk-predict-asks">{asked}</p><p>Not measured yet.</p></div>'
    facts = f'data-source="{source}" data-unit="{unit}" data-value="{value}"'
    label = f"Your guess, in {unit}" if unit else "Your guess"
    # pst-js-only is the theme's, for what does nothing without a script.
    return f"""<div class="fk-predict" id="predict-{source}" {facts}>
<p class="fk-predict-asks">{asked}</p>
<form class="pst-js-only" novalidate>
<label>{label} <input type="text" inputmode="decimal" autocomplete="off" size="9"></label>
<button type="submit">Compare</button>
</form>
<p class="fk-predict-said" role="status"></p>
<details><summary>Show me the answer</summary><p>{words}</p></details>
</div>"""


class Predictions(SphinxPostTransform):
    """Turn the outputs of `lab.predict` into fields that know their answer; the code stays in the notebook."""

    default_priority = 11  # after myst-nb's choice of mime type
    formats = ("html",)

    def run(self, **kwargs) -> None:
        raws = list(self.document.findall(nodes.raw))
        answers = {found[1]: found.groups()[1:] for node in raws if (found := REVEALED.search(node.astext()))}
        asked = {found[1]: found[3] for node in raws if (found := ASKED.search(node.astext()))}
        for node in raws:
            if found := REVEALED.search(node.astext()):
                question = f'<span class="fk-reveal-asked">{typeset.in_text(asked.get(found[1], ""))}</span> '
                node.replace_self(raw(node.astext().replace(">Measured:", f">{question}Measured:", 1)))
        for node in raws:
            if not (found := ASKED.search(node.astext())):
                continue
            source, unit, question = found.groups()
            node.replace_self(raw(html(source, unit, question, *answers.get(source, ("", "")))))
        for cell in list(self.document.findall(nodes.container)):
            if "tag_predict" in cell["classes"]:
                for part in [p for p in cell.children if "cell_input" in p.get("classes", ())]:
                    cell.remove(part)


def questions(path: Path) -> Iterator[tuple[str, str, str, str]]:
    """(source, unit, question, value) of what a chapter asks and answers, in order."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    texts = ["".join(o.get("data", {}).get("text/html", "")) for c in cells for o in c.get("outputs", ())]
    answers = {found[1]: found[2] for text in texts for found in REVEALED.finditer(text)}
    for text in texts:
        for source, unit, question in ASKED.findall(text):
            if source in answers:
                yield source, unit, question, answers[source]


def raw(text: str) -> nodes.raw:
    return nodes.raw("", text, format="html")


class AllPredictions(SphinxDirective):
    """`{predictions}`: every question of the book by part, with its link; a script draws the guesses above them."""

    def run(self) -> list[nodes.Node]:
        up = "../" * self.env.docname.count("/")
        begin = '<div class="fk-predictions"><div class="fk-predictions-drawing"></div>'
        begin += '<p class="fk-predictions-said" role="status"></p><p class="fk-predictions-tools"></p>'
        made = [raw(begin)]
        for part, chapters in self.parts():
            made.append(
                raw(f'<section class="fk-predictions-part" data-part="{escape(part)}"><h2>{escape(part)}</h2><ul>')
            )
            for chapter, asked in chapters:
                for source, unit, question, value in asked:
                    text = re.sub(r"</?code>", "", question)
                    facts = f'data-source="{source}" data-unit="{unit}" data-value="{value}" data-question="{text}"'
                    link = nodes.reference("", "", refuri=f"{up}{chapter}.html#predict-{source}", internal=True)
                    for place, words in enumerate(unescape(text).split("$")):
                        link += nodes.math("", words) if place % 2 else nodes.Text(words)
                    mine = raw('<span class="fk-predictions-mine"></span></li>')
                    made += [raw(f"<li {facts}>"), nodes.inline("", "", link), mine]
            made.append(raw("</ul></section>"))
        return [*made, raw("</div>")]

    def parts(self) -> Iterator[tuple[str, list]]:
        """A part's heading and what its chapters ask, of those that ask."""
        toc = self.env.external_site_map
        for name in toc:
            chapters = []
            for chapter in toc[name].child_files():
                path = ROOT / f"{chapter}.ipynb"
                if path.exists() and (asked := list(questions(path))):
                    self.env.note_dependency(str(path))
                    chapters.append((chapter, asked))
            if chapters:
                heading = re.search(r"^# (.+)$", (ROOT / f"{name}.md").read_text(encoding="utf-8"), re.MULTILINE)
                yield heading[1], chapters


def add_to_page(app, pagename, templatename, context, doctree) -> None:
    """Their script and style, where a page has predictions."""
    if 'class="fk-predict' in context.get("body", ""):
        app.add_css_file("predictions.css", priority=901)
        app.add_js_file("predictions.js")


def setup(app) -> None:
    app.add_directive("predictions", AllPredictions)
    app.add_post_transform(Predictions)
    app.connect("html-page-context", add_to_page)
