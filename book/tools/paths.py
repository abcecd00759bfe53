"""Where the repository's parts lie: said once, for all tools."""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / "book" / "tools"  # `python TOOLS name` runs one
CHAPTERS = ROOT / "chapters"
BUILD = ROOT / "_build"
FRESH, KEPT = BUILD / "records", ROOT / "book" / "data"
NOT_COPIED = ("_build", "dist", "build", "__pycache__")


def unwritable(root=ROOT):
    """The first of the places that tools write to which cannot be written to; None in a clone of one's own."""
    pages = [root / "book" / name for name in ("extra", "records.md", "status.md", "data")]
    places = [root, root / "book", root / "chapters", root / "_build", *pages, *root.glob("_build/*")]
    return next((place for place in places if place.exists() and not os.access(place, os.W_OK)), None)


def copy(root, folder):
    """Brings the tree to `folder`, without what is hidden or built; what is newer there stays. Returns the folder."""
    for here, names, files in os.walk(root):
        names[:] = [n for n in names if n not in NOT_COPIED and not n.startswith(".") and not n.endswith(".egg-info")]
        there = folder / Path(here).relative_to(root)
        there.mkdir(parents=True, exist_ok=True)
        for name in files:
            source, target = Path(here, name), there / name
            if name.startswith(".") or (target.exists() and target.stat().st_mtime >= source.stat().st_mtime):
                continue
            shutil.copyfile(source, target)  # not its mode, which may say that it can only be read
    return folder


def own_copy(root=ROOT):
    """This user's copy of a clone that can only be read, brought up to date, below TMPDIR; the same the next time."""
    user = os.getuid() if hasattr(os, "getuid") else ""
    name = hashlib.sha256(f"{user} {root}".encode("utf-8", "surrogateescape")).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"flashkat-{name}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or (user != "" and folder.stat().st_uid != user):  # somebody else's, who may change it
        folder = Path(tempfile.mkdtemp(prefix="flashkat-"))
    return copy(root, folder)
