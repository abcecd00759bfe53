"""A session's deck: the notebooks' figures and sentences, the guide's activities and notes; nothing from elsewhere."""

import re

import nbformat
import pytest

from tools import notebooks
from tools.course import slides


def test_a_deck_has_the_sections_figures_questions_and_claims_of_its_chapter(code):
    text = nbformat.v4.new_markdown_cell
    figure = code(
        "draw()",
        "figure",
        metadata={"mystnb": {"figure": {"caption": "Time of the additions, by width. And more.", "name": "fig-x"}}},
    )
    figure.outputs = [nbformat.v4.new_output("display_data", {"image/svg+xml": "<?xml?><svg id='x'></svg>"})]
    claim = code("lab.claim('It takes', 3)", "claim")
    claim.outputs = [
        nbformat.v4.new_output(
            "display_data", {"text/html": "<p>✓ It takes <b>3&lt;4</b> ms (claimed: 3 to 5; measured here)</p>"}
        )
    ]
    cells = [
        text("# 7. Adding\n\n:::{admonition} In this chapter\n**Question.** How slow\nis it?\n:::"),
        text("## Predict\n\n**By bytes.** It is 0.5 ms, see {numref}`fig-x`, for $a_1 < b_1.$ Then more.\n\nNo."),
        code('guess = None\nlab.predict("How long?", "ms", "07-x", guess)', "p", "predict"),
        figure, claim,
        text("## Exercises\n\nSecret."), code("stub", "s", "exercise"),
        text("Whole *cell*.", metadata={"tags": ["slide"]}), text("## Gone\n\nAway.", metadata={"tags": ["no-slide"]}),
        text("## Summary\n\n- one\n- two"),
    ]  # fmt: skip
    deck = slides.Deck("Session")
    notes = {"speaker": "**Expect** this.", "discuss": [("Why?", "Because.")]}
    made = nbformat.v4.new_notebook(cells=cells, metadata={"flashkat": {"gpu": "NVIDIA H200"}})
    slides.chapter_slides(deck, made, "07_adding", notes)
    shown = [re.sub(r"<aside.*?</aside>", "", slide, flags=re.DOTALL) for slide in deck.slides]
    assert len(shown) == 8
    assert (
        "Measured on NVIDIA H200" in shown[0]
        and "7. Adding" in shown[0]
        and "How slow\nis it?" in shown[0]
        and "Expect" in deck.slides[0]
    )
    assert "It is 0.5 ms, see, for $a_1 &lt; b_1.$" in shown[1] and "Then more" not in shown[1]
    assert "Then more" in deck.slides[1] and "../html/chapters/07_adding.html#predict" in shown[1]
    assert "How long?" in shown[2] and "<svg id='x'>" in shown[3] and "by width." in shown[3] and "more" not in shown[3]
    assert (
        '<p class="claim">It takes 3&lt;4 ms</p>' in shown[4]
        and "<em>cell</em>" in shown[5]
        and "<li>two</li>" in shown[6]
    )
    assert "Why?" in shown[7] and "Because." not in shown[7] and "Because." in deck.slides[7]
    assert "Secret" not in deck.page() and "Away" not in deck.page()


def test_every_activity_of_the_guide_leads_to_a_section_that_is_there():
    found = slides.sessions(slides.guide())
    assert [number for number, *_ in found] == list(range(1, 11))
    minutes = {}
    for number, chapters, _, activities, _ in found:
        for words, stem, anchor in activities:
            (path,) = notebooks.select([stem])
            assert anchor in map(slides.slug, slides.headings(notebooks.read(path))), f"session {number}: {words}"
            minutes[number] = minutes.get(number, 0) + int(re.search(r"\((\d+)\)$", words)[1])
        assert chapters
    assert set(minutes.values()) == {75}, "90 less the self-test and the prediction"


def test_the_guide_has_notes_and_questions_for_every_chapter():
    notes = slides.notes_of(slides.guide())
    assert [*notes] == [f"{number:02}" for number in range(1, 16)]
    assert all("**Expect**" in one["speaker"] and len(one["discuss"]) == 2 for one in notes.values())


@pytest.fixture(scope="module")
def deck():
    session = next(one for one in slides.sessions(slides.guide()) if one[0] == 5)
    return slides.deck_of(session, slides.notes_of(slides.guide()), notebooks.read).page()


def test_a_deck_loads_nothing_from_elsewhere(deck):
    loaded = re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=\"([^\"]*)\"", deck)
    assert loaded and all(place.startswith("vendor/") for place in loaded)
    assert deck.count("<section>") > 12 and deck.count("<svg") >= 3 and "Session 5" in deck
    assert deck.count('<aside class="notes">') > 8


def test_a_sentence_ends_where_it_ends():
    assert slides.first_sentence("It takes 0.5 ms, i.e. half of one, says it. Then.").endswith("half of one, says it.")
    assert slides.first_sentence("**By bytes.** The kernel moves $x. y$ of them in all. More.").endswith("in all.")
    assert slides.first_sentence("No end here") == "No end here"
