"""What the search knows of a page: of tables that chapters show the words, cell by cell; not what drawings say."""

import functools
import re

from docutils import nodes
from sphinx.search import WordCollector
from sphinx.search.en import SearchEnglish

# Twice on a page, as words of figures are for phones; and what is no text.
UNREAD = re.compile(r"<(svg|style|script)\b.*?</\1>", re.DOTALL)
MARKUP = re.compile(r"<[^<]+?>")


def words(html: str, split) -> list[str]:
    """The words of HTML; numbers of a table find nothing that one would look for."""
    return [word for word in split(MARKUP.sub(" ", UNREAD.sub(" ", html))) if not word.isdecimal()]


def setup(app) -> None:
    visit = WordCollector.dispatch_visit

    def dispatch_visit(self, node: nodes.Node) -> None:
        if isinstance(node, nodes.raw):
            if "html" in node.get("format", "").split():
                self.found_words.extend(words(node.astext(), self.lang.split))
            raise nodes.SkipNode
        visit(self, node)

    WordCollector.dispatch_visit = dispatch_visit
    SearchEnglish.stem = functools.cache(SearchEnglish.stem)  # which Sphinx asks for anew on each page
