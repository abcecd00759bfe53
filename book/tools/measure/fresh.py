"""Kernels that the forecast was not built on: `python book/tools fresh` on a GPU times them; `--forecast` needs none.

`--forecast` writes book/forecasts/fresh.json, which is committed before anything is timed. On a GPU each kernel is
timed with a cold L2 cache, and _build/records/<gpu>/xray_fresh.json written; `make record` moves it to book/data.
"""

import argparse
import json
import os
import sys
from typing import Any

from tools.paths import ROOT

FRESH = ROOT / "book" / "forecasts" / "fresh.json"
GPUS = "h200", "h100"


def forecast(gpus: tuple[str, ...], only: str = "") -> dict[str, dict[str, Any]]:
    """Return {case: {gpu: {"ms", "low", "high", "bound", …}}}; a case that has none says why."""
    os.environ["TRITON_INTERPRET"] = "1"
    import torch

    from flashkat_lite.xray import Outside, load, stage
    from flashkat_lite.xray.report import forecast as priced
    from tools.measure.fresh_kernels import CASES

    found: dict[str, dict[str, Any]] = {}
    for name, make in CASES.items():
        if only not in name:
            continue
        found[name], kept = {}, {}
        for gpu in gpus:
            wanted = load(gpu)
            chip = wanted.capability, wanted.multiprocessors  # whose launches are the same
            try:
                if chip not in kept:
                    with stage.pretending(wanted, seconds=3.0) as launches, torch.no_grad():
                        call = make()
                        launches.clear()
                        call()
                        kept[chip] = list(launches)
                one = priced(name, kept[chip], wanted)
                found[name][gpu] = {"ms": one.ms, "low": one.low, "high": one.high, "bound": one.bound}
                found[name][gpu] |= {"least": one.least, "simpler": one.bytes_alone(), "terms": one.main.terms}
            except (Outside, RuntimeError, ValueError) as error:
                found[name][gpu] = {"error": str(error)[:300]}
        said = {gpu: round(f["ms"], 4) if "ms" in f else f["error"] for gpu, f in found[name].items()}
        print(f"{name}: {said}", flush=True)
    return found


def time() -> None:
    """Time every case on this machine's GPU, and write the record."""
    from flashkat_lite import hardware, records
    from tools.measure.fresh_kernels import CASES

    if hardware.device() is None:
        sys.exit("python book/tools fresh: times are taken on a GPU, and there is none here. --forecast needs none.")
    rows = []
    for name, make in CASES.items():
        call = make()
        taken = hardware.time_interleaved({name: call}, seconds=0.3)[name]
        rows.append({"what": name, "ms": taken.median, "low": taken.low, "high": taken.high, "repeats": taken.repeats})
        print(f"{name}: {taken.median:.4f} ms", flush=True)
        del call
    title = "Kernels that the forecast was not built on"
    record = records.make("xray_fresh", title=title, command="python book/tools fresh && make record", data=rows)
    record.save(records.fresh_path("xray_fresh"))
    print(f"written to {records.fresh_path('xray_fresh')}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--forecast", action="store_true", help="write forecasts instead; needs no GPU")
    parser.add_argument("--only", default="", help="cases whose names hold this")
    options = parser.parse_args()
    if not options.forecast:
        return time()
    cases = forecast(GPUS, options.only)
    if not options.only:
        FRESH.parent.mkdir(parents=True, exist_ok=True)
        FRESH.write_text(json.dumps(cases, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return None
