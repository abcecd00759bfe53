"""What most calls are, with nothing left to find out: contiguous tensors, a table of its own for each group."""

from typing import NamedTuple

import torch
from torch import Tensor

from .._torch import PLAIN
from . import backward_stationary, forward, norm_backward, norm_forward
from .launch import BoundLaunch, may_skip_triton
from .layout import table_stride

Facts = tuple[torch.Size, tuple[int, ...], torch.dtype]  # of a tensor: shape, strides, dtype


class Rational(NamedTuple):
    """`forward` and `backward_stationary` for contiguous tensors of one shape, dtype and device, in few steps.

    That everything is as it was when the launches were found is the caller's to know, or to ask of `fits`.
    """

    device: torch.device
    dtype: torch.dtype  # x's
    shapes: tuple[torch.Size, torch.Size, torch.Size]
    dtypes: tuple[torch.dtype, torch.dtype]  # the tables'
    first: BoundLaunch
    main: BoundLaunch
    partial_sums: int
    last: BoundLaunch

    def fits(self, dy: Tensor, x: Tensor, numerator: Tensor, denominator: Tensor) -> bool:
        """Return whether dy, plain and of y's shape, and these, which took the place of what was saved, fit."""
        device = self.device
        of_x, of_a, of_b = self.shapes
        a_dtype, b_dtype = self.dtypes
        return (
            (dy.dtype is x.dtype is self.dtype and numerator.dtype is a_dtype and denominator.dtype is b_dtype)
            and (x.device == device and numerator.device == device and denominator.device == device)
            and (x.shape == of_x and numerator.shape == of_a and denominator.shape == of_b)
            and (dy.is_contiguous() and x.is_contiguous() and numerator.is_contiguous() and denominator.is_contiguous())
            and (type(x) in PLAIN and type(numerator) in PLAIN and type(denominator) in PLAIN)
            and not (x.is_neg() or numerator.is_neg() or denominator.is_neg())
        )

    def forward(self, x: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
        y = torch.empty_like(x)
        self.first(x, numerator, denominator, y)
        return y

    def backward(self, dy: Tensor, x: Tensor, numerator: Tensor, denominator: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dx = torch.empty_like(x)
        partial = torch.empty(self.partial_sums, dtype=torch.float32, device=x.device)
        da, db = torch.empty_like(numerator), torch.empty_like(denominator)
        main, last, sums, of_b = self.main, self.last, partial.data_ptr(), denominator.data_ptr()
        of_main = dy.data_ptr(), x.data_ptr(), numerator.data_ptr(), of_b, dx.data_ptr(), sums
        of_last = sums, of_b, da.data_ptr(), db.data_ptr()
        if main.run and last.run and may_skip_triton(*of_main, *of_last):
            stream = main.stream_of(main.device)
            main.go(stream, *of_main)
            last.go(stream, *of_last)
        else:
            main(dy, x, numerator, denominator, dx, partial)
            last(partial, denominator, da, db)
        return dx, da, db


class Norm(NamedTuple):
    """`norm_forward` and `norm_backward` of a LayerNorm with weight and bias, with tables or alone; also of a sum."""

    dtype: torch.dtype  # z's
    total: torch.dtype | None  # that of x + branch
    also: torch.dtype | None  # the branch's, where its gradient is not the sum's
    rows: int
    first: BoundLaunch
    main: BoundLaunch
    partial: tuple[int, int]
    last: BoundLaunch

    def forward(self, x, branch, weight, bias, numerator, denominator) -> tuple[Tensor | None, ...]:
        """Return (z, x + branch, mean, rstd)."""
        z = torch.empty_like(x, dtype=self.dtype)
        mean = torch.empty(self.rows, dtype=torch.float32, device=x.device)
        rstd = torch.empty_like(mean)
        a, b = (weight, weight) if numerator is None else (numerator, denominator)
        if branch is None:
            self.first(x, x, weight, bias, a, b, z, weight, mean, rstd)
            return z, None, mean, rstd
        total = torch.empty_like(x, dtype=self.total)
        self.first(x, branch, weight, bias, a, b, z, total, mean, rstd)
        return z, total, mean, rstd

    def backward(self, dz, dsum, x, mean, rstd, weight, bias, numerator, denominator) -> tuple[Tensor | None, ...]:
        """Return (dx, dbranch, dweight, dbias, dnumerator, ddenominator); x is what was normed, dsum its gradient."""
        dx = torch.empty_like(x)
        dbranch = torch.empty_like(x, dtype=self.also) if self.also else dx
        partial = torch.empty(self.partial, dtype=torch.float32, device=x.device)
        a, b = (weight, weight) if numerator is None else (numerator, denominator)
        incoming, other = x if dsum is None else dsum, dbranch if self.also else rstd
        self.main(dz, x, incoming, weight, bias, a, b, mean, rstd, dx, other, partial)
        dweight, dbias = torch.empty_like(weight), torch.empty_like(bias)
        if numerator is None:
            self.last(partial, b, dweight, dbias, weight, weight)
            return dx, dbranch, dweight, dbias, None, None
        da, db = torch.empty_like(a), torch.empty_like(b)
        self.last(partial, b, dweight, dbias, da, db)
        return dx, dbranch, dweight, dbias, da, db


def _contiguous(facts: Facts) -> bool:
    shape, strides, dtype = facts
    return torch.empty_strided(shape, strides, dtype=dtype, device="meta").is_contiguous()


def _tables(a_shape, a_dtype, b_shape, b_dtype) -> tuple | None:
    """Return ((shape, stride, dtype), the same of the denominator), contiguous; None where groups share one."""
    if a_shape[0] != b_shape[0]:
        return None
    tensors = (torch.empty(s, dtype=dtype, device="meta") for s, dtype in ((a_shape, a_dtype), (b_shape, b_dtype)))
    return tuple((t.shape, table_stride(t), t.dtype) for t in tensors)


def rational(
    device: torch.device, shape: torch.Size, dtype: torch.dtype,
    a_shape: torch.Size, a_dtype: torch.dtype, b_shape: torch.Size, b_dtype: torch.dtype,
) -> Rational | None:  # fmt: skip
    """Return the launches for contiguous tensors of these facts; None where the general launchers are needed."""
    tables = _tables(a_shape, a_dtype, b_shape, b_dtype)
    if not tables or dtype == torch.float64 or 0 in shape:
        return None
    a, b = tables
    strides = torch.empty(shape, device="meta").stride()
    first = forward.launch_config(shape, forward.launch_size(), strides, dtype, device, *a, *b)
    size = backward_stationary.launch_size(dtype.itemsize, device)
    backward = backward_stationary.launch_config(shape, size, device, strides, dtype, strides, dtype, *a, *b)
    return Rational(device, dtype, (shape, a_shape, b_shape), (a_dtype, b_dtype), first, *backward)


def norm(
    device: torch.device, eps: float, dtype: torch.dtype, x: Facts, weight: Facts, bias: Facts,
    branch: Facts | None, numerator: Facts | None, denominator: Facts | None,
) -> Norm | None:  # fmt: skip
    """Return the launches for tensors of these facts and z in `dtype`; None where the general launchers are needed."""
    shape, _, of_x = x
    of_branch = branch[2] if branch else None
    given = [facts for facts in (x, weight, bias, branch) if facts]
    if numerator:
        given += numerator, denominator
        tables = _tables(numerator[0], numerator[2], denominator[0], denominator[2])
    else:
        tables = ((norm_forward.NO_TABLE, 0, None),) * 2
    wide = torch.float64 in (of_x, of_branch, dtype)
    if not tables or not all(map(_contiguous, given)) or wide or 0 in shape:
        return None
    (a_shape, a_stride, a_dtype), (b_shape, b_stride, b_dtype) = tables
    parameters, columns = (weight[2], bias[2], a_dtype, b_dtype), shape[-1]
    ends = a_shape, b_shape, (a_stride, b_stride), True
    total = torch.promote_types(of_x, of_branch) if branch else None
    also = of_branch if of_branch not in (None, total) else None
    first = norm_forward.launch_config(
        shape, None, device, columns, of_x, columns, of_branch, (*parameters, dtype), *ends, eps
    )  # fmt: skip
    backward = norm_backward.launch_config(
        shape, None, device, (columns,) * 3, total or of_x, dtype, total, also, parameters, *ends
    )  # fmt: skip
    return Norm(dtype, total, also, shape.numel() // columns, first, *backward)
