"""How PyTorch sees `rational`: two registered ops, an eager way past the dispatcher, and the rules of torch.func.

A registered op is what compilers, tracers, modes and `torch.func` see. It costs more host time than the whole of a
small GELU, so eager code on plain tensors goes through `EagerRational`, which calls the same launchers.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses.functional_tensor import FunctionalTensorMode
from torch.library import CustomOpDef

from .reference import rational_closed_form, rational_gradients

PLAIN = (Tensor, torch.nn.Parameter)
# An argument of the ops: torch.compile finds the graphs that it keeps on disk by their arguments alone, and would go on
# with old kernels after a change of ours.
KERNEL_SOURCES = hashlib.sha256(
    b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("kernels/*.py")))
).hexdigest()


# Launchers. A kernel is imported at its first call, since importing one imports Triton.


def _launch_forward(x: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
    from .kernels.forward import forward

    return forward(x, numerator, denominator)


def _atomic(*tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    from .kernels.backward_atomic import backward_atomic

    return backward_atomic(*tensors)


def _block(*tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    from .kernels.backward_block import backward_block

    return backward_block(*tensors)


def _stationary(*tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    from .kernels.backward_stationary import backward_stationary

    return backward_stationary(*tensors)


# Each (grad_output, x, numerator, denominator) -> (dx, dnumerator, ddenominator).
BACKWARDS = {"atomic": _atomic, "block": _block, "stationary": _stationary}


def _use_kernels(x: Tensor) -> bool:
    return x.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"


def _device_of(x: Tensor) -> contextlib.AbstractContextManager:
    """Return a context in which x's device is the current one."""
    if x.is_cuda and x.get_device() != torch.cuda.current_device():
        return torch.cuda.device_of(x)
    return contextlib.nullcontext()


def _contiguous_rows(table: Tensor) -> Tensor:
    return table if table.stride(1) == 1 else table.contiguous()


def _own(result: Tensor) -> Tensor:
    """Return the reference's result in memory of its own: autograd refuses to change a view in place."""
    return result.clone(memory_format=torch.contiguous_format)


def _forward(x: Tensor, numerator: Tensor, denominator: Tensor, backward: str, sources: str) -> Tensor:
    if not _use_kernels(x):
        return _own(rational_closed_form(x, numerator, denominator))
    with _device_of(x):
        return _launch_forward(x, _contiguous_rows(numerator), _contiguous_rows(denominator))


def _backward(
    grad_output: Tensor, x: Tensor, numerator: Tensor, denominator: Tensor, backward: str, sources: str
) -> tuple[Tensor, Tensor, Tensor]:
    if not _use_kernels(x):
        dx, da, db = rational_gradients(grad_output, x, numerator, denominator)
        return _own(dx), da, db
    with _device_of(x):
        return BACKWARDS[backward](grad_output, x, _contiguous_rows(numerator), _contiguous_rows(denominator))


# The eager way.


def can_bypass_dispatcher(*tensors: Tensor) -> bool:
    """Return whether only eager autograd will see these tensors, and their storage holds their values.

    A lazily negated tensor's storage holds its negative; efficient zeros and vmap's tensors have none.
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._is_tracing()
        or _under_functorch()
    ):
        return False
    for t in tensors:
        if type(t) not in PLAIN or t.is_neg() or t._is_zerotensor() or not torch._C._has_storage(t):
            return False
    return True


def _under_functorch() -> bool:
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


class EagerRational(torch.autograd.Function):
    """`rational_op` without PyTorch's dispatcher."""

    @staticmethod
    def forward(ctx, x, numerator, denominator, backward):
        ctx.save_for_backward(x, numerator, denominator)
        ctx.backward_name = backward
        return _forward(x, numerator, denominator, backward, KERNEL_SOURCES)

    @staticmethod
    def backward(ctx, grad_output):
        tensors = grad_output, *ctx.saved_tensors
        # With create_graph=True the gradients are differentiated in turn, which is the op's business.
        eager = not torch.is_grad_enabled() and can_bypass_dispatcher(*tensors)
        gradients = (_backward if eager else registered_backward)(*tensors, ctx.backward_name, KERNEL_SOURCES)
        return *gradients, None


# The registered ops.

rational_op = torch.library.custom_op("flashkat_lite::rational", _forward, mutates_args=())
rational_backward_op = torch.library.custom_op("flashkat_lite::rational_backward", _backward, mutates_args=())


@rational_op.register_fake
def _(x, numerator, denominator, backward, sources):
    return x.new_empty(x.shape)


@rational_backward_op.register_fake
def _(grad_output, x, numerator, denominator, backward, sources):
    return x.new_empty(x.shape), numerator.new_empty(numerator.shape), denominator.new_empty(denominator.shape)


def _trace_through(op: CustomOpDef, function: Callable) -> None:
    """Let torch.compile trace into the op on a GPU and launch our kernels itself, in a fraction of the op's host time.

    It is what `torch.library.triton_op` does; that would import Triton when the op is registered, before
    `flashkat_lite.lab` can choose the interpreter.
    """

    def traced(mode, opaque, types, arguments, keywords):
        *tensors, backward, _ = arguments
        if not tensors[0].is_cuda or backward != "stationary" or torch.compiler.is_exporting():
            return mode.__torch_dispatch__(opaque, types, arguments, keywords)
        with mode:
            return function(*arguments)

    op.register_torch_dispatch(FunctionalTensorMode, traced)


_trace_through(rational_op, _forward)
_trace_through(rational_backward_op, _backward)


# Derivatives.


def _save(ctx, inputs, output):
    *tensors, ctx.backward_name, ctx.sources = inputs
    ctx.save_for_backward(*tensors)


def _first_derivative(ctx, grad_output):
    return *registered_backward(grad_output, *ctx.saved_tensors, ctx.backward_name, ctx.sources), None, None


def _second_derivative(ctx, *grads):
    """Differentiate the closed form in PyTorch, where autograd can do so any number of times."""
    _, vjp = torch.func.vjp(rational_gradients, *ctx.saved_tensors)
    return *vjp(grads), None, None


# torch.func.vmap: the B samples lie side by side, each with groups of its own: x [..., D] of each makes [..., B D], and
# tables [G, ·] make [B G, ·]. So tables may differ from sample to sample, and so may their gradients.


def _batched(size: int, tensors: tuple[Tensor, ...], dims: tuple[int | None, ...]) -> list[Tensor]:
    """Return each tensor as [B, ...]."""
    return [t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0) for t, dim in zip(tensors, dims)]


def _side_by_side(x: Tensor) -> Tensor:
    return x.movedim(0, -2).flatten(-2)


def _apart(y: Tensor, size: int) -> Tensor:
    return y.unflatten(-1, (size, -1)).movedim(-2, 0)


def _stacked(*tables: Tensor) -> list[Tensor]:
    groups = max(table.shape[1] for table in tables)
    return [table.float().expand(-1, groups, -1).flatten(0, 1) for table in tables]


def _vmap(info, in_dims, x, numerator, denominator, backward, sources):
    x, *tables = _batched(info.batch_size, (x, numerator, denominator), in_dims[:3])
    y = registered_rational(_side_by_side(x), *_stacked(*tables), backward, sources)
    return _apart(y, info.batch_size), 0


def _vmap_backward(info, in_dims, grad_output, x, numerator, denominator, backward, sources):
    dy, x, *tables = _batched(info.batch_size, (grad_output, x, numerator, denominator), in_dims[:4])
    dx, *sums = registered_backward(_side_by_side(dy), _side_by_side(x), *_stacked(*tables), backward, sources)
    gradients = [_apart(dx, info.batch_size)]
    for total, table in zip(sums, tables):
        total = total.unflatten(0, (info.batch_size, -1))
        gradients.append((total.sum(1, keepdim=True) if table.shape[1] == 1 else total).to(table.dtype))
    return tuple(gradients), (0, 0, 0)


rational_op.register_autograd(_first_derivative, setup_context=_save)
rational_backward_op.register_autograd(_second_derivative, setup_context=_save)
rational_op.register_vmap(_vmap)
rational_backward_op.register_vmap(_vmap_backward)


# torch.func.grad in eager code does not take a registered op's autograd formula, but an autograd.Function's.


class _FunctorchRational(torch.autograd.Function):
    setup_context, backward, vmap = map(staticmethod, (_save, _first_derivative, _vmap))

    @staticmethod
    def forward(*arguments):
        return rational_op(*arguments)


class _FunctorchBackward(torch.autograd.Function):
    setup_context, backward, vmap = map(staticmethod, (_save, _second_derivative, _vmap_backward))

    @staticmethod
    def forward(*arguments):
        return rational_backward_op(*arguments)


def registered_rational(*arguments) -> Tensor:
    return (_FunctorchRational.apply if _under_functorch() else rational_op)(*arguments)


def registered_backward(*arguments) -> tuple[Tensor, Tensor, Tensor]:
    return (_FunctorchBackward.apply if _under_functorch() else rational_backward_op)(*arguments)
