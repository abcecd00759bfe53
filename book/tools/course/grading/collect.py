"""What was handed in below a folder: its notebooks, those in zips too, and what was passed over, each with why.

A zip is read where it lies and nothing of it is written under its own names, so they can lead nowhere.
"""

import dataclasses
import os
import stat
import zipfile
from pathlib import Path, PurePosixPath

from . import guesses, scripts, totals

LARGEST = 100_000_000  # bytes of a notebook: more is output, which is not read
MEMBERS, UNPACKED, NESTED = 5000, 1_000_000_000, 3  # files and bytes of a zip; zips in zips
BESIDE, BESIDE_ALL = 1_000_000, 20_000_000  # bytes of a file that is brought along with a notebook; of all of them
ARCHIVES = {".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zst"}
LEFT_BY_SYSTEMS = {".ds_store", "desktop.ini", "thumbs.db"}
BARREN = "a folder without a notebook"
FOLDERS_LEFT = {".git", ".ipynb_checkpoints", "__macosx", "__pycache__"}


@dataclasses.dataclass
class Handed:
    """A file or folder: its name as it is shown, unique in the class; a notebook as prepared, or why it is none.

    guesses: of a file that the page *Your predictions* saved.
    """

    name: str
    content: object = None
    why: str = ""
    passed_over: bool = False
    guesses: list = dataclasses.field(default_factory=list)


def shown(name):
    """A name of any bytes as text that any file and any terminal can hold; different names stay different."""
    return "".join(_shown(c) for c in name)


def _shown(c):
    if "\udc80" <= c <= "\udcff":  # how Python keeps a byte that is not UTF-8
        return f"\\x{ord(c) - 0xDC00:02x}"
    if c == "\\":
        return c + c
    return c if c.isprintable() else f"\\u{ord(c):04x}"


class Collection:
    """Iterates over what was handed in, in the order of names; counts what systems leave behind.

    prepare(name, data, beside) is called with a notebook's bytes as soon as they are read; beside are the small files
    of its own folder, {name: bytes}, which it may import or open.
    """

    def __init__(self, folder, out, prepare):
        self.folder, self.out = Path(os.path.abspath(folder)), Path(os.path.abspath(out))
        self.prepare, self.litter, self.names = prepare, 0, set()

    def __iter__(self):
        for one in sorted(self._folder(self.folder, PurePosixPath())[0], key=lambda one: one.name):
            name, number = one.name, 1
            while one.name in self.names:  # a zip may hold one name twice
                number += 1
                one.name = f"{name} ({number})"
            self.names.add(one.name)
            yield one

    def _folder(self, folder, at):
        """All below a folder, and whether a notebook is."""
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            return [Handed(shown(str(at)), why=_refused(error))], True
        found, files, folders, holds = [], [], [], False
        for entry in entries:
            if self._is_ours(Path(entry.path)):
                continue
            is_folder = entry.is_dir(follow_symlinks=False)
            if _is_litter(entry.name, is_folder):
                self.litter += 1
            else:
                (folders if is_folder else files).append(entry)
        beside = _beside({entry.name: entry for entry in files}, _small) if at.parts else {}
        for entry in files:
            found += self._file(entry, at / entry.name, beside)
        directly = holds = any(not one.passed_over for one in found)
        for entry in folders:
            inner, inner_holds = self._folder(entry.path, at / entry.name)
            if entry.name.lower().endswith(".ipynb"):
                inner.append(Handed(shown(str(at / entry.name)), why="cannot be run: it is a folder"))
            found, holds = found + inner, holds or inner_holds
        if at.parts and (directly or not holds):  # pictures beside a notebook are no student's folder
            found = [one for one in found if one.why != BARREN]
        if at.parts and not holds:
            found.append(Handed(shown(str(at)), why=BARREN, passed_over=True))
        return found, holds

    def _is_ours(self, path):
        """What an earlier run wrote."""
        if path.parent == self.out:
            name = path.name.removeprefix(".").removesuffix(".partial")
            ours = ("overrides.csv", guesses.FILE, *totals.FILES, totals.WORKSHEET)
            if name in ours or (name.startswith("grades.") and name.endswith(".csv")):
                return True
        feedback = self.out / "feedback"
        if path == feedback:
            return all(inner.suffix in (".html", ".partial") for inner in path.rglob("*") if not inner.is_dir())
        return feedback in path.parents and path.suffix in (".html", ".partial")

    def _file(self, entry, at, beside):
        name = shown(str(at))
        try:
            facts = entry.stat()
            if stat.S_ISDIR(facts.st_mode):
                yield Handed(name, why="passed over: a link to a folder is not followed", passed_over=True)
                return
            if not stat.S_ISREG(facts.st_mode):
                yield Handed(name, why="passed over: it is no file", passed_over=True)
                return
            if entry.name.lower().endswith(".zip"):
                yield from self._zip(name, entry.path, 1)
                return
            yield self._notebook(name, entry.name, facts.st_size, Path(entry.path).read_bytes, beside)
        except OSError as error:
            is_link = entry.is_symlink()
            yield Handed(name, why=f"{_refused(error)}{': a link that leads nowhere' * is_link}")

    def _zip(self, name, file, depth):
        try:
            with zipfile.ZipFile(file) as archive:
                members = [one for one in archive.infolist() if not one.is_dir()]
                if len(members) > MEMBERS:
                    raise ValueError(f"it holds more than {MEMBERS:,} files")
                if sum(one.file_size for one in members) > UNPACKED:
                    raise ValueError(f"it would unpack to more than {UNPACKED // 10**6:,} MB")
                found = list(self._members(name, archive, members, depth))
        except Exception as error:  # whatever a zip may hold
            yield Handed(name, why=f"cannot be unpacked: {_said(error)}")
            return
        yield from found
        if all(one.passed_over for one in found):
            yield Handed(name, why="an archive without a notebook", passed_over=True)

    def _members(self, name, archive, members, depth):
        folders = {}
        for one in members:
            parts = tuple(part for part in PurePosixPath(one.filename.replace("\\", "/")).parts if part != "/")
            if not parts or any(_is_litter(part, True) for part in parts[:-1]) or _is_litter(parts[-1], False):
                self.litter += 1
            else:
                folders.setdefault(parts[:-1], []).append((parts[-1], one))
        for folder, files in sorted(folders.items()):

            def read(one):
                with archive.open(one) as opened:
                    data = opened.read(one.file_size + 1)
                if len(data) > one.file_size:
                    raise ValueError("it is larger than it says")
                return data

            beside = _beside(dict(files), lambda one: read(one) if one.file_size <= BESIDE else None)
            for last, one in files:
                full = "/".join([name, *(shown(part) for part in (*folder, last))])
                try:
                    if stat.S_ISLNK(one.external_attr >> 16):
                        yield Handed(full, why="passed over: a link is not followed", passed_over=True)
                    elif last.lower().endswith(".zip"):
                        if depth == NESTED:
                            raise ValueError("zips in zips in zips")
                        with archive.open(one) as opened:
                            yield from self._zip(full, opened, depth + 1)
                    else:
                        yield self._notebook(full, last, one.file_size, lambda one=one: read(one), beside)
                except Exception as error:
                    yield Handed(full, why=f"cannot be unpacked: {_said(error)}")

    def _notebook(self, name, last, size, read, beside):
        """A notebook by its name's end, or by what it holds: downloads turn .ipynb into .ipynb.txt or .json."""
        named = last.lower().endswith(".ipynb")
        if size > LARGEST:
            why = f"larger than {LARGEST // 10**6} MB: clear its outputs and save it again"
            return Handed(name, why=why) if named else _passed(name, last, beside)
        data = read()
        start = data[:1000].lstrip(b"\xef\xbb\xbf \r\n\t")
        if named or (start.startswith(b"{") and b'"nbformat"' in data and b'"cells"' in data):
            return Handed(name, self.prepare(last, data, beside))
        if last.lower().endswith(".py") and last not in beside and scripts.CHECKED.search(data):
            return Handed(name, self.prepare(last, data, beside))  # a notebook's text, exported
        if guesses.SAVED.fullmatch(last) and (found := guesses.read(data)):
            why = f"no notebook: {len(found)} guess(es), in {guesses.FILE}"
            return Handed(name, why=why, passed_over=True, guesses=found)
        return _passed(name, last, beside)


def _passed(name, last, beside):
    kind = "an archive that is not unpacked here" if Path(last).suffix.lower() in ARCHIVES else "not a notebook"
    along = ", brought along with those in its folder" * (last in beside)
    return Handed(name, why=f"passed over: {kind}{along}", passed_over=True)


def _beside(files, read):
    """The small files of a folder, except notebooks and archives: {name: bytes}."""
    kept, taken = {}, 0
    notebooks = [name for name in files if ".ipynb" in name.lower()]
    for name, file in files.items():
        if not notebooks or name in notebooks or Path(name).suffix.lower() in {".zip", *ARCHIVES} or "\0" in name:
            continue
        try:
            data = read(file)
        except Exception:  # said where it is listed
            continue
        if data is not None and taken + len(data) <= BESIDE_ALL:
            kept[name], taken = data, taken + len(data)
    return kept


def _small(entry):
    is_small = entry.is_file(follow_symlinks=False) and entry.stat().st_size <= BESIDE
    return Path(entry.path).read_bytes() if is_small else None


def _is_litter(name, is_folder):
    name = name.lower()
    return name in FOLDERS_LEFT if is_folder else name.startswith("._") or name in LEFT_BY_SYSTEMS


def _refused(error):
    return f"cannot be read: {error.strerror or _said(error)}"


def _said(error):
    return f"{type(error).__name__}: {error}".partition("\n")[0]
