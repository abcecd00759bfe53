"""README's and the introduction's ladder are what the committed record says."""

import pytest

from tools.site import ladder


@pytest.mark.parametrize(
    "path", ["README.md", "book/intro.md", "book/images/ladder.svg", "book/images/ladder-narrow.svg"]
)
def test_the_ladder_is_the_committed_records(root, path):
    made = ladder.outputs()[root / path]
    assert (root / path).read_text(encoding="utf-8") == made, "run python book/tools ladder"


def test_readme_shows_its_two_commands(root):
    text = (root / "README.md").read_text(encoding="utf-8")
    assert "make book" in text and "make test" in text
