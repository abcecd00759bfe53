"""An exam is drawn anew by its seed; its answers are right for what was drawn."""

import random
import re

import pytest

from tools.course import exam


def test_the_same_seed_draws_the_same_exam_and_another_another():
    assert exam.exam("7") == exam.exam("7") != exam.exam("8")
    assert [points for points, *_ in exam.exam("any")] == [6, 6, 8, 8, 8, 8, 8, 8]
    for number in (0, 1, 2, 4, 5, 7):
        assert len({exam.exam(seed)[number] for seed in range(20)}) > 3, number


def test_the_answers_of_the_exam_that_the_guide_had_are_found_again():
    answer = exam.sums(100_000, 1024, 16, 4000, 0.79)[2]
    for said in ("16 sums of 6.40 million", "102 million additions", "1.23 GB, 0.307 ms", "130 ms, 422 times"):
        assert said in answer
    answer = exam.bounds(4200, 3.35e13, 30)[2]
    assert "0.190 and 0.0896 ms: memory" in answer and "With 4 bytes 0.0952 and 0.0896" in answer
    answer = exam.flight(2000, 600, 80, 96)[2]
    assert (
        "5 programs" in answer
        and "1.20 MB, 15.0 KB" in answer
        and "20.5 KB, enough" in answer
        and "3: 41.0 KB" in answer
    )
    answer = exam.rounding(24, 12, 6)[2]
    assert answer.startswith("983; ") and "= 15.4;" in answer and "= 2.96 (2 each)" in answer
    answer = exam.graph(10**7, 64, 100, 10**6)[2]
    assert "100,000 messages a row, 25.6 KB" in answer and "10 a row, 256 MB" in answer


@pytest.mark.parametrize("seed", range(40))
def test_what_is_drawn_has_an_answer_that_is_no_close_call(seed):
    drawn = exam.draw_flight(random.Random(seed))
    fit, needed = exam.in_flight(**drawn)
    assert fit >= 1 and not 0.9 < fit * 4096 / needed < 1.1
    stages = exam._stages(fit, needed)
    assert (stages - 1) * fit * 4096 >= 2 * needed > (stages - 2) * fit * 4096
    gb_s, rate, instructions = exam.draw_bounds(random.Random(seed)).values()
    memory, issue = 4 / gb_s / 1e9, instructions / rate
    assert 0.85 * memory < issue < memory, "with half the bytes, two limits of nearly one length"
    chosen = exam.draw_faults(random.Random(seed))["faults"]
    _, question, answer = exam.faults(chosen)
    assert len(chosen) == 4 and all(exam.FAULTS[name] in answer for name in chosen)
    right = exam.faults(())[1]
    assert (
        "other=0.0" in right
        and "atomic_add" in right
        and "int64" in right
        and "float32)" in right
        and question != right
    )
    compile(re.search(r"```python\n(.*)\n```", question, re.DOTALL)[1], "<exam>", "exec")


def test_an_exam_and_its_answers_are_files_to_print_that_load_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(exam, "FOLDER", tmp_path)
    exam.main(["spring 2027/<b>"])
    (folder,) = tmp_path.iterdir()
    assert {path.name for path in folder.iterdir()} == {"exam.md", "exam.html", "answers.md", "answers.html"}
    page = (folder / "exam.html").read_text(encoding="utf-8")
    assert page.count("<section>") == 8 and "tl.load" in page and "<b>" not in page and "http" not in page
    assert "Two points each" not in page and "Two points each" in (folder / "answers.html").read_text(encoding="utf-8")


def test_the_students_book_has_no_answers_to_an_exam(root):
    text = (root / "book" / "teaching.md").read_text(encoding="utf-8").partition("## An exam")[2].partition("\n## ")[0]
    assert "make exam SEED=" in text and "Answer" not in text
