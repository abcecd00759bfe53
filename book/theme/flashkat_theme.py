"""What our pages add to sphinx-book-theme: figures inlined and themed, sliders, a style sheet, a small script.

A figure is written once, as SVG on white with the palette below, so that it reads in JupyterLab and on GitHub. Here
each colour becomes a custom property of flashkat.css, so that the same figure reads on a dark page.

A page needs no script to be read: its colours follow the reader's system, and no script holds up its first paint.
"""

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from functools import cache
from html import escape, unescape
from itertools import count
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import about
import addresses
import chapter_pages
import code_lines
import docstrings
import exercises
import predictions
import searching
import tables
import tinycss2
import typeset
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

LOGGER = logging.getLogger(__name__)
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LAB = ROOT / "flashkat_lite" / "lab"
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
# A colour by itself, or the property of one, in a drawing that knows our properties already, with its fallback
PROPERTY = r"var\(--fk-(?P<name>[a-z]+)(?P<text>-text)?(?:,[^)]*)?\)"
COLOUR = re.compile(rf"{PROPERTY}|(?<=[:\s])(#[0-9a-f]{{6}}|black|white)(?![\w-])", re.IGNORECASE)
# What a drawing shows where no style sheet is: in a reader's view, or cut out of its page.
ALONE = {name: colour for colour, name in reversed(PALETTE.items())} | {"ink": "currentColor"}
GENERATED = {"book/status"}


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

    def html(self, classes: str = "fk-figure") -> str:
        """The document in a box that scrolls where the page is too narrow for it."""
        return f'<div class="{classes}">{ET.tostring(self.root, encoding="unicode")}</div>'

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
            element.set("style", painted(style, is_text))

    def _scope_styles(self) -> None:
        """Nest style elements in the drawing's own id, since in a page they would reach everything."""
        self.root.set("id", f"{self.prefix}svg")
        for style in self.root.iter(f"{{{SVG}}}style"):
            style.text = f"#{self.prefix}svg {{ {painted(style.text or '')} }}"


def painted(style: str, is_text: bool = False) -> str:
    """The declarations with each colour of the palette as its custom property; other colours stay."""

    def paint(found: re.Match) -> str:
        name = found["name"] or PALETTE.get(found[0].lower())
        return shade(name, is_text or bool(found["text"])) or found[0]

    return COLOUR.sub(paint, style)


def shade(name: str | None, is_text: bool = False) -> str | None:
    """The custom property of a colour of the palette, and the colour itself for where no property is set."""
    if name not in ALONE:
        return None
    # White words stand on a colour; a white ground would hide words in currentColor on a reader's dark page.
    alone = "transparent" if name == "paper" and not is_text else ALONE[name]
    return f"var(--fk-{name}{'-text' if is_text and name in LETTERS else ''}, {alone})"


def pixels(length: str | None) -> float:
    """A CSS length in px, pt or none, in pixels."""
    number = float(re.match(r"[\d.]+", length)[0])
    return number * 4 / 3 if length.endswith("pt") else number


def for_phones(source: str) -> str | None:
    """The drawing for phones that `lab.figures` puts into another's metadata."""
    found = re.search(r'<metadata id="for-phones">(.*?)</metadata>', source, re.DOTALL)
    return unescape(found[1]) if found else None


def both_widths(
    source: str, prefix: str, label: str | None = None, narrow: str | None = None
) -> tuple[str, str | None]:
    """A drawing for a page, beside it the one for phones if there is one; and the name of both."""
    drawing, narrow = ThemedSvg(source, prefix, label), narrow or for_phones(source)
    if not narrow:
        return drawing.html(), drawing.label
    phones = ThemedSvg(narrow, f"n{prefix}", drawing.label).html("fk-figure fk-narrow")
    return drawing.html("fk-figure fk-wide") + phones, drawing.label


class InlineFigures(SphinxPostTransform):
    """Replace SVG images by their drawings; for a phone by the one in the metadata or NAME-narrow.svg, if any."""

    default_priority = 10  # after myst-nb's choice of mime type, before Sphinx converts images
    formats = ("html",)

    def run(self, **kwargs) -> None:
        for number, image in enumerate(list(self.document.findall(nodes.image))):
            uri = image["uri"]
            if not uri.endswith(".svg") or "://" in uri:
                continue
            path = Path(self.app.srcdir, uri.lstrip("/"))
            beside = path.with_name(f"{path.stem}-narrow.svg")
            source = path.read_text(encoding="utf-8")
            narrow = beside.read_text(encoding="utf-8") if beside.exists() else None
            html, label = both_widths(source, f"f{number}-", image.get("alt"), narrow)
            if not label:
                LOGGER.warning("a figure has no alternative text (mystnb: image: alt)", location=image)
            image.replace_self(nodes.raw("", html, format="html"))


# Figures that move


class Motions(SphinxPostTransform):
    """Leave of a figure of interactive.js its box and its fallback: script and style are the page's."""

    default_priority = 11
    formats = ("html",)

    def run(self, **kwargs) -> None:
        for node in list(self.document.findall(nodes.raw)):
            if found := MOTION.search(node.astext()):
                node.replace_self(nodes.raw("", motion(*found.groups()), format="html"))


MOTION = re.compile(r'<div class="fk-motion" data-figure="(\w+)" data-settings="([^"]*)">')


def motion(name: str, settings: str) -> str:
    """A figure's box, with the fallback that interactive.js replaces."""
    fallback = (LAB / "interactive" / "fallback" / f"{name}.html").read_text(encoding="utf-8")
    return f'<div class="fk-motion" data-figure="{name}" data-settings="{settings}">{fallback}</div>'


class InteractiveFigure(SphinxDirective):
    """`{interactive} race`: the figure of that name, as a chapter shows it, on another page; captioned."""

    required_arguments = 1
    option_spec = {"name": str}  # noqa: RUF012
    has_content = True

    def run(self) -> list[nodes.Node]:
        wanted = self.arguments[0]
        for path in sorted((ROOT / "chapters").glob("*.ipynb")):
            for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
                for output in cell.get("outputs", []):
                    for name, settings in MOTION.findall("".join(output.get("data", {}).get("text/html", ""))):
                        if name == wanted:
                            return [self._figure(path, motion(name, settings))]
        raise self.error(f"no chapter shows a figure {wanted!r}")

    def _figure(self, path: Path, html: str) -> nodes.figure:
        self.env.note_dependency(str(path))
        caption = nodes.caption()
        parsed = nodes.Element()
        self.state.nested_parse(self.content, self.content_offset, parsed)
        caption += parsed[0].children
        figure = nodes.figure("", nodes.raw("", html, format="html"), caption, align="default")
        self.add_name(figure)
        return figure


# Sliders


class Sliders(SphinxPostTransform):
    """Frames under a slider as plain HTML: a page needs no library to move them, and no script to show the first."""

    default_priority = 12
    formats = ("html",)

    def run(self, **kwargs) -> None:
        state, drawings = widget_state(self.env), count()
        typesets = self.app.builder.math_renderer_name == "katex"

        def formula(match: re.Match) -> str:
            return f'<span class="math">{typeset.typeset(unescape(match[1]))}</span>' if typesets else match[0]

        def drawn(match: re.Match) -> str:
            html, label = both_widths(match[0], f"w{next(drawings)}-")
            if not label:
                LOGGER.warning("a widget's drawing has no aria-label", location=self.env.docname)
            return html

        for node in list(self.document.findall(nodes.raw)):
            if found := WIDGET_VIEW.search(node.astext()):
                html = "".join(plain(state, found[1]))
                if not html:
                    LOGGER.warning("a page shows of widgets only frames under a slider", location=node)
                html = re.sub(r"<svg\b.*?</svg>", drawn, html, flags=re.DOTALL)
                html = re.sub(r'<span class="math">\\\((.*?)\\\)</span>', formula, html)
                node.replace_self(nodes.raw("", f'<div class="fk-moved">{html}</div>', format="html"))


WIDGET_VIEW = re.compile(r'application/vnd\.jupyter\.widget-view\+json.*?"model_id":\s*"(\w+)"', re.DOTALL)


# What a state leaves out where it is the widget's default
ABSENT = {"children": [], "value": 0, "min": 0, "max": 100, "description": "", "selected_index": None}


def plain(state: dict, model: str) -> Iterator[str]:
    """HTML of a box of HTML widgets and of sliders linked to stacks, from one model down; of others, nothing."""
    known = state.get(model, {"model_name": None, "state": {}})
    of = ABSENT | known["state"]
    inner = ["".join(plain(state, child.removeprefix("IPY_MODEL_"))) for child in of["children"]]
    if not all(inner):
        return
    match known["model_name"]:
        case "HTMLModel":
            yield of["value"] or ""
        case "BoxModel" | "HBoxModel" | "VBoxModel":
            yield from inner
        case "StackModel":
            frames = (
                f'<div class="fk-frame"{" hidden" * (number != (of["selected_index"] or 0))}>{frame}</div>'
                for number, frame in enumerate(inner)
            )
            yield f'<div id="frames-{model}">{"".join(frames)}</div>'
        case "IntSliderModel" if (stack := linked(state, model)) is not None:
            words = re.sub(r"\$(.+?)\$", r'<span class="math">\\(\1\\)</span>', escape(of["description"]))
            ends = f'min="{of["min"]}" max="{of["max"]}" value="{of["value"]}"'
            # pst-js-only is the theme's, for what does nothing without a script.
            yield f'<label class="fk-slider pst-js-only"><span>{words}</span>'
            yield f'<input type="range" {ends} autocomplete="off" data-moves="frames-{stack}"></label>'


def linked(state: dict, slider: str) -> str | None:
    """The stack whose frame the slider's value chooses."""
    for model in state.values():
        if model["model_name"] == "LinkModel" and model["state"]["source"] == [f"IPY_MODEL_{slider}", "value"]:
            stack, trait = model["state"]["target"]
            if trait == "selected_index":
                return stack.removeprefix("IPY_MODEL_")
    return None


def widget_state(env) -> dict:
    """The models of the page that is being written, by id."""
    script = getattr(env, "nb_metadata", {}).get(env.docname, {}).get("js_files", {}).get("ipywidgets_state")
    return json.loads(script[1]["body"].replace(r"<\/script>", "</script>"))["state"] if script else {}


def drop_widget_state(app, pagename, templatename, context, doctree) -> None:
    """What the state of widgets had to say is in the page."""
    getattr(app.env, "nb_metadata", {}).get(pagename, {}).get("js_files", {}).pop("ipywidgets_state", None)


# What a chapter says of itself


@cache
def head(docname: str) -> dict[str, str]:
    """A chapter's title, question and minutes, from its head; nothing where a page has none."""
    path = ROOT / f"{docname}.ipynb"
    if not path.exists():
        return {}
    text = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
    plain = re.sub(r"\{\w+\}`([^`<]*?)\s*(?:<[^`]*>)?`", r"\1", text)
    parts = {
        k.lower(): " ".join(v.split())
        for k, v in re.findall(r"\*\*(\w+)\.\*\* (.*?)(?=\n\n|\n\*\*|\n:::)", plain, re.S)
    }
    return {"title": re.search(r"^# (.+)$", text, re.M)[1], **parts}


class Chapters(SphinxDirective):
    """`{chapters} 01 02 03`: a card for each, with its question and the time that it takes."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        cards = nodes.container(classes=["fk-cards"])
        for number in self.arguments[0].split():
            path = next((ROOT / "chapters").glob(f"{number}_*.ipynb"))
            self.env.note_dependency(str(path))
            said, card = head(f"chapters/{path.stem}"), nodes.container(classes=["fk-card"])
            lines = [f"{{doc}}`/chapters/{path.stem}`", "", said["question"], "", said["time"]]
            self.state.nested_parse(StringList(lines), self.content_offset, card)
            cards += card
        return [cards]


def add_to_page(app, pagename, templatename, context, doctree) -> None:
    """The questions of the pages around, and the script of moving figures where there is one."""
    _, before, after = app.builder.relations.get(pagename, (None, None, None))
    context["around"] = {"previous": head(before or "").get("question"), "next": head(after or "").get("question")}
    context["home"] = urlsplit(app.config.html_baseurl).path or "/"
    if 'class="fk-motion"' in context.get("body", ""):
        app.add_css_file("interactive.css", priority=899)
        app.add_js_file("interactive.js")


class NameSolutions(SphinxPostTransform):
    """Say what a folded solution is; other folded cells say what _config.yml has."""

    default_priority = 190  # before myst-nb folds the cells
    formats = ("html",)

    def run(self, **kwargs) -> None:
        for cell in self.document.findall(nodes.container):
            if "tag_solution" in cell["classes"]:
                cell["prompt_show"], cell["prompt_hide"] = "Show a solution", "Hide the solution"


def drop_unused_scripts(app, pagename, templatename, context, doctree) -> None:
    """Sphinx gives MathJax to each page that lists one with equations; only where there are some is it of use."""
    if app.builder.math_renderer_name == "mathjax" and 'class="math' not in context.get("body", ""):
        scripts, mathjax = context["script_files"], Path(app.config.mathjax_path).name
        context["script_files"] = [script for script in scripts if not str(script.filename).endswith(mathjax)]


SCRIPT = re.compile(r"<script\b([^>]*)>(.*?)</script>", re.DOTALL)
WAITS = re.compile(r"""\s(?:defer|async)(?=[\s=]|$)|\stype=["']?module""")


def deferred(html: str) -> str:
    """Scripts that let the page be painted first, and then run in their order; the templates pass theirs through it.

    One that stands in the page itself runs at once, as others may count on it, unless it counts on one that waits.
    """

    def wait(script: re.Match) -> str:
        attributes, body = script.groups()
        if WAITS.search(attributes):
            return script[0]
        if re.search(r"\ssrc=", attributes):
            return f"<script defer{attributes}>{body}</script>"
        how = ' type="module"' if "DOCUMENTATION_OPTIONS" in body else ""  # a module waits as defer does
        return f"<script{how}{attributes}>{body}</script>"

    return SCRIPT.sub(wait, html)


def defer_scripts(app, pagename, templatename, context, doctree) -> None:
    context["deferred"] = deferred


THEME = re.compile(r"""\[data-theme=["']?(light|dark)["']?\]""")


def follow_system(css: str) -> str:
    """The style sheet with each rule for a light or a dark page said again for one whose theme no script has chosen."""
    rules = (_followed(tinycss2.parse_stylesheet(rule)) if THEME.search(rule) else [rule] for rule in _top_rules(css))
    return "".join(part for parts in rules for part in parts)


def _top_rules(css: str) -> Iterator[str]:
    """The text of each rule that is within no other, so that the few about a theme alone need be parsed."""
    depth = start = 0
    for token in re.finditer(r""""(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|/\*.*?\*/|[{};]""", css, re.DOTALL):
        depth += (token[0] == "{") - (token[0] == "}")
        if depth == 0 and token[0] in "};":
            yield css[start : token.end()]
            start = token.end()
    yield css[start:]


def _followed(rules: list) -> Iterator[str]:
    for rule in rules:
        if rule.type == "at-rule" and rule.lower_at_keyword in {"media", "supports"} and rule.content is not None:
            inner = "".join(_followed(tinycss2.parse_rule_list(rule.content)))
            yield f"@{rule.at_keyword}{tinycss2.serialize(rule.prelude)}{{{inner}}}"
            continue
        yield rule.serialize()
        if rule.type != "qualified-rule":
            continue
        selectors = [[]]
        for token in rule.prelude:
            if token == ",":
                selectors.append([])
            else:
                selectors[-1].append(token)
        for scheme in ("light", "dark"):
            texts = map(tinycss2.serialize, selectors)
            own = [THEME.sub('[data-theme="auto"]', one) for one in texts if scheme in THEME.findall(one)]
            if own:
                body = tinycss2.serialize(rule.content)
                yield f"@media (prefers-color-scheme: {scheme}){{{','.join(own)}{{{body}}}}}"


def follow_system_in_files(app, exception) -> None:
    if exception or app.builder.format != "html":
        return
    for path in Path(app.outdir, "_static").rglob("*.css"):
        css = path.read_text(encoding="utf-8")
        if THEME.search(css):
            path.write_text(follow_system(css), encoding="utf-8")


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
    config.html_static_path += [
        str(HERE / "static"),
        *(str(LAB / "interactive" / f"interactive.{kind}") for kind in ("js", "css")),
    ]
    config.templates_path.append(str(HERE / "templates"))
    config.html_additional_pages["404"] = "404.html"
    if (ROOT / "book" / "extra" / "vendor" / "inter").exists():
        app.add_css_file("fonts.css", priority=901)


def setup(app):
    app.connect("config-inited", add_static_files)
    app.connect("html-page-context", drop_widget_state, priority=100)  # before myst-nb puts it into the head
    app.connect("html-page-context", drop_links_to_generated, priority=900)
    app.connect("html-page-context", add_to_page)
    app.connect("html-page-context", drop_unused_scripts, priority=900)
    app.connect("html-page-context", defer_scripts)
    app.connect("build-finished", write_sitemap)
    app.connect("build-finished", follow_system_in_files, priority=900)  # when all have copied theirs
    for part in (
        docstrings,
        exercises,
        predictions,
        about,
        addresses,
        chapter_pages,
        code_lines,
        searching,
        tables,
        typeset,
    ):
        part.setup(app)
    app.add_directive("interactive", InteractiveFigure)
    app.add_directive("chapters", Chapters)
    app.add_post_transform(Motions)
    app.add_post_transform(Sliders)
    app.add_post_transform(InlineFigures)
    app.add_post_transform(NameSolutions)
    app.add_css_file("flashkat.css", priority=900)
    app.add_js_file("flashkat.js")
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
