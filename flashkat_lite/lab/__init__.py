"""What the chapters share: import it first, before Triton.

Importing it chooses where kernels run. With a CUDA device, there. Without one, in Triton's interpreter: it sets
TRITON_INTERPRET=1, which Triton reads when it is imported, and says so in one line.
"""

from .setup import DEVICE, GPU, HALF, note, pick  # isort: skip  # before anything that imports Triton

from flashkat_lite import records
from flashkat_lite.testing import watching

from . import exercises, figures, interactive
from .exercises import check, hint
from .measuring import gpu_kernels, measure, timings
from .predicting import predict, predictions, reveal
from .show import claim, table
from .xraying import like, xray

__all__ = [
    "DEVICE",
    "GPU",
    "HALF",
    "check",
    "claim",
    "exercises",
    "figures",
    "gpu_kernels",
    "hint",
    "interactive",
    "like",
    "measure",
    "note",
    "pick",
    "predict",
    "predictions",
    "records",
    "reveal",
    "table",
    "timings",
    "watching",
    "xray",
]
