"""The checks of chapter 05 accept right answers and reject common mistakes, each with its reason."""

import pytest
import torch
import triton
import triton.language as tl
from interpreter import interpreted, kernels

from flashkat_lite.lab import checks, solutions_memory


def sectors(first, stride, size, sector=32):
    return len({(first + i * stride + k) // sector for i in range(32) for k in range(0, size, 4)})


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda first, stride, size: 32, "a sector touched by several lanes moves once"),
        (lambda first, stride, size: sectors(first, stride, size, 128), "lines of 128 bytes"),
        (lambda first, stride, size: sectors(0, stride, size), "the first byte may lie inside a sector"),
        (lambda first, stride, size: size, "the gaps between them move too|count from `first`"),
        (
            lambda first, stride, size: (first + 31 * stride + size - 1) // 32 - first // 32 + 1,
            "sectors that no lane touches",
        ),
        (lambda *_: None, "expected a number, got None"),
    ],
)
def test_wrong_sectors_are_rejected(wrong, words):
    checks.warp_sectors(sectors)
    with pytest.raises(checks.Wrong, match=words):
        checks.warp_sectors(wrong)


def programs(gbps, ns, warps, each):
    return int(-(-gbps * ns // (32 * warps * each)))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda gbps, ns, warps, each: int(gbps * ns // (32 * warps * each)), "round up"),
        (lambda gbps, ns, warps, each: programs(gbps, ns, warps, each / 32), "a warp has 32 lanes"),
        (lambda gbps, ns, warps, each: programs(gbps, ns, 1, each), "a program has several warps"),
        (lambda gbps, ns, warps, each: programs(gbps * 2**30 / 1e9, ns, warps, each), "1 GB is 1e9 bytes"),
        (lambda gbps, ns, warps, each: programs(gbps, 1 / ns, warps, each), "multiply"),
    ],
)
def test_wrong_numbers_of_programs_are_rejected(wrong, words):
    checks.programs_to_fill(programs)
    with pytest.raises(checks.Wrong, match=words):
        checks.programs_to_fill(wrong)


def ways(words):
    banks = [word % 32 for word in set(words)]
    return max(banks.count(bank) for bank in banks)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda words: ways(words) - 1, "conflicts beyond the first turn"),
        (lambda words: len({w % 32 for w in words}), "the number of banks in use"),
        (lambda words: len(set(words)), "banks work at the same time|banks in use"),
        (
            lambda words: max(sum(w % 32 == b for w in words) for b in range(32)),
            "lanes that want the same word are served together",
        ),
    ],
)
def test_wrong_turns_are_rejected(wrong, words):
    checks.bank_ways(ways)
    with pytest.raises(checks.Wrong, match=words):
        checks.bank_ways(wrong)


def by_rows(x):
    """A right transpose whose programs take one row each: whole sectors read, single numbers written."""

    @triton.jit
    def kernel(x_ptr, out_ptr, rows, columns, row_stride, column_stride, BLOCK: tl.constexpr):
        row, column = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = column < columns
        value = tl.load(x_ptr + row * row_stride + column * column_stride, mask=inside, other=0.0)
        tl.store(out_ptr + column * rows + row, value, mask=inside)

    out = torch.empty(x.shape[1], x.shape[0], device=x.device)
    kernel[(x.shape[0], triton.cdiv(x.shape[1], 256))](x, out, *x.shape, *x.stride(), BLOCK=256)
    return out


@kernels
def test_our_transpose_passes(capsys):
    checks.transposed(solutions_memory.transposed_solution)
    assert "Right:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda x: x.T, "contiguous tensor, got strides"),
        (lambda x: x.contiguous(), r"expected shape \[96, 64\], got \[64, 96\]"),
        (lambda x: x.reshape(x.shape[1], x.shape[0]), "rows and columns of the output are swapped"),
        (
            lambda x: torch.as_strided(x, x.shape, (x.shape[1], 1)).T.contiguous(),
            r"every second column.*take both from x.stride\(\)",
        ),
    ],
)
def test_wrong_transposes_are_rejected(wrong, words):
    with pytest.raises(checks.Wrong, match=words):
        checks.transposed(wrong)


@interpreted
def test_sectors_are_counted():
    with pytest.raises(checks.Wrong, match="no store of a kernel was counted"):
        checks.transposed(lambda x: x.T.contiguous())
    with pytest.raises(checks.Wrong, match=r"its stores touch 32,768 sectors.*thin across the stores"):
        checks.transposed(by_rows)
