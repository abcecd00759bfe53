"""What a page makes of its notebook: a figure first, folded what drives, claims together, names that hold."""

import itertools
import json
import re
from html import unescape
from pathlib import Path
from types import SimpleNamespace

import about
import numpy as np
import pytest
from addresses import MENTION, title_of
from chapter_pages import _gather_claims, claims_of, name_fold
from code_lines import in_lines as in_lines_of_code
from docutils import nodes
from PIL import Image
from tables import align, in_print, whole
from typeset import apart, in_letters, in_lines

from tools.site import machine, openings

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = [path.stem for path in sorted(ROOT.glob("chapters/[0-9][0-9]_*.ipynb"))]
PARTS = [path.stem for path in sorted(ROOT.glob("book/part*.md"))]


@pytest.fixture(scope="module")
def pages(html):
    names = [f"chapters/{name}" for name in CHAPTERS] + [f"book/{name}" for name in PARTS] + ["book/intro"]
    return {name: (html / f"{name}.html").read_text(encoding="utf-8") for name in names}


def claim(kind="", more=""):
    return nodes.raw("", f'<p class="fk-claim{kind}"><span class="fk-mark">✓</span> It holds.</p>{more}', format="html")


def cell(*outputs, hide="input"):
    made = nodes.container(nb_element="cell_code", hide_mode=hide)
    made += nodes.container("", nodes.literal_block("", "lab.claim()"), nb_element="cell_code_source")
    made += nodes.container("", *outputs, nb_element="cell_code_output")
    return made


def gathered(*children):
    parent = nodes.section("", *children)
    _gather_claims(parent)
    return [child.astext() if isinstance(child, nodes.raw) else child for child in parent.children]


def test_claims_that_run_on_are_one_line_which_is_open_where_one_fails():
    hold = [cell(claim(), claim()), cell(claim())]
    before, *inside, after = gathered(*hold)
    assert "3 claims hold" in before and " open" not in before and inside == hold and after == "</details>"
    before, *_ = gathered(cell(claim(), claim(" fk-differs"), claim()))
    assert "1 of 3 claims does not hold on this GPU" in before and '<details class="fk-claims" open>' in before


def test_few_claims_stay_open_and_what_stands_between_parts_them():
    between = nodes.paragraph("", "A word.")
    assert len(gathered(cell(claim(), claim()))) == 1
    assert len(gathered(cell(claim()), between, cell(claim(), claim()))) == 3
    assert claims_of(cell(claim(), nodes.raw("", "<table></table>", format="html"))) is None
    assert claims_of(cell(claim(), hide=None)) is None, "code in full view is read with what it claims"


def test_every_chapter_and_part_has_the_machine_with_something_lit_and_the_chapter_a_figure_of_its_question(pages):
    assert set(openings.OPENINGS) == {name[:2] for name in CHAPTERS}
    assert set(machine.LIT) == {name[:2] for name in CHAPTERS} | set(PARTS)
    for name, page in pages.items():
        if name == "book/intro":
            continue
        page = page[page.index("<article") :]
        label = re.search(r'<div class="fk-machine">.*?aria-label="([^"]*)"', page, re.DOTALL)[1]
        assert re.search(r"Lit: \w", label), name
        if name.startswith("chapters"):
            question, opening = page.index(">Question.<"), page.index('class="fk-opening"')
            assert question < opening < page.index('class="fk-machine"') < page.index("<h2>"), name


def test_the_machine_tells_no_number_before_the_chapter_that_measures_it():
    """A question mark stands for it; afterwards the records' numbers do, in both drawings."""
    early, late = machine.draw("05"), machine.draw("07")
    wait, rate = re.fullmatch(r"(\d+ ns) · ([\d,]+ GB/s)", machine.numbers()["hbm"][1]).groups()
    assert wait not in early and rate not in early and "? ns" in early and wait not in machine.said("05")
    for narrow in (False, True):
        assert wait in machine.draw("07", narrow) and rate in machine.draw("07", narrow)
    assert "? ns" not in late


def test_set_up_objectives_results_and_timing_are_folded(pages):
    for name in CHAPTERS:
        page = pages[f"chapters/{name}"]
        start = page[page.index("<article") :].partition("<h2>")[0]
        assert "Set-up" in start and "You will be able to …" in start, name
        assert "Kernels run on this machine" not in page, name
        result = start.find("<strong>Result.</strong>")
        assert result < 0 or start.rfind('<details class="fk-result">', 0, result) > 0, name
    assert sum(page.count("How this was timed (") for page in pages.values()) > 20


def test_a_chapter_numbers_its_figures_equations_and_tables_by_itself(pages):
    counted = 0
    for name in CHAPTERS:
        page, number = pages[f"chapters/{name}"], int(name[:2])
        for kind in ("Fig.", "Table"):
            found = re.findall(rf'class="caption-number">{kind} ([\d.]+)', page)
            assert found == [f"{number}.{place}" for place in range(1, len(found) + 1)], name
            counted += len(found)
        equations = re.findall(r'class="eqno">\(([\d.]+)\)', page)
        assert equations == [f"{number}.{place}" for place in range(1, len(equations) + 1)], name
        assert set(re.findall(r'href="#table-([\d.]+)"', page)) <= set(re.findall(r'id="table-([\d.]+)"', page)), name
    assert counted > 100


def test_every_exercise_is_a_heading_with_an_address(pages):
    for name in CHAPTERS:
        page, number = pages[f"chapters/{name}"], int(name[:2])
        found = re.findall(r'id="exercise-(\d+)-(\d+)"', page)
        places = [int(place) for of, place in found if int(of) == number]
        assert len(places) == len(found) > 1 and places == sorted(set(places)), name
        assert not re.search(rf"<strong>{number}\.\d ", page), name


def test_what_begins_an_exercise_is_its_name_and_what_follows_stays():
    paragraph = nodes.paragraph(
        "", "", nodes.strong("", "7.1 Count the work"), nodes.Text(" (2 points). For the kernel.")
    )
    name, (rest,) = title_of(paragraph)
    assert name == "7.1 Count the work" and rest.astext() == "2 points. For the kernel."
    assert title_of(nodes.paragraph("", "", nodes.strong("", "By bytes."), nodes.Text(" Read."))) is None


def test_chapters_are_linked_in_words_that_read_within_a_sentence(pages):
    for name, page in pages.items():
        text = re.sub(
            r"<(script|style|pre|svg|h\d|nav)\b.*?</\1>",
            "",
            page[page.index("<article") : page.index("</article>")],
            flags=re.DOTALL,
        )
        for link in re.findall(
            r"[^<>]{3,}<a class=\"reference internal\"[^>]*>(?:<span[^>]*>)?(\d+\. [A-Z][^<]*)", text
        ):
            pytest.fail(f"{name}: a title within a sentence: {link}")
    assert re.search(
        r'<a class="reference internal" href="[^"]*10_to_the_limit\.html" title="10\. To the limit">',
        pages["book/intro"],
    )
    found = [
        match.group() for match in MENTION.finditer("In chapters 7, 9 and 10, exercise 6.4, and chapter 3.5 of a book")
    ]
    assert found == ["chapters 7, 9 and 10", "exercise 6.4"]


def test_a_term_has_its_meaning_where_it_is_used(pages):
    links = [link for page in pages.values() for link in re.findall(r"<a [^>]*glossary\.html#term-[^>]*>", page)]
    assert len(links) > 50
    meanings = [unescape(re.search(r'data-means="([^"]*)"', link)[1]) for link in links]
    assert all(len(meaning) > 8 for meaning in meanings)
    cited = re.findall(r"(\S+) \{cite\}`([^`]+)`", (ROOT / "book" / "glossary.md").read_text(encoding="utf-8"))
    assert ("H200", "cuda") in cited
    assert not [meaning for meaning in meanings for word, key in cited if f"{word} {key}" in meaning]


def test_a_shared_link_has_a_description_and_the_page_says_how_to_cite_the_book(pages):
    for name, page in pages.items():
        assert re.search(r'<meta name="description" content="[^"]{40,}"', page), name
        assert re.search(r'<meta property="og:title" content="[^"]+"', page), name
        assert "CC BY 4.0; code: MIT" in page and "@software{" in page, name
    assert "<title>FlashKAT from Scratch</title>" in pages["book/intro"]


def test_a_shared_link_shows_the_ladder_where_the_site_has_an_address(tmp_path):
    config = SimpleNamespace(html_baseurl="https://example.org/book/", html_title="A book", root_doc="book/intro")
    builder = SimpleNamespace(format="html", get_target_uri="{}.html".format)
    app = SimpleNamespace(config=config, builder=builder, outdir=tmp_path)
    (tmp_path / "_static").mkdir()

    def shared():
        context = {"body": "", "title": "7. A <em>chapter</em>"}
        about.preview(app, "chapters/07", "page.html", context, None)
        return dict(re.findall(r'<meta property="(og:[\w:]+)" content="([^"]*)">', context["metatags"]))

    about.draw_preview(app, None)
    tags = shared()
    assert tags["og:title"] == "7. A chapter" and tags["og:url"] == "https://example.org/book/chapters/07.html"
    assert len(tags["og:image:alt"]) > 40
    picture = np.asarray(Image.open(tmp_path / tags["og:image"].removeprefix(config.html_baseurl)).convert("RGB"))
    assert picture.shape == (630, 1200, 3), "what previews are made for"
    for colour, least in (((0xD5, 0x5E, 0), 0.02), ((0, 0x72, 0xB2), 0.001), ((255, 255, 255), 0.5)):
        assert (np.abs(picture.astype(int) - colour).max(axis=-1) < 3).mean() > least
    assert (picture[:, :4] == 255).all() and (picture[:, -4:] == 255).all(), "nothing is cut off"
    config.html_baseurl = ""
    assert not {"og:image", "og:url"} & set(shared())


def test_formulas_are_typeset_before_a_page_is_opened(pages, html):
    if not (html / "vendor").exists():
        pytest.skip("npm is missing: pages have MathJax")
    made = sum(page.count('class="katex"') for page in pages.values())
    assert made > 800
    assert not [name for name, page in pages.items() if "mathjax" in page.lower().replace("mathjax_ignore", "")]
    assert not [name for name, page in pages.items() if "katex-error" in page]


@pytest.mark.parametrize(
    "given, made",
    [
        ("x = 1", "x = 1"),
        ("a &= 1 \\\\\nb &= 2", r"\begin{split}a &= 1 \\" + "\nb &= 2" + r"\end{split}"),
        ("a\n\nb", r"\begin{gathered}a\\b\end{gathered}"),
        (r"\begin{cases}a \\ b\end{cases}", r"\begin{cases}a \\ b\end{cases}"),
    ],
)
def test_a_formula_of_several_lines_is_one_that_katex_reads(given, made):
    assert in_lines(given) == made


def test_formulas_that_share_a_line_can_stand_apart():
    assert apart(r"a = \frac{b}{c}, \qquad \text{and} \qquad d = e.") == [r"a = \frac{b}{c},", r"\text{and}", "d = e."]
    for whole_one in ("a + b", r"\begin{split}a &= 1 \qquad b\end{split}", r"\underbrace{a \qquad b}_c"):
        assert apart(whole_one) == [whole_one]


def test_no_part_page_tells_what_its_chapters_ask(pages):
    """No recorded time and no ratio stands in its text."""
    for name in PARTS:
        text = (ROOT / "book" / f"{name}.md").read_text(encoding="utf-8")
        assert not re.search(r"\d+(\.\d+)? ?(ms|GB/s|×|times the limit)", text), name
    assert "roofline" not in (ROOT / "book" / "part3_disease.md").read_text(encoding="utf-8")


def test_the_openings_that_are_kept_show_the_committed_records():
    """Else each build would draw them anew."""
    kept = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(openings.DRAWINGS.glob("*.json"))]
    assert len(kept) == len(openings.OPENINGS)
    assert {one["of"] for one in kept} == {openings.sources()}, "run python book/tools ladder"


def test_openings_are_drawn_for_both_widths_with_no_word_on_another():
    from flashkat_lite.lab import figures, fitting

    for number, (draw, _) in itertools.islice(openings.OPENINGS.items(), 3, None, 4):
        figure, _ = draw()
        for fit in (fitting.finish, fitting.narrow):
            fit(figure)
            boxes = fitting.written(figure)
            lie = [(a, b) for (a, one), (b, two) in itertools.combinations(boxes, 2) if fitting.overlap(one, two)]
            assert not lie, number
        figures.plt.close(figure)


def test_code_goes_on_below_itself_further_in_and_its_text_stays():
    lines = '<span></span><span class="k">def</span> f():\n\n    <span>y</span> = 1\n'
    code = f'<div class="highlight"><pre>{lines}</pre></div>'
    made = in_lines_of_code(code)
    assert re.sub("<[^>]*>", "", made) == re.sub("<[^>]*>", "", code)
    assert re.findall(r'<span class="fk-line"( style="[^"]*")?>', made) == ["", "", ' style="--fk-in: 4"']
    across = code.replace("<span>y</span> = 1\n", "<span>y\n= 1</span>\n")
    assert in_lines_of_code(across) == across, "a word over two lines: nothing is parted"


def test_dates_numbers_and_tests_fit_the_columns_of_a_table():
    date, plain = whole("on 2026-11-28, at most 2.384e-07")[1::2], whole("a b")
    assert [one.astext() for one in date] == ["2026-11-28", "2.384 × 10⁻⁷"] and len(plain) == 1
    assert all("fk-whole" in one["classes"] for one in date)
    assert whole("2.6e-08 * rows", code=True)[1].astext() == "2.6e-08"
    parts = whole("the REDG.E.ADD.F32 in it")
    assert "".join(one.astext() for one in parts).replace("<wbr>", "") == "the REDG.E.ADD.F32 in it"
    assert in_print("1e-05, ±1e-6, 1.85e+07, 3e+00, a1e-5, 2e8") == "10⁻⁵, ±10⁻⁶, 1.85 × 10⁷, 3, a1e-5, 2e8"


def test_columns_of_numbers_stand_on_the_right():
    rows = ["1", "7", "1,024 · 38", "3.11.7"], ["2", "–", "✗ 5e-10", "2"], ["3", "0.5 %", "4", "2026-11-28"]
    table, group = nodes.table(), nodes.tgroup()
    table += group
    for part, lines in ((nodes.thead, [["name", "share", "sums", "when"]]), (nodes.tbody, rows)):
        group += part("", *(nodes.row("", *(nodes.entry("", nodes.paragraph("", w)) for w in r)) for r in lines))
    align(table)
    right = [one.astext() for one in table.findall(nodes.entry) if "text-right" in one["classes"]]
    assert right == ["share", "sums", "7", "1,024 · 38", "–", "✗ 5e-10", "0.5 %", "4"]


@pytest.mark.parametrize(
    "formula, said",
    [
        (r"L = \lambda W", "L = λ W"),
        (r"2^{-24}\sqrt{\sum \text{term}^2}", "2⁻²⁴√(Σ term²)"),
        (r"1 + |\sum b_j x^j|", "1 + |Σ bⱼ xʲ|"),
        (r"\frac{P}{Q} \le x^{a}", "(P)/(Q) ≤ x^(a)"),
        (r"6 \cdot 10^{-8}", "6 · 10⁻⁸"),
    ],
)
def test_a_formula_can_be_said_in_letters(formula, said):
    assert in_letters(formula) == said


@pytest.mark.parametrize(
    "code, shown, words",
    [
        ("def walk(x):\n    return x\n\n\nclass Cache:\n    pass", [], "Code of walk, Cache (6 lines)"),
        ("figure = 1", [nodes.image("", uri="a.svg")], "Code of this figure"),
        ("lab.table()\n1", [nodes.raw("", "<table></table>", format="html")], "Code of this table (2 lines)"),
        ("lab.claim()", [claim()], "How this is checked"),
        ("print(1)", [nodes.literal_block("", "1")], "Code"),
    ],
)
def test_a_fold_says_what_is_in_it(code, shown, words):
    folded = cell(*shown)
    folded["prompt_show"] = "Show the code"
    folded.children[0].children = [nodes.literal_block("", code)]
    name_fold(folded)
    assert folded["prompt_show"] == words


@pytest.mark.parametrize(
    "code, words",
    [
        ("r = lab.measure('e', 't', f)\nr", "How this was timed (2 lines)"),
        ("@triton.jit\ndef kernel(): pass\n\nlab.timings({})", None),
        ("guess = None\nlab.predict('?', 'ms', '04-a', guess)\nlab.timings({})", None),
    ],
)
def test_what_times_is_folded_and_what_teaches_is_not(code, words):
    made = cell(hide=None)
    made.children[0].children = [nodes.literal_block("", code)]
    name_fold(made)
    assert made.get("prompt_show") == words
