import copy
import math

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from flashkat_lite import GRKAN
from flashkat_lite.reference import rational_reference
from flashkat_lite.vit import MLPS, SIZES, VisionTransformer

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"image_size": 16, "patch_size": 8, "classes": 10, "width": 32, "depth": 2, "heads": 2}
BOTH = pytest.mark.parametrize("mlp", MLPS)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def small(mlp, **options):
    return VisionTransformer(**SMALL | options, mlp=mlp)


def shaken(model):
    """Every parameter away from its start, so that biases, tokens and tables all count."""
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def images(batch=3):
    return torch.randn(batch, 3, 16, 16)


def gradients(model, x, function=None):
    model.zero_grad()
    y = model(x) if function is None else function(x)
    functional.cross_entropy(y.float(), torch.arange(len(x))).backward()
    return y.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


def by_hand(state, x, heads=2, groups=8):
    """The same logits from a state dict: patches cut by hand, softmax(qkᵀ/√d) v written out, GELU by erf."""
    n, d = len(x), state["cls_token"].shape[-1]

    def layer(name, x):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name, x):
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return x * state[f"{name}.weight"] + state[f"{name}.bias"]

    def rational(name, x):
        return rational_reference(x, state[f"{name}.numerator"], state[f"{name}.denominator"])

    kernel = state["patch_embed.proj.weight"]
    p = kernel.shape[-1]
    side = x.shape[-1] // p
    patches = x.reshape(n, 3, side, p, side, p).permute(0, 2, 4, 1, 3, 5).reshape(n, side * side, 3 * p * p)
    x = patches @ kernel.reshape(d, -1).T + state["patch_embed.proj.bias"]
    x = torch.cat([state["cls_token"].repeat(n, 1, 1), x], 1) + state["pos_embed"]
    for i in range(2):
        at = f"blocks.{i}"
        q, k, v = layer(f"{at}.attn.qkv", norm(f"{at}.norm1", x)).split(d, dim=-1)
        outs = []
        for h in range(heads):
            c = slice(h * d // heads, (h + 1) * d // heads)
            scores = q[..., c] @ k[..., c].transpose(1, 2) / math.sqrt(d // heads)
            outs.append(scores.exp() / scores.exp().sum(-1, keepdim=True) @ v[..., c])
        x = x + layer(f"{at}.attn.proj", torch.cat(outs, -1))
        z = norm(f"{at}.norm2", x)
        if f"{at}.mlp.act1.numerator" in state:
            z = rational(f"{at}.mlp.act2", layer(f"{at}.mlp.fc1", rational(f"{at}.mlp.act1", z)))
        else:
            z = layer(f"{at}.mlp.fc1", z)
            z = z * (1 + torch.erf(z / math.sqrt(2))) / 2
        x = x + layer(f"{at}.mlp.fc2", z)
    return layer("head", norm("norm", x)[:, 0])


@pytest.mark.parametrize("size,count", [("tiny", 5_717_416), ("small", 22_050_664), ("base", 86_567_656)])
def test_the_published_sizes_have_the_published_number_of_parameters(size, count):
    """KAT has on top, in each of 12 blocks, two activations of 8 groups with 6 + 4 coefficients, or one numerator.

    FlashKAT's README prints 5,718,328 for KAT-T.
    """
    options = {"mlp": {}, "grkan": {}, "shared": {"mlp": "grkan", "shared": "numerator"}}
    with torch.device("meta"):
        models = {name: VisionTransformer(**SIZES[size], **{"mlp": name} | o) for name, o in options.items()}
    counts = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    assert counts == {"mlp": count, "grkan": count + 12 * 2 * 8 * (6 + 4), "shared": count + 12 * 2 * (6 + 8 * 4)}
    assert size != "tiny" or counts["shared"] == 5_718_328


@pytest.mark.parametrize("mlp", MLPS)
def test_a_model_from_the_meta_device_starts_as_one_that_was_built_in_place(mlp):
    """Whether it resets itself, or whoever shards it loops over its modules."""

    def loop(model):
        for module in model.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()

    wanted = dict(small(mlp, width=64).named_parameters())
    for reset in (VisionTransformer.reset_parameters, loop):
        with torch.device("meta"):
            model = small(mlp, width=64)
        model.to_empty(device="cpu")
        for parameter in model.parameters():
            parameter.data.fill_(torch.nan)
        reset(model)
        for name, found in model.named_parameters():
            assert found.isfinite().all(), name
            assert found.std().item() == pytest.approx(wanted[name].std().item(), rel=0.25, abs=1e-7), name


@BOTH
def test_with_fake_tensors_a_model_is_built_reset_and_run_without_values(mlp):
    with FakeTensorMode():
        model = small(mlp)
        model.reset_parameters()
        assert model(images()).shape == (3, 10)


def timm_shapes(d, patches, p, classes, depth):
    """Names and shapes in the state dict of timm's ViT of width d."""
    block = {
        "norm1.weight": (d,),
        "norm1.bias": (d,),
        "attn.qkv.weight": (3 * d, d),
        "attn.qkv.bias": (3 * d,),
        "attn.proj.weight": (d, d),
        "attn.proj.bias": (d,),
        "norm2.weight": (d,),
        "norm2.bias": (d,),
        "mlp.fc1.weight": (4 * d, d),
        "mlp.fc1.bias": (4 * d,),
        "mlp.fc2.weight": (d, 4 * d),
        "mlp.fc2.bias": (d,),
    }
    return {
        "cls_token": (1, 1, d),
        "pos_embed": (1, 1 + patches, d),
        "patch_embed.proj.weight": (d, 3, p, p),
        "patch_embed.proj.bias": (d,),
        **{f"blocks.{i}.{name}": shape for i in range(depth) for name, shape in block.items()},
        "norm.weight": (d,),
        "norm.bias": (d,),
        "head.weight": (classes, d),
        "head.bias": (classes,),
    }


def timm_checkpoint(d=32, patches=4, p=8, classes=10, depth=2):
    shapes = timm_shapes(d, patches, p, classes, depth)
    return {name: 0.2 * torch.randn(shape) for name, shape in shapes.items()}


def test_the_published_models_take_timms_names_and_shapes():
    with torch.device("meta"):
        model = VisionTransformer(**SIZES["tiny"])
    found = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    assert found == timm_shapes(192, 196, 16, 1000, 12)


def test_timms_checkpoints_load_and_come_back():
    state, model = timm_checkpoint(), small("mlp")
    model.load_state_dict(state)
    x = images()
    torch.testing.assert_close(model(x), by_hand(state, x), rtol=1e-4, atol=1e-4)
    back = model.state_dict()
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)


@pytest.mark.parametrize("names", [("weight_numerator", "weight_denominator"), ("numerator_v", "denominator_v")])
def test_checkpoints_of_kat_and_flashkat_compute_what_their_coefficients_say(names):
    """The published numerators [1, 6] are shared by all groups; denominators are [8, 4]."""
    state = timm_checkpoint()
    plain = dict(state)
    for at in (f"blocks.{i}.mlp.{act}" for i in range(2) for act in ("act1", "act2")):
        numerator, denominator = 0.5 * torch.randn(1, 6), torch.randn(8, 4)
        state |= {f"{at}.{names[0]}": numerator, f"{at}.{names[1]}": denominator}
        plain |= {f"{at}.numerator": numerator, f"{at}.denominator": denominator}
    model = small("grkan")
    model.load_state_dict(state)
    x = images()
    torch.testing.assert_close(model(x), by_hand(plain, x), rtol=1e-4, atol=1e-4)
    copied = small("grkan")
    copied.load_state_dict(model.state_dict())
    assert torch.equal(copied(x), model(x))


@BOTH
def test_the_model_is_the_one_written_out_by_hand(mlp):
    model = shaken(small(mlp))
    x = images()
    expected = by_hand({name: p.detach() for name, p in model.named_parameters()}, x)
    assert expected.std() > 0.1
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


@BOTH
def test_gradients_are_finite_and_reach_every_parameter(mlp):
    model = small(mlp)
    y, found = gradients(model, images())
    assert y.shape == (3, 10) and y.dtype == torch.float32 and y.isfinite().all()
    for name, gradient in found.items():
        assert gradient.isfinite().all() and gradient.abs().max() > 0, name


def test_linear_layers_start_as_vits_do_and_grkans_as_its_own():
    model = VisionTransformer(depth=1, mlp="grkan")
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            assert not module.bias.any(), name
            std = 0.02
            if ".mlp.fc" in name:
                std = (module.in_features * (1 if name.endswith("fc1") else 0.3557)) ** -0.5
            assert module.weight.std().item() == pytest.approx(std, rel=0.02), name
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.02)
    mlp = VisionTransformer(depth=1).blocks[0].mlp
    assert mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.02)


def test_options_reach_grkan():
    model = small("grkan", groups=4, degrees=(3, 2), backward="block", mlp_ratio=2, drop=0.25)
    for block in model.blocks:
        mlp = block.mlp
        assert isinstance(mlp, GRKAN)
        for act, features in ((mlp.act1, 32), (mlp.act2, 64)):
            assert act.numerator.shape == (4, 4) and act.denominator.shape == (4, 2)
            assert act.backward == "block" and act.features == features
        assert mlp.drop1.p == mlp.drop2.p == block.attn.drop.p == 0.25


@BOTH
def test_the_compiled_model_is_the_eager_one_in_a_single_graph(mlp):
    model = shaken(small(mlp))
    x = images()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    y, found = gradients(model, x, compiled)
    expected, wanted = gradients(model, x)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-3, atol=1e-5, msg=name)


def test_it_compiles_in_a_single_graph_with_dropout_and_autocast():
    model = small("grkan", drop=0.1, drop_path=0.5)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def forward(x):
        with torch.autocast("cpu", torch.bfloat16):
            return model(x)

    _, found = gradients(model, images(), forward)
    assert all(gradient.isfinite().all() for gradient in found.values())


@BOTH
def test_checkpointed_blocks_give_the_same_gradients(mlp):
    """With dropout and stochastic depth: what was dropped is dropped again when a block is computed anew."""
    model, x = shaken(small(mlp, drop=0.2, drop_path=0.5)), images()
    torch.manual_seed(1)
    y, wanted = gradients(model, x)
    runs = []

    def again(block):
        def run(x):
            runs.append(block)
            return block(x)

        return lambda x: checkpoint(run, x, use_reentrant=False)

    def forward(x):
        x = model.patch_embed(x)
        x = torch.cat([model.cls_token.expand(len(x), -1, -1), x], dim=1) + model.pos_embed
        for block in model.blocks:
            x = again(block)(x)
        return model.head(model.norm(x)[:, 0])

    torch.manual_seed(1)
    found_y, found = gradients(model, x, forward)
    assert len(runs) == 2 * len(model.blocks)
    assert torch.equal(found_y, y) and all(torch.equal(found[name], wanted[name]) for name in wanted)


@BOTH
def test_whoever_computes_the_norms_a_model_has_the_same_names_logits_and_gradients(mlp):
    models = {norm: small(mlp, norm=norm) for norm in ("torch", "ours", None)}
    state, x = shaken(models["torch"]).state_dict(), images()
    want_y, wanted = gradients(models["torch"], x)
    for norm in ("ours", None):
        assert list(models[norm].state_dict()) == list(state)
        models[norm].load_state_dict(state)
        y, found = gradients(models[norm], x)
        torch.testing.assert_close(y, want_y, rtol=1e-4, atol=1e-5)
        assert list(found) == list(wanted)
        for name in wanted:
            torch.testing.assert_close(found[name], wanted[name], rtol=1e-3, atol=1e-5)
    with pytest.raises(ValueError, match="'batch'"):
        small(mlp, norm="batch")
    with pytest.raises(ValueError, match="'fused'"):
        small("mlp", norm="fused")


@BOTH
def test_under_autocast_branches_are_bfloat16_and_the_residual_stream_and_parameters_float32(mlp):
    model, x = small(mlp), images()
    seen = {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda _, inputs, output, name=name: seen.update({name: output}))
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    # Of what takes the block's sum into its pass: its own result, not the sum.
    seen = {name: (output[0] if isinstance(output, tuple) else output).dtype for name, output in seen.items()}
    assert y.dtype == torch.bfloat16
    assert seen["blocks.0"] == seen["blocks.1"] == torch.float32
    assert seen["blocks.1.attn"] == seen["blocks.1.mlp"] == torch.bfloat16
    if mlp == "grkan":
        assert {seen[f"blocks.1.mlp.{name}"] for name in ("act1", "drop1", "act2")} == {torch.bfloat16}
    exact = model(x)
    assert (y.float() - exact).abs().max() < 0.05 * exact.abs().max()
    functional.cross_entropy(y, torch.arange(3)).backward()
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}


@BOTH
def test_a_model_cast_to_bfloat16_stays_in_it(mlp):
    model = small(mlp).bfloat16()
    y, found = gradients(model, images().bfloat16())
    assert y.dtype == torch.bfloat16 and {g.dtype for g in found.values()} == {torch.bfloat16}


def test_drop_path_drops_whole_samples_of_a_branch_in_training_and_keeps_the_mean():
    model = small("mlp", depth=3, drop_path=0.6)
    assert [block.drop_path.p for block in model.blocks] == [0, pytest.approx(0.3), 0.6]
    x = torch.rand(4000, 2, 2) + 1
    drop = model.blocks[1].drop_path
    y = drop(x)
    kept = (y != 0).all(dim=(1, 2))
    torch.testing.assert_close(y, torch.where(kept[:, None, None], x / 0.7, 0))
    assert kept.float().mean().item() == pytest.approx(0.7, abs=0.04)  # its standard error is 0.007
    assert torch.equal(model.blocks[0].drop_path(x), x)
    assert torch.equal(model.eval().blocks[1].drop_path(x), x)


@BOTH
def test_in_evaluation_nothing_is_dropped_and_samples_do_not_mix(mlp):
    model, x = small(mlp, drop=0.5, drop_path=0.5), images()
    assert not torch.equal(model(x), model(x))
    model.eval()
    torch.testing.assert_close(model(x)[1:2], model(x[1:2]))
    without = small(mlp)
    without.load_state_dict(model.state_dict())
    assert torch.equal(model(x), without(x))


@pytest.mark.parametrize(
    "options,error,words",
    [
        ({"image_size": 20}, ValueError, "20 and 8"),
        ({"patch_size": 0}, ValueError, "16 and 0"),
        ({"heads": 3}, ValueError, "width 32, 3 heads"),
        ({"heads": 0}, ValueError, "0 heads"),
        ({"mlp": "kan"}, ValueError, "'mlp', 'grkan', not 'kan'"),
        ({"mlp": "grkan", "groups": 5}, ValueError, "32 features, 5 groups"),
        ({"mlp": "grkan", "mlp_ratio": 1.1}, ValueError, "35 features, 8 groups"),
        ({"mlp": "grkan", "backward": "magic"}, ValueError, "not 'magic'"),
        ({"mlp": "grkan", "degree": (5, 4)}, TypeError, "degree"),
        ({"mlp": "mlp", "groups": 8}, TypeError, "groups"),
        ({"drop": 1.5}, ValueError, "1.5"),
        ({"drop_path": -0.5}, ValueError, "-0.5"),
    ],
)
def test_bad_arguments_are_refused_when_the_model_is_built(options, error, words):
    with pytest.raises(error, match=words):
        VisionTransformer(**SMALL | options)


@pytest.mark.parametrize("shape", [(3, 3, 16, 24), (3, 1, 16, 16), (3, 16, 16)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"\[B, 3, 16, 16\], not \[3, "):
        small("mlp")(torch.randn(shape))


@BOTH
def test_a_copy_is_independent(mlp):
    model = small(mlp)
    other, x = copy.deepcopy(model), images()
    before = model(x)
    shaken(other)
    assert torch.equal(model(x), before) and not torch.equal(other(x), before)
