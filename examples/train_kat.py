"""Train a Kolmogorov-Arnold Transformer, or a Vision Transformer, on images: on a CPU, a GPU or many.

python examples/train_kat.py digits --batch 100 --lr 3e-3 --epochs 30   a minute or two on a laptop
python examples/train_kat.py cifar10 --path DIR --compile               one GPU
torchrun --nproc-per-node 4 examples/train_kat.py folder --path DIR --init VIT.safetensors --compile
python examples/train_kat.py folder --path DIR --init FILE --eval       how good FILE is

These are lessons: a loop that can be read in one sitting, on your images or from weights that you have. To repeat a
published run on ImageNet, take its own train.py and command, with flashkat_lite.kat as the one import that changes
(book/coming_from_kat.md). With timm installed, this script mixes and augments as those runs do; it was never trained on
ImageNet, and promises none of their accuracies:

torchrun --nproc-per-node 8 examples/train_kat.py folder --path IMAGENET --batch 1024 --epochs 300 --drop-path 0.1 \\
  --mixup 0.8 --cutmix 1.0 --aa rand-m9-mstd0.5 --reprob 0.25 --ema 0.9999 --compile

Killed? Run the same command again. It goes on from the last checkpoint in --out, with the losses that it would have
had: an image's augmentation depends on seed, epoch and image alone, the order on seed and epoch. On a CPU they are the
same to the bit; on a GPU as far as PyTorch's own kernels repeat themselves. It may go on with other processes, as long
as --batch divides by their number: the same images make each batch, but --drop-path, --mixup and --cutmix draw anew.

"folder" is a folder with train/CLASS/*.jpg and val/CLASS/*.jpg, where names that begin with a dot are ignored;
"cifar10" takes the files that its authors offer, as they are; "digits" ships with scikit-learn; "synthetic" is noise of
ImageNet's shape, to measure speed. --out gets log.csv, checkpoint.pt, and best.pt with the weights of the best epoch;
torch.load(…)["model"] is a state dict with timm's names, "model_ema" that of the average.
"""

import argparse
import contextlib
import math
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from flashkat_lite import console
from flashkat_lite.ops import BACKWARDS

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # PYTHONSAFEPATH=1 leaves it out
from training import Refused, data, recipe, weights
from training.log import Log
from training.trial import MLPS, MODELS, Trial

IMAGE_AND_PATCH = {"digits": (8, 2), "cifar10": (32, 4), "folder": (224, 16), "synthetic": (224, 16)}
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
ELSEWHERE = {"mean": [0.5], "std": [0.25]}


class Run(Trial):
    """A model in training on this process's share of each batch; all of it that a checkpoint must keep."""

    def __init__(self, options: argparse.Namespace, start: dict | None):
        super().__init__(options, start, recipe.transform(options))
        if options.batch % (self.world * options.accumulate):
            raise Refused(
                f"--batch {options.batch} does not divide by {self.world} process(es) times --accumulate"
                f" {options.accumulate}"
            )
        self.mixing = recipe.mixing(options, len(self.valid.names))
        if self.mixing and self.each % 2:
            raise Refused(f"timm mixes pairs, but --batch {options.batch} gives a process parts of {self.each} images")
        self.epoch_steps = len(self.train) // options.batch
        if not self.epoch_steps:
            raise Refused(f"--batch {options.batch} is more than the {len(self.train)} training images")
        self.last_step = options.steps or options.epochs * self.epoch_steps
        self.ema = None
        if options.ema:
            self.ema = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(options.ema), use_buffers=True)
            self.ema.eval()
        self.forward: nn.Module = torch.compile(self.model, dynamic=False) if options.compile else self.model
        if self.world > 1:
            self.forward = nn.parallel.DistributedDataParallel(self.forward, gradient_as_bucket_view=True)
        torch.manual_seed(options.seed + self.rank)  # of dropout
        kinds = {True: options.weight_decay, False: 0.0}
        groups = {kind: {"params": [], "weight_decay": decay} for kind, decay in kinds.items()}
        for name, parameter in self.model.named_parameters():
            groups[decays(name, parameter)]["params"].append(parameter)
        self.optimizer = torch.optim.AdamW(groups.values(), lr=options.lr, fused=self.device.type == "cuda")
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=options.precision == "float16")
        self.step, self.seen, self.loss = 0, 0, torch.zeros((), device=self.device)  # since the last line of the log
        self.best = [-1.0, 0]  # accuracy, step
        self.signalled, self.stop = False, False  # this process alone; all of them, at a line of the log

    def lists(self, epoch: int, first_step: int) -> list[list[int]]:
        """The images of an epoch from one of its steps on, for this process: `accumulate` lists a step."""
        order = torch.randperm(len(self.train), generator=data.seeded(self.options.seed, epoch, 0))
        order = order[: self.epoch_steps * self.options.batch]
        shares = order.view(self.epoch_steps, self.options.accumulate, self.world, self.each)
        return shares[first_step:, :, self.rank].flatten(0, 1).tolist()

    def forward_loss(self, images: Tensor, labels: Tensor, part: int) -> Tensor:
        images, labels = (t.to(self.device, non_blocking=True) for t in (images, labels))
        images, smoothing = self.normalised(images), self.options.label_smoothing
        if self.mixing:
            draws = data.seeded(self.options.seed, self.step, part * self.world + self.rank, 2)
            with recipe.drawn_from(torch.rand(2, generator=draws)):
                (images, labels), smoothing = self.mixing(images, labels), 0.0
        with self.autocast():
            return functional.cross_entropy(self.forward(images), labels, label_smoothing=smoothing)

    def advance(self, loader) -> None:
        """One step of the optimizer."""
        parts = self.options.accumulate
        for part in range(parts):
            images, labels, unread = next(loader)
            self.unread.update(unread)
            if unread and labels.min() == data.NOT_READ:
                path, reason = unread[-1]
                raise Refused(f"{data.TRIES} files, one after another, cannot be read; the last is {path} ({reason})")
            together = part == parts - 1 or self.world == 1
            with contextlib.nullcontext() if together else self.forward.no_sync():
                loss = self.forward_loss(images, labels, part) / parts
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
        if self.ema:
            self.ema.update_parameters(self.model)
        self.step, self.seen = self.step + 1, self.seen + 1

    def mean_loss(self) -> float:
        """Over all processes and the steps since it was last asked for. A stop that one was told is told to all."""
        told = torch.stack([self.loss / self.seen, self.loss.new_tensor(float(self.signalled))])
        if self.world > 1:
            distributed.all_reduce(told)
        self.loss, self.seen = torch.zeros_like(self.loss), 0
        loss, self.stop = told[0].item() / self.world, told[1].item() > 0
        if not math.isfinite(loss):
            raise Refused(f"the loss is {loss} at step {self.step}: a smaller --lr or a longer --warmup may help")
        self.tell_unread()
        return loss

    def accuracies(self) -> dict[str, float]:
        """Of the model and, where there is one, of its average: a line of the log."""
        found = dict(zip(("accuracy", "top-5"), self.accuracy(self.model)))
        if self.ema:
            found |= dict(zip(("EMA accuracy", "EMA top-5"), self.accuracy(self.ema.module)))
        return found

    def kept(self) -> dict:
        """What is kept of a model: its weights, and what whoever evaluates it must know."""
        state = {"model": self.model.state_dict()} | ({"model_ema": self.ema.module.state_dict()} if self.ema else {})
        return state | {"step": self.step, "classes": self.valid.names, "asked": asked(self.options)}

    def keep_best(self, file: Path, found: dict[str, float]) -> None:
        """Writes the weights where they are the best so far, by the average's accuracy if there is an average."""
        accuracy = found.get("EMA accuracy", found["accuracy"])
        if accuracy > self.best[0]:
            self.best = [accuracy, self.step]
            if not self.rank:
                write(self.kept() | {"accuracy": found}, file)

    def save(self, file: Path) -> None:
        """The whole state."""
        self.tell_unread()
        random = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state()
        everyones = self.everyones(random)
        if self.rank:
            return
        state = self.kept() | {name: getattr(self, name).state_dict() for name in ("optimizer", "scaler")}
        state |= {"seen": self.seen, "loss": self.loss.cpu(), "random": everyones}
        state |= {"best": self.best, "images": len(self.train)}
        write(state, file)

    def resume(self, state: dict, file: Path) -> None:
        """Raises Refused where the checkpoint belongs to another run."""
        before, now = state.get("asked", {}), asked(self.options)
        differ = [name for name in now if before.get(name, now[name]) != now[name]]
        if differ or "optimizer" not in state:
            why = ", ".join(said(name, before[name]) for name in differ) or "of another script"
            raise Refused(f"{file} belongs to a run {why}: ask for that, or for another --out")
        if state.get("classes", self.valid.names) != self.valid.names:
            raise Refused(data.different(state["classes"], file, self.valid.names, self.options.path or "the data"))
        if state.get("images", len(self.train)) != len(self.train):
            self.say(f"{state['images']} training images have become {len(self.train)}: the order is another from here")
        for name in ("model", "optimizer", "scaler"):
            getattr(self, name).load_state_dict(state[name])
        if self.ema:
            self.ema.module.load_state_dict(state["model_ema"])
            self.ema.n_averaged.fill_(state["step"])
        self.step, self.seen, self.loss = state["step"], state["seen"], state["loss"].to(self.device)
        self.say(f"goes on from {file}, step {self.step}")
        if file.with_name("best.pt").exists():
            self.best = state.get("best", self.best)
        if len(state["random"]) == self.world and self.device.type in state["random"][self.rank]:
            torch.set_rng_state(state["random"][self.rank]["cpu"])
            if self.device.type == "cuda":
                torch.cuda.set_rng_state(state["random"][self.rank]["cuda"])
        else:
            torch.manual_seed(data.seeded(self.options.seed, self.step, self.rank, self.world).initial_seed())
            self.say(f"goes on with {self.world} process(es) instead of {len(state['random'])}: dropout draws anew")


def write(state: dict, file: Path) -> None:
    """In one piece or not at all."""
    partial = file.with_suffix(".partial")
    with partial.open("wb") as out:
        torch.save(state, out)
        out.flush()
        os.fsync(out.fileno())
    os.replace(partial, file)


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


def asked(options: argparse.Namespace) -> dict[str, object]:
    """What two runs must have in common to be one run."""
    free = {"out", "path", "workers", "log_every", "save_every", "cpu", "compile", "backward", "accumulate"}
    free |= {"eval", "unreadable", "init_key"}
    kept = {name: value for name, value in vars(options).items() if name not in free}
    return kept | {"init": options.init and options.init.name}  # it may lie elsewhere today, or be gone


def said(name: str, value: object) -> str:
    """An option, as one would type it."""
    option = f"--{name.replace('_', '-')}"
    if value is None:
        return f"without {option}"
    return f"with {option} {' '.join(map(str, value)) if isinstance(value, list) else value}"


def fit(run: Run, saved: dict | None) -> float:
    """Trains to the end, or to a signal; returns the last accuracy."""
    options = run.options
    folder, file = options.out, options.out / "checkpoint.pt"
    folder.mkdir(parents=True, exist_ok=True)
    if saved is not None:
        run.resume(saved, file)
    if len(steps := set(run.everyones(run.step))) > 1:
        raise Refused(f"processes found checkpoints of steps {sorted(steps)} in {folder}: all must see one folder")
    log, found = Log(folder / "log.csv", run), {}
    while run.step < run.last_step and not run.stop:
        epoch, first = divmod(run.step, run.epoch_steps)
        run.train.draws = torch.rand(len(run.train), data.DRAWS, generator=data.seeded(options.seed, epoch, 1))
        loader = iter(data.batches(run.train, run.lists(epoch, first), options.workers))
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
            found = run.accuracies()
            log.write(accuracies=found)
            run.keep_best(folder / "best.pt", found)
        run.save(file)
    if run.step == run.last_step and not found:
        found = run.accuracies()
    if log.bar is not None:
        log.bar.close()
    accuracy = found.get("accuracy", float("nan"))
    parts = [f"{name} {value:.4f}" for name, value in ({"accuracy": accuracy} | found).items()]
    parts += [f"best {run.best[0]:.4f} at step {run.best[1]}"] * (run.best[0] >= 0)
    parts += [f"{len(run.told)} file(s) not read"] * bool(run.told)
    done = "done" if run.step == run.last_step else "stopped; the same command goes on from here"
    run.say(f"step {run.step} of {run.last_step}, {', '.join(parts)}, {folder}: {done}")
    return accuracy


def evaluate(trial: Trial) -> float:
    """Says top-1 and top-5, and returns top-1."""
    first, five = trial.accuracy(trial.model)
    unread = f", {len(trial.told)} of which cannot be read" if trial.told else ""
    trial.say(f"top-1 {first:.4f}, top-5 {five:.4f} of {len(trial.valid)} images{unread}")
    return first


@contextlib.contextmanager
def stopped_by(run: Run, *signals: signal.Signals):
    """The first of these signals ends the run at its next line of the log, with a checkpoint; a second one, at once."""

    def stop(number: int, frame: object) -> None:
        run.signalled = True
        signal.signal(number, before[number])

    before = {number: signal.signal(number, stop) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# The command


def parser() -> argparse.ArgumentParser:
    say, _, more = __doc__.partition("\n\n")
    made = argparse.ArgumentParser(
        description=say, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = made.add_argument
    add("data", choices=IMAGE_AND_PATCH, help="what to train on")
    add("--path", type=Path, help="where folder's or cifar10's files lie")
    add("--out", type=Path, help="for log and checkpoints (default: runs/DATA-MODEL)")
    add("--init", type=Path, metavar="FILE", help="start from the weights of a ViT, KAT or FlashKAT with timm's names")
    add("--init-key", metavar="KEY", help=f"where in FILE they are (default: the first of {', '.join(weights.KEYS)})")
    add("--eval", action="store_true", help="test FILE, or the run's checkpoint, and train nothing")
    model = made.add_argument_group("model")
    add = model.add_argument
    add("--model", choices=MLPS, default="kat", help="kat: group-rational MLPs; vit: GELU (default: kat)")
    add("--size", choices=MODELS, help="width 64 and 4 blocks; 192, 384 or 768 and 12 (default: tiny; digits: pico)")
    for name in ("width", "depth", "heads"):
        add(f"--{name}", type=positive, help=f"instead of the size's own {name}")
    sizes = ", ".join(f"{name} {size[0]}" for name, size in IMAGE_AND_PATCH.items())
    add("--image-size", type=positive, help=f"pixels ({sizes})")
    sizes = ", ".join(f"{name} {size[1]}" for name, size in IMAGE_AND_PATCH.items())
    add("--patch-size", type=positive, help=f"pixels ({sizes})")
    add("--drop-path", type=number(0, 1), default=0.0, help="stochastic depth of the last block (default: 0)")
    add("--backward", choices=BACKWARDS, default="stationary", help="kat: which kernel (default: stationary)")
    training = made.add_argument_group("training")
    add = training.add_argument
    add("--epochs", type=positive, default=30, help="over the training set (default: 30)")
    add("--steps", type=positive, help="instead of --epochs")
    add("--batch", type=positive, default=256, help="images a step, of all processes together (default: 256)")
    add("--accumulate", type=positive, default=1, help="parts in which a process takes its share (default: 1)")
    add("--lr", type=number(0), default=1e-3, help="the highest learning rate (default: 0.001)")
    add("--warmup", type=number(0, 1), default=0.05, help="share of the steps on the way there (default: 0.05)")
    add("--weight-decay", type=number(0), default=0.05, help="of matrices, not of functions' tables (default: 0.05)")
    add("--label-smoothing", type=number(0, 1), default=0.1, help="(default: 0.1)")
    add("--clip", type=number(0), default=1.0, help="the gradient's norm, at most; 0 for none (default: 1)")
    add(
        "--ema",
        type=number(0, 1),
        metavar="DECAY",
        help="of an average of the weights, tested too: 0.9999 for long runs",
    )
    add("--seed", type=int, default=0, help="of weights, order and augmentation (default: 0)")
    images = made.add_argument_group("images")
    add = images.add_argument
    for name, what in (("mean", "of a channel, from 0 to 1"), ("std", "standard deviation of a channel")):
        default = f"the checkpoint's; folder: {' '.join(map(str, IMAGENET[name]))}; else {ELSEWHERE[name][0]}"
        add(f"--{name}", type=float, nargs="+", help=f"{what} (default: {default})")
    add(
        "--crop-pct",
        type=number(0.01, 1),
        default=7 / 8,
        help="folder: the part of the shorter side to test (default: 0.875)",
    )
    add("--unreadable", type=natural, default=5, metavar="N", help="folder: files to leave out (default: 5)")
    timms = made.add_argument_group("by timm", "pip install -e .[imagenet]; it also crops and mirrors then")
    add = timms.add_argument
    add("--mixup", type=number(0), default=0.0, metavar="ALPHA", help="(default: 0; the published runs: 0.8)")
    add("--cutmix", type=number(0), default=0.0, metavar="ALPHA", help="(default: 0; the published runs: 1.0)")
    add("--aa", metavar="POLICY", help="RandAugment (the published runs: rand-m9-mstd0.5)")
    add("--reprob", type=number(0, 1), default=0.0, help="random erasing (default: 0; the published runs: 0.25)")
    add("--remode", choices=("const", "rand", "pixel"), default="pixel", help="what is put there (default: pixel)")
    machine = made.add_argument_group("machine")
    add = machine.add_argument
    add(
        "--precision",
        choices=("float32", "bfloat16", "float16"),
        help="(default: bfloat16 on a GPU, float16 where it has none, float32 on a CPU)",
    )
    add("--compile", action="store_true", help="torch.compile: a minute once, then faster")
    add("--cpu", action="store_true", help="although there is a GPU")
    add("--workers", type=natural, default=8, help="processes that decode a folder's images (default: 8)")
    add("--log-every", type=positive, default=20, metavar="STEPS", help="(default: 20)")
    add("--save-every", type=positive, default=500, metavar="STEPS", help="and after each epoch (default: 500)")
    return made


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive whole number, not {text}")
    return int(text)


def natural(text: str) -> int:
    return 0 if text == "0" else positive(text)


def number(low: float, high: float = math.inf) -> Callable[[str], float]:
    def checked(text: str) -> float:
        with contextlib.suppress(ValueError):
            if low <= float(text) <= high:
                return float(text)
        bounds = f"from {low} to {high}" if high < math.inf else f"of at least {low}"
        raise argparse.ArgumentTypeError(f"must be a number {bounds}, not {text}")

    return checked


def settings(contents: dict) -> dict[str, object]:
    """The options with which a checkpoint was made, as far as it says: ours, or timm's train.py's."""
    if "asked" in contents:
        return ELSEWHERE | contents["asked"]
    return vars(contents["args"]) if isinstance(contents.get("args"), argparse.Namespace) else {}


def settle(options: argparse.Namespace) -> tuple[dict | None, dict | None]:
    """Fills in what was left open. Returns the run's checkpoint, and the one to begin from. Raises Refused."""
    image, patch = IMAGE_AND_PATCH[options.data]
    if options.data in ("digits", "cifar10") and options.image_size not in (None, image):
        raise Refused(f"--image-size is {image} for {options.data}")
    options.image_size, options.patch_size = options.image_size or image, options.patch_size or patch
    options.size = options.size or ("pico" if options.data == "digits" else "tiny")
    options.out = options.out or Path("runs") / f"{options.data}-{options.model}"
    on_gpu = torch.cuda.is_available() and not options.cpu
    narrow = "bfloat16" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    options.precision = options.precision or (narrow if on_gpu else "float32")
    file, saved, start = options.out / "checkpoint.pt", None, None
    if options.eval:
        options.init = options.init or file
    elif file.exists():
        saved = weights.read(file)
    if options.init and saved is None:
        start = weights.read(options.init)
    recorded, channels = settings(saved or start or {}), 1 if options.data == "digits" else 3
    for name, default in (IMAGENET if options.data == "folder" else ELSEWHERE).items():
        values = list(getattr(options, name) or recorded.get(name) or default)
        if len(values) not in (1, channels) or (name == "std" and min(values) <= 0):
            raise Refused(f"--{name} must be {channels} number(s), a standard deviation above 0, not {values}")
        setattr(options, name, values * (channels // len(values)))
    return saved, start


def main(arguments: list[str] | None = None) -> float:
    command = parser()
    options = command.parse_args(arguments)
    try:
        saved, start = settle(options)
        if options.eval:
            return evaluate(Trial(options, start))
        run = Run(options, start)
        del start
        with stopped_by(run, signal.SIGTERM, signal.SIGINT):
            return fit(run, saved)
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
