"""In the interpreter, kernels inside `watching` touch their own tensors alone, and their programs do not race."""

import re

import pytest
import torch
import triton
import triton.language as tl

from flashkat_lite import lab, testing
from flashkat_lite.kernels import INTERPRETED
from flashkat_lite.lab.exercises import common, touched
from flashkat_lite.lab.exercises.ch07 import column_sums_copies_solution
from flashkat_lite.testing import DataRace, OutOfBounds, guarded

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="make test runs these in a process of their own")


@triton.jit
def outside_kernel(x_ptr, y_ptr, count, shift, KIND: tl.constexpr):
    at = tl.arange(0, 8)
    x = tl.load(x_ptr + at, mask=at < count, other=0.0)
    if KIND == "load":
        x = tl.load(x_ptr + at + shift)
    elif KIND == "store":
        tl.store(y_ptr + at + shift, x)
    elif KIND == "store with a mask":
        tl.store(y_ptr + at, x, mask=at <= count)
    elif KIND == "add 0.0":
        tl.atomic_add(y_ptr + at + shift, 0.0 * x)
    elif KIND == "largest":
        tl.atomic_max(y_ptr + at + shift, x)
    elif KIND == "compare":
        tl.atomic_cas(y_ptr + 5 + shift, 0.0, 1.0)


@pytest.mark.parametrize(
    ("kind", "shift", "words"),
    [
        (
            "load",
            0,
            r"`x = tl.load\(x_ptr \+ at \+ shift\)` in outside_kernel, line \d+: program 0 loads outside of x_ptr",
        ),
        ("load", -1, "at index -1: its elements are 0 … 4.*a missing mask"),
        (
            "store",
            0,
            "stores outside of y_ptr, at index 5: its elements are 0 … 4. .3 positions.*Nothing was written.*mask",
        ),
        ("store", -3, "at index -3"),
        ("store", 2**31 - 8, "wrapped around in 32 bits"),
        ("store with a mask", 0, "at index 5: .*its mask lets positions through"),
        ("add 0.0", 0, "adds atomically outside of y_ptr, at index 5: .*adding 0 writes too"),
        ("largest", 0, "adds atomically outside of y_ptr, at index 5"),
        ("compare", 0, "adds atomically outside of y_ptr, at index 5"),
    ],
)
def test_an_access_outside_is_named_before_it_is_made(kind, shift, words):
    x, y = guarded(torch.ones(5), fill=7.0), guarded(torch.zeros(5), fill=7.0)
    with pytest.raises(OutOfBounds, match=words), lab.watching():
        outside_kernel[(1,)](x, y, 5, shift, KIND=kind)
    around = torch.as_strided(y, (21,), (1,), y.storage_offset() - 8)
    assert around.tolist() == [7.0] * 8 + [0.0] * 5 + [7.0] * 8


def test_an_index_that_leads_into_another_tensor_is_outside_all_the_same():
    x, y = torch.ones(8), torch.zeros(8)
    shift = (x.data_ptr() - y.data_ptr()) // 4
    with pytest.raises(OutOfBounds, match="outside of y_ptr"), lab.watching():
        outside_kernel[(1,)](x, y, 8, shift, KIND="store")
    assert x.tolist() == [1.0] * 8 and y.tolist() == [0.0] * 8


def test_after_a_fault_kernels_run_as_before():
    x, y = torch.ones(8), torch.zeros(8)
    with lab.watching(), pytest.raises(OutOfBounds):
        outside_kernel[(1,)](x, y, 8, 1, KIND="store")
    outside_kernel[(1,)](x, y, 8, 0, KIND="store")
    with lab.watching():
        outside_kernel[(1,)](y, x[:8], 8, 0, KIND="add 0.0")
    assert y.tolist() == [1.0] * 8


@triton.jit
def race_kernel(x_ptr, total_ptr, count_ptr, out_ptr, KIND: tl.constexpr, SEM: tl.constexpr):
    program = tl.program_id(0)
    x = tl.load(x_ptr + program)
    if KIND == "load, add, store":
        tl.store(total_ptr, tl.load(total_ptr) + x)
    elif KIND == "store":
        tl.store(total_ptr, x)
    elif KIND == "store the same":
        tl.store(total_ptr, 1.0)
    elif KIND == "zero, then add":
        if program == 0:
            tl.store(total_ptr, 0.0)
        tl.atomic_add(total_ptr, x)
    elif KIND == "read a neighbour":
        tl.store(total_ptr + program, x)
        tl.store(out_ptr + program, tl.load(total_ptr + (program + 1) % 4))
    elif KIND == "lock":
        while tl.atomic_cas(count_ptr, 0, 1) == 1:
            pass
        tl.store(total_ptr, tl.load(total_ptr) + x)
        tl.atomic_xchg(count_ptr, 0)
    else:
        if KIND == "count first":
            before = tl.atomic_add(count_ptr, 1, sem=SEM)
        tl.store(total_ptr + program, x)
        if KIND == "last adds":
            before = tl.atomic_add(count_ptr, 1, sem=SEM)
        if before == 3:
            tl.store(out_ptr, tl.sum(tl.load(total_ptr + tl.arange(0, 4))))


def race(kind, sem="acq_rel", dtype=torch.float32):
    total, out = torch.zeros(4, dtype=dtype), torch.zeros(4, dtype=dtype)
    with testing.watching():
        x, count = torch.arange(4.0).to(dtype), torch.zeros(1, dtype=torch.int32)
        race_kernel[(4,)](x, total, count, out, KIND=kind, SEM=sem)
    return total, out


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.int32])
def test_a_load_an_addition_and_a_store_are_a_race_whatever_the_totals_dtype(dtype):
    words = "a race at index 0 of total_ptr: program . stores to it and program . stores to it.*addition is lost"
    with pytest.raises(DataRace, match=words):
        race("load, add, store", dtype=dtype)


@pytest.mark.parametrize(
    ("kind", "sem", "words"),
    [
        ("store", "acq_rel", "two programs own one element"),
        ("zero, then add", "acq_rel", "program 0 stores to it and program . adds to it.*torch.zeros"),
        ("read a neighbour", "acq_rel", "stores to it.*use a second launch, or a counter"),
        ("last adds", "relaxed", "a missing fence"),
        ("last adds", "release", "a missing fence"),
        ("count first", "acq_rel", "count after the store"),
    ],
)
def test_programs_that_meet_where_one_stores_are_named_with_their_cause(kind, sem, words):
    with pytest.raises(DataRace, match=words):
        race(kind, sem)


def test_what_a_fence_orders_or_nobody_can_tell_apart_is_no_race():
    assert race("last adds")[1][0] == 6.0
    assert race("lock")[0][0] == 6.0
    assert race("store the same")[0][0] == 1.0


# The picture


@triton.jit
def strided_kernel(x_ptr, y_ptr, total_ptr, STRIDE: tl.constexpr):
    at = tl.program_id(0) * 64 + tl.arange(0, 64)
    x = tl.load(x_ptr + at * STRIDE)
    tl.store(y_ptr + at, x)
    tl.atomic_add(total_ptr + at % 2, x)


@pytest.fixture
def shown(monkeypatch):
    html = []
    monkeypatch.setattr(touched, "display", lambda item: html.append(item.data))
    return html


def test_the_picture_counts_sectors_and_additions_and_shows_which_program_touched_what(shown):
    keeps = touched.Touched()
    with testing.watching(done=keeps):
        for programs in (1, 4, 100):
            x, y = torch.ones(programs * 64 * 4), torch.zeros(programs * 64)
            strided_kernel[(programs,)](x, y, torch.zeros(2), STRIDE=4)
    keeps.show()
    for words in (
        "4 programs of strided_kernel",  # the launch that shows it best
        "<code>x_ptr</code>: 256 elements loaded in 128 sectors of 32 bytes, 75% of these unused",
        "<code>y_ptr</code>: 256 elements stored in 32 sectors of 32 bytes, 0% of these unused",
        "<code>total_ptr</code>: 256 additions to 2 addresses, 128 at most to one",
        'aria-label="x_ptr, by program and address: loaded by 4 programs, each in sectors of its own"',
        "<code>total_ptr</code>: added to by 4 programs, 4 of them at most in one sector</figcaption>",
    ):
        assert words in shown[0], words
    stored = [float(x) for x in re.findall(r'<rect x="([\d.]+)"[^/]*fill: var\(--fk-green', shown[0])]
    assert stored == sorted(stored) and len(set(stored)) == 4, "each program has its own quarter"
    assert shown[0].count("fill: var(--fk-orange") == 4, "each program adds to one sector"


@pytest.mark.parametrize(("wanted", "pictures"), [("0", 0), ("1", 1)])
def test_a_right_answer_has_its_picture_in_a_readers_notebook_alone(shown, monkeypatch, capsys, wanted, pictures):
    monkeypatch.setenv("FLASHKAT_FORECAST", wanted)
    monkeypatch.setattr(common, "foretold", lambda *_: "a forecast")
    lab.check("07-4", column_sums_copies_solution)
    assert len(shown) == pictures and capsys.readouterr().out.count("a forecast") == pictures


def test_a_picture_that_cannot_be_drawn_leaves_a_right_answer_right(monkeypatch, capsys):
    monkeypatch.setenv("FLASHKAT_FORECAST", "1")
    monkeypatch.setattr(common, "foretold", lambda *_: "a forecast")
    monkeypatch.setattr(touched, "picture", lambda launch: 1 / 0)
    lab.check("07-4", column_sums_copies_solution)
    assert "Right: " in capsys.readouterr().out
