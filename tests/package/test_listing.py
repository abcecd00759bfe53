"""What chapters read off a compiled kernel."""

from types import SimpleNamespace

import pytest

from flashkat_lite.lab import listing


@pytest.mark.parametrize(
    ("registers", "warps", "shared", "fit"),
    [(168, 4, 0, 3), (72, 4, 0, 7), (255, 4, 0, 2), (24, 4, 0, 16), (198, 8, 0, 1), (64, 4, 100 * 1024, 2)],
)  # fmt: skip
def test_registers_in_eights_warps_and_shared_memory_say_how_many_programs_fit(registers, warps, shared, fit):
    assert listing.programs_that_fit(registers, warps, shared) == fit
    assert listing.warps_that_fit(registers, warps, shared) == fit * warps


def sass(*opcodes):
    return "\n".join(f"        /*{16 * i:04x}*/  {opcode} R0, R1 ;" for i, opcode in enumerate(opcodes))


def test_arithmetic_counts_as_early_where_a_load_comes_after_it():
    late = sass("LDG.E.128", "FFMA", "IMAD", "LDG.E.128", "FMUL", "FADD", "MUFU.RCP", "LDG.E", "STG.E.128")
    report = SimpleNamespace(sass=late, loop=["FADD R0", "LDG.E R1", "FADD R2", "FADD R3", "FADD R4"])
    assert listing.arithmetic_before_last_load(report) == 1 / 4, "coefficients are loaded by narrow loads"
    assert listing.arithmetic_before_last_load(report, loop=True) == 1 / 4
    early = SimpleNamespace(sass=sass("LDG.E", "LDG.E", "FFMA", "FFMA"), loop=[])
    assert listing.arithmetic_before_last_load(early) == 0


def test_opcodes_are_found_as_whole_words_in_order():
    lines = ["@P0 LDGSTS.E.BYPASS.128 [R1]", "LDG.E.128 R2", "FFMA R1, R2"]
    assert listing.opcodes(lines, "LDG(?!STS)[A-Z0-9.]*|FFMA") == ["LDG.E.128", "FFMA"]
