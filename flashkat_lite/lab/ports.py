"""How long a warp waits for its registers, by a published model: chapter 11."""

import re

WINDOW = 3  # cycles within which an instruction's registers are read


def issue_cycles(listing: list[str]) -> list[int]:
    """Return the cycle in which each instruction of one warp issues, SASS in order, where nothing but its reads waits.

    The register file of Huerta et al., MICRO 2025 (arXiv 2503.20481, section 5.3): two banks, even and odd numbers,
    that read one register of a warp a cycle; an instruction issues once its reads fit into the next three cycles; what
    is marked .reuse is kept, for its bank and place, until the next read there. The first one issues in cycle 1.
    """
    kept, taken, now, cycles = {}, set(), 0, []  # {(bank, place): register}, {(bank, cycle)}
    for line in listing:
        opcode, _, operands = re.sub(r"^@!?U?P\w+\s+", "", line).partition(" ")
        stores = opcode.startswith(("ST", "LDGSTS", "RED"))
        reads = []
        for place, operand in enumerate(operands.split(",")[0 if stores else 1 :]):
            if found := re.search(r"\bR(\d+)", operand):
                bank = int(found[1]) % 2
                if kept.get((bank, place)) != found[1]:
                    reads.append(bank)
                kept[bank, place] = found[1] if ".reuse" in operand else None
        now += 1
        while not all(_free(taken, bank, now) >= reads.count(bank) for bank in (0, 1)):
            now += 1
        for bank in reads:
            taken.add((bank, next(c for c in range(now, now + WINDOW) if (bank, c) not in taken)))
        cycles.append(now)
    return cycles


def port_cycles(loop: list[str], turns: int = 8) -> float:
    """Return the cycles in which one warp issues a turn of `loop`, by `issue_cycles`: those of the later turns."""
    last = issue_cycles(loop * turns)[len(loop) - 1 :: len(loop)]  # of each turn
    first = turns // 2 - 1
    return (last[-1] - last[first]) / (turns - 1 - first)


def _free(taken: set, bank: int, now: int) -> int:
    return sum((bank, cycle) not in taken for cycle in range(now, now + WINDOW))
