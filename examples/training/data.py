"""Images and labels: digits, CIFAR-10, noise, and folders of files.

A set gives batches (images, labels, unread): images [B, channels, size, size], uint8, or float32 where timm has
normalised them; labels [B]; and, as (path, reason), the files of the batch that cannot be read. `draws` are None, or
[images, DRAWS] uniform random numbers by which an image is augmented.
"""

import functools
import itertools
import math
import os
import pickle
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from . import Refused
from .recipe import drawn_from

ENDINGS = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
DRAWS = 5  # random numbers for an image and epoch
NOT_READ = -1  # the label of an image that is none
TRIES = 100


class InMemory:
    """Images [N, channels, H, W], uint8. Augmented: shifted by up to `pad` pixels, and mirrored where `mirror`."""

    def __init__(self, images: Tensor, labels: Tensor, classes: int, pad: int = 0, mirror: bool = False):
        self.images, self.labels, self.pad, self.mirror = images, labels, pad, mirror
        self.names = [str(label) for label in range(classes)]
        self.draws: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> None:
        self.images, self.labels = self.images.to(device), self.labels.to(device)

    def batch(self, indices: list[int]) -> tuple[Tensor, Tensor, list]:
        images, labels = self.images[indices], self.labels[indices]
        if self.draws is None:
            return images, labels, []
        draws, pad, (height, width) = self.draws[indices].to(images.device), self.pad, images.shape[2:]
        arange = functools.partial(torch.arange, device=images.device)
        down, right = ((draws[:, i, None] * (2 * pad + 1)).long() for i in (0, 1))  # [B, 1]
        rows, columns = down + arange(height), right + arange(width)  # [B, H], [B, W]
        if self.mirror:
            columns = torch.where(draws[:, 2, None] < 0.5, columns.flip(1), columns)
        images = functional.pad(images, (pad, pad, pad, pad))
        each = arange(len(images))[:, None, None]
        return images[each, :, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2), labels, []


class Folder(Dataset):
    """Files CLASS/*, decoded as they are needed. Augmented: a crop of random size and shape, mirrored or not.

    A folder without images is no class, and what begins with a dot is neither class nor image. `crop`: the part of the
    shorter side that is kept where nothing is augmented. `transform`: augments a PIL image instead, and normalises it.

    In training another file takes the place of one that cannot be read, TRIES times; after that, or where nothing is
    augmented, a black image with the label NOT_READ.
    """

    def __init__(self, folder: Path, size: int, crop: float = 7 / 8, transform: Callable | None = None):
        self.folder, self.size, self.crop, self.transform = folder, size, crop, transform
        self.draws: Tensor | None = None
        # One string of all names, with its cuts: a Path for each of a million images would take 0.6 GB a process.
        self.names: list[str] = []
        self.starts, self.cuts, files = [], array("q", [0]), []
        for name in (entry.name for entry in visible(folder) if entry.is_dir()):
            images = [os.fsencode(entry.name) for entry in visible(folder / name) if is_image(entry)]
            if images:
                self.names.append(name)
                self.starts.append(len(self))
                for image in images:
                    self.cuts.append(self.cuts[-1] + len(image))
                files.append(b"".join(images))
        self.files = b"".join(files)
        if not self.names:
            raise Refused(f"{folder} holds no images: CLASS/FILE was expected, FILE ending in {', '.join(ENDINGS)}")

    def __len__(self) -> int:
        return len(self.cuts) - 1

    def label(self, index: int) -> int:
        return bisect_right(self.starts, index) - 1

    def path(self, index: int) -> str:
        name = os.fsdecode(self.files[self.cuts[index] : self.cuts[index + 1]])
        return os.path.join(self.folder, self.names[self.label(index)], name)

    def __getitem__(self, index: int) -> tuple[Tensor, int, list[tuple[str, str]]]:
        unread = []
        for place in itertools.chain([index], self.others(index)):
            try:
                image = decoded(self.path(place))
            except Exception as error:  # a decoder raises what it likes on bytes that are no picture
                path, reason = self.path(place), getattr(error, "strerror", None) or str(error)
                unread.append((path, type(error).__name__ if os.path.dirname(path) in reason or not reason else reason))
            else:
                return self.pixels(image, index), self.label(place), unread
        dtype = torch.float32 if self.augments_by_timm else torch.uint8
        return torch.zeros(3, self.size, self.size, dtype=dtype), NOT_READ, unread

    def others(self, index: int) -> Iterator[int]:
        """Which images may stand for one in training: far apart, since neighbours are of one class and fault."""
        if self.draws is not None:
            first = self.draws[index, 0].item()
            yield from (int((first + i * 0.6180339887) % 1 * len(self)) for i in range(1, TRIES))

    @property
    def augments_by_timm(self) -> bool:
        return self.draws is not None and self.transform is not None

    def pixels(self, image, index: int) -> Tensor:
        """A PIL image as [3, size, size], by the random numbers of image `index`."""
        from PIL import Image

        if self.augments_by_timm:
            with drawn_from(self.draws[index]):
                return self.transform(image)
        mirrored = False
        if self.draws is None:
            side = min(image.size) * self.crop
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
        return pixels.view(self.size, self.size, 3).permute(2, 0, 1)


def visible(folder: Path) -> list[os.DirEntry]:
    """What lies in a folder, by name; without what a system or an editor hides there."""
    if not folder.is_dir():
        return []
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise Refused(f"{folder} cannot be read: {error.strerror}") from None


def is_image(entry: os.DirEntry) -> bool:
    return entry.name.lower().endswith(ENDINGS) and not entry.is_dir()


def decoded(path: str):
    from PIL import Image

    with Image.open(path) as image:
        return image.convert("RGB")


class Arrays(pickle.Unpickler):
    """Reads pickled NumPy arrays, and runs nothing else that a file may ask for."""

    def find_class(self, module: str, name: str) -> object:
        if (module.partition(".")[0], name) in {("numpy", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise Refused(f"The file asks for {module}.{name}, which CIFAR-10's own files do not")


def cifar10(path: Path) -> tuple[InMemory, InMemory]:
    """From cifar-10-batches-bin or cifar-10-batches-py, in `path` or `path` itself."""
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for folder in (path / "cifar-10-batches-bin", path / "cifar-10-batches-py", path):
        ending = ".bin" if (folder / f"{names[0]}.bin").exists() else ""
        if (folder / (names[0] + ending)).exists():
            break
    else:
        raise Refused(f"{path} holds no data_batch_1.bin or data_batch_1: unpack CIFAR-10's archive there")
    batches = [cifar_batch(folder / (name + ending)) for name in names]
    images, labels = zip(*((images.view(-1, 3, 32, 32), labels) for images, labels in batches))
    train = InMemory(torch.cat(images[:5]), torch.cat(labels[:5]), 10, pad=4, mirror=True)
    return train, InMemory(images[5], labels[5], 10)


def cifar_batch(file: Path) -> tuple[Tensor, Tensor]:
    """Pixels [N, 3072], uint8, and labels [N], of one of the files. Raises Refused, with the file's path."""
    try:
        if file.suffix:
            rows = torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8).view(-1, 3073)
            return rows[:, 1:].clone(), rows[:, 0].long()
        with file.open("rb") as opened:
            batch = Arrays(opened, encoding="bytes").load()
        return torch.from_numpy(batch[b"data"]), torch.tensor(batch[b"labels"])
    except Refused as error:
        raise Refused(f"{file}: {error}") from None
    except (OSError, EOFError, pickle.UnpicklingError, RuntimeError, ValueError, LookupError, TypeError) as error:
        raise Refused(f"{file} is not as CIFAR-10's authors offer it: {error}") from None


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


def load(options, transform: Callable | None = None) -> tuple[InMemory | Folder | None, InMemory | Folder]:
    """Training and validation sets; a folder's training set only where it is needed. Raises Refused."""
    if options.data == "digits":
        return digits()
    if options.data == "synthetic":
        return synthetic(options.image_size)
    if options.path is None:
        raise Refused(f"{options.data} needs --path")
    if options.data == "cifar10":
        return cifar10(options.path)
    try:
        import PIL  # noqa: F401
    except ImportError:
        raise Refused("Pillow decodes a folder's images: pip install pillow") from None
    valid = Folder(options.path / "val", options.image_size, options.crop_pct)
    if options.eval:
        return None, valid
    train = Folder(options.path / "train", options.image_size, options.crop_pct, transform)
    if train.names != valid.names:
        raise Refused(
            f"{different(train.names, train.folder, valid.names, valid.folder)} (a class is a folder with images in it)"
        )
    return train, valid


def different(some: list[str], here, others: list[str], there) -> str:
    """Which classes one place has and the other has not."""
    sides = []
    for place, only in ((here, sorted(set(some) - set(others))), (there, sorted(set(others) - set(some)))):
        if only:
            more = f" and {len(only) - 5} more" if len(only) > 5 else ""
            sides.append(f"only {place} has {', '.join(only[:5])}{more}")
    return f"{here} and {there} hold different classes: " + "; ".join(sides)


def batches(data: InMemory | Folder, lists: list[list[int]], workers: int) -> Iterable[tuple[Tensor, Tensor, list]]:
    """The images of each list, in order."""
    if isinstance(data, InMemory):
        return map(data.batch, lists)
    return DataLoader(
        data,
        batch_sampler=lists,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        collate_fn=together,
        generator=torch.Generator(),  # else it draws from dropout's, once more in a run that goes on
    )


def together(items: list[tuple[Tensor, int, list]]) -> tuple[Tensor, Tensor, list]:
    images, labels, unread = zip(*items)
    return torch.stack(images), torch.tensor(labels), [file for files in unread for file in files]


def seeded(*numbers: int) -> torch.Generator:
    """A generator that these numbers, in this order, determine."""
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number) % 2**63
    return torch.Generator().manual_seed(seed)
