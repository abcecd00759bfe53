"""What an eager call costs the host: no detour through PyTorch's dispatcher, and not much more than GELU."""

from types import SimpleNamespace

import pytest
import torch
from cases import make
from triton import knobs

from flashkat_lite import _torch, ops, rational
from flashkat_lite.bench import host
from flashkat_lite.bench.host import host_cost
from flashkat_lite.kernels import launch as launching


def test_eager_code_on_plain_tensors_does_not_go_through_the_registered_op(device, monkeypatch):
    def forbidden(*arguments):
        pytest.fail("the registered op was called")

    monkeypatch.setattr(ops, "registered_rational", forbidden)
    monkeypatch.setattr(_torch, "registered_backward", forbidden)
    _, x, a, b = make(device)
    table = torch.nn.Parameter(a)
    rational(x, table, b).sum().backward()
    assert table.grad.any()
    with torch.no_grad():
        rational(x, table, b)
    with torch.autocast(device, torch.bfloat16):
        rational(x, table, b).sum().backward()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there the launches count, too")
def test_without_launches_it_costs_the_host_no_more_than_a_function_that_does_nothing(monkeypatch, one_thread):
    """An autograd.Function of three inputs, as PyTorch's users write it, 1.2 times; before it had 1.3.

    A part of that is to find that no plain launches fit here.
    """
    monkeypatch.setattr(_torch, "_forward", lambda x, a, b, *strings: torch.empty_like(x))
    monkeypatch.setattr(_torch, "_backward", lambda dy, *tensors: tuple(torch.empty_like(t) for t in tensors[:3]))
    cost = host_cost(shape=(8, 12), groups=4, rounds=40, calls=5)
    low = {name: timing["low"] for name, timing in cost["microseconds"].items()}
    assert 1 < low["rational"] < 1.2 * low["empty"], cost
    assert low["rational"] < low["rational_op"], cost


class Kernel:
    """Stands for a Triton kernel: keeps what it is launched with, by Triton and once it is compiled."""

    arg_names = ("x_ptr", "y_ptr", "rows", "WIDTH")

    def __init__(self):
        self.launches = []
        self.compiled = SimpleNamespace(function="function", packed_metadata="metadata", run=self.run)

    def __getitem__(self, grid):
        def launch(*arguments, **constants):
            self.launches.append(("Triton's way", grid, *arguments, constants))
            return self.compiled

        return launch

    def run(self, *arguments):
        self.launches.append(("compiled", *arguments))


def test_a_launch_asks_triton_once_and_again_where_it_must(monkeypatch):
    driver = SimpleNamespace(get_current_stream=lambda device: f"stream of {device}", get_current_device=lambda: 3)
    monkeypatch.setattr(launching, "INTERPRETED", False)
    monkeypatch.setattr(launching, "driver", SimpleNamespace(active=driver))
    kernel, x = Kernel(), torch.zeros(16)
    launch = launching.BoundLaunch(kernel, (5, 2), (7,), WIDTH=24, num_warps=4)

    def latest(*tensors):
        launch(*tensors)
        return kernel.launches[-1]

    own = "Triton's way", (5, 2, 1), x, x, 7, {"WIDTH": 24, "num_warps": 4, "enable_fp_fusion": True}
    shifted = x[1:]
    assert latest(x, shifted)[0] == "Triton's way"
    assert latest(x, x) == own
    pointer = x.data_ptr()
    fast = "compiled", 5, 2, 1, "stream of 3", "function", "metadata", None, None, None, pointer, pointer, 7, 24
    assert latest(x, x) == fast
    assert latest(x, shifted)[3] is shifted
    monkeypatch.setattr(knobs.runtime.launch_enter_hook, "calls", [print])
    assert latest(x, x) == own
    monkeypatch.undo()
    assert launch.run == kernel.run


@pytest.mark.gpu
def test_on_a_gpu_the_launches_cost_the_host_little_beside_pytorch_s_own_part():
    """GELU's cost is out of reach: a Python function of three inputs that launches nothing costs 1.4 times that."""
    median = {name: timing["median"] for name, timing in host_cost()["microseconds"].items()}
    assert median["rational"] < 2.5 * median["empty"], median
    assert median["rational"] < median["rational_op"], median


@pytest.mark.skipif(torch.cuda.is_available(), reason="what happens without a GPU")
def test_on_a_cpu_the_command_says_what_counts_how_far_it_is_and_ends_soon(monkeypatch, capsys, one_thread):
    sizes = []
    monkeypatch.setattr(host, "_call", lambda function, calls, x: sizes.append(calls * x.numel()) or 1.0)
    host.main()
    printed = capsys.readouterr().out
    assert "No GPU here: the CPU's own work counts" in printed and "50 of 100 rounds" in printed
    assert "rational takes 1.00 times GELU's" in printed
    assert sum(sizes) < 1_000_000, "elements in all: seconds; the shape for a GPU would have 2 billion"
