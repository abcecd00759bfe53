"""Marks for exercises with kernels. Triton interprets or compiles for a whole process, so that what needs its
interpreter runs in one of its own: test_in_the_interpreter.py."""

import pytest
import torch

from flashkat_lite.kernels import INTERPRETED

kernels = pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason="runs in a process of its own")
interpreted = pytest.mark.skipif(not INTERPRETED, reason="a GPU does not tell its accesses, nor the order of programs")
