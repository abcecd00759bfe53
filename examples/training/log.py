"""log.csv, and a bar where somebody looks."""

import contextlib
import csv
import os
import sys
import time
from pathlib import Path


class Log:
    """Only the first process writes. `run` has step, last_step, epoch_steps, options and optimizer."""

    HEADER = ("step", "epoch", "loss", "learning rate", "images a second")
    HEADER += ("accuracy", "top-5", "EMA accuracy", "EMA top-5")

    def __init__(self, file: Path, run):
        self.file, self.run, self.bar = file, run, None
        self.start, self.images = time.perf_counter(), 0
        if run.rank:
            return
        rows = written(file, run.step)
        partial = file.with_suffix(".partial")
        with partial.open("w", newline="", encoding="utf-8") as new:
            table = csv.DictWriter(new, self.HEADER, extrasaction="ignore")
            table.writeheader()
            table.writerows(rows)
        os.replace(partial, file)
        with contextlib.suppress(ImportError):
            from tqdm import tqdm

            self.bar = tqdm(total=run.last_step, initial=run.step, unit="step", disable=not sys.stderr.isatty())

    def write(self, loss: float | None = None, accuracies: dict[str, float] | None = None) -> None:
        """A line: of training with a loss, of validation with accuracies."""
        run, now = self.run, time.perf_counter()
        speed = (run.step * run.options.batch - self.images) / (now - self.start)
        if run.rank:
            return
        row = {"step": run.step, "epoch": f"{run.step / run.epoch_steps:.3f}"}
        shown = {name: f"{value:.4f}" for name, value in (accuracies or {}).items()}
        row |= shown
        if loss is not None:
            learning_rate = run.optimizer.param_groups[0]["lr"]
            row |= {"loss": repr(loss), "learning rate": f"{learning_rate:.4g}", "images a second": f"{speed:.1f}"}
            shown = {"loss": f"{loss:.4f}"}
        with self.file.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.HEADER).writerow(row)
        if self.bar:
            self.bar.set_postfix(shown)
            self.bar.update(run.step - self.bar.n)
        self.restart()

    def restart(self) -> None:
        """Speed counts from here."""
        self.start, self.images = time.perf_counter(), self.run.step * self.run.options.batch


def written(file: Path, step: int) -> list[dict[str, str]]:
    """An earlier log's whole lines up to a step; what an interrupted run wrote after it will be written again."""
    if not step or not file.exists():
        return []
    with file.open(newline="", encoding="utf-8", errors="replace") as old:
        rows = list(csv.DictReader(line.replace("\0", "") for line in old if line.endswith("\n")))
    return [row for row in rows if (row.get("step") or "").isdecimal() and int(row["step"]) <= step]
