"""What motion.js draws first, for pages where no script runs: `python book/tools/stills.py` writes
flashkat_lite/lab/motion/*.html. Needs Chromium.
"""

import html
import json
import sys
from pathlib import Path
from unittest import mock

import console
from needs import chromium

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def settings() -> dict[str, dict]:
    """Of each figure, from the committed records."""
    from flashkat_lite.lab import motion, records

    found = {}
    with mock.patch.object(motion, "_show", found.__setitem__):
        ladder = records.load("ladder")
        motion.race(ladder), motion.roofline(ladder), motion.rational()
    return found


def drawn(browser, name: str, given: dict) -> str:
    """The figure as the script draws it at first, 720 pixels wide, without its controls."""
    from flashkat_lite.lab import motion

    tab = browser.new_page(viewport={"width": 900, "height": 900})
    box = f'<div class="fk-motion" data-figure="{name}" data-settings="{html.escape(json.dumps(given))}"></div>'
    tab.set_content(f'<!doctype html><div style="width: 720px">{box}</div>')
    tab.add_script_tag(content=motion.SCRIPT.read_text(encoding="utf-8"))
    tab.wait_for_timeout(200)
    parts = ".fk-motion-stage, .fk-motion-said, .fk-motion-source"
    found = tab.eval_on_selector_all(parts, "all => all.map((part) => part.outerHTML)")
    tab.close()
    return "\n".join(found) + "\n"


def main() -> None:
    from playwright.sync_api import sync_playwright

    from flashkat_lite.lab import motion

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        for name, given in settings().items():
            path = motion.STILLS / f"{name}.html"
            path.write_text(drawn(browser, name, given), encoding="utf-8")
            print(path)
        browser.close()


if __name__ == "__main__":
    console.prepare()
    main()
