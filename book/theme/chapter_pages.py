"""How a chapter's page differs from its notebook: it opens on a figure, what drives is folded, claims stand together.

The notebook stays as it is; each step below works on what was read from it, and leaves alone what it does not know.
"""

import re
import sys
from collections.abc import Iterable
from html import escape, unescape
from pathlib import Path

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "book"))
MANY = 3  # claims in a row that are folded
CLAIM = re.compile(r'<p class="fk-claim(?P<kind>[^"]*)">')
NOTE = re.compile(r'<p class="fk-note">(.*?)</p>', re.DOTALL)
TIMES = re.compile(r"\b(?:lab\.(?:measure|timings)|timings|time_interleaved|MissingRecord|records\.measure)\(")
TEACHES = re.compile(r"@triton\.jit|lab\.(?:predict|reveal|check)\(")


def html(text: str) -> nodes.raw:
    return nodes.raw("", text, format="html")


def code_of(cell: nodes.Element) -> str:
    """What a cell's code is; nothing where it is not shown."""
    source = next((part for part in cell.children if part.get("nb_element") == "cell_code_source"), None)
    return source.astext() if source is not None else ""


def outputs_of(cell: nodes.Element) -> list[nodes.Node]:
    """What a page shows of the cell's outputs: raw HTML, images, text."""
    part = next((part for part in cell.children if part.get("nb_element") == "cell_code_output"), None)
    wanted = (nodes.raw, nodes.image, nodes.literal_block)
    return [node for kind in wanted for node in part.findall(kind)] if part is not None else []


def fold(cell: nodes.Element, words: str) -> None:
    """Have a cell's code folded under these words."""
    cell["hide_mode"] = cell.get("hide_mode") or "input"
    cell["prompt_show"] = cell["prompt_hide"] = words


class ChapterPages(SphinxPostTransform):
    """All steps, in order, on the page of a chapter or a part."""

    default_priority = 8  # the mime types are chosen; no drawing and no fold is made yet
    formats = ("html",)

    def run(self, **kwargs) -> None:
        name = Path(self.env.docname).name
        from tools.site import machine, openings

        of = name[:2] if self.env.docname.startswith("chapters/") else name
        if of not in machine.LIT:
            return
        title = next(iter(self.document.findall(nodes.title)))
        section = title.parent
        machine_drawn = html(_figure("fk-machine", machine.draw(of), machine.draw(of, narrow=True), machine.said(of)))
        if of == name:
            section.insert(section.index(title) + 2, machine_drawn)  # after the part's first paragraph
            return
        cells = [node for node in self.document.findall(nodes.container) if node.get("nb_element") == "cell_code"]
        self._open(section, of, openings.drawn, machine_drawn)
        self._fold_set_up(section, cells)
        self._fold_objectives(section)
        for cell in cells:
            name_fold(cell)
        for parent in dict.fromkeys(cell.parent for cell in cells):
            _gather_claims(parent)

    def _open(self, section, of: str, drawn, machine_drawn: nodes.raw) -> None:
        """The chapter's figure below its question; the result, where the head tells one, in a fold."""
        head = next((node for node in section.findall(nodes.admonition) if "chapter-head" in node["classes"]), None)
        if head is None:
            return
        for paragraph in [child for child in head.children if isinstance(child, nodes.paragraph)]:
            begins = paragraph.astext()
            if begins.startswith("Result."):
                place = head.index(paragraph)
                head.insert(place, html('<details class="fk-result"><summary>Show the result</summary>'))
                head.insert(place + 2, html("</details>"))
            elif begins.startswith("Question."):
                wide, narrow, alt = drawn(of)
                head.insert(head.index(paragraph) + 1, html(_figure("fk-opening", wide, narrow, alt)))
        section.insert(section.index(head) + 1, machine_drawn)

    def _fold_set_up(self, section, cells: list) -> None:
        """The imports; what they say of the machine becomes a line of the head."""
        first = next((cell for cell in cells if "from flashkat_lite import lab" in code_of(cell)), None)
        if first is None:
            return
        fold(first, "Set-up")
        for raw in [node for node in outputs_of(first) if isinstance(node, nodes.raw)]:
            if (note := NOTE.search(raw.astext())) and (ran := re.search(r"(NVIDIA [\w ]+?)[.,]", unescape(note[1]))):
                raw.replace_self(html(f'<p class="fk-source">Executed on an {escape(ran[1])}.</p>'))

    def _fold_objectives(self, section) -> None:
        for paragraph in section.children:
            if isinstance(paragraph, nodes.paragraph) and paragraph.astext().startswith("You will be able to"):
                place = section.index(paragraph)
                if not isinstance(section[place + 1], nodes.bullet_list):
                    return
                section.remove(paragraph)
                section.insert(place, html("<details><summary>You will be able to …</summary>"))
                section.insert(place + 2, html("</details>"))
                return


def name_fold(cell: nodes.Element) -> None:
    """Say what a fold holds; fold what measures, where it is no kernel."""
    code = code_of(cell)
    lines = len(code.splitlines())
    if cell.get("hide_mode") is None:
        drives = TIMES.search(code) and not TEACHES.search(code)
        if drives and not set(cell["classes"]) & {"tag_exercise", "tag_check"}:
            fold(cell, f"How this was timed ({lines} lines)")
    elif cell["hide_mode"] == "input" and cell.get("prompt_show") == "Show the code":
        words = _of_outputs(cell) or _of_code(code)
        fold(cell, f"{words} ({lines} lines)" if lines > 1 else words)
        cell["classes"].append("fk-after")


def _of_outputs(cell: nodes.Element) -> str:
    shown = outputs_of(cell)
    raw = " ".join(node.astext() for node in shown if isinstance(node, nodes.raw))
    if re.search(r"<svg|widget-view|fk-motion", raw) or any(isinstance(node, nodes.image) for node in shown):
        return "Code of this figure"
    return "Code of this table" if "<table" in raw else "How this is checked" if CLAIM.search(raw) else ""


def _of_code(code: str) -> str:
    made = re.findall(r"^(?:def|class) (\w+)", code, re.MULTILINE)
    return f"Code of {', '.join(made[:3])}" if made else "Code"


def _figure(kind: str, wide: str, narrow: str, label: str) -> str:
    from flashkat_theme import ThemedSvg

    drawings = (ThemedSvg(wide, f"{kind}-w-", label), ThemedSvg(narrow, f"{kind}-n-", label))
    both = drawings[0].html("fk-figure fk-wide") + drawings[1].html("fk-figure fk-narrow")
    return f'<div class="{kind}">{both}</div>'


def claims_of(cell: nodes.Element) -> list[str] | None:
    """The kinds of the claims that a cell shows, '' for one that holds; None where it shows anything else."""
    if cell.get("nb_element") != "cell_code" or cell.get("hide_mode") != "input":
        return None
    shown = outputs_of(cell)
    found = [CLAIM.match(node.astext().strip()) for node in shown]
    return [one["kind"] for one in found] if found and all(found) else None


def _gather_claims(parent: nodes.Element) -> None:
    """Fold claims that run on, in a cell or in cells one after another, to a line that says how many hold."""
    run: list[nodes.Element] = []
    for child in [*parent.children, None]:
        if child is not None and claims_of(child) is not None:
            run.append(child)
            continue
        if isinstance(child, nodes.comment | nodes.target):
            continue
        kinds = [kind for cell in run for kind in claims_of(cell)]
        if len(kinds) >= MANY:
            start = parent.index(run[0])
            fails = sum(map(bool, kinds))
            opened = " open" if fails else ""
            parent.insert(start, html(f'<details class="fk-claims"{opened}><summary>{summary(kinds)}</summary>'))
            parent.insert(parent.index(run[-1]) + 1, html("</details>"))
        run = []


def summary(kinds: Iterable[str]) -> str:
    """'✓ 8 claims hold', or how many do not."""
    kinds = list(kinds)
    fails = sum(map(bool, kinds))
    if not fails:
        return f'<span class="fk-mark">✓</span> {len(kinds)} claims hold'
    verb = "does" if fails == 1 else "do"
    return f'<span class="fk-mark fk-not">✗</span> {fails} of {len(kinds)} claims {verb} not hold on this GPU'


class CodeAfter(SphinxPostTransform):
    """What a cell shows comes before the fold with its code."""

    default_priority = 200  # myst-nb has folded the cells
    formats = ("html",)

    def run(self, **kwargs) -> None:
        for cell in self.document.findall(nodes.container):
            if "fk-after" in cell["classes"] and len(cell.children) > 1:
                cell.children = [*cell.children[1:], cell.children[0]]


def setup(app) -> None:
    app.add_post_transform(CodeAfter)
    app.add_post_transform(ChapterPages)
