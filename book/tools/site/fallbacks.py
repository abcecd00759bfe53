"""`python book/tools fallbacks`: what interactive.js draws first, for pages where no script runs. Needs Chromium.

Writes flashkat_lite/lab/interactive/fallback/*.html.
"""

import html
import json
from unittest import mock

from flashkat_lite import doctor


def settings() -> dict[str, dict]:
    """Of each figure, from the committed records."""
    from flashkat_lite.lab import interactive, records

    found = {}
    with mock.patch.object(interactive, "_show", found.__setitem__):
        ladder = records.load("ladder")
        interactive.race(ladder), interactive.roofline(ladder), interactive.rational()
    return found


def drawn(browser, name: str, given: dict) -> str:
    """The figure as the script draws it at first, 720 pixels wide, without its controls."""
    from flashkat_lite.lab import interactive

    tab = browser.new_page(viewport={"width": 900, "height": 900})
    box = f'<div class="fk-motion" data-figure="{name}" data-settings="{html.escape(json.dumps(given))}"></div>'
    tab.set_content(f'<!doctype html><div style="width: 720px">{box}</div>')
    tab.add_script_tag(content=interactive.SCRIPT.read_text(encoding="utf-8"))
    tab.wait_for_timeout(200)
    parts = ".fk-motion-stage, .fk-motion-said, .fk-motion-source"
    found = tab.eval_on_selector_all(parts, "all => all.map((part) => part.outerHTML)")
    tab.close()
    return "\n".join(found) + "\n"


def main() -> None:
    from playwright.sync_api import sync_playwright

    from flashkat_lite.lab import interactive

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=doctor.chromium(), args=["--no-sandbox", "--disable-gpu"])
        for name, given in settings().items():
            path = interactive.FALLBACK / f"{name}.html"
            path.write_text(drawn(browser, name, given), encoding="utf-8")
            print(path)
        browser.close()
