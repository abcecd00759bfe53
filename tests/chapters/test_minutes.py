"""A chapter is as short as it promises, says how many minutes it takes, and begins with what came before."""

import pytest

from tools import notebooks
from tools.notebooks import minutes, recap

CHAPTERS = notebooks.select([])


@pytest.fixture(scope="module", params=CHAPTERS, ids=lambda path: path.stem)
def chapter(request):
    return request.param, notebooks.read(request.param)


def test_it_is_short_and_its_head_says_the_minutes_that_are_counted(chapter):
    path, notebook = chapter
    found = minutes.count(notebook)
    short = found["words"] <= minutes.WORDS and found["lines"] <= minutes.LINES and found["minutes"] <= minutes.MINUTES
    fine = short and 2 <= found["predictions"] <= 5 and minutes.said(found) in notebook.cells[0].source
    assert fine, f"{path.stem}: {found}, and the head should say {minutes.said(found)!r}"


def test_its_head_asks_and_does_not_answer(chapter):
    _, notebook = chapter
    head = notebook.cells[0].source
    assert "**Question.**" in head and "**Result.**" not in head


def test_it_begins_with_the_recap_from_its_one_source(chapter):
    path, notebook = chapter
    found = [number for number, cell in enumerate(notebook.cells) if cell.id == recap.CELL]
    if recap.needed(path):
        assert found == [1] and notebook.cells[1].source == recap.source(), "python book/tools recap"
    else:
        assert not found


def test_a_fold_of_text_counts_and_hidden_code_a_formula_and_an_exercise_do_not(notebook, code):
    made = notebook(
        code("a = 1\n\nb = 2", "shown"),
        code("c = 3", "hidden", "hide-input"),
        code("lab.predict()", "asked", "predict"),
    )
    prose = "# 1. A title\n\nfour words are here\n\n$$\nx\n$$ (eq-x)\n\n<details>folded</details>"
    made.cells[0].source = prose + "\n\n## Exercises\n\nnot these\n\n## Summary\n\nthese"
    assert minutes.count(made) == {"words": 10, "lines": 2, "predictions": 1, "minutes": 5, "exercises": 5}
