"""`make mutants` seeds the faults that tests/mutants.toml lists, and says which of them the tests let pass."""

import ast
import re

import pytest

from tools import mutants
from tools.mutants import Mutant


@pytest.mark.parametrize("mutant", mutants.listed(), ids=lambda mutant: mutant.name)
def test_its_text_is_found_once_and_its_tests_exist(mutant, root):
    assert mutants.found_once(mutant), "seed the fault anew"
    assert mutant.old != mutant.new
    ast.parse((root / mutant.file).read_text(encoding="utf-8").replace(mutant.old, mutant.new))
    files, _, _ = mutant.tests.partition(" -k ")
    for test in files.split():
        file, _, name = test.partition("::")
        assert (root / file).exists()
        assert not name or re.search(rf"^def {name}\(", (root / file).read_text(encoding="utf-8"), re.MULTILINE)


def test_no_two_have_one_name():
    names = [mutant.name for mutant in mutants.listed()]
    assert len(set(names)) == len(names) > 0


@pytest.fixture
def house(tmp_path):
    """A tree with one function and one test of it."""
    house = tmp_path / "house"
    house.mkdir()
    (house / "double.py").write_text("def double(x):\n    return x + x if x else 0\n", encoding="utf-8")
    (house / "test_double.py").write_text(
        "from double import double\ndef test_two():\n    assert double(2) == 4\n", encoding="utf-8"
    )
    return house


def fault(old, new, tests="test_double.py"):
    return Mutant(f"{old} → {new}", "double.py", old, new, tests)


def test_a_fault_that_survives_or_is_not_found_fails(house, capsys, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # for the time that importing them takes
    faults = [fault("x + x", "x * 3"), fault("else 0", "else 1"), fault("x - x", "0"), fault("x", "y")]
    with pytest.raises(SystemExit, match="Not noticed: else 0 → else 1; x - x → 0; x → y"):
        mutants.main([], faults, house)
    said = capsys.readouterr().out
    assert "| double.py | x + x → x * 3 | test_double.py::test_two |" in said
    assert "SURVIVED" in said and said.count("no longer found exactly once") == 2
    assert "1 of 4 faults noticed." in said
    assert "x + x" in (house / "double.py").read_text(encoding="utf-8")


def test_tests_that_fail_without_a_fault_prove_nothing(house, monkeypatch):
    monkeypatch.setattr(mutants, "run", lambda *_: (1, "test_double.py::test_two", 0.1))
    with pytest.raises(SystemExit, match="fails without any fault: test_double"):
        mutants.main([], [fault("x + x", "x * 3")], house)


def test_tests_that_cannot_run_notice_nothing(house, monkeypatch):
    monkeypatch.setattr(mutants, "run", lambda *_: (4, "no such file", 0.1))
    assert mutants.judge(fault("x + x", "x * 3"), house) == (False, "no test ran: no such file", 0.1)


def test_faults_can_be_named_and_listed(capsys):
    mutants.main(["--list", "--only", "fence"])
    assert capsys.readouterr().out.count("\n") == 1
    with pytest.raises(SystemExit, match="--list names them"):
        mutants.main(["--only", "no such fault"])
