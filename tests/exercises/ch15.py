"""Answers to the exercises of chapter 15: right ones, and wrong ones each with what its check must say."""

import torch
import triton
import triton.language as tl
from torch.nn import functional

from flashkat_lite.lab.exercises import ch15


def traffic(hosts, gpus, nbytes):
    inside = 2 * (gpus - 1) / gpus * nbytes
    return inside, 2 * (hosts - 1) / hosts * nbytes / gpus, 2 * (gpus - 1) + 2 * (hosts - 1)


def changed(place, change):
    """The right answer, with one of its three numbers changed."""

    def wrong(hosts, gpus, nbytes):
        answer = list(traffic(hosts, gpus, nbytes))
        answer[place] = change(hosts, gpus, nbytes, answer[place])
        return tuple(answer)

    return wrong


@triton.jit
def add_kernel(x_ptr, out_ptr, rows, columns, row_stride, column_stride, BLOCK: tl.constexpr, OTHER: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row, column = at // columns, at % columns
    x_ptrs = x_ptr + row * row_stride + column * column_stride
    if OTHER:
        x = tl.load(x_ptrs, mask=row < rows, other=0.0)
    else:
        x = tl.load(x_ptrs, mask=row < rows)
    tl.atomic_add(out_ptr + column, x)


def atomic_sums(x, block=64, OTHER=True):
    out = torch.zeros(x.shape[1], device=x.device)
    add_kernel[(triton.cdiv(x.numel(), block),)](x, out, *x.shape, *x.stride(), BLOCK=block, OTHER=OTHER)
    return out


def counted(index, weights, size):
    return torch.zeros(size, device=weights.device).index_add_(0, index, torch.ones_like(weights))


def stored(index, weights, size):
    return torch.zeros(size, device=weights.device).index_copy_(0, index, weights)


def sorting(index, weights, size):
    order = torch.argsort(index)
    return torch.zeros(size, device=weights.device).index_add_(0, index[order], weights[order])


def always_atomic(index, weights, size):
    out = torch.zeros(size, device=weights.device)
    ch15.scatter_kernel[(triton.cdiv(len(index), 1024),)](index, weights, out, len(index), BLOCK=1024)
    return out


def chooses(crowded, spread):
    return lambda i, w, n: (crowded if len(i) > 32 * n else spread)(i, w, n)


def gradients(dy, x, weight, eps):
    leaves = [t.clone().requires_grad_() for t in (x, weight, torch.zeros_like(weight))]
    functional.layer_norm(leaves[0], weight.shape, *leaves[1:], eps).backward(dy)
    return tuple(leaf.grad for leaf in leaves)


def pieces(dy, x, weight, eps):
    centred = x - x.mean(1, keepdim=True)
    scale = (centred.square().mean(1, keepdim=True) + eps).rsqrt()
    return centred * scale, scale, dy * weight


def without_mean(dy, x, weight, eps):
    unit, scale, v = pieces(dy, x, weight, eps)
    return scale * (v - unit * (v * unit).mean(1, keepdim=True)), *gradients(dy, x, weight, eps)[1:]


def without_along(dy, x, weight, eps):
    _, scale, v = pieces(dy, x, weight, eps)
    return scale * (v - v.mean(1, keepdim=True)), *gradients(dy, x, weight, eps)[1:]


@triton.jit
def square_kernel(x_ptr, out_ptr, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < count, other=0.0)
    tl.store(out_ptr + at, x * x, mask=at < count)


def twice(dy, x, weight, eps):
    square_kernel[(triton.cdiv(x.numel(), 4096),)](x, torch.empty_like(x), x.numel(), BLOCK=4096)
    return ch15.layernorm_backward_solution(dy, x, weight, eps)


RIGHT = {
    "15-1": traffic,
}

WRONG = {
    "15-1": [
        (changed(0, lambda h, g, m, right: right / 2), "before the network and after it"),
        (changed(0, lambda h, g, m, right: 2 * (h * g - 1) / (h * g) * m), "one ring of all GPUs"),
        (changed(0, lambda h, g, m, right: right * g), "every GPU sends everything"),
        (changed(1, lambda h, g, m, right: right * g), "sum of 1/gpus of the bytes only"),
        (changed(1, lambda h, g, m, right: right / 2), "two phases"),
        (changed(2, lambda h, g, m, right: 2 * (h * g - 1)), "one ring of all GPUs"),
        (changed(2, lambda h, g, m, right: right // 2), "each level has two phases"),
        (lambda *case: traffic(*case)[:2], "expected a tuple"),
    ],
    "15-2": [
        (lambda x: atomic_sums(x, OTHER=False), "a missing mask, a missing `other`"),
        (lambda x: x.as_strided(x.shape, (x.shape[1], 1)).sum(0), "strides were taken for those of a contiguous"),
        (lambda x: 2 * x.sum(0), "added twice"),
        (lambda x: x.sum().expand(x.shape[1]), "the total of all of them"),
        (lambda x: x.double().sum(0), "expected dtype torch.float32"),
        (lambda x: x.sum(1), "expected shape"),
        (lambda x: None, "expected a tensor"),
        (atomic_sums, "expected .* again at index .* their order decides"),
        (lambda x: atomic_sums(x, 2**14), "expected no atomic additions"),
        (lambda x: x.contiguous().sum(0), "expected a Triton kernel, got none"),
    ],
    "15-3": [
        (counted, "these are counts"),
        (stored, "stored, not added"),
        (lambda i, w, n: 2 * torch.zeros(n, device=w.device).index_add_(0, i, w), "added twice"),
        (lambda i, w, n: torch.zeros(n + 1, device=w.device).index_add_(0, i, w), "expected shape"),
        (lambda i, w, n: torch.zeros(n, device=w.device).index_add_(0, i, w).double(), "expected dtype torch.float32"),
        (always_atomic, r"expected at most 625 atomic additions, got 20,000"),
        (chooses(ch15.weighted_bincount_solution, sorting), "expected no sorting"),
        (
            chooses(ch15.weighted_bincount_solution, lambda i, w, n: torch.bincount(i, w, n).float()),
            "expected a Triton kernel, got none",
        ),
    ],
    "15-4": [
        (without_mean, "the mean of dy · weight was not taken off"),
        (without_along, "the part along x was not taken off"),
        (
            lambda dy, x, w, eps: (gradients(dy, x, 0 * w + 1, eps)[0], *gradients(dy, x, w, eps)[1:]),
            "weight is missing",
        ),
        (lambda *t: tuple(gradients(*t)[k] for k in (0, 2, 1)), "weight and bias are exchanged"),
        (lambda dy, x, w, eps: (gradients(dy, x, w, eps)[0], (dy * x).sum(0), dy.sum(0)), "x was not normalised"),
        (lambda dy, x, w, eps: (*gradients(dy, x, w, eps)[:2], (dy * w).sum(0)), "without the weight"),
        (lambda *t: gradients(*t)[:2], "expected a tuple"),
        (twice, "elements of x read .* expected each once, 3,840, got 7,680"),
        (gradients, "expected a Triton kernel, got none"),
    ],
}

# Right for what the text shows, or for one size.
FIXED = {
    "15-1": (lambda *case: traffic(4, 8, 346e6), "2 hosts of 4 GPUs.*expected 1,800.*got 605,500,000"),
    "15-2": (lambda x: x.sum(0)[:8], r"expected shape \[20\], got \[8\]"),
    "15-3": (
        lambda i, w, n: ch15.weighted_bincount_solution(i, w, n)[:7],
        r"expected shape \[100\], got \[7\]",
    ),
    "15-4": (
        lambda dy, x, w, eps: gradients(dy, x, w, 1e-6),
        "dx of 200 rows of 7: .* wrong; the first at",
    ),
}
