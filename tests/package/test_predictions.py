"""Predictions: a guess is kept, held against what was measured, and refused where it is no number."""

import json
import re
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from flashkat_lite import records
from flashkat_lite.lab import predicting
from flashkat_lite.lab.predicting import predict, predictions, reveal

JS = Path(__file__).resolve().parents[2] / "book" / "theme" / "static" / "predictions.js"


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    """A reader's file, and no question asked yet."""
    monkeypatch.setattr(predicting, "_asked", {})
    monkeypatch.setenv(predicting.FILE, str(tmp_path / "kept" / "predictions.json"))
    return tmp_path / "kept" / "predictions.json"


@pytest.fixture
def shown(monkeypatch):
    """The text of what is displayed."""
    texts = []
    monkeypatch.setattr(predicting, "display", lambda item: texts.append(re.sub(r"<[^>]+>", " ", item.data)))
    return texts


def asked(shown, guess, value, unit="ms"):
    predict("How long?", unit, "04-launch", guess)
    reveal("04-launch", value)
    return shown[-1].strip()


SAID = [
    (4, 0.73, "ms", "Measured: 0.73 ms. Your guess, 4 ms, is 5.5 times too high."),
    (2e-4, 0.5, "ms", "Measured: 0.5 ms. Your guess, 0.0002 ms, is 2,500 times too low."),
    (1.5e9, 1549271040, "", "Measured: 1,549,271,040. Your guess, 1,500,000,000, is within 5 %."),
    (7, 7, "bytes", "Measured: 7 bytes. Your guess, 7 bytes, is right."),
    (3, 0, "spills", "Measured: 0 spills. Your guess, 3 spills, is too high."),
    (0, 3, "spills", "Measured: 3 spills. Your guess, 0 spills, is too low."),
    (-1, 2.5, "%", "Measured: 2.5 %. Your guess, -1 %, is too low."),
]


@pytest.mark.parametrize(("guess", "value", "unit", "said"), SAID)
def test_a_guess_is_compared_by_its_quotient_and_where_there_is_none_by_its_side(shown, guess, value, unit, said):
    assert asked(shown, guess, value, unit) == said


def test_the_page_says_what_the_notebook_says():
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js is missing")
    words = re.search(r"const figure = .*?(?=\n\n  // In a chapter)", JS.read_text(encoding="utf-8"), re.DOTALL)[0]
    typed = re.search(r"const number = .*?\n  };", JS.read_text(encoding="utf-8"), re.DOTALL)[0]
    cases = json.dumps([[guess, value, unit] for guess, value, unit, _ in SAID])
    numbers = json.dumps(
        [["1,000 ms", "ms"], ["4,5", ""], ["−3", ""], ["2e9", ""], [".5", "ms"], ["ms", "ms"], ["", ""]]
    )
    script = f"""{words}\n{typed}\nconsole.log(JSON.stringify([
        {cases}.map(([g, v, u]) => `Measured: ${{amount(v, u)}}. ${{compared(g, v, u)}}`),
        {numbers}.map(([text, unit]) => number(text, unit))]));"""
    done = subprocess.run([node, "-e", script], capture_output=True, encoding="utf-8", check=True)
    sentences, read = json.loads(done.stdout)
    assert sentences == [said for *_, said in SAID]
    assert read == [1000, 4.5, -3, 2e9, 0.5, None, None]


@pytest.mark.parametrize("guess", [4, 4.0, np.float32(4), torch.tensor([4.0]), Fraction(4)])
def test_numbers_of_any_kind_are_guesses(shown, guess):
    assert "Your guess, 4 ms," in asked(shown, guess, 2)


@pytest.mark.parametrize("guess", ["4", "4 ms", True, [4], torch.ones(2), 4j, float("nan"), float("inf"), 10**400])
def test_what_is_no_number_is_refused_with_its_unit(guess):
    with pytest.raises((TypeError, ValueError), match=r"guess=.*: expected a number of ms or None"):
        predict("How long?", "ms", "04-launch", guess)


def test_a_source_is_a_chapter_and_a_word():
    with pytest.raises(ValueError, match="source='launch': expected a chapter's two digits and a word"):
        predict("How long?", "ms", "launch")


def test_nothing_guessed_is_a_quiet_line_and_keeps_nothing(shown, kept):
    assert asked(shown, None, 0.73) == "Measured: 0.73 ms."
    assert "Your number first, in ms:" in shown[0] and not kept.exists()


def test_a_value_whose_question_was_not_asked_says_so_and_goes_on(shown):
    reveal("04-lunch", 0.73)
    assert "Measured: 0.73. Its question," in shown[0] and "has not been asked" in shown[0]
    with pytest.raises(TypeError, match="value='fast'"):
        reveal("04-lunch", "fast")


def test_guesses_outlive_the_notebook_and_are_shown_and_saved_together(shown, kept, monkeypatch, tmp_path):
    asked(shown, 4, 0.73)
    monkeypatch.setattr(predicting, "_asked", {})  # another notebook
    predict("How many?", "additions", "07-adds", 100)
    predictions(tmp_path / "mine.json")
    for part in (" 4. How long?", "4 ms", "0.73 ms", "× 5.5", " 7. How many?", "100 additions", "–", "1 are too high"):
        assert part in shown[-1], part
    found = predicting.read(json.loads((tmp_path / "mine.json").read_text(encoding="utf-8")))
    assert [*found] == ["04-launch", "07-adds"] and found["04-launch"].value == 0.73
    predict("How long?", "ms", "04-launch", 5)
    assert predicting.kept_on_this_machine()["04-launch"] == predicting.Prediction("How long?", "ms", 5.0, None)


@pytest.mark.parametrize("content", ["", "[1]", '{"a": 3, "01-b": {"guess": 1}, "01-c": {"question": "", "unit": 3}}'])
def test_a_file_that_is_not_ours_holds_no_guess(kept, shown, content):
    kept.parent.mkdir()
    kept.write_text(content, encoding="utf-8")
    assert predicting.kept_on_this_machine() == {}
    predictions()
    assert "No guesses yet" in shown[0]


def test_where_nothing_can_be_kept_the_guess_is_compared_all_the_same(shown, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv(predicting.FILE, str(tmp_path / "file" / "predictions.json"))  # no folder can be made there
    assert "5.5 times too high" in asked(shown, 4, 0.73)
    monkeypatch.delenv(predicting.FILE)
    monkeypatch.setattr(records, "in_clone", lambda: False)
    assert predicting.file() is None and "5.5 times too high" in asked(shown, 4, 0.73)
