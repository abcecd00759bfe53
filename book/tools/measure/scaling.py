"""KAT-B on one GPU and on many: `python book/tools scaling`, about a minute on two H200s.

Weak scaling: every GPU trains on a batch of its own, under DistributedDataParallel, with autocast to bfloat16 and a
fused AdamW, on 1, 2, 4 and 8 GPUs of this host as far as it has them. For each size of bucket the same step is timed
with and without synchronisation (`no_sync`), in turns, and the all-reduce of the same bytes alone: what a step takes
longer with synchronisation is what overlap could not hide. Starts its own processes, one for each GPU.
"""

import argparse
import contextlib
import copy
import datetime
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, distributed, nn

from flashkat_lite import hardware, records
from flashkat_lite.vit import SIZES, VisionTransformer

COUNTS = (1, 2, 4, 8)
BUCKETS = (1, 25, 100)  # MB; PyTorch's default is 25
KAT_B = {"model": {**SIZES["base"], "mlp": "grkan"}, "batch": 256, "steps": 3, "rounds": 5}
PICO = {
    "model": {"image_size": 16, "patch_size": 8, "classes": 10, "width": 16, "depth": 2, "heads": 2, "mlp": "grkan"},
    "batch": 4,
    "steps": 1,
    "rounds": 2,
}


def images_and_labels(model: VisionTransformer, batch: int, rank: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """A batch of random images and labels, of another seed for each rank."""
    generator = torch.Generator().manual_seed(rank)
    images = torch.randn(batch, *model.image_shape, generator=generator)
    labels = torch.randint(model.head.out_features, (batch,), generator=generator)
    return images.to(device), labels.to(device)


def training_step(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[bool], Tensor]:
    """step(synchronise): forward, backward and AdamW; without synchronisation each rank keeps its own gradients."""
    fused = images.device.type == "cuda"
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=fused)

    def step(synchronise: bool) -> Tensor:
        apart = contextlib.nullcontext() if synchronise else model.no_sync()
        with apart:
            with torch.autocast(images.device.type, torch.bfloat16):
                loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def turn(step: Callable[[bool], Tensor], synchronise: bool, steps: int) -> Callable[[], None]:
    def run():
        for _ in range(steps):
            step(synchronise)

    return run


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """Of one call on all ranks together: from a barrier to the end of the slowest."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    distributed.barrier()
    start = time.perf_counter()
    function()
    wait()
    elapsed = torch.tensor(time.perf_counter() - start, dtype=torch.float64, device=device)
    distributed.all_reduce(elapsed, distributed.ReduceOp.MAX)
    return elapsed.item()


def in_turns(functions: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Milliseconds of every call: rounds of one call each, after one that is not counted."""
    found = {name: [] for name in functions}
    for i in range(rounds + 1):
        for name, function in functions.items():
            elapsed = 1e3 * seconds(function, device)
            if i:
                found[name].append(elapsed)
    return found


def all_reduce_alone(nbytes: int, bucket: float, device: torch.device) -> Callable[[], None]:
    """The all-reduce of `nbytes` of float32 in buckets of so many MB, with nothing beside it."""
    gradients = torch.zeros(nbytes // 4, device=device)
    pieces = gradients.split(max(1, int(bucket * 2**20) // 4))

    def run():
        for work in [distributed.all_reduce(piece, async_op=True) for piece in pieces]:
            work.wait()

    return run


def same_everywhere(model: nn.Module) -> bool:
    """Whether all ranks hold the same parameters, by the sum of their absolute values in float64."""
    mine = sum(p.detach().double().abs().sum() for p in model.parameters())
    extremes = torch.stack([mine, -mine])
    distributed.all_reduce(extremes, distributed.ReduceOp.MAX)
    return bool(extremes[0] == -extremes[1])


def worker(rank: int, count: int, settings: dict, folder: str) -> None:
    """One rank of `count`: rank 0 leaves the results in the folder."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    distributed.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=(Path(folder) / f"meet-{count}").as_uri(),
        rank=rank,
        world_size=count,
        timeout=datetime.timedelta(minutes=2),
        device_id=device if on_gpu else None,
    )
    try:
        results = measure(rank, count, settings, device)
        distributed.barrier()  # who leaves early takes the meeting's file along
    finally:
        distributed.destroy_process_group()
    if rank == 0:
        (Path(folder) / f"results-{count}.json").write_text(json.dumps(results), encoding="utf-8")


def measure(rank: int, count: int, settings: dict, device: torch.device) -> list[dict]:
    torch.manual_seed(0)
    start = VisionTransformer(**settings["model"]).to(device)
    images, labels = images_and_labels(start, settings["batch"], rank, device)
    parameters = sum(p.numel() for p in start.parameters())
    results = []
    for bucket in settings["buckets"] if count > 1 else [25]:
        options = {"device_ids": [device.index]} if device.type == "cuda" else {}
        model = nn.parallel.DistributedDataParallel(
            copy.deepcopy(start), bucket_cap_mb=bucket, gradient_as_bucket_view=True, **options
        )
        step = training_step(model, images, labels)
        for _ in range(2):  # compile, allocate; the second step has its buckets in the order of the first
            loss = step(True)
        if not loss.isfinite() or not same_everywhere(model):
            raise FloatingPointError(f"rank {rank} of {count}: loss {loss.item()}, or parameters differ between ranks")
        steps = settings["steps"]
        cases = {"alone": turn(step, False, steps)}
        if count > 1:
            cases["together"] = turn(step, True, steps)
            cases["all_reduce"] = all_reduce_alone(4 * parameters, bucket, device)
        times = in_turns(cases, settings["rounds"], device)
        each = sorted(ms / steps for ms in times["together" if count > 1 else "alone"])
        results.append(
            {
                "gpus": count,
                "bucket_mb": bucket if count > 1 else None,
                "parameters": parameters,
                "ms": statistics.median(each),
                "low": each[0],
                "high": each[-1],
                "ms_without_synchronisation": statistics.median(times["alone"]) / steps,
                "ms_all_reduce_alone": statistics.median(times["all_reduce"]) if count > 1 else 0.0,
            }
        )
        model = step = cases = None
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return results


def with_speeds(results: list[dict], batch: int) -> list[dict]:
    """Images a second of all GPUs together, and as a share of so many times the one GPU's."""
    one = next((row["ms"] for row in results if row["gpus"] == 1), None)
    return [
        row
        | {
            "images_per_second": 1e3 * batch * row["gpus"] / row["ms"],
            "fraction_of_linear": one and one / row["ms"],
        }
        for row in results
    ]


def run(counts: list[int], settings: dict) -> list[dict]:
    """Each count of processes in turn; what they measured, printed on the way."""
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for count in counts:
            if count == 1:
                worker(0, 1, settings, folder)
            else:
                torch.multiprocessing.spawn(worker, (count, settings, folder), nprocs=count)
            results += json.loads((Path(folder) / f"results-{count}.json").read_text(encoding="utf-8"))
    rows = with_speeds(results, settings["batch"])
    for row in rows:
        bucket = f"{row['bucket_mb']:>4} MB" if row["bucket_mb"] else "       "
        share = f" {row['fraction_of_linear']:.3f} of linear" if row["fraction_of_linear"] else ""
        print(
            f"{row['gpus']} GPUs {bucket} {row['images_per_second']:>8.0f} images/s {row['ms']:>8.2f} ms"
            f" ({row['ms_without_synchronisation']:.2f} without synchronisation,"
            f" all-reduce alone {row['ms_all_reduce_alone']:.2f}){share}",
            flush=True,
        )
    return rows


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: _build/records/<gpu>/scaling.json")
    parser.add_argument("--quick", action="store_true", help="a pico model, also on CPU; writes nothing without --out")
    parser.add_argument("--gpus", type=int, nargs="+", help="default: 1, 2, 4 and 8, as far as there are GPUs")
    parser.add_argument("--batch", type=int, help=f"images for each GPU (default: {KAT_B['batch']})")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    facts, here = hardware.device(), torch.cuda.device_count()
    if facts is None and not options.quick:
        print("scaling.py needs a CUDA device, and there is none here: `python -m flashkat_lite doctor` says why.")
        return 2
    counts = options.gpus or [n for n in COUNTS if n <= (here or 2)]
    if facts and max(counts) > here:
        print(f"scaling.py was asked for {max(counts)} GPUs, and there are {here} here.")
        return 2
    settings = (PICO if options.quick else KAT_B) | {"buckets": (1, 25) if options.quick else BUCKETS}
    settings |= {"batch": options.batch} if options.batch else {}
    results = run(counts, settings)
    words = ["python book/tools scaling"] + ["--quick"] * options.quick
    words += ["--gpus", *map(str, options.gpus)] if options.gpus else []
    words += ["--batch", str(options.batch)] if options.batch else []
    record = records.make(
        "scaling",
        title="Training KAT-B on one GPU and on many, a fixed batch for each",
        command=" ".join(words),
        data={
            "batch_per_gpu": settings["batch"],
            "autocast": "bfloat16",
            "optimizer": "AdamW, fused",
            "steps": settings["steps"],
            "rounds": settings["rounds"],
            "gradient_bytes": 4 * results[0]["parameters"],
            "results": results,
        },
        gpus=max(counts),
    )
    out = options.out or (None if options.quick else records.fresh_path("scaling"))
    if out:
        record.save(out)
        print(f"Written: {out}")
    return 0
