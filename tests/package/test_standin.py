"""The stand-in for Triton's compiled module gives what that module does, bit for bit; where it refuses, what is right.

What runs with it in its place is in tests/exercises/test_stand_in.py.
"""

# ruff: noqa: B023 (functions made in a loop are called in it)

import itertools
import os
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch

from flashkat_lite import _standin
from tools import standin

theirs = pytest.importorskip("triton._C.libtriton").interpreter
ours = _standin.modules()["triton._C.libtriton.interpreter"]

FLOATS, SIGNED, UNSIGNED = ("f2", "f4", "f8"), ("i4", "i8"), ("u4", "u8")
BOTH = ["ADD", "AND", "OR", "XOR", "XCHG"]


def addresses(memory, places):
    return np.uint64(memory.ctypes.data) + np.uint64(memory.itemsize) * places.astype(np.uint64)


def both(memory, places, call):
    """What a call of (module, addresses) returns and leaves in a copy of the memory, by each."""
    for module in (theirs, ours):
        left = memory.copy()
        yield call(module, addresses(left, places)), left.tobytes()


@pytest.mark.parametrize("dtype", ["?", "i1", "i2", *SIGNED, "u1", "u2", *UNSIGNED, *FLOATS])
def test_loads_and_stores_are_the_compiled_modules(dtype):
    random = np.random.default_rng(0)
    for shift, chance in itertools.product((0, 1), (0.0, 0.6, 1.0)):
        raw = random.integers(0, 2 if dtype == "?" else 256, 1024).astype(np.uint8)
        memory = raw[shift:][: 1000 // np.dtype(dtype).itemsize * np.dtype(dtype).itemsize].view(dtype)
        places, mask = random.integers(0, memory.size, (8, 9)), random.random((8, 9)) < chance
        values = random.integers(0, 2, (8, 9)).astype(dtype)
        for pointers in (addresses(memory, places), addresses(memory, places[:1, :1])):
            given = [array[: pointers.shape[0], : pointers.shape[1]] for array in (mask, values)]
            found = [module.load(pointers, *given, np.dtype(dtype)) for module in (theirs, ours)]
            assert found[0].tobytes() == found[1].tobytes() and found[0].shape == found[1].shape
        (_, expected), (_, found) = both(memory, places, lambda module, at: module.store(at, values, mask))
        assert found == expected


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        *itertools.product(FLOATS, ["FADD"]),
        *itertools.product(SIGNED, [*BOTH, "MIN", "MAX"]),
        *itertools.product(UNSIGNED, [*BOTH, "UMIN", "UMAX"]),
    ],
)
def test_atomic_operations_are_the_compiled_modules_whatever_addresses_are_shared(dtype, name):
    random = np.random.default_rng(1)
    for shape, cells, crowd in itertools.product([(1,), (16, 33)], (1, 3, 2000), (0.0, 0.7)):
        memory, values = (
            (random.standard_normal(n) * 100 if dtype in FLOATS else random.integers(0, 2**31, n)).astype(dtype)
            for n in (cells, shape)
        )
        places = np.where(random.random(shape) < crowd, 0, random.integers(0, cells, shape))
        mask = random.random(shape) < 0.8

        def call(module, at):
            op, semantic = getattr(module.RMW_OP, name), module.MEM_SEMANTIC.RELAXED
            return np.where(mask, module.atomic_rmw(op, at, values, mask, semantic), 0)

        expected, found = both(memory, places, call)
        assert found[0].tobytes() == expected[0].tobytes() and found[1] == expected[1]


def test_what_is_compared_and_exchanged_is_the_compiled_modules():
    random = np.random.default_rng(2)
    for dtype in (*FLOATS, *SIGNED, *UNSIGNED):
        memory, places = random.integers(0, 2, 8).astype(dtype), random.integers(0, 8, 64)
        wanted, fresh = random.integers(0, 2, (2, 64)).astype(dtype)
        expected, found = both(
            memory, places, lambda module, at: module.atomic_cas(at, wanted, fresh, module.MEM_SEMANTIC.RELAXED)
        )
        assert found[0].tobytes() == expected[0].tobytes() and found[1] == expected[1]


def test_bfloat16_is_added_in_bfloat16_one_after_another():
    torch.manual_seed(0)
    terms, places = (torch.randn(500) * 8).bfloat16(), torch.randint(7, (500,)).numpy()
    terms[3], terms[4] = float("inf"), float("nan")
    sums = torch.zeros(7, dtype=torch.bfloat16)
    for place, term in zip(places.tolist(), terms):
        sums[place] += term
    memory = np.zeros(7, np.uint16)
    values, mask = terms.view(torch.uint16).numpy(), np.ones(500, bool)
    _standin.atomic_rmw(_standin.ATOMIC_OP.FADD, addresses(memory, places), values, mask, None)
    found = torch.from_numpy(memory).view(torch.bfloat16)
    torch.testing.assert_close(found, sums, rtol=0, atol=0, equal_nan=True)


def test_a_multiply_add_rounds_once():
    random = np.random.default_rng(3)
    for dtype, fma in ((np.float32, _standin.fma_fp32), (np.float64, _standin.fma_fp64)):
        x, y = random.standard_normal((2, 4000)).astype(dtype)
        z = np.where(random.random(4000) < 0.5, -x * y, random.standard_normal(4000)).astype(dtype)
        exact = [Fraction(a) * Fraction(b) + Fraction(c) for a, b, c in zip(*(v.astype(float) for v in (x, y, z)))]
        found = fma(x, y, z)
        assert found.dtype == dtype and (found != x * y + z).any()
        for value, true in zip(found, exact):
            beside = [float(np.nextafter(value, dtype(end))) for end in (-np.inf, np.inf)]
            assert all(abs(Fraction(float(value)) - true) <= abs(Fraction(one) - true) for one in beside)
    inf = np.array([np.inf, 1e300, np.nan])
    assert str(_standin.fma_fp64(inf, inf, -inf)) == "[nan inf nan]"


def test_of_the_wheel_its_python_files_are_kept_and_its_compilers_are_not(tmp_path):
    names = ["triton/backends/nvidia/driver.py", "triton/backends/driver.py", "triton/_C/libtriton.so", "triton/a/b.py"]
    names += ["triton/__init__.py", "triton-3.7.1.dist-info/licenses/LICENSE", "triton-3.7.1.dist-info/METADATA"]
    standin.put(((name, name.encode()) for name in names), tmp_path)
    kept = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert kept == {*names} - {names[0], names[2], names[-1]}


def test_without_a_wish_to_interpret_nothing_stands_in(tmp_path):
    """The files are on no path, where PyTorch would take them for Triton."""
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text("raise ImportError('it was imported')", encoding="utf-8")
    code = """if True:
        import os, sys, torch
        from flashkat_lite import _interpreter, rational
        rational(torch.ones(2, 8), torch.ones(4, 2), torch.ones(4, 1))
        assert not _interpreter.activate() and "triton" not in sys.modules
        os.environ["TRITON_INTERPRET"] = "1"
        try:
            _interpreter.activate()
        except ImportError as error:
            assert not [name for name in sys.modules if name.startswith("triton")]
            print(error)
    """
    environ = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environ |= {"FLASHKAT_STANDIN": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, encoding="utf-8")
    assert done.stdout.strip() == "it was imported", done.stderr
