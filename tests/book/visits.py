"""A visit to a built page: what a reader would see go wrong, as a list of faults."""

import functools
from contextlib import contextmanager
from pathlib import Path

import yaml
from playwright.sync_api import TimeoutError as TookTooLong

TOC = yaml.safe_load((Path(__file__).resolve().parents[2] / "_toc.yml").read_text(encoding="utf-8"))
GROUPS = [page for part in TOC["parts"] for page in part["chapters"]]
PAGES = [TOC["root"], *(page["file"] for group in GROUPS for page in (group, *group.get("sections", ())))]

READY = """async () => {
  await document.fonts.ready;
  if (window.MathJax && document.querySelector(".math")) await window.MathJax.startup.promise;
}"""
FAULTS = r"""() => {
  const faults = [];
  const brief = (element) => element.outerHTML.slice(0, 120);
  const visible = (element) => element.getClientRects().length > 0;
  for (const math of document.querySelectorAll(".bd-article .math")) {
    if (!math.querySelector(".katex, mjx-container")) faults.push(`maths not rendered: ${brief(math)}`);
  }
  for (const error of document.querySelectorAll("mjx-merror, [data-mjx-error], .katex-error")) {
    faults.push(`maths with an error: ${brief(error)}`);
  }
  const prose = document.querySelector(".bd-article")?.cloneNode(true);
  prose?.querySelectorAll("pre, code, script, style, .katex, mjx-container").forEach((element) => element.remove());
  if (/\\\(|\\\[|\$\$/.test(prose?.textContent ?? "")) faults.push("maths left as source in the text");
  for (const figure of document.querySelectorAll(".bd-article .fk-figure > svg")) {
    if (!figure.getAttribute("aria-label")) faults.push(`a figure without a name: ${brief(figure)}`);
    const box = figure.getBoundingClientRect();
    const empty = visible(figure.parentElement) && (box.width < 50 || box.height < 20);
    if (empty) faults.push(`an empty figure: ${brief(figure)}`);
  }
  for (const element of document.querySelectorAll(".bd-article svg [style]")) {
    const written = element.getAttribute("style");
    for (const paint of ["fill", "stroke"]) {
      const given = RegExp(`(^|[;\\s])${paint}:`).test(written);
      if (given && !element.style[paint]) faults.push(`a ${paint} that no browser reads: ${written}`);
    }
  }
  for (const image of document.images) {
    if (!image.hasAttribute("alt")) faults.push(`an image without alternative text: ${brief(image)}`);
    if (!image.complete || !image.naturalWidth) faults.push(`an image that did not load: ${image.src}`);
  }
  for (const one of document.querySelectorAll(".fk-reveal")) {
    const asked = one.querySelector(".fk-reveal-asked")?.textContent;
    if (!asked) faults.push(`which question this answers is not said: ${brief(one)}`);
  }
  const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
  for (const id of new Set(ids.filter((id, index) => ids.indexOf(id) !== index))) faults.push(`id twice: ${id}`);
  return faults;
}"""
# Colours of each kind of element, and whether it is there, with the theme that a script chose and with none chosen.
UNCHOSEN = """() => {
  const root = document.documentElement, chosen = root.dataset.theme, kinds = new Map();
  for (const element of document.querySelectorAll("body, body *:not(mjx-container *, .katex *, .logo__image)")) {
    const of = [element, element.parentElement].map((one) => one.tagName + one.getAttribute("class"));
    kinds.set([...of, element.getAttribute("style")].join(), element);
  }
  const at_once = document.head.appendChild(document.createElement("style"));
  at_once.textContent = "* { transition: none !important; }";
  const looks = () => [...kinds.values()].map((element) => {
    const style = getComputedStyle(element);
    const paints = ["color", "backgroundColor", "borderLeftColor", "boxShadow", "fill", "stroke", "filter", "display"];
    return paints.map((paint) => style[paint]).join();
  });
  const before = looks();
  root.dataset.theme = "auto";
  const after = looks();
  root.dataset.theme = chosen;
  at_once.remove();
  return [...kinds.values()].filter((_, place) => before[place] !== after[place])
    .map((element) => `without a script it looks otherwise: ${element.outerHTML.slice(0, 120)}`).slice(0, 20);
}"""
# What of a figure or a table is out of sight at this width, or too small to read, and does not say that it scrolls.
OUT_OF_SIGHT = """() => {
  const faults = [], page = innerWidth;
  const shown = (element) => element.getClientRects().length > 0;
  const scrolls = (box) => box.scrollWidth > box.clientWidth + 1;
  const says = (box) => getComputedStyle(box).backgroundImage.split("gradient(").length > 4;
  for (const svg of document.querySelectorAll(".bd-article .fk-figure > svg")) {
    if (!shown(svg)) continue;
    const box = svg.parentElement, frame = svg.getBoundingClientRect();
    const name = svg.getAttribute("aria-label")?.slice(0, 50);
    if (scrolls(box) && !says(box)) faults.push(`a figure is cut and does not say so: ${name}`);
    if (box.matches(".fk-narrow") && scrolls(box)) faults.push(`a figure for phones is too wide: ${name}`);
    const words = [...svg.querySelectorAll("text")].filter((word) => word.textContent.trim());
    if (!box.matches(".fk-narrow, .fk-wide")) continue;
    const places = words.map((word) => word.getBoundingClientRect());
    places.forEach((place, one) => {
      const text = words[one].textContent;
      const cut = place.left < frame.left - 2 || place.right > frame.right + 2;
      if (cut) faults.push(`cut at ${page}: "${text}" of ${name}`);
      const size = Math.min(place.height, place.width); // of a turned word its width
      if (box.matches(".fk-narrow") && size < 9 && text.length > 1) faults.push(`too small: "${text}" of ${name}`);
      for (let two = 0; two < one; two++) {
        const other = places[two];
        const across = Math.min(place.right, other.right) - Math.max(place.left, other.left);
        const along = Math.min(place.bottom, other.bottom) - Math.max(place.top, other.top);
        if (across > 4 && along > 6) faults.push(`at ${page} "${text}" on "${words[two].textContent}" of ${name}`);
      }
    });
  }
  for (const code of document.querySelectorAll(".bd-article pre, .bd-article .highlight")) {
    const cut = shown(code) && scrolls(code);
    if (cut) faults.push(`code is cut at ${page}: ${code.textContent.trim().slice(0, 50)}`);
  }
  for (const table of document.querySelectorAll(".bd-article table")) {
    if (!shown(table)) continue;
    const box = table.closest(".fk-scroll, .pst-scrollable-table-container");
    const of = table.textContent.trim().slice(0, 50);
    if (!box) faults.push(`a table in no box of its own: ${of}`);
    else if (scrolls(box) && (!says(box) || getComputedStyle(table.rows[0].cells[0]).position !== "sticky")) {
      faults.push(`a table is cut and does not say so: ${of}`);
    }
    const first = table.rows[0].cells[0].getBoundingClientRect().width;
    if (box && scrolls(box) && first > 0.55 * box.clientWidth) faults.push(`the first column leaves no room: ${of}`);
  }
  return [...new Set(faults)];
}"""
# The first picture of a chapter, at 1440 x 900
OPENING = """() => {
  const picture = [...document.querySelectorAll(".fk-opening svg")].find((svg) => svg.getClientRects().length);
  return !picture || picture.getBoundingClientRect().bottom + scrollY > 900;
}"""
# The longest stretch of a chapter without a figure, a table or a formula, in screens of 900 pixels, and the most lines
# of code without a sentence, each with its place: before the exercises, and without what is folded.
STRETCHES = r"""() => {
  const article = document.querySelector(".bd-article"), up = (part) => part.getBoundingClientRect().top;
  const exercises = [...article.querySelectorAll("h2")].find((head) => head.textContent.startsWith("Exercises"));
  const end = exercises ? up(exercises) : article.getBoundingClientRect().bottom;
  const within = (part) => part.checkVisibility() && up(part) < end;
  const heads = [...article.querySelectorAll("h1, h2, h3")].filter(within);
  const last = (at) => heads.findLast((head) => up(head) <= at + 1)?.textContent;
  let from = up(article), gap = [0, ""];
  const kinds = ".fk-figure, .fk-motion, .fk-moved, table, div.math, figure";
  const drawn = [...article.querySelectorAll(kinds)].filter(within);
  for (const [top, bottom] of [...drawn.map((part) => [up(part), part.getBoundingClientRect().bottom]), [end, end]]) {
    if (top - from > gap[0]) gap = [top - from, last(from)];
    from = Math.max(from, bottom);
  }
  let lines = 0, most = [0, ""];
  for (const part of article.querySelectorAll(".cell_input pre, p, li, dd, table, .fk-figure, div.math")) {
    if (part.closest("summary, details.fk-claims") || !within(part)) continue;
    if (!part.matches("pre")) lines = part.matches("p") && part.textContent.trim().length < 20 ? lines : 0;
    else lines += part.textContent.trimEnd().split("\n").length;
    if (lines > most[0]) most = [lines, part.textContent.trim()];
  }
  return [[gap[0] / 900, `${(gap[0] / 900).toFixed(1)} screens without a figure after "${gap[1]}"`],
    [most[0], `${most[0]} lines of code without a sentence until "${most[1].slice(0, 60)}"`]];
}"""
# Tiles of the race that lie on a word
WORDS_UNDER_TILES = """() => [...document.querySelectorAll(".fk-motion-stage svg")].flatMap((svg) => {
  const box = (part) => part.getBoundingClientRect();
  const tiles = [...svg.querySelectorAll("rect, circle")].map(box).filter((one) => one.width < 30);
  const lies = (one, other) => Math.min(one.right, other.right) - Math.max(one.left, other.left) > 1
    && Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top) > 3;
  const words = [...svg.querySelectorAll("text")].filter((word) => tiles.some((tile) => lies(tile, box(word))));
  return words.map((word) => word.textContent);
})"""
TOO_WIDE = "() => document.documentElement.scrollWidth > window.innerWidth"

FRAMES = """() => [...document.querySelectorAll(".fk-frame")]
  .filter((frame) => frame.getClientRects().length > 0).map((frame) => frame.innerHTML).join()"""

MOTIONS = """() => [...document.querySelectorAll(".fk-motion :is(.fk-motion-stage, .fk-motion-said)")]
  .map((part) => part.innerHTML).join()"""


@functools.cache
def _context(browser, scripts):
    """One for all visits, so that a page's scripts are read and compiled once."""
    return browser.new_context(java_script_enabled=scripts)


@contextmanager
def visit(browser, base, page, scheme="light", width=1280, vendored=True, scripts=True):
    """Open a page until all of it is drawn; yields (tab, faults), with faults of network and console so far."""
    tab, faults = _context(browser, scripts).new_page(), []

    def console(message):
        if message.type == "error":
            faults.append(f"console: {message.text}")

    def request(asked):
        if vendored and not asked.url.startswith((base, "data:", "blob:")):
            faults.append(f"asked a third party: {asked.url}")

    tab.set_viewport_size({"width": width, "height": 900})
    tab.emulate_media(color_scheme=scheme)
    tab.on("console", console)
    tab.on("pageerror", lambda error: faults.append(f"script: {error}"))
    tab.on("request", request)
    tab.on("response", lambda answer: faults.append(f"{answer.status}: {answer.url}") if answer.status >= 400 else None)
    try:
        tab.goto(f"{base}{page}.html", wait_until="load")
        if scripts:
            tab.evaluate(READY)
        yield tab, faults
        if scripts:
            tab.evaluate("localStorage.clear()")  # the next visitor is another
    finally:
        tab.close()


def becomes(tab, condition, before=None):
    """Whether `condition`, a function of `before`, comes true within five seconds."""
    try:
        tab.wait_for_function(condition, arg=before, timeout=5000)
    except TookTooLong:
        return False
    return True


def move_sliders(tab):
    """Press keys on each slider in sight; returns the sliders without a name and those that move no frame."""
    wrong = []
    for slider in tab.locator(".fk-slider input").all():
        if not slider.is_visible():
            continue  # in a frame that another slider brings
        name = slider.locator("xpath=..").inner_text().strip()
        slider.focus()
        for end in ("End", "Home"):
            tab.keyboard.press(end)
            if not becomes(tab, f"() => ({FRAMES})().trim()"):
                wrong.append(f"the slider {name!r} shows nothing at its end")
        before = tab.evaluate(FRAMES)
        tab.keyboard.press("ArrowRight")
        if not name:
            wrong.append("a slider without a name")
        if not becomes(tab, f"(before) => ({FRAMES})() !== before", before):
            wrong.append(f"the slider {name!r} moves no frame")
        if not slider.get_attribute("aria-valuetext").startswith("2 of "):
            wrong.append(f"the slider {name!r} does not say which frame it shows")
    return wrong


def move_motions(tab):
    """Use each control of interactive.js's figures by keyboard; returns what changes nothing or draws no number."""
    wrong = []
    for place, control in enumerate(tab.query_selector_all(".fk-motion-controls :is([type=range], :checked, button)")):
        what = f"control {place} of the moving figures ({control.evaluate('(c) => c.type')})"
        control.focus()
        for key in ["Enter"] if control.evaluate("(c) => c.type") == "button" else ["ArrowDown", "End", "Home"]:
            before = tab.evaluate(MOTIONS)
            tab.keyboard.press(key)
            if key in ("Home", "End"):
                tab.wait_for_timeout(30)
            elif not becomes(tab, f"(before) => ({MOTIONS})() !== before", before):
                wrong.append(f"{what} changes nothing")
            after = tab.evaluate(MOTIONS)
            if "NaN" in after or "Infinity" in after:
                wrong.append(f"{what} draws no number at {key}")
    return wrong
