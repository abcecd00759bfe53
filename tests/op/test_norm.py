"""What `norm_rational` promises beyond its values; book/guarantees.md has a row for each test here."""

import copy
import io

import pytest
import torch
from cases import COMPILERS, CUDA, close, leaves
from torch import nn
from torch.func import grad, jvp, vmap
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from flashkat_lite import GRKAN, norm_rational
from flashkat_lite._torch import KERNEL_SOURCES, norm_rational_backward_op, norm_rational_op
from flashkat_lite.export import decomposed
from flashkat_lite.modules import LayerNorm
from flashkat_lite.reference import rational_reference

OP = torch.ops.flashkat_lite.norm_rational.default


def make(device, shape=(5, 12), dtype=torch.float32, branch=torch.bfloat16, seed=0):
    """x, weight, bias, numerator, denominator, branch."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(*size, generator=generator).to(device)

    parameters = 1 + 0.3 * normal(12), normal(12), 0.5 * normal(4, 6), 0.5 * normal(4, 4)
    return [normal(*shape).to(dtype), *parameters, normal(*shape).to(branch)]


class Through(TorchDispatchMode):
    """Under a mode, code goes through the registered op."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def both(x, weight, bias, a, b, branch):
    """One number of both results."""
    z, total = norm_rational(x, weight, bias, a, b, branch=branch)
    return z.sin().sum() + (0.3 * total).sum()


def written_out(x, weight, bias, a, b, branch):
    total = x + branch
    z = rational_reference(functional.layer_norm(total, total.shape[-1:], weight, bias, 1e-6), a, b)
    return z.sin().sum() + (0.3 * total).sum()


def gradients(function, *tensors):
    inputs = leaves(*tensors)
    return torch.autograd.grad(function(*inputs), inputs)


def agree(got, want):
    for g, w in zip(got, want, strict=True):
        assert g.dtype == w.dtype
        torch.testing.assert_close(
            g, w, rtol=1e-4 if g.dtype == torch.float32 else 2e-2, atol=1e-5 * max(1, w.abs().max().item())
        )


def test_it_is_the_norm_then_the_rational_function(device):
    tensors = make(device)
    agree(gradients(both, *tensors), gradients(written_out, *tensors))
    x, weight, _, a, b, _ = tensors
    rms = functional.rms_norm(x, (12,), weight, 1e-6)
    close(norm_rational(x, weight, None, a, b, norm="rms"), rational_reference(rms, a, b))
    close(norm_rational(x, weight), functional.layer_norm(x, (12,), weight, None, 1e-6))
    close(norm_rational(x, weight, None, a, b, dtype=torch.float16), norm_rational(x, weight, None, a, b).half())


@pytest.mark.parametrize("case", ["branch", "norm alone"])
def test_pytorchs_own_checks_of_the_norms_op(device, case):
    x, weight, bias, a, b, branch = make(device)
    if case == "norm alone":
        bias = branch = a = b = None
    inputs = [None if t is None else t.requires_grad_() for t in (x, branch, weight, bias, a, b)]
    rms = case == "norm alone"
    torch.library.opcheck(norm_rational_op, (*inputs, rms, 1e-6, torch.bfloat16, KERNEL_SOURCES))
    with torch.no_grad():
        z, total, *statistics = norm_rational_op(*inputs, rms, 1e-6, torch.float32, KERNEL_SOURCES)
    source, also = (x, None) if branch is None else (total, torch.bfloat16)
    leaf = [None if t is None else t.detach().requires_grad_() for t in (z, None if branch is None else total, source)]
    arguments = *leaf, *statistics, *inputs[2:], rms, 1e-6, also, KERNEL_SOURCES
    torch.library.opcheck(norm_rational_backward_op, arguments, rtol=1e-4, atol=1e-4)


def test_the_norms_eager_code_and_its_op_give_the_same_bits(device):
    tensors = make(device)
    with Through():
        want = gradients(both, *tensors)
    assert all(map(torch.equal, gradients(both, *tensors), want))


def test_under_autocast_the_sum_stays_and_the_norm_is_cast(device):
    x, weight, bias, a, b, branch = make(device)
    with torch.autocast(device, torch.bfloat16):
        z, total = norm_rational(x, weight, bias, a, b, branch=branch)
        assert norm_rational(x, weight, dtype=torch.float32).dtype == torch.float32
    assert (z.dtype, total.dtype) == (torch.bfloat16, torch.float32) and torch.equal(total, x + branch)
    assert torch.equal(z, norm_rational(x, weight, bias, a, b, branch=branch)[0].bfloat16()) or CUDA


@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_compiled_norm_is_one_graph_agrees_and_takes_any_batch(device, compiler, compiled_afresh):
    compiled = torch.compile(both, fullgraph=True, dynamic=True, backend=compiler)
    first = make(device)
    agree(gradients(compiled, *first), gradients(both, *first))
    with torch._dynamo.config.patch(error_on_recompile=True):
        more = make(device, (7, 12))
        agree(gradients(compiled, *more), gradients(both, *more))


def test_an_exported_norm_is_the_op_or_pytorchs_own_operations(device):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.mlp = GRKAN(12, 24, groups=4, norm="layer")

        def forward(self, x):
            return self.mlp(2 * x)

    block, x = Block().to(device), torch.randn(5, 12, device=device)
    program = torch.export.export(block, (x,))
    assert OP in [node.target for node in program.graph.nodes]
    whole = decomposed(program)
    assert not [node for node in whole.graph.nodes if "flashkat_lite" in str(node.target)]
    for module in (program.module(), whole.module(), torch.fx.symbolic_trace(block)):
        close(module(x), block(x))


def test_checkpointing_a_norm_gives_the_same_bits(device):
    tensors = make(device)
    for reentrant in (False, True):
        inputs = leaves(*tensors)
        checkpoint(both, *inputs, use_reentrant=reentrant).backward()
        assert all(map(torch.equal, [t.grad for t in inputs], gradients(both, *tensors)))


def test_second_derivatives_of_a_norm(device):
    tensors = make(device, (3, 12), torch.float64, torch.float64)
    inputs = [t.double().requires_grad_() for t in tensors]
    assert torch.autograd.gradcheck(both, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(both, inputs, fast_mode=True)

    def penalty(function):
        def of(*tensors):
            return sum(g.square().sum() for g in torch.autograd.grad(function(*tensors), tensors, create_graph=True))

        return of

    tensors = make(device, (3, 12), branch=torch.float32)
    agree(gradients(penalty(both), *tensors), gradients(penalty(written_out), *tensors))


def test_torch_func_of_a_norm(device):
    x, *rest = make(device, (3, 5, 12), branch=torch.float32)
    dims = (0, None, None, None, None, 0)
    agree(vmap(grad(both, (0, 1, 3)), dims)(x, *rest), vmap(grad(written_out, (0, 1, 3)), dims)(x, *rest))
    agree(jvp(both, (x, *rest), (x, *rest)), jvp(written_out, (x, *rest), (x, *rest)))


def test_where_one_result_of_a_norm_is_used(device):
    tensors = make(device)
    for i in (0, 1):

        def one(*tensors, i=i):
            return norm_rational(*tensors[:5], branch=tensors[5])[i].sum()

        inputs = leaves(*tensors)
        one(*inputs).backward()
        with Through():
            others = leaves(*tensors)
            one(*others).backward()
        for p, q in zip(inputs, others):
            assert (p.grad is None and not q.grad.any()) if p.grad is None else torch.equal(p.grad, q.grad)
        assert torch.equal(inputs[0].grad, torch.ones_like(inputs[0])) or i == 0


def test_results_of_a_norm_own_their_memory(device):
    x, weight, *_ = make(device)
    z = norm_rational(x.requires_grad_(), weight)
    z += 1
    z.sum().backward()
    assert x.grad.isfinite().all()


def test_an_empty_batch_and_shapes_without_values():
    x, *rest = make("cpu")
    for case in ([x[:0], *rest[:4], rest[4][:0]], [t.to("meta") for t in (x, *rest)]):
        inputs = leaves(*case)
        z, total = norm_rational(*inputs[:5], branch=inputs[5])
        (z.sum() + total.sum()).backward()
        assert z.shape == total.shape == case[0].shape
        assert all(t.grad.shape == t.shape and t.grad.dtype == t.dtype for t in inputs)


BAD = {
    "too many columns": (dict(x=torch.ones(2, 8193), weight=torch.ones(8193)), ValueError, "8192"),
    "a scalar": (dict(x=torch.tensor(1.0)), ValueError, "x must be [..., D]"),
    "integers": (dict(x=torch.ones(2, 12, dtype=torch.int64)), TypeError, "x must be float32"),
    "another weight": (dict(weight=torch.ones(11)), ValueError, "weight must be of shape [12], not [11]"),
    "an integer weight": (dict(weight=torch.ones(12, dtype=torch.int32)), TypeError, "weight must have a float dtype"),
    "another bias": (dict(bias=torch.ones(1, 12)), ValueError, "bias must be of shape [12], not [1, 12]"),
    "another branch": (dict(branch=torch.ones(12)), ValueError, "branch must be of shape [2, 12], not [12]"),
    "a branch of two precisions": (dict(branch=torch.ones(2, 12).double()), TypeError, "float64"),
    "one table": (dict(denominator=None), ValueError, "given together"),
    "groups": (dict(numerator=torch.ones(5, 6), denominator=torch.ones(5, 4)), ValueError, "12, is not divisible by 5"),
    "a device": (dict(weight=torch.ones(12, device="meta")), ValueError, "weight is on meta, x on cpu"),
    "a norm": (dict(norm="batch"), ValueError, "'batch'"),
    "eps": (dict(eps=-1.0), ValueError, "-1.0"),
    "a dtype": (dict(dtype=torch.int8), TypeError, "torch.int8"),
    "no tensor": (dict(weight=None), TypeError, "weight must be a tensor, not NoneType"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_of_a_norm(case, monkeypatch):
    def forbidden(*arguments, **keywords):
        pytest.fail("something was launched")

    for name in ("eager_norm_rational", "registered_norm", "norm_rational_closed_form"):
        monkeypatch.setattr(f"flashkat_lite.ops.{name}", forbidden)
    changed, kind, words = BAD[case]
    good = dict(x=torch.ones(2, 12), weight=torch.ones(12), numerator=torch.ones(4, 6), denominator=torch.ones(4, 4))
    with pytest.raises(kind) as caught:
        norm_rational(**good | changed)
    assert caught.type is kind and words in str(caught.value) and "\n" not in str(caught.value)


# Modules


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_a_grkan_with_a_norm_is_the_norm_and_a_grkan(device, norm):
    torch.manual_seed(0)
    with_norm = GRKAN(12, 24, groups=4, norm=norm).to(device)
    without = GRKAN(12, 24, groups=4).to(device)
    without.load_state_dict({k: v for k, v in with_norm.state_dict().items() if not k.startswith("prenorm")})
    own = copy.deepcopy(with_norm.prenorm)
    with torch.no_grad():
        own.weight.mul_(1.5)
    x, branch = torch.randn(2, 3, 5, 12, device=device)
    close(with_norm(x), without(with_norm.prenorm(x)))
    close(without(x, norm=own), without(own(x)))
    y, total = with_norm(x, branch)
    assert torch.equal(total, x + branch)
    close(y, with_norm(total))
    y, total = without(x, branch)
    close(y, without(x + branch))
    with pytest.raises(TypeError, match="LayerNorm or RMSNorm"):
        without(x, norm=nn.Identity())
    with pytest.raises(ValueError, match="'batch'"):
        GRKAN(12, 24, groups=4, norm="batch")


def test_our_layer_norm_is_pytorchs(device):
    ours, x = LayerNorm(12, eps=1e-3).to(device), torch.randn(5, 12, device=device)
    nn.init.normal_(ours.weight), nn.init.normal_(ours.bias)
    close(ours(x), nn.LayerNorm.forward(ours, x))
    file = io.BytesIO()
    torch.save(ours.state_dict(), file)
    file.seek(0)
    theirs = nn.LayerNorm(12, eps=1e-3).to(device)
    theirs.load_state_dict(torch.load(file))
    close(ours(x), theirs(x))
