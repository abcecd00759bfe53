"""Counts of what code does: work of PyTorch's operations; accesses and programs of kernels in Triton's interpreter."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flashkat_lite.testing import watching

ELEMENTWISE = dict(add=1, sub=1, rsub=1, mul=1, div=1, neg=1, square=1, pow=2, addcmul=2, lerp=3)
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "mv", "dot")
SECTOR = 32  # bytes


class Work(TorchDispatchMode):
    """Counts what the operations inside a `with` do: FLOPs, bytes read and written, kernels.

    A sum of n terms counts n, a matrix product 2 for each of its multiply-adds; comparisons, roundings and functions
    such as SiLU count nothing. An operation that makes no new tensor (a view) is no kernel.
    """

    def __init__(self):
        super().__init__()
        self.flops, self.bytes, self.kernels = 0, 0, 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        taken = [t for t in tree_leaves((arguments, options)) if isinstance(t, Tensor)]
        made = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        storages = {t.untyped_storage().data_ptr() for t in taken}
        if not made or made[0].untyped_storage().data_ptr() in storages:
            return result
        self.kernels += 1
        self.bytes += sum(t.numel() * t.itemsize for t in taken + made)
        name = function.overloadpacket.__name__
        if name in PRODUCTS:
            self.flops += 2 * made[0].numel() * taken[-2].shape[-1]
        elif name == "sum":
            self.flops += taken[0].numel()
        elif made[0].is_floating_point():
            self.flops += ELEMENTWISE.get(name, 0) * made[0].numel()
        return result


class Trace(list):
    """Accesses to memory of one kind, in order: [(addresses of the active elements [n], bytes of an element)]."""

    @property
    def elements(self) -> int:
        return sum(addresses.size for addresses, _ in self)

    @property
    def nbytes(self) -> int:
        return sum(addresses.size * size for addresses, size in self)

    @property
    def sectors(self) -> int:
        """The sectors that each access touches, added up."""
        return sum(np.unique(addresses // SECTOR).size for addresses, _ in self)

    @property
    def addresses(self) -> set[int]:
        return {address for addresses, _ in self for address in addresses.tolist()}

    def of(self, tensor: Tensor, margin: int = 0) -> "Trace":
        """Return the accesses to a tensor's memory (of its `numel` elements), or up to `margin` elements beside it."""
        first = tensor.data_ptr() - margin * tensor.element_size()
        last = tensor.data_ptr() + (tensor.numel() + margin) * tensor.element_size()
        return Trace((addresses[(addresses >= first) & (addresses < last)], size) for addresses, size in self)


@dataclass
class Accesses:
    """What kernels did: loads, stores, atomic additions, and the programs that ran, as (x, y, z) in order."""

    loads: Trace = field(default_factory=Trace)
    stores: Trace = field(default_factory=Trace)
    adds: Trace = field(default_factory=Trace)
    programs: list[tuple[int, int, int]] = field(default_factory=list)
    operations: Any = None  # PyTorch's, where they are listed too
    result: Any = None  # of the call that was watched


@contextlib.contextmanager
def accesses(backwards: bool = False) -> Iterator[Accesses]:
    """Record what the kernels inside do; in the interpreter only (a GPU does not tell).

    backwards: run the last program of each launch first.
    """
    from triton.runtime.interpreter import interpreter_builder

    seen, original = Accesses(), interpreter_builder.set_grid_idx

    def set_grid_idx(*place: int) -> None:
        seen.programs.append(place)
        size = interpreter_builder.grid_dim
        original(*(n - 1 - k if backwards else k for k, n in zip(place, size, strict=True)))

    told = {
        kind: lambda addresses, size, trace=trace: trace.append((addresses, size))
        for kind, trace in (("load", seen.loads), ("store", seen.stores), ("add", seen.adds))
    }
    with mock.patch.object(interpreter_builder, "set_grid_idx", set_grid_idx), watching(**told):
        yield seen
