"""Kernels run on the GPU where there is one, else in Triton's interpreter; chosen before Triton is imported."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    from flashkat_lite import _interpreter

    _interpreter.prepare()
