"""Cells of a table that fit and read: a date or a number in one line, 2e-07 as 2 × 10⁻⁷, names of tests in a fold."""

import re

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform
from typeset import RAISED

FLOAT = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)e([+-]\d+)\b")
SHOWN = re.compile(r'<table class="fk-table".*?</table>|<p class="fk-claim.*?</p>', re.DOTALL)  # by flashkat_lite.lab
LONG = re.compile(r"(?:[A-Z]\w*\.){3,}\w+")
WHOLE = re.compile(rf"\d{{4}}-\d\d-\d\d|\d[\d.,]*e[-+]?\d+|{LONG.pattern}")
A_NUMBER = r"[✗±+−-]?\s?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?"
NUMBERS = re.compile(rf"{A_NUMBER}(?:(?: · |, ){A_NUMBER})*\s?(?:%|×|[mµn]s|GB)?")
TEST = re.compile(r"tests/\S+\.py::\w+")


class Cells(SphinxPostTransform):
    default_priority = 9
    formats = ("html",)

    def run(self, **kwargs) -> None:
        for table in self.document.findall(nodes.table):
            align(table)
        for entry in list(self.document.findall(nodes.entry)):
            for text in list(entry.findall(nodes.Text)):
                if WHOLE.search(text):
                    text.parent.replace(text, whole(text, code=isinstance(text.parent, nodes.literal)))
            names = [one for one in entry.findall(nodes.literal) if TEST.fullmatch(one.astext())]
            if names and "".join(entry.astext().split()) == "".join(one.astext() for one in names):
                fold(entry, len(names))


def align(table: nodes.table) -> None:
    """Columns of numbers stand on the right, under a heading that does too; the first column names its rows."""
    rows = [row.children for row in table.findall(nodes.row)]
    for place, (name, *entries) in enumerate(zip(*rows)):
        said = [text for one in entries if (text := one.astext().strip()) not in ("", "–")]
        if place and all(map(NUMBERS.fullmatch, said)):
            for one in (name, *entries):
                if "text-right" not in one["classes"]:
                    one["classes"].append("text-right")


def whole(text: str, code: bool = False) -> list[nodes.Node]:
    """The text with dates and numbers that no line breaks, and names of instructions that one may; code stays code."""
    made, end = [], 0
    for found in WHOLE.finditer(text):
        made.append(nodes.Text(text[end : found.start()]))
        if LONG.fullmatch(found[0]):
            for part in re.findall(r"[^.]*\.|[^.]+$", found[0]):
                made += [nodes.Text(part), nodes.raw("", "<wbr>", format="html")]
        else:
            made.append(nodes.inline("", found[0] if code else in_print(found[0]), classes=["fk-whole"]))
        end = found.end()
    return [*made, nodes.Text(text[end:])]


def in_print(text: str) -> str:
    """The text with a computer's 2e-07 as people write it."""

    def printed(found: re.Match) -> str:
        number, power = found[1], int(found[2])
        ten = f"10{str(power).translate(RAISED)}"
        return number if power == 0 else ten if float(number) == 1 else f"{number} × {ten}"

    return FLOAT.sub(printed, text)


def print_numbers(app, pagename, templatename, context, doctree) -> None:
    if "body" in context:
        context["body"] = SHOWN.sub(lambda found: in_print(found[0]), context["body"])


def fold(entry: nodes.entry, count: int) -> None:
    words = "1 test" if count == 1 else f"{count} tests"
    opens = nodes.raw("", f'<details class="fk-tests"><summary>{words}</summary>', format="html")
    entry.children = [opens, *entry.children, nodes.raw("", "</details>", format="html")]


def setup(app) -> None:
    app.connect("html-page-context", print_numbers)
    app.add_post_transform(Cells)
