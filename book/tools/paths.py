"""Where the repository's parts lie: said once, for all tools."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / "book" / "tools"  # `python TOOLS name` runs one
CHAPTERS = ROOT / "chapters"
BUILD = ROOT / "_build"
FRESH, KEPT = BUILD / "records", ROOT / "book" / "data"
