"""`rational` and `norm_rational`, the functions that modules call: what they promise, and what they refuse."""

import functools
import sys

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import handle_torch_function, has_torch_function

from ._torch import (
    BACKWARDS,
    EAGER,
    KERNEL_SOURCES,
    can_bypass_dispatcher,
    eager_norm_rational,
    found_once,
    here,
    registered_norm,
    registered_rational,
)
from .reference import norm_rational_closed_form, rational_closed_form, rational_reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
DEFAULT_BACKWARD = "stationary"
NORMS = ("layer", "rms")
MOST_COLUMNS = 8192  # of a norm's row, which lies in a program's registers


def rational(x: Tensor, numerator: Tensor, denominator: Tensor, *, backward: str = DEFAULT_BACKWARD) -> Tensor:
    """The group-rational function F(x) = (a_0 + a_1 x + … + a_m x^m) / (1 + |b_1||x| + … + |b_n||x|^n).

    x: [..., D] in float32, bfloat16, float16 or float64, of any leading shape and strides (a copy is made where rows
    are not contiguous). Its D columns form G groups of neighbours; D must be divisible by G. numerator: [G, m+1] and
    denominator: [G, n], m, n >= 1, any float dtype, computed in float32; a [1, ·] table is shared by all groups.
    backward: which rung computes the gradients, "atomic", "block" or "stationary"; the last is bitwise repeatable.

    Returns y, contiguous, in x's shape and dtype. Gradients of the tables are summed in float32 or wider and come in
    the tables' dtypes. x's sign is its sign bit, at 0 too; that of b = 0 is +1. Under autocast float32 is cast to the
    autocast dtype. CPU tensors run the reference, or the kernels where TRITON_INTERPRET=1 was set before Triton was
    imported. In PyTorch, on any device, run float64 (computed in float64 throughout), second derivatives and
    forward mode (torch.func.jvp): correct, and many times slower.

    Raises TypeError for dtypes and ValueError for shapes, devices and names, before any launch.
    """
    eager = isinstance(backward, str) and can_bypass_dispatcher(x, numerator, denominator)
    if not eager:
        tensors = x, numerator, denominator
        if _stand_for_tensors(x=x, numerator=numerator, denominator=denominator):
            return handle_torch_function(rational, tensors, *tensors, backward=backward)
    elif backward == DEFAULT_BACKWARD and (plain := _plain(x, numerator, denominator)):
        return EAGER[backward](x, numerator, denominator, plain)
    (_validate_once if eager else _validate)(
        backward, x.shape, x.dtype, x.device,
        numerator.shape, numerator.dtype, numerator.device, denominator.shape, denominator.dtype, denominator.device,
    )  # fmt: skip
    if x.dtype == torch.float32 and (not eager or torch._C._is_any_autocast_enabled()):
        x = x.to(_autocast_dtype(x))
    if not eager and _exporting_to_onnx():  # which has no word for the op
        return rational_reference(x, numerator, denominator).contiguous()
    if forward_ad._current_level >= 0:  # jvp: a registered op drops tangents without a word
        return rational_closed_form(x, numerator, denominator).contiguous()
    if eager:
        plain = _plain(x, numerator, denominator) if backward == DEFAULT_BACKWARD else None
        return EAGER[backward](x, numerator, denominator, plain)
    return registered_rational(x, numerator, denominator, backward, KERNEL_SOURCES)


def norm_rational(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    numerator: Tensor | None = None,
    denominator: Tensor | None = None,
    *,
    norm: str = "layer",
    eps: float = 1e-6,
    branch: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """z = F(γ x̂ + β): a norm and the rational function of it in one pass, or without tables the norm alone.

    x: [..., D], D <= 8192, in float32, bfloat16, float16 or float64; x̂ = (x - mean) / sqrt(variance + eps) over D, or
    with norm="rms" x̂ = x / sqrt(mean(x²) + eps). weight γ and bias β: [D], any float dtype. numerator and denominator:
    as `rational` has them. branch: a tensor of x's shape that is added first, a residual block's.

    Returns z, contiguous, in `dtype`; with a branch (z, x + branch), the sum in the wider of the two dtypes. dtype is
    by default x's, or under autocast, for float32, the autocast dtype; x and the sum are not cast. All between is
    computed in float32, from the sum as it is stored. Nothing but x, or the sum, and two numbers a row is kept for the
    backward pass. Gradients are bitwise repeatable; sums are float32 and come in the parameters' dtypes. What runs in
    PyTorch for `rational` does for this.

    Raises TypeError for dtypes and ValueError for shapes, devices and names, before any launch.
    """
    tensors = x, weight, bias, numerator, denominator, branch
    options = dict(norm=norm, eps=eps, dtype=dtype)
    given = [t for t in tensors if t is not None]
    eager = weight is not None and can_bypass_dispatcher(*given)
    if not eager:
        names = dict(x=x, weight=weight, bias=bias, numerator=numerator, denominator=denominator, branch=branch)
        optional = {name: t for name, t in names.items() if t is not None or name in ("x", "weight")}
        if _stand_for_tensors(**optional):
            return handle_torch_function(norm_rational, given, *tensors[:5], branch=branch, **options)
    if (numerator is None) != (denominator is None):
        raise ValueError("numerator and denominator are given together, or neither is")
    facts = [None if t is None else (t.shape, t.dtype, t.device) for t in tensors]
    (_validate_norm_once if eager else _validate_norm)(*facts, norm, eps, dtype)
    if dtype is None:
        cast = x.dtype == torch.float32 and (not eager or torch._C._is_any_autocast_enabled())
        dtype = _autocast_dtype(x) if cast else x.dtype
    arguments = x, branch, weight, bias, numerator, denominator, norm == "rms", eps, dtype
    if forward_ad._current_level >= 0 or (not eager and _exporting_to_onnx()):
        rms_eps_dtype = dict(rms=norm == "rms", eps=eps, dtype=dtype)
        z, total, _, _ = norm_rational_closed_form(*arguments[:6], **rms_eps_dtype)
    elif eager:
        return eager_norm_rational(*arguments)
    else:
        z, total, _, _ = registered_norm(*arguments, KERNEL_SOURCES)
    return z if branch is None else (z, total)


def _stand_for_tensors(**tensors: Tensor) -> bool:
    """Return whether some stand for tensors, as torch.fx's proxies do; raise for what is none and stands for none."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            if has_torch_function(tuple(tensors.values())):
                return True
            raise TypeError(f"{name} must be a tensor, not {type(tensor).__name__}")
    return False


def _exporting_to_onnx() -> bool:
    return (
        not torch.compiler.is_dynamo_compiling()
        and "torch.onnx" in sys.modules
        and sys.modules["torch.onnx"].is_in_onnx_export()
    )


def _autocast_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    # Not for meta tensors, which have no autocast state to ask for.
    if device != "meta" and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def _validate(
    backward: str, shape: torch.Size, dtype: torch.dtype, device: torch.device,
    a_shape: torch.Size, a_dtype: torch.dtype, a_device: torch.device,
    b_shape: torch.Size, b_dtype: torch.dtype, b_device: torch.device,
) -> None:  # fmt: skip
    if not isinstance(backward, str) or backward not in BACKWARDS:
        raise ValueError(f"backward must be one of {', '.join(map(repr, BACKWARDS))}, not {backward!r}")
    _check_dtype("x", dtype)
    for name, size, of_table, where, least in (
        ("numerator", a_shape, a_dtype, a_device, 2),
        ("denominator", b_shape, b_dtype, b_device, 1),
    ):
        if not of_table.is_floating_point:
            raise TypeError(f"{name} must have a float dtype, not {of_table}")
        if len(size) != 2 or size[0] < 1 or size[1] < least:
            form = "[G, m+1] with m >= 1" if name == "numerator" else "[G, n] with n >= 1"
            raise ValueError(f"{name} must be {form}, not of shape {list(size)}")
        if where != device:
            raise ValueError(f"{name} is on {where}, x on {device}: they must be on one device")
    a_groups, b_groups = a_shape[0], b_shape[0]
    if a_groups != b_groups and a_groups != 1 and b_groups != 1:
        raise ValueError(f"numerator has {a_groups} groups and denominator {b_groups}")
    if len(shape) < 1 or shape[-1] < 1:
        raise ValueError(f"x must be [..., D] with D >= 1, not of shape {list(shape)}")
    if shape[-1] % max(a_groups, b_groups):
        raise ValueError(f"the last dimension of x, {shape[-1]}, is not divisible by {max(a_groups, b_groups)} groups")


def _check_dtype(name: str, dtype: torch.dtype) -> None:
    if dtype not in DTYPES:
        raise TypeError(f"{name} must be float32, bfloat16, float16 or float64, not {dtype}")


Facts = tuple[torch.Size, torch.dtype, torch.device]


def _validate_norm(
    x: Facts, weight: Facts, bias: Facts | None, numerator: Facts | None, denominator: Facts | None,
    branch: Facts | None, norm: str, eps: float, dtype: torch.dtype | None,
) -> None:  # fmt: skip
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(map(repr, NORMS))}, not {norm!r}")
    if not isinstance(eps, (float, int)) or not eps >= 0:
        raise ValueError(f"eps must be a number of 0 or more, not {eps!r}")
    shape, x_dtype, device = x
    _check_dtype("x", x_dtype)
    if dtype is not None:
        _check_dtype("dtype", dtype)
    if len(shape) < 1 or not 1 <= shape[-1] <= MOST_COLUMNS:
        raise ValueError(f"x must be [..., D] with 1 <= D <= {MOST_COLUMNS}, not of shape {list(shape)}")
    for name, found in (("weight", weight), ("bias", bias), ("branch", branch)):
        if found is None:
            continue
        size, of_tensor, where = found
        if name == "branch":
            _check_dtype(name, of_tensor)
        elif not of_tensor.is_floating_point:
            raise TypeError(f"{name} must have a float dtype, not {of_tensor}")
        wanted = shape if name == "branch" else shape[-1:]
        if size != wanted:
            raise ValueError(f"{name} must be of shape {list(wanted)}, not {list(size)}")
        if where != device:
            raise ValueError(f"{name} is on {where}, x on {device}: they must be on one device")
    if branch is not None and (branch[1] == torch.float64) != (x_dtype == torch.float64):
        raise TypeError(f"x is {x_dtype} and branch {branch[1]}: both are float64, or neither is")
    if numerator is not None:
        _validate(DEFAULT_BACKWARD, *x, *numerator, *denominator)


def _plain(x: Tensor, numerator: Tensor, denominator: Tensor):
    """Return the launches for contiguous tensors with nothing to convert; None where more must be looked at."""
    if (
        (x.is_contiguous() and numerator.is_contiguous() and denominator.is_contiguous() and here(x))
        and forward_ad._current_level < 0
        and not (x.dtype is torch.float32 and torch._C._is_any_autocast_enabled())
    ):
        a, b = numerator, denominator
        return _rational_launches(x.shape, x.dtype, x.device, a.shape, a.dtype, a.device, b.shape, b.dtype, b.device)
    return None


@found_once
def _rational_launches(plain, shape, dtype, device, a_shape, a_dtype, a_device, b_shape, b_dtype, b_device):
    try:
        _validate(DEFAULT_BACKWARD, shape, dtype, device, a_shape, a_dtype, a_device, b_shape, b_dtype, b_device)
    except (TypeError, ValueError):
        return None  # the longer way raises it
    return plain.rational(device, shape, dtype, a_shape, a_dtype, b_shape, b_dtype)


_validate_once = functools.lru_cache(1024)(_validate)
_validate_norm_once = functools.lru_cache(1024)(_validate_norm)
