"""`python -m flashkat_lite bench` measures every kernel on a GPU: the ladder, other shapes, the host's cost."""

from pathlib import Path

from .. import console, hardware, records
from . import ladder, shapes
from .ladder import DTYPES, ROWS, WIDTHS


def bench(out: Path | None, quick: bool) -> int:
    """Measure the ladder, print it, write its record. 2 where that cannot be done here."""
    if hardware.device() is None:
        print(f"bench needs a CUDA device, and there is none here: `{console.COMMAND} doctor` says why.")
        return 2
    asked = out is not None
    if not asked and not quick:
        try:
            out = records.fresh_path("ladder")
        except records.MissingRecord:
            print("bench: this package is not in the book's repository; say where to write with --out FILE.")
            return 2
    why_not = records.why_not_kept(out) if out else ""
    if why_not:
        print(f"bench: the record will not be kept ({why_not}); --out FILE says where to write it.", flush=True)
        if asked:
            return 2
        out = None
    record = records.make(
        "ladder",
        title="Every kernel against the limits",
        command=f"{console.COMMAND} bench" + (" --quick" if quick else ""),
        data=ladder.ladder(ROWS, (768,), DTYPES[:1], 0.2, False) if quick else full_bench(),
    )
    if out:
        record.save(out)
        print(f"Written: {out}")
    return 0


def full_bench() -> dict[str, object]:
    """Measure the ladder and everything beside it; return the record's data."""
    data = ladder.ladder(ROWS, WIDTHS, DTYPES, 0.5, True)
    return data | other_measurements(data)


def other_measurements(measured: dict[str, object]) -> dict[str, object]:
    """Compare with GELU, measure other shapes, a small batch, memory and bounds; print them and return them."""
    from .host import host_cost  # late: `python -m` runs that module itself

    print("\nOther shapes, a small batch, memory", flush=True)
    data = {
        "pairs": shapes.pairs(measured["results"]),
        "other_shapes": shapes.other_shapes(ROWS, DTYPES, 0.2),
        "small_batch": shapes.small_batch(DTYPES, 0.2),
        "host": host_cost(),
        "extra_memory_bytes": shapes.extra_memory(ROWS, 768),
        "bounds": shapes.issue_bounds(measured["results"], ROWS, measured["sm_clock_mhz"]),
    }
    for line in data["pairs"]:
        print(f"  {line['dtype']:<9} D = {line['columns']:<5} forward + backward: {line['ratio']:.3f} of GELU's")
    for line in data["other_shapes"]:
        print(
            f"  {line['dtype']:<9} degrees {tuple(line['degrees'])}, width {line['width']:<4} {line['what']:<9} "
            f"{line['fraction_of_limit']:.3f} of the limit, {line['per_byte']:.2f} times (5, 4) at width 96 a byte"
        )
    for line in data["small_batch"]:
        print(f"  {line['dtype']:<9} 8 × 197 rows in a CUDA graph: {line['us']:.1f} µs, GELU {line['gelu_us']:.1f} µs")
    print(f"  host time of an eager forward and backward: {data['host']['ratio']:.2f} times GELU's")
    print(f"  memory of the backward beside its results: {data['extra_memory_bytes'] / 1e6:.2f} MB")
    for line in data["bounds"]:
        print(
            f"  {line['dtype']:<9} D = {line['columns']:<5} {line['instructions']:.1f} instructions an element; "
            f"memory {line['memory_ms']:.3f} ms, issue {line['issue_ms']:.3f} ms, {line['fraction_of_bound']:.3f} of it"
        )
    return data
