"""The published modules under their names, and checkpoints in and out.

What is published is written down here: names, shapes, order and starts of Adamdad/rational_kat_cu at 181bae8,
Adamdad/kat at ecb0eb7 and OSU-STARLAB/FlashKAT at adb7aee.
"""

import copy
import datetime
import re

import pytest
import torch
from torch import nn

from flashkat_lite import GRKAN, coefficients, kat, table_parameters
from flashkat_lite.reference import rational_reference
from flashkat_lite.vit import VisionTransformer

pytestmark = pytest.mark.usefixtures("one_thread")

GROUP = [("weight_numerator", (1, 6)), ("weight_denominator", (8, 4))]
FLASH = [("numerator_v", (1, 6)), ("denominator_v", (8, 4))]
FLASH_GROUPS = {"num_groups": 1, "den_groups": 8, "m": 6, "n": 4}  # of FlashKAT's scripts
VIT = {"image_size": 16, "patch_size": 8, "classes": 10, "width": 32, "depth": 2, "heads": 2, "mlp": "grkan"}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def shaken(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def shapes(model):
    return [(name, tuple(p.shape)) for name, p in model.named_parameters()]


def mlp_shapes(group, d=16, h=32, norm=False):
    within = {at: [(f"{at}.{name}", shape) for name, shape in group] for at in ("act1", "act2")}
    norms = [("norm.weight", (h,)), ("norm.bias", (h,))] if norm else []
    fc1, fc2 = [("fc1.weight", (h, d)), ("fc1.bias", (h,))], [("fc2.weight", (d, h)), ("fc2.bias", (d,))]
    return [*fc1, *within["act1"], *norms, *within["act2"], *fc2]


CALLS = {
    "KAT_Group()": (kat.KAT_Group, GROUP),
    "of time series": (lambda: kat.KAT_Group(mode="swish", num_groups=8, device="cpu"), GROUP),
    "2D": (lambda: kat.KAT_Group2D(8, "relu", "cuda"), GROUP),
    "FlashKAT": (lambda: kat.FlashKAT_Group(in_features=16, mode="identity", **FLASH_GROUPS), FLASH),
    "each channel": (
        lambda: kat.FlashKAT_Group(16, 0, -1, 6, 4, "swish"),
        [("numerator_v", (16, 6)), ("denominator_v", (16, 4))],
    ),
    "KAN": (
        lambda: kat.KAN(in_features=16, hidden_features=32, act_layer=kat.KAT_Group, drop=0.0, act_init="swish"),
        mlp_shapes(GROUP),
    ),
    "KAN of the README": (
        lambda: kat.KAN(16, 32, act_cfg=dict(type="KAT", act_init=["identity", "gelu"]), bias=True, drop=0.0),
        mlp_shapes(GROUP),
    ),
    "KAN in timm": (
        lambda: kat.KAN(16, 32, act_layer=nn.GELU, norm_layer=nn.LayerNorm, device=None, dtype=None),
        mlp_shapes(GROUP, norm=True),
    ),
    "KAN of FlashKAT": (
        lambda: kat.KAN(in_features=16, hidden_features=32, act_layer=kat.FlashKAT_Group, **FLASH_GROUPS),
        mlp_shapes(FLASH),
    ),
}


@pytest.mark.parametrize("call", CALLS)
def test_public_calls_give_the_published_parameters_in_the_published_order(call):
    build, expected = CALLS[call]
    module = build()
    assert shapes(module) == expected
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert set(table_parameters(module)) == {
        p for name, p in module.named_parameters() if "nominator" in name or "numerator" in name
    }
    x = torch.randn(2, 16, 3, 3) if call == "2D" else torch.randn(2, 5, 16)
    y = module(x)
    assert y.shape == x.shape
    y.square().sum().backward()
    assert all(p.grad is not None for name, p in module.named_parameters() if "norm" not in name)


def test_kan_is_rational_linear_rational_linear_and_its_norm_is_not_applied():
    module = shaken(kat.KAN(16, 32, 24, norm_layer=nn.LayerNorm, bias=(True, False)))
    x = torch.randn(2, 5, 16)

    def act(at, x):
        return rational_reference(x, at.weight_numerator, at.weight_denominator)

    torch.testing.assert_close(module(x), module.fc2(act(module.act2, module.fc1(act(module.act1, x)))))
    assert module.fc2.bias is None


def test_images_in_either_memory_format_give_channels_their_groups():
    module = shaken(kat.KAT_Group2D(4))
    x = torch.randn(2, 16, 3, 5)
    expected = rational_reference(x.movedim(1, -1), module.weight_numerator, module.weight_denominator).movedim(-1, 1)
    for memory in (torch.contiguous_format, torch.channels_last):
        y = module(x.to(memory_format=memory))
        torch.testing.assert_close(y, expected)
        assert y.is_contiguous(memory_format=memory)


@pytest.mark.parametrize("groups", [(1, 8), (8, 8), (8, 1), (0, 1), (0, 0)])
def test_flashkats_tables_have_the_groups_that_they_are_given(groups):
    module = shaken(kat.FlashKAT_Group(16, *groups, 6, 4, "swish"))
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(module(x), rational_reference(x, module.numerator_v, module.denominator_v))


# Starts: the largest error on [-3, 3] of the published numbers in the function that the published kernels compute.
PUBLISHED_ERRORS = {
    "identity": 0,
    "leaky_relu": 0.0298,
    "leaky_relu_0.1": 0.028,
    "tanh": 4.06e-5,
    "sigmoid": 1.86e-5,
    "relu": 0.03,
    "gelu": 1.465,
    "gelu_old": 0.00414,
    "swish": 1.16e-6,
    "geglu": 0.945,
    "swishglu": 1.71,
    "erfc_Softplus_2": 0.0854,
}


@pytest.mark.parametrize("mode", PUBLISHED_ERRORS)
def test_a_mode_starts_as_its_function_or_where_asked_with_the_published_numbers(mode):
    assert kat.PUBLISHED_STARTS.keys() == PUBLISHED_ERRORS.keys()
    functions = {"identity": lambda x: x} | coefficients.FUNCTIONS
    function = functions[coefficients.ALIASES.get(mode, kat.MODES.get(mode, mode))]
    x = torch.linspace(-3, 3, 6001, dtype=torch.float64)

    def error(**options):
        a, b = (p.detach().double() for p in kat.KAT_Group(8, mode, **options).parameters())
        return (rational_reference(x[:, None], a, b[:1])[:, 0] - function(x)).abs().max().item()

    published = error(published_start=True)
    assert published == pytest.approx(PUBLISHED_ERRORS[mode], rel=0.01)
    assert error() <= published and error() < 0.02
    assert torch.equal(
        kat.FlashKAT_Group(16, 8, 1, 6, 4, mode).numerator_v, kat.KAT_Group(8, mode).weight_numerator.expand(8, 6)
    )


REFUSED = {
    "a mode of nobody": (lambda: kat.KAT_Group(mode="swich"), ValueError, "swich"),
    "a start that is not published": (lambda: kat.KAT_Group(mode="silu", published_start=True), ValueError, "'silu'"),
    "no groups": (lambda: kat.KAT_Group(0), ValueError, "num_groups"),
    "groups that are a mode": (lambda: kat.KAT_Group("gelu"), TypeError, "num_groups.*'gelu'"),
    "images for the 1D module": (lambda: kat.KAT_Group()(torch.randn(2, 16, 3, 3)), ValueError, "KAT_Group2D"),
    "tokens for the 2D module": (lambda: kat.KAT_Group2D()(torch.randn(2, 16, 3)), ValueError, r"\[B, C, H, W\]"),
    # 12 channels of 2 pixels would divide into 8 groups, and 12 channels do not.
    "channels that groups do not divide": (
        lambda: kat.KAT_Group2D(8)(torch.randn(2, 12, 2, 1)),
        ValueError,
        "multiple of 8",
    ),
    "features that groups do not divide": (lambda: kat.KAT_Group(8)(torch.randn(2, 12)), ValueError, "8 groups"),
    "two numbers of groups": (lambda: kat.FlashKAT_Group(16, 4, 8, 6, 4, "swish"), ValueError, "4 and 8"),
    "no denominator": (lambda: kat.FlashKAT_Group(16, 8, 8, 6, 0, "swish"), ValueError, r"\(5, 0\)"),
    "another width": (lambda: kat.FlashKAT_Group(16, 1, 8, 6, 4, "swish")(torch.randn(2, 32)), ValueError, "not 16"),
    "convolutions": (lambda: kat.KAN(16, use_conv=True), ValueError, "use_conv"),
    "an argument of nobody": (lambda: kat.KAN(16, act_inti="swish"), TypeError, "act_inti"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_published_modules_take_silently_or_refuse_is_refused(case):
    call, error, words = REFUSED[case]
    with pytest.raises(error, match=words):
        call()


# State dicts.


def test_state_dicts_pass_between_kan_and_grkan_both_ways():
    theirs, ours = shaken(kat.KAN(16, 32, act_init="swish")), GRKAN(16, 32, shared="numerator")
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 5, 16)
    assert torch.equal(ours(x), theirs(x))
    shaken(ours)
    back = kat.to_published(ours.state_dict())
    assert [(name, tuple(t.shape)) for name, t in back.items()] == mlp_shapes(GROUP)
    theirs.load_state_dict(back)
    assert torch.equal(ours(x), theirs(x))
    flash = kat.KAN(16, 32, act_layer=kat.FlashKAT_Group, **FLASH_GROUPS)
    flash.load_state_dict(kat.to_published(ours.state_dict(), "flashkat"))
    assert torch.equal(ours(x), flash(x))
    theirs.load_state_dict(ours.state_dict())  # our names are understood, too
    assert torch.equal(ours(x), theirs(x))


def test_groups_that_have_come_apart_go_to_flashkats_form_and_are_refused_in_kats():
    ours = GRKAN(16, 32)
    kat.KAN(16, 32).load_state_dict(kat.to_published(ours.state_dict()))  # they start alike
    shaken(ours)
    with pytest.raises(ValueError, match=r"act1\.numerator: its 8 groups differ.*shared='numerator'"):
        kat.to_published(ours.state_dict())
    with pytest.raises(ValueError, match="'kat', 'flashkat', not 'KAT'"):
        kat.to_published(ours.state_dict(), "KAT")
    with pytest.raises(RuntimeError, match=r"act1\.weight_numerator is one row"):
        kat.KAN(16, 32).load_state_dict(ours.state_dict())
    flash = kat.KAN(16, 32, act_layer=kat.FlashKAT_Group, num_groups=8, den_groups=8, m=6, n=4)
    flash.load_state_dict(kat.to_published(ours.state_dict(), "flashkat"))
    x = torch.randn(3, 16)
    assert torch.equal(flash(x), ours(x))


def published_names(model):
    return {re.sub(r"\b(numerator|denominator)$", r"weight_\1", name): t for name, t in model.state_dict().items()}


WRAPPERS = {
    "bare": lambda state: state,
    "timm's": lambda state: {"epoch": 3, "state_dict": state, "state_dict_ema": None},
    "timm's average": lambda state: {"state_dict": {}, "state_dict_ema": {f"module.{k}": v for k, v in state.items()}},
    "compiled, distributed": lambda state: {"model": {f"module._orig_mod.{k}": v for k, v in state.items()}},
    "averaged": lambda state: {"n_averaged": torch.tensor(3)} | {f"module.{k}": v for k, v in state.items()},
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_published_files_load_into_the_vision_transformer_and_come_back(wrapper):
    trained = shaken(VisionTransformer(**VIT, shared="numerator"))
    published = published_names(trained)
    weights = kat.from_published(WRAPPERS[wrapper](published), ema=wrapper == "timm's average")
    images = torch.randn(2, 3, 16, 16)
    for options in ({"shared": "numerator"}, {}):
        model = VisionTransformer(**VIT, **options)
        model.load_state_dict(weights)
        assert torch.equal(model(images), trained(images))
        back = kat.to_published(model.state_dict())
        assert back.keys() == published.keys() and all(torch.equal(back[k], published[k]) for k in back)


def test_a_file_without_an_average_says_so():
    with pytest.raises(KeyError, match="no moving average"):
        kat.from_published({"state_dict": {}}, ema=True)


def test_only_mlps_with_rational_activations_are_reordered():
    names = [
        "a",
        "mlp.fc2.weight",
        "mlp.fc1.weight",
        "x.act1.numerator",
        "x.fc1.weight",
        "x.act2.numerator",
        "x.fc2.bias",
        "b",
    ]
    expected = [*names[:3], "x.fc1.weight", "x.act1.numerator", "x.act2.numerator", "x.fc2.bias", "b"]
    assert kat.published_order(names) == expected
    assert kat.published_order(["fc2.bias", "act1.numerator_v", "fc1.bias"]) == [
        "fc1.bias",
        "act1.numerator_v",
        "fc2.bias",
    ]


# Optimizers.


def adamw(model):
    """With timm's two groups, as the published script makes them."""
    plain = [p for p in model.parameters() if p.ndim <= 1]
    rest = [p for p in model.parameters() if p.ndim > 1]
    return torch.optim.AdamW([{"params": plain, "weight_decay": 0.0}, {"params": rest, "weight_decay": 0.05}], lr=1e-2)


def train(model, optimizer, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(7, 16, generator=generator)
        optimizer.zero_grad()
        (model(x) - x.roll(1, -1)).square().mean().backward()
        optimizer.step()


def the_same(ours, theirs):
    weights = kat.to_published(ours.state_dict())
    return all(torch.equal(weights[name], tensor) for name, tensor in theirs.state_dict().items())


def test_a_published_run_goes_on_with_grkan_and_back_as_if_nothing_had_happened():
    theirs = kat.KAN(16, 32, act_init="swish")
    optimizer = adamw(theirs)
    train(theirs, optimizer, 3)

    ours = GRKAN(16, 32, shared="numerator")
    ours.load_state_dict(theirs.state_dict())
    ours_optimizer = adamw(ours)
    state = copy.deepcopy(optimizer.state_dict())
    ours_optimizer.load_state_dict(kat.from_published_optimizer(state, ours_optimizer, ours))
    train(theirs, optimizer, 3, seed=1)
    train(ours, ours_optimizer, 3, seed=1)
    assert the_same(ours, theirs)

    again = kat.KAN(16, 32)
    again.load_state_dict(kat.to_published(ours.state_dict()))
    again_optimizer = adamw(again)
    again_optimizer.load_state_dict(copy.deepcopy(kat.to_published_optimizer(ours_optimizer, ours)))
    train(again, again_optimizer, 3, seed=2)
    train(ours, ours_optimizer, 3, seed=2)
    assert the_same(ours, again)


def test_a_published_optimizers_state_is_taken_by_kan_as_it_is():
    first, second = kat.KAN(16, 32), kat.KAN(16, 32)
    optimizer, other = adamw(first), adamw(second)
    train(first, optimizer, 2)
    second.load_state_dict(first.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(first, optimizer, 2)
    train(second, other, 2)
    assert the_same(second, first)


def test_named_parameters_in_an_optimizers_state_keep_their_names():
    ours = GRKAN(16, 32, shared="numerator")
    optimizer = torch.optim.SGD(ours.named_parameters(), lr=0.1, momentum=0.9)
    train(ours, optimizer, 1)
    state = kat.to_published_optimizer(optimizer, ours)
    names = state["param_groups"][0]["param_names"]
    assert names == kat.published_order(dict(ours.named_parameters()))
    for i, name in enumerate(names):
        momentum = optimizer.state[ours.get_parameter(name)]["momentum_buffer"]
        assert state["state"][i]["momentum_buffer"] is momentum


def test_optimizers_of_other_groups_or_tables_are_refused():
    theirs = kat.KAN(16, 32)
    optimizer = adamw(theirs)
    train(theirs, optimizer, 1)
    state = optimizer.state_dict()
    apart = GRKAN(16, 32)
    with pytest.raises(ValueError, match=r"exp_avg.* of act1\.numerator.*\[1, 6\].*\[8, 6\].*shared='numerator'"):
        kat.from_published_optimizer(state, adamw(apart), apart)
    with pytest.raises(ValueError, match=r"shared='numerator' \(act1\.numerator is not\)"):
        kat.to_published_optimizer(adamw(apart), apart)
    one_group = torch.optim.AdamW(apart.parameters())
    with pytest.raises(ValueError, match=r"\[2, 6\] parameters.*\[8\]"):
        kat.from_published_optimizer(state, one_group, apart)


# Large models.


def test_published_modules_are_built_on_the_meta_device_and_reset():
    with torch.device("meta"):
        model = kat.KAN(16, 32, act_init="swish")
    assert all(p.is_meta for p in model.parameters())
    model.to_empty(device="cpu")
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert torch.equal(model.act2.weight_denominator, kat.KAT_Group(mode="swish").weight_denominator)


def shard(_, rank, address):
    """FSDP2 from the meta device, then a published file into what is sharded: (the start, y, y of what was loaded)."""
    from torch.distributed.checkpoint import state_dict as distributed_state
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import init_device_mesh

    limit = datetime.timedelta(seconds=60)
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2, timeout=limit)
    with torch.device("meta"):
        model = nn.Sequential(GRKAN(16, 32, shared="numerator"), GRKAN(16, 32))
    mesh = init_device_mesh("cpu", (2,))  # also where there is a GPU
    for module in (*model, model):
        fully_shard(module, mesh=mesh)
    model.to_empty(device="cpu")
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    options = distributed_state.StateDictOptions(full_state_dict=True)
    start = distributed_state.get_model_state_dict(model, options=options)
    torch.manual_seed(1)
    theirs = shaken(
        nn.Sequential(
            kat.KAN(16, 32), kat.KAN(16, 32, act_layer=kat.FlashKAT_Group, num_groups=8, den_groups=8, m=6, n=4)
        )
    )
    distributed_state.set_model_state_dict(model, kat.from_published(theirs.state_dict()), options=options)
    x = torch.randn(3, 16)
    y = model(x)
    y.sum().backward()
    torch.distributed.barrier()  # who leaves early takes the meeting's file along
    torch.distributed.destroy_process_group()
    return start, y, theirs(x)


def test_two_processes_shard_a_model_from_the_meta_device_reset_it_and_load_a_published_file(tmp_path):
    address = f"file://{tmp_path / 'meeting'}"
    other = torch.multiprocessing.spawn(shard, (1, address), join=False)
    start, y, expected = shard(None, 0, address)
    while not other.join():
        pass
    wanted = nn.Sequential(GRKAN(16, 32, shared="numerator"), GRKAN(16, 32)).state_dict()
    for name, tensor in start.items():
        if ".fc" not in name or name.endswith("bias"):
            assert torch.equal(tensor, wanted[name]), name
        else:
            assert tensor.std().item() == pytest.approx(wanted[name].std().item(), rel=0.2), name
    torch.testing.assert_close(y, expected)


# The page.


def test_the_published_path_of_the_cpu_is_off_by_what_the_page_says():
    """It has Σ |b_j| x^j, where the published kernels have Σ |b_j| |x|^j."""

    def fallback(x, numerator, denominator):
        q = 1 + sum(abs(b) * x**j for j, b in enumerate(denominator, 1))
        return sum(a * x**i for i, a in enumerate(numerator)) / q

    x = torch.linspace(-3, 3, 6001, dtype=torch.float64)
    for mode, expected in (("swishglu", 4.1), ("gelu", 0.07), ("swish", 7e-6)):
        group = kat.KAT_Group(8, mode, published_start=True).double()
        kernel = rational_reference(x[:, None], group.weight_numerator, group.weight_denominator[:1])[:, 0]
        found = (fallback(x, *kat.PUBLISHED_STARTS[mode]) - kernel).abs().max().item()
        assert found == pytest.approx(expected, rel=0.05), mode
    numerator, half = kat.PUBLISHED_STARTS["swish"][0], (0.5, 0.0, 0.0, 0.0)
    assert fallback(torch.tensor(-2.0), numerator, half) == -torch.inf
    ours = kat.KAT_Group(8, "swish", published_start=True)
    ours.load_state_dict({"weight_denominator": torch.tensor(half).repeat(8, 1)}, strict=False)
    assert ours(torch.full((1, 8), -2.0))[0, 0].item() == pytest.approx(-0.171, abs=5e-4)


def test_each_snippet_of_the_page_runs(root, tmp_path, monkeypatch):
    """One after another, in one namespace, as a reader would."""
    monkeypatch.chdir(tmp_path)
    text = (root / "book" / "coming_from_kat.md").read_text(encoding="utf-8")
    snippets = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert len(snippets) == text.count("```") // 2 >= 7
    names = {}
    for snippet in snippets:
        exec(compile(snippet, "coming_from_kat.md", "exec"), names)
    assert sum(p.numel() for p in torch.load("kat_tiny.pth")["state_dict"].values()) == 5_718_328


def test_a_blocks_norm_passes_into_grkan_and_back():
    class Block(nn.Module):
        def __init__(self, inside):
            super().__init__()
            self.norm2 = nn.Identity() if inside else nn.LayerNorm(16, eps=1e-6)
            self.mlp = GRKAN(16, 32, norm="layer" if inside else None)

        def forward(self, x):
            return self.mlp(self.norm2(x))

    torch.manual_seed(0)
    outside, inside = (nn.Sequential(Block(where), nn.Linear(16, 16)) for where in (False, True))
    for parameter in outside.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    state, x = outside.state_dict(), torch.randn(3, 16)
    inside.load_state_dict(kat.absorbed(state))
    torch.testing.assert_close(inside(x), outside(x), rtol=1e-4, atol=1e-5)
    back = kat.released(inside.state_dict())
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)
    other = {"0.norm2.weight": x, "0.mlp.fc1.weight": x}
    assert kat.absorbed(other).keys() == other.keys()
