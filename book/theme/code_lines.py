"""Lines of code that are wider than the page go on below themselves, further in: none is cut, on screen or paper."""

import re
from html import unescape

LISTING = re.compile(r'(<div class="highlight"><pre>)(.*?)(</pre>)', re.DOTALL)
DEEPEST = 16  # letters; a phone shows some forty


def in_lines(html: str) -> str:
    """Each line of highlighted code as a block that knows how far in it begins; the text stays as it was."""
    return LISTING.sub(lambda found: found[1] + _lines(found[2]) + found[3], html)


def _lines(listing: str) -> str:
    lines = listing.splitlines(keepends=True)
    if any(line.count("<span") != line.count("</span>") for line in lines):
        return listing  # what spans lines cannot be parted
    return "".join(f'<span class="fk-line"{_begins(line)}>{line}</span>' for line in lines)


def _begins(line: str) -> str:
    text = unescape(re.sub(r"<[^>]*>", "", line)).rstrip()
    spaces = min(len(text) - len(text.lstrip(" ")), DEEPEST)
    return f' style="--fk-in: {spaces}"' if spaces else ""


def part(app, pagename, templatename, context, doctree) -> None:
    if "body" in context:
        context["body"] = in_lines(context["body"])


def setup(app) -> None:
    app.connect("html-page-context", part, priority=950)
