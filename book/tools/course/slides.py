"""`make slides`: a deck for each session of the guide, in _build/slides, from the notebooks' own figures and sentences.

A slide for each section of a chapter: its first sentence, what was measured, its figures, the questions of its
predictions. The guide's table says which chapters a session has and where its activities are, and the guide's notes are
the speaker's (key S). A markdown cell tagged `slide` is shown whole, a cell tagged `no-slide` not at all. Decks ask no
network for anything.
"""

import functools
import html
import re
import subprocess
import sys

from markdown_it import MarkdownIt

from .. import notebooks
from ..paths import BUILD, ROOT
from ..site import vendor

FOLDER = BUILD / "slides"
REVEAL = vendor.Package(
    "reveal.js",
    "5.2.1",
    "sha512-r7//6mIM5p34hFiDMvYfXgyjXqGRta+/psd9YtytsgRlrpRzFv4RbH76TXd2qD+7ZPZEbpBDhdRhJaFgfQ7zNQ==",
    (
        ("package/dist/reveal.js", "reveal"),
        ("package/dist/reveal.css", "reveal"),
        ("package/plugin/notes/notes.js", "reveal"),
        ("package/LICENSE", "reveal"),
    ),
)
MATHJAX = vendor.Package(
    "mathjax",
    "3.2.2",
    "sha512-Bt+SSVU8eBG27zChVewOicYs7Xsdt40qm4+UpHyX7k0/O9NliPc+x77k1/FEsPsjKPZGJvtRZM1vO+geW0OhGw==",
    (("package/es5/tex-svg.js", "mathjax"), ("package/LICENSE", "mathjax")),
)
ROLE = re.compile(r"\s*\{(?:eq|cite|cite:\w+|numref|ref|doc|term)\}`([^`<]*)(?:<[^`]*>)?`")
MATH = re.compile(r"\$\$?[^$]+\$\$?")
CLAIMED = re.compile(r"^\W+ (?=\w)| ?\((claimed|measured|recorded)[^)]*\)")  # how a claim was checked
LEFT_OUT = re.compile(r"Recap|Exercises|Self-test|Further reading|What still hurts", re.IGNORECASE)
ACTIVITY = re.compile(r"\[([^\]]+)\]\(\.\./chapters/(\w+)\.ipynb(?:#([\w-]+))?\)(?: \((\d+)\))?")
STYLE = """
body, .reveal { font: 30px/1.35 "Source Serif 4", Georgia, serif; background: #fdfcf9; color: #1d1d1b }
.reveal .slides section { text-align: left; padding: 0 1rem; max-height: 100%; overflow: auto }
.reveal h1, .reveal h2 { font-family: Inter, sans-serif; line-height: 1.15; margin: 0 0 .5em }
.reveal h1 { font-size: 1.7em } .reveal h2 { font-size: 1.25em } .reveal p, .reveal ul { margin: .5em 0 }
.reveal .figure svg { display: block; max-width: 100%; max-height: 520px; margin: auto; background: white }
.reveal .claim { font-size: .8em; border-left: 4px solid #8a6d1d; padding-left: .6em }
.reveal small { font-size: .6em }
.reveal table { border-collapse: collapse; font-size: .75em }
.reveal td, .reveal th { padding: .1em .6em; text-align: left }
a { color: inherit } aside.notes { display: none }
"""
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="stylesheet" href="vendor/reveal/reveal.css"><style>{style}</style></head>
<body><div class="reveal"><div class="slides">
{slides}
</div></div>
<script>window.MathJax = {{tex: {{inlineMath: [["$", "$"]]}}, svg: {{fontCache: "local"}}}}</script>
<script src="vendor/mathjax/tex-svg.js" defer></script>
<script src="vendor/reveal/reveal.js"></script><script src="vendor/reveal/notes.js"></script>
<script>
window.Reveal && Reveal.initialize({{hash: true, center: false, width: 1200, height: 750, plugins: [RevealNotes]}})
</script>
</body></html>
"""


def rendered(text):
    """MyST as HTML for a slide: without what only a book can resolve; formulas are left to MathJax."""
    kept = []

    def keep(found):
        kept.append(html.escape(found[0], quote=False))
        return f"\x02{len(kept) - 1}\x03"

    text = MATH.sub(keep, ROLE.sub("", text))
    made = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    return re.sub("\x02(\\d+)\x03", lambda found: kept[int(found[1])], made)


def first_sentence(text):
    """The first sentence of a paragraph, whole with its formulas; a decimal point ends none."""
    text = " ".join(text.split())
    ends = [found.end() for found in re.finditer(r"[.?!][*_)]*(?=\s|$)", MATH.sub(_dots, text))]
    return text[: next((end for end in ends if end > 30), len(text))]  # a few words in bold are none


def _dots(formula):
    return "x" * (len(formula[0]) - 1) + ("." if formula[0].rstrip("$").endswith(".") else "x")


def slug(heading):
    """A heading's anchor in the pages."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def headings(notebook):
    """A chapter's headings, in order."""
    return [line.lstrip("#").strip() for cell in notebook.cells if cell.cell_type == "markdown"
            for line in cell.source.splitlines() if re.match(r"#{1,3} ", line)]  # fmt: skip


class Deck:
    """The slides of one session."""

    def __init__(self, title):
        self.title, self.slides = title, []

    def add(self, *parts, notes=""):
        note = f'<aside class="notes">{rendered(notes)}</aside>' if notes else ""
        self.slides.append(f"<section>{''.join(parts)}{note}</section>")

    def append(self, heading, parts):
        """More on the last slide, if it is this section's opening; else on one of its own."""
        if self.slides[-1].startswith(f"<section>{heading}") and 'class="figure"' not in self.slides[-1]:
            start, note, rest = self.slides[-1].removesuffix("</section>").partition('<aside class="notes">')
            self.slides[-1] = f"{start}{parts}{note}{rest}</section>"
        else:
            self.add(heading, parts)

    def page(self):
        return PAGE.format(title=html.escape(self.title), style=STYLE, slides="\n".join(self.slides))


def chapter_slides(deck, notebook, stem, notes):
    """Adds a chapter: its question, its sections, the guide's questions for discussion with answers in the notes."""
    first = notebook.cells[0].source
    name = headings(notebook)[0]
    question = re.search(r"\*\*Question\.\*\*\s*(.+?)(?:\n\s*\n|\n:::|\Z)", first, re.DOTALL)
    gpu = notebook.metadata.get("flashkat", {}).get("gpu")
    measured = f"<p><small>Measured on {html.escape(gpu)}.</small></p>" if gpu else ""
    asked = rendered(question[1]) if question else ""
    deck.add(f"<h1>{html.escape(name)}</h1>", asked, measured, notes=notes.get("speaker", ""))
    heading, skipped = name, False
    for cell in notebook.cells:
        tags = notebooks.tags(cell)
        if "no-slide" in tags or {"solution", "check", "exercise"} & {*tags}:
            continue
        if cell.cell_type == "markdown":
            if "slide" in tags:
                deck.add(rendered(cell.source))
                continue
            for part in re.split(r"^(?=#{2,3} )", cell.source, flags=re.MULTILINE):
                if found := re.match(r"#{2,3} (.+)\n*", part):
                    heading, skipped = found[1].strip(), bool(LEFT_OUT.match(found[1]))
                    text = part[found.end() :].strip()
                    if not skipped:
                        deck.add(_title(heading, stem), _opening(heading, text), notes=_plain(text))
        elif not skipped:
            _outputs(deck, cell, heading, stem)
    for question, answer in notes.get("discuss", ()):
        deck.add("<h2>To discuss</h2>", rendered(question), notes=answer)


def _title(heading, stem):
    return f'<h2><a href="../html/chapters/{stem}.html#{slug(heading)}">{rendered(heading)[3:-5]}</a></h2>'


def _opening(heading, text):
    """A section's first sentence; of the summary, its list."""
    if heading.lower() in ("summary", "result"):
        return rendered(text)
    paragraph = next(
        (part for part in text.split("\n\n") if part and not part.startswith((":::", "```", "|", "$$", "(", "#"))), ""
    )
    return rendered(first_sentence(paragraph))


def _plain(text):
    return re.sub(r"^:::.*$", "", text, flags=re.MULTILINE)


def _outputs(deck, cell, heading, stem):
    """A slide for a figure, for what is to be guessed, and for claims, with the sentence that each has."""
    if "predict" in notebooks.tags(cell):
        for question in re.findall(r'lab\.predict\(\s*"((?:[^"\\]|\\.)+)"', cell.source):
            deck.add("<h2>Your number first</h2>", rendered(question))
        return
    figure = cell.metadata.get("mystnb", {}).get("figure")
    claims = []
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        if figure and "image/svg+xml" in data:
            drawn = "".join(data["image/svg+xml"])
            drawn = drawn[max(0, drawn.find("<svg")) :]
            caption = rendered(first_sentence(figure.get("caption", "")))
            deck.add(
                _title(heading, stem), f'<div class="figure">{drawn}</div>', caption, notes=figure.get("caption", "")
            )
        elif "lab.claim(" in cell.source and "text/html" in data:
            claim = " ".join(re.sub(r"<[^>]*>", " ", "".join(data["text/html"])).split())
            claims.append(CLAIMED.sub("", claim))
    for at in range(0, len(claims), 4):
        lines = "".join(f'<p class="claim">{claim}</p>' for claim in claims[at : at + 4])  # escaped already
        deck.append(_title(heading, stem), lines)


# The guide


def guide():
    return (ROOT / "book" / "teaching.md").read_text(encoding="utf-8")


def sessions(text):
    """[(number, [chapter's number], before class, [(activity, chapter, anchor)], homework)] of the guide's table."""
    table = text.partition("## Ten sessions")[2].partition("\n## ")[0]
    found = []
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if len(cells) == 6 and cells[0].isdigit():
            activities = [(words.strip(), *_place(words)) for words in re.split(r";\s+", cells[3])]
            found.append((int(cells[0]), re.findall(r"\d\d", cells[1]), cells[2], activities, cells[4]))
    return found


def _place(words):
    link = ACTIVITY.search(words)
    return (link[2], link[3]) if link else ("", "")


def notes_of(text):
    """{chapter's number: {"speaker": …, "discuss": [(question, answer)]}} of the guide's notes on chapters."""
    found = {}
    for part in re.split(r"^### (?=\d+\. )", text.partition("\n## Ten sessions")[0], flags=re.MULTILINE)[1:]:
        number, _, body = part.partition(". ")
        body, _, discuss = body.partition("\n")[2].partition("**Discuss.**")
        asked = r"^\s*\*(.+?)\*\n:::\{admonition\} Answer\n:class: dropdown\n(.*?)\n:::"
        pairs = re.findall(asked, discuss, re.MULTILINE | re.DOTALL)
        found[f"{int(number):02}"] = {"speaker": body.strip(), "discuss": pairs}
    return found


def deck_of(session, notes, read):
    number, chapters, before, activities, homework = session
    deck = Deck(f"Session {number}")
    plan = "".join(f"<li>{_linked(words)}</li>" for words, *_ in activities)
    notes_first = f"Before class: {before}\n\nBegin with the self-test (10); end with next week's prediction (5)."
    told = f"<ul>{plan}</ul>", f"<p><small>Homework: {html.escape(homework)}</small></p>"
    deck.add(f"<h1>Session {number}</h1>", *told, notes=notes_first)
    for chapter in chapters:
        (path,) = notebooks.select([chapter])
        chapter_slides(deck, read(path), path.stem, notes.get(chapter, {}))
    deck.add("<h2>Next week</h2>", rendered("Write down your prediction before you read on."))
    return deck


def _linked(words):
    def link(one):
        return f"[{one[1]}](../html/chapters/{one[2]}.html#{one[3] or ''})" + (f" ({one[4]})" if one[4] else "")

    made = ACTIVITY.sub(link, words)
    return rendered(made).strip().removeprefix("<p>").removesuffix("</p>")


def main():
    text, read = guide(), functools.cache(notebooks.read)
    notes = notes_of(text)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for session in sessions(text):
        place = FOLDER / f"session-{session[0]:02}.html"
        place.write_text(deck_of(session, notes, read).page(), encoding="utf-8")
        print(place)
    try:
        vendor.fetch((REVEAL, MATHJAX), FOLDER / "vendor")
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(
            f"reveal.js could not be fetched by npm ({type(error).__name__}): "
            "the decks are pages to scroll, without formulas."
        )
