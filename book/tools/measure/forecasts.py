"""What `flashkat_lite.xray` forecasts for every recorded time of a kernel: `python book/tools forecasts`.

Each chapter's definitions are executed by a process that believes in the GPU, and its measurements are called with a
clock that forecasts. Writes book/forecasts/<gpu>.json, which the page *How far the pencil reaches* shows.
"""

import argparse
import ast
import contextlib
import json
import os
import pickle
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tools.paths import BUILD, CHAPTERS, KEPT, ROOT

os.environ.setdefault("TRITON_INTERPRET", "1")
FORECASTS = ROOT / "book" / "forecasts"
NOT_OURS = r"add|copy|eager|GELU|PyTorch|torch\.compile|index_add_|sort|sum\(0\)|and torch\.sum|linear|basis|.*compiled"
SKIPPED = r"lab\.(measure|table|claim|figures|note|interactive|check)|inspect_many|inspect_kernel|Markdown"


# What chapters find by compiling: programs that fit, by stages (10); loads before the first addition (5).
GIVEN = {"fit": {1: 8, 2: 8, 3: 8, 4: 8}, "at_once": 4}


def definitions(chapter: str) -> str:
    """Return a chapter's code, without exercises, in order."""
    path = next(CHAPTERS.glob(f"{chapter}_*.ipynb"))
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    left_out = {"exercise", "solution", "check"}
    code = [
        "".join(c["source"])
        for c in cells
        if c["cell_type"] == "code" and not left_out & set(c["metadata"].get("tags", []))
    ]
    return "\n\n".join(code) + "\n"


def execute(chapter: str) -> dict[str, Any]:
    """Return what a chapter defines: imports, functions, and values that need no measurement."""
    text = definitions(chapter)
    path = BUILD / "forecasts" / f"ch{chapter}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    # As in a notebook, so that the compiler's process copies what it needs.
    space: dict[str, Any] = GIVEN | {"__name__": "__main__", "__file__": str(path)}
    for node in ast.parse(text).body:
        wanted = isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef | ast.Assign)
        if wanted and (isinstance(node, ast.FunctionDef | ast.ClassDef) or not re.search(SKIPPED, ast.unparse(node))):
            with contextlib.suppress(Exception):  # what an earlier measurement would have given
                exec(compile(ast.Module([node], []), str(path), "exec"), space)
    return space


def by_name(data: dict) -> dict[str, float]:
    return {k: v["ms"] for k, v in data.items() if isinstance(v, dict) and "ms" in v}


def of_rows(data: list) -> dict[str, float]:
    return {str(row["what"]): row["ms"] for row in data}


def _sharing(data: list) -> dict[str, float]:
    warps = {"1": 2**15, "4096": 2**20}
    return {str((row["what"], int(p))): row[p] * n / 1e6 for row in data for p, n in warps.items()}


def of_shapes(data: list, dtype: str, columns: int) -> dict[str, float]:
    return by_name(next(r for r in data if (r["dtype"], r["columns"]) == (dtype, columns))["times"])


def of_columns(data: list, columns: int) -> dict[str, float]:
    return by_name(next(r for r in data if r["columns"] == columns))


def of_widths(data: list) -> dict[str, float]:
    return {f"{k} {r['columns']}": v for r in data for k, v in by_name(r).items()}


def of_norms(data: list) -> dict[str, float]:
    size = "{rows} × {columns} {dtype}"
    return {f"{k} {size.format(**r)}": v for r in data for k, v in by_name(r["times"]).items()}


def of_flights(data: list) -> dict[str, float]:
    return {str((r["how"], r["programs"])): r["ms"] for r in data}


def of_batches(data: list) -> dict[str, float]:
    return {f"atomic {r.get('distinct', r.get('exponent'))}": r["atomic"] for r in data}


def times(data: dict) -> dict[str, float]:
    return by_name(data["times"])


SHAPES = [(dtype, columns) for columns in (768, 192, 3072) for dtype in ("float32", "bfloat16")]
# Family, which is a record's name: chapter, its function, the calls of it, {case: ms} of a call from the record's data.
FAMILIES: dict[str, tuple] = {
    "forward_ladder": ("04", "time_forwards", SHAPES, of_shapes),
    "bytes_in_flight": ("05", "time_flights", [()], of_flights),
    "strides_and_alignment": ("05", "time_strides", [()], of_rows),
    "atomic_rate": ("06", "time_rates", [()], of_rows),
    "atomic_sharing": ("06", "time_sharing", [()], _sharing),
    "suspects": ("08", "time_suspects", [()], times),
    "collisions": ("08", "time_collisions", [()], times),
    "contention": ("08", "time_contention", [()], times),
    "block_tiles": ("09", "time_tiles", [()], by_name),
    "block_widths": ("09", "time_widths", [()], of_widths),
    "in_flight": ("10", "time_in_flight", [()], times),
    "second_stage": ("10", "time_second_stage", [()], times),
    "rungs_float32": ("10", "time_rungs", [(192,), (768,), (3072,)], of_columns),
    "bf16_steps": ("11", "time_steps", [()], by_name),
    "rmsnorm": ("15", "time_rmsnorm", [()], of_norms),
    "bias": ("15", "time_bias", [()], by_name),
    "embedding": ("15", "time_embedding", [()], of_batches),
}


SORTS = {"embedding": ("owner",)}  # most of whose time is PyTorch's


@contextlib.contextmanager
def forecasting(lab: Any, launches: list, seen: dict[str, list], wanted: Callable[[str], bool]) -> Iterator[None]:
    """Replace the lab's clock: {"turn|case": launches} come into `seen`, for the cases that are wanted."""
    turn = [0]

    def timings(functions: dict[Any, Callable], **_: Any) -> dict[Any, dict[str, float]]:
        found = {}
        for name, function in functions.items():
            found[name] = {"ms": 1.0, "low": 1.0, "high": 1.0, "repeats": 1}
            if not wanted(str(name)):
                continue
            before = len(launches)
            try:
                function()
            except Exception as error:  # one case fails, the others go on
                print(f"    {name}: {type(error).__name__}: {str(error)[:200]}", flush=True)
                continue
            seen[f"{turn[0]}|{name}"] = launches[before:]
            print(f"    {name}", flush=True)
        turn[0] += 1
        return found

    from unittest import mock

    with mock.patch.object(lab, "timings", timings):
        yield


def collect(family: str, gpu: str) -> dict[str, tuple[float, list]]:
    """Return {case: (ms recorded, launches)} of a family. LookupError: the chapter has no such function, or no case."""
    import torch

    from flashkat_lite import lab
    from flashkat_lite.xray.prices import load
    from flashkat_lite.xray.stage import pretending

    chapter, name, calls, recorded = FAMILIES[family]
    data = records_of(family, gpu)
    cases: dict[str, tuple[float, list]] = {}
    with pretending(load(gpu), seconds=2.0) as launches:
        space = execute(chapter)
        space.update(kernels_of=lambda function: [], own_backward=lambda *_: None)  # PyTorch's own, profiled
        if name not in space:
            raise LookupError(f"chapter {chapter} defines no {name}, which measures {family}")
        for call in calls:
            seen: dict[str, list] = {}
            torch.manual_seed(0)
            with forecasting(
                lab, launches, seen, lambda case: case not in SORTS.get(family, ()) and not re.fullmatch(NOT_OURS, case)
            ):
                try:
                    space[name](*call)
                except Exception as error:
                    print(f"  {family}{call}: {type(error).__name__}: {str(error)[:300]}", flush=True)
            ms = recorded(data, *call)
            for key, made in seen.items():
                turn, _, case = key.partition("|")
                for candidate in _keys(family, case, data, int(turn)):
                    if candidate in ms:
                        cases[" ".join([candidate, *map(str, call)])] = (ms[candidate], made)
    if not cases:
        raise LookupError(f"{name} of chapter {chapter} measured no case that {family} has a record of")
    return cases


def _keys(family: str, case: str, data: Any, turn: int) -> list[str]:
    if family == "block_widths":
        return [f"{case} {data[turn]['columns']}"]
    if family == "rmsnorm":
        row = data[turn]
        return [f"{case} {row['rows']} × {row['columns']} {row['dtype']}"]
    if family == "embedding":
        row = data[turn]
        return [f"{case} {row.get('distinct', row.get('exponent'))}"]
    return [case]


def recorded_now(family: str, gpu: str) -> dict[str, float]:
    """Return {case: ms} of a family's record."""
    data, (_, _, calls, recorded) = records_of(family, gpu), FAMILIES[family]
    return {" ".join([case, *map(str, call)]): ms for call in calls for case, ms in recorded(data, *call).items()}


def records_of(family: str, gpu: str) -> Any:
    from flashkat_lite import records

    return records.read(KEPT / gpu / f"{family}.json").data


def rows_of(cases: dict[str, tuple[float, list]], family: str, gpu: str) -> list[dict[str, Any]]:
    """Return what is forecast for the cases of a family beside what was recorded, ready for JSON."""
    from flashkat_lite.xray.prices import load
    from flashkat_lite.xray.report import forecast

    rows = []
    for case, (recorded, launches) in cases.items():
        one = forecast(case, launches, load(gpu))
        rows.append({
            "family": family, "case": case, "recorded": recorded, "ms": one.ms, "low": one.low, "high": one.high,
            "bound": one.bound, "simpler": one.bytes_alone(),
        })  # fmt: skip
    return rows


def recorded_by(gpu: str) -> list[str]:
    """Return the families of which a GPU has records."""
    return [family for family in FAMILIES if (KEPT / gpu / f"{family}.json").exists()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", help="some of them; default: all that the GPU has records of")
    parser.add_argument("--gpu", action="append", help="whose records; default: every GPU's that has a price list")
    parser.add_argument("--keep", type=Path, help="keep what was counted in this folder, and take it from there")
    options = parser.parse_args()
    from flashkat_lite.xray.prices import FOLDER

    missing = []
    for gpu in options.gpu or sorted(path.stem for path in FOLDER.glob("*.json")):
        path, rows = FORECASTS / f"{gpu}.json", []
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        for family in recorded_by(gpu):
            known = [r for r in before if r["family"] == family]
            if family not in (options.families or FAMILIES):
                rows += known
                continue
            kept = options.keep and options.keep / f"{gpu}-{family}.pickle"
            try:
                cases = pickle.loads(kept.read_bytes()) if kept and kept.exists() else collect(family, gpu)
            except LookupError as error:
                missing.append(f"{gpu}: {error}; what was forecast before stays")
                print(missing[-1], flush=True)
                rows += known
                continue
            if kept and not kept.exists():
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_bytes(pickle.dumps(cases))
            ms = recorded_now(family, gpu)  # what was kept may be older than the record
            cases = {case: (ms[case], made) for case, (_, made) in cases.items() if case in ms}
            rows += rows_of(cases, family, gpu)
            print(f"{gpu} {family}: {len(cases)} cases", flush=True)
        if rows:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    from tools.site.pencil_page import write

    write()
    if missing:
        sys.exit("\n".join(missing))
