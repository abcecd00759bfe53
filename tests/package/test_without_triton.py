"""As on macOS and Windows: no Triton to import, no GPU. What reads and runs there, and the word where a kernel would.

`doctor` on such a machine is in test_doctor.
"""

import os
import subprocess
import sys

import pytest
import torch

CODE = """
import re, sys

sys.modules["triton"] = None  # as if there were none

import IPython.display
import torch
shown = []
IPython.display.display = lambda item: shown.append(re.sub("<[^>]+>", "", item.data))

from flashkat_lite import GRKAN, GroupRational, lab, rational
from flashkat_lite.reference import rational_gradients, rational_reference
from flashkat_lite.vit import VisionTransformer

assert len(shown) == 1 and "no Triton here" in shown[0] and "kernel cells do not" in shown[0]
assert "TRITON_INTERPRET" not in __import__("os").environ

torch.manual_seed(0)
x = torch.randn(6, 16, requires_grad=True)
tables = [torch.randn(4, width, requires_grad=True) for width in (6, 4)]
for backward in ("atomic", "block", "stationary"):
    y = rational(x, *tables, backward=backward)
    torch.testing.assert_close(y, rational_reference(x, *tables))
    found = torch.autograd.grad(y, (x, *tables), torch.ones_like(y))
    for one, other in zip(found, rational_gradients(torch.ones_like(y), x, *tables)):
        torch.testing.assert_close(one, other)

for module in (GroupRational(16), GRKAN(16, 32)):
    module(torch.randn(3, 16)).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())

lab.check("07-1", lambda r, d, g, m, n: (12 * r * d, (m + 1 + n) * r * d, (m + 1 + n) * g))
assert lab.records.load("ladder").where == "recorded on NVIDIA H200"
try:
    import flashkat_lite.kernels
except ModuleNotFoundError as missing:
    assert missing.name == "triton"
else:
    raise AssertionError("the kernels were imported")
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="what happens without a GPU")
def test_everything_but_the_kernels_runs_and_the_first_cell_says_so(root):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
