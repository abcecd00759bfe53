"""`rational`, the function that modules call: what it promises, and what it refuses."""

import functools
import sys

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import handle_torch_function, has_torch_function

from ._torch import BACKWARDS, EAGER, KERNEL_SOURCES, can_bypass_dispatcher, registered_rational
from .reference import rational_closed_form, rational_reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
DEFAULT_BACKWARD = "stationary"


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
        for name, tensor in zip(("x", "numerator", "denominator"), tensors):
            if not isinstance(tensor, Tensor):
                if has_torch_function(tensors):  # torch.fx's proxies, among others
                    return handle_torch_function(rational, tensors, *tensors, backward=backward)
                raise TypeError(f"{name} must be a tensor, not {type(tensor).__name__}")
    validate = _validate_once if eager else _validate
    validate(
        backward, x.shape, x.dtype, x.device,
        numerator.shape, numerator.dtype, numerator.device, denominator.shape, denominator.dtype, denominator.device,
    )  # fmt: skip
    if x.dtype == torch.float32 and (not eager or torch._C._is_any_autocast_enabled()):
        x = _autocast(x)
    if not eager and _exporting_to_onnx():  # which has no word for the op
        return rational_reference(x, numerator, denominator).contiguous()
    if forward_ad._current_level >= 0:  # jvp: a registered op drops tangents without a word
        return rational_closed_form(x, numerator, denominator).contiguous()
    if eager:
        return EAGER[backward](x, numerator, denominator)
    return registered_rational(x, numerator, denominator, backward, KERNEL_SOURCES)


def _exporting_to_onnx() -> bool:
    return (
        not torch.compiler.is_dynamo_compiling()
        and "torch.onnx" in sys.modules
        and sys.modules["torch.onnx"].is_in_onnx_export()
    )


def _autocast(x: Tensor) -> Tensor:
    device = x.device.type
    # Not for meta tensors, which have no autocast state to ask for.
    if device != "meta" and torch.is_autocast_enabled(device):
        return x.to(torch.get_autocast_dtype(device))
    return x


def _validate(
    backward: str, shape: torch.Size, dtype: torch.dtype, device: torch.device,
    a_shape: torch.Size, a_dtype: torch.dtype, a_device: torch.device,
    b_shape: torch.Size, b_dtype: torch.dtype, b_device: torch.device,
) -> None:  # fmt: skip
    if not isinstance(backward, str) or backward not in BACKWARDS:
        raise ValueError(f"backward must be one of {', '.join(map(repr, BACKWARDS))}, not {backward!r}")
    if dtype not in DTYPES:
        raise TypeError(f"x must be float32, bfloat16, float16 or float64, not {dtype}")
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


_validate_once = functools.lru_cache(1024)(_validate)
