"""`rational`, the function that modules call: what it promises, and what it refuses."""

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ._torch import BACKWARDS, KERNEL_SOURCES, EagerRational, can_bypass_dispatcher, registered_rational
from .reference import rational_closed_form

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DEFAULT_BACKWARD = "stationary"


def rational(x: Tensor, numerator: Tensor, denominator: Tensor, *, backward: str = DEFAULT_BACKWARD) -> Tensor:
    """The group-rational function F(x) = (a_0 + a_1 x + … + a_m x^m) / (1 + |b_1||x| + … + |b_n||x|^n).

    x: [..., D] in float32, bfloat16 or float16, of any leading shape and strides (a copy is made where rows are not
    contiguous). Its D columns form G groups of neighbours; D must be divisible by G. numerator: [G, m+1] and
    denominator: [G, n], m, n >= 1, any float dtype, computed in float32; a [1, ·] table is shared by all groups.
    backward: which rung computes the gradients, "atomic", "block" or "stationary"; the last is bitwise repeatable.

    Returns y, contiguous, in x's shape and dtype. Gradients of the tables are summed in float32 or wider and come in
    the tables' dtypes; sign(0) = +1 for x and for b (stationary: -1 at x = -0). Under autocast x is cast to the
    autocast dtype. CPU tensors run the reference, or the kernels where TRITON_INTERPRET=1 was set before Triton was
    imported. Second derivatives and forward mode (torch.func.jvp) run in PyTorch, whatever the device: correct, and
    many times slower.

    Raises TypeError for dtypes and ValueError for shapes, devices and names, before any launch.
    """
    _validate(x, numerator, denominator, backward)
    device = x.device.type
    # Not for meta tensors, which have no autocast state to ask for.
    if x.dtype == torch.float32 and device != "meta" and torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
    if forward_ad._current_level >= 0:  # jvp: a registered op drops tangents without a word
        return rational_closed_form(x, numerator, denominator).contiguous()
    if can_bypass_dispatcher(x, numerator, denominator):
        return EagerRational.apply(x, numerator, denominator, backward)
    return registered_rational(x, numerator, denominator, backward, KERNEL_SOURCES)


def _validate(x: Tensor, numerator: Tensor, denominator: Tensor, backward: str) -> None:
    if backward not in BACKWARDS:
        raise ValueError(f"backward must be one of {', '.join(map(repr, BACKWARDS))}, not {backward!r}")
    for name, tensor in (("x", x), ("numerator", numerator), ("denominator", denominator)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, not {type(tensor).__name__}")
    if x.dtype not in DTYPES:
        raise TypeError(f"x must be float32, bfloat16 or float16, not {x.dtype}")
    device = x.device
    for name, table, least in (("numerator", numerator, 2), ("denominator", denominator, 1)):
        if not table.dtype.is_floating_point:
            raise TypeError(f"{name} must have a float dtype, not {table.dtype}")
        shape = table.shape
        if len(shape) != 2 or shape[0] < 1 or shape[1] < least:
            form = "[G, m+1] with m >= 1" if name == "numerator" else "[G, n] with n >= 1"
            raise ValueError(f"{name} must be {form}, not of shape {list(shape)}")
        if table.device != device:
            raise ValueError(f"{name} is on {table.device}, x on {device}: they must be on one device")
    a_groups, b_groups, shape = numerator.shape[0], denominator.shape[0], x.shape
    if a_groups != b_groups and a_groups != 1 and b_groups != 1:
        raise ValueError(f"numerator has {a_groups} groups and denominator {b_groups}")
    if len(shape) < 1 or shape[-1] < 1:
        raise ValueError(f"x must be [..., D] with D >= 1, not of shape {list(shape)}")
    if shape[-1] % max(a_groups, b_groups):
        raise ValueError(f"the last dimension of x, {shape[-1]}, is not divisible by {max(a_groups, b_groups)} groups")
