"""Each exercise's check accepts a right answer, and rejects common wrong ones with the message that says why.

The answers are in answers_NN.py, a file for each chapter.
"""

import importlib
import re

import notebooks
import numpy as np
import pytest
import torch

from flashkat_lite.kernels import INTERPRETED
from flashkat_lite.lab import checks, solutions

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="make test runs these in a process of their own")

CHAPTERS = [path.stem[:2] for path in notebooks.select([])]
ANSWERS = {chapter: importlib.import_module(f"answers_{chapter}") for chapter in CHAPTERS}


def of(table):
    """(check, answer, words) of every chapter."""
    for chapter, answers in ANSWERS.items():
        for check, listed in getattr(answers, table).items():
            for number, entry in enumerate(listed if isinstance(listed, list) else [listed]):
                answer, words = (entry, "") if table == "RIGHT" else entry
                yield pytest.param(check, answer, words, id=f"{chapter}-{check}-{words or number}")


def judge(check, answer):
    getattr(checks, check)(*answer if isinstance(answer, tuple) else [answer])


@pytest.mark.parametrize(("check", "answer", "words"), [*of("RIGHT")])
def test_a_right_answer_is_accepted(check, answer, words, capsys):
    judge(check, answer)
    assert "Right: " in capsys.readouterr().out


@pytest.mark.parametrize(("check", "answer", "words"), [*of("WRONG"), *of("FIXED")])
def test_a_wrong_answer_is_rejected_with_its_cause(check, answer, words):
    with pytest.raises(checks.Wrong, match=words):
        judge(check, answer)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_check_of_a_chapter_is_tried_on_three_wrong_answers_or_more(chapter):
    (path,) = notebooks.select([chapter])
    cells = [cell.source for cell in notebooks.read(path).cells if "check" in notebooks.tags(cell)]
    called = [re.fullmatch(r"lab\.checks\.(\w+)\(.*\)", source)[1] for source in cells]
    assert len(called) >= 3 and set(called) <= set(checks.__all__)
    answers = ANSWERS[chapter]
    assert answers.FIXED.keys() == set(called), "one that is hard-coded, or right at one size"
    assert {name for name, wrong in answers.WRONG.items() if len(wrong) >= 2} == set(called)


def test_a_number_is_wrong_by_a_part_in_ten_thousand():
    checks.common.same_number("a ratio", 0.25 * (1 + 1e-7), 0.25)
    with pytest.raises(checks.Wrong, match=r"a ratio: expected 0\.25, got 0\.250025"):
        checks.common.same_number("a ratio", 0.25 * (1 + 1e-4), 0.25)


def test_numpys_numbers_are_numbers():
    checks.common.same_number("a count", np.int64(7), 7)
    checks.common.same_number("a count", torch.tensor([7]), 7)


def test_additions_and_addresses_are_counted():
    with checks.counting() as count:
        solutions.column_sums_copies_solution(torch.randn(40, 8), copies=2)
    assert count.adds == 320 and len(count.addresses) == 8
