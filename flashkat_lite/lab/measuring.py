"""Measurements of a cell: made here where there is a GPU, loaded from book/data where there is none."""

import contextlib
import functools
import os
import re
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

import torch

from flashkat_lite import hardware, records
from flashkat_lite.records import Record

from .setup import cap, note


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
    if cap() is not None:  # under a limit on its memory the GPU is none that has records
        return record
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


def timings(functions: dict[str, Callable[[], Any]], prepare: bool = True, **options) -> dict[str, dict]:
    """`hardware.time_interleaved`, ready for JSON: {name: {"ms", "low", "high", "repeats"}}; one call each on a CPU.

    prepare: on a GPU, run each function once beforehand with its kernels only compiled, all at the same time. Say
    False of functions that change what they work on: without the kernels they would leave rubbish behind.
    """
    if hardware.device() is None:
        return {name: _once(function) for name, function in functions.items()}
    if prepare and len(functions) > 1:
        compile_side_by_side(functions.values())
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


def compile_side_by_side(functions: Iterable[Callable[[], Any]]) -> None:
    """Call functions with their kernels compiled, on as many threads as there are cores, and not launched."""
    try:
        from triton import JITFunction
        from triton.runtime._async_compile import AsyncCompileMode
    except ImportError:  # another version of Triton: they are compiled at their first launch
        return
    from flashkat_lite.kernels.launch import BoundLaunch

    run = JITFunction.run

    def compiled(kernel, *arguments, grid, warmup, **options):
        return run(kernel, *arguments, grid=grid, warmup=True, **options)

    def unbound(launch, *tensors):  # it would keep what a launch has prepared
        launch.kernel[launch.grid](*tensors, *launch.scalars, **launch.keywords, enable_fp_fusion=True)

    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        AsyncCompileMode(pool, ignore_errors=True),
        mock.patch.object(JITFunction, "run", compiled),
        mock.patch.object(BoundLaunch, "__call__", unbound),
    ):
        for function in functions:
            with contextlib.suppress(Exception):  # it will fail again where it is timed, and say why
                function()
