"""Every page of the book, in a browser: nothing asked of others, nothing broken, legible and reachable by keyboard."""

import gzip
import os
import re
import shutil
import subprocess

import pytest
from visits import (
    FAULTS,
    OPENING,
    OUT_OF_SIGHT,
    PAGES,
    STRETCHES,
    TOO_WIDE,
    UNCHOSEN,
    WORDS_UNDER_TILES,
    move_motions,
    move_sliders,
    visit,
)

from flashkat_lite.lab import interactive
from tools.site import fallbacks
from tools.site.vendor import Package, fetch

AXE = Package(
    "axe-core",
    "4.10.3",
    "sha512-Xm7bpRXnDSX2YE2YFfBk2FnF0ep6tmG7xPh8iHee8MIcrgq762Nkce856dYtJYLkuIoYZvGfTs/PbZhideTcEg==",
    (("package/axe.min.js", ""),),
)
# Words of one kind are alike to axe, which takes seconds over thousands of them: the first of each stays, and so do a
# few formulas. Nor are a picture's parts anything to axe, unless they can be reached or have a name.
UNWRAP = """() => {
  const seen = new Set(), kept = new Set(), looks = new Map();
  const look_of = (element) => {
    if (!looks.has(element)) {
      const style = getComputedStyle(element);
      looks.set(element, [style.color, style.backgroundColor, style.opacity, style.fontWeight].join());
    }
    return looks.get(element);
  };
  for (let alike = [0]; alike.length;) {
    alike = [...document.querySelectorAll(".highlight pre span, .sig span")].filter((word) => {
      if (word.children.length || kept.has(word)) return false;
      const around = [word, word.parentElement, word.closest("pre, .sig"), word.closest(".highlight, .sig")];
      const look = word.className + around.map(look_of).join();
      if (seen.has(look)) return true;
      seen.add(look);
      return !kept.add(word);
    });
    for (const word of alike) word.replaceWith(word.textContent);
  }
  const formulas = [...document.querySelectorAll(".katex")];
  for (const formula of formulas.slice(4)) formula.replaceChildren("x");
  for (const picture of document.querySelectorAll("svg:is([role=img], [aria-hidden=true])")) {
    if (!picture.querySelector("a, title, [tabindex], [role], [aria-label]")) picture.replaceChildren();
  }
}"""
# What looks like what stands before it has its contrast too: the first of each stays.
THIN = """() => {
  const seen = new Set();
  for (const element of document.querySelectorAll(".bd-article :is(p, li, td, th, dt, dd, pre):not(summary *)")) {
    const style = getComputedStyle(element);
    const look = [element, element.parentElement, ...element.querySelectorAll("*")].map((e) => e.tagName + e.className);
    const key = [...look, style.color, style.backgroundColor, style.fontSize, style.fontWeight].join();
    if (seen.has(key)) element.remove();
    seen.add(key);
  }
}"""
VIOLATIONS = """async (options) => (await axe.run({ preload: false, resultTypes: ["violations"], ...options }))
  .violations.flatMap((rule) => rule.nodes.map((node) => `axe ${rule.id}: ${node.html.slice(0, 160)}`))"""
# What the colours or the width of a page can break; the rest is the same on all.
OF_LOOKS = ["color-contrast", "link-in-text-block", "meta-viewport", "scrollable-region-focusable", "target-size"]
LOOKS = {"runOnly": OF_LOOKS}
ALL_ELSE = {"rules": {rule: {"enabled": False} for rule in OF_LOOKS}}


# Screens without a figure, a table or a formula, and lines of code without a sentence.
MOST = (2.0, 40)


@pytest.fixture(scope="module")
def base(html, serve):
    return serve(html)


@pytest.fixture(scope="module")
def vendored(html):
    return (html / "vendor").exists()


@pytest.fixture(scope="session")
def axe(root):
    """The accessibility checker's source, or None where npm cannot bring it."""
    if shutil.which("npm") is None:
        return None
    try:
        fetch((AXE,), root / "_build" / "axe")
    except subprocess.CalledProcessError:
        return None
    return (root / "_build" / "axe" / "axe.min.js").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_page(browser, base, vendored, axe, root, page):
    """Nobody else asked, no error, all drawn, no sideways scroll, sliders move, axe content; pictures if wanted."""
    picture = f"{root}/_build/screenshots/{page.replace('/', '_')}"
    with visit(browser, base, page, vendored=vendored) as (tab, faults):

        def look(width, scheme):
            tab.set_viewport_size({"width": width, "height": 900})
            tab.emulate_media(color_scheme=scheme)
            tab.wait_for_function(f"document.documentElement.dataset.theme === '{scheme}'")

        def photograph(width, scheme):
            if not os.environ.get("FLASHKAT_SCREENSHOTS"):
                return
            look(width, scheme)
            tab.screenshot(path=f"{picture}_{scheme}_{width}.jpg", type="jpeg", quality=80, full_page=True)

        faults += tab.evaluate(FAULTS)
        photograph(1440, "light")
        look(1440, "dark")
        if page.startswith("chapters/") and tab.evaluate(OPENING):
            faults.append("no figure above the fold")
        if page.startswith("chapters/"):
            limits = zip(MOST, tab.evaluate(STRETCHES))
            faults += [f"{what}, more than {most}" for most, (much, what) in limits if much > most]
        faults += tab.evaluate(UNCHOSEN)
        faults += tab.evaluate(OUT_OF_SIGHT)
        faults += move_sliders(tab)
        faults += move_motions(tab)
        photograph(390, "dark")
        for width in (768, 360):
            look(width, "dark")
            faults += tab.evaluate(OUT_OF_SIGHT)
            if tab.evaluate(TOO_WIDE):
                faults.append(f"the page scrolls sideways at {width} px")
        if axe:
            tab.evaluate(UNWRAP)
            tab.evaluate(axe)
            look(1280, "dark")
            tab.evaluate("scrollTo(0, 0)")  # where the header that stays in sight covers nothing
            faults += tab.evaluate(VIOLATIONS, ALL_ELSE)
            tab.evaluate(THIN)
            # One style sheet serves all: each page is looked at in one of the two.
            look(*((390, "dark") if PAGES.index(page) % 2 else (1280, "light")))
            tab.wait_for_timeout(500)  # the theme gives what scrolls a tab stop 300 ms after a change of size
            faults += tab.evaluate(VIOLATIONS, LOOKS)
    assert not faults, "\n".join(dict.fromkeys(faults))


FOUND = {
    "roofline": "06_atomics_and_roofline",
    "Kolmogorov": "01_kan",
    "compensated": "12_numerics",
    "autocast": "13_training",
    "sbatch": "running",
}


@pytest.mark.parametrize("word, page", FOUND.items())
def test_search_finds_the_page_that_has_the_word(browser, base, vendored, word, page):
    with visit(browser, base, "search", vendored=vendored) as (tab, faults):
        tab.goto(f"{base}search.html?q={word}")
        tab.wait_for_selector(f"#search-results li a[href*='{page}']")
        tab.wait_for_selector("#search-results li .context:not(:empty)")
        said = [one.inner_text() for one in tab.locator("#search-results li .context").all()]
        assert any(word.lower() in one.lower() for one in said)
        assert not [one for one in said if "Contents" in one or ".pdf" in one or one.startswith("...")]
    assert not faults


def test_sliders_move_in_a_page_opened_from_a_file(browser, html):
    with visit(browser, f"{html.as_uri()}/", "chapters/02_grkan") as (tab, faults):
        choose = tab.locator(".fk-slider input").first
        choose.focus()
        tab.keyboard.press("Home")
        assert move_sliders(tab) == []
        assert len([one for one in tab.locator(".fk-slider").all() if one.is_visible()]) == 2  # one brings another
        numbers = tab.locator(".fk-many label:has(output)").evaluate_all(
            "all => all.map(({ control, textContent }) => [textContent.slice(2), control.value, control.step])"
        )
        for shown, value, step in ([float(number) for number in one] for one in numbers):
            assert abs(shown - value) <= step and (not shown or abs(shown) >= step / 4), (
                "a key moves a number by its size"
            )
        assert len(numbers) == 10
    assert not faults


def test_motion_can_be_unwanted(browser, base):
    with visit(browser, base, "book/part4_cure") as (tab, faults):
        tab.emulate_media(reduced_motion="reduce")
        tab.set_viewport_size({"width": 360, "height": 800})
        moved = []
        for _ in range(2):
            tab.get_by_role("button", name="Play").click()
            tab.wait_for_timeout(300)
            moved.append(tab.get_by_role("slider", name="Time").input_value())
            assert not tab.evaluate(WORDS_UNDER_TILES)
        assert moved == ["520", "620"]  # a tenth of the way at each press, from 420
    assert not faults


@pytest.mark.parametrize("page, limit", [("book/intro", 0.4), ("chapters/02_grkan", 0.7), ("book/part1_function", 0.5)])
def test_what_comes_over_the_wire(browser, base, html, page, limit):
    with visit(browser, base, page) as (tab, _):
        tab.context.new_cdp_session(tab).send("Network.setCacheDisabled", {"cacheDisabled": True})
        asked = []
        tab.on("request", lambda request: asked.append(request.url))
        tab.reload(wait_until="networkidle")
    files = {url.removeprefix(base).partition("?")[0] for url in asked if url.startswith(base)}
    weight = sum(len(gzip.compress((html / name).read_bytes())) for name in files)
    assert len(files) > 10 and 0.1e6 < weight < limit * 1e6


def test_an_address_where_nothing_is_gets_a_page_that_stands_alone(browser, base, html):
    text = (html / "404.html").read_text(encoding="utf-8")
    assert "<title>No such page · FlashKAT from Scratch</title>" in text
    assert "To the beginning of FlashKAT from Scratch" in text
    assert "<script" not in text and text.count("<link") == text.count('<link rel="icon" href="data:,">') == 1
    with visit(browser, base, "404") as (tab, faults):
        tab.get_by_role("link").click()
        tab.wait_for_url(f"{base}book/intro.html")
    assert not faults


def test_on_paper_there_is_the_article_alone(browser, base):
    with visit(browser, base, "chapters/09_block_reduction") as (tab, _):
        tab.emulate_media(media="print")
        for gone in (".bd-sidebar-primary", ".fk-around", ".fk-motion-controls", ".fk-slider"):
            assert not tab.locator(gone).first.is_visible(), gone
        assert tab.locator(".fk-motion svg").first.is_visible()
        assert tab.locator(".fk-frame:not([hidden]) svg").first.is_visible()
        titles = [one for one in tab.locator("h1").all() if one.is_visible()]
        assert len(titles) == 1 and not tab.get_by_text("Contents", exact=True).first.is_visible()
        assert not [one for one in tab.locator(".fk-predict form, details.hide summary").all() if one.is_visible()]
        assert [one for one in tab.locator(".fk-claims summary").all() if one.is_visible()]
        tab.set_viewport_size({"width": 390, "height": 800})  # a phone prints what a screen shows
        assert not [one for one in tab.locator(".fk-narrow").all() if one.is_visible()]
        rules = "() => [...document.styleSheets].flatMap((sheet) => [...sheet.cssRules].map((rule) => rule.cssText))"
        assert any("@page" in rule and "counter(page)" in rule for rule in tab.evaluate(rules))
        pages = len(re.findall(rb"/Type /Page\b", tab.pdf(prefer_css_page_size=True)))
        assert 8 < pages < 22, "code breaks over pages: none is left half empty"


def test_the_fallbacks_are_what_the_script_draws(browser):
    for name, given in fallbacks.settings().items():
        kept = (interactive.FALLBACK / f"{name}.html").read_text(encoding="utf-8")
        assert fallbacks.drawn(browser, name, given) == kept, name
