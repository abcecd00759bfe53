"""What timm adds to training where it is installed: mixup, cutmix, RandAugment, random erasing.

The names and arguments are those of timm 1.0.3, which KAT's and FlashKAT's train.py were written for, and of 1.0.31.
"""

import contextlib
import importlib
import random
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from . import Refused


def asked_of_timm(options) -> list[str]:
    return [f"--{name}" for name in ("mixup", "cutmix", "aa", "reprob") if getattr(options, name)]


def timm_data(options):
    """The module timm.data. Raises Refused where it cannot be imported."""
    try:
        return importlib.import_module("timm.data")
    except Exception as error:  # a torchvision of another PyTorch raises a RuntimeError
        raise Refused(
            f"{', '.join(asked_of_timm(options))}: timm does this, and cannot be imported here"
            f" ({type(error).__name__}: {error}); pip install timm, or leave it out"
        ) from None


def transform(options) -> Callable | None:
    """From a PIL image to a normalised tensor [3, size, size], by timm alone, where --aa or --reprob ask for it.

    Colours are not jittered, as in the published runs, where RandAugment takes that place. Raises Refused, for --mixup
    and --cutmix too, where timm is missing.
    """
    timm = timm_data(options) if asked_of_timm(options) else None
    if not (options.aa or options.reprob):
        return None
    if options.data != "folder":
        raise Refused(f"--aa and --reprob augment a folder's images, not those of {options.data}")
    try:
        return timm.create_transform(
            options.image_size,
            is_training=True,
            auto_augment=options.aa,
            re_prob=options.reprob,
            re_mode=options.remode,
            color_jitter=None,
            interpolation="random",
            mean=tuple(options.mean),
            std=tuple(options.std),
        )
    except (AssertionError, KeyError, ValueError) as error:
        raise Refused(f"timm cannot make an augmentation of --aa {options.aa}: {error!r}") from None


def mixing(options, classes: int) -> Callable | None:
    """From images and labels [B] to mixed images and [B, classes] smoothed probabilities; B must be even."""
    if not (options.mixup or options.cutmix):
        return None
    return timm_data(options).Mixup(
        mixup_alpha=options.mixup,
        cutmix_alpha=options.cutmix,
        label_smoothing=options.label_smoothing,
        num_classes=classes,
    )


@contextlib.contextmanager
def drawn_from(uniform: Tensor) -> Iterator[None]:
    """What timm draws in here follows from two random numbers of [0, 1), and leaves PyTorch's generator as it was.

    timm draws from the generators of Python, NumPy and PyTorch: from whatever state a worker has.
    """
    import numpy as np

    high, low = (uniform[:2].double() * 2**24).long().tolist()
    seed = high << 24 | low
    before = torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)
