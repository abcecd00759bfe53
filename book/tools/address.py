"""Where the repository is: said once, for the pages, for Colab, for the wheel and for the Hub.

REPO_URL (an address) or GITHUB_REPOSITORY (owner/name, as on GitHub's runners) says it, or else `repository` below
[tool.flashkat] in pyproject.toml. setup.py uses this module too, so it needs Python alone.
"""

import re
from collections.abc import Mapping
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
SETTING = re.compile(r'^\[tool\.flashkat\]\nrepository = "(.*?)"', re.MULTILINE)
FENCED = re.compile(r"^(```.*?^```$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!#|[a-z]+:)([^)\s]+)\)")


def repository(environ: Mapping[str, str], pyproject: Path = PYPROJECT) -> str | None:
    """The repository's public address, without a slash or .git at its end; None where nothing says one."""
    address = environ.get("REPO_URL")
    if not address and environ.get("GITHUB_REPOSITORY"):
        address = f"{environ.get('GITHUB_SERVER_URL', 'https://github.com')}/{environ['GITHUB_REPOSITORY']}"
    if not address:
        found = SETTING.search(pyproject.read_text(encoding="utf-8"))
        address = found and found[1]
    return address.strip().rstrip("/").removesuffix(".git") if address else None


def branch(environ: Mapping[str, str]) -> str:
    """The branch or tag that links go to."""
    return environ.get("REPO_BRANCH") or environ.get("GITHUB_REF_NAME") or "main"


def urls(environ: Mapping[str, str], pyproject: Path = PYPROJECT) -> dict[str, str]:
    """The wheel's links; none without an address."""
    address = repository(environ, pyproject)
    if not address:
        return {}
    return {
        "Repository": address,
        "Issues": f"{address}/issues",
        "Changelog": f"{address}/blob/{branch(environ)}/CHANGELOG.md",
    }


def description(readme: str, environ: Mapping[str, str], pyproject: Path = PYPROJECT) -> str:
    """README.md as it can stand where its neighbours are not.

    Links to files are to those of the repository; without an address their words stay, and pictures are left out.
    """
    address = repository(environ, pyproject)

    def standing_alone(found: re.Match) -> str:
        picture, words, path = found.groups()
        words = LINK.sub(standing_alone, words)  # a picture may be a link's
        if not address:
            return "" if picture else words
        return f"{picture}[{words}]({address}/{'raw' if picture else 'blob'}/{branch(environ)}/{path})"

    parts = FENCED.split(readme)
    return "".join(part if i % 2 else LINK.sub(standing_alone, part) for i, part in enumerate(parts))
