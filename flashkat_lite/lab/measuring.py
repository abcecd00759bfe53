"""Measurements of a cell: made here where there is a GPU, loaded from book/data where there is none."""

import functools
import re
import time
from collections.abc import Callable
from typing import Any

import torch

from flashkat_lite import hardware, records
from flashkat_lite.records import Record

from .setup import note


def measure(experiment: str, title: str, function: Callable[[], Any]) -> Record:
    """With a GPU: `function()`, JSON-able, kept under _build/records (`make record` moves it to book/data).

    Where it cannot be kept (a clone that can only be read), that is said once.
    Without one, the function runs too, at the sizes that the chapter picks for a CPU, so that its code is tested; its
    figures are thrown away and the record on the default GPU is returned. Raises MissingRecord where there is none.
    """
    data = function()
    if hardware.device() is None:
        return records.load(experiment, command=_command(experiment))
    record = records.make(experiment, title=title, command=_command(experiment), data=data)
    try:
        record.save(records.fresh_path(experiment))
    except OSError as error:
        _say_that_nothing_is_kept(error.strerror)
    return record


@functools.cache
def _say_that_nothing_is_kept(why: str | None) -> None:
    note(f"What is measured here is shown, and not kept: {why or 'this is no clone of the book'}.")


@functools.cache
def _command(experiment: str) -> str:
    """Return what makes the record: the execution of the chapter that names the experiment."""
    measured = re.compile(rf'measure\((?:\\n",\s*"\s*)?\\"{experiment}\\"')  # in a notebook's JSON, on one line or two
    for path in sorted((records.root() / "chapters").glob("*.ipynb")):
        if measured.search(path.read_text(encoding="utf-8")):
            return f'make execute CHAPTERS="{path.name[:2]}" && make record'
    return "make execute && make record"


def _once(function: Callable[[], Any]) -> dict[str, float]:
    start = time.perf_counter()
    function()
    elapsed = 1e3 * (time.perf_counter() - start)
    return {"ms": elapsed, "low": elapsed, "high": elapsed, "repeats": 1}


def timings(functions: dict[str, Callable[[], Any]], **options) -> dict[str, dict[str, float]]:
    """`hardware.time_interleaved`, ready for JSON: {name: {"ms", "low", "high", "repeats"}}; one call each on a CPU."""
    if hardware.device() is None:
        return {name: _once(function) for name, function in functions.items()}
    times = hardware.time_interleaved(functions, **options)
    return {k: {"ms": t.median, "low": t.low, "high": t.high, "repeats": t.repeats} for k, t in times.items()}


def gpu_kernels(function: Callable[[], Any]) -> int | None:
    """How many kernels one call launches on the GPU, of anybody's; None without a GPU."""
    if hardware.device() is None:
        return None
    function()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        function()
        torch.cuda.synchronize()
    return sum(event.count for event in profiler.key_averages() if event.self_device_time_total > 0)
