"""How long it takes: what a launch asks for, priced, with queues where warps meet.

Each warp is a customer who asks the issue slots, the pipes, L2 and HBM for its part and spends the rest of its time
waiting (mean value analysis of a closed network). Additions queue at the units of L2, programs are started one by one,
and launches cost a fixed time. The slowest of these is the forecast.
"""

import math
from dataclasses import dataclass

import numpy as np

from . import warp
from .counting import FETCH, SECTOR, Launch, Torch
from .prices import Prices
from .warp import PIPES, Warp

PAIR = 256  # bytes: two lines, which share a unit of L2
PLACEMENTS = 16  # of tables at the units of L2, that are tried
TABLE, TABLE_OF_THE_UNSEEN = 2**40, 2**10  # blocks, more than any table has; a number that no table has
EVENNESS = 1.35  # blocks that the fullest pair of units has beyond the mean: see `atomic_rate`
CROWD = 8  # busy units, beyond which none is faster than when all are
SCATTERED_READ, SCATTERED_WRITTEN = 2.1, 6.0  # times the cost, where each is alone in its page of HBM: see `fresh`
KNEE = 0.85, 0.25  # of L2's size: where what is read again begins to miss, and within how much more all of it does


@dataclass(frozen=True)
class Estimate:
    """What one launch, or an operation of PyTorch's, should take.

    ms; low, high: by the placements of its additions at L2; bound: the term that binds; terms: ms by name; fit:
    programs on a multiprocessor, and what keeps the next one out; read, written: bytes of HBM.
    """

    ms: float
    low: float
    high: float
    bound: str
    terms: dict[str, float]
    fit: int
    fits_by: str
    read: float
    written: float
    warp: Warp | None


def throughput(customers: float, delay: float, demands: dict[str, float]) -> float:
    """Return customers a cycle, where each asks every station for its demand and spends `delay` elsewhere.

    The mean of two analyses: exact for service times that vary like chance, and the bound where they do not vary.
    """
    queue, rates = dict.fromkeys(demands, 0.0), [0.0]
    for n in range(1, math.ceil(customers) + 1):
        stay = {k: d * (1 + queue[k]) for k, d in demands.items()}
        rates.append(n / (delay + sum(stay.values())))
        queue = {k: rates[-1] * t for k, t in stay.items()}
    by_chance = float(np.interp(customers, range(len(rates)), rates))
    regular = min(customers / (delay + sum(demands.values())), 1 / max(demands.values()))
    return 2 / (1 / by_chance + 1 / regular)


def misses(volume: float, prices: Prices) -> float:
    """Return the share of what is read again, after `volume` bytes of all programs in flight, that L2 has lost."""
    begin, width = KNEE
    return min(max((volume / prices.l2_bytes - begin) / width, 0.0), 1.0)


@dataclass
class Traffic:
    """Bytes of one launch: from L2, from and to HBM; and the shares of loads that come from where."""

    l2: float
    read: float
    written: float
    from_hbm: dict[tuple[str, str], float]  # of what L2 is asked for, by (kind, argument)
    in_l1: dict[tuple[str, str], float]  # of what a program touches again


def traffic(launch: Launch, prices: Prices, fit: int) -> Traffic:
    """Return where a launch's bytes come from, by argument: once for neighbours, again where caches are too small."""
    in_flight = min(fit * prices.multiprocessors, launch.programs)
    first_level = 0.8 * (prices.l1_bytes - fit * launch.report.shared)
    side = launch.programs / max(launch.side, 1)
    l2 = read = written = 0.0
    from_hbm, in_l1 = {}, {}
    row = launch.grid[0] * SECTOR * sum(launch.touched.values()) / launch.ran  # bytes of a row of the grid
    below = misses(row, prices)
    for key, sectors in launch.touched.items():
        kind, name = key
        size = launch.sizes.get(name, math.inf)
        once = SECTOR * launch.scale * sectors
        back = lost = all_again = 0.0  # bytes touched again: those that L1 lacks, and of them those that L2 lacks
        for distance, n in launch.again[key].items():
            volume = SECTOR * launch.scale * n
            beyond = min(max(distance * fit / max(first_level, 1.0) - 0.75, 0.0) / 0.5, 1.0) if kind == "load" else 1.0
            all_again, back = all_again + volume, back + volume * beyond
            lost += volume * beyond * misses(distance * in_flight, prices)
        neighbours = min(side * launch.hbm[key], once * FETCH / SECTOR) if launch.side else once
        incomplete = launch.partly[name]
        alone_in_page, seen = launch.lonely.get(key, (0.0, 1.0))
        scattered = alone_in_page / max(seen, 1.0)
        if key in launch.down and below < 1:  # programs of the next row of the grid find some of it in L2
            together, each = launch.down[key]
            alike = once * together / max(each, 1.0)
            neighbours = min(neighbours, below * neighbours + (1 - below) * alike)
            left, some = launch.partly_down.get(name, (1.0, 1.0))
            incomplete *= below + (1 - below) * left / max(some, 1.0)
        footprint = min(neighbours, size)
        # What all programs read of a tensor that L2 does not hold whole is brought in again, by chance.
        held = min(prices.l2_bytes / max(footprint, 1.0), 1.0)
        brought = footprint + (neighbours - footprint) * (1 - held)
        if kind == "load":
            read += brought * (1 + scattered * (SCATTERED_READ - 1)) + lost
            # What programs share stays in L1 from one to the next, if what they touch between fits.
            shared = max(once - min(neighbours, once), 0.0)
            l2 += (
                once
                - shared * (1 - min(max(row / launch.grid[0] * fit / max(first_level, 1.0) - 0.75, 0) / 0.5, 1))
                + back
            )
            in_l1[key] = 1 - back / all_again if all_again else 1.0
            from_hbm[key] = min((brought + lost) / max(once + back, 1.0), 1.0)
        else:
            # Sectors that stay incomplete are read, in whole fetches, completed and written.
            partly = min(SECTOR * side * incomplete, brought)
            alone = partly * (1 - held) if size <= 1.5 * partly else partly
            written += brought + lost + alone * scattered * (SCATTERED_WRITTEN - 1)
            if incomplete:
                fetched = launch.mended[name] / (SECTOR * launch.partly[name])
                read += alone * fetched * (1 + scattered * (SCATTERED_READ - 1))
            l2 += SECTOR * launch.scale * sum(a.sectors for (k, _, n), a in launch.accesses.items() if (k, n) == key)
    for name, sectors in launch.apart.items():
        visits = SECTOR * side * sectors
        met = np.array([len(programs) for (n, _), programs in launch.queue.items() if n == name])
        seen = SECTOR * (len(met) + _unseen(met)) if launch.alone < launch.programs else SECTOR * len(met)
        footprint = min(visits, launch.sizes.get(name, math.inf), seen or math.inf)
        # Half of L2 holds what is added to: the embedding's gradients say so, on both GPUs.
        held = min(prices.l2_bytes / 2 / max(footprint, 1.0), 1.0)
        lost = footprint * (held < 1) + (visits - footprint) * (1 - held)
        read, written = read + lost * FETCH / SECTOR, written + lost
    return Traffic(l2, read, written, from_hbm, in_l1)


def occupancy(launch: Launch, prices: Prices) -> tuple[int, str]:
    """Return (programs that fit on a multiprocessor, what keeps the next one out)."""
    per_warp = -(-launch.report.registers // 8) * 256
    limits = {
        "registers": prices.registers // 4 // per_warp * 4 // launch.warps,
        "shared memory": prices.shared // (launch.report.shared + 1024),
        "threads": prices.lanes // (32 * launch.warps),
        "the number of programs a multiprocessor takes": prices.blocks,
        "the grid": -(-launch.programs // prices.multiprocessors),
    }
    least = min(limits, key=limits.get)
    return max(limits[least], 1), least


def additions(launch: Launch, prices: Prices) -> tuple[list[float], float]:
    """Return (ns at the fullest unit of L2 for each of some placements, sorted; ns by number).

    The two halves of each 512 bytes of a block of 1 KB belong to two units. Where blocks lie is drawn, once for each
    placement, into the emptier of two pairs of units: NVIDIA's hash spreads them more evenly than chance would.
    """
    if not launch.queue:
        return [0.0], 0.0
    names, places = zip(*launch.queue)
    visits = np.array([len(programs) for programs in launch.queue.values()], float)
    turns = np.array([sum(t for _, t in programs) for programs in launch.queue.values()], float)
    tables = {name: k for k, name in enumerate(dict.fromkeys(names))}
    pair = np.array(places) * SECTOR // PAIR
    block = np.array([tables[name] for name in names]) * TABLE + (pair >> 2)
    groups, group, sectors = np.unique(2 * block + (pair & 1), return_inverse=True, return_counts=True)
    load, sectors = np.bincount(group, weights=turns), sectors.astype(float)
    if launch.alone < launch.programs:
        who = np.concatenate([[program for program, _ in programs] for programs in launch.queue.values()])
        met = np.unique(np.repeat(group, visits.astype(int)) * 2**20 + who) >> 20
        groups, load, sectors = _evened(groups, load, np.bincount(met).astype(float), sectors, visits)
    small, end, shift = 0, 0, np.zeros(TABLE_OF_THE_UNSEEN + 1, np.int64)  # blocks to where each table would lie
    for name, k in tables.items():
        size = launch.sizes.get(name, math.inf)
        if size <= 2**20:
            shift[k], end, small = end // 1024 - k * TABLE, end + -(-size // 512) * 512, small + 1
    whole = 1 + launch.lined / turns.sum() * (prices.line / prices.turn[-1] - 1)  # lines at once are cheaper
    fullest = []
    if len(groups) > 4 * prices.units:  # so many that only their number tells
        uneven = 1 + EVENNESS * prices.units / len(groups)
        each = prices.turn[-1] * whole
        fullest = [float(max(load.sum() / prices.turns * uneven, load.max() * each))] * PLACEMENTS
    for placement in range(0 if fullest else PLACEMENTS):
        # Small tables lie one behind the other, 512 bytes apart at least, if they were allocated so: half of the time.
        shared = groups + 2 * shift[groups // (2 * TABLE)] if placement % 2 and small else groups
        unit = _placed(shared, prices.units, placement)
        queue = np.bincount(unit, weights=load, minlength=prices.units)
        used = np.bincount(unit, weights=sectors, minlength=prices.units)
        each = np.interp(np.log2(np.maximum(used, 1)), range(len(prices.turn)), prices.turn)
        each *= whole
        if (queue > 0).sum() > CROWD and queue.max() < 2 * queue[queue > 0].mean():
            each = np.maximum(each, prices.units / prices.turns)
        fullest.append(float((queue * each).max()))
    scale = launch.programs / launch.alone
    number = max(turns.sum() / prices.turns, sum(launch.words.values()) / prices.adds)
    return sorted(scale * t for t in fullest), scale * number


def _evened(groups: np.ndarray, load: np.ndarray, seen: np.ndarray, sectors: np.ndarray, visits: np.ndarray) -> tuple:
    """Return (groups, turns, sectors) with chance taken out: programs were drawn, and saw some groups more than others.

    seen: programs that met a group; visits: those that met a sector. What is far from usual is kept. The others
    are taken to be alike, and those that were not met are estimated (Chao) and get their part.
    """
    usual = seen.mean()
    chance = np.abs(seen - usual) < 3 * math.sqrt(usual) + 1
    sectors = sectors * (1 + _unseen(visits) / len(visits))
    missing = int(min(_unseen(seen), 10**6))
    if missing > 0.05 * len(groups):
        made = 2 * TABLE * TABLE_OF_THE_UNSEEN + np.arange(missing + chance.sum())
        each = sectors[chance].mean() if chance.any() else 1.0
        return (
            np.concatenate([groups[~chance], made]),
            np.concatenate([load[~chance], np.full(len(made), load[chance].sum() / len(made))]),
            np.concatenate([sectors[~chance], np.full(len(made), each)]),
        )
    load = load.copy()
    if chance.any():
        load[chance] = load[chance].mean() * sectors[chance] / sectors[chance].mean()
    return groups, load, sectors


def _placed(groups: np.ndarray, units: int, placement: int) -> np.ndarray:
    """Return the unit of each group: its block's pair of units, the emptier of two that are drawn, and its half."""
    rng, filled, where = np.random.default_rng(placement), np.zeros(units // 2, int), {}
    for block in np.unique(groups >> 1).tolist():
        first, second = rng.integers(0, units // 2, 2)
        where[block] = first if filled[first] <= filled[second] else second
        filled[where[block]] += 1
    return 2 * np.array([where[block] for block in (groups >> 1).tolist()]) + (groups & 1)


def _unseen(visits: np.ndarray) -> float:
    """Return how many places were not met, from how many were met once and twice."""
    once, twice = (visits == 1).sum(), (visits == 2).sum()
    return once**2 / (2 * max(twice, 1))


def estimate(launch: Launch | Torch, prices: Prices) -> Estimate:
    """Return what a launch should take on a GPU of these prices."""
    if isinstance(launch, Torch):
        ns = max(launch.read / prices.read + launch.written / prices.write, 1.0) + prices.overhead
        terms = {"HBM": (ns - prices.overhead) / 1e6}
        return Estimate(ns / 1e6, ns / 1e6, ns / 1e6, "HBM", terms, 0, "", launch.read, launch.written, None)
    fit, fits_by = occupancy(launch, prices)
    moved = traffic(launch, prices, fit)
    waits = warp.latencies(launch, prices.latency, prices.near, prices.first_level, moved.from_hbm, moved.in_l1)
    one = warp.execute(launch, waits, prices.clock, prices.latency, prices.near)
    cycles = one.cycles + prices.clock * prices.latency  # and from a program's end to the next one's start
    # A program goes on when the slowest of its warps has come to a barrier.
    cycles += one.meetings * prices.clock * prices.near * math.log2(max(launch.warps, 1))

    a_warp = (
        4 * prices.multiprocessors * prices.clock / (launch.programs * launch.warps)
    )  # ns to its cycles of a quarter
    demand = {"HBM": (moved.read / prices.read + moved.written / prices.write) * a_warp}
    demand |= {"L2": moved.l2 / prices.l2 * a_warp, "issue": max(sum(one.executed.values()), one.ports)}
    demand |= {k: PIPES[k][0] * one.executed[k] for k in ("integer", "product", "special", "memory", "double")}
    # Few programs leave multiprocessors empty, and the fullest one takes longest; of many, the last ones run alone.
    each = launch.programs / prices.multiprocessors
    waves = each / fit
    share = each / math.ceil(each) if waves <= 1 else 1.0  # of the fullest one's warps, that the mean one has
    customers = min(fit, each / share) * launch.warps / 4 * one.ahead
    asked = {k: d * (share if k in ("HBM", "L2") else 1.0) for k, d in demand.items()}
    delay = max(cycles - demand["issue"], 0)
    rate = throughput(customers, delay, asked)
    busy = 1 / rate / (a_warp * share)
    if waves > 1:
        idle = min(1.0, cycles * rate / customers)
        busy *= 1 + 0.5 * idle * (math.ceil(waves) / waves - 1)
    demand = {k: a / share for k, a in asked.items()}
    programs = launch.programs * prices.program
    placements, number = additions(launch, prices)
    terms = {k: d / a_warp for k, d in demand.items()}
    terms |= {"waiting": cycles / customers / (a_warp * share), "programs": programs}
    after = launch.trips > 1 and not launch.adds_in_loop and launch.programs <= fit * prices.multiprocessors

    def total(unit: float) -> float:
        # Where all programs run at once and add when their loops have ended, nothing else is left to hide behind.
        added = max(unit, number)
        return (busy + added if after else max(busy, programs, added)) + prices.overhead

    middle = float(np.median(placements))
    terms |= {"one unit's additions": middle, "additions": number}
    bound = max(terms, key=terms.get)
    if terms[bound] < 0.75 * busy:
        bound = "waiting"  # nothing is busy: too few warps, or too little of each under way
    return Estimate(
        total(middle) / 1e6, total(placements[0]) / 1e6, total(placements[-1]) / 1e6, bound,
        {k: t / 1e6 for k, t in terms.items()}, fit, fits_by, moved.read, moved.written, one,
    )  # fmt: skip


def together(estimates: list[Estimate], prices: Prices) -> float:
    """Return the ms of launches one after another: only the first pays for starting from nothing."""
    return sum(e.ms for e in estimates) - max(len(estimates) - 1, 0) * (prices.overhead - prices.again) / 1e6


def simpler(one: Estimate, prices: Prices) -> dict[str, float]:
    """Return what simpler models say, in ms: bytes alone, and the slowest of all terms without queues."""
    overhead = prices.overhead / 1e6
    slowest = max(t for name, t in one.terms.items())
    return {"bytes": one.terms.get("HBM", 0.0) + overhead, "slowest term": slowest + overhead}
