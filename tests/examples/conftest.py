"""What tests of the training script share: the script, its parts, and folders of pictures."""

import csv
import importlib.util
import sys

import pytest


@pytest.fixture(scope="session")
def script(root):
    return root / "examples" / "train_kat.py"


@pytest.fixture(scope="session")
def train_kat(script):
    """The script as a module; its parts can be imported as training.NAME."""
    spec = importlib.util.spec_from_file_location("train_kat", script)
    module = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = path


@pytest.fixture
def refusal(train_kat, capsys):
    """What the command says before it ends."""

    def ask(*arguments):
        with pytest.raises(SystemExit) as ended:
            train_kat.main([*map(str, arguments), "--cpu"])
        assert ended.value.code == 2
        return capsys.readouterr().err

    return ask


@pytest.fixture
def rows():
    """The lines of a run's log."""

    def read(folder):
        with (folder / "log.csv").open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    return read


@pytest.fixture
def losses(rows):
    return lambda folder: {int(row["step"]): float(row["loss"]) for row in rows(folder) if row["loss"]}


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


@pytest.fixture
def on_pictures(pictures):
    """The options of a small model on these pictures."""
    small = ["--image-size", "16", "--patch-size", "8", "--width", "16", "--depth", "1", "--heads", "2", "--batch", "4"]
    options = ["--workers", "0", "--log-every", "1", "--out", str(pictures / "out")]
    return ["folder", "--path", str(pictures), "--cpu", *small, *options]
