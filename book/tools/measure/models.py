"""Training speed and peak memory of ViT and KAT on this GPU: `python book/tools models`, about 5 minutes on an H200.

One step is forward, cross entropy, backward and a fused AdamW step on random images of ImageNet's shape, under autocast
to bfloat16. The variants of a size are timed against one another, in turns of a few steps, so that all meet the same
clocks; peak memory is that of a step with no other model on the GPU. The record is written after each size, and a
later run on the same day and machine replaces only what it measured, so the work can be split by the options.
"""

import argparse
import dataclasses
import functools
import gc
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from flashkat_lite import GRKAN, hardware, records
from flashkat_lite.records import Record
from flashkat_lite.testing import check_kernels, random_inputs
from flashkat_lite.vit import SIZES, VisionTransformer

BATCH = 256
VARIANTS = {
    "vit": {"mlp": "mlp"},
    "vit-norm": {"mlp": "mlp", "norm": "ours"},
    "kat": {"mlp": "grkan", "backward": "stationary", "norm": "torch"},
    "kat-norm": {"mlp": "grkan", "backward": "stationary", "norm": "fused"},
    "kat-ours": {"mlp": "grkan", "backward": "stationary", "norm": "ours"},
    "kat-block": {"mlp": "grkan", "backward": "block", "norm": "torch"},
    "timm-vit": {"mlp": "mlp", "timm": True},
    "timm-kat-norm": {"mlp": "grkan", "backward": "stationary", "norm": "fused", "timm": True},
}
# In the order of measuring. Compiling is slow, and the block kernel's share shows in eager mode. "graphs" is compiled
# with CUDA graphs: a small model's step is launched faster than the host could launch its kernels one by one.
MODES = {"eager": tuple(VARIANTS)} | dict.fromkeys(
    ("compiled", "graphs"), ("vit", "vit-norm", "kat", "kat-norm", "kat-ours")
)
COMPILE = {"compiled": {}, "graphs": {"mode": "reduce-overhead"}}
STEPS, ROUNDS = 5, 6  # steps in a turn, turns of each variant


class Training:
    """One model in training on one batch: a call makes one step and returns the loss, without waiting for the GPU."""

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor, mode: str = "eager"):
        self.model, self.images, self.labels = model, images, labels
        self.forward = model if mode == "eager" else torch.compile(model, dynamic=False, **COMPILE[mode])
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def __call__(self) -> Tensor:
        with torch.autocast(self.images.device.type, torch.bfloat16):
            loss = nn.functional.cross_entropy(self.forward(self.images), self.labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def to(self, device: str | torch.device) -> None:
        """Move the weights and the optimizer's state, not the batch. What was compiled stays valid on its device, CUDA
        graphs are recorded anew.
        """
        self.model.to(device)
        for state in self.optimizer.state.values():
            state.update({name: value.to(device) for name, value in state.items()})


def synthetic(batch: int, image_size: int, classes: int, device: str) -> tuple[Tensor, Tensor]:
    """Images [batch, 3, image_size, image_size], float32, random normal, and labels [batch]; seeded."""
    generator = torch.Generator(device).manual_seed(0)
    images = torch.randn(batch, 3, image_size, image_size, generator=generator, device=device)
    return images, torch.randint(classes, (batch,), generator=generator, device=device)


def peak_bytes(step: Callable[[], Tensor]) -> int | None:
    """The most memory allocated on the GPU during one step, all that was there before included; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def warm_up(training: Training, steps: int = 3) -> None:
    """Compile, tune and allocate. FloatingPointError where the loss is not finite."""
    for _ in range(steps):
        loss = training()
    if not loss.isfinite():
        raise FloatingPointError(f"after {steps} steps the loss is {loss.item()}")


def gpu_work(step: Callable[[], Tensor], steps: int = 2, most: int = 12) -> dict[str, object]:
    """A step's work on the GPU: {"gpu_ms": of all kernels, "kernels": the `most` largest}; None where there is no GPU.

    A step takes longer than its kernels where the GPU waits for the host. Each of "kernels" has "name", "ms" and
    "launches" of one step; their names tell GEMMs, attention and ours apart.
    """
    if not torch.cuda.is_available():
        return {"gpu_ms": None, "kernels": None}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
    kernels = [
        {"name": event.key[:160], "ms": event.self_device_time_total / steps / 1e3, "launches": event.count / steps}
        for event in profiler.key_averages()
        if event.self_device_time_total > 0
    ]
    kernels.sort(key=lambda kernel: -kernel["ms"])
    return {"gpu_ms": sum(kernel["ms"] for kernel in kernels), "kernels": kernels[:most]}


def turn(step: Callable[[], Tensor], steps: int) -> Callable[[], None]:
    def run():
        for _ in range(steps):
            step()

    return run


def measure(
    models: dict[str, Callable[[], nn.Module]],
    images: Tensor,
    labels: Tensor,
    *,
    mode: str = "eager",
    steps: int = STEPS,
    rounds: int = ROUNDS,
) -> dict[str, dict[str, float | int | None]]:
    """Train the models, first each alone for its peak memory, then in turns for their speed.

    models: functions that build them, on any device. Returns for each "parameters", "ms" of one step (the median of
    `rounds` turns of `steps` steps, each after an untimed turn; "low" and "high" are quantiles at 20 and 80 %),
    "repeats", "images_per_second", "peak_bytes", what `gpu_work` says of a step, and of compiling "graphs" and
    "graph_breaks". A model that is too large for the GPU is named and left out.
    """
    device = images.device
    trainings, peaks, graphs = {}, {}, {}
    for name, build in models.items():
        training = None
        before = _dynamo_counts()
        try:
            training = Training(build().to(device), images, labels, mode)
            warm_up(training)
            graphs[name] = {what: count - before[what] for what, count in _dynamo_counts().items()}
            # A CUDA graph's memory is its own: the allocator does not see it.
            peaks[name] = None if mode == "graphs" else peak_bytes(training)
            trainings[name] = training
        except torch.OutOfMemoryError:
            print(f"  {name} left out: not enough memory on this GPU", flush=True)
        if training:
            training.to("cpu")  # the next one is to be alone
        _free()
    for training in trainings.values():
        training.to(device)
        warm_up(training)
    turns = {name: turn(training, steps) for name, training in trainings.items()}
    timings = hardware.time_interleaved(turns, seconds=0, warmup=0, cold_l2=False, least=rounds)
    return {
        name: {
            "parameters": sum(p.numel() for p in trainings[name].model.parameters()),
            "ms": timing.median / steps,
            "low": timing.low / steps,
            "high": timing.high / steps,
            "repeats": timing.repeats,
            "images_per_second": len(images) * steps / timing.median * 1e3,
            "peak_bytes": peaks[name],
            **graphs[name],
            **gpu_work(trainings[name]),
        }
        for name, timing in timings.items()
    }


def _dynamo_counts() -> dict[str, int]:
    counters = torch._dynamo.utils.counters
    return {"graphs": counters["stats"]["unique_graphs"], "graph_breaks": sum(counters["graph_break"].values())}


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def builders(size: str, variants: list[str]) -> dict[str, Callable[[], nn.Module]]:
    def build(timm: bool = False, **options) -> nn.Module:
        return of_timm(size, options["mlp"]) if timm else VisionTransformer(**SIZES[size], **options)

    return {v: functools.partial(build, **VARIANTS[v]) for v in variants}


def of_timm(size: str, mlp: str) -> nn.Module:
    """timm's own ViT; with "grkan" each block's MLP and the norm before it are replaced by one GRKAN."""
    import timm

    model = timm.create_model(f"vit_{size}_patch16_224")
    for block in model.blocks if mlp == "grkan" else ():
        norm = block.norm2
        hidden = block.mlp.fc1.out_features
        block.mlp = GRKAN(model.embed_dim, hidden, norm="layer", norm_eps=norm.eps)
        block.norm2 = nn.Identity()
    return model


def lines(size: str, mode: str, found: dict[str, dict]) -> list[dict]:
    """What `measure` found for one size in the record's form, printed on the way.

    "fraction_of_vit" is the speed over that of ViT, timm's for timm's, in the same turns; None where it took no part.
    """
    rows = []
    for variant, values in found.items():
        beside = found.get("timm-vit" if VARIANTS[variant].get("timm") else "vit")
        share = beside["ms"] / values["ms"] if beside else None
        row = {"size": size, "variant": variant, "backward": None, **VARIANTS[variant], "mode": mode}
        rows.append({**row, **values, "fraction_of_vit": share})
        print(
            f"{size:<6} {mode:<9} {variant:<10} {values['images_per_second']:>8.0f} images/s {values['ms']:>8.2f} ms"
            + (f" {values['peak_bytes'] / 1e9:>7.2f} GB" if values["peak_bytes"] else "")
            + (f" {share:>6.3f} of ViT's speed" if share else "")
            + (f" {values['gpu_ms']:>8.2f} ms of kernels" if values["gpu_ms"] else ""),
            flush=True,
        )
    return rows


# The record


def merged(old: Record | None, new: Record) -> Record:
    """`new`, and the results of `old` that it does not replace, if `old` is of the same day, machine and settings."""
    if old is None or any(part(old) != part(new) for part in (_machine, _settings)):
        return new
    replaced = {_key(row) for row in new.data["results"]}
    kept = [row for row in old.data["results"] if _key(row) not in replaced]
    commands = dict.fromkeys([*(old.command.split(" && ") if kept else []), new.command])
    data = new.data | {"results": sorted(kept + new.data["results"], key=_key)}
    return dataclasses.replace(new, command=" && ".join(commands), data=data)


def _machine(record: Record) -> tuple:
    return record.device, record.versions, record.date


def _settings(record: Record) -> dict:
    return {name: value for name, value in record.data.items() if name != "results"}


def _key(row: dict) -> tuple[int, int, int]:
    return tuple(
        list(kind).index(row[name]) for name, kind in zip(("size", "mode", "variant"), (SIZES, MODES, VARIANTS))
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: _build/records/<gpu>/models.json")
    parser.add_argument("--quick", action="store_true", help="tiny, eager, few turns; writes nothing without --out")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, help="default: all")
    parser.add_argument("--modes", nargs="+", choices=MODES, help="default: all")
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=VARIANTS,
        help="default: all but timm's; those and the block kernel's are eager",
    )
    parser.add_argument("--batch", type=int, default=BATCH, help=f"images in a step (default: {BATCH})")
    options = parser.parse_args(arguments)
    options.command = _command(options)
    options.sizes = options.sizes or (["tiny"] if options.quick else list(SIZES))
    options.modes = options.modes or (["eager"] if options.quick else list(MODES))
    options.variants = options.variants or [name for name in VARIANTS if not VARIANTS[name].get("timm")]
    return options


def _command(options: argparse.Namespace) -> str:
    """What makes the record again, wherever it was written to."""
    words = ["python book/tools models"] + ["--quick"] * options.quick
    for name in ("sizes", "modes", "variants"):
        if values := getattr(options, name):
            words += [f"--{name}", *values]
    return " ".join(words + [f"--batch {options.batch}"] * (options.batch != BATCH))


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if hardware.device() is None:
        print("models.py needs a CUDA device, and there is none here: `python -m flashkat_lite doctor` says why.")
        return 2
    out = options.out or (None if options.quick else records.fresh_path("models"))
    steps, rounds = (STEPS, 3) if options.quick else (STEPS, ROUNDS)
    settings = {"batch": options.batch, "image_size": 224, "autocast": "bfloat16", "optimizer": "AdamW, fused"}
    record = records.make(
        "models",
        title="Training ViT and KAT: images a second and peak memory",
        command=options.command,
        data=settings | {"steps": steps, "results": []},
    )
    backwards = dict.fromkeys(VARIANTS[v]["backward"] for v in options.variants if "backward" in VARIANTS[v])
    check_kernels(*random_inputs(4096, 768, dtype=torch.bfloat16), list(backwards))
    print("kernels agree with the reference in float64", flush=True)
    images, labels = synthetic(options.batch, 224, 1000, "cuda")
    for mode in sorted(options.modes, key=list(MODES).index):
        for size in options.sizes:
            torch.compiler.reset()
            models = builders(size, [v for v in options.variants if v in MODES[mode]])
            found = measure(models, images, labels, mode=mode, steps=steps, rounds=rounds)
            record.data["results"] += lines(size, mode, found)
            _free()
            if out:
                merged(records.read(out) if out.exists() else None, record).save(out)
    if out:
        print(f"Written: {out}")
    return 0
