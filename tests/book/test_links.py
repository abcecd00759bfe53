"""Every internal link and anchor of the built pages resolves; headings differ, and attributes hold plain words."""

import re
from collections import Counter
from html.parser import HTMLParser
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

SAID = {"title", "alt", "aria-label", "aria-description", "data-means", "content", "placeholder"}


class Page(HTMLParser):
    """The ids of a page, what it links to, its headings, and the words of its attributes."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.said, self.headings, self.within = set(), [], [], [], False
        self.feed(text)

    def handle_data(self, words):
        if self.within:
            self.headings[-1] += words

    def handle_endtag(self, tag):
        self.within = self.within and tag not in ("h2", "h3")

    def handle_starttag(self, tag, attributes):
        if tag in ("h2", "h3"):
            self.within = True
            self.headings.append(tag)
        for name, value in attributes:
            if name in {"id", "name"} and value:
                self.ids.add(value)
            elif name in {"href", "src"} and value and tag != "base":
                self.links.append(value)
            elif name in SAID and value:
                self.said.append(value)


@pytest.fixture(scope="module")
def pages(built):
    return {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in built}


def test_headings_of_a_page_differ_and_attributes_hold_no_formulas(pages, html):
    faults = []
    for path, page in pages.items():
        where = path.relative_to(html)
        twice = [name for name, count in Counter(map(str.lower, page.headings)).items() if count > 1]
        faults += [f"{where}: a heading twice: {name}" for name in twice]
        raw = [words for words in page.said if re.search(r"\$[^$]+\$|\\[a-z]+\b|\w[\^_]\{", words)]
        faults += [f"{where}: a formula's source: {words[:90]}" for words in raw]
    assert sum(len(page.headings) for page in pages.values()) > 300 and not faults, "\n".join(faults)


def test_internal_links_resolve(pages, html):
    broken = []
    for path, page in pages.items():
        for link in page.links:
            target, anchor = urldefrag(link)
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not file.is_file():
                broken.append(f"{path.relative_to(html)}: {link}")
            elif anchor and file in pages and unquote(anchor) not in pages[file].ids:
                broken.append(f"{path.relative_to(html)}: {link} (no such anchor)")
    assert pages
    assert not broken, "\n".join(broken)


def test_no_placeholder_address(built):
    for path in built:
        assert "example.com" not in path.read_text(encoding="utf-8"), path.name


def test_every_reference_says_where_it_can_be_found(root):
    entries = (root / "book" / "references.bib").read_text(encoding="utf-8").split("\n@")
    assert len(entries) > 40
    for entry in entries:
        assert any(f"\n  {word}" in entry for word in ("doi", "eprint", "url", "isbn")), entry.partition(",")[0]
