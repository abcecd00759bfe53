"""Answers to the exercises of chapter 03: right ones, and wrong ones each with what its check must say."""

import torch

from flashkat_lite.reference import dx_terms, grouped, rational_gradients


def limits(batch, tokens, columns, groups, m, n, itemsize, bandwidth):
    elements = batch * tokens * columns
    return groups * (m + 1 + n), elements // groups, 3 * itemsize * elements / bandwidth / 1e6


def changed(position, change):
    def answer(*case):
        values = list(limits(*case))
        values[position] = change(values[position], *case)
        return tuple(values)

    return answer


def derivatives(x, a, b, sign=lambda b: torch.where(b < 0, -1.0, 1.0), base=torch.abs, power=2):
    p = sum(c * x**i for i, c in enumerate(a))
    q = 1 + sum(c.abs() * x.abs() ** j for j, c in enumerate(b, 1))
    return torch.stack([-s * base(x) ** j * p / q**power for j, s in enumerate(sign(b), 1)], 1)


def by_autograd(magnitude):
    """The three gradients with autograd, which also moves too many bytes."""

    def backward(dy, x, numerator, denominator):
        inputs = [t.clone().requires_grad_() for t in (x, numerator, denominator)]
        z = inputs[0].reshape(-1, len(numerator), x.shape[-1] // len(numerator))
        t = magnitude(z)
        p = sum(c * z**i for i, c in enumerate(inputs[1].T[..., None]))
        q = 1 + sum(magnitude(c) * t**j for j, c in enumerate(inputs[2].T[..., None], 1))
        return torch.autograd.grad((p / q).reshape(x.shape), inputs, dy)

    return backward


def lean(dy, x, numerator, denominator):
    """Right, from two factors."""
    shape, groups = x.shape, len(numerator)
    x, dy = (t.reshape(-1, groups, shape[-1] // groups) for t in (x, dy))
    a, b = numerator.T[..., None], denominator.abs().T[..., None]
    t = x.abs()

    def evaluate(z, coefficients):
        value = coefficients[-1].expand_as(z)
        for c in coefficients[:-1].flip(0):
            value = torch.addcmul(c, value, z)
        return value

    i, j = (torch.arange(len(c)).view(-1, 1, 1) for c in (a, b))
    q = 1 + t * evaluate(t, b)
    u = dy / q
    w = u * evaluate(x, a) / q
    dx = u * evaluate(x, (a * i)[1:]) - torch.where(x < 0, -w, w) * evaluate(t, b * (j + 1))
    da, db = [], []
    for _ in a:
        da.append(u.sum((0, 2)))
        u = u * x
    for _ in b:
        w = w * t
        db.append(w.sum((0, 2)))
    sign = torch.where(denominator < 0, 1.0, -1.0)
    return dx.reshape(shape), torch.stack(da, 1), torch.stack(db, 1) * sign


def without(kind):
    def backward(dy, x, a, b):
        dx, da, db = rational_gradients(dy, x, a, b)
        if kind == "second term":
            dx = rational_gradients(dy, x, a, b)[0]
            z = x.reshape(-1, len(a), x.shape[-1] // len(a))
            q = 1 + sum(c.abs() * z.abs() ** j for j, c in enumerate(b.T[..., None], 1))
            slope = sum(i * c * z ** max(i - 1, 0) for i, c in enumerate(a.T[..., None]))
            dx = (dy.reshape(z.shape) * slope / q).reshape(x.shape)
        if kind == "sign of zero x":
            z, *tables = grouped(x, a, b)
            first, second = dx_terms(dy.reshape(z.shape), z, *tables)
            dx = (first + second * (z != 0)).reshape(x.shape)
        if kind == "sign of b":
            db = db * torch.where(b < 0, -1.0, 1.0)
        if kind == "minus":
            db = -db
        return dx, da, db

    return backward


def shifted(weights, h):
    """Σ weight · f(v + k h) / h over k."""

    def gradient(f, v):
        steps = h * torch.eye(len(v), dtype=v.dtype)
        return torch.stack([sum(c * f(v + k * s) for k, c in weights.items()) / h for s in steps])

    return gradient


def interleaved(dy, x, a, b):
    """Column c to group c % G."""

    def moved(t, *shape):
        return t.reshape(*t.shape[:-1], *shape).transpose(-1, -2).reshape(t.shape)

    dx, da, db = lean(moved(dy, -1, len(a)), moved(x, -1, len(a)), a, b)
    return moved(dx, len(a), -1), da, db


def next_group(dy, x, a, b):
    return lean(dy, x, a.roll(1, 0), b.roll(1, 0))


def careless(f, v):
    v += 1e-5
    return v


RIGHT = {
    "03-1": limits,
    "03-4": shifted({0: -1.5, 1: 2.0, 2: -0.5}, 1e-5),
    "03-2": derivatives,
    "03-3": lean,
}

WRONG = {
    "03-1": [
        (lambda *case: None, "expected a tuple"),
        (changed(0, lambda v, b, t, d, g, m, n, *_: g * (m + n)), r"m\+1 coefficients"),
        (changed(1, lambda v, b, t, d, g, *_: v * g), "D/G columns, not all D"),
        (changed(1, lambda v, b, t, *_: b * t), "not over the rows alone"),
        (changed(2, lambda v, *_: v * 2 / 3), "dx is written too"),
        (changed(2, lambda v, *_: v / 1e3), "seconds, not milliseconds"),
    ],
    "03-3": [
        (interleaved, "dx .*column // width, not column % groups"),
        (next_group, "dx .* wrong; the first at index .* expected .* got"),
        (by_autograd(torch.abs), "got autograd"),
        (without("sign of zero x"), r"dx.*at x = 0 the convention is \+1"),
        (lambda *tensors: rational_gradients(*tensors), "tensors of x's size were read and written"),
        (without("second term"), "quotient rule has a second term"),
        (without("sign of b"), "sign of b_j is lost"),
        (without("minus"), "minus sign"),
        (lambda dy, x, a, b: rational_gradients(dy, x, a, b)[:2], "expected a tuple"),
    ],
    "03-4": [
        (careless, "v was changed: .* a copy of v"),
        (shifted({1: 0.5, -1: -0.5}, 1e-5), "averages the two sides"),
        (shifted({0: 1.5, -1: -2.0, -2: 0.5}, 1e-5), "slopes to the left"),
        (shifted({1: 1.0, 0: -1.0}, 1e-8), "first order"),
        (shifted({1: 1.0, 0: -1.0}, 2e-8), "first order"),
        (lambda f, v: f(v), "expected shape"),
    ],
    "03-2": [
        (lambda *case: derivatives(*case, sign=torch.sign), r"the convention is \+1"),
        (lambda *case: derivatives(*case, sign=torch.ones_like), "the sign of b_j is lost"),
        (lambda *case: derivatives(*case, sign=lambda b: torch.where(b < 0, 1.0, -1.0)), "the minus sign of dF/dQ"),
        (lambda *case: derivatives(*case, base=lambda x: x), r"holds \|x\|\^j, not x\^j"),
        (lambda *case: derivatives(*case, power=1), "with Q squared"),
    ],
}

# Right for what the text shows, or for one size.
FIXED = {
    "03-1": (
        lambda *case: limits(1024, 197, 768, 8, 5, 4, 4, 4200.0),
        "2 × 197 × 192.*expected 24, got 80",
    ),
    "03-2": (lambda *case: derivatives(*case)[:, :4], r"expected shape \[50, 6\], got \[50, 4\]"),
    "03-3": (
        lambda dy, x, a, b: lean(dy, x, a, b) if len(a) == 8 else (x, a, b),
        r"dx for shape \[2, 5, 24\], 3 groups.*wrong; the first at index",
    ),
    "03-4": (lambda f, v: torch.ones_like(v), "away from the kinks: .* wrong; the first at index"),
}
