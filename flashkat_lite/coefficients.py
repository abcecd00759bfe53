"""Initial coefficients: classical activations as group-rational functions, and the fit that made them.

    F(x) = (a_0 + a_1 x + … + a_m x^m) / (1 + |b_1||x| + … + |b_n||x|^n)

A fit belongs to its denominator. The start that KAT's public code names "gelu" was fitted with another one,
1 + |b_1 x + … + b_n x^n|, and runs with the one above: there it is off by 1.46 on [-3, 3], and nothing says so. The
coefficients here are best approximations with the denominator that the kernels compute.

They are best on [-3, 3] and no promise beyond: of degrees (5, 4), SiLU is off by 0.002 at |x| = 5 and by 0.16 at 10,
GELU by 0.04 and 0.66. GELU, SiLU and ReLU have a_1 = 1/2 and no odd |x|^j, because they are x/2 plus an even function.
"""

import functools
import math
import operator
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from .reference import horner

__all__ = ["fit", "initial", "max_error", "second_moment"]

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "leaky_relu": functional.leaky_relu,  # of slope 0.01
    "leaky_relu_0.1": lambda x: functional.leaky_relu(x, 0.1),
    "geglu": lambda x: x * functional.gelu(x),
    "swishglu": lambda x: x * functional.silu(x),
    "softplus_erfc": lambda x: torch.special.erfc(functional.softplus(x)) ** 2,
}
ALIASES = {"swish": "silu"}

Fit = tuple[list[float], list[float], float]
Start = tuple[tuple[float, ...], tuple[float, ...]]  # numerator, denominator


def initial(name: str, degrees: tuple[int, int] = (5, 4)) -> tuple[Tensor, Tensor]:
    """Coefficients that start F as the function `name`: numerator [m+1] and denominator [n], float32, on the CPU.

    name: "identity" (exact), one of `FUNCTIONS`, or "swish", which is "silu". degrees: (m, n), each at least 1.

    Where `TABLES` has no fit of these degrees, the most accurate one that fits inside them is padded with zeros, which
    leaves F as it is. Raises ValueError for an unknown name, and for degrees too small for any stored fit; TypeError
    for degrees that are not two integers.
    """
    numerator, denominator = (torch.tensor(row, dtype=torch.float32, device="cpu") for row in start(name, degrees))
    return numerator, denominator


def start(name: str, degrees: tuple[int, int]) -> Start:
    """`initial` in Python's numbers, which depend on no device, no mode and no default dtype."""
    m, n = checked_degrees(degrees)
    known = ("identity", *TABLES, *ALIASES)
    if name not in known:
        raise ValueError(f"unknown initial function {name!r}; known: {', '.join(known)}")
    if name == "identity":
        numerator, denominator = [0.0, 1.0], []
    else:
        numerator, denominator, _ = _most_accurate(ALIASES.get(name, name), m, n)
    return _padded(numerator, m + 1), _padded(denominator, n)


def checked_degrees(degrees: tuple[int, int]) -> tuple[int, int]:
    try:
        m, n = map(operator.index, degrees)
    except (TypeError, ValueError):
        raise TypeError(f"degrees must be two integers (m, n), not {degrees!r}") from None
    if m < 1 or n < 1:
        raise ValueError(f"degrees must be at least (1, 1), not {(m, n)}")
    return m, n


@functools.lru_cache
def second_moment(numerator: tuple[float, ...], denominator: tuple[float, ...]) -> float:
    """E[F(z)²] with z ~ N(0, 1): the trapezoidal rule on [-12, 12], in Python's numbers."""
    magnitudes = [1.0, *map(abs, denominator)]
    total = 0.0
    for step in range(-12 * 64, 12 * 64 + 1):
        z = step / 64
        f = horner(z, numerator) / horner(abs(z), magnitudes)
        total += f * f * math.exp(-z * z / 2)
    return total / 64 / math.sqrt(2 * math.pi)


def _most_accurate(name: str, m: int, n: int) -> Fit:
    fits = [fit for (p, q), fit in TABLES[name].items() if p <= m and q <= n]
    if not fits:
        raise ValueError(
            f"no fit of {name!r} has degrees within {(m, n)}; there are {', '.join(map(str, TABLES[name]))}. "
            "'identity' starts any degrees"
        )
    return min(fits, key=lambda fit: fit[2])


def _padded(coefficients: Sequence[float], length: int) -> tuple[float, ...]:
    return *coefficients, *[0.0] * (length - len(coefficients))


def fit(
    function: Callable[[Tensor], Tensor],
    degrees: tuple[int, int],
    interval: tuple[float, float] = (-3, 3),
    points: int = 400,
) -> Fit:
    """The best approximation of `function` by F in the maximum norm: (numerator, denominator, max_error). Needs SciPy.

    By differential correction (Cheney & Loeb 1961): from an approximation with denominator Q_k and error Δ_k, minimise

        max over x of  (|f(x) Q(x) - P(x)| - Δ_k Q(x)) / Q_k(x)

    over P and Q, a linear program, since Q = b_0 + b_1|x| + … with b >= 0 needs no absolute values. The new error is
    smaller unless Δ_k was least already, and convergence is quadratic near the end. b_0 = 1 is restored last; instead
    of it, b <= 1 keeps each program bounded, and b_0 > 0 keeps Q positive. Powers of x/h, with h the
    interval's larger end, keep it conditioned.

    function: maps a float64 tensor to one of its shape. points: grid points on each side of 0, dense at the ends and
    at 0, where |x| has its kink. Coefficients have 9 significant digits; max_error is that of their float32 values,
    on a finer grid, in float64.
    """
    import numpy as np
    from scipy.optimize import linprog

    m, n = degrees
    h = max(map(abs, interval))
    x = _grid(interval, points)
    f, z = function(x).numpy(), (x / h).numpy()
    powers, magnitudes = z[:, None] ** np.arange(m + 1), np.abs(z)[:, None] ** np.arange(n + 1)

    a, b, error = np.zeros(m + 1), np.eye(n + 1)[0], np.abs(f).max()
    bounds = [(None, None)] * (m + 1) + [(1e-6, 1)] + [(0, 1)] * n + [(None, None)]
    improving = True
    while improving and error > 1e-14:
        q = (magnitudes @ b)[:, None]
        sides = [np.hstack([-s * powers, (s * f[:, None] - error) * magnitudes, -error * q]) for s in (1, -1)]
        program = linprog(
            np.eye(m + n + 3)[-1],
            A_ub=np.vstack(sides) / error,  # in units of the error, which the solver's tolerance would hide
            b_ub=np.zeros(2 * len(z)),
            bounds=bounds,
            options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
        )
        if not program.success:
            break
        numerator, denominator = program.x[: m + 1], program.x[m + 1 : -1]
        new = np.abs(f - powers @ numerator / (magnitudes @ denominator)).max()
        improving = new < 0.999 * error
        if new < error:
            a, b, error = numerator, denominator, new

    numerator, denominator = _digits(a / b[0], h), _digits(b / b[0], h)[1:]
    return numerator, denominator, max_error(function, numerator, denominator, interval)


def _grid(interval: tuple[float, float], points: int) -> Tensor:
    """Chebyshev-like points in float64, on each side of 0 where the interval has two."""
    low, high = interval
    steps = (1 - torch.cos(torch.linspace(0, torch.pi, points, dtype=torch.float64))) / 2
    ends = [(low, 0.0), (0.0, high)] if low < 0 < high else [(low, high)]
    return torch.cat([start + (end - start) * steps for start, end in ends])


def _digits(scaled, h: float) -> list[float]:
    """Coefficients of powers of x/h as those of powers of x: 9 digits, and 0 for what the solver cannot tell from 0."""
    return [float(f"{c / h**i:.8e}") if abs(c) > 1e-11 else 0.0 for i, c in enumerate(scaled)]


def max_error(
    function: Callable[[Tensor], Tensor],
    numerator: Sequence[float],
    denominator: Sequence[float],
    interval: tuple[float, float] = (-3, 3),
) -> float:
    """max |F(x) - function(x)| on the interval, of coefficients rounded to float32, computed in float64."""
    x = _grid(interval, 20_000)
    a, b = (torch.tensor(c, dtype=torch.float32).double() for c in (numerator, denominator))
    p = sum(c * x**i for i, c in enumerate(a))
    q = 1 + sum(c.abs() * x.abs() ** j for j, c in enumerate(b, 1))
    return (p / q - function(x)).abs().max().item()


# name: {(m, n): (numerator, denominator, max error on [-3, 3])}, each what fit(FUNCTIONS[name], (m, n)) returns.
TABLES: dict[str, dict[tuple[int, int], Fit]] = {
    "gelu": {
        (5, 4): (
            [-0.0012741581, 0.5, 0.408155009, 0.106760289, 0.00857842276, 0.0],
            [0.0, 0.213520577, 0.0, 0.0],
            0.00127,
        ),
        (3, 2): (
            [0.00994855859, 0.5, 0.369554951, 0.0691617763],
            [0.0, 0.138323553],
            0.00995,
        ),
        (6, 5): (
            [4.42020373e-05, 0.5, 0.398298307, 0.170691535, 0.0711323622, 0.0202665354, 0.00227369866],
            [0.0, 0.341383069, 0.0, 0.0405330707, 0.0],
            4.42e-05,
        ),
        (2, 1): (
            [0.148425069, 0.5, 0.166216701],
            [0.0],
            0.148,
        ),
    },
    "silu": {
        (5, 4): (
            [4.55735246e-07, 0.5, 0.249996591, 0.0532448908, 0.00579310442, 0.000273868833],
            [0.0, 0.106489782, 0.0, 0.000547737666],
            4.92e-07,
        ),
        (3, 2): (
            [0.00312600689, 0.5, 0.240839954, 0.0334699627],
            [0.0, 0.0669399253],
            0.00313,
        ),
        (6, 5): (
            [2.5926484e-09, 0.5, 0.249999973, 0.0554237559, 0.00687858894, 0.000483052757, 1.55091908e-05],
            [0.0, 0.110847512, 0.0, 0.000966105515, 0.0],
            9.99e-09,
        ),
        (2, 1): (
            [0.0792416242, 0.5, 0.150858042],
            [0.0],
            0.0792,
        ),
    },
    "tanh": {
        (5, 4): (
            [0.0, 1.00001745, 0.0, 0.107029156, 0.0, 0.000844887847],
            [9.18840589e-05, 0.44025009, 0.0, 0.014356873],
            1e-06,
        ),
        (3, 2): (
            [0.0, 1.01280373, 0.0, 0.0422978758],
            [0.0465049159, 0.339721267],
            0.001,
        ),
        (6, 5): (
            [0.0, 1.00001258, 0.0, 0.109884471, 0.0, 0.00220606904, 0.0],
            [0.000175363557, 0.44240193, 0.00180949148, 0.0144806519, 0.00136369374],
            3.33e-07,
        ),
        (2, 1): (
            [0.0, 1.53211471, 0.0],
            [1.12725158],
            0.0539,
        ),
    },
    "relu": {
        (5, 4): (
            [0.0127511772, 0.5, 2.7926654, 4.54557008, 2.59005031, 0.463887765],
            [0.0, 9.09114016, 0.0, 0.92777553],
            0.0128,
        ),
        (3, 2): (
            [0.0655330064, 0.5, 0.531918223, 0.132388702],
            [0.0, 0.264777404],
            0.0655,
        ),
        (6, 5): (
            [0.00641853838, 0.5, 5.55314068, 18.1757337, 22.0168317, 10.5273087, 1.68736],
            [0.0, 36.3514675, 0.0, 21.0546175, 0.0],
            0.00642,
        ),
        (2, 1): (
            [0.187497094, 0.5, 0.166666667],
            [0.0],
            0.188,
        ),
    },
    "sigmoid": {
        (5, 4): (
            [0.5, 0.249999993, 0.0554364973, 0.00688493673, 0.000484276195, 1.55999223e-05],
            [0.0, 0.110872995, 0.0, 0.00096855239],
            1.87e-08,
        ),
        (3, 2): (
            [0.5, 0.249900325, 0.0489407567, 0.00376393957],
            [0.0, 0.0978815134],
            3.48e-05,
        ),
        (6, 5): (
            [0.5, 0.249999993, 0.0554365079, 0.00688494202, 0.000484277321, 1.56000445e-05, 5.74312927e-12],
            [9.24133468e-10, 0.110873014, 1.39463e-09, 0.000968554035, 1.32686107e-10],
            1.43e-08,
        ),
        (2, 1): (
            [0.542500711, 0.21267766, 0.0113199583],
            [0.0962535572],
            0.0425,
        ),
    },
    "leaky_relu": {
        (5, 4): (
            [0.0126236655, 0.505, 2.76473875, 4.59102578, 2.5641498, 0.468526642],
            [0.0, 9.09114016, 0.0, 0.92777553],
            0.0126,
        ),
        (3, 2): (
            [0.0648776764, 0.505, 0.526599041, 0.133712589],
            [0.0, 0.264777404],
            0.0649,
        ),
        (6, 5): (
            [0.00635435326, 0.505, 5.49760907, 18.3574899, 21.7966616, 10.6325808, 1.67048624],
            [0.0, 36.3514652, 0.0, 21.0546155, 0.0],
            0.00636,
        ),
        (2, 1): (
            [0.185622123, 0.505, 0.165],
            [0.0],
            0.186,
        ),
    },
    "leaky_relu_0.1": {
        (5, 4): (
            [0.0114760597, 0.55, 2.51339884, 5.000127, 2.33104522, 0.510276528],
            [0.0, 9.09113999, 0.0, 0.927775505],
            0.0115,
        ),
        (3, 2): (
            [0.0589797058, 0.55, 0.478726401, 0.145627572],
            [0.0, 0.264777404],
            0.059,
        ),
        (6, 5): (
            [0.00577668493, 0.55, 4.99782631, 19.9933051, 19.8151459, 11.5800379, 1.51862375],
            [0.0, 36.3514637, 0.0, 21.0546143, 0.0],
            0.00578,
        ),
        (2, 1): (
            [0.168747385, 0.55, 0.15],
            [0.0],
            0.169,
        ),
    },
    "geglu": {
        (5, 4): (
            [0.0, -0.00639452566, 0.5, 0.416983157, 0.113740833, 0.0100084522],
            [0.0, 0.227481666, 0.0, 0.0],
            0.0015,
        ),
        (3, 2): (
            [0.0, 0.348550647, 0.5, 0.133563164],
            [0.0, 0.0],
            0.164,
        ),
        (6, 5): (
            [0.0, -0.00639452568, 0.5, 0.416983157, 0.113740833, 0.0100084522, 0.0],
            [0.0, 0.227481666, 0.0, 0.0, 0.0],
            0.0015,
        ),
    },
    "swishglu": {
        (5, 4): (
            [0.0, 0.000262296707, 0.5, 0.249481354, 0.0483510358, 0.00362747335],
            [0.0, 0.0967020716, 0.0, 0.0],
            7.44e-05,
        ),
        (3, 2): (
            [0.0, 0.192030432, 0.5, 0.133236895],
            [0.0, 0.0],
            0.1,
        ),
        (6, 5): (
            [0.0, 2.84776435e-06, 0.5, 0.249991827, 0.0531988269, 0.00577269432, 0.000271284551],
            [0.0, 0.106397654, 0.0, 0.000542569102, 0.0],
            8.22e-07,
        ),
    },
    "softplus_erfc": {
        (5, 4): (
            [0.107057354, -0.22909269, 0.186812893, -0.0704825905, 0.011695894, -0.000594574959],
            [0.0203997259, 0.356403315, 0.0, 0.022878045],
            0.000155,
        ),
        (3, 2): (
            [0.105000662, -0.258846914, 0.18495257, -0.0373436195],
            [0.0, 0.32462924],
            0.0129,
        ),
        (6, 5): (
            [0.107001821, -0.228825476, 0.189443544, -0.0753928109, 0.0146708806, -0.00131797362, 5.85663316e-05],
            [0.0164427686, 0.382762848, 0.0, 0.0245991721, 0.00133840891],
            9.98e-05,
        ),
        (2, 1): (
            [0.16130217, -0.316058891, 0.100586002],
            [0.374178808],
            0.0558,
        ),
    },
}
