"""Modules of the published KAT and FlashKAT under their own names, and ways between their checkpoints and ours.

Arguments, defaults, parameters, their order and their starts are those of `kat_rational` (Adamdad/rational_kat_cu at
181bae8), `katransformer.py` (Adamdad/kat at ecb0eb7) and `rational_kat` (OSU-STARLAB/FlashKAT at adb7aee); the kernels
are ours. So a script of theirs runs with another import, and state dicts and optimizers' states pass both ways.

    from flashkat_lite.kat import KAT_Group        # instead of: from kat_rational import KAT_Group
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from . import coefficients
from .modules import TABLE_NAMES, Tables, apply_rational, integer, pair
from .ops import DEFAULT_BACKWARD, rational

# What the published modes start as, where `coefficients` has another name for it.
MODES = {"gelu_old": "gelu", "erfc_Softplus_2": "softplus_erfc"}

# The numbers that the published modes start with, rounded to float32 (init.json, the same in both repositories).
# Those of "gelu", "geglu", "swishglu" and "erfc_Softplus_2" fit another denominator than the one that runs.
PUBLISHED_STARTS: dict[str, coefficients.Start] = {
    "identity": (
        (0.0, 1.0, 0.0, 0.0, 0.0, 0.0),
        (0.0, 0.0, 0.0, 0.0),
    ),
    "leaky_relu": (
        (0.029792779, 0.6183735, 2.323309, 3.0519362, 1.4854203, 0.251024496),
        (-1.1419548, 4.39316, 0.8714712, 0.3471966),
    ),
    "tanh": (
        (-1.0804623e-08, 1.0003008, -2.58782e-08, 0.0963213, 3.4775842e-09, 0.000425570923),
        (-0.0013027181, 0.42834902, 1.4524304e-09, 0.010796648),
    ),
    "sigmoid": (
        (0.49999925, 0.25002158, 0.14061925, 0.04942049, 0.0087671485, 0.0006442413),
        (2.1694506e-09, 0.28122766, 1.0123621e-05, 0.017531988),
    ),
    "relu": (
        (0.0299638, 0.6168978, 2.3753476, 3.06599, 1.5246832, 0.25280709),
        (-1.1915501, 4.4080488, 0.9110357, 0.34884978),
    ),
    "gelu_old": (
        (-0.0012423594, 0.5080497, 0.41586363, 0.1302272, 0.0243559, 0.0029028395),
        (-0.066750157, 0.17927646, 0.037466826, 1.656161e-10),
    ),
    "gelu": (
        (-0.00153969, 0.51692871, 0.44075827, 0.0972553, -0.00884418, -0.00378675),
        (-0.14171056, -0.06481231, -0.0444695, 0.01283776),
    ),
    "swish": (
        (3.05488e-07, 0.5000008, 0.249997834, 0.053266283, 0.0058030346, 0.0002751961),
        (-4.111555e-06, 0.10652899, -1.26900074e-06, 0.0005502331),
    ),
    "geglu": (
        (0.00079642, -0.00602563, 0.49750578, 0.47691076, 0.15421425, 0.0168486),
        (-0.12619161, -0.20067464, -0.03005465, 0.0027335),
    ),
    "swishglu": (
        (-0.00111528, -0.00334562, 0.5310766, 0.27851476, 0.06044361, 0.00483468),
        (0.14408492, 0.02008671, 0.02944107, -0.00329516),
    ),
    "leaky_relu_0.1": (
        (0.028001623, 0.63566064, 1.9230178, 2.967527, 1.1911337, 0.23922607),
        (-0.78020794, 4.2781906, 0.5865922, 0.3344702),
    ),
    "erfc_Softplus_2": (
        (0.10685354, -0.23290146, 0.19928975, -0.08317628, 0.01685602, -0.0013217),
        (-0.04596856, 0.4134001, 0.01430384, 0.03504373),
    ),
}


def _start(mode: str, degrees: tuple[int, int], published: bool) -> coefficients.Start:
    if not published:
        return coefficients.start(MODES.get(mode, mode), degrees)
    if mode not in PUBLISHED_STARTS or degrees != (5, 4):
        known = ", ".join(PUBLISHED_STARTS)
        raise ValueError(f"no start of degrees {degrees} is published for {mode!r}; of degrees (5, 4): {known}")
    return PUBLISHED_STARTS[mode]


class KAT_Group(Tables):
    """The activation of KAT: x [B, L, C] or [B, C], of C channels in num_groups runs of neighbours.

    mode: the function that it starts as, one of PUBLISHED_STARTS or another of `coefficients.initial`; published_start
    takes the published numbers for it, which are far from the function in some modes. device is taken and ignored:
    there it chose between two functions, here x's device chooses the kernel; move the module as any other.

    Parameters: weight_numerator [1, 6], shared by all groups, and weight_denominator [num_groups, 4], float32.
    Checkpoints under our names load too. Raises ValueError for other shapes and unknown modes.
    """

    weight_numerator: nn.Parameter
    weight_denominator: nn.Parameter

    def __init__(self, num_groups: int = 8, mode: str = "gelu", device: Any = "cuda", *, published_start: bool = False):
        if integer("num_groups", num_groups) < 1:
            raise ValueError(f"num_groups must be positive, not {num_groups}")
        start = _start(mode, (5, 4), published_start)
        super().__init__((1, num_groups), start, ("weight_numerator", "weight_denominator"))
        self.num_groups, self.order = num_groups, (5, 4)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() not in (2, 3):
            raise ValueError(
                f"x must be [B, L, C] or [B, C], not of shape {list(x.shape)}; KAT_Group2D has [B, C, H, W]"
            )
        return rational(x, self.weight_numerator, self.weight_denominator)

    def extra_repr(self) -> str:
        return f"num_groups={self.num_groups}, order={self.order}"


class KAT_Group2D(KAT_Group):
    """KAT_Group for x [B, C, H, W], in contiguous or channels-last memory; the result lies as x does."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[1] % self.num_groups:
            raise ValueError(f"x must be [B, C, H, W], C a multiple of {self.num_groups}, not of shape {list(x.shape)}")
        tables = self.weight_numerator, self.weight_denominator
        return apply_rational(x, *tables, x.shape[1], False, DEFAULT_BACKWARD)


class FlashKAT_Group(Tables):
    """The activation of FlashKAT: x [..., in_features].

    num_groups and den_groups are the rows of the numerator and of the denominator: equal, or one of them 1, shared by
    all groups; 0 or less is in_features, a table for each channel. m and n are the numbers of their coefficients, 6 and
    4 in all that is published. mode, device and published_start are KAT_Group's.

    Parameters: numerator_v [num_groups, m] and denominator_v [den_groups, n], float32.
    """

    numerator_v: nn.Parameter
    denominator_v: nn.Parameter

    def __init__(
        self,
        in_features: int,
        num_groups: int,
        den_groups: int,
        m: int,
        n: int,
        mode: str,
        device: Any = "cuda",
        *,
        published_start: bool = False,
    ):
        rows = tuple(groups if groups > 0 else in_features for groups in (num_groups, den_groups))
        if 1 not in rows and rows[0] != rows[1]:
            raise ValueError(f"num_groups and den_groups must be equal, or one of them 1, not {rows[0]} and {rows[1]}")
        if in_features % max(rows):
            raise ValueError(
                f"in_features must be a multiple of the groups: {in_features} features, {max(rows)} groups"
            )
        degrees = coefficients.checked_degrees((m - 1, n))
        super().__init__(rows, _start(mode, degrees, published_start), ("numerator_v", "denominator_v"))
        self.in_features, self.num_groups, self.den_groups, self.m, self.n = in_features, *rows, m, n

    def forward(self, x: Tensor) -> Tensor:
        return apply_rational(x, self.numerator_v, self.denominator_v, self.in_features, True, DEFAULT_BACKWARD)

    def extra_repr(self) -> str:
        groups = f"num_groups={self.num_groups}, den_groups={self.den_groups}"
        return f"{self.in_features}, {groups}, m={self.m}, n={self.n}"


class KAN(nn.Module):
    """The MLP of the published KAT: act1 (identity), dropout, fc1, act2 (act_init), dropout, fc2.

    act_layer: KAT_Group, or FlashKAT_Group, which is given `groups` (num_groups, den_groups, m, n) and starts act2 as
    "swish" whatever act_init says; anything else, such as what timm gives, means KAT_Group. act_cfg, in the published
    README's way: {"act_init": [mode of act1, mode of act2]}. bias and drop: one value, or a pair. norm_layer makes a
    norm whose parameters are there and which is not applied, as published. use_conv is refused.

    Linear layers start as PyTorch's do; the published models, unlike GRKAN, overwrite that with 0.02 everywhere.
    The order of the parameters, which optimizers go by: fc1, act1, norm, act2, fc2.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer: Any = KAT_Group,
        norm_layer: Any = None,
        bias: bool | tuple[bool, bool] = True,
        drop: float | tuple[float, float] = 0.0,
        use_conv: bool = False,
        act_init: str = "gelu",
        *,
        act_cfg: dict[str, Any] | None = None,
        published_start: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        **groups: int,
    ):
        super().__init__()
        if use_conv:
            raise ValueError("use_conv: KAT_Group takes channels last, and convolutions give them first")
        flash = act_layer is FlashKAT_Group
        if groups and not flash:
            raise TypeError(
                f"unexpected {', '.join(groups)}: FlashKAT_Group alone takes num_groups, den_groups, m and n"
            )
        modes = ("identity", "swish" if flash else act_init)
        if act_cfg is not None:
            modes = pair("act_init", act_cfg["act_init"])
        hidden_features, out_features = hidden_features or in_features, out_features or in_features
        biases, drops = pair("bias", bias), pair("drop", drop)

        def activation(features: int, mode: str) -> Tables:
            if flash:
                return FlashKAT_Group(features, mode=mode, published_start=published_start, **groups)
            return KAT_Group(mode=mode, published_start=published_start)

        self.fc1 = nn.Linear(in_features, hidden_features, bias=biases[0])
        self.act1 = activation(in_features, modes[0])
        self.drop1 = nn.Dropout(drops[0])
        self.norm = norm_layer(hidden_features) if norm_layer is not None else nn.Identity()
        self.act2 = activation(hidden_features, modes[1])
        self.fc2 = nn.Linear(hidden_features, out_features, bias=biases[1])
        self.drop2 = nn.Dropout(drops[1])
        if (device, dtype) != (None, None):  # which newer versions of timm hand on
            self.to(device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(self.drop1(self.act1(x)))
        return self.fc2(self.drop2(self.act2(x)))


# Checkpoints.

FORMS = {"kat": 1, "flashkat": 2}  # places in TABLE_NAMES
OURS = {name: names[0] for names in TABLE_NAMES for name in names}
CHILDREN = ("fc1", "act1", "norm", "act2", "fc2")  # of the published KAN, in its order
WRAPPERS = re.compile(r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
WEIGHTS = {False: ("state_dict", "model"), True: ("state_dict_ema", "model_ema")}  # of timm's and its relatives' files


def from_published(checkpoint: Mapping[str, Any], ema: bool = False) -> dict[str, Tensor]:
    """Return the weights of a published checkpoint under our names, tables in the shapes that they have there.

    checkpoint: a state dict, or what timm's scripts save, which holds one; with ema, its moving average. What wrappers
    (DDP, torch.compile, EMA) put before names is taken off. GroupRational and GRKAN load the result, and
    flashkat_lite.vit does; with shared="numerator" they have the published parameters.

    Raises KeyError where there is no average.
    """
    key = next((key for key in WEIGHTS[ema] if isinstance(checkpoint.get(key), Mapping)), None)
    if ema and key is None:
        raise KeyError(f"the checkpoint has no moving average: none of {', '.join(WEIGHTS[True])}")
    weights = checkpoint if key is None else checkpoint[key]
    renamed = {}
    for name, tensor in weights.items():
        parent, dot, leaf = _unwrapped(name).rpartition(".")
        if (dot, leaf) != ("", "n_averaged"):  # of torch.optim.swa_utils.AveragedModel
            renamed[parent + dot + OURS.get(leaf, leaf)] = tensor
    return renamed


def to_published(state_dict: Mapping[str, Tensor], form: str = "kat") -> dict[str, Tensor]:
    """Return a state dict of ours, or of a model that holds ours, under published names, in the published order.

    form: "kat", whose numerators are one row for all groups, or "flashkat", whose tables have the rows that ours have.

    Raises ValueError where KAT's form asks for one numerator, and groups have come to differ (shared="numerator" trains
    one), and for another form.
    """
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(map(repr, FORMS))}, not {form!r}")
    ours = from_published(state_dict)
    names = {table[0]: table[FORMS[form]] for table in TABLE_NAMES}
    result = {}
    for key in published_order(ours):
        parent, dot, leaf = key.rpartition(".")
        tensor = ours[key]
        if leaf == "numerator" and form == "kat" and len(tensor) > 1:
            if not torch.equal(tensor, tensor[:1].expand_as(tensor)):
                raise ValueError(
                    f"{key}: its {len(tensor)} groups differ, and KAT_Group has one numerator for all. "
                    "Train with shared='numerator', or write form='flashkat'"
                )
            tensor = tensor[:1].clone()  # a file would hold what a slice is a slice of
        result[parent + dot + names.get(leaf, leaf)] = tensor
    return result


def _unwrapped(name: str) -> str:
    name = WRAPPERS.sub("", name)
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return name


def published_order(names: Iterable[str]) -> list[str]:
    """Return names of parameters in the order of the published models: in each KAN fc1, act1, norm, act2, fc2."""
    names = list(names)
    known = set(names)
    mlps: dict[str, int] = {}  # prefix: where its first parameter stands
    places = []
    for i, name in enumerate(names):
        match = re.fullmatch(rf"(.*\.)?({'|'.join(CHILDREN)})\.(.+)", name)
        prefix = match and (match[1] or "")
        if match and any(f"{prefix}act1.{table}" in known for table in TABLE_NAMES[0]):
            places.append((mlps.setdefault(prefix, i), CHILDREN.index(match[2]), i))
        else:
            places.append((i, 0, i))
    return [names[i] for *_, i in sorted(places)]


# Norms in front of the MLP, which GRKAN(norm="layer") takes into itself.


def absorbed(state: Mapping[str, Tensor], norm: str = "norm2", mlp: str = "mlp") -> dict[str, Tensor]:
    """Return a state dict of blocks with their own norm, …norm2.weight, as one of blocks whose GRKAN has it.

    norm and mlp: the two children's names in a block. Norms beside other MLPs keep their names.
    """
    prefixes = {name.partition(f"{mlp}.act1.")[0] for name in state if f"{mlp}.act1." in name}
    names = {f"{p}{norm}.{leaf}": f"{p}{mlp}.prenorm.{leaf}" for p in prefixes for leaf in ("weight", "bias")}
    return {names.get(name, name): tensor for name, tensor in state.items()}


def released(state: Mapping[str, Tensor], norm: str = "norm2", mlp: str = "mlp") -> dict[str, Tensor]:
    """Return the state dict that `absorbed` made another of."""
    return {re.sub(rf"(^|\.){re.escape(mlp)}\.prenorm\.", rf"\g<1>{norm}.", name): t for name, t in state.items()}


# Optimizers. Their state dicts know parameters by their place alone.


def from_published_optimizer(
    state: dict[str, Any], optimizer: torch.optim.Optimizer, model: nn.Module
) -> dict[str, Any]:
    """Return the state dict of a published model's optimizer as one that `optimizer`, over `model`, loads.

    The groups of both must hold the same parameters; the order inside a group is free. (timm's two are: 1-D parameters,
    cls_token and pos_embed, without weight decay; then all others, tables included.)

    Raises ValueError where groups or shapes differ; for KAT's own, build the model with shared="numerator".
    """
    ours = _names(optimizer, model)
    theirs = [published_order(group) for group in ours]
    sizes, expected = [len(group["params"]) for group in state["param_groups"]], [len(group) for group in ours]
    if sizes != expected:
        raise ValueError(f"its groups have {sizes} parameters, this optimizer's have {expected}")
    result = _reordered(state, theirs, ours)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for i, name in enumerate(name for group in ours for name in group):
        for key, value in result["state"].get(i, {}).items():
            if key in ("exp_avg", "exp_avg_sq", "momentum_buffer") and value.shape != parameters[i].shape:
                raise ValueError(
                    f"{key} of {name} has the shape {list(value.shape)}, the parameter {list(parameters[i].shape)}; "
                    "are the groups others, or is shared='numerator' missing?"
                )
    return result


def to_published_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, form: str = "kat") -> dict[str, Any]:
    """Return the state dict of `optimizer`, over `model`, for an optimizer with such groups over a published model.

    Raises ValueError where form is "kat", and a numerator is not shared: there is no way back from its moments.
    """
    unshared = [name for name, p in model.named_parameters() if name.endswith("numerator") and len(p) > 1]
    if form == "kat" and unshared:
        raise ValueError(f"KAT has one numerator for all groups: train with shared='numerator' ({unshared[0]} is not)")
    ours = _names(optimizer, model)
    return _reordered(optimizer.state_dict(), ours, [published_order(group) for group in ours])


def _names(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[list[str]]:
    names = {id(p): _unwrapped(name) for name, p in model.named_parameters()}
    return [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]


def _reordered(state: dict[str, Any], have: list[list[str]], want: list[list[str]]) -> dict[str, Any]:
    """A state dict whose groups hold parameters named `have` as one whose groups hold them in the order `want`."""
    moved: dict[int, Any] = {}
    groups, count = [], 0
    for group, names, wanted in zip(state["param_groups"], have, want):
        index = dict(zip(names, group["params"]))
        places = range(count, count + len(wanted))
        moved |= {i: state["state"][index[n]] for i, n in zip(places, wanted) if index[n] in state["state"]}
        known = {"param_names": wanted} if "param_names" in group else {}
        groups.append(group | {"params": list(places)} | known)
        count += len(wanted)
    return state | {"state": moved, "param_groups": groups}
