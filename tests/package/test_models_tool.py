import copy
import json
import sys
import types

import pytest
import torch
from torch.nn import functional

from flashkat_lite import hardware, records
from flashkat_lite.vit import SIZES, VisionTransformer
from tools.measure import models

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="what happens without a GPU")
pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = {"image_size": 16, "patch_size": 8, "classes": 10, "width": 16, "depth": 1, "heads": 2}
VALUES = {
    "parameters": 5,
    "low": 9.0,
    "high": 11.0,
    "repeats": 6,
    "images_per_second": 25600.0,
    "peak_bytes": 2 * 10**9,
    "graphs": 0,
    "graph_breaks": 0,
    "gpu_ms": 8.0,
    "kernels": [],
}


def build(mlp):
    torch.manual_seed(0)
    return VisionTransformer(**SMALL, mlp=mlp)


def batch():
    return models.synthetic(4, 16, 10, "cpu")


@without_gpu
def test_without_a_gpu_it_says_so_in_one_line_and_fails(capsys):
    assert models.main(["--quick"]) == 2
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "needs a CUDA device" in out and "doctor" in out


def test_the_batch_is_the_same_each_time_and_labels_are_classes():
    images, labels = batch()
    assert images.shape == (4, 3, 16, 16) and images.dtype == torch.float32
    again, _ = batch()
    assert torch.equal(images, again) and images.std() > 0.5
    _, many = models.synthetic(1000, 1, 10, "cpu")
    assert labels.dtype == torch.int64 and set(many.tolist()) == set(range(10))


@pytest.mark.parametrize("mlp", ["mlp", "grkan"])
def test_a_step_is_forward_backward_and_adamw_under_autocast(mlp):
    images, labels = batch()
    model = build(mlp)
    expected = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(expected.parameters(), lr=1e-4)
    training = models.Training(model, images, labels)
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            loss = functional.cross_entropy(expected(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        torch.testing.assert_close(training(), loss.detach())
    start = build(mlp)
    for found, wanted, before in zip(model.parameters(), expected.parameters(), start.parameters()):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
        assert found.grad is None and not torch.equal(found, before)


def test_a_training_moves_with_its_optimizers_state():
    training = models.Training(build("grkan"), *batch())
    training()
    training.to("meta")
    state = [value for values in training.optimizer.state.values() for value in values.values()]
    assert len(state) == 3 * len(list(training.model.parameters()))
    assert {t.device.type for t in [*state, *training.model.parameters()]} == {"meta"}


def test_a_loss_that_is_not_finite_stops_the_measurement():
    images, labels = batch()
    with pytest.raises(FloatingPointError, match="nan"):
        models.warm_up(models.Training(build("mlp"), images * torch.nan, labels))


def test_models_train_in_turns_and_each_gets_its_own_figures(monkeypatch):
    calls, real = [], models.Training.__call__
    images, labels = batch()

    def step(self):
        calls.append(self.model)
        return real(self)

    monkeypatch.setattr(models.Training, "__call__", step)
    built = {"vit": build("mlp"), "kat": build("grkan")}
    found = models.measure({k: lambda m=m: m for k, m in built.items()}, images, labels, steps=2, rounds=3)
    names = ["vit" if model is built["vit"] else "kat" for model in calls]
    each = 2 if torch.cuda.is_available() else 1  # on a GPU an untimed turn comes before each timed one
    turns = ["vit"] * 2 * each + ["kat"] * 2 * each
    assert names[-3 * len(turns) :] == turns * 3
    for name, values in found.items():
        assert values["repeats"] == 3 and values["low"] <= values["ms"] <= values["high"]
        assert values["images_per_second"] == pytest.approx(4 / values["ms"] * 1e3)
        assert values["parameters"] == sum(p.numel() for p in built[name].parameters())
    assert found["kat"]["parameters"] == found["vit"]["parameters"] + 160


def test_the_time_is_that_of_one_step(monkeypatch):
    clock = iter(range(10**6))
    monkeypatch.setattr(models.Training, "__call__", lambda self: next(clock) and torch.ones(()))
    timing = hardware.Timing(30.0, 20.0, 50.0, 7)
    monkeypatch.setattr(hardware, "time_interleaved", lambda functions, **_: {name: timing for name in functions})
    found = models.measure({"vit": lambda: build("mlp")}, *batch(), steps=5)["vit"]
    assert (found["ms"], found["low"], found["high"], found["repeats"]) == (6.0, 4.0, 10.0, 7)
    assert found["images_per_second"] == pytest.approx(4 / 6e-3)


@without_gpu
def test_without_a_gpu_there_is_no_peak_and_no_profile():
    nothing = lambda: pytest.fail("nothing to measure")  # noqa: E731
    assert models.peak_bytes(nothing) is None
    assert models.gpu_work(nothing) == {"gpu_ms": None, "kernels": None}


@pytest.mark.gpu
def test_kernels_of_a_step_are_counted_and_timed():
    x = torch.randn(4096, 4096, device="cuda")
    work = models.gpu_work(lambda: (x @ x, x.relu(), x.relu()), steps=3)
    assert sorted(kernel["launches"] for kernel in work["kernels"]) == [1, 2]
    assert work["gpu_ms"] == pytest.approx(sum(kernel["ms"] for kernel in work["kernels"]))


def test_a_model_compiles_to_one_graph():
    models.torch.compiler.reset()
    before = models._dynamo_counts()
    training = models.Training(build("grkan"), *batch())
    training.forward = torch.compile(training.model, backend="aot_eager")
    training()
    after = models._dynamo_counts()
    assert {name: after[name] - before[name] for name in after} == {"graphs": 1, "graph_breaks": 0}


def test_each_peak_is_taken_with_the_other_models_off_the_gpu(monkeypatch):
    trainings, moves = [], []
    real = models.Training.__init__

    def start(self, *arguments):
        real(self, *arguments)
        self.where = "gpu"
        trainings.append(self)

    def move(self, device):
        self.where = "gpu" if device == batch()[0].device else "off"
        moves.append(device)

    def peak(step):
        assert [t.where for t in trainings] == ["off"] * (len(trainings) - 1) + ["gpu"]
        return 100 * len(trainings)

    def timed(functions, **_):
        assert [t.where for t in trainings] == ["gpu"] * 3
        return {name: hardware.Timing(1.0, 1.0, 1.0, 1) for name in functions}

    for name, stand_in in {"__init__": start, "to": move}.items():
        monkeypatch.setattr(models.Training, name, stand_in)
    monkeypatch.setattr(models, "peak_bytes", peak)
    monkeypatch.setattr(hardware, "time_interleaved", timed)
    # "cpu" stands for the GPU here: a device object is where the batch is, a string is where models wait.
    found = models.measure({name: lambda: build("mlp") for name in "abc"}, *batch(), steps=1)
    assert [found[name]["peak_bytes"] for name in "abc"] == [100, 200, 300]


def test_a_model_that_is_too_large_is_left_out_and_named(capsys):
    def too_large():
        raise torch.OutOfMemoryError("no")

    found = models.measure({"vit": too_large, "kat": lambda: build("grkan")}, *batch(), steps=1, rounds=1)
    assert list(found) == ["kat"] and "vit left out" in capsys.readouterr().out
    assert models.measure({"vit": too_large}, *batch(), steps=1, rounds=1) == {}


def test_compiled_training_goes_through_torch_compile(monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "compile", lambda model, **options: seen.append(options) or model)
    models.measure({"kat": lambda: build("grkan")}, *batch(), mode="compiled", steps=1, rounds=1)
    assert seen == [{"dynamic": False}]
    models.measure({"kat": lambda: build("grkan")}, *batch(), mode="graphs", steps=1, rounds=1)
    assert seen[1:] == [{"dynamic": False, "mode": "reduce-overhead"}]
    models.measure({"kat": lambda: build("grkan")}, *batch(), steps=1, rounds=1)
    assert len(seen) == 2


def test_the_variants_are_vit_and_kat_with_two_backwards_at_each_size(monkeypatch):
    monkeypatch.setattr(models, "VisionTransformer", lambda **options: options)
    monkeypatch.setattr(models, "of_timm", lambda *asked: asked)
    kat = {"mlp": "grkan", "backward": "stationary", "norm": "torch"}
    for size in SIZES:
        built = {name: make() for name, make in models.builders(size, list(models.VARIANTS)).items()}
        assert built == {
            "vit": {**SIZES[size], "mlp": "mlp"},
            "vit-norm": {**SIZES[size], "mlp": "mlp", "norm": "ours"},
            "kat": {**SIZES[size], **kat},
            "kat-norm": {**SIZES[size], **kat, "norm": "fused"},
            "kat-ours": {**SIZES[size], **kat, "norm": "ours"},
            "kat-block": {**SIZES[size], **kat, "backward": "block"},
            "timm-vit": (size, "mlp"),
            "timm-kat-norm": (size, "grkan"),
        }
    compiled = ("vit", "vit-norm", "kat", "kat-norm", "kat-ours")
    assert {"eager": tuple(models.VARIANTS), "compiled": compiled, "graphs": compiled} == models.MODES


def test_timms_blocks_get_one_layer_for_their_mlp_and_its_norm(monkeypatch):
    def block():
        mlp = types.SimpleNamespace(fc1=torch.nn.Linear(16, 64))
        return types.SimpleNamespace(norm2=torch.nn.LayerNorm(16, eps=1e-5), mlp=mlp)

    def create(name):
        return types.SimpleNamespace(name=name, embed_dim=16, blocks=[block(), block()])

    monkeypatch.setitem(sys.modules, "timm", types.SimpleNamespace(create_model=create))
    model = models.of_timm("small", "grkan")
    assert model.name == "vit_small_patch16_224"
    for part in model.blocks:
        assert isinstance(part.norm2, torch.nn.Identity)
        assert part.mlp.prenorm.eps == 1e-5 and part.mlp.fc1.out_features == 64
        assert part.mlp(torch.randn(2, 3, 16)).shape == (2, 3, 16)
    untouched = models.of_timm("tiny", "mlp")
    assert isinstance(untouched.blocks[0].norm2, torch.nn.LayerNorm)


def test_lines_hold_the_speed_relative_to_vit_in_the_same_turns(capsys):
    rows = models.lines("tiny", "eager", {"vit": {"ms": 9.0, **VALUES}, "kat": {"ms": 10.0, **VALUES}})
    assert [row["fraction_of_vit"] for row in rows] == [1.0, 0.9]
    assert rows[0] | VALUES == rows[0] and rows[0]["backward"] is None and rows[1]["backward"] == "stationary"
    printed = capsys.readouterr().out.splitlines()
    assert "25600 images/s" in printed[1] and "2.00 GB" in printed[1] and "0.900 of ViT" in printed[1]
    [alone] = models.lines("base", "compiled", {"kat": {"ms": 10.0, **VALUES, "peak_bytes": None}})
    assert alone["fraction_of_vit"] is None and alone["mode"] == "compiled" and "GB" not in capsys.readouterr().out


# The record

EAGER = ["vit", "vit-norm", "kat", "kat-norm", "kat-ours", "kat-block"]


@pytest.fixture
def on_a_gpu(monkeypatch, tmp_path, h200):
    """main() as on an H200 whose measurements are made up; `on_a_gpu.asked` lists them, `.ms` is the next figure."""
    made = types.SimpleNamespace(asked=[], ms=10.0, date="2026-01-01", verified=[])

    def measure(built, images, labels, *, mode, steps, rounds):
        made.asked.append((mode, list(built), rounds))
        return {name: {"ms": made.ms, **VALUES} for name in built}

    def provenance(count):
        device = {"name": "NVIDIA H200", "slug": "h200", "driver": "1", "count": count}
        return {"device": device, "versions": {"torch": "2.11", "triton": "3.6"}, "date": made.date}

    monkeypatch.setattr(models, "measure", measure)
    monkeypatch.setattr(models, "synthetic", lambda *_: (None, None))
    monkeypatch.setattr(models, "random_inputs", lambda *_, **__: ())
    monkeypatch.setattr(models, "check_kernels", made.verified.append)
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    monkeypatch.setattr(records, "REPOSITORY", tmp_path)
    (tmp_path / "book").mkdir()
    monkeypatch.setattr(hardware, "provenance", provenance)
    made.path = tmp_path / "_build" / "records" / "h200" / "models.json"
    made.read = lambda: json.loads(made.path.read_text(encoding="utf-8"))
    return made


def test_a_whole_run_makes_a_good_record_of_every_size_mode_and_variant(on_a_gpu):
    assert models.main([]) == 0
    found = on_a_gpu.read()
    assert records.problems(found, on_a_gpu.path) == []
    assert found["command"] == "python book/tools models" and found["data"]["batch"] == 256
    rows = [(row["size"], row["mode"], row["variant"]) for row in found["data"]["results"]]
    assert len(rows) == len(set(rows)) == 3 * (6 + 5 + 5)
    assert [mode for mode, *_ in on_a_gpu.asked] == ["eager"] * 3 + ["compiled"] * 3 + ["graphs"] * 3, (
        "what compiles comes last"
    )
    assert on_a_gpu.verified == [["stationary", "block"]]
    assert list(on_a_gpu.path.parent.iterdir()) == [on_a_gpu.path]


def test_runs_that_split_the_work_add_up_and_a_new_one_replaces_what_it_measured(on_a_gpu):
    models.main(["--sizes", "tiny", "small"])
    models.main(["--sizes", "base", "--out", str(on_a_gpu.path)])
    split = on_a_gpu.read()
    assert split["command"] == "python book/tools models --sizes tiny small && python book/tools models --sizes base"
    on_a_gpu.ms = 20.0
    models.main(["--sizes", "small", "--modes", "eager"])
    data = on_a_gpu.read()["data"]["results"]
    assert len(data) == 48
    for row in data:
        assert row["ms"] == (20.0 if row["size"] == "small" and row["mode"] == "eager" else 10.0)
    models.main([])
    assert len(on_a_gpu.read()["data"]["results"]) == 48
    assert on_a_gpu.read()["command"] == "python book/tools models", "it replaced all that the others measured"


@pytest.mark.parametrize("change", ["date", "batch"])
def test_runs_of_another_day_or_batch_do_not_mix(on_a_gpu, change):
    models.main(["--sizes", "tiny"])
    on_a_gpu.date = "2026-01-02" if change == "date" else on_a_gpu.date
    models.main(["--sizes", "base"] + ["--batch", "64"] * (change == "batch"))
    assert {row["size"] for row in on_a_gpu.read()["data"]["results"]} == {"base"}
    assert "tiny" not in on_a_gpu.read()["command"]


def test_a_run_that_is_killed_keeps_what_it_has(on_a_gpu, monkeypatch):
    real = models.measure

    def killed(*arguments, **options):
        if len(on_a_gpu.asked) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(models, "measure", killed)
    with pytest.raises(KeyboardInterrupt):
        models.main([])
    found = on_a_gpu.read()
    assert records.problems(found, on_a_gpu.path) == []
    assert [row["size"] for row in found["data"]["results"]] == ["tiny"] * 6 + ["small"] * 6


def test_quick_is_tiny_and_eager_and_writes_only_where_told(on_a_gpu, tmp_path):
    models.main(["--quick"])
    assert [(mode, names) for mode, names, _ in on_a_gpu.asked] == [("eager", EAGER)]
    assert on_a_gpu.asked[0][2] < models.ROUNDS and not on_a_gpu.path.exists()
    out = tmp_path / "elsewhere" / "models.json"
    models.main(["--quick", "--out", str(out)])
    assert json.loads(out.read_text(encoding="utf-8"))["command"] == "python book/tools models --quick"


@pytest.mark.parametrize("arguments", [["--sizes", "huge"], ["--modes", "fast"], ["--variants", "swin"]])
def test_unknown_choices_are_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        models.parse(arguments)
    assert "invalid choice" in capsys.readouterr().err


@pytest.mark.gpu
def test_on_a_gpu_peaks_are_those_of_a_model_alone():
    """In company or not, and the more, the larger the batch."""
    images, labels = models.synthetic(64, 224, 1000, "cuda")
    built = models.builders("tiny", ["vit", "kat"])
    both = models.measure(built, images, labels, steps=1, rounds=1)
    alone = models.measure({"kat": built["kat"]}, images, labels, steps=1, rounds=1)
    half = models.measure({"kat": built["kat"]}, images[:32], labels[:32], steps=1, rounds=1)
    assert both["kat"]["peak_bytes"] == pytest.approx(alone["kat"]["peak_bytes"], rel=0.02)
    assert half["kat"]["peak_bytes"] < 0.7 * alone["kat"]["peak_bytes"]
