"""Checks of chapter 14: the traffic of two levels, column sums, a bincount that chooses, and LayerNorm's backward."""

import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional

from .common import DEVICE, Wrong, poisoned, right, same_bits, same_number, same_tensor, timed, watching
from .kernels import counting
from .numerics import programs

MARGIN = 8192  # elements of NaN on either side of an input


def two_level_traffic(f: Callable[[int, int, float], tuple[float, float, int]]) -> None:
    """14-1: (bytes a GPU sends in its host, bytes its network card sends, steps) for (hosts, gpus, nbytes)."""
    for hosts, gpus, nbytes in [(4, 8, 346e6), (2, 4, 1200.0), (16, 8, 14e9), (1, 4, 346e6), (5, 1, 100.0)]:
        answer = f(hosts, gpus, nbytes)
        if not isinstance(answer, tuple) or len(answer) != 3:
            raise Wrong(f"expected a tuple (bytes inside, bytes of a card, steps), got {answer!r}")
        size, n = f"{hosts} hosts of {gpus} GPUs, {nbytes:,.0f} bytes", hosts * gpus
        phase = (gpus - 1) / gpus * nbytes
        same_number(
            f"bytes that a GPU sends inside its host, {size}", answer[0], 2 * phase,
            {"there are two phases inside a host, before the network and after it": phase,
             "that is one ring of all GPUs": 2 * (n - 1) / n * nbytes,
             "every GPU sends everything: pieces go round, of 1/gpus each": 2 * (gpus - 1) * nbytes},
        )  # fmt: skip
        card = 2 * (hosts - 1) / hosts * nbytes / gpus
        same_number(
            f"bytes that a card sends, {size}", answer[1], card,
            {"after the first phase a GPU holds the host's sum of 1/gpus of the bytes only": card * gpus,
             "an all-reduce has two phases": card / 2,
             "that is one ring of all GPUs": 2 * (n - 1) / n * nbytes},
        )  # fmt: skip
        same_number(
            f"steps, {size}", answer[2], 2 * (gpus - 1) + 2 * (hosts - 1),
            {"that is one ring of all GPUs": 2 * (n - 1),
             "each level has two phases": gpus - 1 + hosts - 1},
        )  # fmt: skip
    right("bytes and steps of five clusters")


def _surrounded(size: int, seed: int) -> Tensor:
    """Random normal values with NaN before and after them in memory: what a mask forgets becomes visible."""
    everything = torch.full((2 * MARGIN + size,), float("nan"))
    everything[MARGIN : MARGIN + size] = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    return everything.to(DEVICE)[MARGIN : MARGIN + size]


@poisoned()
def column_sums_strided(f: Callable[[Tensor], Tensor]) -> None:
    """14-2: float32 column sums of a matrix of any strides, without atomic additions, the same bits each time."""
    cases = {
        "37 rows of 8": _surrounded(37 * 8, 1).view(37, 8),
        "a transposed matrix of 300 rows": _surrounded(300 * 20, 2).view(20, 300).T,
        "every second column of 14": _surrounded(200 * 14, 3).view(200, 14)[:, ::2],
        "every third row of 1000": _surrounded(1000 * 9, 4).view(1000, 9)[::3],
        "1 row of 300": _surrounded(300, 5).view(1, 300),
    }
    for name, x in cases.items():
        what, wide = f"column sums of {name}", x.double()
        got = f(x)
        if isinstance(got, Tensor) and got.dtype != torch.float32:
            raise Wrong(f"{what}: expected dtype torch.float32, got {got.dtype}")
        plain = x.as_strided(x.shape, (x.shape[1], 1)).double().sum(0)
        same_tensor(
            what, got, wide.sum(0), 4 * len(x) ** 0.5 * 2.0**-24 * wide.abs().sum(0) + 1e-30,
            {"strides were taken for those of a contiguous matrix": plain,
             "every column holds the total of all of them": wide.sum().expand(x.shape[1]),
             "each element was added twice: is memory from `empty` written before it is read?": 2 * wide.sum(0)},
        )  # fmt: skip
        same_bits(what, got, f(x), "a second call")
        if DEVICE == "cpu":
            with programs(backwards=True):
                again = f(x)
            same_bits(what, got, again, "programs run in reverse order")
    if DEVICE == "cpu":
        with counting() as count, programs() as seen:
            f(cases["a transposed matrix of 300 rows"])
        if not seen:
            raise Wrong("expected a Triton kernel, got none: no program ran")
        if count.adds:
            raise Wrong(f"expected no atomic additions, got {count.adds:,}: store partial sums and add those in order")
        print("No GPU here: correctness was checked, speed was not.")
    else:
        from flashkat_lite.lab.solutions_elsewhere import column_sums_strided_solution as ours

        x = torch.randn(2**18, 512, device=DEVICE)
        timed(f, ours, (x,), "2¹⁸ rows of 512", nbytes=x.nbytes)
        x = torch.randn(512, 2**18, device=DEVICE).T
        timed(f, ours, (x,), "the same, transposed", nbytes=x.nbytes)
    right("column sums of five layouts, the same bits each time")


@poisoned()
def weighted_bincount(f: Callable[[Tensor, Tensor, int], Tensor]) -> None:
    """14-3: sums of weights by index, by atomic additions where count <= 32 size, else with few of them."""
    for seed, (count, size) in enumerate([(20000, 7), (3000, 100_000), (1, 1), (5000, 300)]):
        index = torch.full((count + MARGIN,), size - 1)
        index[:count] = torch.randint(size, (count,), generator=torch.Generator().manual_seed(seed))
        index, weights = index.to(DEVICE)[:count], _surrounded(count, 10 + seed)
        what = f"{count:,} weights on {size:,} addresses"
        if size > count:
            with _no_sorting(what):
                got = f(index, weights, size)
        else:
            got = f(index, weights, size)
        _sums(what, got, index, weights, size)
        _sums(f"{what}, a second call", f(index, weights, size), index, weights, size)
        if DEVICE == "cpu":
            with counting() as counted:
                f(index, weights, size)
            crowded = count > 32 * size
            if crowded and counted.adds > count // 32:
                raise Wrong(
                    f"{what}: expected at most {count // 32:,} atomic additions, got {counted.adds:,}. Likely cause: "
                    "more than 32 meet at an address, and they were not summed before"
                )
            if not crowded and not counted.adds:
                raise Wrong(
                    f"{what}: expected atomic additions, got none. Likely cause: at most 32 meet at an address, and "
                    "more was done about it than needed"
                )
    if DEVICE == "cpu":
        print("No GPU here: correctness and counts were checked, speed was not.")
    else:
        from flashkat_lite.lab.solutions_elsewhere import weighted_bincount_solution as ours

        for size in (64, 2**22):
            index, weights = torch.randint(size, (2**22,), device=DEVICE), torch.randn(2**22, device=DEVICE)
            what = f"2²² weights on {size:,} addresses"
            timed(f, ours, (index, weights, size), what, good=1.3)
    right("crowded and spread, each in its own way")


def _sums(what: str, got: Any, index: Tensor, weights: Tensor, size: int) -> None:
    if isinstance(got, Tensor) and got.dtype != torch.float32:
        raise Wrong(f"{what}: expected dtype torch.float32, got {got.dtype}")
    zeros = torch.zeros(size, dtype=torch.float64, device=DEVICE)
    exact, scale = (zeros.index_add(0, index, w) for w in (weights.double(), weights.double().abs()))
    last = zeros.index_copy(0, index, weights.double())
    same_tensor(
        what, got, exact, 4 * math.sqrt(len(index)) * 2.0**-24 * scale + 1e-30,
        {"the weights were left out: these are counts": zeros.index_add(0, index, torch.ones_like(weights.double())),
         "each was added twice: is the buffer zeroed at each call?": 2 * exact,
         "one weight of each address is left: they were stored, not added": last},
    )  # fmt: skip


def _no_sorting(what: str) -> Any:
    def refuse(*_, **__):
        raise Wrong(f"{what}: expected no sorting where addresses hardly meet, got a sort")

    return mock.patch.multiple(torch, sort=refuse, argsort=refuse)


@poisoned()
def layernorm_backward(f: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor, Tensor]]) -> None:
    """14-4: (dx, dweight, dbias) of LayerNorm in one reading of dy and x, without atomic additions."""
    for seed, (rows, columns, eps) in enumerate([(37, 96, 1e-6), (1, 300, 1e-6), (200, 7, 0.5)]):
        dy, x = (_surrounded(rows * columns, 20 + 2 * seed + k).view(rows, columns) for k in (0, 1))
        x = x + 3  # a mean that is not zero
        weight, size = _surrounded(columns, 30 + seed), f"{rows} rows of {columns}"
        answer = f(dy, x, weight, eps)
        if not isinstance(answer, tuple) or len(answer) != 3 or not all(isinstance(t, Tensor) for t in answer):
            raise Wrong(f"expected a tuple (dx, dweight, dbias) of tensors, got {type(answer).__name__}")
        _gradients(answer, dy, x, weight, eps, size)
        again = f(dy, x, weight, eps)
        for name, one, other in zip(("dweight", "dbias"), answer[1:], again[1:], strict=True):
            same_bits(f"{name} of {size}", one, other, "a second call")
    if DEVICE == "cpu":
        _one_reading(f)
        print("No GPU here: correctness and reads were checked, speed was not.")
    else:
        from flashkat_lite.lab.solutions_elsewhere import layernorm_backward_solution as ours

        dy, x = (torch.randn(2**17, 768, device=DEVICE) for _ in range(2))
        inputs = dy, x, torch.randn(768, device=DEVICE), 1e-6
        timed(f, ours, inputs, "2¹⁷ rows of 768", nbytes=3 * x.nbytes)
    right("three gradients for three shapes, from one reading")


def _gradients(answer: tuple, dy: Tensor, x: Tensor, weight: Tensor, eps: float, size: str) -> None:
    leaves = [t.double().requires_grad_() for t in (x, weight, torch.zeros_like(weight))]
    functional.layer_norm(leaves[0], weight.shape, *leaves[1:], eps).backward(dy.double())
    dx, dweight, dbias = (leaf.grad for leaf in leaves)
    centred = x.double() - x.double().mean(1, keepdim=True)
    scale = (centred.square().mean(1, keepdim=True) + eps).rsqrt()
    unit, v = centred * scale, dy.double() * weight.double()
    along = unit * (v * unit).mean(1, keepdim=True)
    few = 64 * 2.0**-24  # x - mean loses a few bits: the mean is 3
    same_tensor(
        f"dx of {size}", answer[0], dx, few * (1 + scale) * (1 + v.abs() + along.abs()),
        {"the mean of dy · weight was not taken off": scale * (v - along),
         "the part along x was not taken off": scale * (v - v.mean(1, keepdim=True)),
         "the weight is missing": scale * (dy - dy.mean(1, keepdim=True) - unit * (dy * unit).mean(1, keepdim=True)),
         "the row's scale is missing": dx / scale},
    )  # fmt: skip
    bound = few * len(x) ** 0.5
    same_tensor(
        f"dweight of {size}", answer[1], dweight, bound * (1 + (dy * unit).abs().sum(0)),
        {"x was not normalised": (dy.double() * x.double()).sum(0),
         "the weight does not belong in its own gradient": dweight * weight,
         "weight and bias are exchanged": dbias},
    )  # fmt: skip
    same_tensor(
        f"dbias of {size}", answer[2], dbias, bound * (1 + dy.double().abs().sum(0)),
        {"weight and bias are exchanged": dweight, "dy is summed without the weight": v.sum(0)},
    )  # fmt: skip


def _one_reading(f: Callable) -> None:
    dy, x, weight = _surrounded(60 * 64, 40).view(60, 64), _surrounded(60 * 64, 41).view(60, 64), _surrounded(64, 42)
    read = {"dy": 0, "x": 0}

    def load(addresses: Any, _: int) -> None:
        for name, tensor in (("dy", dy), ("x", x)):
            start = tensor.data_ptr()
            read[name] += int(((addresses >= start) & (addresses < start + tensor.nbytes)).sum())

    with watching(load=load), counting() as count, programs() as seen:
        f(dy, x, weight, 1e-6)
    if not seen:
        raise Wrong("expected a Triton kernel, got none: no program ran")
    if count.adds:
        raise Wrong(f"expected no atomic additions, got {count.adds:,}: let lanes own their columns")
    for name, times in read.items():
        if times != x.numel():
            raise Wrong(
                f"elements of {name} read for 60 rows of 64: expected each once, {x.numel():,}, got {times:,}. Likely "
                "cause: another pass, or another kernel, reads them for the sums over rows"
            )
