"""A stand-in for Triton's compiled module, where Triton has no wheel: its interpreter is Python and asks little of it.

Of the compiled module the interpreter calls `load`, `store`, `atomic_rmw`, `atomic_cas`, `fma_fp32` and `fma_fp64`, and
reads names of choices; what the compiler alone would use is here in name. `_interpreter.activate` puts it in its place.
"""

import enum
import functools
import os
from types import ModuleType
from typing import Any

import numpy as np

COMPILED = "triton._C.libtriton"


# What Triton imports from its compiled module


class Named(ModuleType):
    """A module of names: one that nothing here defines is a class without anything, for annotations of Triton's."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        setattr(self, name, type(name, (), {"__module__": self.__name__}))
        return getattr(self, name)


def modules() -> dict[str, ModuleType]:
    """Return the compiled module and its parts, by their full names."""
    whole = Named(COMPILED)
    parts = {name: Named(f"{COMPILED}.{name}") for name in ("ir", "gluon_ir", "interpreter", "linear_layout")}
    vars(whole).update(parts, __path__=[])
    for function in (getenv, getenv_bool, get_cache_invalidating_env_vars, native_specialize_impl):
        setattr(whole, function.__name__, function)
    for choice in (MEM_SEMANTIC, ATOMIC_OP, *CHOICES):
        setattr(parts["ir"], choice.__name__, choice)
    parts["interpreter"].MEM_SEMANTIC, parts["interpreter"].RMW_OP = MEM_SEMANTIC, ATOMIC_OP
    for function in (load, store, atomic_rmw, atomic_cas, fma_fp32, fma_fp64):
        setattr(parts["interpreter"], function.__name__, function)
    package = ModuleType("triton._C")
    package.libtriton, package.__path__ = whole, []
    return {"triton._C": package, COMPILED: whole} | {part.__name__: part for part in parts.values()}


MEM_SEMANTIC = enum.Enum("MEM_SEMANTIC", "ACQUIRE RELEASE RELAXED ACQUIRE_RELEASE")
ATOMIC_OP = enum.Enum("ATOMIC_OP", "ADD FADD MIN UMIN MAX UMAX AND OR XOR XCHG")
CHOICES = tuple(
    enum.Enum(name, members)
    for name, members in {
        "CACHE_MODIFIER": "NONE CA CG CV WB CS WT",
        "DESCRIPTOR_REDUCE_KIND": "ADD MIN MAX AND OR XOR INC DEC",
        "EVICTION_POLICY": "NORMAL EVICT_FIRST EVICT_LAST",
        "INPUT_PRECISION": "TF32 TF32x3 IEEE BF16x3 BF16x6",
        "MEM_SYNC_SCOPE": "GPU CTA SYSTEM",
        "PADDING_OPTION": "PAD_ZERO PAD_NAN",
        "PROPAGATE_NAN": "NONE ALL",
        "ROUNDING_MODE": "RTNE RTZ",
        "ScaleDotElemTypeTY": "E4M3 E5M2 E2M3 E3M2 E2M1 BF16 FP16",
    }.items()
)


def getenv(name: str, default: str | None = None) -> str | None:
    return os.environ.get(name, default)


def getenv_bool(name: str, default: Any) -> Any:
    return os.environ[name].lower() in ("1", "true", "on", "yes", "y") if name in os.environ else default


def get_cache_invalidating_env_vars() -> dict[str, str]:
    return {}


def native_specialize_impl(backend: Any, argument: Any, is_const: bool, specialize: bool, align: bool) -> tuple:
    """Return a number's or tensor's type, as Triton spells it, and None: of what is not compiled no more is asked."""
    from triton._utils import canonicalize_ptr_dtype

    if isinstance(argument, bool):
        return "u1", None
    if isinstance(argument, int):
        return "i32" if -(2**31) <= argument < 2**31 else "i64" if argument < 2**63 else "u64", None
    if isinstance(argument, float):
        return "fp32", None
    if hasattr(argument, "data_ptr"):
        return canonicalize_ptr_dtype(argument.dtype, is_const), None
    raise TypeError(f"failed to specialize argument of type: {type(argument).__name__}")


# Memory


@functools.cache
def _memory(dtype: np.dtype) -> np.ndarray:
    """Return all memory as one array of a dtype; its element k lies at the address (k + 1) times the dtype's size.

    It may be indexed by arrays, for reading and writing, and nothing else: what copies it whole ends the process.
    """
    place = type("Place", (), {})()
    place.__array_interface__ = {
        "version": 3, "typestr": dtype.str, "shape": (2**56 // dtype.itemsize,), "data": (dtype.itemsize, False),
    }  # fmt: skip
    return np.asarray(place)


def _elements(pointers: np.ndarray, dtype: np.dtype) -> np.ndarray | None:
    """Return where in `_memory` the addresses [n] are; None where one is no multiple of the size."""
    size = np.uint64(dtype.itemsize)
    if size == 1:
        return pointers.view(np.int64) - 1
    if np.bitwise_or.reduce(pointers) & (size - np.uint64(1)):
        return None
    return (pointers >> np.uint64(int(size).bit_length() - 1)).view(np.int64) - 1


def _read(pointers: np.ndarray, dtype: np.dtype) -> np.ndarray:
    at = _elements(pointers, dtype)
    if at is not None:
        return _memory(dtype)[at]
    at = pointers.view(np.int64)[:, None] + np.arange(-1, dtype.itemsize - 1)
    return _memory(np.dtype(np.uint8))[at].view(dtype)[:, 0]


def _write(pointers: np.ndarray, values: np.ndarray) -> None:
    """Write values [n]; of several for one address the last stays."""
    at = _elements(pointers, values.dtype)
    if at is not None:
        _memory(values.dtype)[at] = values
        return
    at = pointers.view(np.int64)[:, None] + np.arange(-1, values.itemsize - 1)
    _memory(np.dtype(np.uint8))[at] = np.ascontiguousarray(values)[:, None].view(np.uint8)


def _chosen(mask: np.ndarray, shape: tuple[int, ...], *arrays: np.ndarray) -> list[np.ndarray]:
    """Return the elements [n] of each array, broadcast to `shape`, where the mask is true."""
    if mask.all():
        return [np.broadcast_to(array, shape).ravel() for array in arrays]
    mask = np.broadcast_to(mask, shape)
    return [np.broadcast_to(array, shape)[mask] for array in arrays]


def load(pointers: np.ndarray, mask: np.ndarray, other: np.ndarray, dtype: np.dtype) -> np.ndarray:
    pointers, mask, dtype = np.asarray(pointers, np.uint64), np.asarray(mask, bool), np.dtype(dtype)
    if mask.all():
        return _read(pointers.ravel(), dtype).reshape(pointers.shape)
    loaded = np.array(np.broadcast_to(other, pointers.shape), dtype=dtype)
    (active,) = _chosen(mask, pointers.shape, pointers)
    loaded[np.broadcast_to(mask, pointers.shape)] = _read(active, dtype)
    return loaded


def store(pointers: np.ndarray, values: np.ndarray, mask: np.ndarray) -> None:
    pointers, mask = np.asarray(pointers, np.uint64), np.asarray(mask, bool)
    _write(*_chosen(mask, pointers.shape, pointers, np.asarray(values)))


# Atomic operations: one element after another, in order, each seeing what those before it left


def atomic_rmw(op: enum.Enum, pointers: np.ndarray, values: np.ndarray, mask: np.ndarray, sem: Any) -> np.ndarray:
    pointers, mask, values = np.asarray(pointers, np.uint64), np.asarray(mask, bool), np.asarray(values)
    active, operands = _chosen(mask, pointers.shape, pointers, values)
    if active.size == pointers.size:
        return _in_turn(op.name, active, operands).reshape(pointers.shape)
    before = np.zeros(pointers.shape, values.dtype)
    if active.size:
        before[np.broadcast_to(mask, pointers.shape)] = _in_turn(op.name, active, operands)
    return before


def _in_turn(name: str, pointers: np.ndarray, operands: np.ndarray) -> np.ndarray:
    """Apply an operation at each address [n] in order; return what each found there.

    Elements of one address stand in a row behind what memory holds, and one accumulation along rows does them all. Rows
    are taken together that are at most twice as long as one another; what follows a shorter one's end counts nowhere.
    """
    accumulate, count = _accumulate(name, operands.dtype), pointers.size
    if (pointers == pointers[0]).all():
        results = accumulate(np.concatenate([_read(pointers[:1], operands.dtype), operands])[None])[0]
        _write(pointers[:1], results[-1:])
        return results[:-1]
    if (pointers[1:] > pointers[:-1]).all():  # none twice
        found = _read(pointers, operands.dtype)
        _write(pointers, accumulate(np.stack([found, operands], 1))[:, 1])
        return found
    order = slice(None) if (pointers[1:] >= pointers[:-1]).all() else np.argsort(pointers, kind="stable")
    pointers, operands = pointers[order], operands[order]
    first = np.flatnonzero(np.concatenate([[True], pointers[1:] != pointers[:-1]]))  # of each address
    length = np.diff(np.append(first, count))
    found, size = np.empty_like(operands), np.frexp(length)[1]
    for one in np.unique(size):
        rows = size == one
        begin, end = first[rows, None], (first + length)[rows]
        places = begin + np.arange(length[rows].max())
        held = _read(pointers[begin[:, 0]], operands.dtype)
        results = accumulate(np.concatenate([held[:, None], operands[np.minimum(places, count - 1)]], 1))
        within = places < end[:, None]
        found[places[within]] = results[:, :-1][within]
        _write(pointers[begin[:, 0]], results[np.arange(len(end)), end - begin[:, 0]])
    before = np.empty_like(found)
    before[order] = found
    return before


UFUNCS = dict(ADD=np.add, FADD=np.add, MIN=np.minimum, UMIN=np.minimum, MAX=np.maximum, UMAX=np.maximum)
UFUNCS |= dict(AND=np.bitwise_and, OR=np.bitwise_or, XOR=np.bitwise_xor)


def _accumulate(name: str, dtype: np.dtype) -> Any:
    """Return a function of rows [g, n] whose result's element is the operation of all up to it."""
    if name == "XCHG":
        return np.copy
    if name == "FADD" and dtype == np.uint16:  # bfloat16, which the interpreter keeps as its bits
        return _accumulate_bfloat16

    def accumulate(table: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return UFUNCS[name].accumulate(table, axis=1, dtype=dtype)

    return accumulate


def _accumulate_bfloat16(table: np.ndarray) -> np.ndarray:
    sums = table.copy()
    for k in range(1, table.shape[1]):
        with np.errstate(all="ignore"):
            total = _widened(sums[:, k - 1]) + _widened(table[:, k])
        bits = total.view(np.uint32)
        rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
        sums[:, k] = np.where(np.isnan(total), 0x7FC0, rounded)
    return sums


def _widened(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def atomic_cas(pointers: np.ndarray, expected: np.ndarray, values: np.ndarray, sem: Any) -> np.ndarray:
    bits = np.dtype(f"u{expected.itemsize}")  # compared as bits
    wanted, fresh = (
        np.ascontiguousarray(np.broadcast_to(array, pointers.shape)).ravel().view(bits) for array in (expected, values)
    )
    before = np.empty(pointers.size, bits)
    for k, pointer in enumerate(pointers.ravel()):
        here = np.array([pointer], np.uint64)
        before[k] = _read(here, bits)[0]
        if before[k] == wanted[k]:
            _write(here, fresh[k : k + 1])
    return before.view(expected.dtype).reshape(pointers.shape)


# x y + z, rounded once


def fma_fp32(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    x, y, z = (np.asarray(array).astype(np.float64) for array in (x, y, z))
    with np.errstate(all="ignore"):
        return _sum_to_odd(x * y, z).astype(np.float32)  # a product of float32 is exact in float64


def fma_fp64(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """By Boldo and Melquiond (2008); where a part leaves float64's normal numbers, rounded twice."""
    with np.errstate(all="ignore"):
        high, low = _product(x, y)
        upper, error = _sum(z, low)
        total, rest = _sum(high, upper)
        once = total + _sum_to_odd(error, rest)
        return np.where(np.isfinite(once), once, x * y + z)


def _sum(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rounded sum and what rounding left out."""
    total = x + y
    other = total - x
    return total, (x - (total - other)) + (y - other)


def _product(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rounded product and what rounding left out."""

    def halves(number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scaled = number * 134217729.0  # 2**27 + 1
        high = scaled - (scaled - number)
        return high, number - high

    product, (xh, xl), (yh, yl) = x * y, halves(x), halves(y)
    return product, ((xh * yh - product) + xh * yl + xl * yh) + xl * yl


def _sum_to_odd(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return x + y, where inexact the neighbour whose last bit is 1: rounding it once more is then rounding once."""
    total, error = _sum(x, y)
    bits = np.atleast_1d(total).view(np.int64)
    step = np.where((error > 0) == (total > 0), 1, -1)
    inexact = np.isfinite(error) & (error != 0) & (bits & 1 == 0)
    return np.where(inexact, bits + step, bits).view(np.float64).reshape(total.shape)
