"""Public backward kernels: what each adds where, its forecast, and on a GPU its time: `python book/tools census`.

Takes the packages of the extra `census` that can be imported; in an environment of their own, or from a folder:
`PYTHONPATH=folder python book/tools census`. Needs no GPU, and writes book/census.json, which the page
*Census* shows. With `--time`, on a GPU, each call is timed with a cold L2 cache, and _build/records/<gpu>/census.json
written; `make record` moves it to book/data. A case that fails says why, and the others go on.
"""

import argparse
import dataclasses
import datetime
import gc
import json
import os
import pickle
import re
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tools.paths import ROOT

CENSUS = ROOT / "book" / "census.json"
GPUS = "h200", "h100"


def version_of(package: str) -> str | None:
    """Return the version of an installed package; None where it is missing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def said(error: Exception) -> str:
    """Return an error's kind and its last line, in at most 200 characters."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1].strip() if lines else ''}"[:200]


def adds(launches: list) -> list[dict[str, Any]]:
    """Return a row for each tensor that programs add to: how many additions, on how many addresses, how many meet."""
    from flashkat_lite.xray.counting import Launch

    rows = []
    for launch in launches:
        if not isinstance(launch, Launch):
            continue
        for name in dict.fromkeys(name for name, _ in launch.words):
            times = [n for (where, _), n in launch.words.items() if where == name]
            scale = launch.programs / launch.alone
            size = next(a.size for (kind, _, n), a in launch.accesses.items() if kind == "add" and n == name)
            visits = [len(programs) for (where, _), programs in launch.queue.items() if where == name]
            whole = launch.alone == launch.programs or sum(visits) > 4 * len(visits)  # a draw has met each of them
            made = scale * sum(times)
            addresses = len(times) if whole else int(min(launch.sizes[name] // size, made))
            rows.append({
                "kernel": launch.name, "argument": name, "additions": made, "addresses": addresses,
            })  # fmt: skip
    return rows


def fences(launches: list) -> int:
    """Return how many instructions of kernels that add to shared places wait until all before them is seen by all."""
    from flashkat_lite.xray.counting import Launch

    adding = [one for one in launches if isinstance(one, Launch) and one.words]
    return sum(len(re.findall(r"\bMEMBAR\b", one.report.sass)) for one in adding)


def partial_sums(launches: list) -> float:
    """Return the bytes that PyTorch's sums read after the kernels: what they wrote as partial sums."""
    from flashkat_lite.xray.counting import Torch

    return sum(one.read for one in launches if isinstance(one, Torch) and one.name in ("sum", "sum.dim_IntList"))


def without_additions(launches: list) -> list:
    """Return the same launches, had they nothing to add to shared places."""
    from flashkat_lite.xray.counting import Launch

    return [
        dataclasses.replace(
            one, queue={}, words={}, apart={}, accesses={k: a for k, a in one.accesses.items() if k[0] != "add"}
        ) if isinstance(one, Launch) and one.words else one
        for one in launches
    ]  # fmt: skip


def row_of(name: str, launches: list, gpus: tuple[str, ...]) -> dict[str, Any]:
    """Return what is forecast of a call's launches, ready for JSON."""
    from flashkat_lite.xray import load
    from flashkat_lite.xray.counting import Launch
    from flashkat_lite.xray.report import forecast

    counted = {"kernels": [one.name for one in launches if isinstance(one, Launch)]}
    counted |= {"adds": adds(launches), "fences": fences(launches), "partial": partial_sums(launches)}
    if outside := next((one.outside for one in launches if isinstance(one, Launch) and one.outside), ""):
        return counted | {"outside": outside}
    found = {}
    for gpu in gpus:
        one = forecast(name, launches, load(gpu))
        row = {"ms": one.ms, "low": one.low, "high": one.high, "bound": one.bound, "least": one.least}
        added = [e.terms for launch, e in zip(launches, one.estimates) if isinstance(launch, Launch) and launch.words]
        if added:  # of the launch with most of them
            terms = max(added, key=lambda t: max(t["one unit's additions"], t["additions"]))
            row["additions"] = max(terms["one unit's additions"], terms["additions"])
            row["rest"] = max(t for k, t in terms.items() if "additions" not in k)
        row |= {"ill": one.ill, "warnings": one.warnings()}
        row |= {"terms": one.main.terms} if one.ill else {}
        if one.ill:
            row["cured"] = forecast(name, without_additions(launches), load(gpu)).ms
        found[gpu] = row
    return counted | {"forecast": found}


def counted(one: Any) -> list:
    """Return the launches of a case's call, on a GPU that is not there."""
    import torch

    from flashkat_lite.xray import load, stage
    from tools.measure.census_kernels import Maker, loaded

    wanted = load(GPUS[0])  # the other's multiprocessors are as many, and of the same kind
    pretended = stage.pretending(wanted, seconds=2.0, beyond=True)
    with pretended as launches, stage.believing(wanted), torch.no_grad():
        call = one.make(Maker("cpu", filled=False), loaded(one))
        launches.clear()
        try:
            call()
        except Exception:  # what Triton does not interpret may be outside of the model anyway
            if not any(getattr(launch, "outside", "") for launch in launches):
                raise
        return list(launches)


def forecasts(only: str = "", keep: Path | None = None) -> dict[str, dict[str, Any]]:
    """Return {case: what it is, what it adds, its forecasts, or why there is none}.

    keep: a folder where what was counted is kept, and taken from.
    """
    os.environ["TRITON_INTERPRET"] = "1"
    from tools.measure.census_kernels import CASES

    found: dict[str, dict[str, Any]] = {}
    for name, one in CASES.items():
        if only not in name:
            continue
        facts = {"package": one.package, "version": version_of(one.package), "function": one.function}
        found[name] = facts | {"size": one.size, "chosen": one.chosen, "sums": one.adds}
        kept = keep and keep / f"{re.sub(r'[^A-Za-z0-9]+', '_', name)}.pickle"
        try:
            launches = pickle.loads(kept.read_bytes()) if kept and kept.exists() else counted(one)
            if kept and not kept.exists():
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_bytes(pickle.dumps(launches))
            found[name] |= row_of(name, launches, GPUS)
        except Exception as error:  # of a package's, or of ours with it
            found[name] |= {"error": said(error)}
        shown = found[name].get("forecast") or found[name].get("outside") or found[name].get("error")
        print(f"{name}: {shown}", flush=True)
        gc.collect()
    return found


def launched(call: Callable[[], object]) -> list[str]:
    """Return the names of the Triton kernels that a call launches, in order."""
    from triton import knobs

    names: list[str] = []

    def hear(facts) -> None:
        names.append(facts.get()["name"])

    knobs.runtime.launch_enter_hook.add(hear)
    try:
        call()
    finally:
        knobs.runtime.launch_enter_hook.remove(hear)
    return names


def time_all(only: str = "", seconds: float = 0.3) -> None:
    """Time every case on this machine's GPU, and write the record."""
    import torch

    from flashkat_lite import hardware, records
    from tools.measure.census_kernels import CASES, Maker, loaded

    if hardware.device() is None:
        sys.exit("python book/tools census --time: times are taken on a GPU, and there is none here")
    rows, known = [], json.loads(CENSUS.read_text(encoding="utf-8"))["cases"] if CENSUS.exists() else {}
    path = records.fresh_path("census")
    for name, one in CASES.items():
        if only not in name or ("outside" in known.get(name, {}) and not only):
            continue
        row = {"what": name, "package": one.package, "version": version_of(one.package), "size": one.size}
        call = None
        try:
            with torch.no_grad():
                call = one.make(Maker("cuda", filled=True), loaded(one))
                call()
                row["kernels"] = launched(call)
                taken = hardware.time_interleaved({name: call}, seconds=seconds)[name]
            row |= {"ms": taken.median, "low": taken.low, "high": taken.high, "repeats": taken.repeats}
        except Exception as error:
            row["error"] = said(error)
        rows.append(row)
        print(f"{name}: {row.get('ms') or row['error']}", flush=True)
        del call
        gc.collect()
        torch.cuda.empty_cache()
        title = "Public backward kernels, each at a size of its own benchmark"
        command = "python book/tools census --time && make record"
        records.make("census", title=title, command=command, data=rows).save(path)  # what comes later may end it all
    print(f"written to {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--time", action="store_true", help="time them on this machine's GPU instead")
    parser.add_argument("--only", default="", help="cases whose names hold this")
    parser.add_argument("--keep", type=Path, help="keep what was counted in this folder, and take it from there")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    os.environ["FLA_DISABLE_BACKEND_DISPATCH"] = "1"  # other kernels than Triton's take their place, where they can
    if options.time:
        return time_all(options.only)
    cases = forecasts(options.only, options.keep)
    if not options.only:
        data = {"date": datetime.date.today().isoformat(), "cases": cases}
        CENSUS.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        from tools.site.census_page import write

        write()
    return None
