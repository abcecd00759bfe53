"""What chapters read off a kernel compiled for compute capability 9.0: how many programs fit, and when it loads."""

import re
from collections.abc import Iterable

from flashkat_lite.inspection import Report

REGISTERS, WARPS, SHARED = 65536, 64, 227 * 1024  # of one multiprocessor; shared memory in bytes
RESERVED = 1024  # bytes of shared memory that the driver takes of each program


def opcodes(lines: Iterable[str], pattern: str) -> list[str]:
    """Return the opcodes in lines of SASS that match `pattern` as whole words, in order."""
    return [found for line in lines for found in re.findall(rf"\b({pattern})\b", line)]


def programs_that_fit(registers: int, warps: int = 4, shared: int = 0) -> int:
    """Return how many programs of `warps` fit on a multiprocessor at a time.

    registers: of a thread, given out in eights; shared: bytes of shared memory of a program.
    """
    by_registers = REGISTERS // (-(-registers // 8) * 8 * 32 * warps)
    return min(by_registers, WARPS // warps, SHARED // (shared + RESERVED))


def warps_that_fit(registers: int, warps: int = 4, shared: int = 0) -> int:
    """Return how many warps that is: `programs_that_fit` of `warps` each."""
    return warps * programs_that_fit(registers, warps, shared)


def arithmetic_before_last_load(report: Report, loop: bool = False) -> float:
    """Return the share of float32 arithmetic that stands before the last load from global memory, 0 to 1.

    Of the kernel's text in order, or of its longest inner loop. A share of 0: all loads are asked for first.
    """
    lines = report.loop if loop else re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(.*?);", report.sass, re.M)
    wide = [i for i, line in enumerate(lines) if re.search(r"\bLDG\.E\.128\b", line)]
    last = max(wide or [i for i, line in enumerate(lines) if re.search(r"\bLDG\b", line)], default=0)
    places = [i for i, line in enumerate(lines) if re.search(r"\b(FFMA|FADD|FMUL|MUFU)", line)]
    return sum(i < last for i in places) / max(len(places), 1)
