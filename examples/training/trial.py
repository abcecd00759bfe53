"""A model, and the images that it is tested on."""

import argparse
import os
from collections.abc import Callable

import torch
from torch import Tensor, distributed, nn

from flashkat_lite.vit import SIZES, VisionTransformer

from . import Refused, data, weights

MODELS = {"pico": {"width": 64, "depth": 4, "heads": 4}, **SIZES}
MLPS = {"kat": "grkan", "vit": "mlp"}


class Trial:
    """A model and the images that it is tested on; this process's place among all."""

    def __init__(self, options: argparse.Namespace, start: dict | None, transform: Callable | None = None):
        """start: a checkpoint to begin from. transform: augments a folder's images. Raises Refused."""
        self.options = options
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.device = torch.device("cpu")
        if torch.cuda.is_available() and not options.cpu:
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            torch.cuda.set_device(self.device)
        if self.world > 1:
            distributed.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        self.train, self.valid = data.load(options, transform)
        for images in (self.train, self.valid):
            if isinstance(images, data.InMemory):
                images.to(self.device)
        self.each = max(options.batch // (self.world * options.accumulate), 1)
        channels = (-1, 1, 1)
        self.mean, self.std = (torch.tensor(v, device=self.device).view(channels) for v in (options.mean, options.std))
        torch.manual_seed(options.seed)
        self.model = build(options, len(self.valid.names))
        if start is not None:
            some = (options.init, self.valid.names, options.init_key)
            self.say(weights.start(self.model, start, *some, whole=options.eval))
        self.model.to(self.device)
        self.dtype = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[options.precision]
        self.unread: dict[str, str] = {}  # files that cannot be read, and why
        self.told: set[str] = set()

    def say(self, text: str) -> None:
        if not self.rank:
            print(text, flush=True)

    def normalised(self, images: Tensor) -> Tensor:
        """0 … 255 by mean and standard deviation; what timm augmented is so already."""
        return images.float() / (255 * self.std) - self.mean / self.std if images.dtype == torch.uint8 else images

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)

    @torch.no_grad()
    def accuracy(self, model: nn.Module) -> tuple[float, float]:
        """Top-1 and top-5, of all images of the validation set that can be read."""
        training = model.training
        model.eval()
        mine = list(range(self.rank, len(self.valid), self.world))
        lists = [mine[i : i + self.each] for i in range(0, len(mine), self.each)]
        counts = torch.zeros(3, dtype=torch.long, device=self.device)
        for images, labels, unread in data.batches(self.valid, lists, self.options.workers):
            self.unread.update(unread)
            labels = labels.to(self.device)
            with self.autocast():
                logits = model(self.normalised(images.to(self.device)))
            right = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
            counts += torch.stack([right[:, 0].sum(), right.sum(), (labels != data.NOT_READ).sum()])
        if self.world > 1:
            distributed.all_reduce(counts)
        model.train(training)
        self.tell_unread()
        first, five, all_of_them = counts.tolist()
        return first / max(all_of_them, 1), five / max(all_of_them, 1)

    def everyones(self, thing) -> list:
        """What each process has."""
        things = [thing] * self.world
        if self.world > 1:
            distributed.all_gather_object(things, thing)
        return things

    def tell_unread(self) -> None:
        """Names files that any process could not read. Raises Refused past --unreadable. All processes must call it."""
        if isinstance(self.valid, data.InMemory):
            return
        for theirs in self.everyones(self.unread):
            self.unread |= theirs
        for path in sorted(self.unread.keys() - self.told):
            self.say(f"left out, since it cannot be read: {path} ({self.unread[path]})")
        self.told.update(self.unread)
        if len(self.told) > self.options.unreadable:
            one = next(iter(self.unread.items()))
            raise Refused(
                f"{len(self.told)} files cannot be read, more than --unreadable {self.options.unreadable} allows,"
                f" among them {one[0]} ({one[1]})"
            )


def build(options: argparse.Namespace, classes: int) -> VisionTransformer:
    """Raises Refused where sizes do not divide."""
    own = {name: getattr(options, name) for name in ("width", "depth", "heads") if getattr(options, name)}
    rational = {"backward": options.backward} if options.model == "kat" else {}
    try:
        return VisionTransformer(
            image_size=options.image_size,
            patch_size=options.patch_size,
            channels=len(options.mean),
            classes=classes,
            mlp=MLPS[options.model],
            drop_path=options.drop_path,
            **(MODELS[options.size] | own),
            **rational,
        )
    except ValueError as error:
        raise Refused(str(error)) from None
