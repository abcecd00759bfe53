import math
import subprocess
import sys

import pytest
import torch

from flashkat_lite import coefficients
from flashkat_lite.reference import rational_reference

BOUNDS = {
    "gelu": 4e-3,
    "silu": 1e-5,
    "tanh": 1e-5,
    "relu": 3.5e-2,
    "sigmoid": 1e-6,
    "leaky_relu": 3.5e-2,
    "leaky_relu_0.1": 3.5e-2,
    "geglu": 4e-3,
    "swishglu": 2e-4,
    "softplus_erfc": 4e-4,
}


def evaluate(x, numerator, denominator):
    return rational_reference(x[:, None], numerator[None].to(x.dtype), denominator[None].to(x.dtype))[:, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", BOUNDS)
def test_the_start_of_degrees_5_4_is_close_to_its_function(name, dtype):
    assert BOUNDS.keys() == coefficients.FUNCTIONS.keys() == coefficients.TABLES.keys()
    x = torch.linspace(-3, 3, 60_001, dtype=dtype)
    error = evaluate(x, *coefficients.initial(name)) - coefficients.FUNCTIONS[name](x.double())
    assert error.abs().max() <= BOUNDS[name]


def test_functions_are_the_ones_that_their_names_say():
    """Written out in Python's own numbers, at a few points."""
    gelu, silu = (lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2), (lambda x: x / (1 + math.exp(-x)))
    written = {
        "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
        "leaky_relu": lambda x: max(x, 0.01 * x),
        "leaky_relu_0.1": lambda x: max(x, 0.1 * x),
        "geglu": lambda x: x * gelu(x),
        "swishglu": lambda x: x * silu(x),
        "softplus_erfc": lambda x: (1 - math.erf(math.log(1 + math.exp(x)))) ** 2,
    }
    for name, function in written.items():
        for x in (-2.5, -0.3, 0.0, 0.7, 3.0):
            found = coefficients.FUNCTIONS[name](torch.tensor(x, dtype=torch.float64)).item()
            assert found == pytest.approx(function(x), abs=1e-12), name


def test_swish_is_silu():
    for found, wanted in zip(coefficients.initial("swish", (6, 5)), coefficients.initial("silu", (6, 5))):
        assert torch.equal(found, wanted)


def test_starts_are_made_on_the_cpu_wherever_tensors_go_by_default():
    with torch.device("meta"):
        numerator, denominator = coefficients.initial("silu")
    assert numerator.device.type == denominator.device.type == "cpu"
    assert numerator[1] == 0.5


@pytest.mark.parametrize("degrees", [(1, 1), (2, 3), (5, 4), (9, 8)])
def test_identity_is_exact_at_any_degrees(degrees):
    numerator, denominator = coefficients.initial("identity", degrees)
    assert (len(numerator), len(denominator)) == (degrees[0] + 1, degrees[1])
    x = torch.tensor([-1e4, -3.7, 0.0, 1e-30, 0.1, 1e4])
    assert torch.equal(evaluate(x, numerator, denominator), x)


STORED = [(name, degrees) for name, fits in coefficients.TABLES.items() for degrees in fits]


@pytest.mark.parametrize("name,degrees", STORED)
def test_a_stored_fit_has_its_degrees_its_stated_error_and_a_denominator_without_signs(name, degrees):
    numerator, denominator, stated = coefficients.TABLES[name][degrees]
    assert (len(numerator) - 1, len(denominator)) == degrees
    assert all(b >= 0 for b in denominator)
    measured = coefficients.max_error(coefficients.FUNCTIONS[name], numerator, denominator)
    assert measured == pytest.approx(stated, rel=0.01)


@pytest.mark.parametrize(
    "name,degrees", [("gelu", (5, 4)), ("tanh", (3, 2)), ("relu", (6, 5)), ("silu", (2, 1)), ("swishglu", (5, 4))]
)
def test_the_fit_reproduces_the_stored_error(name, degrees):
    numerator, denominator, error = coefficients.fit(coefficients.FUNCTIONS[name], degrees)
    assert error == pytest.approx(coefficients.TABLES[name][degrees][2], rel=0.03)
    assert (len(numerator) - 1, len(denominator)) == degrees


def test_the_fit_finds_what_is_a_rational_function():
    _, _, error = coefficients.fit(lambda x: (1 - 2 * x) / (1 + 3 * x.abs()), (2, 1))
    assert error < 1e-6
    _, _, error = coefficients.fit(lambda x: x, (1, 1))
    assert error < 1e-6


def test_the_fit_of_exp_is_the_best_polynomial_where_b_cannot_help():
    """exp wants a falling denominator, which b >= 0 forbids: what is left is the best parabola, off by 0.008756."""
    _, denominator, error = coefficients.fit(torch.exp, (2, 2), interval=(0.0, 1.0))
    assert error == pytest.approx(0.008756, rel=1e-3)
    assert not any(denominator)


@pytest.mark.parametrize("name,alternations", [("silu", 6), ("gelu", 5), ("relu", 6)])
def test_the_best_fit_equioscillates(name, alternations):
    """A best approximation takes its largest error with alternating signs.

    The even part, in u = x² on [0, 9], has m // 2 + 1 + n // 2 = 5 free coefficients at degrees (5, 4): six extrema,
    one fewer for GELU, which the constraint b >= 0 robs of b_4.
    """
    x = torch.linspace(0, 3, 200_001, dtype=torch.float64)
    numerator, denominator, _ = coefficients.TABLES[name][5, 4]
    a, b = (torch.tensor(c, dtype=torch.float64) for c in (numerator, denominator))
    error = evaluate(x, a, b) - coefficients.FUNCTIONS[name](x)
    signs = error[error.abs() > 0.9 * error.abs().max()].sign()
    assert 1 + (signs[1:] != signs[:-1]).sum() == alternations


@pytest.mark.parametrize("degrees,source", [((5, 5), (5, 4)), ((4, 4), (3, 2)), ((3, 9), (3, 2)), ((9, 1), (2, 1))])
def test_other_degrees_start_from_the_best_fit_inside_them_padded_with_zeros(degrees, source):
    numerator, denominator = coefficients.initial("silu", degrees)
    assert (len(numerator), len(denominator)) == (degrees[0] + 1, degrees[1])
    expected = coefficients.initial("silu", source)
    for table, start in zip((numerator, denominator), expected):
        assert torch.equal(table[: len(start)], start)
        assert not table[len(start) :].any()
    assert numerator.dtype == denominator.dtype == torch.float32


def test_larger_degrees_never_start_worse():
    for name, function in coefficients.FUNCTIONS.items():
        least = min(coefficients.TABLES[name])
        errors = [
            coefficients.max_error(function, *coefficients.start(name, degrees))
            for degrees in [(2, 1), (3, 2), (4, 3), (5, 4), (6, 5), (7, 7)]
            if degrees >= least
        ]
        assert errors == sorted(errors, reverse=True)


def test_what_cannot_be_started_is_refused_with_what_can():
    with pytest.raises(ValueError, match=r"'swich'.*identity.*silu.*swish"):
        coefficients.initial("swich")
    with pytest.raises(ValueError, match=r"'geglu'.*\(2, 1\).*\(3, 2\)"):
        coefficients.initial("geglu", (2, 1))
    with pytest.raises(ValueError, match=r"'tanh'.*\(1, 4\).*\(2, 1\)"):
        coefficients.initial("tanh", (1, 4))
    with pytest.raises(ValueError, match=r"\(5, 0\)"):
        coefficients.initial("identity", (5, 0))


def test_the_fit_for_another_denominator_fails_here_as_the_docstring_says():
    """|b_1 x + b_2 x²| is not |b_1||x| + |b_2|x² once the terms' signs differ."""
    x = torch.linspace(-3, 3, 6001, dtype=torch.float64)
    a, b = torch.tensor([[0.0, 1.0, 0.5]]).double(), torch.tensor([[-0.5, 0.5]]).double()
    ours, other = (
        rational_reference(x[:, None], a, b, form=form) for form in ("sum_of_magnitudes", "magnitude_of_sum")
    )
    assert (ours - other).abs().max() > 1


def test_importing_the_package_needs_no_scipy_and_no_triton():
    code = "import sys, flashkat_lite; print({'scipy', 'triton'} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert answer.stdout.strip() == "set()"
