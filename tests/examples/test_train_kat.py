"""examples/train_kat.py: one process or two, killed or not, the losses are the same; what cannot be is refused."""

import csv
import importlib.util
import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.usefixtures("one_thread")

MODEL = ["--cpu", "--width", "8", "--depth", "2", "--heads", "2", "--batch", "64", "--log-every", "1"]


@pytest.fixture(scope="module")
def script(root):
    return root / "examples" / "train_kat.py"


@pytest.fixture(scope="module")
def train_kat(script):
    spec = importlib.util.spec_from_file_location("train_kat", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def refusal(train_kat, capsys):
    """What the command says before it ends."""

    def ask(*arguments):
        with pytest.raises(SystemExit) as ended:
            train_kat.main([*arguments, "--cpu"])
        assert ended.value.code == 2
        return capsys.readouterr().err

    return ask


@pytest.fixture
def start(script, root):
    """The command in a process of its own."""

    def begin(*arguments, processes=1):
        many = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
        environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *many, str(script), *arguments]
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8"
        )

    return begin


def rows(folder):
    with (folder / "log.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def losses(folder):
    return {int(row["step"]): float(row["loss"]) for row in rows(folder) if row["loss"]}


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_two_processes_or_parts_of_a_batch_have_the_losses_of_one(train_kat, start, tmp_path):
    common = ["digits", *MODEL, "--steps", "5", "--lr", "1e-2"]
    two = start(*common, "--out", str(tmp_path / "two"), processes=2)
    for name, parts in (("one", "1"), ("parts", "4")):
        train_kat.main([*common, "--out", str(tmp_path / name), "--accumulate", parts])
    assert two.wait(timeout=120) == 0, two.stdout.read()
    one = losses(tmp_path / "one")
    assert list(one) == [1, 2, 3, 4, 5] and len(set(one.values())) == 5
    for other in ("two", "parts"):
        assert losses(tmp_path / other) == pytest.approx(one, rel=1e-5)
        accuracies = [rows(tmp_path / name)[-1]["accuracy"] for name in ("one", other)]
        assert accuracies[0] == accuracies[1]


def test_a_run_that_was_stopped_and_killed_has_the_very_losses_of_one_that_was_not(train_kat, start, tmp_path):
    common = ["digits", *MODEL, "--steps", "120", "--save-every", "7", "--drop-path", "0.3"]
    train_kat.main([*common, "--out", str(tmp_path / "whole")])

    broken, log = tmp_path / "broken", tmp_path / "broken" / "log.csv"
    stopped = start(*common, "--out", str(broken))
    wait_for(lambda: log.exists() and len(rows(broken)) > 10)
    stopped.send_signal(signal.SIGTERM)
    said = stopped.communicate(timeout=60)[0]
    assert stopped.returncode == 0 and "stopped; the same command goes on from here" in said
    reached = len(losses(broken))
    assert 10 < reached < 120

    killed = start(*common, "--out", str(broken))
    wait_for(lambda: len(losses(broken)) > reached + 10)
    killed.kill()
    killed.wait()
    assert len(losses(broken)) < 120
    train_kat.main([*common, "--out", str(broken)])
    assert losses(broken) == losses(tmp_path / "whole")
    assert [row["accuracy"] for row in rows(broken)] == [row["accuracy"] for row in rows(tmp_path / "whole")]
    states = [torch.load(tmp_path / run / "checkpoint.pt", weights_only=True)["model"] for run in ("broken", "whole")]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize("model", ["kat", "vit"])
def test_it_learns(train_kat, tmp_path, model):
    options = ["--model", model, "--width", "32", "--depth", "1", "--heads", "2", "--batch", "50", "--lr", "1e-2"]
    accuracy = train_kat.main(["digits", "--cpu", *options, "--epochs", "5", "--out", str(tmp_path)])
    assert accuracy > 0.3  # three times chance


def cifar_files():
    """Names of CIFAR-10's files, with pixels [4, 3072] and labels for each."""
    generator = np.random.default_rng(0)
    pixels, labels = generator.integers(256, size=(6, 4, 3072), dtype=np.uint8), generator.integers(10, size=(6, 4))
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for name, some, which in zip(names, pixels, labels):
        yield name, some, which.tolist()


@pytest.mark.parametrize("kind", ["bin", "py"])
def test_cifar10s_own_files(train_kat, tmp_path, kind):
    folder = tmp_path / f"cifar-10-batches-{kind}"
    folder.mkdir()
    batches = list(cifar_files())
    for name, pixels, labels in batches:
        if kind == "py":
            (folder / name).write_bytes(pickle.dumps({b"data": pixels, b"labels": labels}))
        else:
            records = np.concatenate([np.array(labels, dtype=np.uint8)[:, None], pixels], axis=1)
            (folder / f"{name}.bin").write_bytes(records.tobytes())
    train, valid = train_kat.cifar10(tmp_path)
    assert train.images.shape == (20, 3, 32, 32) and valid.images.shape == (4, 3, 32, 32)
    _, pixels, labels = batches[1]
    assert np.array_equal(train.images[4:8].reshape(4, 3072).numpy(), pixels) and train.labels[4:8].tolist() == labels
    small = ["--cpu", "--width", "16", "--depth", "1", "--heads", "2", "--batch", "10", "--steps", "2"]
    train_kat.main(["cifar10", "--path", str(tmp_path), *small, "--out", str(tmp_path / "out")])
    assert len(losses(tmp_path / "out")) == 1 and rows(tmp_path / "out")[-1]["accuracy"]


class Command:
    def __reduce__(self):
        return os.system, ("false",)


def test_a_pickle_that_runs_something_is_refused(train_kat, tmp_path, refusal):
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(Command()))
    assert "which CIFAR-10's own files do not" in refusal("cifar10", "--path", str(tmp_path))


@pytest.fixture
def pictures(tmp_path):
    """train/ and val/ of two classes: red pictures of 40 × 30, and blue ones."""
    from PIL import Image

    for part in ("train", "val"):
        for name, colour in (("blue", (0, 0, 255)), ("red", (255, 0, 0))):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (40, 30), colour).save(tmp_path / part / name / f"{i}.png")
            (tmp_path / part / name / "notes.txt").write_text("no picture", encoding="utf-8")
    return tmp_path


def test_a_folder_of_pictures(train_kat, pictures):
    small = ["--image-size", "16", "--patch-size", "8", "--width", "16", "--depth", "1", "--heads", "2", "--batch", "4"]
    options = ["--cpu", *small, "--steps", "16", "--lr", "3e-2", "--workers", "0", "--out", str(pictures / "out")]
    assert train_kat.main(["folder", "--path", str(pictures), *options]) == 1.0


def test_a_crop_is_the_part_of_the_picture_that_its_random_numbers_say(train_kat, tmp_path):
    from PIL import Image

    (tmp_path / "a").mkdir()
    ramp = np.broadcast_to(np.arange(0, 240, 4, dtype=np.uint8)[None, :, None], (60, 60, 3))  # brighter to the right
    Image.fromarray(np.ascontiguousarray(ramp)).save(tmp_path / "a" / "ramp.png")
    data = train_kat.Folder(tmp_path, 30)
    middle, label = data[0][0].int(), data[0][1]
    assert middle.shape == (3, 30, 30) and label == 0
    assert middle[0, 0].diff().ge(0).all() and middle[0, 0, 0] > 10  # an eighth is cut off
    quarter = (0.25 - 0.08) / 0.92  # a crop of a quarter of the area, at the right edge
    data.draws = torch.tensor([[quarter, 0.5, 1.0, 0.0, 0.9]])
    assert abs(data[0][0][0, 0].float().mean().item() - 4 * 44.5) < 2
    data.draws[0, 4] = 0.1
    assert data[0][0][0, 0].int().diff().le(0).all(), "mirrored"


def test_images_in_memory_are_shifted_and_mirrored(train_kat):
    images = torch.arange(2 * 16, dtype=torch.uint8).view(2, 1, 4, 4)
    data = train_kat.InMemory(images, torch.tensor([3, 5]), 10, pad=1, mirror=True)
    assert torch.equal(data.batch([1])[0], images[1:])
    # Of 3 × 3 places the middle one, and the one furthest down and right, which shows the lower right part.
    data.draws = torch.tensor([[0.5, 0.5, 0.9, 0, 0], [0.9, 0.9, 0.9, 0, 0]])
    got, labels = data.batch([0, 1])
    assert labels.tolist() == [3, 5] and torch.equal(got[0], images[0])
    assert torch.equal(got[1, 0, :3, :3], images[1, 0, 1:, 1:])
    assert got[1, 0, 3].sum() == 0 == got[1, 0, :, 3].sum()
    data.draws[:, 2] = 0.1
    assert torch.equal(data.batch([0])[0], images[:1].flip(3))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["cifar10"], "cifar10 needs --path"),
        (["cifar10", "--path", "nowhere"], "nowhere holds no data_batch_1.bin or data_batch_1"),
        (["folder", "--path", "nowhere"], "holds no images: CLASS/FILE was expected"),
        (["digits", "--batch", "10", "--accumulate", "4"], "--batch 10 does not divide by 1 process(es) times"),
        (["digits", "--batch", "2000"], "--batch 2000 is more than the 1500 training images"),
        (["digits", "--width", "50"], "width 50, 4 heads"),
        (["digits", "--patch-size", "3"], "image_size must be a positive multiple of patch_size: 8 and 3"),
        (["digits", "--image-size", "16"], "--image-size is 8 for digits"),
        (["digits", "--epochs", "0"], "must be a positive whole number, not 0"),
        (["digits", "--lr", "1e20", "--epochs", "2", "--log-every", "1", "--warmup", "0"], "a smaller --lr"),
    ],
)
def test_what_is_refused_and_why(refusal, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert said in refusal(*arguments)


def test_a_checkpoint_of_another_run_is_refused(train_kat, refusal, tmp_path):
    common = ["digits", *MODEL, "--out", str(tmp_path)]
    train_kat.main([*common, "--steps", "2"])
    said = refusal(*common, "--steps", "3", "--seed", "4")
    assert "belongs to a run with --seed 0, --steps 2: ask for that, or for another --out" in said.replace(
        "--steps 2, --seed 0", "--seed 0, --steps 2"
    )


def test_a_finished_run_does_nothing_more(train_kat, tmp_path):
    common = ["digits", *MODEL, "--steps", "2", "--out", str(tmp_path)]
    first = train_kat.main(common)
    before = (tmp_path / "log.csv").read_text(encoding="utf-8")
    assert train_kat.main(common) == first
    assert (tmp_path / "log.csv").read_text(encoding="utf-8") == before
