"""The training script's --init and --eval: checkpoints in the forms that are found, and what is made of them."""

import argparse
import os
import sys
from pathlib import Path

import pytest
import torch

from flashkat_lite.vit import VisionTransformer

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"image_size": 8, "patch_size": 2, "channels": 1, "classes": 10, "width": 16, "depth": 2, "heads": 2}
COMMAND = ["digits", "--cpu", "--width", "16", "--depth", "2", "--heads", "2", "--batch", "100"]


@pytest.fixture
def weights(train_kat):
    return train_kat.weights


def model(mlp="mlp", seed=0, **changes):
    """A model of which nothing is as it starts."""
    torch.manual_seed(seed)
    made = VisionTransformer(**(SMALL | changes), mlp=mlp)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return made


def published(state):
    """A state dict with KAT's names, and one numerator for all groups."""
    names = {name: name.replace(".numerator", ".weight_numerator") for name in state}
    names = {name: new.replace(".denominator", ".weight_denominator") for name, new in names.items()}
    return {new: state[name][:1] if name.endswith(".numerator") else state[name] for name, new in names.items()}


@pytest.fixture
def begun(weights, tmp_path):
    """A model that starts from what was saved, and what is said about it."""

    def begin(contents, mlp="mlp", names=None, changes=(), **options):
        file = tmp_path / "weights.pt"
        torch.save(contents, file)
        made = model(mlp, seed=9, **dict(changes))
        names = [str(i) for i in range(10)] if names is None else names
        return made, weights.start(made, weights.read(file), file, names, **options)

    return begin


def equal(made, state):
    return all(torch.equal(value, state[name]) for name, value in made.state_dict().items())


FORMS = {
    "plain": lambda state, other: state,
    "state_dict": lambda state, other: {"epoch": 3, "state_dict": state, "metric": 0.5},
    "model": lambda state, other: {"model": state, "optimizer": {}, "args": argparse.Namespace(lr=1.0)},
    "state_dict_ema": lambda state, other: {"arch": "vit", "state_dict": other, "state_dict_ema": state},
    "model_ema": lambda state, other: {"model": other, "model_ema": state},
    "no average yet": lambda state, other: {"state_dict": state, "state_dict_ema": None},
    "DDP": lambda state, other: {"state_dict": {f"module.{name}": value for name, value in state.items()}},
    "compiled": lambda state, other: {f"_orig_mod.{name}": value for name, value in state.items()},
    "both": lambda state, other: {f"module._orig_mod.{name}": value for name, value in state.items()},
    "compiled blocks": lambda state, other: {n.replace("attn.", "attn._orig_mod."): v for n, v in state.items()},
    "AveragedModel": lambda state, other: (
        {"n_averaged": torch.tensor(3)} | {f"module.{n}": v for n, v in state.items()}
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_found_in_the_forms_that_timm_and_others_write(begun, form):
    state, other = model(seed=1).state_dict(), model(seed=2).state_dict()
    made, said = begun(FORMS[form](state, other))
    assert equal(made, state)
    assert form not in ("state_dict", "model", "state_dict_ema", "model_ema") or said.endswith(f"weights.pt, {form}")


def test_a_key_may_be_asked_for(begun, train_kat):
    state, other = model(seed=1).state_dict(), model(seed=2).state_dict()
    contents = {"student": other, "state_dict": state, "state_dict_ema": other}
    made, said = begun(contents, key="state_dict")
    assert equal(made, state) and said.endswith("weights.pt, state_dict")
    assert equal(begun({"teacher": state, "student": other}, key="teacher")[0], state)
    with pytest.raises(
        train_kat.Refused, match="has no state dict nothing; it has student, state_dict, state_dict_ema"
    ):
        begun(contents, key="nothing")
    with pytest.raises(train_kat.Refused, match=r"has no state dict state_dict_ema or .*; it has teacher, student"):
        begun({"teacher": state, "student": other})


def test_safetensors_are_read_where_the_library_is_and_asked_for_where_not(weights, train_kat, tmp_path, monkeypatch):
    file = tmp_path / "model.safetensors"
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(train_kat.Refused, match="pip install safetensors"):
        weights.read(file)
    (tmp_path / "path" / "safetensors").mkdir(parents=True)
    (tmp_path / "path" / "safetensors" / "__init__.py").write_text("", encoding="utf-8")
    stand_in = "import torch\nload_file = lambda name: torch.load(name.open('rb'), weights_only=True)\n"
    (tmp_path / "path" / "safetensors" / "torch.py").write_text(stand_in, encoding="utf-8")
    monkeypatch.delitem(sys.modules, "safetensors")
    monkeypatch.delitem(sys.modules, "safetensors.torch", raising=False)
    monkeypatch.syspath_prepend(tmp_path / "path")
    torch.save(model(seed=1).state_dict(), file)
    assert weights.read(file).keys() == model().state_dict().keys()
    for name in ("safetensors", "safetensors.torch"):
        monkeypatch.delitem(sys.modules, name)


def test_a_kats_functions_load_by_their_published_names(begun):
    source = model("grkan", seed=1)
    with torch.no_grad():
        for name, table in source.named_parameters():
            if name.endswith("numerator"):
                table.copy_(table[:1].expand_as(table))
    made, said = begun({"state_dict_ema": published(source.state_dict())}, "grkan")
    assert equal(made, source.state_dict()) and "GELU" not in said


def test_a_vit_becomes_a_kat_that_computes_nearly_the_same(begun):
    source, images = model(seed=1).eval(), torch.randn(4, 1, 8, 8)
    made, said = begun(source.state_dict(), "grkan")
    assert "a ViT, so the second function of each MLP starts as GELU" in said
    with torch.no_grad():
        want, got = source(images), made.eval()(images)
    assert (got - want).norm() < 0.01 * want.norm()
    assert equal(source, made.state_dict() | {"none": None}) and made.blocks[0].mlp.act2.init == "gelu"


def test_positions_of_another_image_size_are_resized_and_the_class_tokens_is_kept(begun):
    """A plane is a plane at every size."""
    source = model(seed=1, image_size=16)
    grid = torch.arange(64.0).view(8, 8) / 10
    with torch.no_grad():
        source.pos_embed[0, 1:] = grid.flatten()[:, None]
    made, said = begun(source.state_dict())
    assert "positions 8 × 8 resized to 4 × 4" in said
    assert torch.equal(made.pos_embed[:, 0], source.pos_embed[:, 0])
    middle = made.pos_embed[0, 1:].view(4, 4, 16)[1:3, 1:3, 0]
    want = torch.nn.functional.avg_pool2d(grid[None], 2)[0, 1:3, 1:3]
    torch.testing.assert_close(middle, want, rtol=0, atol=0.05)
    same = {name: value for name, value in source.state_dict().items() if name != "pos_embed"}
    assert equal(made, same | {"pos_embed": made.pos_embed})
    larger, said = begun(made.state_dict(), changes={"image_size": 24})
    assert "positions 4 × 4 resized to 12 × 12" in said and larger.pos_embed.shape == (1, 145, 16)


def test_a_head_of_other_classes_is_left_out_and_said_so(begun, train_kat):
    source, fresh = model(seed=1, classes=7).state_dict(), model(seed=9).head.weight
    made, said = begun({"model": source})
    assert "its head of 7 other classes is left out" in said
    assert torch.equal(made.head.weight, fresh) and torch.equal(made.norm.weight, source["norm.weight"])
    letters = [*"abcdefghij"]
    same_size = {"model": model(seed=1).state_dict(), "classes": letters}
    assert "its head of 10 other classes is left out" in begun(same_size)[1]
    assert "its head" not in begun(same_size, names=letters)[1]
    headless = {name: value for name, value in source.items() if "head" not in name}
    assert "it has no head" in begun(headless)[1]
    for contents, why in (({"model": source}, "its head of 7 other"), (headless, "no head"), (same_size, "has a, b")):
        with pytest.raises(train_kat.Refused, match=f"cannot be tested on these 10 classes: .*{why}"):
            begun(contents, whole=True)


@pytest.mark.parametrize(
    ("change", "mlp", "said"),
    [
        (lambda state: published(model("grkan").state_dict()), "mlp", "act1.*--model kat takes its functions"),
        (lambda state: model(width=32).state_dict(), "mlp", r"cls_token: \[1, 1, 32\] instead of \[1, 1, 16\].*--size"),
        (lambda state: model(depth=3).state_dict(), "mlp", r"it has blocks\.2\..* and 9 more besides"),
        (lambda state: model(depth=1).state_dict(), "mlp", r"it lacks blocks\.1\..* and 9 more"),
        (lambda state: model(patch_size=4).state_dict(), "mlp", r"patch_embed\.proj\.weight: \[16, 1, 4, 4\] instead"),
        (lambda state: state | {"dist_token": torch.zeros(1, 1, 16)}, "mlp", "it has dist_token besides"),
        (lambda state: state | {"blocks.0.ls1.gamma": torch.zeros(16)}, "mlp", r"it has blocks\.0\.ls1\.gamma besides"),
        (lambda state: state | {"pos_embed": torch.zeros(1, 18, 16)}, "mlp", "has 18 positions, not those of a class"),
        (lambda state: {"conv1.weight": torch.zeros(1)}, "mlp", "holds 0 class tokens"),
        (lambda state: {**state, "teacher.cls_token": state["cls_token"]}, "mlp", "holds 2 class tokens"),
        (lambda state: [state], "mlp", "holds a list, not a state dict"),
        (lambda state: {"epoch": 3}, "mlp", "it has epoch"),
        (
            lambda state: {
                n: v[:4] if n.endswith("act2.denominator") else v for n, v in model("grkan").state_dict().items()
            },
            "grkan",
            "act2.denominator",
        ),
    ],
)
def test_another_model_is_refused_with_what_differs(begun, train_kat, tmp_path, change, mlp, said):
    with pytest.raises(train_kat.Refused, match=said) as refused:
        begun(change(model(seed=1).state_dict()), mlp)
    assert str(tmp_path / "weights.pt") in str(refused.value) and "\n" not in str(refused.value)


class Command:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_no_file_runs_anything_and_what_cannot_be_read_is_named(weights, train_kat, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "args": Command()}, "code.pt")
    torch.save(model().state_dict(), "half.pt")
    with open("half.pt", "r+b") as file:
        file.truncate(2000)
    for name, content in (
        ("page.pt", b"<html>404</html>"),
        ("empty.pt", b""),
        ("vit.npz", b"PK"),
        ("run.py", b"a = 1"),
    ):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder").mkdir()
    for name, said in (
        ("code.pt", ".*it asks for .*mkdir"),
        ("half.pt", "is no checkpoint that can be read"),
        ("page.pt", "is no checkpoint that can be read"),
        ("empty.pt", "is no checkpoint that can be read"),
        ("run.py", "is no checkpoint that can be read"),
        ("vit.npz", ".*timm as state dicts"),
        ("folder", "cannot be read: Is a directory"),
        ("gone.pt", "cannot be read: No such file"),
    ):
        with pytest.raises(train_kat.Refused, match=f"^{name} {said}"):
            weights.read(Path(name))
    assert not (tmp_path / "ran").exists()


def test_a_run_starts_from_weights_and_goes_on_when_they_are_gone(train_kat, tmp_path, capsys, losses):
    file, out = tmp_path / "vit.pt", tmp_path / "out"
    torch.save({"model": model(seed=1).state_dict(), "args": argparse.Namespace(mean=[0.25], std=None)}, file)
    assert train_kat.main([*COMMAND, "--init", str(file), "--eval"]) >= 0
    said = capsys.readouterr().out
    assert f"starts from {file}, model; a ViT" in said and "of 297 images" in said
    common = [*COMMAND, "--init", str(file), "--steps", "2", "--log-every", "1", "--out", str(out)]
    train_kat.main(common)
    first = torch.load(out / "checkpoint.pt", weights_only=True)
    assert first["asked"]["mean"] == [0.25] and first["asked"]["std"] == [0.25]
    assert (first["model"]["norm.weight"] - model(seed=1).norm.weight).abs().max() < 0.01
    file.unlink()
    assert train_kat.main(common) >= 0 and len(losses(out)) == 2


def test_a_folders_val_is_all_that_eval_needs(train_kat, on_pictures, pictures, capsys, refusal):
    train_kat.main([*on_pictures, "--steps", "1"])
    capsys.readouterr()
    for file in sorted((pictures / "train").rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    (pictures / "train").rmdir()
    train_kat.main([*on_pictures, "--eval", "--init", str(pictures / "out" / "best.pt")])
    assert "best.pt, model\ntop-1 " in capsys.readouterr().out
    (pictures / "val" / "red").rename(pictures / "val" / "rot")
    assert "only the data has rot" in refusal(*on_pictures, "--eval")
