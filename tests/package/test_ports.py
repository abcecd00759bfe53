"""The register file's ports: what a published model says of a loop (chapter 11)."""

import pytest

from flashkat_lite.lab.ports import port_cycles


def loop(*lines, times=16):
    return list(lines) * times


@pytest.mark.parametrize(
    ("lines", "each"),
    [
        (["FADD R1, R2, R3"], 1),  # a read of each bank
        (["FADD R1, R2, R4"], 2),  # both of the even one
        (["FFMA R1, R2, R3, R4", "FFMA R1, R5, R6, R7"], 1.5),  # three reads through two ports
        (["FFMA R1, R2.reuse, R3, R5", "FFMA R1, R2.reuse, R7, R9"], 2),  # what is kept is not read; two odd ones are
        (["FFMA R1, R2.reuse, R3.reuse, R4", "FFMA R1, R2.reuse, R3.reuse, R6"], 1),
        (["FADD R1, R2.reuse, R4", "FADD R1, R6, R8", "FADD R1, R2, R10"], 2),  # R6 takes R2's place
        (["STS [R2], R4"], 2),  # a store's first operand is read
        (["MOV R1, 0x7", "@!P0 BRA R2", "UIADD3 UR4, UR4, 0x1, URZ"], 1),
    ],
)
def test_a_loop_takes_as_long_as_its_reads_need(lines, each):
    made = loop(*lines)
    assert port_cycles(made) == pytest.approx(each * len(made), rel=0.02)


def test_a_crowd_in_one_bank_waits_only_beyond_three_cycles():
    calm = ["MOV R1, 0x7"] * 8
    assert port_cycles([*calm, "FFMA R1, R2, R4, R6"]) == 9, "three reads of one bank, and time enough"
    assert port_cycles(["FFMA R1, R2, R4, R6", "FFMA R1, R2, R4, R6", *calm]) == 12
