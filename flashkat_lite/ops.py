"""`rational`, the function that modules call: validation, the two ways into PyTorch, and the choice of a backward.

A registered op is what compilers, tracers, modes and `torch.func` see. It costs more host time than the whole of a
small GELU, so eager code on plain tensors goes through a `torch.autograd.Function` that calls the same launchers.
"""

import contextlib
import functools
import hashlib
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses.functional_tensor import FunctionalTensorMode
from torch.autograd import forward_ad
from torch.library import CustomOpDef

from .reference import rational_gradients, rational_reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PLAIN = (Tensor, torch.nn.Parameter)
DEFAULT_BACKWARD = "stationary"
# Rides along with the rung's name in what an op is asked for: torch.compile finds the graphs that it keeps on disk by
# that alone, and would go on with old kernels after a change of ours.
SOURCES = [file.read_bytes() for file in sorted(Path(__file__).parent.glob("kernels/*.py"))]
KERNELS = hashlib.sha256(b"".join(SOURCES)).hexdigest()


@functools.cache
def _launcher(name: str) -> Callable:
    return getattr(import_module(f"flashkat_lite.kernels.{name}"), name)


def _rung(name: str) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    def call(grad_output: Tensor, x: Tensor, numerator: Tensor, denominator: Tensor):
        return _launcher(f"backward_{name}")(grad_output, x, numerator, denominator)

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
        return rational_reference(x, numerator, denominator).contiguous()
    if _plain(x, numerator, denominator):
        return _Rational.apply(x, numerator, denominator, backward)
    return _op(x, numerator, denominator, f"{backward} {KERNELS}")


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


def _plain(*tensors: Tensor) -> bool:
    """Whether eager autograd alone looks at these tensors, and their memory holds their values."""
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._is_tracing()
        or _transformed()
    ):
        return False
    # A lazily negated tensor's memory holds its negative; efficient zeros and vmap's tensors have no memory.
    for t in tensors:
        if type(t) not in PLAIN or t.is_neg() or t._is_zerotensor() or not torch._C._has_storage(t):
            return False
    return True


def _transformed() -> bool:
    """Whether a transform of torch.func looks on, in eager code."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def _use_kernels(x: Tensor) -> bool:
    return x.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"


def _device_of(x: Tensor) -> contextlib.AbstractContextManager:
    """A context in which x's device is the current one."""
    if x.is_cuda and x.get_device() != torch.cuda.current_device():
        return torch.cuda.device_of(x)
    return contextlib.nullcontext()


def _contiguous_rows(table: Tensor) -> Tensor:
    return table if table.stride(1) == 1 else table.contiguous()


def _own(result: Tensor) -> Tensor:
    """The reference's result in memory of its own: autograd refuses to change a view in place."""
    return result.clone(memory_format=torch.contiguous_format)


def _forward(x: Tensor, numerator: Tensor, denominator: Tensor, backward: str) -> Tensor:
    if not _use_kernels(x):
        return _own(rational_reference(x, numerator, denominator))
    with _device_of(x):
        return _launcher("forward")(x, _contiguous_rows(numerator), _contiguous_rows(denominator))


def _backward(
    grad_output: Tensor, x: Tensor, numerator: Tensor, denominator: Tensor, backward: str
) -> tuple[Tensor, Tensor, Tensor]:
    if not _use_kernels(x):
        dx, da, db = rational_gradients(grad_output, x, numerator, denominator)
        return _own(dx), da, db
    rung = backward.split()[0]
    with _device_of(x):
        return BACKWARDS[rung](grad_output, x, _contiguous_rows(numerator), _contiguous_rows(denominator))


class _Rational(torch.autograd.Function):
    """`rational_op` without PyTorch's dispatcher."""

    @staticmethod
    def forward(ctx, x, numerator, denominator, backward):
        ctx.save_for_backward(x, numerator, denominator)
        ctx.rung = backward
        return _forward(x, numerator, denominator, backward)

    @staticmethod
    def backward(ctx, grad_output):
        arguments = grad_output, *ctx.saved_tensors, ctx.rung
        # With create_graph=True the gradients are differentiated in turn, which is the op's business.
        light = not torch.is_grad_enabled() and _plain(*arguments[:-1])
        return *(_backward if light else _backward_op)(*arguments), None


rational_op = torch.library.custom_op("flashkat_lite::rational", _forward, mutates_args=())
rational_backward_op = torch.library.custom_op("flashkat_lite::rational_backward", _backward, mutates_args=())


def _visible(op: CustomOpDef, function: Callable) -> None:
    """torch.compile is to see the launches in a GPU's op and make them itself, in a fraction of the op's host time."""

    def written_down(mode, opaque, types, arguments, keywords):
        *tensors, backward = arguments
        seen = tensors[0].is_cuda and backward.split()[0] == "stationary"
        if not seen or torch.compiler.is_exporting():
            return mode.__torch_dispatch__(opaque, types, arguments, keywords)
        with mode:
            return function(*arguments)

    op.register_torch_dispatch(FunctionalTensorMode, written_down)


_visible(rational_op, _forward)
_visible(rational_backward_op, _backward)


@rational_op.register_fake
def _(x, numerator, denominator, backward):
    return x.new_empty(x.shape)


@rational_backward_op.register_fake
def _(grad_output, x, numerator, denominator, backward):
    return x.new_empty(x.shape), numerator.new_empty(numerator.shape), denominator.new_empty(denominator.shape)


def _save(ctx, inputs, output):
    *tensors, ctx.rung = inputs
    ctx.save_for_backward(*tensors)


def _first_derivative(ctx, grad_output):
    return *_backward_op(grad_output, *ctx.saved_tensors, ctx.rung), None


def _second_derivative(ctx, *grads):
    """Of the closed form in PyTorch, which autograd can differentiate any number of times."""
    _, vjp = torch.func.vjp(rational_gradients, *ctx.saved_tensors)
    return *vjp(grads), None


# torch.func.vmap: the B samples lie side by side, each with groups of its own: x [..., D] of each makes [..., B D], and
# tables [G, ·] make [B G, ·]. So tables may differ from sample to sample, and so may their gradients.


def _batched(size: int, tensors: tuple[Tensor, ...], dims: tuple[int | None, ...]) -> list[Tensor]:
    """Each tensor as [B, ...]."""
    return [t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0) for t, dim in zip(tensors, dims)]


def _side_by_side(x: Tensor) -> Tensor:
    return x.movedim(0, -2).flatten(-2)


def _apart(y: Tensor, size: int) -> Tensor:
    return y.unflatten(-1, (size, -1)).movedim(-2, 0)


def _stacked(*tables: Tensor) -> list[Tensor]:
    groups = max(table.shape[1] for table in tables)
    return [table.float().expand(-1, groups, -1).flatten(0, 1) for table in tables]


def _vmap(info, in_dims, x, numerator, denominator, backward):
    x, *tables = _batched(info.batch_size, (x, numerator, denominator), in_dims[:3])
    y = _op(_side_by_side(x), *_stacked(*tables), backward)
    return _apart(y, info.batch_size), 0


def _vmap_backward(info, in_dims, grad_output, x, numerator, denominator, backward):
    dy, x, *tables = _batched(info.batch_size, (grad_output, x, numerator, denominator), in_dims[:4])
    dx, *sums = _backward_op(_side_by_side(dy), _side_by_side(x), *_stacked(*tables), backward)
    gradients = [_apart(dx, info.batch_size)]
    for total, table in zip(sums, tables):
        total = total.unflatten(0, (info.batch_size, -1))
        gradients.append((total.sum(1, keepdim=True) if table.shape[1] == 1 else total).to(table.dtype))
    return tuple(gradients), (0, 0, 0)


rational_op.register_autograd(_first_derivative, setup_context=_save)
rational_backward_op.register_autograd(_second_derivative, setup_context=_save)
rational_op.register_vmap(_vmap)
rational_backward_op.register_vmap(_vmap_backward)


def _transformable(op: Callable, derivative: Callable, vmap_rule: Callable) -> Callable:
    """The op for eager torch.func too, whose grad does not take the autograd formula of a registered op."""

    class Transformable(torch.autograd.Function):
        setup_context, backward, vmap = staticmethod(_save), staticmethod(derivative), staticmethod(vmap_rule)

        @staticmethod
        def forward(*arguments):
            return op(*arguments)

    return lambda *arguments: (Transformable.apply if _transformed() else op)(*arguments)


_op = _transformable(rational_op, _first_derivative, _vmap)
_backward_op = _transformable(rational_backward_op, _second_derivative, _vmap_backward)
