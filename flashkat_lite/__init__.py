"""Group-rational activations in Triton, fast enough to train Kolmogorov-Arnold Transformers with.

Importing the package needs PyTorch and nothing else; Triton and the kernels are imported when first needed.
"""

from .modules import GRKAN, GroupRational
from .ops import rational

__version__ = "0.1.1"
__all__ = ["GRKAN", "GroupRational", "rational"]
