"""Every page of the book, in a browser: nothing asked of others, nothing broken, legible and reachable by keyboard."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from vendor import Package, fetch
from visits import FAULTS, TOO_WIDE, move_sliders, visit

ROOT = Path(__file__).resolve().parents[2]
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
PAGES = [TOC["root"], *(chapter["file"] for part in TOC["parts"] for chapter in part["chapters"])]
AXE = Package(
    "axe-core",
    "4.10.3",
    "sha512-Xm7bpRXnDSX2YE2YFfBk2FnF0ep6tmG7xPh8iHee8MIcrgq762Nkce856dYtJYLkuIoYZvGfTs/PbZhideTcEg==",
    (("package/axe.min.js", ""),),
)
# Highlighted words of one kind are alike to axe, which takes seconds over thousands of them: the first of each stays.
UNWRAP = """() => {
  const seen = new Set();
  const alike = [...document.querySelectorAll(".highlight pre span")].filter((word) => {
    if (word.children.length) return false;
    const look = word.className + [word, word.closest("pre"), word.closest(".highlight")].map((element) => {
      const style = getComputedStyle(element);
      return [style.color, style.backgroundColor, style.opacity, style.fontWeight].join();
    }).join();
    return seen.has(look) || !seen.add(look);
  });
  for (const word of alike) word.replaceWith(word.textContent);
}"""
VIOLATIONS = """async (rules) => (await axe.run({
  preload: false, resultTypes: ["violations"], ...(rules.length ? { runOnly: rules } : {}),
})).violations.flatMap((rule) => rule.nodes.map((node) => `axe ${rule.id}: ${node.html.slice(0, 160)}`))"""
# What the colours or the width of a page can break; the rest is the same on all.
OF_LOOKS = ["color-contrast", "link-in-text-block", "meta-viewport", "scrollable-region-focusable", "target-size"]


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
    return (root / "_build" / "axe" / "axe.min.js").read_text()


@pytest.mark.parametrize("page", PAGES)
def test_page(browser, base, vendored, axe, root, page):
    """No third party asked, no error, all drawn, no sideways scroll, sliders that move, axe content; pictures."""
    picture = f"{root}/_build/screenshots/{page.replace('/', '_')}"
    with visit(browser, base, page, vendored=vendored) as (tab, faults):

        def look(width, scheme):
            tab.set_viewport_size({"width": width, "height": 900})
            tab.emulate_media(color_scheme=scheme)
            tab.wait_for_function(f"document.documentElement.dataset.theme === '{scheme}'")

        def photograph(width, scheme):
            look(width, scheme)
            tab.screenshot(path=f"{picture}_{scheme}_{width}.jpg", type="jpeg", quality=80, full_page=True)

        def examine(width, scheme, rules=()):
            look(width, scheme)
            tab.wait_for_timeout(500)  # the theme gives what scrolls a tab stop 300 ms after a change of size
            return tab.evaluate(VIOLATIONS, list(rules))

        faults += tab.evaluate(FAULTS)
        photograph(1280, "light")
        faults += move_sliders(tab)
        photograph(390, "dark")
        look(360, "light")
        if tab.evaluate(TOO_WIDE):
            faults.append("the page scrolls sideways at 360 px")
        if axe:
            tab.evaluate(UNWRAP)
            tab.evaluate(axe)
            faults += examine(1280, "light") + examine(390, "dark", OF_LOOKS)
    assert not faults, "\n".join(dict.fromkeys(faults))


def test_search_finds_a_chapter(browser, base, vendored):
    with visit(browser, base, "search", vendored=vendored) as (tab, faults):
        tab.goto(f"{base}search.html?q=references")
        tab.wait_for_selector("#search-results li a")
    assert not faults


def test_widgets_are_loaded_only_where_they_are(built):
    for page in built:
        text = page.read_text()
        assert ("embed-amd.js" in text) == ("application/vnd.jupyter.widget-state+json" in text), page.name
