"""What a GPU takes: a price list, computed from its records, or scaled from another's by data sheets and labelled so.

`python book/tools prices` computes the lists that lie beside this file; nothing in them is typed.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "prices"
UNIT_BYTES = 655360  # of L2 to a unit that adds: 96 units in 60 MiB, as the spread additions' rate says


@dataclasses.dataclass(frozen=True)
class Prices:
    """Times in ns, rates in bytes or events a ns (1 byte a ns is 1 GB/s), sizes in bytes, the clock in GHz.

    sources: where each came from. capability: what kernels are compiled for. extrapolated: no record of this GPU.
    """

    name: str
    capability: int
    multiprocessors: int
    clock: float
    l2_bytes: int
    read: float  # from HBM
    write: float
    l2: float
    overhead: float  # of a launch: to start, to fill the chip, to drain it
    again: float  # a further launch behind another
    program: float  # to start one, on the whole chip
    latency: float  # of HBM
    near: float  # latency of L2
    first_level: float  # latency of L1
    units: int  # of L2, that add
    turns: float  # a ns, by all units together
    turn: tuple[float, ...]  # ns a turn, at a unit with 1, 2, 4, 8, 16 sectors in use
    line: float  # ns a turn of a warp that adds to a whole line
    adds: float  # words a ns
    registers: int = 65536
    shared: int = 233472  # of a multiprocessor
    l1_bytes: int = 262144  # with shared memory
    lanes: int = 2048
    blocks: int = 32
    extrapolated: bool = False
    sources: dict[str, str] = dataclasses.field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the list as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False) + "\n"
        path.write_text(text, encoding="utf-8")


# By NVIDIA's data sheets and programming guide: bytes/s, multiprocessors, L2 bytes, boost clock in GHz, capability,
# then bytes of shared memory and of it with L1, threads and programs that a multiprocessor holds.
CARDS: dict[str, tuple] = {
    "t4": ("NVIDIA T4", 320e9, 40, 4 << 20, 1.59, 75, 65536, 98304, 1024, 16),
    "l4": ("NVIDIA L4", 300e9, 58, 48 << 20, 2.04, 89, 102400, 131072, 1536, 24),
    "a100": ("NVIDIA A100-SXM4-80GB", 2039e9, 108, 40 << 20, 1.41, 80, 167936, 196608, 2048, 32),
    "rtx-4090": ("NVIDIA GeForce RTX 4090", 1008e9, 128, 72 << 20, 2.52, 89, 102400, 131072, 1536, 24),
    "b200": ("NVIDIA B200", 8000e9, 148, 126 << 20, 1.96, 100, 233472, 262144, 2048, 32),
}
H200_BANDWIDTH = 4800e9


def names() -> list[str]:
    """Return the GPUs that have a price list: measured ones first."""
    return sorted(path.stem for path in FOLDER.glob("*.json")) + list(CARDS)


def load(gpu: str) -> Prices:
    """Return the price list of a GPU by its short name, such as "h200" or "t4". Raises KeyError with the names."""
    path = FOLDER / f"{gpu.lower()}.json"
    if path.exists():
        values = json.loads(path.read_text(encoding="utf-8"))
        return Prices(**values | {"turn": tuple(values["turn"])})
    if gpu.lower() in CARDS:
        return by_data_sheet(gpu.lower())
    raise KeyError(
        f"no prices for {gpu!r}; there are {', '.join(names())}. "
        "A GPU's own: make execute && make record && make prices"
    )


def by_data_sheet(gpu: str) -> Prices:
    """Return the H200's prices, scaled to another GPU by data sheets: an extrapolation that nothing has checked."""
    base, (name, bandwidth, multiprocessors, l2_bytes, clock, capability, shared, l1, lanes, blocks) = (
        load("h200"),
        CARDS[gpu],
    )
    memory, chip = bandwidth / H200_BANDWIDTH, clock * multiprocessors / (base.clock * base.multiprocessors)
    units = max(l2_bytes // UNIT_BYTES, 8)
    return dataclasses.replace(
        base, name=name, capability=capability, multiprocessors=multiprocessors, clock=clock, l2_bytes=l2_bytes,
        read=base.read * memory, write=base.write * memory, l2=base.l2 * chip,
        program=base.program * base.clock / clock,
        units=units, turns=base.turns * units / base.units, turn=tuple(t * base.clock / clock for t in base.turn),
        line=base.line * base.clock / clock,
        adds=base.adds * chip, shared=shared, l1_bytes=l1, lanes=lanes, blocks=blocks, extrapolated=True,
        sources={"all": f"the {base.name}'s, scaled by data sheets"},
    )  # fmt: skip


def computed(record_of: Callable[[str], Any], base: Prices | None = None) -> Prices:
    """Return the prices that a GPU's records give. record_of(experiment): its record, or None where it has none.

    base: another GPU's prices, from which a missing record's are scaled by bandwidth, units and clock. Raises KeyError
    where a record is missing and there is no base.
    """
    needed = (
        "ladder", "norm_sweep", "forward_ladder", "atomic_rate", "atomic_sharing", "second_stage", "bandwidth_by_size",
        "latency_by_size", "flops",
    )  # fmt: skip
    found = {name: record for name in needed if (record := record_of(name)) is not None}
    device = next(iter(found.values())).device
    memory = (device["datasheet_bandwidth"] or H200_BANDWIDTH) / H200_BANDWIDTH
    units = device["l2_bytes"] // UNIT_BYTES
    values: dict[str, Any] = dict(
        name=device["name"], capability=int(device["capability"].replace(".", "")), l2_bytes=device["l2_bytes"],
        multiprocessors=device["multiprocessors"], units=units,
    )  # fmt: skip
    sources: dict[str, str] = {}

    def price(experiment: str, how: str, fallback: Callable[[Prices], dict], measured: Callable[[Any], dict]) -> None:
        if experiment in found:
            got = measured(found[experiment].data)
            sources.update(dict.fromkeys(got, f"{experiment}: {how}"))
        elif base is None:
            raise KeyError(f"no record of {experiment}, and no other GPU's prices to scale")
        else:
            got = fallback(base)
            sources.update(dict.fromkeys(got, f"the {base.name}'s, scaled: no record of {experiment}"))
        values.update({k: v for k, v in got.items() if k not in values})

    price("flops", "clock_mhz", lambda b: dict(clock=b.clock), lambda data: dict(clock=data["clock_mhz"] / 1e3))
    streams = "ladder" if "ladder" in found or "norm_sweep" not in found else "norm_sweep"
    price(
        streams, "slopes of streams over width, and what is left at the least width",
        lambda b: dict(read=b.read * memory, write=b.write * memory, overhead=b.overhead),
        _of_ladder if streams == "ladder" else _of_norm_sweep,
    )  # fmt: skip
    overhead = values["overhead"]
    price("forward_ladder", "an element a thread, 768 float32: its time by its programs",
          lambda b: dict(program=b.program),
          lambda data: dict(program=_programs(data, overhead)))  # fmt: skip
    price(
        "atomic_rate", "one address, and 2 to 32 addresses 32 bytes apart; 131,072 lines; each lane its own",
        lambda b: dict(turn=b.turn, turns=b.turns * units / b.units, adds=b.adds), _of_additions,
    )  # fmt: skip
    price("atomic_sharing", "32 lanes on a line's 32 words", lambda b: dict(line=b.line), _whole_lines)
    price("second_stage", "half of what the second launch adds", lambda b: dict(again=b.again), _again)
    price("bandwidth_by_size", "L2, own tiles, the median up to half of L2",
          lambda b: dict(l2=b.l2 * values["clock"] / b.clock),
          lambda data: dict(l2=_l2(data, device["l2_bytes"])))  # fmt: skip
    price("latency_by_size", "dependent loads in 32 KB, 4 MB and 512 MB",
          lambda b: dict(latency=b.latency, near=b.near, first_level=b.first_level), _latencies)  # fmt: skip
    return Prices(**values, sources=sources)


def _of_ladder(data: dict) -> dict[str, float]:
    """Solve for ns a byte read and written: copy reads as much as it writes, add twice as much."""
    ms = {(r["dtype"], r["what"], r["columns"]): r["ms"] for r in data["results"] if r["what"] in ("copy", "add")}
    narrow, middle, wide = sorted(data["columns"])
    elements = data["rows"] * (wide - middle)
    copy, add = (
        (ms["float32", what, wide] - ms["float32", what, middle]) * 1e6 / (4 * elements) for what in ("copy", "add")
    )
    read, write = add - copy, 2 * copy - add
    at_least = 4 * data["rows"] * narrow * (read + write)
    return dict(read=1 / read, write=1 / write, overhead=ms["float32", "copy", narrow] * 1e6 - at_least)


def _of_norm_sweep(data: dict) -> dict[str, float]:
    """Solve for ns a byte read, a byte written and a launch: streams that move what norms of several widths move."""
    import numpy as np

    rows, times, size = [], [], {"float32": 4, "bfloat16": 2, "float16": 2}
    for case in data["results"]:
        elements, x, z = case["rows"] * case["columns"], size[case["x"]], size[case["z"]]
        read, written = (x, z) if case["kernel"] == "forward" else (x + z, x)
        half = elements * (read + written) / 2
        rows.append([half, half, 1.0])  # a copy of as many bytes
        times.append(case["limit_ms"] * 1e6)
        if case["kernel"] == "forward" or x == z:  # PyTorch adds two dtypes slowly
            rows.append([elements * read, elements * written, 1.0])
            times.append(case["same_bytes_ms"] * 1e6)
    matrix, times = np.array(rows), np.array(times)
    read, write, overhead = np.linalg.lstsq(matrix / times[:, None], np.ones(len(times)), rcond=None)[0]
    return dict(read=1 / read, write=1 / write, overhead=overhead)


def _programs(data: list, overhead: float) -> float:
    case = next(r for r in data if r["columns"] == 768 and r["dtype"] == "float32")
    programs = case["rows"] * case["columns"] / 128
    return (case["times"]["an element a thread"]["ms"] * 1e6 - overhead) / programs


def _of_additions(data: list) -> dict[str, Any]:
    rate = {row["what"]: row["per_ns"] for row in data}
    sectors = [1 / rate[f"{k} at 32 bytes"] for k in (1, 2, 4, 8)]
    return dict(
        turn=(*sectors, 2 / rate["32 at 32 bytes"]),  # 32 sectors lie at two units
        turns=rate["131072 at 128 bytes"],
        adds=1.2 * rate["each lane its own"],  # which programs hold as well
    )


def _whole_lines(data: list) -> dict[str, float]:
    return dict(line=next(row["1"] for row in data if row["what"] == "32 lanes, a line's 32 words") / 4)


def _again(data: dict) -> dict[str, float]:
    ms = {name: row["ms"] for name, row in data["times"].items()}
    return dict(again=1e6 * (ms["and a launch, 32 warps, tiles of 16,384"] - ms["first launch alone"]) / 2)


def _l2(data: list, l2_bytes: int) -> float:
    rates = sorted(r["gbps"] for r in data if r["how"] == "L2, own tiles" and l2_bytes / 8 < r["bytes"] < l2_bytes / 2)
    return rates[len(rates) // 2]


def _latencies(data: list) -> dict[str, float]:
    ns = {r["bytes"]: r["ns"] for r in data if r["how"] == "plain"}
    return dict(first_level=ns[32768], near=ns[2**22], latency=ns[2**29])
