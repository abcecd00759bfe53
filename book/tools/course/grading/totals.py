"""One row a student: totals.csv for any gradebook, canvas.csv for Canvas, results.json for Gradescope's autograder.

Files that Moodle named also give moodle.csv, the grading worksheet of an assignment: its importer finds a student by
the participant's number, which no other of Moodle's imports takes, and asks for the three columns in English
(mod/assign/feedback/offline/importgradeslib.php).

Who handed a file in is read from its name: as STUDENT says, as Moodle and Canvas name what they hand out, or else by
the first folder.
"""

import csv
import dataclasses
import io
import json
import re

from . import table

FILES = ("totals.csv", "canvas.csv")
WORKSHEET = "moodle.csv"
MOODLE = ("Identifier", "Full name", "Grade", "Maximum Grade", "Last modified (grade)")
HEADER = ("id", "name", "points", "out of", "percent", "late", "problems")
CANVAS = ("Student", "ID", "SIS User ID", "SIS Login ID", "Section")
NAMED = (
    # Moodle: "Ann Lee_1234567_assignsubmission_file_/…"; Canvas: "leeann_LATE_12345_67890_…", with its own number
    ("moodle", re.compile(r"(?:^|/)(?P<name>[^/]+?)_(?P<id>\d+)_assignsubmission_[a-z]+_?(?:/|$)")),
    ("canvas", re.compile(r"(?:^|/)(?P<name>[^/_]+)_(?P<late>LATE_)?(?P<id>\d{2,})_\d{4,}_[^/]+$")),
)
ENDINGS = re.compile(r"(\.(ipynb|txt|zip|py|json|tar|gz|7z|rar|pdf|html))+$", re.IGNORECASE)


class Which:
    """Which student a file is of: an id, a name, whether it is late, and who named it so.

    pattern: a regular expression for the file's name, whose groups `id`, `name` and `late` (or the first group, or all
    that it matches) say so.

    Raises:
        ValueError: no regular expression.
    """

    def __init__(self, pattern="", chapters=()):
        try:
            self.pattern = re.compile(pattern) if pattern else None
        except re.error as error:
            raise ValueError(f"STUDENT={pattern!r} is no regular expression: {error}") from None
        self.chapters = re.compile("|".join(map(re.escape, chapters)) or "(?!)", re.IGNORECASE)

    def __call__(self, name, lead=()):
        """lead: the folders that all files of the class lie in."""
        if self.pattern:
            return self._by_pattern(name)
        parts = name.split("/")[len(lead) :]
        for system, pattern in NAMED:
            flat = len(parts) == 1 or parts[-2].lower().endswith(".zip")  # Canvas makes no folders
            if (found := pattern.search(name)) and (system != "canvas" or flat):
                said = found.groupdict()
                return Student(said["id"], said["name"], bool(said.get("late")), system)
        if len(parts) > 1:
            return Student(ENDINGS.sub("", parts[0]) or parts[0])
        stem = ENDINGS.sub("", parts[-1])
        left = self.chapters.sub("", stem).strip(" _-.()")
        return Student(left if re.search(r"[^\W_]", left) else stem)

    def _by_pattern(self, name):
        found = self.pattern.search(name)
        if not found:
            return Student(name, trouble="STUDENT does not match its name")
        groups = found.groupdict()
        id = groups.get("id") or groups.get("name") or (found[1] if self.pattern.groups and not groups else found[0])
        return Student(id or name, groups.get("name") or "", bool(groups.get("late")))


@dataclasses.dataclass(frozen=True)
class Student:
    id: str
    name: str = ""
    late: bool = False
    system: str = ""
    trouble: str = ""


def lead(names):
    """The folders that all files lie in: one archive of a whole class, say. None where there is one file alone."""
    folders = [name.split("/")[:-1] for name in names]
    shared = []
    for parts in zip(*folders) if len(folders) > 1 else ():
        if len({*parts}) > 1:
            break
        shared.append(parts[0])
    deeper = {tuple(folder[: len(shared) + 1]) for folder in folders}
    return shared if len(deeper) > 1 or not shared else shared[:-1]


def of_class(graded, which, worths):
    """{id: Total} of what was graded; worths: {exercise: points} of what was set."""
    first = lead([one.name for one in graded])
    found = {}
    for one in graded:
        student = which(one.name, first)
        total = found.setdefault(student.id, Total(student, worths))
        total.take(one, student)
    return {id: found[id] for id in sorted(found)}


class Total:
    """What one student earned: of each exercise that was set, the best of all that was handed in."""

    def __init__(self, student, worths):
        self.student, self.worths, self.rows, self.said, self.late = student, worths, {}, [], False
        self.notebooks = 0

    def take(self, one, student):
        self.late |= student.late
        self._say(student.trouble)
        rows = [row for row in one.rows if row.exercise in self.worths]
        self.notebooks += any(row.exercise for row in one.rows)
        for row in one.rows:
            if not row.exercise and not row.message.startswith(("passed over", "a folder", "no notebook")):
                self._say(f"{one.name}: {row.message}")
        for row in rows:
            before = self.rows.get(row.exercise)
            if before is not None:
                self._say("some exercises were handed in more than once: the best counts")
            if before is None or row.points > before.points:
                self.rows[row.exercise] = row
            if row.note.startswith("from before") or table.GONE in row.note:
                self._say(f"{one.name}: {row.note}")
        for seen in getattr(one, "seen", ()):
            self._say(f"{one.name}: {seen}")

    def _say(self, text):
        if text and text not in self.said:
            self.said.append(text)

    @property
    def points(self):
        return sum(row.points for row in self.rows.values())

    @property
    def worth(self):
        return sum(self.worths.values())

    @property
    def problems(self):
        return [*self.said, *(() if self.notebooks or self.said else ("no notebook that could be graded",))]


def write(folder, totals, assignment):
    """Writes the tables: UTF-8 with a mark in front, so that spreadsheets read it as such."""
    everyone, canvas, moodle = [HEADER], [(*CANVAS, assignment)], [MOODLE]
    worth = max((total.worth for total in totals.values()), default=0)
    canvas.append(("    Points Possible", "", "", "", "", f"{worth:g}"))
    for total in totals.values():
        who = total.student
        percent = f"{100 * total.points / total.worth:.1f}" if total.worth else ""
        points, late = f"{total.points:g}", "late" if total.late else ""
        words = table.cell(who.id), table.cell(who.name)
        problems = table.cell("; ".join(total.problems)[:2000])
        everyone.append((*words, points, f"{total.worth:g}", percent, late, problems))
        ids = {"canvas": (who.id, "", "")}.get(who.system, ("", words[0], ""))  # only Canvas's own numbers are its IDs
        ids = ("", "", words[0]) if "@" in who.id else ids
        canvas.append((words[1] or words[0], *ids, "", points))
        if who.system == "moodle":  # "-": never graded before, so nothing newer is kept in its place
            moodle.append((f"Participant {who.id}", words[1], points, f"{total.worth:g}", "-"))
    tables = {**dict(zip(FILES, (everyone, canvas), strict=True)), WORKSHEET: moodle}
    for name, lines in tables.items():
        if name == WORKSHEET and len(moodle) == 1:
            (folder / name).unlink(missing_ok=True)  # of a run before
            continue
        text = io.StringIO(newline="")
        csv.writer(text).writerows(lines)
        table.replace(folder / name, "\ufeff" + text.getvalue())


def results(total):
    """What Gradescope's autograder takes as results.json, of the one student whose files it was given."""
    tests = []
    for name, worth in total.worths.items():
        row = total.rows.get(name)
        said = "was not handed in" if row is None else "\n".join(filter(None, (row.message, row.printed, row.note)))
        points = row.points if row else 0
        tests.append(
            {
                "name": name, "score": points, "max_score": worth, "output": said, "visibility": "visible",
                "status": "passed" if points == worth else "failed",
            }
        )  # fmt: skip
    told = "\n".join(problem for problem in total.problems)
    return json.dumps({"score": total.points, "output": told, "visibility": "visible", "tests": tests}, indent=1)
