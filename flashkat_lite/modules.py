"""Modules: GroupRational, an activation that is learned, and GRKAN, which replaces a transformer block's MLP.

Group-rational Kolmogorov-Arnold networks are Yang & Wang's (Kolmogorov-Arnold Transformer, arXiv 2409.10594).
"""

import torch
from torch import Tensor, nn

from . import coefficients
from .ops import BACKWARDS, DEFAULT_BACKWARD, rational
from .reference import rational_reference

# Their names in published checkpoints: KAT's, then FlashKAT's.
PUBLISHED_NAMES = {
    "numerator": ("weight_numerator", "numerator_v"),
    "denominator": ("weight_denominator", "denominator_v"),
}


class GroupRational(nn.Module):
    """F(x) = (a_0 + a_1 x + … + a_m x^m) / (1 + |b_1||x| + … + |b_n||x|^n), with a and b learned for each group.

    features: the number of channels, cut into `groups` runs of neighbours. degrees: (m, n). init: the function that F
    starts as, "identity", "gelu", "silu", "tanh" or "relu" (see `coefficients.initial`). channels_last: x is
    [..., features], or else [B, features, ...]. backward: the kernel that computes the gradients (see `rational`).

    Parameters: numerator [groups, m+1] and denominator [groups, n], float32. Checkpoints of KAT and FlashKAT load:
    their names are understood, and a table [1, ·] that all groups share becomes [groups, ·], the same function, of
    which each group then trains its own copy.

    Raises ValueError where features is not divisible by groups, and for unknown names and impossible degrees.
    """

    def __init__(
        self,
        features: int,
        groups: int = 8,
        degrees: tuple[int, int] = (5, 4),
        init: str = "silu",
        channels_last: bool = True,
        backward: str = DEFAULT_BACKWARD,
    ):
        super().__init__()
        if features < 1 or groups < 1 or features % groups:
            raise ValueError(f"features must be a positive multiple of groups: {features} features, {groups} groups")
        if backward not in BACKWARDS:
            raise ValueError(f"backward must be one of {', '.join(map(repr, BACKWARDS))}, not {backward!r}")
        self.features, self.groups, self.degrees, self.init = features, groups, tuple(degrees), init
        self.channels_last, self.backward = channels_last, backward
        numerator, denominator = coefficients.initial(init, degrees)
        self.numerator = nn.Parameter(numerator.repeat(groups, 1))
        self.denominator = nn.Parameter(denominator.repeat(groups, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., features], or [B, features, ...] where not channels_last. Returns its shape and dtype."""
        channels = x if self.channels_last else x.movedim(1, -1)
        if channels.shape[-1] != self.features:
            raise ValueError(f"x of shape {list(x.shape)} has {channels.shape[-1]} channels, not {self.features}")
        y = rational(channels, self.numerator, self.denominator, backward=self.backward)
        return y if self.channels_last else y.movedim(-1, 1)

    def extra_repr(self) -> str:
        text = f"{self.features}, groups={self.groups}, degrees={self.degrees}, init={self.init!r}"
        text += "" if self.channels_last else ", channels_last=False"
        return text + f", backward={self.backward!r}"

    def _load_from_state_dict(self, state_dict, prefix, *arguments):
        for name, published in PUBLISHED_NAMES.items():
            for key in (prefix + name, *(prefix + other for other in published)):
                if key in state_dict:
                    table = state_dict.pop(key)
                    shared = table.dim() == 2 and len(table) == 1
                    state_dict[prefix + name] = table.repeat(self.groups, 1) if shared else table
        super()._load_from_state_dict(state_dict, prefix, *arguments)


class GRKAN(nn.Module):
    """The MLP of a transformer block as a group-rational KAN: rational, linear, rational, linear.

    x [..., in_features] → act1 (starts as the identity) → dropout → fc1 → act2 (starts as SiLU) → dropout → fc2 →
    [..., out_features]. hidden_features and out_features default to in_features; groups must divide in_features and
    hidden_features. The children's names are KAT's, so that its checkpoints load.

    The linear layers start so that variance passes through. With input z ~ N(0, 1), independent weights of mean 0, and
    no bias, each output is a sum of `in` terms w F(z), each of variance Var(w) E[F(z)²]. It has variance 1 if

        Var(w) = gain² / in,    gain² = 1 / E[F(z)²],

    and is again nearly normal, for the next layer. E[F(z)²] is integrated numerically from the initial coefficients:
    1 for the identity, 0.3557 for SiLU (gain² 2.81; with half of z set to 0, as by ReLU, it would be He's 2). Dropout
    in training raises the second moment by 1/(1 - drop), which is not made up for.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        *,
        groups: int = 8,
        degrees: tuple[int, int] = (5, 4),
        drop: float = 0.0,
        backward: str = DEFAULT_BACKWARD,
    ):
        super().__init__()
        hidden_features, out_features = hidden_features or in_features, out_features or in_features
        self.act1 = GroupRational(in_features, groups, degrees, init="identity", backward=backward)
        self.drop1 = nn.Dropout(drop)
        self.fc1 = nn.Linear(in_features, hidden_features)
        self.act2 = GroupRational(hidden_features, groups, degrees, init="silu", backward=backward)
        self.drop2 = nn.Dropout(drop)
        self.fc2 = nn.Linear(hidden_features, out_features)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the linear layers anew, for the functions that the activations compute now."""
        for activation, linear in ((self.act1, self.fc1), (self.act2, self.fc2)):
            power = second_moment(activation.numerator, activation.denominator).mean().item()
            nn.init.normal_(linear.weight, std=(linear.in_features * power) ** -0.5)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(self.drop1(self.act1(x)))
        return self.fc2(self.drop2(self.act2(x)))


@torch.no_grad()
def second_moment(numerator: Tensor, denominator: Tensor) -> Tensor:
    """E[F(z)²] with z ~ N(0, 1), for each group [G], in float64: the trapezoidal rule on [-12, 12]."""
    z = torch.linspace(-12, 12, 4801, dtype=torch.float64, device=numerator.device)
    density = torch.exp(-z * z / 2) / (2 * torch.pi) ** 0.5
    f = rational_reference(z[:, None].expand(-1, len(numerator)), numerator.double(), denominator.double())
    return torch.trapezoid(f * f * density[:, None], z, dim=0)
