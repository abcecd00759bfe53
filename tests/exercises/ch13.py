"""Answers to the exercises of chapter 13: right ones, and wrong ones each with what its check must say."""

import torch


def step_time(gpu_ms, launches, host_us, graph):
    host_ms = (1 if graph else launches) * host_us / 1e3
    return max(gpu_ms, host_ms), "GPU" if gpu_ms >= host_ms else "host"


def tile_sums_fake(x, tile):
    rows, columns = x.shape
    return x.new_empty(((rows + tile - 1) // tile, columns), dtype=torch.float32)


def specialised(x, tile):
    return x.new_empty(((int(x.shape[0]) + tile - 1) // tile, x.shape[1]), dtype=torch.float32)


def elsewhere(x, tile):
    return torch.empty((x.shape[0] + tile - 1) // tile, x.shape[1], device="meta")


def save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def swish(dx, dbeta):
    """A formula of these two gradients, each of (dy, x, beta, sigmoid, its slope)."""

    def formula(ctx, dy):
        x, beta = ctx.saved_tensors
        s = torch.sigmoid(beta * x)
        given = dy, x, beta, s, s * (1 - s)
        return dx(*given).to(x.dtype), dbeta(*given).to(beta.dtype)

    return formula


def right_dx(dy, x, beta, s, slope):
    return dy * (s + beta * x * slope)


def right_dbeta(dy, x, beta, s, slope):
    return (dy * x * x * slope).sum(0)


class Recompute(torch.autograd.Function):
    seeded, with_parameters = True, True

    @classmethod
    def of(cls, module, x):
        return cls.apply(module, x, *(module.parameters() if cls.with_parameters else ()))

    @staticmethod
    def forward(ctx, module, x, *parameters):
        ctx.module, ctx.random, ctx.count = module, torch.get_rng_state(), len(parameters)
        ctx.save_for_backward(x)
        return module(x)

    @classmethod
    def again(cls, ctx, dy):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            if cls.seeded:
                torch.set_rng_state(ctx.random)
            y = ctx.module(x)
        return None, *torch.autograd.grad(y, [x, *list(ctx.module.parameters())[: ctx.count]], dy)

    @staticmethod
    def backward(ctx, dy):
        return Recompute.again(ctx, dy)


class Unseeded(Recompute):
    seeded = False

    @staticmethod
    def backward(ctx, dy):
        return Unseeded.again(ctx, dy)


class WithoutParameters(Recompute):
    with_parameters = False


def by_checkpoint(module, x):
    return torch.utils.checkpoint.checkpoint(module, x, use_reentrant=False)


def without_a_graph(module, x):
    with torch.no_grad():
        return module(x)


RIGHT = {
    "13-1": step_time,
    "13-2": tile_sums_fake,
    "13-3": (save, swish(right_dx, right_dbeta)),
    "13-4": Recompute.of,
}

WRONG = {
    "13-1": [
        (lambda *case: (case[0] + case[1] * case[2] / 1e3, "host"), "the longer one, not the sum"),
        (lambda *case: (max(case[0], case[1] * case[2] / 1e3), "host"), "launched once, however many"),
        (lambda *case: (max(case[0], case[1] * case[2]), "host"), "a thousandth"),
        (lambda *case: (min(case[0], case[1] * case[2] / 1e3), "host"), "not the faster"),
        (lambda *case: (step_time(*case)[0], "GPU"), "expected 'host', got 'GPU'"),
        (lambda *case: step_time(*case)[0], "expected a tuple"),
        (lambda *case: (case[0], "GPU") if case[3] else step_time(*case), "a graph, too, if only once"),
    ],
    "13-2": [
        (
            lambda x, tile: x.new_empty(((x.shape[0] + 31) // 32, x.shape[1]), dtype=torch.float32),
            r"tiles of 3: expected shape \[3, 5\], got \[1, 5\]",
        ),
        (lambda x, tile: x.new_empty((x.shape[0] // tile, x.shape[1]), dtype=torch.float32), "last tile is not full"),
        (lambda x, tile: x.new_empty(x.shape, dtype=torch.float32), "the input's shape"),
        (lambda x, tile: x.new_empty(((x.shape[0] + tile - 1) // tile, x.shape[1])), "float32 whatever x is"),
        (specialised, "expected 1 graph for all, got 4"),
        (elsewhere, "without a device"),
        (lambda x, tile: None, "expected a tensor, got NoneType"),
    ],
    "13-3": [
        ((save, formula), words)
        for formula, words in [
            (swish(lambda dy, x, beta, s, slope: dy * s, right_dbeta), "the product rule"),
            (swish(lambda dy, x, beta, s, slope: s + beta * x * slope, right_dbeta), "dy is missing"),
            (swish(lambda dy, x, beta, s, slope: dy * (s + x * slope), right_dbeta), "the inner derivative is beta"),
            (swish(right_dx, lambda dy, x, beta, s, slope: (dy * x * slope).sum(0)), "x appears twice"),
            (swish(right_dx, lambda dy, x, beta, s, slope: (dy * x * x * slope).mean(0)), "the mean over the rows"),
            (lambda ctx, dy: dy, "expected two gradients"),
            (lambda ctx, dy: (dy, None), "the gradient of x"),
        ]
    ],
    "13-4": [
        (lambda module, x: module(x), "the graph recorded"),
        (Unseeded.of, "another dropout mask"),
        (WithoutParameters.of, r"gradient of 0.weight.*hand the parameters"),
        (by_checkpoint, "not by torch.utils.checkpoint"),
        (without_a_graph, "no_grad, no Function"),
    ],
}

# Right for what the text shows, or for one size.
FIXED = {
    "13-1": (lambda *case: (21.0, "host"), "one graph: expected 13.7, got 21"),
    "13-2": (
        lambda x, tile: x.new_empty(4, 24, dtype=torch.float32),
        r"expected shape \[3, 5\], got \[4, 24\]",
    ),
    "13-3": (
        (save, lambda ctx, dy: tuple(map(torch.zeros_like, ctx.saved_tensors))),
        "the gradient of x: 15 of 15 are wrong",
    ),
    "13-4": (
        lambda module, x: torch.zeros(7, 5, dtype=x.dtype, requires_grad=True),
        "the result: 35 of 35 are wrong",
    ),
}
