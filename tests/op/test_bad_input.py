"""Input that cannot be right: one clear exception, with the value in it, before anything is computed."""

import re

import pytest
import torch

from flashkat_lite import _torch, rational

CUDA = torch.cuda.is_available()


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch):
    def forbidden(*arguments, **keywords):
        pytest.fail("something was launched")

    monkeypatch.setattr("flashkat_lite.ops.EAGER", {name: forbidden for name in _torch.BACKWARDS})
    for name in ("registered_rational", "rational_reference"):
        monkeypatch.setattr(f"flashkat_lite.ops.{name}", forbidden)
    for name in ("_forward", "_backward"):
        monkeypatch.setattr(_torch, name, forbidden)


def x(*shape, **options):
    return torch.ones(*shape, **options)


def good(**changed):
    return dict(x=x(3, 12), numerator=x(4, 6), denominator=x(4, 4)) | changed


SHAPES = {
    "x without dimensions": (good(x=torch.tensor(1.0)), "x must be [..., D]", "[]"),
    "x without columns": (good(x=x(3, 0)), "x must be [..., D]", "[3, 0]"),
    "x without columns, tables shared": (good(x=x(0), numerator=x(1, 6), denominator=x(1, 4)), "x must", "[0]"),
    "columns that groups do not divide": (good(x=x(3, 10)), "10", "not divisible by 4 groups"),
    "columns that a lone numerator's groups do not divide": (good(x=x(3, 10), denominator=x(1, 4)), "10", "4 groups"),
    "columns that a lone denominator's groups do not divide": (good(x=x(3, 10), numerator=x(1, 6)), "10", "4 groups"),
    "fewer columns than groups": (good(x=x(3, 2)), "2,", "4 groups"),
    "different numbers of groups": (good(denominator=x(3, 4)), "numerator has 4 groups", "denominator 3"),
    "numerator of one dimension": (good(numerator=x(6)), "numerator must be [G, m+1]", "[6]"),
    "numerator of three dimensions": (good(numerator=x(1, 4, 6)), "numerator must be [G, m+1]", "[1, 4, 6]"),
    "numerator without dimensions": (good(numerator=torch.tensor(1.0)), "numerator must be [G, m+1]", "[]"),
    "numerator of degree 0": (good(numerator=x(4, 1)), "m >= 1", "[4, 1]"),
    "numerator without groups": (good(numerator=x(0, 6)), "numerator must be [G, m+1]", "[0, 6]"),
    "denominator of one dimension": (good(denominator=x(4)), "denominator must be [G, n]", "[4]"),
    "denominator of degree 0": (good(denominator=x(4, 0)), "n >= 1", "[4, 0]"),
    "denominator without groups": (good(denominator=x(0, 4)), "denominator must be [G, n]", "[0, 4]"),
}


@pytest.mark.parametrize("case", SHAPES)
def test_shapes(case):
    arguments, *words = SHAPES[case]
    raises(ValueError, arguments, *words)


def raises(kind, arguments, *words):
    with pytest.raises(kind) as caught:
        rational(**arguments)
    assert caught.type is kind
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn]
)
def test_dtypes_of_x(dtype):
    words = "x must be float32, bfloat16, float16 or float64"
    raises(TypeError, good(x=torch.zeros(3, 12, dtype=dtype)), words, str(dtype))


@pytest.mark.parametrize("table", ["numerator", "denominator"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_dtypes_of_tables(dtype, table):
    raises(TypeError, good(**{table: torch.ones(4, 4, dtype=dtype)}), f"{table} must have a float dtype", str(dtype))


@pytest.mark.parametrize("name", ["x", "numerator", "denominator"])
@pytest.mark.parametrize(
    "value", [None, 1.0, [[1.0, 2.0]], "tensor", torch.ones(4, 4).numpy()], ids=lambda value: type(value).__name__
)
def test_what_is_not_a_tensor(value, name):
    raises(TypeError, good(**{name: value}), f"{name} must be a tensor", type(value).__name__)


DEVICES = [("meta", "cpu"), ("cpu", "meta")] + ([("cuda", "cpu"), ("cpu", "cuda"), ("cuda", "meta")] if CUDA else [])


@pytest.mark.parametrize("table", ["numerator", "denominator"])
@pytest.mark.parametrize(("of_x", "of_table"), DEVICES)
def test_devices(of_x, of_table, table):
    arguments = {name: t.to(of_x) for name, t in good().items()}
    arguments[table] = arguments[table].new_ones(arguments[table].shape, device=of_table)
    raises(ValueError, arguments, f"{table} is on {of_table}", f"x on {of_x}")


@pytest.mark.parametrize("backward", ["warp", "", "Block", None, 2, ["block"]])
def test_names_of_backwards(backward):
    raises(ValueError, good(backward=backward), repr(backward), "'atomic', 'block'")


def test_a_wrong_name_is_reported_even_where_no_gradient_is_wanted():
    with torch.no_grad():
        raises(ValueError, good(backward="nope"), "'nope'")


def test_the_guard_of_these_tests_holds():
    with pytest.raises(pytest.fail.Exception, match=re.escape("something was launched")):
        rational(**good())
