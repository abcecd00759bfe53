"""The training script's images: what is augmented and how, what is no data, and what cannot be read."""

import array
import os
import pickle
import random
import sys
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def data(train_kat):
    return train_kat.data


def test_a_folder_of_pictures(train_kat, on_pictures):
    assert train_kat.main([*on_pictures, "--steps", "16", "--lr", "3e-2"]) == 1.0


def test_a_crop_is_the_part_of_the_picture_that_its_random_numbers_say(data, tmp_path):
    from PIL import Image

    (tmp_path / "a").mkdir()
    ramp = np.broadcast_to(np.arange(0, 240, 4, dtype=np.uint8)[None, :, None], (60, 60, 3))  # brighter to the right
    Image.fromarray(np.ascontiguousarray(ramp)).save(tmp_path / "a" / "ramp.png")
    images = data.Folder(tmp_path, 30)
    middle, label, unread = images[0][0].int(), *images[0][1:]
    assert middle.shape == (3, 30, 30) and label == 0 and unread == []
    assert middle[0, 0].diff().ge(0).all() and middle[0, 0, 0] > 10  # an eighth is cut off
    assert data.Folder(tmp_path, 30, crop=1.0)[0][0][0, 0, 0] < 4
    quarter = (0.25 - 0.08) / 0.92  # a crop of a quarter of the area, at the right edge
    images.draws = torch.tensor([[quarter, 0.5, 1.0, 0.0, 0.9]])
    assert abs(images[0][0][0, 0].float().mean().item() - 4 * 44.5) < 2
    images.draws[0, 4] = 0.1
    assert images[0][0][0, 0].int().diff().le(0).all(), "mirrored"


def test_images_in_memory_are_shifted_and_mirrored(data):
    pixels = torch.arange(2 * 16, dtype=torch.uint8).view(2, 1, 4, 4)
    images = data.InMemory(pixels, torch.tensor([3, 5]), 10, pad=1, mirror=True)
    assert torch.equal(images.batch([1])[0], pixels[1:])
    # Of 3 × 3 places the middle one, and the one furthest down and right, which shows the lower right part.
    images.draws = torch.tensor([[0.5, 0.5, 0.9, 0, 0], [0.9, 0.9, 0.9, 0, 0]])
    got, labels, _ = images.batch([0, 1])
    assert labels.tolist() == [3, 5] and torch.equal(got[0], pixels[0])
    assert torch.equal(got[1, 0, :3, :3], pixels[1, 0, 1:, 1:])
    assert got[1, 0, 3].sum() == 0 == got[1, 0, :, 3].sum()
    images.draws[:, 2] = 0.1
    assert torch.equal(images.batch([0])[0], pixels[:1].flip(3))


def test_pixels_have_imagenets_mean_and_deviation_unless_a_checkpoint_or_a_user_says_others(
    train_kat, on_pictures, tmp_path
):
    def settled(*more):
        options = train_kat.parser().parse_args([*on_pictures, *more])
        saved, start = train_kat.settle(options)
        return options, saved or start

    options, _ = settled()
    white = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    pixel = train_kat.Trial(options, None).normalised(white)[0, :, 0, 0]
    assert torch.allclose(pixel, torch.tensor([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]))
    own = ["--mean", "0.5", "--std", "0.5", "0.25", "0.125"]
    train_kat.main([*on_pictures, "--steps", "1", *own])
    checkpoint = tmp_path / "out" / "checkpoint.pt"
    for more in ([], ["--eval"], ["--out", str(tmp_path / "new"), "--init", str(checkpoint)]):
        options, found = settled(*more)
        assert found["asked"]["std"] == options.std == [0.5, 0.25, 0.125] and options.mean == [0.5] * 3
    assert settled("--eval", "--std", "1")[0].std == [1.0] * 3
    digits = train_kat.parser().parse_args(["digits", "--out", str(tmp_path / "new")])
    train_kat.settle(digits)
    assert (digits.mean, digits.std) == ([0.5], [0.25])


# What is no data


def test_hidden_names_empty_folders_and_other_files_are_neither_classes_nor_images(train_kat, on_pictures, pictures):
    for part in ("train", "val"):
        for folder in (".ipynb_checkpoints", "@eaDir", "lost+found", "red/.ipynb_checkpoints"):
            (pictures / part / folder).mkdir()
        (pictures / part / ".ipynb_checkpoints" / "0.png").write_bytes(b"")
        (pictures / part / "red" / ".ipynb_checkpoints" / "0-checkpoint.png").write_bytes(b"")
        for name in ("._0.png", ".png", "Thumbs.db"):
            (pictures / part / "red" / name).write_bytes(b"left by a system")
        (pictures / part / "red" / "folder.png").mkdir()
        (pictures / part / ".DS_Store").write_bytes(b"")
    images = train_kat.data.Folder(pictures / "train", 16)
    assert images.names == ["blue", "red"] and len(images) == 8
    assert [os.path.basename(images.path(i)) for i in range(8)] == 2 * [f"{i}.png" for i in range(4)]
    assert [images.label(i) for i in range(8)] == [0] * 4 + [1] * 4
    train_kat.main([*on_pictures, "--steps", "1", "--unreadable", "0"])


def test_the_classes_in_which_train_and_val_differ_are_named_with_whole_paths(refusal, on_pictures, pictures):
    (pictures / "val" / "red").rename(pictures / "val" / "rot")
    (pictures / "train" / "green").mkdir()  # without images
    said = refusal(*on_pictures)
    train, val = pictures / "train", pictures / "val"
    assert f"{train} and {val} hold different classes: only {train} has red; only {val} has rot" in said
    for i in range(7):
        (pictures / "val" / f"more{i}").mkdir()
        (pictures / "val" / f"more{i}" / "0.png").write_bytes(b"")
    assert f"only {val} has more0, more1, more2, more3, more4 and 3 more" in refusal(*on_pictures)


def test_a_folder_that_may_not_be_read_is_named(train_kat, refusal, on_pictures, pictures, monkeypatch):
    def scandir(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(train_kat.data.os, "scandir", scandir)
    assert f"{pictures / 'val'} cannot be read: Permission denied" in refusal(*on_pictures)


def test_names_that_are_no_text_are_found(train_kat, pictures):
    red = os.fsencode(pictures / "train" / "red")
    os.rename(red + b"/0.png", red + b"/\xdc0.PNG")
    assert "\udcdc0.PNG" in {os.path.basename(train_kat.data.Folder(pictures / "train", 8).path(i)) for i in range(8)}


def test_a_million_names_take_less_than_a_hundred_megabytes(train_kat, monkeypatch, tmp_path):
    """A hundredth of ImageNet: below 60 bytes a file, where a Path takes 400."""
    classes, files = 10, 1281
    entry = SimpleNamespace(is_dir=lambda: True)

    def visible(folder):
        names = [f"n{i:08}" for i in range(classes)] if folder == tmp_path else [f"{i:019}.JPEG" for i in range(files)]
        return [SimpleNamespace(name=name, is_dir=lambda: folder == tmp_path) for name in names]

    monkeypatch.setattr(train_kat.data, "visible", visible)
    tracemalloc.start()
    images = train_kat.data.Folder(tmp_path, 8)
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(images) == classes * files and images.label(files) == 1
    assert images.path(files - 1) == str(tmp_path / "n00000000" / f"{files - 1:019}.JPEG")
    assert kept / len(images) < 60
    assert entry.is_dir() and isinstance(images.cuts, array.array)


# What cannot be read


@pytest.fixture
def broken(pictures):
    """Two of train's eight pictures, and one of val's: cut off, of another kind, and a link to nothing."""
    whole = (pictures / "train" / "red" / "0.png").read_bytes()
    (pictures / "train" / "red" / "0.png").write_bytes(whole[: len(whole) // 2])
    (pictures / "train" / "red" / "1.png").write_text("<html>404</html>", encoding="utf-8")
    (pictures / "val" / "blue" / "2.png").unlink()
    (pictures / "val" / "blue" / "2.png").symlink_to("gone.png")
    return [pictures / "train" / "red" / "0.png", pictures / "train" / "red" / "1.png", pictures / "val/blue/2.png"]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_files_that_cannot_be_read_are_named_counted_and_left_out(train_kat, on_pictures, broken, capsys, workers):
    accuracy = train_kat.main([*on_pictures, "--steps", "16", "--lr", "3e-2", "--workers", workers])
    assert accuracy == 1.0  # the picture of val that is none does not count
    said = capsys.readouterr().out
    for file in broken:
        assert said.count(f"left out, since it cannot be read: {file} (") == 1
    assert "3 file(s) not read" in said and "No such file" in said
    train_kat.main([*on_pictures, "--eval"])
    assert "of 8 images, 1 of which cannot be read" in capsys.readouterr().out


def test_past_a_limit_files_that_cannot_be_read_end_the_run_without_a_checkpoint(
    train_kat, refusal, on_pictures, broken, pictures
):
    said = refusal(*on_pictures, "--steps", "16", "--unreadable", "1")
    assert "2 files cannot be read, more than --unreadable 1 allows, among them " in said
    assert str(broken[0]) in said or str(broken[1]) in said
    saved = pictures / "out" / "checkpoint.pt"
    assert not saved.exists() or torch.load(saved, weights_only=True)["step"] < 16
    for file in (pictures / "train").glob("*/*.png"):
        file.write_bytes(b"")
    said = refusal(*on_pictures, "--out", pictures / "new", "--unreadable", "1000")
    assert "100 files, one after another, cannot be read; the last is" in said


def test_what_any_process_could_not_read_counts_and_is_named_once(train_kat, on_pictures, monkeypatch, capsys):
    options = train_kat.parser().parse_args([*on_pictures, "--unreadable", "2"])
    train_kat.settle(options)
    trial = train_kat.Trial(options, None)
    theirs = {"b.png": "cut off"}
    monkeypatch.setattr(trial, "everyones", lambda mine: [mine, theirs])
    trial.unread = {"a.png": "empty", "b.png": "cut off"}
    trial.tell_unread()
    trial.tell_unread()
    said = capsys.readouterr().out.splitlines()
    assert said == [f"left out, since it cannot be read: {file}" for file in ("a.png (empty)", "b.png (cut off)")]
    theirs["c.png"] = "gone"
    with pytest.raises(train_kat.Refused, match=r"^3 files cannot be read, more than --unreadable 2"):
        trial.tell_unread()


def test_another_picture_takes_the_place_of_one_that_cannot_be_read(data, broken, pictures):
    images = data.Folder(pictures / "train", 8)
    images.draws = torch.rand(8, data.DRAWS, generator=torch.Generator().manual_seed(0))
    for index in (4, 5):
        pixels, label, unread = images[index]
        red = (0, 2)[label == 0]  # of blue pictures the third channel
        assert pixels[red].min() == 255 and unread[0][0] == str(broken[index - 4])
        again = images[index]
        assert torch.equal(pixels, again[0]) and label == again[1]
    images.draws = None
    pixels, label, unread = images[4]
    assert label == data.NOT_READ and len(unread) == 1


def test_pillow_is_asked_for_before_any_work(refusal, on_pictures, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert "pip install pillow" in refusal(*on_pictures)


# CIFAR-10


def cifar_files():
    """Names of CIFAR-10's files, with pixels [4, 3072] and labels for each."""
    generator = np.random.default_rng(0)
    pixels, labels = generator.integers(256, size=(6, 4, 3072), dtype=np.uint8), generator.integers(10, size=(6, 4))
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for name, some, which in zip(names, pixels, labels):
        yield name, some, which.tolist()


@pytest.mark.parametrize("kind", ["bin", "py"])
def test_cifar10s_own_files(train_kat, refusal, losses, rows, tmp_path, kind):
    folder = tmp_path / f"cifar-10-batches-{kind}"
    folder.mkdir()
    batches = list(cifar_files())
    for name, pixels, labels in batches:
        if kind == "py":
            (folder / name).write_bytes(pickle.dumps({b"data": pixels, b"labels": labels}))
        else:
            records = np.concatenate([np.array(labels, dtype=np.uint8)[:, None], pixels], axis=1)
            (folder / f"{name}.bin").write_bytes(records.tobytes())
    train, valid = train_kat.data.cifar10(tmp_path)
    assert train.images.shape == (20, 3, 32, 32) and valid.images.shape == (4, 3, 32, 32)
    _, pixels, labels = batches[1]
    assert np.array_equal(train.images[4:8].reshape(4, 3072).numpy(), pixels) and train.labels[4:8].tolist() == labels
    small = ["--cpu", "--width", "16", "--depth", "1", "--heads", "2", "--batch", "10", "--steps", "2"]
    train_kat.main(["cifar10", "--path", str(tmp_path), *small, "--out", str(tmp_path / "out")])
    assert len(losses(tmp_path / "out")) == 1 and rows(tmp_path / "out")[-1]["accuracy"]
    last = folder / ("test_batch" if kind == "py" else "test_batch.bin")
    last.write_bytes(last.read_bytes()[:100])
    assert f"{last} is not as CIFAR-10's authors offer it" in refusal("cifar10", "--path", tmp_path)
    last.unlink()
    assert f"{last} is not as CIFAR-10's authors offer it" in refusal("cifar10", "--path", tmp_path)


class Command:
    def __reduce__(self):
        return os.system, ("false",)


def test_a_pickle_that_runs_something_is_refused(tmp_path, refusal):
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(Command()))
    said = refusal("cifar10", "--path", tmp_path)
    assert "which CIFAR-10's own files do not" in said and str(tmp_path / "data_batch_1") in said


# What timm adds

FAKE = """
import random
import numpy
import torch

CALLS = []

def create_transform(input_size=224, is_training=False, scale=None, ratio=None, hflip=0.5, color_jitter=0.4,
                     auto_augment=None, interpolation="bilinear", mean=None, std=None, re_prob=0.0, re_mode="const",
                     normalize=True):
    asked = dict(locals())
    assert auto_augment is None or auto_augment.startswith("rand")
    CALLS.append(asked)
    def transform(image):
        drawn = random.random() + numpy.random.rand() + torch.rand(1).item()
        red = image.getpixel((0, 0))[0] / 255
        return torch.full((3, input_size, input_size), red + drawn)
    return transform

class Mixup:
    def __init__(self, mixup_alpha=1.0, cutmix_alpha=0.0, cutmix_minmax=None, prob=1.0, switch_prob=0.5, mode="batch",
                 correct_lam=True, label_smoothing=0.1, num_classes=1000):
        CALLS.append(dict(locals()))
        self.classes = num_classes
    def __call__(self, images, labels):
        assert len(images) % 2 == 0 and images.dtype == torch.float32
        share = numpy.random.beta(0.8, 0.8)
        CALLS.append(share)
        hot = torch.nn.functional.one_hot(labels, self.classes).float()
        return images * share + images.flip(0) * (1 - share), hot * share + hot.flip(0) * (1 - share)
"""
RECIPE = ["--mixup", "0.8", "--cutmix", "1.0", "--aa", "rand-m9-mstd0.5", "--reprob", "0.25"]


@pytest.fixture(params=["a stand-in", "timm"])
def timm(request, tmp_path, monkeypatch):
    """timm.data: a stand-in with the arguments of 1.0.3 that says how it was called, or timm itself where it is."""
    if request.param == "timm":
        try:
            import timm.data
        except Exception as error:
            pytest.skip(f"timm cannot be imported: {error}")
        yield timm.data
        return
    (tmp_path / "path" / "timm").mkdir(parents=True)
    (tmp_path / "path" / "timm" / "__init__.py").write_text("", encoding="utf-8")
    (tmp_path / "path" / "timm" / "data.py").write_text(FAKE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path / "path")
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "timm"}
    import timm.data

    yield timm.data
    for name in [name for name in sys.modules if name.split(".")[0] == "timm"]:
        del sys.modules[name]
    sys.modules.update(before)


def test_timm_mixes_and_augments_the_same_whoever_decodes_and_whenever_a_run_goes_on(
    timm, train_kat, losses, on_pictures, pictures, monkeypatch
):
    common = [*on_pictures, *RECIPE, "--drop-path", "0.5", "--depth", "2", "--steps", "6", "--save-every", "1"]
    train_kat.main(common)
    one = losses(pictures / "out")
    assert len(set(one.values())) == 6
    random.seed(1)  # nothing that went before counts
    train_kat.main([*common, "--out", str(pictures / "other"), "--workers", "2"])
    assert losses(pictures / "other") == one

    def stop(run, loader, advance=train_kat.Run.advance):
        advance(run, loader)
        run.signalled |= run.step == 3

    monkeypatch.setattr(train_kat.Run, "advance", stop)
    for _ in range(2):
        train_kat.main([*common, "--out", str(pictures / "broken")])
    assert losses(pictures / "broken") == one
    if hasattr(timm, "CALLS"):
        transform, mixup = timm.CALLS[:2]
        assert transform["is_training"] and transform["normalize"] and transform["input_size"] == 16
        assert (transform["auto_augment"], transform["re_prob"], transform["re_mode"]) == (RECIPE[5], 0.25, "pixel")
        assert transform["color_jitter"] is None and transform["mean"] == (0.485, 0.456, 0.406)
        assert (mixup["mixup_alpha"], mixup["cutmix_alpha"], mixup["num_classes"]) == (0.8, 1.0, 2)
        shares = [call for call in timm.CALLS if isinstance(call, float)]
        assert len(shares) == 18 and len(set(shares)) == 6 and mixup["label_smoothing"] == 0.1


def test_what_timm_cannot_do_is_refused(timm, refusal, on_pictures):
    assert "timm cannot make an augmentation of --aa nonsense" in refusal(*on_pictures, "--aa", "nonsense")
    assert "timm mixes pairs, but --batch 3" in refusal(*on_pictures, "--mixup", "0.8", "--batch", "3")
    assert "--aa and --reprob augment a folder's images, not those of digits" in refusal("digits", "--reprob", "0.1")


@pytest.mark.parametrize("option", [["--mixup", "0.8"], ["--cutmix", "1"], ["--aa", "rand-m9"], ["--reprob", "0.1"]])
def test_where_timm_is_missing_the_command_says_so_before_any_work(
    train_kat, refusal, on_pictures, pictures, monkeypatch, option
):
    for name in ("timm", "timm.data"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(train_kat.data, "load", None)
    said = refusal(*on_pictures, *option)
    assert f"{option[0]}: timm does this, and cannot be imported here" in said and "pip install timm" in said
    assert not (pictures / "out").exists()
