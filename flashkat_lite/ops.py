"""`rational`, the function that modules call: validation, PyTorch's op registration, and the choice of a backward."""

import os
from collections.abc import Callable
from importlib import import_module

import torch
from torch import Tensor

from .reference import rational_gradients, rational_reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DEFAULT_BACKWARD = "stationary"


def _rung(name: str) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    def call(grad_output: Tensor, x: Tensor, numerator: Tensor, denominator: Tensor):
        launcher = getattr(import_module(f"flashkat_lite.kernels.backward_{name}"), f"backward_{name}")
        return launcher(grad_output, x, numerator, denominator)

    return call


# Each (grad_output, x, numerator, denominator) -> (dx, dnumerator, ddenominator); the kernel is imported at the call.
BACKWARDS = {name: _rung(name) for name in ("atomic", "block", "stationary")}


def rational(x: Tensor, numerator: Tensor, denominator: Tensor, *, backward: str = DEFAULT_BACKWARD) -> Tensor:
    """The group-rational function F(x) = (a_0 + a_1 x + … + a_m x^m) / (1 + |b_1||x| + … + |b_n||x|^n).

    x: [..., D] in float32, bfloat16 or float16, of any leading shape and strides (a copy is made where rows are not
    contiguous). Its D columns form G groups of neighbours; D must be divisible by G. numerator: [G, m+1] and
    denominator: [G, n], m, n >= 1, any float dtype, computed in float32; a [1, ·] table is shared by all groups.
    backward: which rung computes the gradients, "atomic", "block" or "stationary"; the last is bitwise repeatable.

    Returns y, contiguous, in x's shape and dtype. Gradients of the tables are summed in float32 or wider and come in
    the tables' dtypes; sign(0) = +1 for x and for b. Under autocast x is cast to the autocast dtype. CPU tensors run
    the reference, or the kernels where TRITON_INTERPRET=1 was set before Triton was imported.

    Raises TypeError for dtypes and ValueError for shapes, devices and names, before any launch.
    """
    _validate(x, numerator, denominator, backward)
    device = x.device.type
    # Not for meta tensors, which have no autocast state to ask for.
    if x.dtype == torch.float32 and device != "meta" and torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
    return rational_op(x, numerator, denominator, backward)


def _validate(x: Tensor, numerator: Tensor, denominator: Tensor, backward: str) -> None:
    if backward not in BACKWARDS:
        raise ValueError(f"backward must be one of {', '.join(map(repr, BACKWARDS))}, not {backward!r}")
    tables = {"numerator": numerator, "denominator": denominator}
    for name, tensor in {"x": x, **tables}.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, not {type(tensor).__name__}")
    if x.dtype not in DTYPES:
        raise TypeError(f"x must be float32, bfloat16 or float16, not {x.dtype}")
    for name, table in tables.items():
        if not table.dtype.is_floating_point:
            raise TypeError(f"{name} must have a float dtype, not {table.dtype}")
        least = 2 if name == "numerator" else 1
        if table.dim() != 2 or table.shape[0] < 1 or table.shape[1] < least:
            form = "[G, m+1] with m >= 1" if name == "numerator" else "[G, n] with n >= 1"
            raise ValueError(f"{name} must be {form}, not of shape {list(table.shape)}")
        if table.device != x.device:
            raise ValueError(f"{name} is on {table.device}, x on {x.device}: they must be on one device")
    groups = {len(numerator), len(denominator)} - {1}
    if len(groups) > 1:
        raise ValueError(f"numerator has {len(numerator)} groups and denominator {len(denominator)}")
    if x.dim() < 1 or x.shape[-1] < 1:
        raise ValueError(f"x must be [..., D] with D >= 1, not of shape {list(x.shape)}")
    if groups and x.shape[-1] % max(groups):
        raise ValueError(f"the last dimension of x, {x.shape[-1]}, is not divisible by {max(groups)} groups")


def _use_kernels(x: Tensor) -> bool:
    return x.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"


def _contiguous_rows(table: Tensor) -> Tensor:
    return table if table.stride(1) == 1 else table.contiguous()


@torch.library.custom_op("flashkat_lite::rational", mutates_args=())
def rational_op(x: Tensor, numerator: Tensor, denominator: Tensor, backward: str) -> Tensor:
    if not _use_kernels(x):
        return rational_reference(x, numerator, denominator).contiguous()
    from .kernels.forward import forward

    with torch.cuda.device_of(x):
        return forward(x, _contiguous_rows(numerator), _contiguous_rows(denominator))


@torch.library.custom_op("flashkat_lite::rational_backward", mutates_args=())
def rational_backward_op(
    grad_output: Tensor, x: Tensor, numerator: Tensor, denominator: Tensor, backward: str
) -> tuple[Tensor, Tensor, Tensor]:
    if not _use_kernels(x):
        dx, da, db = rational_gradients(grad_output, x, numerator, denominator)
        return dx.contiguous(), da, db
    with torch.cuda.device_of(x):
        return BACKWARDS[backward](grad_output, x, _contiguous_rows(numerator), _contiguous_rows(denominator))


@rational_op.register_fake
def _(x, numerator, denominator, backward):
    return x.new_empty(x.shape)


@rational_backward_op.register_fake
def _(grad_output, x, numerator, denominator, backward):
    return x.new_empty(x.shape), numerator.new_empty(numerator.shape), denominator.new_empty(denominator.shape)


def _setup_context(ctx, inputs, output):
    x, numerator, denominator, ctx.backward = inputs
    ctx.save_for_backward(x, numerator, denominator)


def _backward(ctx, grad_output):
    return *rational_backward_op(grad_output, *ctx.saved_tensors, ctx.backward), None


rational_op.register_autograd(_backward, setup_context=_setup_context)
