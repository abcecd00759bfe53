"""Answers to the exercises of chapter 14: right ones, and wrong ones each with what its check must say."""

from torch.nn import functional

from flashkat_lite.lab.exercises import ch14


def chain(x, z):
    return x + 4 + (0 if z == 4 else 4 + z) + 2 * z, x + z


def step(ms, blocks, elements, saved, gb):
    new = ms - blocks * elements * saved / gb / 1e6
    return new, ms / new


def norm(x, branch, weight, bias, eps):
    return x + branch, functional.layer_norm(x + branch, weight.shape, weight, bias, eps)


def without_mean(x, branch, weight, bias, eps):
    total = x + branch
    scale = (total.var(1, keepdim=True, correction=0) + eps).rsqrt()
    return total, total * scale * weight + bias


def again(x, branch, weight, bias, eps):
    ch14.add_and_norm_solution(x, branch, weight, bias, eps)
    return ch14.add_and_norm_solution(x, branch, weight, bias, eps)


RIGHT = {
    "14-1": chain,
    "14-2": step,
}

WRONG = {
    "14-1": [
        (lambda x, z: (x + 4 + 2 * z, x + z), "the cast is a pass too"),
        (lambda x, z: (x + 4 + 4 + z + 2 * z, x + z), "there is nothing to cast"),
        (lambda x, z: (2 * x + (0 if z == 4 else 4 + z) + 2 * z, x + z), "the norm writes float32"),
        (lambda x, z: (chain(x, z)[0], x + 4 + z), "never in memory"),
        (lambda x, z: (chain(x, z)[0], x + 2 * z), "z is written once"),
        (lambda x, z: chain(x, z)[0], "expected a tuple"),
    ],
    "14-2": [
        (lambda ms, *t: (ms - step(ms, *t)[0], step(ms, *t)[1]), "that is what is saved"),
        (lambda ms, n, *t: (step(ms, 1, *t)[0], step(ms, n, *t)[1]), "every block has such a chain"),
        (lambda ms, *t: (2 * ms - step(ms, *t)[0], step(ms, *t)[1]), "what is saved goes off"),
        (lambda *t: (step(*t)[0], 1 / step(*t)[1]), "a shorter step is a higher speed"),
    ],
    "14-3": [
        (lambda x, c, w, b, eps: (x, norm(x, c, w, b, eps)[1]), "the branch is missing"),
        (lambda *t: norm(*t)[::-1], "that is its norm"),
        (lambda x, c, w, b, eps: (x + c, functional.layer_norm(x, w.shape, w, b, eps)), "without the branch"),
        (without_mean, "the mean was not taken off"),
        (lambda x, c, w, b, eps: norm(x, c, w, 0 * b, eps), "the bias is missing"),
        (lambda x, c, w, b, eps: norm(x, c, 0 * w + 1, b, eps), "the weight is missing"),
        (lambda *t: norm(*t)[0], "expected a tuple"),
        (again, "elements of x read .* expected each once, 3,840, got 7,680"),
        (norm, "expected a Triton kernel, got none"),
    ],
}

# Right for what the text shows, or for one size.
FIXED = {
    "14-1": (lambda x, z: chain(4, 2), "bytes apart for x of 2 bytes and z of 2"),
    "14-2": (lambda *case: step(102.0, 12, 256 * 197 * 768, 34, 2900.0), "ms for 24 blocks"),
    "14-3": (lambda x, c, w, b, eps: norm(x, c, w, b, 1e-6), "the norm of 200 rows of 7"),
}
