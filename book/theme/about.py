"""What a page says of the book and of itself: links' previews, the footer, how long it takes."""

import json
import re
from html import escape
from pathlib import Path
from urllib.parse import urljoin

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]
PREVIEW = "_static/preview.png"


def minutes(docname: str) -> int:
    """How long a chapter takes to read, as its head says."""
    from flashkat_theme import head

    found = re.search(r"(\d+) minutes", head(docname).get("time", ""))
    return int(found[1]) if found else 0


def in_words(total: int) -> str:
    hours, rest = divmod(total, 60)
    return f"{hours} h {rest:02d} min" if hours and rest else f"{hours} h" if hours else f"{rest} min"


class Length(SphinxDirective):
    """`{length}`: a line on how long the whole book takes; `{length} 07 08` for some chapters."""

    optional_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        wanted = self.arguments[0].split() if self.arguments else None
        paths = [path for path in sorted((ROOT / "chapters").glob("*.ipynb")) if not wanted or path.name[:2] in wanted]
        for path in paths:
            self.env.note_dependency(str(path))
        total = in_words(sum(minutes(f"chapters/{path.stem}") for path in paths))
        words = f"{len(paths)} chapters · {total} to read" + ("" if wanted else " · no GPU needed")
        return [nodes.paragraph(words, words, classes=["fk-length"])]


def preview(app, pagename, templatename, context, doctree) -> None:
    """A description, and what a link shows where it is shared."""
    from flashkat_theme import head

    if "body" not in context:
        return
    root = pagename == app.config.root_doc
    if root:
        context["docstitle"] = None  # the title has it already
    title = re.sub(r"<[^>]+>", "", context.get("title", "")) or app.config.html_title
    described = head(pagename).get("question") if pagename.startswith("chapters/") else None
    if described is None and doctree is not None:
        first = next((node for node in doctree.findall(nodes.paragraph) if len(node.astext()) > 60), None)
        described = " ".join(first.astext().split())[:300] if first is not None else ""
    described = re.sub(r"\{\w+\}`([^`<]*?)\s*(?:<[^`]*>)?`|\$([^$]*)\$", r"\1\2", described or "")
    tags = {"og:type": "article", "og:title": title, "og:description": described, "og:site_name": app.config.html_title}
    if app.config.html_baseurl:
        tags["og:url"] = urljoin(app.config.html_baseurl, app.builder.get_target_uri(pagename))
        tags["og:image"] = urljoin(app.config.html_baseurl, PREVIEW)
        tags["og:image:alt"] = "Bars of time: one backward pass, from the obvious kernel to the limit of memory."
    lines = [f'<meta name="description" content="{escape(described)}">']
    lines += [f'<meta property="{name}" content="{escape(value)}">' for name, value in tags.items() if value]
    context["metatags"] = context.get("metatags", "") + "\n".join(lines)


def citation(config, version: str) -> str:
    """An entry for BibTeX; CITATION.cff says the same."""
    fields = {"title": config.html_title, "author": f"{{{config.author}}}", "version": version}
    fields |= {"year": last_recorded()[:4], "url": config.html_baseurl}
    lines = [f"{name} = {{{value}}}" for name, value in fields.items() if value]
    return "@software{flashkat_from_scratch,\n  " + ",\n  ".join(lines) + "\n}"


def last_recorded() -> str:
    """The day of the newest record: what the book says was so then."""
    records = (ROOT / "book" / "data").glob("*/*.json")
    return max(json.loads(path.read_text(encoding="utf-8")).get("date", "") for path in records)


def footer(config) -> str:
    text = (ROOT / "flashkat_lite" / "__init__.py").read_text(encoding="utf-8")
    version = re.search('__version__ = "(.+?)"', text)[1]
    said = f"Version {version}, measured until {last_recorded()}. Text and figures: CC BY 4.0; code: MIT."
    cite = f'<summary>Cite this book</summary><pre tabindex="0">{escape(citation(config, version))}</pre>'
    return f'<p>{said}</p><details class="fk-cite">{cite}</details>'


def draw_preview(app, exception) -> None:
    """The ladder as the picture that a shared link shows, where the site has an address."""
    if exception or app.builder.format != "html" or not app.config.html_baseurl:
        return
    from flashkat_lite import records
    from flashkat_lite.lab import figures, fitting
    from tools.site import ladder

    figure = ladder.drawn(records.load("ladder"), 7.2)
    figure.set_size_inches(8, 4.2)
    fitting.finish(figure)
    figure.savefig(Path(app.outdir, PREVIEW), dpi=150)
    figures.plt.close(figure)


def setup(app) -> None:
    app.connect("config-inited", lambda app, config: config.html_theme_options.update(extra_footer=footer(config)))
    app.connect("html-page-context", preview)
    app.connect("build-finished", draw_preview)
    app.add_directive("length", Length)
