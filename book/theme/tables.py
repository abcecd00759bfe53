"""Cells of a table that fit: a date or a number in one line, names of tests in a fold."""

import re

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform

WHOLE = re.compile(r"\d{4}-\d\d-\d\d|\d[\d.,]*e[-+]?\d+")
TEST = re.compile(r"tests/\S+\.py::\w+")


class Cells(SphinxPostTransform):
    default_priority = 9
    formats = ("html",)

    def run(self, **kwargs) -> None:
        for entry in list(self.document.findall(nodes.entry)):
            for text in list(entry.findall(nodes.Text)):
                if WHOLE.search(text):
                    text.parent.replace(text, whole(text))
            names = [one for one in entry.findall(nodes.literal) if TEST.fullmatch(one.astext())]
            if names and "".join(entry.astext().split()) == "".join(one.astext() for one in names):
                fold(entry, len(names))


def whole(text: str) -> list[nodes.Node]:
    """The text with dates and numbers that no line breaks."""
    made, end = [], 0
    for found in WHOLE.finditer(text):
        made += [nodes.Text(text[end : found.start()]), nodes.inline("", found[0], classes=["fk-whole"])]
        end = found.end()
    return [*made, nodes.Text(text[end:])]


def fold(entry: nodes.entry, count: int) -> None:
    words = "1 test" if count == 1 else f"{count} tests"
    opens = nodes.raw("", f'<details class="fk-tests"><summary>{words}</summary>', format="html")
    entry.children = [opens, *entry.children, nodes.raw("", "</details>", format="html")]


def setup(app) -> None:
    app.add_post_transform(Cells)
