import copy

import pytest
import torch

from flashkat_lite import GRKAN, GroupRational, coefficients
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


def test_channels_first_is_channels_last_with_the_dimension_moved():
    last = distinct(GroupRational(16, groups=4))
    first = copy.deepcopy(last)
    first.channels_last = False
    x = torch.randn(2, 16, 5, 3)
    y = first(x)
    assert y.shape == x.shape
    torch.testing.assert_close(y, last(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


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
        f"GroupRational(24, groups=3, degrees=(3, 2), init='gelu', channels_last=False, backward='{DEFAULT_BACKWARD}')"
    )


@pytest.mark.parametrize(
    "arguments,words",
    [
        ({"features": 10}, "10.*8"),
        ({"features": 0}, "0 features"),
        ({"features": 8, "groups": 0}, "0 groups"),
        ({"features": 8, "init": "swish"}, "swish"),
        ({"features": 8, "degrees": (0, 4)}, r"\(0, 4\)"),
        ({"features": 8, "backward": "magic"}, "magic"),
    ],
)
def test_bad_arguments_are_refused_at_the_door(arguments, words):
    with pytest.raises(ValueError, match=words):
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
