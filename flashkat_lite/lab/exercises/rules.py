"""What the sentences of exercises forbid: autograd, float64, a function that does it all."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .common import Wrong


@contextlib.contextmanager
def forbidden(what: str, owner: Any, *names: str) -> Iterator[None]:
    """Raise Wrong where something calls one of these functions, which are an owner's own."""

    def refuse(*_, **__):
        raise Wrong(f"not by {what}")

    refuse.apply = refuse  # of an autograd.Function
    with mock.patch.multiple(owner, **dict.fromkeys(names, refuse)):
        yield


@contextlib.contextmanager
def without_autograd(instead: str = "the formula, written out") -> Iterator[None]:
    """Raise Wrong where what runs inside has autograd differentiate, backward or forward."""

    def refuse(*_, **__):
        raise Wrong(f"expected {instead}, got autograd: the exercise asks for it without")

    transforms, nesting = torch._functorch.eager_transforms, ("_vjp", "_grad", "grad", "_jvp", "jvp")
    entries = [(torch.autograd, "_engine_run_backward"), (torch.autograd.graph, "_engine_run_backward")]
    entries += [(torch.autograd.forward_ad, "enter_dual_level"), (transforms, "enter_jvp_nesting")]
    entries += [(transforms, f"{name}_increment_nesting") for name in nesting]
    with contextlib.ExitStack() as stack:
        for module, name in entries:
            if hasattr(module, name):
                stack.enter_context(mock.patch.object(module, name, refuse))
        yield


class Operations(TorchDispatchMode):
    """Lists the operations of PyTorch inside, in order: (name, tensors taken, tensors made); views are none."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[str, list[Tensor], list[Tensor]]] = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        if not function.is_view:
            taken, made = (
                [t for t in tree_leaves(tree) if isinstance(t, Tensor)] for tree in ((arguments, options), result)
            )
            self.done.append((function.overloadpacket.__name__, taken, made))
        return result

    def that_read(self, tensor: Tensor) -> list[str]:
        """Return the names of the operations that take this tensor's memory for its values."""
        memory = tensor.untyped_storage().data_ptr()
        names = []
        for name, taken, _ in self.done:
            of_it = sum(t.untyped_storage().data_ptr() == memory for t in taken)
            back = name == "copy_" and of_it == 2  # the interpreter's own, at the end of a launch
            if of_it and not back and not re.search(r"empty|zeros|ones|full|^set_$", name):
                names.append(name)
        return names
