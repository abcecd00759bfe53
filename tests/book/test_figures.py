"""Figures in the page: one drawing, any theme, any width, and names for those who cannot see it."""

import re
from pathlib import Path

import pytest
from flashkat_theme import LETTERS, PALETTE, ThemedSvg, both_widths, for_phones, plain

ROOT = Path(__file__).resolve().parents[2]

DRAWING = """<?xml version="1.0"?>
<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="504pt" height="252pt"
     viewBox="0 0 504 252">
  <defs><style type="text/css">*{stroke-linejoin: round; fill: #1A1A1A}</style><path id="m1" d="M0 0h1"/></defs>
  <g id="patch_1"><path d="M0 0h504v252h-504z" style="fill: #ffffff"/></g>
  <g id="patch_2" clip-path="url(#p1)"><path d="M9 9h9v9h-9z" style="fill: #ffffff; stroke: #0072b2"/></g>
  <use xlink:href="#m1" fill="#D55E00"/><rect width="9" height="9" fill="#123456"/>
  <text style="fill: #d55e00">atomic</text>
</svg>"""


@pytest.fixture
def page():
    return ThemedSvg(DRAWING, "f3-", "A line").html()


def test_the_palette_becomes_custom_properties(page):
    assert "stroke: var(--fk-blue, #0072b2)" in page
    assert 'style="fill: var(--fk-orange, #d55e00); "' in page
    assert "fill: var(--fk-ink, currentColor)" in page
    bare = re.sub(r"(var\(--fk-[\w-]+), [^)]*", r"\1", page.lower())
    assert not [colour for colour in PALETTE if colour in bare]


def test_text_takes_the_legible_shade(page):
    assert re.search(r"<text style=\"fill: var\(--fk-orange-text, #d55e00\)\">", page)


@pytest.mark.parametrize("known", ["--fk-blue", "--fk-blue, #0072b2", "--fk-blue-text,#123456"])
def test_a_property_that_a_drawing_uses_itself_gets_the_palettes_fallback(known):
    drawn = DRAWING.replace("fill: #ffffff; stroke: #0072b2", f"stroke: var({known})")
    text = "-text" * ("text" in known)
    assert f'stroke: var(--fk-blue{text}, #0072b2)"' in ThemedSvg(drawn, "f3-").html()


def test_a_property_of_the_page_that_is_no_colour_stays():
    drawn = DRAWING.replace("fill: #d55e00", "font-family: var(--fk-sans, sans-serif)")
    assert "font-family: var(--fk-sans, sans-serif)" in ThemedSvg(drawn, "f3-").html()


def test_a_colour_outside_the_palette_stays(page):
    assert "#123456" in page


def test_the_white_sheet_goes_and_the_axes_stay(page):
    assert "M0 0h504v252h-504z" not in page
    assert "fill: var(--fk-paper, transparent)" in page


def test_ids_and_references_to_them_are_prefixed(page):
    assert 'id="f3-m1"' in page
    assert 'href="#f3-m1"' in page
    assert "url(#f3-p1)" in page
    assert not re.search(r'id="(?!f3-)', page)


def test_styles_stay_within_the_drawing(page):
    assert "#f3-svg { *{stroke-linejoin: round" in page


def test_the_drawing_has_a_name_and_its_natural_width(page):
    assert 'role="img"' in page
    assert 'aria-label="A line"' in page
    assert "--fk-width: 672px" in page
    assert not re.search(r'<svg[^>]* width="', page)


def state(*links, **models):
    """Widgets' models as a notebook keeps them; a link goes from a slider's value to a stack."""
    found = {
        name: {"model_name": kind, "state": {"children": inner.split(), **rest} if inner else rest}
        for name, (kind, inner, rest) in models.items()
    }
    for slider, stack in links:
        ends = {"source": [f"IPY_MODEL_{slider}", "value"], "target": [f"IPY_MODEL_{stack}", "selected_index"]}
        found[f"{slider}-{stack}"] = {"model_name": "LinkModel", "state": ends}
    return found


SLIDER = ("IntSliderModel", "", {"description": "Move: $n$ < 2", "max": 1, "value": 1})
MOVED = {
    "box": ("VBoxModel", "IPY_MODEL_slider IPY_MODEL_stack", {}),
    "slider": SLIDER,
    "stack": ("StackModel", "IPY_MODEL_one IPY_MODEL_two", {"selected_index": 1}),
    "one": ("HTMLModel", "", {"value": "<p>one</p>"}),
    "two": ("HTMLModel", "", {"value": "<p>two</p>"}),
}


def test_frames_under_a_slider_are_plain_html():
    html = "".join(plain(state(("slider", "stack"), **MOVED), "box"))
    assert '<div class="fk-frame" hidden><p>one</p></div><div class="fk-frame"><p>two</p></div>' in html
    assert 'min="0" max="1" value="1"' in html
    assert r'Move: <span class="math">\(n\)</span> &lt; 2' in html
    assert re.search(r'data-moves="([^"]*)"', html)[1] == re.search(r'<div id="([^"]*)"', html)[1]


@pytest.mark.parametrize(
    "links, other",
    [
        ([], {}),
        ([("slider", "stack")], {"two": ("ButtonModel", "", {})}),
        ([("slider", "stack")], {"box": ("AccordionModel", "IPY_MODEL_one", {})}),
        ([("slider", "stack")], {"box": ("VBoxModel", "IPY_MODEL_lost", {})}),
    ],
    ids=["a slider that moves nothing", "a frame of another kind", "a box of another kind", "a widget that is lost"],
)
def test_other_widgets_are_not_shown_in_part(links, other):
    assert "".join(plain(state(*links, **MOVED | other), "box")) == ""


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear))


def contrast(one, other):
    """WCAG 2's ratio of two colours."""
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_contrast_with_paper(theme):
    css = (ROOT / "book" / "theme" / "static" / "flashkat.css").read_text(encoding="utf-8")
    block = re.search(rf'html\[data-theme="{theme}"\][^{{]*{{(.*?)}}', css, re.DOTALL)[1]
    colours = dict(re.findall(r"--fk-([\w-]+): (#[0-9a-f]{6});", block))
    for name in LETTERS:
        assert contrast(colours[name], colours["paper"]) >= 3, name
        for surface in ("paper", "raised"):
            assert contrast(colours[f"{name}-text"], colours[surface]) >= 4.5, name
    for name in ("ink", "muted"):
        assert min(contrast(colours[name], colours[surface]) for surface in ("paper", "raised")) >= 4.5, name


def test_the_drawing_for_phones_comes_out_as_it_went_in(monkeypatch):
    from flashkat_lite.lab import figures

    def draw():
        figure, axes = figures.new()
        axes.set(title='A "finding" & more', xlabel="time (ms) < 1")
        return figure

    kept = []
    monkeypatch.setattr(figures, "display", kept.append)
    monkeypatch.setenv("FLASHKAT_PHONES", "1")
    figures.show(draw())
    figure = draw()
    figures.svg(figure)
    assert for_phones(kept[0].data) == figures.for_phones(figure)
    assert "--fk-width: 341.76px" in ThemedSvg(for_phones(kept[0].data), "n1-").html()
    assert "for-phones" not in ThemedSvg(kept[0].data, "f1-").html()
    assert for_phones(DRAWING) is None


def test_a_frame_under_a_slider_is_drawn_for_phones_too(monkeypatch):
    """Each as high as the highest, so that what is below a title of two lines stays where it was."""
    from flashkat_lite.lab import figures

    def frame(title):
        figure, axes = figures.new(6.2, 2.6)
        axes.barh([0, 1], [1, 3])
        figure.suptitle(title)
        return figures.inline(figure, title)

    monkeypatch.setenv("FLASHKAT_PHONES", "1")
    stack = figures.movable(
        [frame("One line"), frame("A title so long that on a phone it takes a second line")], "Move"
    )
    pages = [both_widths(child.value, f"w{place}-")[0] for place, child in enumerate(stack.children[1].children)]
    narrow = [page.partition("fk-narrow")[2] for page in pages]
    boxes = [re.search(r'viewBox="0 (\S+) 256.32 (\S+)"', one).groups() for one in narrow]
    assert boxes[0][1] == boxes[1][1] and float(boxes[0][0]) < float(boxes[1][0]) == 0
    assert all("fk-figure fk-wide" in page and "for-phones" not in page for page in pages)
    assert all("var(--fk-blue, " in one and 'aria-label="' in one for one in narrow)
