"""The lab's clocks and hints: what they say where there is a GPU to ask, and where there is none."""

import torch

from flashkat_lite.kernels import INTERPRETED
from flashkat_lite.lab import clocks, fetching
from flashkat_lite.testing import default_device


def test_a_clock_is_cycles_over_nanoseconds_in_the_median_of_programs():
    assert clocks.ghz(torch.tensor([[1900, 1000], [0, 0], [3600, 2000]])) == 1.8


def test_the_kernel_that_reads_the_clocks_copies():
    x = torch.arange(1000.0, device=default_device())
    y, took = torch.zeros_like(x), torch.ones(3, 2, dtype=torch.int64, device=x.device)
    clocks.copy_kernel[(3,)](x, y, took, 1000, BLOCK=128)
    assert torch.equal(x, y)
    assert took.any() != INTERPRETED, "the interpreter has no clock"


def test_a_hint_that_nobody_takes_is_none():
    with fetching.fetch_granularity(64) as in_force:
        assert in_force is None if not torch.cuda.is_available() else in_force in (32, 64, 128)
