"""Names that hold: numbers by chapter for figures, equations and tables, exercises as headings, links that read.

Numbers are 7.1, 7.2 … within chapter 7, so that a new figure renumbers its own chapter alone.
"""

import re
from functools import cache
from html import escape
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.transforms import SphinxTransform
from sphinx.transforms.post_transforms import SphinxPostTransform
from typeset import in_letters

ROOT = Path(__file__).resolve().parents[2]
CHAPTER = re.compile(r"chapters/(\d\d)_\w+$")
NUMBERED = re.compile(r"(\d+)\. \S")
# "chapter 7", "Chapters 10 and 11", "exercise 6.4"
MENTION = re.compile(
    r"\b(?P<word>[Cc]hapters?) (?P<one>\d{1,2})(?P<more>(?:(?:, | and | to )\d{1,2}\b)*)(?!\.?\d)"
    r"|\b(?P<task>[Ee]xercise) (?P<of>\d{1,2})\.(?P<number>\d)\b"
)


@cache
def chapters() -> dict[int, str]:
    """The name of each chapter's page, by its number."""
    paths = sorted((ROOT / "chapters").glob("[0-9][0-9]_*.ipynb"))
    return {int(path.name[:2]): f"chapters/{path.stem}" for path in paths}


def number_by_chapter(app, env) -> None:
    """Sphinx counts figures and equations through the book; here each page counts its own."""
    for name, kinds in env.toc_fignumbers.items():
        of = CHAPTER.match(name)
        for numbers in kinds.values():
            for place, element in enumerate(sorted(numbers, key=numbers.get), 1):
                numbers[element] = (int(of[1]), place) if of else (place,)


class Exercises(SphinxTransform):
    """Make a heading with an address of "**7.1 Count the work** (2 points). …", which begins an exercise."""

    default_priority = 300

    def apply(self, **kwargs) -> None:
        if not CHAPTER.match(self.env.docname):
            return
        for parent in list(self.document.findall(nodes.section)):
            starts = [child for child in parent.children if title_of(child)]
            for start in starts:
                name, rest = title_of(start)
                children = parent.children[parent.index(start) + 1 :]
                ends = next(
                    (k for k, c in enumerate(children) if title_of(c) or isinstance(c, nodes.section)), len(children)
                )
                section = nodes.section(
                    "", nodes.title(name, name), ids=["exercise-" + name.split()[0].replace(".", "-")]
                )
                section["classes"].append("fk-exercise")
                paragraph = nodes.paragraph("", "", *rest)
                section += [paragraph, *children[:ends]]
                for child in children[:ends]:
                    parent.remove(child)
                parent.replace(start, section)


def title_of(node: nodes.Node) -> tuple[str, list[nodes.Node]] | None:
    """Of a paragraph that begins an exercise, its name and what follows it."""
    if not isinstance(node, nodes.paragraph) or not node.children:
        return None
    first = next((child for child in node.children if child.astext().strip()), None)
    if not isinstance(first, nodes.strong) or not re.match(r"\d+\.\d+ \w", first.astext()):
        return None
    rest = [child.deepcopy() for child in node.children[node.index(first) + 1 :]]
    if rest and isinstance(rest[0], nodes.Text):
        rest[0] = nodes.Text(
            re.sub(r"^\s*\((\d+ points?[^)]*)\)\.?\s*", lambda m: f"{m[1]}. ".capitalize(), str(rest[0]))
        )
    return first.astext(), rest


class ChapterLinks(SphinxPostTransform):
    """Within a sentence a chapter is "chapter 7", linked, and not "7. The atomic backward"."""

    default_priority = 15  # references are resolved
    formats = ("html",)

    def run(self, **kwargs) -> None:
        for reference in list(self.document.findall(nodes.reference)):
            found = NUMBERED.match(reference.astext())
            paragraph = reference.parent
            if (
                found is None
                or int(found[1]) not in chapters()
                or not isinstance(paragraph, nodes.paragraph | nodes.caption)
            ):
                continue
            title = nodes.unescape(reference.astext())
            if not reference.get("internal") or not self._names(int(found[1]), title):
                continue
            before = "".join(child.astext() for child in paragraph.children[: paragraph.index(reference)])
            after = "".join(child.astext() for child in paragraph.children[paragraph.index(reference) + 1 :])
            if not (before + after).strip():
                continue  # a link by itself, as on a card
            starts = not before.strip() or re.search(r"[.?!:]\s+$", before)
            word = "" if re.search(r"[Cc]hapters?\s+$", before) else "Chapter " if starts else "chapter "
            reference.children = []
            reference += nodes.inline("", f"{word}{found[1]}")
            reference["reftitle"] = title
        for text in list(self.document.findall(nodes.Text)):
            if isinstance(text.parent, nodes.paragraph | nodes.emphasis | nodes.strong | nodes.caption | nodes.entry):
                self._link(text)

    def _names(self, number: int, title: str) -> bool:
        of = self.env.titles.get(chapters()[number])
        return of is not None and of.astext() == title

    def _link(self, text: nodes.Text) -> None:
        parts, done, said = [], 0, str(text)
        for found in MENTION.finditer(said):
            number = int(found["one"] or found["of"])
            if number not in chapters() or chapters()[number] == self.env.docname:
                continue
            parts.append(nodes.Text(said[done : found.start()]))
            if found["task"]:
                anchor = f"#exercise-{number}-{found['number']}"
                parts.append(self._reference(number, found[0], anchor))
            else:
                parts.append(self._reference(number, f"{found['word']} {found['one']}"))
                for between, two in re.findall(r"(\D+)(\d+)", found["more"]):
                    known = int(two) in chapters() and chapters()[int(two)] != self.env.docname
                    parts += [nodes.Text(between), self._reference(int(two), two) if known else nodes.Text(two)]
            done = found.end()
        if parts:
            text.parent.replace(text, [*parts, nodes.Text(said[done:])])

    def _reference(self, number: int, words: str, anchor: str = "") -> nodes.reference:
        uri = self.app.builder.get_relative_uri(self.env.docname, chapters()[number]) + anchor
        title = self.env.titles[chapters()[number]].astext()
        return nodes.reference("", words, refuri=uri, internal=True, reftitle=title)


class TableNumbers(SphinxPostTransform):
    """Number a chapter's tables, and name them by the heading above where they have no caption of their own."""

    default_priority = 9
    formats = ("html",)

    def run(self, **kwargs) -> None:
        of = CHAPTER.match(self.env.docname)
        if not of:
            return
        count = 0
        for raw in list(self.document.findall(nodes.raw)):
            text = raw.astext()
            if 'class="fk-table"' not in text or "widget-view" in text:
                continue
            section = raw
            while not isinstance(section, nodes.section):
                section = section.parent
            heading = escape(section.next_node(nodes.title).astext())

            def named(found: re.Match, heading: str = heading) -> str:
                nonlocal count
                count += 1
                number = f"{int(of[1])}.{count}"
                words = found["own"] or heading
                link = f'<a class="headerlink" href="#table-{number}" title="Link to this table">#</a>'
                caption = f'<caption><span class="caption-number">Table {number}</span> {words}{link}</caption>'
                return f'<table class="fk-table" id="table-{number}">{caption}'

            table = re.compile(r'<table class="fk-table">(?:<caption>(?P<own>.*?)</caption>)?', re.DOTALL)
            text = table.sub(named, text).replace(
                '<table class="fk-table"', '<div class="fk-scroll"><table class="fk-table"'
            )
            text = text.replace("</table>", "</table></div>")
            raw.replace_self(nodes.raw("", text, format="html", classes=raw["classes"]))


TERM = re.compile(r'<a class="reference internal" href="(?P<to>[^"]*glossary\.html#(?P<id>term-[^"]+))"')


def definitions(env) -> dict[str, str]:
    """What each term of the glossary means, in its first sentences and without citations, by its id."""
    if not hasattr(env, "fk_definitions"):
        found = {}
        for item in env.get_doctree("book/glossary").findall(nodes.definition_list_item):
            definition = next(iter(item.findall(nodes.definition)))
            for reference in list(definition.findall(pending_xref)):
                if reference["refdomain"] == "cite":  # not resolved yet: its text is the bare key
                    reference.parent.remove(reference)
            for formula in list(definition.findall(nodes.math)):
                formula.replace_self(nodes.Text(in_letters(formula.astext())))
            meaning = " ".join(definition.astext().split())
            meaning = re.sub(r"\s+([.,;:)])", r"\1", meaning)
            for term in item.findall(nodes.term):
                found |= dict.fromkeys(term["ids"], meaning)
        env.fk_definitions = found
    return env.fk_definitions


# A citation's link shows the reference's title as its author wrote it, for LaTeX.
TITLE = re.compile(r'(?<= title=")[^"$]*\$[^"]*(?=")')


def explain_terms(app, pagename, templatename, context, doctree) -> None:
    """Give each link to the glossary the definition, which opens on hover and focus."""
    if "body" not in context:
        return
    context["body"] = TITLE.sub(
        lambda title: re.sub(r"\$([^$]+)\$", lambda found: in_letters(found[1]), title[0]), context["body"]
    )
    if pagename == "book/glossary":
        return

    def explained(found: re.Match) -> str:
        meaning = definitions(app.env).get(found["id"])
        return (
            f'{found[0]} data-means="{escape(meaning)}" aria-description="{escape(meaning)}"' if meaning else found[0]
        )

    context["body"] = TERM.sub(explained, context["body"])


def setup(app) -> None:
    app.connect("env-check-consistency", lambda app, env: number_by_chapter(app, env))
    app.connect("html-page-context", explain_terms)
    app.add_transform(Exercises)
    app.add_post_transform(ChapterLinks)
    app.add_post_transform(TableNumbers)
