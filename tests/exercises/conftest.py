"""The checks watch what kernels do, which Triton's interpreter alone tells: chosen before Triton is imported."""

import os

os.environ |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}

from flashkat_lite import _interpreter

_interpreter.prepare()
