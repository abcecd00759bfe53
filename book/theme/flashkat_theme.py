"""What our pages add to sphinx-book-theme: figures inlined and themed, static widgets, a style sheet, a small script.

A figure is written once, as SVG on white with the palette below, so that it reads in JupyterLab and on GitHub. Here
each colour becomes a custom property of flashkat.css, so that the same figure reads on a dark page.
"""

import json
import re
import xml.etree.ElementTree as ET
from itertools import count
from pathlib import Path
from urllib.parse import urljoin

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)
HERE = Path(__file__).resolve().parent
SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"
ET.register_namespace("", SVG)
ET.register_namespace("xlink", XLINK)

PALETTE = {
    "#1a1a1a": "ink",
    "#666666": "muted",
    "#d9d9d9": "grid",
    "#ffffff": "paper",
    "#0072b2": "blue",
    "#d55e00": "orange",
    "#009e73": "green",
    "#cc79a7": "purple",
    "#56b4e9": "sky",
    "#e69f00": "yellow",
    "#000000": "ink",
    "black": "ink",
    "white": "paper",
}
LETTERS = ("blue", "orange", "green", "purple", "sky", "yellow")  # these have a second shade that is legible as text
PAINT = ("fill", "stroke", "stop-color", "color")
FALLBACK = re.compile(r"var\(--fk-(\w+),[^)]*\)")  # a drawing that knows our properties already
COLOUR = re.compile(r"(?<=[:\s])(#[0-9a-f]{6}|black|white)(?![\w-])", re.IGNORECASE)
GENERATED = {"book/status"}
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"


class ThemedSvg:
    """An SVG document made fit to stand in a page: ids prefixed, colours mapped, named for screen readers."""

    def __init__(self, source: str, prefix: str, label: str | None = None):
        self.root = ET.fromstring(source)
        self.prefix = prefix
        self._drop_background()
        self._fit()
        for element in self.root.iter():
            self._rename(element)
            self._paint(element)
        self._scope_styles()
        self.root.set("role", "img")
        if label:
            self.root.set("aria-label", label)

    def html(self) -> str:
        """The document in a box that scrolls where the page is too narrow for it."""
        return f'<div class="fk-figure">{ET.tostring(self.root, encoding="unicode")}</div>'

    @property
    def label(self) -> str | None:
        title = self.root.find(f"{{{SVG}}}title")
        return self.root.get("aria-label") or (title.text if title is not None else None)

    def _drop_background(self) -> None:
        """Remove matplotlib's figure patch, or a first rectangle as wide as the drawing, where it is white."""
        for metadata in self.root.findall(f"{{{SVG}}}metadata"):
            self.root.remove(metadata)
        patch = self.root.find(f".//{{{SVG}}}g[@id='patch_1']")
        if patch is not None and any("fill: #ffffff" in path.get("style", "") for path in patch):
            patch.clear()
        first = next((child for child in self.root if child.tag == f"{{{SVG}}}rect"), None)
        if first is not None and first.get("fill", "").lower() in {"#ffffff", "#fff", "white"}:
            width = self.root.get("viewBox", "0 0 0 0").split()[2]
            if first.get("width") in {"100%", width}:
                self.root.remove(first)

    def _fit(self) -> None:
        """Leave the size to the style sheet, which is told the natural width."""
        width, height = (self.root.attrib.pop(name, None) for name in ("width", "height"))
        if not self.root.get("viewBox"):
            self.root.set("viewBox", f"0 0 {pixels(width):g} {pixels(height):g}")
        natural = pixels(width) if width and not width.endswith("%") else float(self.root.get("viewBox").split()[2])
        self.root.set("style", f"--fk-width: {natural:g}px; {self.root.get('style', '')}")

    def _rename(self, element: ET.Element) -> None:
        """Prefix the element's id and its references to others."""
        for name, value in element.attrib.items():
            if name == "id":
                element.set(name, self.prefix + value)
            elif name in {"href", f"{{{XLINK}}}href"} and value.startswith("#"):
                element.set(name, f"#{self.prefix}{value[1:]}")
            elif name in {"aria-labelledby", "aria-describedby"}:
                element.set(name, " ".join(self.prefix + one for one in value.split()))
            elif "url(#" in value:
                element.set(name, value.replace("url(#", f"url(#{self.prefix}"))

    def _paint(self, element: ET.Element) -> None:
        """Map the palette; presentation attributes move to the style, where custom properties are certain to work."""
        is_text = element.tag in {f"{{{SVG}}}text", f"{{{SVG}}}tspan"}
        style = element.get("style", "")
        for name in PAINT:
            if element.get(name, "").lower() in PALETTE:
                style = f"{name}: {element.attrib.pop(name)}; {style}"
        if style:
            style = FALLBACK.sub(lambda match: shade(match[1], is_text), style)
            element.set(
                "style", COLOUR.sub(lambda match: shade(PALETTE.get(match[0].lower()), is_text) or match[0], style)
            )

    def _scope_styles(self) -> None:
        """Nest style elements in the drawing's own id, since in a page they would reach everything."""
        self.root.set("id", f"{self.prefix}svg")
        for style in self.root.iter(f"{{{SVG}}}style"):
            rules = COLOUR.sub(lambda match: shade(PALETTE.get(match[0].lower())) or match[0], style.text or "")
            style.text = f"#{self.prefix}svg {{ {rules} }}"


def shade(name: str | None, is_text: bool = False) -> str | None:
    """The custom property of a colour of the palette; None where it has none."""
    return name and (f"var(--fk-{name}-text)" if is_text and name in LETTERS else f"var(--fk-{name})")


def pixels(length: str | None) -> float:
    """A CSS length in px, pt or none, in pixels."""
    number = float(re.match(r"[\d.]+", length)[0])
    return number * 4 / 3 if length.endswith("pt") else number


class InlineFigures(SphinxPostTransform):
    """Replace SVG images by their drawings."""

    default_priority = 10  # after myst-nb's choice of mime type, before Sphinx converts images
    formats = ("html",)

    def run(self, **kwargs) -> None:
        for number, image in enumerate(list(self.document.findall(nodes.image))):
            uri = image["uri"]
            if not uri.endswith(".svg") or "://" in uri:
                continue
            path = Path(self.app.srcdir, uri.lstrip("/"))
            drawing = ThemedSvg(path.read_text(encoding="utf-8"), f"f{number}-", image.get("alt"))
            if not drawing.label:
                LOGGER.warning("a figure has no alternative text (mystnb: image: alt)", location=image)
            image.replace_self(nodes.raw("", drawing.html(), format="html"))


class NameSolutions(SphinxPostTransform):
    """Say what a folded solution is; other folded cells say what _config.yml has."""

    default_priority = 190  # before myst-nb folds the cells
    formats = ("html",)

    def run(self, **kwargs) -> None:
        for cell in self.document.findall(nodes.container):
            if "tag_solution" in cell["classes"]:
                cell["prompt_show"], cell["prompt_hide"] = "Show a solution", "Hide the solution"


def theme_widgets(app, doctree) -> None:
    """Theme the drawings that static widgets hold, once their page has been read."""
    page = getattr(app.env, "nb_metadata", {}).get(app.env.docname, {})
    state = page.get("js_files", {}).get("ipywidgets_state")
    if state is None:
        return
    body = state[1]
    content = json.loads(body["body"].replace(r"<\/script>", "</script>"))
    numbers = count()

    def drawn(match: re.Match) -> str:
        drawing = ThemedSvg(match[0], f"w{next(numbers)}-")
        if not drawing.label:
            LOGGER.warning("a widget's drawing has no aria-label", location=app.env.docname)
        return drawing.html()

    for model in content["state"].values():
        if isinstance(model["state"].get("value"), str):
            model["state"]["value"] = re.sub(r"<svg\b.*?</svg>", drawn, model["state"]["value"], flags=re.DOTALL)
    body["body"] = json.dumps(content).replace("</script>", r"<\/script>")


def drop_links_to_generated(app, pagename, templatename, context, doctree) -> None:
    """A generated page is not in the repository: nothing to edit there."""
    if pagename in GENERATED:
        for group in context.get("header_buttons", []):
            kept = [button for button in group.get("buttons", []) if button.get("label") != "source-edit-button"]
            group["buttons"] = kept


def write_sitemap(app, exception) -> None:
    """sitemap.xml, where the site has an address."""
    base = app.config.html_baseurl
    if exception or not base or app.builder.format != "html":
        return
    urlset = ET.Element("urlset", xmlns="http://www.sitemaps.org/schemas/sitemap/0.9")
    for page in sorted(app.env.found_docs):
        ET.SubElement(ET.SubElement(urlset, "url"), "loc").text = urljoin(base, app.builder.get_target_uri(page))
    ET.ElementTree(urlset).write(Path(app.outdir, "sitemap.xml"), encoding="utf-8", xml_declaration=True)


def add_static_files(app, config) -> None:
    config.html_static_path.append(str(HERE / "static"))


def setup(app):
    app.connect("config-inited", add_static_files)
    app.connect("doctree-read", theme_widgets)
    app.connect("html-page-context", drop_links_to_generated, priority=900)
    app.connect("build-finished", write_sitemap)
    app.add_post_transform(InlineFigures)
    app.add_post_transform(NameSolutions)
    app.add_css_file("flashkat.css", priority=900)
    app.add_js_file("flashkat.js")
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
