"""What `rational` promises beyond its values: book/guarantees.md has one row for each test here.

CUDA graphs, streams and a second device need what they are named after.
"""

import copy
import datetime
import io
import pickle

import pytest
import torch
from cases import COMPILERS, close, leaves, make
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounter
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from flashkat_lite import GRKAN, GroupRational, norm_rational, rational
from flashkat_lite._torch import KERNEL_SOURCES, can_bypass_dispatcher, rational_op
from flashkat_lite.export import decomposed
from flashkat_lite.reference import rational_gradients, rational_reference

OP = torch.ops.flashkat_lite.rational.default
BACKWARD_OP = torch.ops.flashkat_lite.rational_backward.default


def step(function, dy, *tensors):
    """y and the gradients of x and the tables."""
    inputs = leaves(*tensors)
    y = function(*inputs)
    return [y.detach(), *torch.autograd.grad(y, inputs, dy)]


def same_bits(got, want):
    assert len(got) == len(want)
    for g, w in zip(got, want):
        assert g.dtype == w.dtype and torch.equal(g, w)


# The two ways into PyTorch.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eager_code_and_the_registered_op_give_the_same_bits(device, dtype):
    dy, *tensors = make(device, (50, 12), dtype)
    seen = Ops()
    with seen:
        want = step(rational, dy, *tensors)
    assert seen.ops == [OP, BACKWARD_OP]
    same_bits(step(rational, dy, *tensors), want)


class Ops(TorchDispatchMode):
    """Lists the package's ops that were called."""

    def __init__(self):
        super().__init__()
        self.ops = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "flashkat_lite":
            self.ops.append(func)
        return func(*args, **(kwargs or {}))


class Functions(TorchFunctionMode):
    """Lists all functions that were called."""

    def __init__(self):
        super().__init__()
        self.functions = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.functions.append(func)
        return func(*args, **(kwargs or {}))


def test_modes_and_tracers_see_the_op(device):
    dy, *tensors = make(device)
    inputs = leaves(*tensors)
    y = rational(*inputs)
    with Ops() as mode:  # which came after the forward pass
        torch.autograd.grad(y, inputs, dy)
    assert mode.ops == [BACKWARD_OP]

    with Functions() as mode:
        rational(*tensors)
    assert OP in mode.functions

    with FakeTensorMode(allow_non_fake_inputs=True):
        assert isinstance(rational(*tensors), torch._subclasses.FakeTensor)

    def gradients(*inputs):
        return torch.autograd.grad(rational(*inputs), inputs, dy)

    # A proxy of torch.fx is no tensor; it stands for one until the graph runs.
    class Traced(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = GroupRational(12, groups=4)

        def forward(self, x):
            return 2 * rational(x, self.act.numerator, denominator=self.act.denominator, backward="block")

    module = Traced().to(device)
    graph = torch.fx.symbolic_trace(module)
    (call,) = [node for node in graph.graph.nodes if node.target is rational]
    assert call.kwargs == {"backward": "block"}
    assert torch.equal(graph(tensors[0]), module(tensors[0]))

    for options in ({}, {"tracing_mode": "fake"}, {"tracing_mode": "symbolic"}, {"pre_dispatch": True}):
        called = [node.target for node in make_fx(lambda *t: rational(*t), **options)(*tensors).graph.nodes]
        assert OP in called, options
    called = [node.target for node in make_fx(gradients)(*leaves(*tensors)).graph.nodes]
    assert OP in called and BACKWARD_OP in called
    called = [node.target for node in make_fx(grad(lambda *t: rational(*t).sum()))(*tensors).graph.nodes]
    assert OP in called and BACKWARD_OP in called


class Subclass(torch.Tensor):
    pass


def test_tensor_subclasses_come_back_as_they_went_in(device):
    _, x, a, b = make(device)
    y = rational(x.as_subclass(Subclass), a, b)
    assert type(y) is Subclass
    assert torch.equal(y.as_subclass(torch.Tensor), rational(x, a, b))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_may_be_changed_in_place(device, dtype):
    dy, *tensors = make(device, dtype=dtype)
    inputs = leaves(*tensors)
    y = rational(*inputs)
    want = y.detach().clone()
    y += 1
    y.mul_(2)[:, 0] = 0
    want = 2 * (want + 1)
    want[:, 0] = 0
    assert torch.equal(y, want)
    gradients = torch.autograd.grad(y, inputs, dy)
    kept = dy.clone()
    kept[:, 0] = 0
    for got, expected in zip(gradients, rational_gradients(2 * kept, *tensors)):
        close(got, expected)
        got += 1

    layers = torch.nn.Sequential(torch.nn.Linear(12, 12), GroupRational(12, groups=4), torch.nn.Dropout(0.1, True))
    layers.to(device)(tensors[0].float()).sum().backward()


def test_lazily_negated_and_memoryless_tensors(device):
    """Tensors whose memory is not what they hold: the op has PyTorch sort that out before a kernel reads it."""
    dy, x, a, b = make(device)
    negated = [torch.complex(t, t).conj().imag for t in (-dy, -x)]
    assert all(t.is_neg() for t in negated)
    same_bits(step(rational, negated[0], negated[1], a, b), step(rational, dy, x, a, b))
    nothing = torch._efficientzerotensor(dy.shape, device=device)
    # The reference copes with either, a kernel with neither: so this is asked on a CPU, too.
    assert not any(can_bypass_dispatcher(t) for t in (*negated, nothing)) and can_bypass_dispatcher(x, a, b)
    assert not any(gradient.any() for gradient in step(rational, nothing, x, a, b)[1:])
    assert torch.equal(rational(nothing, a, b), rational(torch.zeros_like(x), a, b))


def test_an_input_changed_before_the_backward_pass_is_an_error(device):
    _, *tensors = make(device)
    for changed in range(3):
        inputs = leaves(*tensors)
        y = rational(*inputs)
        with torch.no_grad():
            inputs[changed].add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


# torch.compile and torch.export


def loss(x, a, b):
    return (rational(2 * x, a, b, backward="block") + x).sum()


@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_compiled_function_is_one_graph_and_agrees(device, compiler, compiled_afresh):
    _, *tensors = make(device)
    eager, compiled = leaves(*tensors), leaves(*tensors)
    want = loss(*eager)
    got = torch.compile(loss, fullgraph=True, backend=compiler)(*compiled)
    close(got, want)
    want.backward()
    got.backward()
    for g, w in zip(compiled, eager):
        close(g.grad, w.grad)


class Nodes:
    """A compiler that keeps what it is given: the nodes of each graph."""

    def __init__(self):
        self.graphs = []

    def __call__(self, module, inputs):
        self.graphs.append(list(module.graph.nodes))
        return make_boxed_func(module)

    def targets(self):
        return [node.target for graph in self.graphs for node in graph if node.op == "call_function"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("backward", ["block", "stationary"])
def test_where_no_kernel_runs_a_compiler_sees_the_reference(device, dtype, backward, compiled_afresh):
    """On a CPU, and of float64: both passes, not the op, which a compiler could not look into."""
    if device == "cuda" and dtype != torch.float64:
        pytest.skip("kernels run there: see test_compiled_launches")
    nodes = Nodes()
    compiled = torch.compile(rational, backend=aot_autograd(fw_compiler=nodes), fullgraph=True)
    x, a, b = torch.full((1, 2), 400.0), torch.full((1, 9), 0.5), torch.full((1, 8), 0.5)
    dy = torch.ones_like(x)
    x, dy = x.to(device, dtype), dy.to(device, dtype)
    got = step(lambda *tensors: compiled(*tensors, backward=backward), dy, x, a.to(device), b.to(device))
    assert len(nodes.graphs) == 2 and len(nodes.targets()) > 40
    assert not [target for target in nodes.targets() if "flashkat_lite" in str(target)]
    # Q² is infinite in float32 here, its gradients are not.
    want = rational_gradients(dy.double().cpu(), x.double().cpu(), a, b)
    for g, w in zip(got[1:], want):
        assert g.isfinite().all()
        close(g.cpu(), w)


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("autocast", [False, True])
def test_a_compiled_module_takes_any_batch_without_compiling_again(device, compiler, autocast, compiled_afresh):
    module = GroupRational(12, groups=4, init="gelu").to(device)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=compiler)

    def step(model, x):
        model.zero_grad()
        x = x.clone().requires_grad_()
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            y = model(x)
        y.square().sum().backward()
        return y.detach(), x.grad, *(p.grad for p in module.parameters())

    inputs = [torch.randn(rows, 12, device=device) for rows in (5, 2, 64, 1000)]
    first = step(compiled, inputs[0])
    with torch._dynamo.config.patch(error_on_recompile=True):
        results = [first, *(step(compiled, x) for x in inputs[1:])]
    for x, got in zip(inputs, results):
        for g, w in zip(got, step(module, x)):
            assert g.dtype == w.dtype
            if autocast:  # a compiler may leave out that a value was rounded to 16 bits on its way
                assert (g - w).float().norm() < 0.01 * w.float().norm()
            else:
                close(g, w)


def test_new_batches_make_no_new_graphs(device, compiled_afresh):
    counter = CompileCounter()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=counter)
    _, _, a, b = make(device)
    for rows in (5, 6, 197, 1000):
        compiled(torch.ones(rows, 12, device=device), a, b)
    assert counter.frame_count == 1


class Exported(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.act = GroupRational(12, groups=4, init="gelu")

    def forward(self, x):
        return self.act(2 * x)


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_program_holds_the_op_takes_any_batch_and_agrees(device, strict, compiled_afresh):
    module = Exported().to(device)
    rows = {"x": {0: torch.export.Dim("rows", min=2)}}
    program = torch.export.export(module, (torch.randn(5, 12, device=device),), dynamic_shapes=rows, strict=strict)
    assert OP in [node.target for node in program.graph.nodes]
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for rows in (5, 64):
        x = torch.randn(rows, 12, device=device)
        assert torch.equal(loaded(x), module(x))


def decomposed_and_whole(device):
    """An exported GRKAN before and after, and the module."""
    torch.manual_seed(0)
    module = GRKAN(12, 24, groups=4).to(device).eval()
    rows = {"x": {0: torch.export.Dim("rows", min=2)}}
    program = torch.export.export(module, (torch.randn(5, 12, device=device),), dynamic_shapes=rows)
    return decomposed(program), program, module


def test_a_decomposed_program_holds_no_op_of_ours_takes_any_batch_and_agrees(device):
    program, whole, module = decomposed_and_whole(device)
    assert OP in [node.target for node in whole.graph.nodes]
    assert not [node for node in program.graph.nodes if "flashkat_lite" in str(node.target)]
    for rows in (5, 64):
        x = torch.randn(rows, 12, device=device)
        close(program.module()(x), module(x))

    def gradients(x, a, b):
        return torch.ops.flashkat_lite.rational_backward(x, x, a, b, "stationary", KERNEL_SOURCES)

    _, *tensors = make(device)
    backward = decomposed(torch.export.export(Function(gradients), tuple(tensors)))
    assert not [node for node in backward.graph.nodes if "flashkat_lite" in str(node.target)]
    for got, want in zip(backward.module()(*tensors), rational_gradients(tensors[0], *tensors)):
        close(got, want)


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *tensors):
        return self.function(*tensors)


def test_onnx_runs_what_is_exported_from_a_module_or_a_decomposed_program(tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    program, _, module = decomposed_and_whole("cpu")
    x = torch.randn(64, 12)
    rows = {"x": {0: torch.export.Dim("rows", min=2)}}
    for name, source, options in (
        ("program", (program,), {}),
        ("module", (module, (x[:5],)), {"dynamic_shapes": rows, "verbose": False}),
    ):
        torch.onnx.export(*source, dynamo=True, **options).save(tmp_path / f"{name}.onnx")
        session = runtime.InferenceSession(tmp_path / f"{name}.onnx")
        (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        close(torch.from_numpy(y), module(x).detach())


def test_while_onnx_is_exported_a_module_shows_its_operations(monkeypatch):
    """What ONNX's exporter relies on, where it is not installed."""
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    program = torch.export.export(GroupRational(12, groups=4), (torch.randn(5, 12),))
    assert not [node for node in program.graph.nodes if "flashkat_lite" in str(node.target)]


@pytest.mark.parametrize("late", [False, True])
def test_flops_are_counted(device, monkeypatch, late):
    """As chapters 3 and 6 count them; by counters, too, that were made before the op was met."""
    import torch.utils.flop_counter as counting  # imports Triton

    if late:
        for op in (torch.ops.flashkat_lite.rational, torch.ops.flashkat_lite.rational_backward):
            monkeypatch.delitem(counting.flop_registry, op, raising=False)
    _, *tensors = make(device)
    inputs = leaves(*tensors)
    with counting.FlopCounterMode(display=False) as both:
        y = rational(*inputs)
        y.sum().backward()
    assert both.get_total_flops() == 5 * 12 * (20 + 58)
    y = rational(*inputs)
    with counting.FlopCounterMode(display=False) as backward:
        y.sum().backward()
    assert backward.get_total_flops() == 5 * 12 * 58


def test_flops_of_a_norm_are_its_rational_functions(device):
    import torch.utils.flop_counter as counting

    _, x, a, b = make(device)
    weight = torch.ones(12, device=device)
    for tables, of_forward, of_backward in (((a, b), 20, 58), ((), 0, 0)):
        inputs = leaves(x, weight, weight, *tables)
        with counting.FlopCounterMode(display=False) as both:
            norm_rational(*inputs).sum().backward()
        assert both.get_total_flops() == 5 * 12 * (of_forward + of_backward)


# Autocast, checkpointing


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_x_is_cast_and_tables_are_not(device, dtype):
    dy, x, a, b = make(device)
    inputs = leaves(x, a, b)
    with torch.autocast(device, dtype):
        y = rational(*inputs)
    assert y.dtype == dtype
    dy = dy.to(dtype)
    y.backward(dy)
    close(y, rational_reference(x.to(dtype), a, b))
    for leaf, want in zip(inputs, rational_gradients(dy, x.to(dtype), a, b)):
        assert leaf.grad.dtype == torch.float32
        # dx is computed in 16 bits; the tables' gradients are float32 throughout.
        close(leaf.grad, want)


def test_autocast_of_another_device_or_switched_off_changes_nothing(device):
    _, x, a, b = make(device)
    with torch.autocast(device, torch.bfloat16), torch.autocast(device, enabled=False):
        assert rational(x, a, b).dtype == torch.float32
    if device == "cuda":
        with torch.autocast("cpu", torch.bfloat16):
            assert rational(x, a, b).dtype == torch.float32


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_gives_the_same_bits(device, reentrant, autocast):
    dy, *tensors = make(device)
    passes = []

    def block(*inputs):
        passes.append(1)
        return rational(torch.tanh(inputs[0]), *inputs[1:]).float()

    with torch.autocast(device, torch.bfloat16, enabled=autocast):
        want = step(block, dy, *tensors)
        assert len(passes) == 1
        got = step(lambda *t: checkpoint(block, *t, use_reentrant=False), dy, *tensors) if not reentrant else None
        if reentrant:  # which works with .backward() alone
            inputs = leaves(*tensors)
            y = checkpoint(block, *inputs, use_reentrant=True)
            y.backward(dy)
            got = [y.detach(), *(leaf.grad for leaf in inputs)]
    assert len(passes) == 3
    same_bits(got, want)


@pytest.mark.parametrize("policy", [CheckpointPolicy.MUST_SAVE, CheckpointPolicy.PREFER_RECOMPUTE])
def test_selective_checkpointing_can_keep_the_op_s_result(device, policy):
    dy, *tensors = make(device)

    def contexts():
        return create_selective_checkpoint_contexts(
            lambda context, op, *arguments, **keywords: policy if op == OP else CheckpointPolicy.PREFER_RECOMPUTE
        )

    def block(*inputs):
        return torch.tanh(rational(*inputs))

    def run(*inputs):
        return checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)

    with Ops() as mode:
        got = step(run, dy, *tensors)
    kept = policy == CheckpointPolicy.MUST_SAVE
    assert mode.ops == ([OP, BACKWARD_OP] if kept else [OP, OP, BACKWARD_OP])
    same_bits(got, step(block, dy, *tensors))


# torch.func and derivatives of derivatives. The reference, differentiated by PyTorch, says what is right.


def agree(transform, *tensors):
    got, want = (torch.utils._pytree.tree_leaves(transform(f)(*tensors)) for f in (rational, rational_reference))
    assert len(got) == len(want)
    for g, w in zip(got, want):
        # Derivatives of derivatives add up what grows with higher powers of 1 / Q, and cancels.
        scale = w.abs().max().item()
        torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-5 * scale)


def scalar(f):
    return lambda *t: f(*t).sin().sum()


ALL = (0, 1, 2)


@pytest.mark.parametrize("tables", [(4, 4), (1, 4), (1, 1)])
def test_torch_func_grad(device, tables):
    _, *tensors = make(device, tables=tables)
    agree(lambda f: grad(scalar(f), ALL), *tensors)
    agree(lambda f: jacrev(f, ALL), *tensors)


BATCHED = {
    "x": (0, None, None),
    "x, another dimension": (1, None, None),
    "tables": (None, 0, 1),
    "all": (0, 0, 0),
    "x and a shared numerator": (0, 0, None),
}


def batched(device, case):
    _, x, a, b = make(device, tables=(1, 4) if "shared" in case else (4, 4))
    more = torch.linspace(0.5, 1.5, 3, device=device)
    stacked = [torch.stack([t * scale for scale in more]) for t in (x, a, b)]
    dims = BATCHED[case]
    return dims, [t if dim is None else s.movedim(0, dim) for t, s, dim in zip((x, a, b), stacked, dims)]


@pytest.mark.parametrize("case", BATCHED)
def test_torch_func_vmap(device, case):
    dims, tensors = batched(device, case)
    agree(lambda f: vmap(f, dims), *tensors)
    agree(lambda f: vmap(grad(scalar(f), ALL), dims), *tensors)  # gradients of each sample
    agree(lambda f: grad(scalar(vmap(f, dims)), ALL), *tensors)


def test_torch_func_vmap_twice_and_of_single_rows(device):
    _, x, a, b = make(device, (2, 3, 5, 12))
    agree(lambda f: vmap(vmap(f, (0, None, None)), (1, None, None)), x, a, b)
    agree(lambda f: vmap(grad(scalar(f), ALL), (0, None, None)), x[0, 0], a, b)


def test_vmap_keeps_dtypes(device):
    _, x, a, b = make(device, dtype=torch.bfloat16, table_dtype=torch.float16)
    assert vmap(rational, (0, None, None))(x, a, b).dtype == torch.bfloat16
    gradients = vmap(grad(scalar(rational), ALL), (0, None, None))(x, a, b)
    assert [g.dtype for g in gradients] == [torch.bfloat16, torch.float16, torch.float16]


def test_forward_mode_runs_the_reference(device):
    _, *tensors = make(device)
    agree(lambda f: lambda *t: jvp(f, t, t), *tensors)
    agree(lambda f: jacfwd(f, ALL), *tensors)
    agree(lambda f: hessian(scalar(f), ALL), *(t[:2] for t in tensors[:1]), *tensors[1:])

    def dual(f):
        def tangent(x, a, b):
            with forward_ad.dual_level():
                return forward_ad.unpack_dual(f(x, forward_ad.make_dual(a, a), b)).tangent

        return tangent

    agree(dual, *tensors)


def order(k):
    """k times: the sum of the squares of the gradients so far."""

    def derivatives(f):
        def nested(*tensors):
            inputs = leaves(*tensors)
            y = f(*inputs).sin().sum()
            for _ in range(k - 1):
                y = sum(g.square().sum() for g in torch.autograd.grad(y, inputs, create_graph=True))
            return torch.autograd.grad(y, inputs)

        return nested

    return derivatives


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("tables", [(4, 4), (1, 4)])
def test_second_and_third_derivatives(device, tables, k):
    _, x, a, b = make(device, tables=tables)
    agree(order(k), 0.3 * x, a, b)


def test_second_derivatives_with_the_op_and_with_torch_func(device):
    _, x, a, b = make(device)

    def with_the_op(f):
        return order(2)((lambda *t: rational_op(*t, "stationary", KERNEL_SOURCES)) if f is rational else f)

    agree(with_the_op, 0.3 * x, a, b)
    agree(lambda f: jacrev(grad(scalar(f), ALL), ALL), 0.3 * x[:2], a, b)


def test_a_gradient_that_is_differentiated_is_the_kernel_s_own(device):
    dy, *tensors = make(device)
    inputs = leaves(*tensors)
    got = torch.autograd.grad(rational(*inputs), inputs, dy, create_graph=True)
    same_bits([g.detach() for g in got], step(rational, dy, *tensors)[1:])


def test_many_gradients_at_once(device):
    _, *tensors = make(device)
    many = torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(1)).to(device)

    def gradients(f):
        def of(*tensors):
            inputs = leaves(*tensors)
            return torch.autograd.grad(f(*inputs), inputs, many, is_grads_batched=True)

        return of

    agree(gradients, *tensors)


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("transform", ["vmap", "jvp"])
def test_vmap_and_jvp_inside_a_compiled_function(device, transform, compiler, compiled_afresh):
    if transform == "vmap" and torch.__version__ < (2, 13):
        pytest.skip("PyTorch 2.11 does not find a custom op's vmap rule there; 2.13 does")
    _, x, a, b = make(device)
    transforms = {
        "vmap": lambda f: lambda x, a, b: vmap(lambda row: f(row, a, b))(x),
        "jvp": lambda f: lambda x, a, b: jvp(lambda x: f(x, a, b), (x,), (x,)),
    }
    of = transforms[transform]
    agree(lambda f: torch.compile(of(f), fullgraph=True, backend=compiler) if f is rational else of(f), x, a, b)


def test_what_compiled_functions_refuse(device, compiled_afresh):
    _, *tensors = make(device)

    def inside(x, a, b):
        return grad(scalar(rational))(x, a, b)

    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.compile(inside, backend="aot_eager", fullgraph=True)(*tensors)

    inputs = leaves(*tensors)
    y = torch.compile(loss, backend="aot_eager")(*inputs)
    (dx,) = torch.autograd.grad(y, inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        dx.sum().backward()


# float64


def precise(x, a, b):
    """A function of float64 x and any tables, against the closed form in float64: y, then gradients."""
    dy = torch.linspace(-1, 1, x.numel(), dtype=x.dtype, device=x.device).view_as(x)
    want = [rational_reference(x, a, b), *rational_gradients(dy, x, a, b)]

    def agrees(function):
        for g, w in zip(step(function, dy, x, a, b), want):
            assert g.dtype == w.dtype
            torch.testing.assert_close(g, w, rtol=1e-12 if g.dtype == torch.float64 else 1e-6, atol=1e-12)

    return agrees


@pytest.mark.parametrize("table_dtype", [torch.float32, torch.float64])
def test_float64_is_computed_in_float64_whichever_way_it_comes(device, table_dtype, compiled_afresh):
    _, *tensors = make(device, dtype=torch.float64, table_dtype=table_dtype)
    agrees = precise(*tensors)
    agrees(rational)
    agrees(lambda *t: rational(*t, backward="atomic"))
    agrees(lambda *t: rational_op(*t, "stationary", KERNEL_SOURCES))
    agrees(torch.compile(rational, backend="aot_eager", fullgraph=True))
    agrees(lambda *t: torch.export.export(Function(rational), t).module()(*t))
    agrees(lambda x, a, b: vmap(rational, (0, None, None))(x, a, b))
    with torch.autocast(device, torch.bfloat16):  # which leaves float64 alone
        agrees(rational)
    exact = jvp(rational, tuple(tensors), tuple(tensors))
    for g, w in zip(exact, jvp(rational_reference, tuple(tensors), tuple(tensors))):
        assert g.dtype == torch.float64
        torch.testing.assert_close(g, w, rtol=1e-12, atol=1e-12)


def test_float64_passes_gradcheck_twice(device):
    _, *tensors = make(device, (2, 4), torch.float64, (2, 1), torch.float64, (3, 2))
    inputs = leaves(*tensors)
    assert torch.autograd.gradcheck(rational, inputs)
    assert torch.autograd.gradgradcheck(rational, inputs)
    module = GroupRational(4, groups=2, degrees=(3, 2), init="gelu").to(device).double()
    module.denominator.data += 0.1  # where b = 0 a difference sees both of its slopes
    assert torch.autograd.gradcheck(lambda x, *tables: module(x), (inputs[0], *module.parameters()))


def test_modules_run_where_float64_is_the_default():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    try:
        model, x = GRKAN(12, 24, groups=4), torch.randn(5, 12)
        y = model(x)
        y.square().sum().backward()
    finally:
        torch.set_default_dtype(torch.float32)
    assert y.dtype == x.dtype == model.fc1.weight.dtype == torch.float64
    assert all(p.grad.dtype == p.dtype and p.grad.any() for p in model.parameters())
    close(model.float()(x.float()), y)


# Machines


def test_twenty_runs_give_the_same_bits(device):
    dy, *tensors = make(device, (5000 if device == "cuda" else 50, 96))
    first = step(rational, dy, *tensors)
    for _ in range(19):
        same_bits(step(rational, dy, *tensors), first)


@pytest.mark.gpu
def test_a_cuda_graph_of_both_passes_replays_to_the_same_bits():
    dy, x, a, b = make("cuda", (50, 12))
    inputs = leaves(x, a, b)

    def both():
        y = rational(*inputs)
        return [y.detach(), *torch.autograd.grad(y, inputs, dy)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles, which a capture does not allow
        both()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = both()
    for seed in (1, 2):
        fresh = make("cuda", (50, 12), seed=seed)
        with torch.no_grad():
            for static, new in zip((dy, *inputs), fresh):
                static.copy_(new)
        graph.replay()
        same_bits(got, step(rational, *fresh))


@pytest.mark.gpu
def test_any_stream():
    dy, *tensors = make("cuda", (50, 12))
    want = step(rational, dy, *tensors)
    late = [torch.zeros_like(t) for t in (dy, *tensors)]
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(100_000_000)  # what another stream runs meanwhile finds zeros
        for t, value in zip(late, (dy, *tensors)):
            t.copy_(value)
        got = step(rational, *late)
    torch.cuda.synchronize()
    same_bits(got, want)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_any_device():
    dy, *tensors = make("cuda:0", (50, 12))
    want = step(rational, dy, *tensors)
    torch.cuda.set_device(0)
    got = step(rational, *(t.to("cuda:1") for t in (dy, *tensors)))
    assert torch.cuda.current_device() == 0
    for g, w in zip(got, want):
        assert g.device == torch.device("cuda:1")
        close(g.to("cuda:0"), w)


def one_of_two(_, rank, address):
    torch.set_num_threads(1)
    limit = datetime.timedelta(minutes=5)
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2, timeout=limit)
    found = {task.__name__: task(rank) for task in (under_ddp, under_fsdp, with_dtensors)}
    torch.distributed.barrier()  # who leaves early takes the meeting's file along
    torch.distributed.destroy_process_group()
    return found


def test_two_processes_agree_with_one_under_ddp_fsdp_and_dtensor(tmp_path, one_thread):
    """In one test, since to start the other process takes longer than what it does."""
    address = f"file://{tmp_path / 'meeting'}"
    other = torch.multiprocessing.spawn(one_of_two, (1, address), join=False)
    found = one_of_two(None, 0, address)
    while not other.join():
        pass
    judge_ddp(*found["under_ddp"])
    judge_fsdp(found["under_fsdp"])
    judge_dtensors(found["with_dtensors"])


def gradients_of(model, x, target):
    model.zero_grad()
    nn.functional.mse_loss(model(x), target).backward()
    whole = [p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for p in model.parameters()]
    return [gradient.clone() for gradient in whole]


def model_and_data():
    torch.manual_seed(0)
    model = GRKAN(12, 24, groups=4, norm="layer")
    nn.init.normal_(model.prenorm.weight)
    return model, torch.randn(2, 8, 12), torch.randn(2, 8, 12)


def under_ddp(rank):
    model, x, target = model_and_data()
    alone = gradients_of(model, x.flatten(0, 1), target.flatten(0, 1))
    return gradients_of(nn.parallel.DistributedDataParallel(model), x[rank], target[rank]), alone


def judge_ddp(parallel, alone):
    assert len(parallel) == 10
    for g, w in zip(parallel, alone):
        assert w.any()
        torch.testing.assert_close(g, w)


def under_fsdp(rank):
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    from torch.distributed.tensor import init_device_mesh

    from flashkat_lite.distributed import shard_tables

    model, x, target = model_and_data()
    alone = gradients_of(copy.deepcopy(model), x.flatten(0, 1), target.flatten(0, 1))
    mesh = init_device_mesh("cpu", (2,))  # also where there is a GPU
    plain = fully_shard(copy.deepcopy(model), mesh=mesh)
    found = {"float32": gradients_of(plain, x[rank], target[rank]), "alone": alone}
    apart = copy.deepcopy(model)
    for child in (apart.prenorm, apart.act1, apart.fc1, apart.act2, apart.fc2):
        fully_shard(child, mesh=mesh)
    found["each child apart"] = gradients_of(fully_shard(apart, mesh=mesh), x[rank], target[rank])

    dtypes = []
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    for name, built_in in (("mixed", torch.float32), ("built in bfloat16", torch.bfloat16)):
        mixed = copy.deepcopy(model)
        for child in (mixed.prenorm, mixed.fc1, mixed.fc2):
            child.to(built_in)
        for act in (mixed.act1, mixed.act2):
            act.register_forward_hook(lambda act, inputs, y: dtypes.append((y.dtype, act.numerator.dtype)))
        shard_tables(mixed, mesh=mesh)
        fully_shard(mixed, mesh=mesh, mp_policy=policy)
        found[name] = gradients_of(mixed, x[rank], target[rank].bfloat16())
    return found | {"dtypes": dtypes}


def judge_fsdp(found):
    for way in ("float32", "each child apart"):
        for g, w in zip(found[way], found["alone"]):
            assert w.any()
            torch.testing.assert_close(g, w)

    # Tables that are sharded by themselves stay in float32 where all else is cast to bfloat16, or built in it.
    assert found["dtypes"] == [(torch.bfloat16, torch.float32)] * 4
    names = [name for name, _ in model_and_data()[0].named_parameters()]
    for case in ("mixed", "built in bfloat16"):
        for name, g, w in zip(names, found[case], found["alone"]):
            assert name.startswith(("fc", "prenorm")) or g.dtype == torch.float32
            assert (g - w).norm() < 0.05 * w.norm(), (case, name)


def placement(t):
    return f"{type(t.placements[0]).__name__} {getattr(t.placements[0], 'dim', '')}".strip()


def with_dtensors(rank):
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor, init_device_mesh

    mesh = init_device_mesh("cpu", (2,))
    rows, columns, whole = Shard(0), Shard(2), Replicate()
    cases = {
        "nothing sharded": (whole, whole, (4, 4)),
        "rows sharded": (rows, whole, (4, 4)),
        "an odd number of rows, a shared numerator": (Shard(1), whole, (1, 4)),
        "rows and tables sharded": (rows, rows, (4, 4)),
        "columns sharded": (columns, whole, (4, 4)),
        "columns and tables sharded": (columns, rows, (4, 4)),
        "columns sharded, a shared denominator": (columns, whole, (4, 1)),
        "columns sharded within a group": (columns, whole, (3, 3)),
        "columns sharded, one group": (columns, whole, (1, 1)),
    }
    found = {}
    for case, (of_x, of_tables, groups) in cases.items():
        dy, *tensors = make("cpu", (4, 5, 12), tables=groups)
        inputs = [distribute_tensor(t, mesh, [p]).requires_grad_() for t, p in zip(tensors, (of_x, *[of_tables] * 2))]
        y = rational(*inputs)
        results = [y, *torch.autograd.grad(y, inputs, distribute_tensor(dy, mesh, [of_x]))]
        assert all(type(t) is DTensor for t in results)
        found[case] = [t.full_tensor().detach() for t in results], groups, [placement(t) for t in results]

    terms = DTensor.from_local(tensors[0] if rank else torch.zeros_like(tensors[0]), mesh, [Partial()])
    shared = [distribute_tensor(t, mesh, [whole]) for t in tensors[1:]]
    found["terms of a sum"] = [rational(terms, *shared).full_tensor()], groups, None

    x = distribute_tensor(tensors[0], mesh, [rows]).requires_grad_()
    y = torch.compile(rational, backend="aot_eager", fullgraph=True)(x, *shared)
    y.sum().backward()
    found["compiled"] = [y.full_tensor().detach()], groups, [placement(y)]

    normed = {}
    for case, of_x in {"nothing": whole, "rows": rows, "rows of 5": Shard(1), "columns": columns}.items():
        inputs = [
            distribute_tensor(t, mesh, [of_x if t.dim() == 3 else whole]).requires_grad_() for t in norm_tensors()
        ]
        z, total = norm_of(*inputs)
        results = [z, total, *torch.autograd.grad(z.square().sum() + total.square().sum(), inputs)]
        normed[case] = [t.full_tensor().detach() for t in results], [placement(t) for t in results]
    return found, normed


def norm_tensors():
    _, x, a, b = make("cpu", (4, 5, 12))
    return x, x.flip(0), 1 + x[0, 0], x[0, 1], a, b


def norm_of(x, branch, *parameters):
    return norm_rational(x, *parameters, branch=branch)


def judge_dtensors(both):
    found, normed = both
    inputs = leaves(*norm_tensors())
    z, total = norm_of(*inputs)
    want = [z, total, *torch.autograd.grad(z.square().sum() + total.square().sum(), inputs)]
    for results, _ in normed.values():
        for got, expected in zip(results, want):
            torch.testing.assert_close(got, expected)
    assert normed["rows"][1] == ["Shard 0"] * 4 + ["Partial"] * 4
    for results, groups, _ in found.values():
        dy, *tensors = make("cpu", (4, 5, 12), tables=groups)
        want = [rational_reference(*tensors), *rational_gradients(dy, *tensors)]
        for got, expected in zip(results, want):
            close(got, expected)
    sharded = {case: placements for case, (*_, placements) in found.items()}
    assert sharded["rows sharded"] == ["Shard 0", "Shard 0", "Partial", "Partial"]
    assert sharded["columns sharded"] == ["Shard 2", "Shard 2", "Shard 0", "Shard 0"]
    assert sharded["columns sharded, a shared denominator"] == ["Shard 2", "Shard 2", "Shard 0", "Partial"]
    assert sharded["columns sharded within a group"][0] == "Replicate"
    assert sharded["compiled"] == ["Shard 0"]


# Modules


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_hooks_of_a_norm_and_of_what_it_is_merged_with_run(norm):
    """FSDP2 gathers a module's parameters in such hooks."""
    torch.manual_seed(0)
    model, x = GRKAN(12, 24, groups=4, norm=norm), torch.randn(5, 12)
    want, seen = model(x, x), []
    for child in (model.act1, model.prenorm):
        child.register_forward_pre_hook(lambda module, arguments: seen.append(module))
        for got, expected in zip(model(x, x), want):
            torch.testing.assert_close(got, expected)
    assert seen == [model.act1, model.act1, model.prenorm]


def test_modules_are_copied_pickled_and_saved(device):
    torch.manual_seed(0)
    model = GRKAN(12, 24, groups=4).to(device)
    x = torch.randn(5, 12, device=device)
    want = model(x)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    loaded = GRKAN(12, 24, groups=4).to(device)
    loaded.load_state_dict(torch.load(file))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded):
        assert torch.equal(other(x), want)
        with torch.no_grad():
            other.act1.numerator.add_(1)
        assert not torch.equal(other(x), want) and torch.equal(model(x), want)
