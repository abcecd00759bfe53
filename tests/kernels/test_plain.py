"""Eager calls on plain tensors, whose launches are found once a shape."""

import pytest
import torch

from flashkat_lite import _torch, norm_rational, ops, rational
from flashkat_lite.kernels import launch, plain
from flashkat_lite.testing import random_inputs

HOOKS = {
    "transposed": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1) if t.dim() > 2 else t,
    "tables by columns": lambda t: t.t().contiguous().t() if t.dim() == 2 else t,
    "tables in bfloat16": lambda t: t.bfloat16() if t.dim() == 2 else t,
    "as they are": lambda t: t,
}


def gradients(x, a, b, dy, hook=HOOKS["as they are"]):
    inputs = [t.clone().requires_grad_() for t in (x, a, b)]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, hook):
        y = rational(*inputs)
    return [y.detach(), *torch.autograd.grad(y, inputs, dy)]


def inputs(dtype=torch.float32):
    dy, x, a, b = random_inputs(6, 24, 4, (5, 4), dtype=dtype)
    return x.view(2, 3, 24), a.bfloat16().float(), b.bfloat16().float(), dy.view(2, 3, 24)


@pytest.fixture
def looked_up(monkeypatch):
    found = []
    for module, name in ((ops, "_rational_launches"), (_torch, "_norm_launches")):
        usual = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *facts, usual=usual: found.append(usual(*facts)) or found[-1])
    return found


def nowhere(monkeypatch):
    for module in (ops, _torch):
        monkeypatch.setattr(module, "here", lambda x: False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_they_have_the_same_bits_as_the_launchers_that_look_at_their_tensors(monkeypatch, looked_up, dtype):
    given = inputs(dtype)
    ours = gradients(*given)
    assert len(looked_up) == 1 and looked_up[0]
    nowhere(monkeypatch)
    assert all(map(torch.equal, ours, gradients(*given))) and len(looked_up) == 1


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_may_give_back_other_tensors_than_were_saved(hook):
    given = inputs()
    for ours, theirs in zip(gradients(*given), gradients(*given, HOOKS[hook]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2**-7 if "bfloat16" in hook else 0, atol=0)


@pytest.mark.parametrize("found", [True, False], ids=["plain", "not plain"])
@pytest.mark.parametrize(("name", "shape"), [("numerator", (4, 6)), ("denominator", (4, 4)), ("mean", (6,))])
def test_what_a_hook_brings_back_to_another_device_is_refused_by_name_and_not_launched(name, shape, found, monkeypatch):
    if not found:
        nowhere(monkeypatch)

    def forwards_only(*_, usual=launch.BoundLaunch.__call__):
        assert not back, "launched"
        return usual(*_)

    back = []
    monkeypatch.setattr(launch.BoundLaunch, "__call__", forwards_only)
    hook = lambda t: back.append(1) or (t.to("meta") if t.shape == shape else t)  # noqa: E731
    for backward in (lambda: gradients(*inputs(), hook), lambda: norms(hook))[name == "mean" :]:
        back.clear()
        with pytest.raises(ValueError, match=f"^{name} came back on meta, x on "):
            backward()


def test_what_is_not_plain_takes_the_other_way(monkeypatch, looked_up):
    x, a, b, dy = inputs()
    backwards = []
    usual = plain.Rational.backward
    monkeypatch.setattr(plain.Rational, "backward", lambda *given: backwards.append(1) or usual(*given))
    for others in (
        (x.mT.contiguous().mT, a, b, dy),
        (x, a[:1], b, dy),
        (x, a, b.t().contiguous().t(), dy),
        (x[:0], a, b, dy[:0]),
    ):
        gradients(*others)
    assert not any(looked_up) and not backwards
    gradients(x, a, b, dy.mT.contiguous().mT)
    assert sum(map(bool, looked_up)) == 1 and not backwards
    gradients(x, a, b, dy)
    assert backwards


def test_what_a_plain_call_says_once_it_says_again():
    x, a, b, _ = inputs()
    rational(x, a, b)
    for _ in range(2):
        with pytest.raises(ValueError, match="is not divisible by 4 groups"):
            rational(x[..., :23].contiguous(), a, b)


def test_plain_calls_under_autocast_are_cast():
    x, a, b, _ = inputs()
    rational(x, a, b)
    with torch.autocast("cpu", torch.bfloat16):
        assert rational(x, a, b).dtype is torch.bfloat16


def test_launches_are_forgotten_with_the_others(looked_up):
    given = inputs()
    gradients(*given)
    gradients(*given)
    launch.forget()
    gradients(*given)
    assert looked_up[0] is looked_up[1] is not looked_up[2]


WAYS = {
    "with tables": dict(tables=True),
    "alone": dict(tables=False),
    "of a sum": dict(tables=True, branch=torch.float32),
    "of a sum in two dtypes, alone": dict(tables=False, branch=torch.bfloat16),
}


def norms(hook=HOOKS["as they are"], dtype=None, tables=True, branch=None):
    x, a, b, dz = inputs()
    x = x + 3.0
    weight, bias = torch.linspace(0.5, 2, 24), torch.linspace(-1, 1, 24)
    given = [t.clone().requires_grad_() for t in (x, weight, bias, *((a, b) if tables else ()))]
    added = torch.ones_like(x, dtype=branch).requires_grad_() if branch else None
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, hook):
        found = norm_rational(*given, dtype=dtype, branch=added)
    z, *total = found if branch else (found,)
    grads = [dz.to(z.dtype), *(dz.flip(0) for _ in total)]
    return [z.detach(), *torch.autograd.grad((z, *total), (*given, *([added] if branch else ())), grads)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_those_of_norms_are_found_too_and_have_the_same_bits(monkeypatch, looked_up, dtype, way):
    ours = norms(dtype=dtype, **WAYS[way])
    assert len(looked_up) == 1 and looked_up[0]
    nowhere(monkeypatch)
    assert all(map(torch.equal, ours, norms(dtype=dtype, **WAYS[way]))) and len(looked_up) == 1


NARROWED = {"statistics in bfloat16": lambda t: t.bfloat16() if t.shape == (6,) else t}


@pytest.mark.parametrize("hook", HOOKS | NARROWED)
def test_a_norms_saved_tensors_may_come_back_as_others(hook):
    near = 0.05 if "bfloat16" in hook else 0.0
    for ours, theirs in zip(norms(), norms((HOOKS | NARROWED)[hook]), strict=True):
        assert (ours - theirs).norm() <= near * ours.norm()
