"""Group-rational activations in Triton, fast enough to train Kolmogorov-Arnold Transformers with.

Importing the package needs PyTorch and nothing else; Triton and the kernels are imported when first needed.
"""

import importlib
from types import ModuleType

from .modules import GRKAN, GroupRational, table_parameters
from .ops import norm_rational, rational

__version__ = "0.2.0"
__all__ = ["GRKAN", "GroupRational", "norm_rational", "rational", "table_parameters"]


def __getattr__(name: str) -> ModuleType:
    """Import `kat` and `vit` where they are first used."""
    if name in ("kat", "vit"):
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
