"""Train a Kolmogorov-Arnold Transformer, or a Vision Transformer, on images: on a CPU, a GPU or many.

python examples/train_kat.py digits --batch 100 --lr 3e-3 --epochs 30   a minute on a laptop
python examples/train_kat.py cifar10 --path DIR --compile               one GPU
torchrun --nproc-per-node 4 examples/train_kat.py folder --path IMAGENET --size base --batch 1024 --compile

Killed? Run the same command again. It goes on from the last checkpoint in --out, with the losses that it would have
had: an image's augmentation depends on seed, epoch and image alone, the order on seed and epoch. On a CPU they are the
same to the bit; on a GPU as far as PyTorch's own kernels repeat themselves.

"folder" is a folder with train/CLASS/*.jpg and val/CLASS/*.jpg; "cifar10" takes the files that its authors offer, as
they are; "digits" ships with scikit-learn; "synthetic" is noise of ImageNet's shape, to measure speed. --out gets
log.csv and checkpoint.pt, of which torch.load(…)["model"] is the model's state dict.
"""

import argparse
import contextlib
import csv
import functools
import math
import os
import pickle
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from flashkat_lite import console
from flashkat_lite.ops import BACKWARDS
from flashkat_lite.vit import SIZES, VisionTransformer

IMAGES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}
DRAWS = 5  # random numbers for an image and epoch
MODELS = {"pico": {"width": 64, "depth": 4, "heads": 4}, **SIZES}
MLPS = {"kat": "grkan", "vit": "mlp"}


class Refused(Exception):
    """What was asked for cannot be done; the message says why."""


# Data. A set gives uint8 images [B, channels, size, size] and labels [B]; `draws` are None, or [images, DRAWS] uniform
# random numbers by which an image is augmented.


class InMemory:
    """Images [N, channels, H, W], uint8. Augmented: shifted by up to `pad` pixels, and mirrored where `mirror`."""

    def __init__(self, images: Tensor, labels: Tensor, classes: int, pad: int = 0, mirror: bool = False):
        self.images, self.labels, self.classes, self.pad, self.mirror = images, labels, classes, pad, mirror
        self.draws: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> None:
        self.images, self.labels = self.images.to(device), self.labels.to(device)

    def batch(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        images, labels = self.images[indices], self.labels[indices]
        if self.draws is None:
            return images, labels
        draws, pad, (height, width) = self.draws[indices].to(images.device), self.pad, images.shape[2:]
        arange = functools.partial(torch.arange, device=images.device)
        down, right = ((draws[:, i, None] * (2 * pad + 1)).long() for i in (0, 1))  # [B, 1]
        rows, columns = down + arange(height), right + arange(width)  # [B, H], [B, W]
        if self.mirror:
            columns = torch.where(draws[:, 2, None] < 0.5, columns.flip(1), columns)
        images = functional.pad(images, (pad, pad, pad, pad))
        each = arange(len(images))[:, None, None]
        return images[each, :, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2), labels


class Folder(Dataset):
    """Files CLASS/*, decoded as they are needed. Augmented: a crop of random size and shape, mirrored or not."""

    def __init__(self, folder: Path, size: int):
        classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
        self.files = [
            (file, label)
            for label, name in enumerate(classes)
            for file in sorted((folder / name).iterdir())
            if file.suffix.lower() in IMAGES
        ]
        if not self.files:
            raise Refused(
                f"{folder} holds no images: CLASS/FILE was expected, FILE ending in {', '.join(sorted(IMAGES))}"
            )
        self.size, self.names, self.classes = size, classes, len(classes)
        self.draws: Tensor | None = None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        file, label = self.files[index]
        with Image.open(file) as image:
            image = image.convert("RGB")
            box, mirrored = (0.0, 0.0, *image.size), False
            if self.draws is None:  # 7/8 of the shorter side, from the middle
                side = min(image.size) * 7 / 8
                left, top = (image.width - side) / 2, (image.height - side) / 2
                box = left, top, left + side, top + side
            else:
                area, shape, across, along, mirror = self.draws[index].tolist()
                area = image.width * image.height * (0.08 + 0.92 * area)
                shape = math.exp((2 * shape - 1) * math.log(4 / 3))
                width, height = min((area * shape) ** 0.5, image.width), min((area / shape) ** 0.5, image.height)
                left, top = across * (image.width - width), along * (image.height - height)
                box, mirrored = (left, top, left + width, top + height), mirror < 0.5
            image = image.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box)
            if mirrored:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        return pixels.view(self.size, self.size, 3).permute(2, 0, 1), label


class Arrays(pickle.Unpickler):
    """Reads pickled NumPy arrays, and runs nothing else that a file may ask for."""

    def find_class(self, module: str, name: str) -> object:
        if (module.partition(".")[0], name) in {("numpy", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise Refused(f"The file asks for {module}.{name}, which CIFAR-10's own files do not")


def cifar10(path: Path) -> tuple[InMemory, InMemory]:
    """From cifar-10-batches-bin or cifar-10-batches-py, in `path` or `path` itself."""
    folders = [path / "cifar-10-batches-bin", path / "cifar-10-batches-py", path]
    for folder in folders:
        binary, python = folder / "data_batch_1.bin", folder / "data_batch_1"
        if binary.exists():
            rows = [
                torch.frombuffer(bytearray((folder / f"{name}.bin").read_bytes()), dtype=torch.uint8).view(-1, 3073)
                for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
            ]
            images, labels = [r[:, 1:].clone() for r in rows], [r[:, 0].long() for r in rows]
            break
        if python.exists():
            images, labels = [], []
            for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
                with (folder / name).open("rb") as file:
                    batch = Arrays(file, encoding="bytes").load()
                images.append(torch.from_numpy(batch[b"data"]))
                labels.append(torch.tensor(batch[b"labels"]))
            break
    else:
        raise Refused(f"{path} holds no data_batch_1.bin or data_batch_1: unpack CIFAR-10's archive there")
    images = [i.view(-1, 3, 32, 32) for i in images]
    train = InMemory(torch.cat(images[:5]), torch.cat(labels[:5]), 10, pad=4, mirror=True)
    return train, InMemory(images[5], labels[5], 10)


def digits() -> tuple[InMemory, InMemory]:
    """scikit-learn's 1797 digits of 8 × 8 pixels; 297 of them, drawn once, are held out."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise Refused("digits ship with scikit-learn: pip install scikit-learn") from None
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    images = torch.from_numpy(data.images)[order].mul(255 / 16).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(data.target)[order].long()
    return InMemory(images[297:], labels[297:], 10), InMemory(images[:297], labels[:297], 10)


def synthetic(size: int, count: int = 10_240) -> tuple[InMemory, InMemory]:
    """Noise, of which a few images stand for all."""
    generator = torch.Generator().manual_seed(0)
    few = torch.randint(256, (64, 3, size, size), generator=generator, dtype=torch.uint8)
    labels = torch.randint(1000, (count,), generator=generator)
    images = few[:1].expand(count, -1, -1, -1)
    return InMemory(images, labels, 1000), InMemory(few, labels[:64], 1000)


def load(options: argparse.Namespace) -> tuple[InMemory | Folder, InMemory | Folder]:
    """Training and validation sets. Raises Refused."""
    if options.data == "digits":
        return digits()
    if options.data == "synthetic":
        return synthetic(options.image_size)
    if options.path is None:
        raise Refused(f"{options.data} needs --path")
    if options.data == "cifar10":
        return cifar10(options.path)
    train, valid = (Folder(options.path / part, options.image_size) for part in ("train", "val"))
    if train.names != valid.names:
        raise Refused(f"{options.path}/train and /val hold different classes")
    return train, valid


def batches(data: InMemory | Folder, lists: list[list[int]], workers: int) -> Iterable[tuple[Tensor, Tensor]]:
    """The images of each list, in order."""
    if isinstance(data, InMemory):
        return map(data.batch, lists)
    return DataLoader(data, batch_sampler=lists, num_workers=workers, pin_memory=torch.cuda.is_available())


def seeded(*numbers: int) -> torch.Generator:
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number) % 2**63
    return torch.Generator().manual_seed(seed)


# Training


class Run:
    """A model in training on this process's share of each batch; all of it that a checkpoint must keep."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.device = torch.device("cpu")
        if torch.cuda.is_available() and not options.cpu:
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            torch.cuda.set_device(self.device)
        if self.world > 1:
            distributed.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        self.train, self.valid = load(options)
        for data in (self.train, self.valid):
            if isinstance(data, InMemory):
                data.to(self.device)
        self.each, rest = divmod(options.batch, self.world * options.accumulate)
        if rest or not self.each:
            raise Refused(
                f"--batch {options.batch} does not divide by {self.world} process(es) times --accumulate"
                f" {options.accumulate}"
            )
        self.epoch_steps = len(self.train) // options.batch
        if not self.epoch_steps:
            raise Refused(f"--batch {options.batch} is more than the {len(self.train)} training images")
        self.last_step = options.steps or options.epochs * self.epoch_steps
        torch.manual_seed(options.seed)
        self.model = build(options, self.train.classes).to(self.device)
        self.forward: nn.Module = torch.compile(self.model, dynamic=False) if options.compile else self.model
        if self.world > 1:
            self.forward = nn.parallel.DistributedDataParallel(self.forward, gradient_as_bucket_view=True)
        torch.manual_seed(options.seed + self.rank)  # of dropout
        kinds = {True: options.weight_decay, False: 0.0}
        groups = {kind: {"params": [], "weight_decay": decay} for kind, decay in kinds.items()}
        for name, parameter in self.model.named_parameters():
            groups[decays(name, parameter)]["params"].append(parameter)
        self.optimizer = torch.optim.AdamW(groups.values(), lr=options.lr, fused=self.device.type == "cuda")
        self.dtype = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[options.precision]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=options.precision == "float16")
        self.step, self.seen, self.loss = 0, 0, torch.zeros((), device=self.device)  # since the last line of the log
        self.stop = False

    def lists(self, epoch: int, first_step: int) -> list[list[int]]:
        """The images of an epoch from one of its steps on, for this process: `accumulate` lists a step."""
        order = torch.randperm(len(self.train), generator=seeded(self.options.seed, epoch, 0))
        order = order[: self.epoch_steps * self.options.batch]
        shares = order.view(self.epoch_steps, self.options.accumulate, self.world, self.each)
        return shares[first_step:, :, self.rank].flatten(0, 1).tolist()

    def forward_loss(self, images: Tensor, labels: Tensor) -> Tensor:
        images, labels = (t.to(self.device, non_blocking=True) for t in (images, labels))
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            logits = self.forward(normalised(images))
            return functional.cross_entropy(logits, labels, label_smoothing=self.options.label_smoothing)

    def advance(self, loader) -> None:
        """One step of the optimizer."""
        parts = self.options.accumulate
        for part in range(parts):
            together = part == parts - 1 or self.world == 1
            with contextlib.nullcontext() if together else self.forward.no_sync():
                loss = self.forward_loss(*next(loader)) / parts
                self.scaler.scale(loss).backward()
            self.loss += loss.detach()
        for group in self.optimizer.param_groups:
            group["lr"] = rate(self.step, self.last_step, self.options)
        self.scaler.unscale_(self.optimizer)
        if self.options.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.options.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step, self.seen = self.step + 1, self.seen + 1

    def mean_loss(self) -> float:
        """Over all processes and the steps since it was last asked for. A stop that one was told is told to all."""
        told = torch.stack([self.loss / self.seen, self.loss.new_tensor(float(self.stop))])
        if self.world > 1:
            distributed.all_reduce(told)
        self.loss, self.seen = torch.zeros_like(self.loss), 0
        loss, self.stop = told[0].item() / self.world, told[1].item() > 0
        if not math.isfinite(loss):
            raise Refused(f"the loss is {loss} at step {self.step}: a smaller --lr or a longer --warmup may help")
        return loss

    @torch.no_grad()
    def accuracy(self) -> float:
        """Top-1, on the validation set."""
        self.model.eval()
        mine = list(range(self.rank, len(self.valid), self.world))
        lists = [mine[i : i + self.each] for i in range(0, len(mine), self.each)]
        right = torch.zeros((), device=self.device)
        for images, labels in batches(self.valid, lists, self.options.workers):
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
                logits = self.model(normalised(images.to(self.device)))
            right += (logits.argmax(1) == labels.to(self.device)).sum()
        if self.world > 1:
            distributed.all_reduce(right)
        self.model.train()
        return right.item() / len(self.valid)

    def save(self, file: Path) -> None:
        """The whole state, in one piece or not at all."""
        random = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state()
        everyones = [random]
        if self.world > 1:
            everyones = [None] * self.world
            distributed.all_gather_object(everyones, random)
        if self.rank:
            return
        state = {name: getattr(self, name).state_dict() for name in ("model", "optimizer", "scaler")}
        state |= {"step": self.step, "seen": self.seen, "loss": self.loss.cpu(), "random": everyones}
        state["asked"] = asked(self.options)
        partial = file.with_suffix(".partial")
        with partial.open("wb") as out:
            torch.save(state, out)
            out.flush()
            os.fsync(out.fileno())
        os.replace(partial, file)

    def resume(self, file: Path) -> None:
        """Raises Refused where the checkpoint belongs to another run."""
        state = torch.load(file, map_location="cpu", weights_only=True)
        differ = [name for name, value in asked(self.options).items() if state["asked"].get(name) != value]
        if differ or len(state["random"]) != self.world:
            why = ", ".join(f"--{name.replace('_', '-')} {state['asked'].get(name)}" for name in differ)
            raise Refused(
                f"{file} belongs to a run with {why or str(len(state['random'])) + ' process(es)'}: ask for that, or"
                " for another --out"
            )
        for name in ("model", "optimizer", "scaler"):
            getattr(self, name).load_state_dict(state[name])
        self.step, self.seen, self.loss = state["step"], state["seen"], state["loss"].to(self.device)
        mine = state["random"][self.rank]
        torch.set_rng_state(mine["cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(mine["cuda"])


def build(options: argparse.Namespace, classes: int) -> VisionTransformer:
    """Raises Refused where sizes do not divide."""
    own = {name: getattr(options, name) for name in ("width", "depth", "heads") if getattr(options, name)}
    rational = {"backward": options.backward} if options.model == "kat" else {}
    try:
        return VisionTransformer(
            image_size=options.image_size,
            patch_size=options.patch_size,
            channels=1 if options.data == "digits" else 3,
            classes=classes,
            mlp=MLPS[options.model],
            drop_path=options.drop_path,
            **(MODELS[options.size] | own),
            **rational,
        )
    except ValueError as error:
        raise Refused(str(error)) from None


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay pulls it to zero: matrices, but neither positions nor the coefficients of a function."""
    kept = "embed" in name or "token" in name or "numerator" in name or "denominator" in name
    return parameter.ndim > 1 and (not kept or "proj" in name)


def rate(step: int, last: int, options: argparse.Namespace) -> float:
    """The learning rate: a straight line up to --lr over --warmup, then a half cosine down to a hundredth of it."""
    warmup = max(1, round(options.warmup * last))
    if step < warmup:
        return options.lr * (step + 1) / warmup
    return options.lr * (0.01 + 0.99 * (1 + math.cos(math.pi * (step - warmup) / max(last - warmup, 1))) / 2)


def normalised(images: Tensor) -> Tensor:
    """0 … 255 as about -2 … 2."""
    return images.float() / 63.75 - 2


def asked(options: argparse.Namespace) -> dict[str, object]:
    """What two runs must have in common to be one run."""
    free = {"out", "path", "workers", "log_every", "save_every", "cpu", "compile", "backward"}
    return {name: value for name, value in vars(options).items() if name not in free}


# The log


class Log:
    """log.csv, and a bar where somebody looks; only the first process writes."""

    HEADER = ("step", "epoch", "loss", "learning rate", "images a second", "accuracy")

    def __init__(self, file: Path, run: Run):
        self.file, self.run, self.bar = file, run, None
        self.start, self.images = time.perf_counter(), 0
        if run.rank:
            return
        rows = [list(self.HEADER)]
        if run.step:  # what an interrupted run wrote after its last checkpoint will be written again
            with file.open(newline="", encoding="utf-8") as old:
                rows += [row for row in list(csv.reader(old))[1:] if int(row[0]) <= run.step]
        partial = file.with_suffix(".partial")
        with partial.open("w", newline="", encoding="utf-8") as new:
            csv.writer(new).writerows(rows)
        os.replace(partial, file)
        with contextlib.suppress(ImportError):
            from tqdm import tqdm

            self.bar = tqdm(total=run.last_step, initial=run.step, unit="step", disable=not sys.stderr.isatty())

    def write(self, loss: float | None = None, accuracy: float | None = None) -> None:
        """A line: of training with a loss, of validation with an accuracy."""
        run, now = self.run, time.perf_counter()
        speed = (run.step * run.options.batch - self.images) / (now - self.start)
        if run.rank:
            return
        row = {"step": run.step, "epoch": f"{run.step / run.epoch_steps:.3f}"}
        if loss is not None:
            learning_rate = rate(run.step - 1, run.last_step, run.options)
            row |= {"loss": repr(loss), "learning rate": f"{learning_rate:.4g}", "images a second": f"{speed:.1f}"}
        if accuracy is not None:
            row["accuracy"] = f"{accuracy:.4f}"
        with self.file.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.HEADER).writerow(row)
        if self.bar:
            shown = {"loss": loss and f"{loss:.4f}", "accuracy": accuracy and f"{accuracy:.4f}"}
            self.bar.set_postfix({name: value for name, value in shown.items() if value})
            self.bar.update(run.step - self.bar.n)
        self.restart()

    def restart(self) -> None:
        """Speed counts from here."""
        self.start, self.images = time.perf_counter(), self.run.step * self.run.options.batch


def fit(run: Run) -> float:
    """Trains to the end, or to a signal; returns the last accuracy."""
    options = run.options
    folder, file = options.out, options.out / "checkpoint.pt"
    folder.mkdir(parents=True, exist_ok=True)
    if file.exists():
        run.resume(file)
    log, accuracy = Log(folder / "log.csv", run), float("nan")
    while run.step < run.last_step and not run.stop:
        epoch, first = divmod(run.step, run.epoch_steps)
        run.train.draws = torch.rand(len(run.train), DRAWS, generator=seeded(options.seed, epoch, 1))
        loader = iter(batches(run.train, run.lists(epoch, first), options.workers))
        log.restart()
        for _ in range(min(run.epoch_steps - first, run.last_step - run.step)):
            run.advance(loader)
            if run.step % options.log_every == 0 or run.step == run.last_step:
                log.write(run.mean_loss())
            ended = run.step % run.epoch_steps == 0 or run.step == run.last_step
            if run.step % options.save_every == 0 and not ended:
                run.save(file)
            if run.stop:
                break
        else:
            accuracy = run.accuracy()
            log.write(accuracy=accuracy)
        run.save(file)
    if run.step == run.last_step and math.isnan(accuracy):
        accuracy = run.accuracy()
    if log.bar is not None:
        log.bar.close()
    if not run.rank:
        done = "done" if run.step == run.last_step else "stopped; the same command goes on from here"
        print(f"step {run.step} of {run.last_step}, accuracy {accuracy:.4f}, {folder}: {done}")
    return accuracy


@contextlib.contextmanager
def stopped_by(run: Run, *signals: signal.Signals):
    """The first of these signals ends the run at its next line of the log, with a checkpoint; a second one, at once."""

    def stop(number: int, frame: object) -> None:
        run.stop = True
        signal.signal(number, before[number])

    before = {number: signal.signal(number, stop) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# The command


def parser() -> argparse.ArgumentParser:
    known = {"digits": (8, 2), "cifar10": (32, 4), "folder": (224, 16), "synthetic": (224, 16)}
    say, _, more = __doc__.partition("\n\n")
    made = argparse.ArgumentParser(
        description=say, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    made.known = known
    add = made.add_argument
    add("data", choices=known, help="what to train on")
    add("--path", type=Path, help="where folder's or cifar10's files lie")
    add("--out", type=Path, help="for log and checkpoint (default: runs/DATA-MODEL)")
    model = made.add_argument_group("model")
    add = model.add_argument
    add("--model", choices=MLPS, default="kat", help="kat: group-rational MLPs; vit: GELU (default: kat)")
    add("--size", choices=MODELS, help="width 64 and 4 blocks; 192, 384 or 768 and 12 (default: tiny; digits: pico)")
    for name in ("width", "depth", "heads"):
        add(f"--{name}", type=positive, help=f"instead of the size's own {name}")
    sizes = ", ".join(f"{name} {size[0]}" for name, size in known.items())
    add("--image-size", type=positive, help=f"pixels ({sizes})")
    sizes = ", ".join(f"{name} {size[1]}" for name, size in known.items())
    add("--patch-size", type=positive, help=f"pixels ({sizes})")
    add("--drop-path", type=float, default=0.0, help="stochastic depth of the last block (default: 0)")
    add("--backward", choices=BACKWARDS, default="stationary", help="kat: which kernel (default: stationary)")
    training = made.add_argument_group("training")
    add = training.add_argument
    add("--epochs", type=positive, default=30, help="over the training set (default: 30)")
    add("--steps", type=positive, help="instead of --epochs")
    add("--batch", type=positive, default=256, help="images a step, of all processes together (default: 256)")
    add("--accumulate", type=positive, default=1, help="parts in which a process takes its share (default: 1)")
    add("--lr", type=float, default=1e-3, help="the highest learning rate (default: 0.001)")
    add("--warmup", type=float, default=0.05, help="share of the steps on the way there (default: 0.05)")
    add("--weight-decay", type=float, default=0.05, help="of matrices (default: 0.05)")
    add("--label-smoothing", type=float, default=0.1, help="(default: 0.1)")
    add("--clip", type=float, default=1.0, help="the gradient's norm, at most; 0 for none (default: 1)")
    add("--seed", type=int, default=0, help="of weights, order and augmentation (default: 0)")
    machine = made.add_argument_group("machine")
    add = machine.add_argument
    add(
        "--precision", choices=("float32", "bfloat16", "float16"), help="(default: bfloat16 on a GPU, float32 on a CPU)"
    )
    add("--compile", action="store_true", help="torch.compile: a minute once, then faster")
    add("--cpu", action="store_true", help="although there is a GPU")
    add("--workers", type=int, default=8, help="processes that decode a folder's images (default: 8)")
    add("--log-every", type=positive, default=20, metavar="STEPS", help="(default: 20)")
    add("--save-every", type=positive, default=500, metavar="STEPS", help="and after each epoch (default: 500)")
    return made


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive whole number, not {text}")
    return int(text)


def main(arguments: list[str] | None = None) -> float:
    command = parser()
    options = command.parse_args(arguments)
    image, patch = command.known[options.data]
    if options.data in ("digits", "cifar10") and options.image_size not in (None, image):
        command.error(f"--image-size is {image} for {options.data}")
    options.image_size, options.patch_size = options.image_size or image, options.patch_size or patch
    options.size = options.size or ("pico" if options.data == "digits" else "tiny")
    options.out = options.out or Path("runs") / f"{options.data}-{options.model}"
    on_gpu = torch.cuda.is_available() and not options.cpu
    options.precision = options.precision or ("bfloat16" if on_gpu else "float32")
    try:
        run = Run(options)
        with stopped_by(run, signal.SIGTERM, signal.SIGINT):
            return fit(run)
    except Refused as error:
        command.exit(2, f"{command.prog}: {error}\n")
    except torch.OutOfMemoryError:
        command.exit(
            3, f"{command.prog}: not enough memory: try --accumulate {2 * options.accumulate}, which costs little\n"
        )
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


if __name__ == "__main__":
    console.prepare()
    main()
