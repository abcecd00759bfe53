"""Every internal link and anchor of the built pages resolves."""

from html.parser import HTMLParser
from urllib.parse import unquote, urldefrag, urlsplit


class Page(HTMLParser):
    """The ids of a page and what it links to."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in {"id", "name"} and value:
                self.ids.add(value)
            elif name in {"href", "src"} and value and tag != "base":
                self.links.append(value)


def test_internal_links_resolve(html, built):
    pages = {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in built}
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
