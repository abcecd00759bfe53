import copy
import functools
import pickle

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import flashkat_lite
from flashkat_lite import GRKAN, GroupRational, coefficients, table_parameters
from flashkat_lite.modules import second_moment
from flashkat_lite.ops import DEFAULT_BACKWARD
from flashkat_lite.reference import rational_reference


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def distinct(module):
    """Give every group of every GroupRational its own coefficients."""
    for child in module.modules():
        if isinstance(child, GroupRational):
            for table in (child.numerator, child.denominator):
                table.data += 0.1 * torch.randn_like(table)
    return module


@pytest.mark.parametrize("degrees", [(5, 4), (3, 2), (7, 2)])
def test_group_rational_computes_the_reference_with_float32_parameters(degrees):
    module = distinct(GroupRational(24, groups=3, degrees=degrees))
    assert module.numerator.shape == (3, degrees[0] + 1) and module.denominator.shape == (3, degrees[1])
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    x = torch.randn(4, 5, 24)
    expected = rational_reference(x, module.numerator, module.denominator)
    torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-6)


def test_all_its_parameters_train_even_from_the_identity():
    module = GroupRational(8, groups=4, init="identity")
    module(torch.randn(100, 8)).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert (parameter.grad != 0).all(), name


class Passes(TorchDispatchMode):
    """Counts the tensors of a given size that are read or written by whatever is no view."""

    def __init__(self, size):
        super().__init__()
        self.size, self.count = size, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        outputs = results if isinstance(results, tuple) else (results,)
        large = [t for t in (*args, *outputs) if isinstance(t, torch.Tensor) and t.numel() == self.size]
        if not func.is_view and func.namespace in ("aten", "flashkat_lite"):
            assert all(t.is_contiguous() for t in large), func  # or a kernel's launcher would copy it
            self.count += len(large)
        return results


FORMATS = {
    (2, 16): torch.contiguous_format,
    (2, 16, 5): torch.contiguous_format,
    (2, 16, 5, 3): torch.contiguous_format,
    (3, 16, 5, 3): torch.channels_last,
    (2, 16, 3, 2, 5): torch.contiguous_format,
    (3, 16, 3, 2, 5): torch.channels_last_3d,
}


@pytest.mark.parametrize("shape", FORMATS)
def test_channels_first_nothing_is_copied_and_results_lie_in_memory_as_inputs_do(shape):
    """Two passes forward, x in and y out; three backward: x and dy in, dx out."""
    module, memory = GroupRational(16, groups=4, channels_last=False), FORMATS[shape]
    x = torch.randn(shape).to(memory_format=memory).requires_grad_()
    with Passes(x.numel()) as forward:
        y = module(x)
    dy = torch.randn(shape).to(memory_format=memory)
    with Passes(x.numel()) as backward:
        (dx,) = torch.autograd.grad(y, x, dy)
    assert (forward.count, backward.count) == (2, 3)
    assert y.is_contiguous(memory_format=memory) and dx.is_contiguous(memory_format=memory)
    y += 1  # as after any activation
    if memory is torch.contiguous_format:
        assert y.view(len(x), -1).shape == (len(x), x[0].numel())


@pytest.mark.parametrize("shared", [None, "numerator"])
@pytest.mark.parametrize("view", ["as it is", "channels last", "every second", "transposed", "empty", "no pixels"])
def test_channels_first_is_channels_last_with_the_dimension_moved(view, shared):
    last = distinct(GroupRational(16, groups=4, shared=shared))
    first = copy.deepcopy(last)
    first.channels_last = False
    x = {
        "as it is": torch.randn(2, 16, 5, 3),
        "channels last": torch.randn(2, 5, 3, 16).movedim(-1, 1),
        "every second": torch.randn(4, 32, 5, 3)[::2, ::2],
        "transposed": torch.randn(2, 16, 5, 3).transpose(2, 3),
        "empty": torch.randn(0, 16, 5, 3),
        "no pixels": torch.randn(2, 16, 0, 3),
    }[view]
    y = first(x)
    assert y.shape == x.shape
    torch.testing.assert_close(y, last(x.movedim(1, -1)).movedim(-1, 1))
    gradients = [
        torch.autograd.grad(f.square().sum(), m.parameters()) for f, m in ((y, first), (last(x.movedim(1, -1)), last))
    ]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-4)


def test_channels_first_needs_a_batch_and_says_so():
    module = GroupRational(16, groups=4, channels_last=False)
    for shape in ((16, 5, 3), (16,), ()):
        with pytest.raises(ValueError, match=r"\[B, features, \.\.\.\], where a single sample is x\[None\]"):
            module(torch.randn(shape))


def test_in_bfloat16_the_tables_are_bfloat16_and_the_computation_is_not():
    module = distinct(GroupRational(16, groups=2)).bfloat16()
    x = torch.randn(7, 16).bfloat16()
    y = module(x)
    assert module.numerator.dtype == y.dtype == torch.bfloat16
    exact = rational_reference(x.double(), module.numerator.double(), module.denominator.double())
    assert ((y.double() - exact).abs() <= 2**-8 * exact.abs() + 1e-6).all()
    y.sum().backward()
    assert module.denominator.grad.dtype == torch.bfloat16


def test_what_it_is_can_be_read():
    assert repr(GroupRational(24, groups=3, degrees=(3, 2), init="gelu", channels_last=False)) == (
        f"GroupRational(24, groups=3, degrees=(3, 2), channels_last=False, backward='{DEFAULT_BACKWARD}')"
    )
    assert "shared='numerator'" in repr(GroupRational(24, shared="numerator"))
    assert "silu" not in repr(GroupRational(24)), "which would be untrue of trained and loaded tables"


@pytest.mark.parametrize(
    "arguments,error,words",
    [
        ({"features": 10}, ValueError, "10.*8"),
        ({"features": 0}, ValueError, "0 features"),
        ({"features": 8, "groups": 0}, ValueError, "0 groups"),
        ({"features": 8, "groups": "gelu"}, TypeError, "groups.*'gelu'.*init='gelu'"),
        ({"features": 8.0}, TypeError, "features.*8.0"),
        ({"features": 8, "init": "swich"}, ValueError, "swich"),
        ({"features": 8, "init": ["identity", "gelu"]}, ValueError, "identity.*gelu"),
        ({"features": 8, "degrees": (0, 4)}, ValueError, r"\(0, 4\)"),
        ({"features": 8, "degrees": 5}, TypeError, "not 5"),
        ({"features": 8, "degrees": (5, 4, 3)}, TypeError, r"\(5, 4, 3\)"),
        ({"features": 8, "backward": "magic"}, ValueError, "magic"),
        ({"features": 8, "shared": "all"}, ValueError, "None, 'numerator', 'denominator', 'both', not 'all'"),
        ({"features": 8, "dtype": torch.int32}, TypeError, "int32"),
    ],
)
def test_bad_arguments_are_refused_at_the_door(arguments, error, words):
    with pytest.raises(error, match=words):
        GroupRational(**arguments)


def test_inputs_of_another_width_are_refused_even_where_the_groups_would_divide_them():
    with pytest.raises(ValueError, match=r"16.*not 8"):
        GroupRational(8)(torch.randn(3, 16))
    with pytest.raises(ValueError, match="not 8"):
        GroupRational(8, channels_last=False)(torch.randn(3, 4, 8))


def test_grkan_is_rational_linear_rational_linear():
    module = distinct(GRKAN(16, 32, 24, groups=4)).eval()
    x = torch.randn(2, 5, 16)
    h = module.fc1(rational_reference(x, module.act1.numerator, module.act1.denominator))
    expected = module.fc2(rational_reference(h, module.act2.numerator, module.act2.denominator))
    torch.testing.assert_close(module(x), expected)
    assert module(x).shape == (2, 5, 24)
    assert [name for name, _ in module.named_children()] == ["act1", "drop1", "fc1", "act2", "drop2", "fc2"]


def test_grkan_keeps_its_width_by_default_and_drops_when_training_only():
    module = GRKAN(16, drop=0.5)
    x = torch.randn(3, 16)
    assert module.fc1.out_features == module.fc2.out_features == 16
    assert not torch.equal(module(x), module(x))
    module.eval()
    assert torch.equal(module(x), module(x))
    with pytest.raises(ValueError, match="20 features"):
        GRKAN(16, 20)


def test_the_second_moment_is_the_known_one():
    """E[z²] = 1; a parabola's E[(z²)²] is 3; He's value for ReLU is 1/2; for SiLU, the integral of its own square."""
    parabola = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    flat = torch.zeros(2, 1)
    torch.testing.assert_close(second_moment(parabola, flat), torch.tensor([1.0, 3.0], dtype=torch.float64))
    relu = second_moment(*(c[None] for c in coefficients.initial("relu", (6, 5))))
    assert relu.item() == pytest.approx(0.5, abs=0.01)
    z = torch.linspace(-12, 12, 100_001, dtype=torch.float64)
    silu = torch.trapezoid((z * torch.sigmoid(z)) ** 2 * torch.exp(-z * z / 2), z) / (2 * torch.pi) ** 0.5
    assert silu.item() == pytest.approx(0.3557, abs=1e-4)
    ours = second_moment(*(c[None] for c in coefficients.initial("silu")))
    assert ours.item() == pytest.approx(silu.item(), rel=1e-4)


def test_variance_passes_through_both_linear_layers():
    module = GRKAN(512, 2048)
    x = torch.randn(256, 512)
    h = module.fc1(module.act1(x))
    assert h.var().item() == pytest.approx(1, rel=0.05)
    assert module(x).var().item() == pytest.approx(1, rel=0.05)


NAMES = [("weight_numerator", "weight_denominator"), ("numerator_v", "denominator_v")]


@pytest.mark.parametrize("names", NAMES, ids=["KAT", "FlashKAT"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared numerator", "own numerators"])
def test_published_checkpoints_load(names, shared):
    """A numerator [1, m+1] that all groups share becomes one for each; then each group trains its own."""
    module = GRKAN(16, 32, groups=4)
    checkpoint = {}
    for act in ("act1", "act2"):
        checkpoint[f"{act}.{names[0]}"] = torch.randn(1 if shared else 4, 6)
        checkpoint[f"{act}.{names[1]}"] = torch.randn(4, 4)
    for name, tensor in module.state_dict().items():
        if name.startswith("fc"):
            checkpoint[name] = torch.randn_like(tensor)
    before = dict(checkpoint)
    module.load_state_dict(checkpoint)
    assert checkpoint.keys() == before.keys(), "the caller's dictionary stays as it was"
    assert module.act1.numerator.shape == (4, 6)
    x = torch.randn(3, 16)
    expected = rational_reference(x, checkpoint[f"act1.{names[0]}"], checkpoint[f"act1.{names[1]}"])
    torch.testing.assert_close(module.act1(x), expected)
    module(x).square().sum().backward()
    assert not torch.equal(module.act1.numerator.grad[0], module.act1.numerator.grad[1])


def test_its_own_checkpoints_load_exactly():
    module = distinct(GRKAN(16, 32, groups=4))
    other = GRKAN(16, 32, groups=4)
    other.load_state_dict(module.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters()))


def test_checkpoints_of_other_shapes_or_names_give_torchs_error():
    module = GroupRational(16, groups=4)
    with pytest.raises(RuntimeError, match="size mismatch for denominator"):
        module.load_state_dict({"weight_numerator": torch.randn(1, 6), "weight_denominator": torch.randn(8, 4)})
    with pytest.raises(RuntimeError, match="size mismatch for numerator"):
        module.load_state_dict({"weight_numerator": torch.randn(1, 4), "weight_denominator": torch.randn(4, 4)})
    with pytest.raises(RuntimeError, match=r"Missing key.*denominator"):
        module.load_state_dict({"weight_numerator": torch.randn(1, 6)})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*alpha"):
        module.load_state_dict(module.state_dict() | {"alpha": torch.randn(4)})


# Building: without memory, without values, elsewhere, in another dtype.


def loop(model, reverse=False):
    """What FSDP's guides do after `to_empty`: every module that can, resets itself."""
    modules = list(model.modules())
    for module in reversed(modules) if reverse else modules:
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()


@pytest.mark.parametrize(
    "reset",
    [lambda m: m.reset_parameters(), loop, functools.partial(loop, reverse=True)],
    ids=["reset_parameters", "loop", "loop, children first"],
)
def test_a_model_from_the_meta_device_starts_as_one_that_was_built_in_place(reset):
    def build():
        return GRKAN(256, 512, act_init=("tanh", "gelu"), shared="denominator", norm_layer=nn.LayerNorm)

    with torch.device("meta"):
        model = build()
    assert all(p.is_meta for p in model.parameters())
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.fill_(torch.nan)
    reset(model)
    for (name, found), wanted in zip(model.named_parameters(), build().parameters()):
        if name.startswith("fc"):
            torch.testing.assert_close(found.std(), wanted.std(), rtol=0.02, atol=0, msg=name)
        else:
            assert torch.equal(found, wanted), name


@pytest.mark.parametrize("build", [lambda **o: GroupRational(16, **o), lambda **o: GRKAN(16, 32, **o)])
def test_device_and_dtype_are_given_as_to_pytorchs_modules(build):
    assert {(p.device.type, p.dtype) for p in build(device="meta").parameters()} == {("meta", torch.float32)}
    model = build(dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model(torch.randn(3, 16).bfloat16()).dtype == torch.bfloat16


def test_skip_init_takes_both_modules():
    for module in (nn.utils.skip_init(GroupRational, 16), nn.utils.skip_init(GRKAN, 16, 32)):
        loop(module)
        assert module(torch.randn(3, 16)).isfinite().all()


def test_with_fake_tensors_a_model_is_built_and_run_without_values():
    with FakeTensorMode():
        model = GRKAN(16, 32)
        model.reset_parameters()
        y = model(torch.randn(3, 16))
    assert isinstance(y, torch._subclasses.FakeTensor) and y.shape == (3, 16)


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float16, torch.float64])
def test_tables_are_float32_whatever_the_default_dtype_is(default):
    torch.set_default_dtype(default)
    try:
        model = GRKAN(16, 32)
        loop(model)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {p.dtype for p in table_parameters(model)} == {torch.float32}
    assert model.fc1.weight.dtype == default
    assert torch.equal(model.act2.numerator, GroupRational(32).numerator)


def test_building_makes_no_float64_tensor_which_some_devices_do_not_have():
    class NoFloat64(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            assert not isinstance(result, torch.Tensor) or result.dtype != torch.float64, func
            return result

    coefficients.second_moment.cache_clear()
    with NoFloat64():
        GRKAN(16, 32).reset_parameters()


def test_a_model_from_the_meta_device_takes_a_checkpoints_own_tensors():
    """As `from_pretrained` does it: nothing is drawn, and no memory is allocated twice."""
    trained = distinct(GRKAN(16, 32, shared="numerator"))
    for shared in ("numerator", None):
        with torch.device("meta"):
            model = GRKAN(16, 32, shared=shared)
        model.load_state_dict(trained.state_dict(), assign=True)
        x = torch.randn(3, 16)
        assert torch.equal(model(x), trained(x))
        model(x).sum().backward()


def test_a_copy_resets_itself_and_not_the_model_that_it_was_copied_from():
    model = GRKAN(16, 32)
    before = model.fc1.weight.clone()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other.fc1.reset_parameters()
        assert torch.equal(model.fc1.weight, before) and not torch.equal(other.fc1.weight, before)


def test_linear_layers_are_of_pytorchs_own_type_by_which_quantisers_find_them():
    assert type(GRKAN(16).fc1) is type(GRKAN(16).fc2) is nn.Linear


def test_a_symbolic_trace_holds_the_call_and_runs():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.mlp = GroupRational(16, channels_last=False), GRKAN(16, 32)

        def forward(self, x):
            return self.mlp(self.first(x).flatten(2).transpose(1, 2))

    model, x = distinct(Model()), torch.randn(2, 16, 3, 3)
    traced = torch.fx.symbolic_trace(model)
    assert torch.equal(traced(x), model(x))
    assert torch.equal(traced(x[:1]), model(x[:1]))


# GRKAN among other MLPs.


def test_grkan_is_an_mlp_layer_of_timms():
    """The arguments of timm's Mlp, in its order, and by name as its models give them."""
    mlp = GRKAN(16, 32, 24, nn.GELU, nn.LayerNorm, (True, False), (0.1, 0.2), False)
    assert (mlp.fc1.bias is not None, mlp.fc2.bias, mlp.drop1.p, mlp.drop2.p) == (True, None, 0.1, 0.2)
    options = {"act_layer": nn.GELU, "norm_layer": None, "bias": False, "drop": 0.5, "device": None, "dtype": None}
    mlp = GRKAN(in_features=16, hidden_features=32, **options)
    assert mlp.fc1.bias is mlp.fc2.bias is None and mlp.drop1.p == mlp.drop2.p == 0.5
    mlp(torch.randn(3, 16)).sum().backward()
    with pytest.raises(ValueError, match="use_conv"):
        GRKAN(16, 32, use_conv=True)
    with pytest.raises(ValueError, match="bias must be one value or a pair"):
        GRKAN(16, 32, bias=(True, True, False))


def test_a_norm_stands_before_the_second_linear_layer_as_in_timm():
    mlp = distinct(GRKAN(16, 256, norm_layer=nn.LayerNorm)).eval()
    for parameter in mlp.norm.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    x = torch.randn(5, 16)
    torch.testing.assert_close(mlp(x), mlp.fc2(mlp.norm(mlp.act2(mlp.fc1(mlp.act1(x))))))
    assert "norm" not in GRKAN(16).state_dict()


@pytest.mark.parametrize(
    "options", [{"act_init": "gelu"}, {"act_init": ("tanh", "geglu")}, {"norm_layer": nn.LayerNorm}]
)
def test_variance_passes_whatever_the_activations_start_as(options):
    mlp = GRKAN(512, 2048, **options)
    h = mlp.fc1(mlp.act1(torch.randn(256, 512)))
    assert h.var().item() == pytest.approx(1, rel=0.05)
    assert mlp.fc2(mlp.act2(h) if mlp.norm is None else mlp.norm(mlp.act2(h))).var().item() == pytest.approx(1, rel=0.1)


def test_linear_layers_can_be_drawn_for_other_functions_than_the_starts():
    mlp = GRKAN(256, 512)
    with torch.no_grad():
        mlp.act2.numerator.mul_(2)
    moments = [second_moment(*act.tables()).mean().item() for act in (mlp.act1, mlp.act2)]
    assert moments[1] == pytest.approx(4 * 0.35578, rel=1e-4)
    mlp.reset_parameters(moments)
    assert mlp.fc2.weight.std().item() == pytest.approx((512 * moments[1]) ** -0.5, rel=0.02)


def test_act_init_names_both_starts_or_the_second():
    for given, wanted in ((("tanh", "relu"), ("tanh", "relu")), ("swish", ("identity", "silu"))):
        mlp = GRKAN(16, 32, act_init=given)
        for act, name in zip((mlp.act1, mlp.act2), wanted):
            assert torch.equal(act.numerator[3], coefficients.initial(name)[0])
            assert torch.equal(act.denominator[3], coefficients.initial(name)[1])


# Tables that all groups share.


@pytest.mark.parametrize("shared,rows", [("numerator", (1, 4)), ("denominator", (4, 1)), ("both", (1, 1))])
def test_a_shared_table_is_one_row_and_trains_as_one(shared, rows):
    module, apart = GroupRational(16, groups=4, shared=shared), GroupRational(16, groups=4)
    assert (len(module.numerator), len(module.denominator)) == rows
    x = torch.randn(50, 16)
    for m in (module, apart):
        m(x).square().sum().backward()
    for one, many in zip(module.parameters(), apart.parameters()):
        expected = many.grad.sum(0, keepdim=True) if len(one) == 1 else many.grad
        torch.testing.assert_close(one.grad, expected, rtol=1e-4, atol=1e-4)


def test_shared_tables_load_into_their_like_into_groups_and_back_where_groups_agree():
    shared, apart = distinct(GroupRational(16, groups=4, shared="numerator")), GroupRational(16, groups=4)
    x = torch.randn(5, 16)
    for module in (GroupRational(16, groups=4, shared="numerator"), apart):
        module.load_state_dict(shared.state_dict())
        assert torch.equal(module(x), shared(x))
    again = GroupRational(16, groups=4, shared="numerator")
    again.load_state_dict(apart.state_dict())
    assert torch.equal(again(x), shared(x)) and again.numerator.shape == (1, 6)
    model, parts = nn.Sequential(GroupRational(16, groups=4, shared="both")), distinct(nn.Sequential(apart))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        RuntimeError, match=r"0\.numerator is one row that all groups share; the 4 of 0\.numerator differ"
    ):
        model.load_state_dict(parts.state_dict())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("groups", [1, 4])
def test_tables_of_pau_without_groups_load(groups):
    module, numerator, denominator = GroupRational(16, groups=groups), torch.randn(6), torch.randn(4)
    module.load_state_dict({"numerator": numerator, "denominator": denominator})
    x = torch.randn(5, 16)
    torch.testing.assert_close(module(x), rational_reference(x, numerator[None], denominator[None]))


def test_table_parameters_are_those_of_all_modules_and_nothing_else():
    model = nn.Sequential(GRKAN(16, 32, shared="numerator"), nn.Linear(16, 16), GroupRational(16))
    names = {name for name, p in model.named_parameters() if any(p is table for table in table_parameters(model))}
    assert names == {f"{at}.{table}" for at in ("0.act1", "0.act2", "2") for table in ("numerator", "denominator")}


def test_submodules_are_attributes_of_the_package():
    assert flashkat_lite.vit.VisionTransformer and flashkat_lite.kat.KAT_Group
    with pytest.raises(AttributeError, match="no attribute 'cat'"):
        flashkat_lite.cat  # noqa: B018
