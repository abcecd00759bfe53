"""What the teaching guide says of the chapters is what the notebooks say."""

import re

from tools import notebooks
from tools.notebooks import minutes


def test_the_table_of_chapters_has_the_notebooks_exercises_points_and_minutes(root):
    text = (root / "book" / "teaching.md").read_text(encoding="utf-8")
    table = text[text.index("<!-- chapters: points -->") : text.index("<!-- end of chapters -->")]
    rows = dict(re.findall(r"^\| (\d\d) \| [^|]+ \| (\d+ \| \d+ \| \d+ \| \d+ \| \d+) \|", table, re.MULTILINE))
    rows = {name: re.sub(r"^(\d+ \| \d+ \|) \d+ \|", r"\1", row) for name, row in rows.items()}
    found = {}
    for path in notebooks.select([]):
        notebook = notebooks.read(path)
        cells, counted = notebook.cells, minutes.count(notebook)
        points = [cell.metadata.exercise.points for cell in cells if "exercise" in notebooks.tags(cell)]
        found[path.stem[:2]] = f"{len(points)} | {sum(points)} | {counted['minutes']} | {counted['exercises']}"
    assert rows == found
    total = sum(int(row.split(" | ")[1]) for row in rows.values())
    assert f"\n{total} points in all" in text


def test_every_chapter_ends_in_three_to_five_questions_with_folded_answers():
    for path in notebooks.select([]):
        (cell,) = [cell for cell in notebooks.read(path).cells if cell.source.startswith("## Self-test")]
        asked = re.findall(r"^\*\*(\d)\.\*\*", cell.source, re.MULTILINE)
        assert asked in (list("123"), list("1234"), list("12345")), path.stem
        assert cell.source.count("<details>\n<summary>Answer</summary>\n\n") == len(asked), path.stem
