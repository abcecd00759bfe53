"""Inputs and comparisons of the tests of the op.

How exact the kernels are is the business of tests/kernels; here a mistake is of order one, and `close` is lenient.
"""

import torch

from flashkat_lite import rational
from flashkat_lite.reference import rational_gradients, rational_reference

CUDA = torch.cuda.is_available()
DEVICES = ["cpu", "cuda"] if CUDA else ["cpu"]
COMPILERS = ["aot_eager", "inductor"] if CUDA else ["aot_eager"]  # the CPU's inductor needs a C++ compiler
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TABLES = {"none shared": (4, 4), "numerator shared": (1, 4), "denominator shared": (4, 1), "both shared": (1, 1)}


def make(device, shape=(5, 12), dtype=torch.float32, tables=(4, 4), table_dtype=torch.float32, degrees=(5, 4), seed=0):
    """dy, x, numerator, denominator."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(*size, generator=generator)

    dy, x = (normal(*shape).to(device, dtype) for _ in range(2))
    a, b = (0.5 * normal(rows, k).to(device, table_dtype) for rows, k in zip(tables, (degrees[0] + 1, degrees[1])))
    return dy, x, a, b


def leaves(*tensors):
    return [t.detach().clone().requires_grad_() for t in tensors]


def close(got, want):
    """Equal but for rounding: one of the result's, and float32's in sums that are as large as the largest value."""
    assert got.shape == want.shape
    want = want.double()
    scale = want[want.isfinite()].abs().max().item() if want.isfinite().any() else 0.0
    torch.testing.assert_close(got.double(), want, rtol=torch.finfo(got.dtype).eps, atol=1e-5 * scale, equal_nan=True)


def check(dy, x, a, b, **options):
    """y and all gradients, of whatever strides x and dy have, against the closed form."""
    inputs = [t.detach().requires_grad_() for t in (x, a, b)]
    y = rational(*inputs, **options)
    assert y.is_contiguous() and y.dtype == x.dtype and y.device == x.device
    close(y, rational_reference(x, a.float(), b.float()))
    y.backward(dy)
    for leaf, want in zip(inputs, rational_gradients(dy, x, a.float(), b.float())):
        assert leaf.grad.dtype == leaf.dtype and leaf.grad.shape == leaf.shape
        close(leaf.grad, want)


LAYOUTS = {
    "as it comes": lambda t: t,
    "1-D": lambda t: t.reshape(-1, 12)[0],
    "3-D": lambda t: t.reshape(3, -1, 12),
    "4-D": lambda t: t.reshape(1, 3, -1, 12),
    "transposed": lambda t: t.T.contiguous().T,
    "every other row": lambda t: t.repeat_interleave(2, 0)[::2],
    "some columns": lambda t: torch.cat([t, t], 1)[:, 5:17],
    "every other column": lambda t: t.repeat_interleave(2, 1)[:, ::2],
    "permuted": lambda t: t.reshape(3, 2, 12).transpose(0, 1),
    "expanded": lambda t: t[:1].expand(6, 12),
    "no rows": lambda t: t[:0],
}
