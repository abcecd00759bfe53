"""Modules: GroupRational, an activation that is learned, and GRKAN, which replaces a transformer block's MLP.

Group-rational Kolmogorov-Arnold networks are Yang & Wang's (Kolmogorov-Arnold Transformer, arXiv 2409.10594).
"""

import functools
import operator
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

from . import coefficients
from .ops import BACKWARDS, DEFAULT_BACKWARD, NORMS, norm_rational, rational

__all__ = ["GRKAN", "GroupRational", "LayerNorm", "second_moment", "table_parameters"]

# Names of the two tables in checkpoints: ours and PAU's, KAT's, FlashKAT's.
TABLE_NAMES = (("numerator", "weight_numerator", "numerator_v"), ("denominator", "weight_denominator", "denominator_v"))
SHARED = {None: (False, False), "numerator": (True, False), "denominator": (False, True), "both": (True, True)}


class Tables(nn.Module):
    """What group-rational modules have in common: two tables, how they start, and which checkpoints they load.

    rows: of the numerator and of the denominator, one for each group, or 1 that all groups share. start: the row of
    each that all groups start with. names: those of the parameters, in the same order.
    """

    def __init__(
        self,
        rows: tuple[int, int],
        start: coefficients.Start,
        names: tuple[str, str],
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dtype = dtype or torch.float32  # whatever the default: a step of training is lost on 16 bits
        if not dtype.is_floating_point:
            raise TypeError(f"dtype must be a float dtype, not {dtype}")
        self.start, self.names = start, names
        for name, count, row in zip(names, rows, start):
            self.register_parameter(name, nn.Parameter(torch.empty(count, len(row), device=device, dtype=dtype)))
        self.reset_parameters()

    def tables(self) -> tuple[nn.Parameter, nn.Parameter]:
        """Return (numerator, denominator)."""
        return self.get_parameter(self.names[0]), self.get_parameter(self.names[1])

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Let every group start anew. Reads no parameter."""
        for table, row in zip(self.tables(), self.start):
            for column, value in enumerate(row):
                table[:, column].fill_(value)  # a DTensor understands this too

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors):
        for name, table, known in zip(self.names, self.tables(), TABLE_NAMES):
            key = next((prefix + k for k in (name, *known) if prefix + k in state_dict), None)
            if key is None or not isinstance(state_dict[key], Tensor):
                continue
            rows = state_dict.pop(key)
            rows = rows[None] if rows.dim() == 1 else rows  # PAU's tables are rows
            if rows.dim() == 2 and len(rows) != len(table):
                if len(rows) == 1:
                    rows = rows.repeat(len(table), 1)
                elif len(table) == 1 and torch.equal(rows, rows[:1].expand_as(rows)):
                    rows = rows[:1]
                elif len(table) == 1:
                    errors.append(f"{prefix + name} is one row that all groups share; the {len(rows)} of {key} differ")
                    rows = table
            state_dict[prefix + name] = rows
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)


def table_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the tables of all group-rational modules in a model, numerators and denominators.

    They are 2-D, and yet no matrices: keep them from weight decay, which rules by dimensions apply to them, and from
    optimizers for matrices, such as Muon.
    """
    return [table for module in model.modules() if isinstance(module, Tables) for table in module.tables()]


class GroupRational(Tables):
    """F(x) = (a_0 + a_1 x + … + a_m x^m) / (1 + |b_1||x| + … + |b_n||x|^n), with a and b learned for each group.

    features: the number of channels, cut into `groups` runs of neighbours. degrees: (m, n). init: the function that F
    starts as, "identity", "silu" or another of `coefficients.initial`. channels_last: x is [..., features], or else
    [B, features, ...], always with a batch. backward: the kernel that computes the gradients (see `rational`). shared:
    "numerator", "denominator" or "both" is one row, which all groups use and train.

    Parameters: numerator [groups, m+1] and denominator [groups, n], or [1, ·] where shared; float32 whatever PyTorch's
    default is, unless dtype is given. `reset_parameters` starts them anew.

    Checkpoints of KAT, FlashKAT and PAU load: their names are understood, and one row, [1, ·] or [·], becomes [groups,
    ·], the same function, of which each group then trains its own copy. Rows for each group become one shared row where
    they are equal, and are refused where they differ.

    Raises ValueError where features is not divisible by groups, and for unknown names and impossible degrees; TypeError
    for what is no integer or dtype.
    """

    numerator: nn.Parameter
    denominator: nn.Parameter

    def __init__(
        self,
        features: int,
        groups: int = 8,
        degrees: tuple[int, int] = (5, 4),
        init: str = "silu",
        channels_last: bool = True,
        backward: str = DEFAULT_BACKWARD,
        *,
        shared: str | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ):
        features, groups = integer("features", features), integer("groups", groups)
        if features < 1 or groups < 1 or features % groups:
            raise ValueError(f"features must be a positive multiple of groups: {features} features, {groups} groups")
        if backward not in BACKWARDS:
            raise ValueError(f"backward must be one of {', '.join(map(repr, BACKWARDS))}, not {backward!r}")
        if shared not in SHARED:
            raise ValueError(f"shared must be one of {', '.join(map(repr, SHARED))}, not {shared!r}")
        rows = tuple(1 if one else groups for one in SHARED[shared])
        super().__init__(rows, coefficients.start(init, degrees), ("numerator", "denominator"), device, dtype)
        self.features, self.groups, self.init, self.shared = features, groups, init, shared
        self.degrees: tuple[int, int] = coefficients.checked_degrees(degrees)
        self.channels_last, self.backward = channels_last, backward

    def forward(
        self, x: Tensor, branch: Tensor | None = None, norm: nn.Module | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """x [..., features], or [B, features, ...] where not channels_last. Returns its shape and dtype.

        Channels first, nothing is copied where x is contiguous, nor where it is in a channels-last memory format; the
        result lies in memory as x does, and is contiguous for an x of other strides.

        norm: a LayerNorm or RMSNorm over features, which x passes first, in one pass over memory; channels last. With a
        branch, of x's shape, x + branch passes them, and the result is (F of its norm, x + branch).
        """
        if norm is not None:
            if not self.channels_last:
                raise ValueError("a norm in front needs channels_last=True")
            return normed_rational(x, branch, norm, self)
        if branch is not None:
            total = x + branch
            return self.forward(total), total
        return apply_rational(x, self.numerator, self.denominator, self.features, self.channels_last, self.backward)

    def extra_repr(self) -> str:
        text = f"{self.features}, groups={self.groups}, degrees={self.degrees}"
        text += "" if self.channels_last else ", channels_last=False"
        text += "" if self.shared is None else f", shared={self.shared!r}"
        return text + f", backward={self.backward!r}"


def integer(name: str, value: int) -> int:
    try:
        return operator.index(value)
    except TypeError:
        hint = f"; a start is given as init={value!r}" if isinstance(value, str) else ""
        raise TypeError(f"{name} must be an integer, not {value!r}{hint}") from None


def apply_rational(
    x: Tensor, numerator: Tensor, denominator: Tensor, features: int, channels_last: bool, backward: str
) -> Tensor:
    """`rational` of x [..., features] or [B, features, ...]."""
    if channels_last:
        channels = x.shape[-1] if x.dim() else 0
    else:
        channels = x.shape[1] if x.dim() > 1 else 0
    if channels != features:
        form = "" if channels_last else ": it must be [B, features, ...], where a single sample is x[None]"
        raise ValueError(f"x of shape {list(x.shape)} has {channels} channels, not {features}{form}")
    if channels_last:
        return rational(x, numerator, denominator, backward=backward)
    if x.numel() == 0 or (x.stride(1) == 1 and not x.is_contiguous()):
        return rational(x.movedim(1, -1), numerator, denominator, backward=backward).movedim(-1, 1)
    # A group of channels is a run of neighbours among all numbers of a sample, too.
    return rational(x.flatten(1), numerator, denominator, backward=backward).view(x.shape)


fx.wrap("apply_rational")  # a symbolic trace holds the call, since shapes are not known yet


class LayerNorm(nn.LayerNorm):
    """PyTorch's, over one dimension and with a weight, by `norm_rational`'s kernels: the same parameters and results.

    Under autocast it returns the autocast dtype, where PyTorch's returns float32. With a branch it returns the norm of
    x + branch, and that sum.
    """

    def forward(self, x: Tensor, branch: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        return norm_rational(x, self.weight, self.bias, eps=self.eps, branch=branch)


def make_norm(norm: str, features: int, eps: float, **factory) -> nn.Module:
    if norm not in NORMS:
        raise ValueError(f"norm must be one of None, {', '.join(map(repr, NORMS))}, not {norm!r}")
    return (nn.LayerNorm if norm == "layer" else nn.RMSNorm)(features, eps=eps, **factory)


class GRKAN(nn.Module):
    """The MLP of a transformer block as a group-rational KAN: rational, linear, rational, linear.

    x [..., in_features] → prenorm → act1 (starts as the identity) → dropout → fc1 → act2 (starts as SiLU) → dropout →
    norm → fc2 → [..., out_features]; either norm where asked for. hidden_features and out_features default to
    in_features; groups must divide in_features and hidden_features. The children's names are KAT's, so that its
    checkpoints load.

    norm: "layer" or "rms" takes the norm in front of the MLP into it, as the child prenorm (LayerNorm or RMSNorm, with
    norm_eps), which is computed in one pass with act1. By default there is none: a block has its own. In a model of
    timm's, with mlp = GRKAN(…, norm="layer"):

        block.mlp.prenorm, block.norm2 = block.norm2, nn.Identity()

    and `flashkat_lite.kat.absorbed` and `released` rename the parameters of its state dicts. A block that keeps its
    norm may hand it to `forward`. norm_layer, timm's argument, makes another norm, which stands before fc2.

    It is an `mlp_layer` for timm's models, whose arguments it takes: norm_layer, called with hidden_features, makes the
    norm (none by default); bias and drop are one value, or a pair for the two layers. act_layer is ignored, as
    act_init says what the activations start as: a pair, or a name for act2 alone. use_conv is refused. degrees, groups,
    shared, backward, device and dtype are GroupRational's; device and dtype are given to all children.

    The linear layers start so that variance passes through. With input z ~ N(0, 1), independent weights of mean 0, and
    no bias, each output is a sum of `in` terms w F(z), each of variance Var(w) E[F(z)²]. It has variance 1 if

        Var(w) = gain² / in,    gain² = 1 / E[F(z)²],

    and is again nearly normal, for the next layer. E[F(z)²] is integrated numerically from the initial coefficients:
    1 for the identity, 0.3557 for SiLU (gain² 2.81; with half of z set to 0, as by ReLU, it would be He's 2), and 1
    behind a norm. Dropout in training raises the second moment by 1/(1 - drop), which is not made up for.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer: Callable[..., nn.Module] | None = None,
        norm_layer: Callable[..., nn.Module] | None = None,
        bias: bool | tuple[bool, bool] = True,
        drop: float | tuple[float, float] = 0.0,
        use_conv: bool = False,
        *,
        act_init: str | tuple[str, str] = ("identity", "silu"),
        groups: int = 8,
        degrees: tuple[int, int] = (5, 4),
        shared: str | None = None,
        norm: str | None = None,
        norm_eps: float = 1e-6,
        backward: str = DEFAULT_BACKWARD,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if use_conv:
            raise ValueError("use_conv: there are no 1 x 1 convolutions here; give x as [..., in_features]")
        hidden_features, out_features = hidden_features or in_features, out_features or in_features
        biases, drops = pair("bias", bias), pair("drop", drop)
        starts = ("identity", act_init) if isinstance(act_init, str) else pair("act_init", act_init)
        factory = {"device": device, "dtype": dtype}
        options = {"groups": groups, "degrees": degrees, "backward": backward, "shared": shared, **factory}
        self.prenorm = make_norm(norm, in_features, norm_eps, **factory) if norm is not None else None
        self.act1 = GroupRational(in_features, init=starts[0], **options)
        self.drop1 = nn.Dropout(drops[0])
        self.fc1 = nn.Linear(in_features, hidden_features, biases[0], **factory)
        self.act2 = GroupRational(hidden_features, init=starts[1], **options)
        self.drop2 = nn.Dropout(drops[1])
        given = {name: value for name, value in factory.items() if value is not None}
        self.norm = norm_layer(hidden_features, **given) if norm_layer else None
        self.fc2 = nn.Linear(hidden_features, out_features, biases[1], **factory)
        self.reset_parameters()

    def reset_parameters(self, moments: tuple[float, float] | None = None) -> None:
        """Start all children anew; reads no parameter.

        moments: E[F(z)²] before fc1 and fc2, where they are to be drawn for others than the starts; `second_moment` has
        those of the present tables.
        """
        if moments is None:
            moments = (coefficients.second_moment(*self.act1.start), coefficients.second_moment(*self.act2.start))
            moments = (moments[0], 1.0 if self.norm else moments[1])
        for linear, moment in zip((self.fc1, self.fc2), moments):
            reset_by(linear, functools.partial(draw, moment=moment))
        for child in self.children():
            if hasattr(child, "reset_parameters"):
                child.reset_parameters()

    def forward(
        self, x: Tensor, branch: Tensor | None = None, norm: nn.Module | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """x [..., in_features] → [..., out_features]; with a branch, of x's shape, (that of x + branch, x + branch).

        norm: a LayerNorm or RMSNorm of the caller's, in the place of prenorm.
        """
        found = self.act1(x, branch, self.prenorm if norm is None else norm)
        x, total = (found, None) if branch is None else found
        x = self.drop2(self.act2(self.fc1(self.drop1(x))))
        x = self.fc2(x if self.norm is None else self.norm(x))
        return x if branch is None else (x, total)


def normed_rational(
    x: Tensor, branch: Tensor | None, norm: nn.Module, act: GroupRational
) -> Tensor | tuple[Tensor, Tensor]:
    """act(norm(x)), or of x + branch, in one pass; with a branch also the sum.

    A norm with hooks is called by itself, so that they run: FSDP2's, where the norm is sharded on its own.
    """
    known = isinstance(norm, (nn.LayerNorm, nn.RMSNorm)) and norm.elementwise_affine and len(norm.normalized_shape) == 1
    if not known:
        raise TypeError(f"norm must be a LayerNorm or RMSNorm over one dimension, with a weight, not {norm}")
    if norm._forward_pre_hooks or norm._forward_hooks or norm._backward_pre_hooks or norm._backward_hooks:
        total = x if branch is None else x + branch
        z = act.forward(norm(total))
        return z if branch is None else (z, total)
    rms = isinstance(norm, nn.RMSNorm)
    eps = torch.finfo(x.dtype).eps if norm.eps is None else norm.eps  # RMSNorm's default
    tables = act.numerator, act.denominator
    options = dict(norm="rms" if rms else "layer", eps=eps, branch=branch)
    return norm_rational(x, norm.weight, None if rms else norm.bias, *tables, **options)


def pair(name: str, value):
    values = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(values) != 2:
        raise ValueError(f"{name} must be one value or a pair, not {value!r}")
    return values


def reset_by(linear: nn.Linear, start: Callable[[nn.Linear], None]) -> None:
    """Let the layer's reset_parameters be start(layer), for whoever loops over all modules of a model.

    Its type stays nn.Linear, by which quantisers and others find their layers.
    """
    linear.reset_parameters = functools.partial(start, linear)


def draw(linear: nn.Linear, moment: float) -> None:
    """Let outputs start with variance 1, for inputs of second moment `moment`."""
    nn.init.normal_(linear.weight, std=(linear.in_features * moment) ** -0.5)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def second_moment(numerator: Tensor, denominator: Tensor) -> Tensor:
    """E[F(z)²] with z ~ N(0, 1), for each group [G], in float64 on the CPU: tables [G, ·] or [1, ·], of any device."""
    groups = max(len(numerator), len(denominator))
    tables = [table.detach().cpu().expand(groups, -1).tolist() for table in (numerator, denominator)]
    moments = [coefficients.second_moment(tuple(a), tuple(b)) for a, b in zip(*tables)]
    return torch.tensor(moments, dtype=torch.float64, device="cpu")
