"""How PyTorch sees `rational`: two registered ops, an eager way past the dispatcher, and the rules of torch.func.

A registered op is what compilers, tracers, modes and `torch.func` see. It costs more host time than the whole of a
small GELU, so eager code on plain tensors goes through `EagerRational`, which calls the same launchers.
"""

import functools
import hashlib
import importlib
import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses.functional_tensor import FunctionalTensorMode
from torch.library import CustomOpDef
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from .reference import rational_closed_form, rational_gradients

PLAIN = (Tensor, torch.nn.Parameter)


def sources(folder: Path) -> str:
    """Return a hash of what a compiler sees inside the ops: the kernels and the reference."""
    files = [folder / "reference.py", *sorted(folder.glob("kernels/*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


# An argument of the ops: torch.compile finds the graphs that it keeps on disk by their arguments alone, and would go on
# with old kernels after a change of ours.
KERNEL_SOURCES = sources(Path(__file__).parent)


# Launchers. A kernel is imported at its first call, since importing one imports Triton.


def _launcher(module: str) -> Callable:
    """Return the function of that name in kernels/module.py, imported when it is first called."""

    @functools.cache
    def imported() -> Callable:
        return getattr(importlib.import_module(f".kernels.{module}", __package__), module)

    return lambda *tensors: imported()(*tensors)


_launch_forward = _launcher("forward")
# Each (grad_output, x, numerator, denominator) -> (dx, dnumerator, ddenominator).
BACKWARDS = {name: _launcher(f"backward_{name}") for name in ("atomic", "block", "stationary")}


def interpreted() -> bool:
    """Return whether Triton interprets kernels, or will once it is imported, by the values that it takes for true."""
    triton = sys.modules.get("triton")
    if hasattr(triton, "knobs"):
        return triton.knobs.runtime.interpret
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


def _use_kernels(x: Tensor) -> bool:
    return (x.is_cuda or interpreted()) and x.dtype != torch.float64


def _launch(launcher: Callable, x: Tensor, numerator: Tensor, denominator: Tensor, *before: Tensor):
    """Call launcher(*before, x, tables) with tables whose rows are contiguous, where x's device is the current one."""
    if not (numerator.is_contiguous() or numerator.stride(1) == 1):
        numerator = numerator.contiguous()
    if not (denominator.is_contiguous() or denominator.stride(1) == 1):
        denominator = denominator.contiguous()
    if x.is_cuda and x.get_device() != torch.cuda.current_device():
        with torch.cuda.device_of(x):
            return launcher(*before, x, numerator, denominator)
    return launcher(*before, x, numerator, denominator)


def _own(result: Tensor) -> Tensor:
    """Return the reference's result in memory of its own: autograd refuses to change a view in place."""
    return result.clone(memory_format=torch.contiguous_format)


def _forward(x: Tensor, numerator: Tensor, denominator: Tensor, backward: str, sources: str) -> Tensor:
    if not _use_kernels(x):
        return _own(rational_closed_form(x, numerator, denominator))
    return _launch(_launch_forward, x, numerator, denominator)


def _backward(
    grad_output: Tensor, x: Tensor, numerator: Tensor, denominator: Tensor, backward: str, sources: str
) -> tuple[Tensor, Tensor, Tensor]:
    if not _use_kernels(x):
        dx, da, db = rational_gradients(grad_output, x, numerator, denominator)
        return _own(dx), da, db
    return _launch(BACKWARDS[backward], x, numerator, denominator, grad_output)


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
        or torch._C._are_functorch_transforms_active()
    ):
        return False
    for t in tensors:
        if type(t) not in PLAIN or t.is_neg() or t._is_zerotensor() or not torch._C._has_storage(t):
            return False
    return True


def _meet_modes() -> None:
    if not torch.compiler.is_compiling() and torch._C._len_torch_dispatch_stack():
        _tell_flop_counters()


def _under_functorch() -> bool:
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def _eager(rung: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return `rational_op` with that backward, without PyTorch's dispatcher."""

    class EagerRational(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, numerator, denominator):
            ctx.save_for_backward(x, numerator, denominator)
            return _forward(x, numerator, denominator, rung, KERNEL_SOURCES)

        @staticmethod
        def backward(ctx, grad_output):
            x, numerator, denominator = ctx.saved_tensors
            # With create_graph=True the gradients are differentiated in turn, which is the op's business.
            eager = not torch.is_grad_enabled() and can_bypass_dispatcher(grad_output, x, numerator, denominator)
            function = _backward if eager else registered_backward
            return function(grad_output, x, numerator, denominator, rung, KERNEL_SOURCES)

    # Past two Python frames that sort out what a Function may do in general: transforms, of which there are none here,
    # and default arguments; a tenth of the host's time for a Function that does nothing.
    EagerRational._backward_cls.apply = EagerRational.backward
    return super(torch.autograd.Function, EagerRational).apply


EAGER = {rung: _eager(rung) for rung in BACKWARDS}


# The registered ops.


def namespace(package: str) -> str:
    """Return the ops' namespace: the name that the package was imported under, "flashkat_lite" or a copy's.

    So copies may be loaded side by side. Names of the Hugging Face Hub's kernels hold a hash of their build. A name
    that is no identifier becomes one, with a hash of its own.
    """
    if package.isidentifier():
        return package
    return re.sub(r"\W|^(?=\d)", "_", package) + "_" + hashlib.sha256(package.encode()).hexdigest()[:8]


NAMESPACE = namespace(__package__)
rational_op = torch.library.custom_op(f"{NAMESPACE}::rational", _forward, mutates_args=())
rational_backward_op = torch.library.custom_op(f"{NAMESPACE}::rational_backward", _backward, mutates_args=())
OPS = getattr(torch.ops, NAMESPACE)


@rational_op.register_fake
def _(x, numerator, denominator, backward, sources):
    _tell_dtensor()
    return x.new_empty(x.shape)


@rational_backward_op.register_fake
def _(grad_output, x, numerator, denominator, backward, sources):
    _tell_dtensor()
    return x.new_empty(x.shape), numerator.new_empty(numerator.shape), denominator.new_empty(denominator.shape)


def _trace_through(op: CustomOpDef, function: Callable) -> None:
    """Let torch.compile trace into the op: it launches our kernels itself, in a fraction of the op's host time.

    Where kernels do not run, as on a CPU, it compiles the reference. For kernels it is what `torch.library.triton_op`
    does; that would import Triton when the op is registered, before `flashkat_lite.lab` can choose the interpreter.
    """

    def traced(mode, opaque, types, arguments, keywords):
        x, rung = arguments[-5], arguments[-2]
        opaque_kernels = _use_kernels(x) and (rung != "stationary" or interpreted())
        if opaque_kernels or torch.compiler.is_exporting():
            return mode.__torch_dispatch__(opaque, types, arguments, keywords)
        with mode:
            return function(*arguments)

    op.register_torch_dispatch(FunctionalTensorMode, traced)


_trace_through(rational_op, _forward)
_trace_through(rational_backward_op, _backward)


# What learns of the ops late, since importing it would take a second, or import Triton.


def _tell_dtensor() -> None:
    """Register sharding rules where there are DTensors: they ask a fake for its shapes before they look for a rule."""
    if "torch.distributed.tensor" in sys.modules:
        from .distributed import register_sharding_rules

        register_sharding_rules()


def _rational_flops(x, numerator, denominator, *strings, **keywords) -> int:
    """Chapter 6's count: Horner's rule for P and Q, two a multiply-add, a magnitude and a quotient."""
    return math.prod(x) * (2 * (numerator[1] - 1 + denominator[1]) + 2)


def _rational_backward_flops(grad_output, x, numerator, denominator, *strings, **keywords) -> int:
    """Chapter 3's count."""
    return math.prod(x) * (6 * (numerator[1] - 1 + denominator[1]) + 4)


def _tell_flop_counters() -> None:
    """Give PyTorch's FlopCounterMode our counts, and those that are open too: each copies the table when it is made."""
    counting = sys.modules.get("torch.utils.flop_counter")
    if counting is None:
        return
    for op, formula in ((OPS.rational, _rational_flops), (OPS.rational_backward, _rational_backward_flops)):
        if op not in counting.flop_registry:
            counting.register_flop_formula(op)(formula)
        for mode in _get_current_dispatch_mode_stack():
            if isinstance(mode, counting._FlopCounterMode):
                mode.counter.flop_registry.setdefault(op, counting.flop_registry[op])


_tell_flop_counters()


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


def _stacked(dtype: torch.dtype, *tables: Tensor) -> list[Tensor]:
    """Return tables [B, G or 1, ·] as [B G, ·], in the dtype that x's is computed in."""
    groups = max(table.shape[1] for table in tables)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return [table.to(wide).expand(-1, groups, -1).flatten(0, 1) for table in tables]


def _vmap(info, in_dims, x, numerator, denominator, backward, sources):
    x, *tables = _batched(info.batch_size, (x, numerator, denominator), in_dims[:3])
    y = registered_rational(_side_by_side(x), *_stacked(x.dtype, *tables), backward, sources)
    return _apart(y, info.batch_size), 0


def _vmap_backward(info, in_dims, grad_output, x, numerator, denominator, backward, sources):
    dy, x, *tables = _batched(info.batch_size, (grad_output, x, numerator, denominator), in_dims[:4])
    dx, *sums = registered_backward(_side_by_side(dy), _side_by_side(x), *_stacked(x.dtype, *tables), backward, sources)
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
    _meet_modes()
    return (_FunctorchRational.apply if _under_functorch() else rational_op)(*arguments)


def registered_backward(*arguments) -> tuple[Tensor, Tensor, Tensor]:
    _meet_modes()
    return (_FunctorchBackward.apply if _under_functorch() else rational_backward_op)(*arguments)
