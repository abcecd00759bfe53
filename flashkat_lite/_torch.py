"""How PyTorch sees `rational` and `norm_rational`: registered ops, an eager way past the dispatcher, and torch.func.

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

from .reference import (
    norm_rational_closed_form,
    norm_rational_gradients,
    rational_closed_form,
    rational_gradients,
)

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

    return lambda *tensors, **options: imported()(*tensors, **options)


_launch_forward = _launcher("forward")
_launch_norm_forward, _launch_norm_backward = _launcher("norm_forward"), _launcher("norm_backward")
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


def _launch(launcher: Callable, device: Tensor, *tensors: Tensor | None, **options):
    """Call launcher(*tensors) where `device`'s device is the current one."""
    if device.is_cuda and device.get_device() != torch.cuda.current_device():
        with torch.cuda.device_of(device):
            return launcher(*tensors, **options)
    return launcher(*tensors, **options)


def _rows(table: Tensor | None) -> Tensor | None:
    """Return a table, or a vector, whose rows are contiguous."""
    return table if table is None or table.is_contiguous() or table.stride(-1) == 1 else table.contiguous()


def _check_devices(x: Tensor, **tensors: Tensor | None) -> None:
    """Raise ValueError for what is not on x's device: a hook for saved tensors may have brought it back elsewhere."""
    for name, t in tensors.items():
        if t is not None and t.device != x.device:
            raise ValueError(f"{name} came back on {t.device}, x on {x.device}: they must be on one device")


def _own(result: Tensor) -> Tensor:
    """Return the reference's result in memory of its own: autograd refuses to change a view in place."""
    return result.clone(memory_format=torch.contiguous_format)


def _forward(x: Tensor, numerator: Tensor, denominator: Tensor, backward: str, sources: str) -> Tensor:
    if not _use_kernels(x):
        return _own(rational_closed_form(x, numerator, denominator))
    return _launch(_launch_forward, x, x, _rows(numerator), _rows(denominator))


def _backward(
    grad_output: Tensor, x: Tensor, numerator: Tensor, denominator: Tensor, backward: str, sources: str
) -> tuple[Tensor, Tensor, Tensor]:
    _check_devices(x, grad_output=grad_output, numerator=numerator, denominator=denominator)
    if not _use_kernels(x):
        dx, da, db = rational_gradients(grad_output, x, numerator, denominator)
        return _own(dx), da, db
    return _launch(BACKWARDS[backward], x, grad_output, x, _rows(numerator), _rows(denominator))


def _norm_forward(
    x: Tensor,
    branch: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    numerator: Tensor | None,
    denominator: Tensor | None,
    rms: bool,
    eps: float,
    dtype: torch.dtype,
    sources: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if not _use_kernels(x):
        options = dict(rms=rms, eps=eps, dtype=dtype)
        found = norm_rational_closed_form(x, branch, weight, bias, numerator, denominator, **options)
        return tuple(map(_own, found))
    parameters = map(_rows, (weight, bias, numerator, denominator))
    return _launch(_launch_norm_forward, x, x, branch, *parameters, centred=not rms, eps=eps, dtype=dtype)


def _norm_backward(
    dz: Tensor,
    dsum: Tensor | None,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    numerator: Tensor | None,
    denominator: Tensor | None,
    rms: bool,
    eps: float,
    branch_dtype: torch.dtype | None,
    sources: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dx, dx in branch_dtype, and the parameters' gradients: what is not there, or not asked for, is empty."""
    parameters = weight, bias, numerator, denominator
    _check_devices(x, dz=dz, dsum=dsum, mean=mean, rstd=rstd, weight=weight, bias=bias, numerator=numerator,
                   denominator=denominator)  # fmt: skip
    if not _use_kernels(x):
        found = norm_gradients(dz, dsum, x, *parameters, rms, eps, branch_dtype)
        return tuple(map(_own, found))
    statistics = mean.float(), rstd.float()  # a hook for saved tensors may have narrowed them
    tensors = dz, dsum, x, *statistics, *map(_rows, parameters)
    return _launch(_launch_norm_backward, x, *tensors, branch_dtype=branch_dtype)


def norm_gradients(dz, dsum, x, weight, bias, numerator, denominator, rms, eps, branch_dtype):
    gradients = norm_rational_gradients(dz, dsum, x, weight, bias, numerator, denominator, rms=rms, eps=eps)
    dx, *of_parameters = (x.new_empty(0) if g is None else g for g in gradients)
    return dx, x.new_empty(0) if branch_dtype is None else dx.to(branch_dtype), *of_parameters


# The eager way.


def can_bypass_dispatcher(*tensors: Tensor) -> bool:
    """Return whether only eager autograd will see these tensors, and their storage holds their values.

    A lazily negated tensor's storage holds its negative; efficient zeros and vmap's tensors have none.
    """
    if not _only_eager():
        return False
    for t in tensors:
        if type(t) not in PLAIN or t.is_neg() or t._is_zerotensor() or not torch._C._has_storage(t):
            return False
    return True


def _only_eager() -> bool:
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._is_tracing()
        or torch._C._are_functorch_transforms_active()
    )


def _meet_modes() -> None:
    if not torch.compiler.is_compiling() and torch._C._len_torch_dispatch_stack():
        _tell_flop_counters()


def _under_functorch() -> bool:
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def found_once(find: Callable) -> Callable:
    """Keep what `find(kernels.plain, *facts)` found for facts, until launches are forgotten."""

    @functools.lru_cache(1024)
    def found(*facts):
        importlib.import_module(".kernels.launch", __package__).forgets(found)
        return find(importlib.import_module(".kernels.plain", __package__), *facts)

    return found


@found_once
def _norm_launches(plain, *facts):
    return plain.norm(*facts)


def _plain_norm(device, eps, dtype, *tensors: Tensor | None):
    facts = [None if t is None else (t.shape, t.stride(), t.dtype) for t in tensors]
    return _norm_launches(device, eps, dtype, *facts)


def here(x: Tensor) -> bool:
    """Return whether kernels run on x and the current device is its own."""
    return _use_kernels(x) and (not x.is_cuda or x.get_device() == torch._C._cuda_getDevice())


def _eager(rung: str) -> Callable[..., Tensor]:
    """Return `rational_op` with that backward, without PyTorch's dispatcher, given launches that fit or None."""

    class EagerRational(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, numerator, denominator, plain):
            ctx.save_for_backward(x, numerator, denominator)
            ctx.plain = plain
            if plain:
                return plain.forward(x, numerator, denominator)
            return _forward(x, numerator, denominator, rung, KERNEL_SOURCES)

        @staticmethod
        def backward(ctx, grad_output):
            x, numerator, denominator = ctx.saved_tensors
            # With create_graph=True the gradients are differentiated in turn, which is the op's business.
            if torch.is_grad_enabled() or not can_bypass_dispatcher(grad_output):
                gradients = registered_backward(grad_output, x, numerator, denominator, rung, KERNEL_SOURCES)
            # A hook for saved tensors may return others than were saved.
            elif (plain := ctx.plain) and plain.fits(grad_output, x, numerator, denominator) and here(x):
                return *plain.backward(grad_output, x, numerator, denominator), None
            elif can_bypass_dispatcher(x, numerator, denominator):
                gradients = _backward(grad_output, x, numerator, denominator, rung, KERNEL_SOURCES)
            else:
                gradients = registered_backward(grad_output, x, numerator, denominator, rung, KERNEL_SOURCES)
            return *gradients, None

    # Past two Python frames that sort out what a Function may do in general: transforms, of which there are none here,
    # and default arguments; a tenth of the host's time for a Function that does nothing.
    EagerRational._backward_cls.apply = EagerRational.backward
    return super(torch.autograd.Function, EagerRational).apply


EAGER = {rung: _eager(rung) for rung in BACKWARDS}


class EagerNormRational(torch.autograd.Function):
    """`norm_rational_op` without PyTorch's dispatcher: z, or with a branch (z, x + branch)."""

    @staticmethod
    def forward(ctx, *arguments):
        x, branch, weight, bias, numerator, denominator, rms, eps, dtype = arguments
        ctx.plain = None
        if not rms and bias is not None and here(x):
            ctx.plain = _plain_norm(x.device, eps, dtype, x, weight, bias, branch, numerator, denominator)
        if ctx.plain:
            found = ctx.plain.forward(x, branch, weight, bias, numerator, denominator)
        else:
            found = _norm_forward(*arguments, KERNEL_SOURCES)
        _keep_norm(ctx, (*arguments, KERNEL_SOURCES), found)
        ctx.facts = [(t.shape, t.dtype, t.device) for t in ctx.to_save if t is not None] if ctx.plain else None
        ctx.set_materialize_grads(False)
        return found[0] if branch is None else found[:2]

    @staticmethod
    def backward(ctx, dz, dsum=None):
        plain = ctx.plain
        if plain and dz is not None and (dsum is None) == (plain.total is None) and not torch.is_grad_enabled():
            saved = ctx.saved_tensors
            tensors = [t for t in (dz, dsum, *saved) if t is not None]
            # A hook for saved tensors may return others than were saved.
            facts = [(t.shape, t.dtype, t.device) for t in saved if t is not None]
            as_kept = facts == ctx.facts and dz.dtype == plain.dtype
            if as_kept and can_bypass_dispatcher(*tensors) and all(t.is_contiguous() for t in tensors) and here(dz):
                dx, dbranch, *gradients = plain.backward(dz, dsum, *saved)
                of_x, of_branch = ctx.dtypes
                return dx.to(of_x), None if of_branch is None else dbranch, *gradients, None, None, None
        return _first_derivative_of_norm(ctx, dz, dsum)[:-1]


EagerNormRational._backward_cls.apply = EagerNormRational.backward
eager_norm_rational = super(torch.autograd.Function, EagerNormRational).apply


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
norm_rational_op = torch.library.custom_op(f"{NAMESPACE}::norm_rational", _norm_forward, mutates_args=())
norm_rational_backward_op = torch.library.custom_op(
    f"{NAMESPACE}::norm_rational_backward", _norm_backward, mutates_args=()
)
OPS = getattr(torch.ops, NAMESPACE)


@rational_op.register_fake
def _(x, numerator, denominator, backward, sources):
    _tell_dtensor()
    return x.new_empty(x.shape)


@rational_backward_op.register_fake
def _(grad_output, x, numerator, denominator, backward, sources):
    _tell_dtensor()
    return x.new_empty(x.shape), numerator.new_empty(numerator.shape), denominator.new_empty(denominator.shape)


@norm_rational_op.register_fake
def _(x, branch, weight, bias, numerator, denominator, rms, eps, dtype, sources):
    _tell_dtensor()
    rows = math.prod(x.shape[:-1])
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    mean, rstd = (x.new_empty(n, dtype=wide) for n in (0 if rms else rows, rows))
    total = x.new_empty(0) if branch is None else x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, branch.dtype))
    return x.new_empty(x.shape, dtype=dtype), total, mean, rstd


@norm_rational_backward_op.register_fake
def _(dz, dsum, x, mean, rstd, weight, bias, numerator, denominator, rms, eps, branch_dtype, sources):
    _tell_dtensor()
    dbranch = x.new_empty(0 if branch_dtype is None else x.shape, dtype=branch_dtype or x.dtype)
    of_parameters = (
        x.new_empty(0) if t is None else t.new_empty(t.shape) for t in (weight, bias, numerator, denominator)
    )
    return x.new_empty(x.shape), dbranch, *of_parameters


def _trace_through(op: CustomOpDef, function: Callable, opaque_kernels: Callable[[tuple], bool]) -> None:
    """Let torch.compile trace into the op: it launches our kernels itself, in a fraction of the op's host time.

    Where kernels do not run, as on a CPU, it compiles the reference. For kernels it is what `torch.library.triton_op`
    does; that would import Triton when the op is registered, before `flashkat_lite.lab` can choose the interpreter.
    opaque_kernels: whether a call of the op, by its arguments, stays one.
    """

    def traced(mode, opaque, types, arguments, keywords):
        if opaque_kernels(arguments) or torch.compiler.is_exporting():
            return mode.__torch_dispatch__(opaque, types, arguments, keywords)
        with mode:
            return function(*arguments)

    op.register_torch_dispatch(FunctionalTensorMode, traced)


def _opaque_rational(arguments: tuple) -> bool:
    x, rung = arguments[-5], arguments[-2]
    return _use_kernels(x) and (rung != "stationary" or interpreted())


def _opaque_norm(arguments: tuple) -> bool:
    return _use_kernels(arguments[0]) and interpreted()


_trace_through(rational_op, _forward, _opaque_rational)
_trace_through(rational_backward_op, _backward, _opaque_rational)
_trace_through(norm_rational_op, _norm_forward, _opaque_norm)
_trace_through(norm_rational_backward_op, _norm_backward, _opaque_norm)


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


def _norm_rational_flops(x, branch, weight, bias, numerator, denominator, *options, **keywords) -> int:
    """The rational function's: PyTorch's counter counts none for a norm."""
    return 0 if numerator is None else _rational_flops(x, numerator, denominator)


def _norm_rational_backward_flops(
    dz, dsum, x, mean, rstd, weight, bias, numerator, denominator, *options, **keywords
) -> int:
    return 0 if numerator is None else _rational_backward_flops(dz, x, numerator, denominator)


def _tell_flop_counters() -> None:
    """Give PyTorch's FlopCounterMode our counts, and those that are open too: each copies the table when it is made."""
    counting = sys.modules.get("torch.utils.flop_counter")
    if counting is None:
        return
    for op, formula in (
        (OPS.rational, _rational_flops),
        (OPS.rational_backward, _rational_backward_flops),
        (OPS.norm_rational, _norm_rational_flops),
        (OPS.norm_rational_backward, _norm_rational_backward_flops),
    ):
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


def _registered(op: CustomOpDef, save: Callable, derivative: Callable, vmap_rule: Callable | None = None) -> Callable:
    """Register an op's derivative and vmap rule, by default to call it for each sample. Return what calls it.

    torch.func.grad in eager code does not take a registered op's autograd formula, but an autograd.Function's.
    """

    def registered(*arguments):
        _meet_modes()
        return (Functorch.apply if _under_functorch() else op)(*arguments)

    def one_by_one(info, in_dims, *arguments):
        def sample(i):
            return [t if dim is None else t.select(dim, i) for t, dim in zip(arguments, in_dims)]

        results = tuple(map(torch.stack, zip(*(registered(*sample(i)) for i in range(info.batch_size)))))
        return results, (0,) * len(results)

    vmap_rule = vmap_rule or one_by_one

    class Functorch(torch.autograd.Function):
        setup_context, backward, vmap = map(staticmethod, (save, derivative, vmap_rule))

        @staticmethod
        def forward(*arguments):
            return op(*arguments)

    op.register_autograd(derivative, setup_context=save)
    op.register_vmap(vmap_rule)
    return registered


registered_rational = _registered(rational_op, _save, _first_derivative, _vmap)
registered_backward = _registered(rational_backward_op, _save, _second_derivative, _vmap_backward)


# The same of the norm. Of its four results, z and x + branch have derivatives.


def _keep_norm(ctx, inputs, output):
    x, branch, *parameters, ctx.rms, ctx.eps, _, ctx.sources = inputs
    _, total, mean, rstd = output
    ctx.dtypes = x.dtype, None if branch is None else branch.dtype
    ctx.save_for_backward(x if branch is None else total, mean, rstd, *parameters)


def _save_norm(ctx, inputs, output):
    _keep_norm(ctx, inputs, output)
    _, total, *statistics = output
    ctx.mark_non_differentiable(*statistics, *([total] if inputs[1] is None else []))


def _first_derivative_of_norm(ctx, dz, dsum, *of_statistics):
    x, *saved = ctx.saved_tensors
    of_x, of_branch = ctx.dtypes
    if of_branch is None:
        dsum = None
    if dz is None:  # x + branch alone was used
        dz = torch.zeros_like(x)
    also = of_branch if of_branch not in (None, x.dtype) else None
    tensors = [t for t in (dz, dsum, x, *saved) if t is not None]
    eager = not torch.is_grad_enabled() and can_bypass_dispatcher(*tensors)
    function = _norm_backward if eager else registered_norm_backward
    dx, dbranch, *gradients = function(dz, dsum, x, *saved, ctx.rms, ctx.eps, also, ctx.sources)
    gradients = [None if t is None else g for t, g in zip(saved[2:], gradients)]
    return dx.to(of_x), None if of_branch is None else dbranch if also else dx, *gradients, *[None] * 4


def _save_norm_gradients(ctx, inputs, output):
    *tensors, ctx.rms, ctx.eps, ctx.branch_dtype, _ = inputs
    ctx.save_for_backward(*tensors)


def _second_derivative_of_norm(ctx, *grads):
    """As `_second_derivative`; mean and 1/σ are functions of x there."""
    inputs = list(ctx.saved_tensors)
    own = [i for i, t in enumerate(inputs) if t is not None and i not in (3, 4)]

    def gradients(*tensors):
        for i, t in zip(own, tensors):
            inputs[i] = t
        return norm_gradients(*inputs[:3], *inputs[5:], ctx.rms, ctx.eps, ctx.branch_dtype)

    _, vjp = torch.func.vjp(gradients, *(inputs[i] for i in own))
    found = dict(zip(own, vjp(grads)))
    return *(found.get(i) for i in range(len(inputs))), *[None] * 4


registered_norm = _registered(norm_rational_op, _save_norm, _first_derivative_of_norm)
registered_norm_backward = _registered(norm_rational_backward_op, _save_norm_gradients, _second_derivative_of_norm)
