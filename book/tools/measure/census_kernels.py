"""Public kernels that add up, each at one size of its own benchmark where it has one: a case makes a call of one.

None is copied: packages are imported, at the versions that the extra `census` of pyproject.toml pins. A call is the
package's own function, which launches its kernels and what PyTorch adds around them.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BF16, FP32 = torch.bfloat16, torch.float32
THEIRS, OURS = "a size of its own benchmark", "a size that we chose: it has no benchmark"
TOKENS, HIDDEN, VOCABULARY = 8192, 4096, 128256  # of Liger's benchmarks: Llama 3 8B's, and its longest text


@dataclass(frozen=True)
class Case:
    """One function of a package: what it is, at which size, why that size, how it adds, and what makes a call of it."""

    name: str
    package: str  # its name on PyPI
    function: str  # module:function, or module:function of the kernel's own launcher
    size: str
    chosen: str
    adds: str  # what it sums, and how, in our words
    make: Callable[["Maker", Any], Callable[[], object]]


CASES: dict[str, Case] = {}


class Maker:
    """Makes inputs: never filled for a forecast, of random numbers on a GPU."""

    def __init__(self, device: str, filled: bool):
        self.device, self.filled = device, filled
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, *shape: int, dtype: torch.dtype = BF16) -> Tensor:
        make = torch.randn if self.filled else torch.empty
        return make(shape, dtype=dtype, device=self.device)

    def positive(self, *shape: int, dtype: torch.dtype = FP32) -> Tensor:
        """Return what a norm keeps of each row: numbers around 1."""
        return torch.rand(shape, dtype=dtype, device=self.device) + 0.5 if self.filled else self(*shape, dtype=dtype)

    def below(self, limit: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        """Return indices below a limit, the same ones on each machine."""
        return torch.randint(limit, shape, generator=self.generator, dtype=dtype).to(self.device)


def case(name: str, package: str, function: str, size: str, adds: str, chosen: str = THEIRS) -> Callable:
    """Return a decorator that lists a function, which makes a call of `function`, under a name."""

    def listed(make: Callable) -> Callable:
        CASES[name] = Case(name, package, function, size, chosen, adds, make)
        return make

    return listed


def loaded(one: Case) -> Callable:
    """Return the package's function. Raises ImportError where the package is missing."""
    module, _, name = one.function.partition(":")
    found = getattr(importlib.import_module(module), name)
    return getattr(found, "_init_fn", found)  # what PyTorch made an operation of


# Liger-Kernel

LIGER = "liger-kernel"
ROWS = f"{TOKENS} × {HIDDEN}, bfloat16"
PARTIAL = "the weight's gradient: each of as many programs as multiprocessors sums its rows, PyTorch sums those"


@case("Liger RMSNorm", LIGER, "liger_kernel.ops.rms_norm:rms_norm_backward", ROWS, PARTIAL)
def liger_rms_norm(t, f):
    x, w, rstd, dy = t(TOKENS, HIDDEN), t(HIDDEN, dtype=FP32), t.positive(TOKENS), t(TOKENS, HIDDEN)
    return lambda: f(dy, x, w, rstd, 0.0, 0, 4096, 8, False, None)


@case("Liger LayerNorm", LIGER, "liger_kernel.ops.layer_norm:layer_norm_backward", ROWS, PARTIAL)
def liger_layer_norm(t, f):
    x, w, b, dy = t(TOKENS, HIDDEN), t(HIDDEN), t(HIDDEN), t(TOKENS, HIDDEN)
    mean, rstd = t(TOKENS, dtype=FP32), t.positive(TOKENS)
    return lambda: f(dy, x, w, b, mean, rstd)


@case(
    "Liger fused add and RMSNorm", LIGER, "liger_kernel.ops.fused_add_rms_norm:fused_add_rms_norm_backward", ROWS,
    PARTIAL,
)  # fmt: skip
def liger_fused_add_rms_norm(t, f):
    s, w, rstd, dy, ds = t(TOKENS, HIDDEN), t(HIDDEN), t.positive(TOKENS), t(TOKENS, HIDDEN), t(TOKENS, HIDDEN)
    return lambda: f(dy, ds, s, w, rstd, 0.0, 0, 4096, 8, 2, False)


@case(
    "Liger GroupNorm", LIGER, "liger_kernel.ops.group_norm:group_norm_backward",
    "16 × 4096 × 512, bfloat16, groups of 4",
    "weight's and bias's gradients: a program sums a channel of one image and adds it to the channel's place",
)  # fmt: skip
def liger_group_norm(t, f):
    x, dy, w, b = t(16, HIDDEN, 512), t(16, HIDDEN, 512), t(HIDDEN), t(HIDDEN)
    mean, rstd = t(16, HIDDEN // 4), t.positive(16, HIDDEN // 4, dtype=BF16)
    return lambda: f(dy, x, w, b, mean, rstd, HIDDEN, HIDDEN // 4)


@case(
    "Liger PolyNorm", LIGER, "liger_kernel.ops.poly_norm:poly_norm_backward", ROWS,
    "three weights and a bias: each of as many programs as multiprocessors sums its rows, PyTorch sums those",
)  # fmt: skip
def liger_poly_norm(t, f):
    x, dy, w, rstd = t(TOKENS, HIDDEN), t(TOKENS, HIDDEN), t(3, dtype=FP32), t.positive(TOKENS, 3)
    return lambda: f(dy, x, w, rstd, 4096, 8, False)


@case(
    "Liger DyT", LIGER, "liger_kernel.ops.dyt:liger_dyt_bwd", ROWS,
    "weight's, bias's and alpha's gradients: a row of partial sums for each multiprocessor, PyTorch sums those",
)  # fmt: skip
def liger_dyt(t, f):
    x, dy, alpha, gamma, beta = t(TOKENS, HIDDEN), t(TOKENS, HIDDEN), t(1), t(HIDDEN), t(HIDDEN)
    return lambda: f(dy, x, alpha, gamma, beta)


@case(
    "Liger modulated RMSNorm, a scale for each image", LIGER,
    "liger_kernel.ops.modulated_rms_norm:modulated_rms_norm_backward", "8 images of 1024 × 4096, bfloat16",
    "scale's and shift's gradients: each row adds its 4,096 values to its image's",
    "a size that we chose: its benchmark has a scale for each row, where nothing meets",
)  # fmt: skip
def liger_modulated_rms_norm(t, f):
    x, dy, w, rstd = t(TOKENS, HIDDEN), t(TOKENS, HIDDEN), t(HIDDEN), t.positive(TOKENS)
    scale, shift = t(8, 1, HIDDEN), t(8, 1, HIDDEN)
    return lambda: f(dy, x, w, scale, shift, rstd, 0.0, 0, 4096, 8, 1024, False)


@case(
    "Liger attention over blocks (AttnRes)", LIGER, "liger_kernel.ops.attn_res:attn_res_backward",
    "8 blocks of 8192 × 4096, bfloat16",
    "gradients of query and norm weight: each token adds its 2 × 4,096 sums to the same places",
)  # fmt: skip
def liger_attn_res(t, f):
    dh, v, query, norm = t(TOKENS, HIDDEN), t(8, TOKENS, HIDDEN), t(HIDDEN), t(HIDDEN)
    alpha, rstd = t(TOKENS, 8, dtype=FP32), t.positive(TOKENS, 8)
    return lambda: f(dh, v, query, norm, alpha, rstd)


@case(
    "Liger embedding", LIGER, "liger_kernel.ops.experimental.embedding:LigerEmbeddingFunction",
    f"{TOKENS} tokens of {VOCABULARY} × {HIDDEN}, bfloat16, drawn evenly",
    "the table's gradient: each token adds its row to its word's",
)  # fmt: skip
def liger_embedding(t, f):
    from types import SimpleNamespace

    saved = SimpleNamespace(saved_tensors=(t.below(VOCABULARY, TOKENS), t(VOCABULARY, HIDDEN)))
    dy = t(TOKENS, HIDDEN)
    return lambda: f.backward(saved, dy)


@case(
    "Liger hyper-connections, mixing in", LIGER, "liger_kernel.ops.mhc:mhc_pre_bwd", "8192 × 4 × 4096, bfloat16",
    "gradients of four weights a token: each of 32 programs adds its part of the columns",
)  # fmt: skip
def liger_mhc_pre(t, f):
    x, h, dy = t(TOKENS, 4, HIDDEN), t(TOKENS, 4, dtype=FP32), t(TOKENS, HIDDEN)
    return lambda: f(x, h, dy)


@case(
    "Liger hyper-connections, mixing out", LIGER, "liger_kernel.ops.mhc:mhc_post_res_bwd", "8192 × 4 × 4096, bfloat16",
    "gradients of 4 + 16 weights a token: each program adds its part of the columns",
)  # fmt: skip
def liger_mhc_post(t, f):
    x, out, dy = t(TOKENS, 4, HIDDEN), t(TOKENS, HIDDEN), t(TOKENS, 4, HIDDEN)
    post, res = t(TOKENS, 4, dtype=FP32), t(TOKENS, 4, 4, dtype=FP32)
    return lambda: f(x, out, post, res, dy)


@case(
    "Liger hyper-connections, product and norm", LIGER, "liger_kernel.ops.mhc:mhc_mm_norm_bwd",
    "8192 × 16384 by 16384 × 24, bfloat16", "the weights' gradient: 256 programs add their rows' part to each place",
)  # fmt: skip
def liger_mhc_mm(t, f):
    x, phi = t(TOKENS, 4 * HIDDEN), t(4 * HIDDEN, 24)
    mix, rstd, dmix = t(TOKENS, 24, dtype=FP32), t.positive(TOKENS), t(TOKENS, 24, dtype=FP32)
    return lambda: f(x, phi, mix, rstd, dmix)


@case("Liger softmax", LIGER, "liger_kernel.ops.softmax:_softmax_backward", ROWS, "each row within its program")
def liger_softmax(t, f):
    y, dy = t(TOKENS, HIDDEN), t(TOKENS, HIDDEN)
    return lambda: f(dy, y, 4096, 8, False)


@case("Liger sparsemax", LIGER, "liger_kernel.ops.sparsemax:_sparsemax_backward", ROWS, "each row within its program")
def liger_sparsemax(t, f):
    y, dy = t(TOKENS, HIDDEN), t(TOKENS, HIDDEN)
    return lambda: f(dy, y, -1)


@case("Liger SwiGLU", LIGER, "liger_kernel.ops.swiglu:swiglu_backward", "8192 × 14336, bfloat16", "nothing")
def liger_swiglu(t, f):
    a, b, dc = t(TOKENS, 14336), t(TOKENS, 14336), t(TOKENS, 14336)
    return lambda: f(a, b, dc)


@case(
    "Liger cross-entropy", LIGER, "liger_kernel.ops.cross_entropy:cross_entropy_forward",
    f"8192 × {VOCABULARY}, float32",
    "each row within its program; it writes the gradient in its forward pass",
)  # fmt: skip
def liger_cross_entropy(t, f):
    x, target = t(TOKENS, VOCABULARY, dtype=FP32), t.below(VOCABULARY, TOKENS)
    x.requires_grad_(True)
    return lambda: f(x, target, None, -100, 0.0, 0.0, "mean", None, False)


# flash-linear-attention

FLA = "fla-core"
CAPPED = "weight's and bias's gradients: each of as many programs as multiprocessors sums its rows, PyTorch sums those"


@case("fla LayerNorm", FLA, "fla.modules.norm.layernorm:layer_norm_bwd", "65536 × 1024, bfloat16", CAPPED)
def fla_layer_norm(t, f):
    x, dy, w, b = t(65536, 1024), t(65536, 1024), t(1024), t(1024)
    mean, rstd = t(65536, dtype=FP32), t.positive(65536)
    return lambda: f(dy, x, w, b, mean, rstd)


@case("fla GroupNorm", FLA, "fla.modules.norm.layernorm:layer_norm_bwd", "65536 × 4 groups of 256, bfloat16", CAPPED)
def fla_group_norm(t, f):
    x, dy, w, b = t(4 * 65536, 256), t(4 * 65536, 256), t(1024), t(1024)
    mean, rstd = t(4 * 65536, dtype=FP32), t.positive(4 * 65536)
    return lambda: f(dy, x, w, b, mean, rstd, num_groups=4)


@case(
    "fla gated RMSNorm", FLA, "fla.modules.norm.fused_norm_gate:layer_norm_gated_bwd", "65536 × 1024, bfloat16", CAPPED
)
def fla_gated_norm(t, f):
    x, g, dy, w, rstd = t(65536, 1024), t(65536, 1024), t(65536, 1024), t(1024), t.positive(65536)
    return lambda: f(dy, x, g, w, None, rstd=rstd, is_rms_norm=True)


@case("fla L2 norm", FLA, "fla.modules.norm.l2norm:l2norm_bwd", "131072 × 128, bfloat16", "each row within its program")
def fla_l2_norm(t, f):
    y, rstd, dy = t(131072, 128), t.positive(131072), t(131072, 128)
    return lambda: f(y, rstd, dy)


@case(
    "fla short convolution", FLA, "fla.modules.causal_conv1d.ops:causal_conv1d_bwd",
    "1 × 65536 × 2048, four taps, bfloat16",
    "weight's and bias's gradients: a row of partial sums for each 64 tokens, PyTorch sums those",
)  # fmt: skip
def fla_convolution(t, f):
    x, dy, w, b = t(1, 65536, 2048), t(1, 65536, 2048), t(2048, 4, dtype=FP32), t(2048, dtype=FP32)
    return lambda: f(x, dy, None, w, b, activation="swish")


@case("fla SwiGLU", FLA, "fla.modules.activations.ops:swiglu_fwdbwd", "4 × 8192 × 4096, bfloat16", "nothing")
def fla_swiglu(t, f):
    x, y, g = t(4, 8192, 4096), t(4, 8192, 4096), t(4, 8192, 4096)
    return lambda: f(x, y, g)


@case("fla token shift", FLA, "fla.modules.token_shift:token_shift_bwd", "8 × 4096 × 4096, bfloat16", "nothing")
def fla_token_shift(t, f):
    dy = t(8, 4096, 4096)
    return lambda: f(dy, 8, 4096)


@case(
    "fla RWKV-7 gate", FLA, "fla.ops.rwkv7.gate_output_correction:gate_output_correction_backward_triton",
    "8 × 4096 × 32 heads of 64, bfloat16",
    "a weight's gradient: PyTorch sums a tensor as large as the activations", OURS,
)  # fmt: skip
def fla_rwkv_gate(t, f):
    o, g, dy = t(8, 4096, 2048), t(8, 4096, 2048), t(8, 4096, 2048)
    r, k, v, weight = t(8, 4096, 32, 64), t(8, 4096, 32, 64), t(8, 4096, 32, 64), t(32, 64)
    return lambda: f(dy, o, r, k, weight, v, g)


@case(
    "fla HGRN, recurrent", FLA, "fla.ops.hgrn.fused_recurrent:fused_recurrent_hgrn_bwd", "8 × 4096 × 2048, bfloat16",
    "a running sum along the tokens, within its program", OURS,
)  # fmt: skip
def fla_hgrn(t, f):
    g, o, do = t(8, 4096, 2048), t(8, 4096, 2048), t(8, 4096, 2048)
    return lambda: f(g, o, do)


@case(
    "fla cross-entropy", FLA, "fla.modules.fused_cross_entropy.ops:cross_entropy_bwd", "8192 × 32000, bfloat16",
    "each row within its program", OURS,
)  # fmt: skip
def fla_cross_entropy(t, f):
    logits, target = t(8192, 32000), t.below(32000, 8192)
    lse, dloss = t(8192, dtype=FP32), t(8192, dtype=FP32)
    return lambda: f(logits, target, lse, dloss)


@case(
    "fla gated linear attention", FLA, "fla.ops.gla:chunk_gla", "8 × 4096 × 4 heads of 128, bfloat16",
    "within its programs, on tensor cores", OURS,
)  # fmt: skip
def fla_gla(t, f):
    q, k, v, g = (t(8, 4096, 4, 128) for _ in range(4))
    return lambda: f(q, k, v, g)


# Others

LATE = "late-interaction-kernels"
PAIRS = "64 queries of 32 tokens, 256 documents of 180, 128 columns, bfloat16"


@case(
    "MaxSim, gradients by additions", LATE, "late_interaction_kernels.backward.unified:maxsim_backward_unified", PAIRS,
    "the documents' gradient: each query's token adds a row to the token it matched best", OURS,
)  # fmt: skip
def maxsim_unified(t, f):
    q, d, grad = t(64, 32, 128), t(256, 180, 128), t(64, 256, dtype=FP32)
    best = t.below(180, 64 * 256, 32, dtype=torch.int32)
    return lambda: f(grad, q, d, best)


@case(
    "MaxSim, gradients without additions", LATE, "late_interaction_kernels.backward.lowmem:maxsim_backward_lowmem",
    PAIRS,
    "the documents' gradient: a program for each row searches what matched it", OURS,
)  # fmt: skip
def maxsim_lowmem(t, f):
    q, d, grad = t(64, 32, 128), t(256, 180, 128), t(64, 256, dtype=FP32)
    best = t.below(180, 64 * 256, 32, dtype=torch.int32)
    return lambda: f(grad, q, d, best)


MOE = "moe-ops"


@case(
    "moe-ops permutation", MOE, "moe_ops.permute_ops:permute_countsort", "8192 × 4096, bfloat16, 8 of 64 experts",
    "each row takes its place by adding 1 to its expert's counter", OURS,
)  # fmt: skip
def moe_permute(t, f):
    x, experts = t(8192, 4096), t.below(64, 8192, 8, dtype=torch.int32)
    return lambda: f(x, experts, 0, 64)


@case(
    "moe-ops return, backward", MOE, "moe_ops.unpermute_ops:unpermute_backward",
    "8192 × 4096, bfloat16, 8 of 64 experts",
    "the router's gradient: each token within its program", OURS,
)  # fmt: skip
def moe_unpermute(t, f):
    dy, x = t(8192, 4096), t(8 * 8192, 4096)
    order = torch.randperm(8 * 8192, generator=t.generator).to(torch.int32).to(t.device)
    prob = t.positive(8192, 8)
    return lambda: f(dy, x, order, prob, 8192, 8)


@case(
    "Cut cross-entropy", "cut-cross-entropy", "cut_cross_entropy.cce_backward:cce_backward_kernel",
    "8192 × 4096 by 32000, bfloat16", "both gradients: tiles add under locks, on tensor cores", OURS,
)  # fmt: skip
def cut_cross_entropy(t, f):
    e, c, lse = t(8192, 4096), t(32000, 4096), t(8192, dtype=FP32)
    targets = t.below(32000, 8192)
    one = torch.ones((), device=t.device)
    return lambda: f(one, e, c, lse, None, None, 1e-3, targets)


@case(
    "fla lists of chosen blocks (NSA)", FLA, "fla.ops.utils.csr:prepare_block_csr",
    "1 × 4096 × 4 heads, 16 of 64 blocks", "counters: each choice adds 1 to its block's, twice", OURS,
)  # fmt: skip
def fla_block_lists(t, f):
    chosen = t.below(64, 1, 4096, 4, 16)
    return lambda: f(chosen, 16, None, None, 64, 64)


@case(
    "MaxSim of pairs, one query with 4,096 documents", LATE,
    "late_interaction_kernels.score_pairs:_MaxSimScorePairsFn",
    "a query of 32 tokens, 4096 documents of 180, 128 columns",
    "the query's gradient: each document adds to the same 32 rows; the documents' gradient: rows rarely meet", OURS,
)  # fmt: skip
def maxsim_pairs(t, f):
    from types import SimpleNamespace

    q, d, grad = t(32, 128), t(4096 * 180, 128), t(4096, dtype=FP32)
    lengths_q = torch.tensor([0, 32], dtype=torch.int32).to(t.device)
    lengths_d = (torch.arange(4097, dtype=torch.int32) * 180).to(t.device)
    pair_q, pair_d = t.below(1, 4096, dtype=torch.int32), torch.arange(4096, dtype=torch.int32).to(t.device)
    saved = q, d, lengths_q, lengths_d, pair_q, pair_d, t.below(180, 4096, 32, dtype=torch.int32)
    ctx = SimpleNamespace(saved_tensors=saved, max_q=32)
    return lambda: f.backward(ctx, grad)
