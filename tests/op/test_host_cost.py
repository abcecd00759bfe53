"""What an eager call costs the host: no detour through PyTorch's dispatcher, and not much more than GELU."""

import pytest
import torch
from cases import make

from flashkat_lite import ops, rational
from flashkat_lite.host import host_cost


def test_eager_code_on_plain_tensors_does_not_go_through_the_registered_op(device, monkeypatch):
    def forbidden(*arguments):
        pytest.fail("the registered op was called")

    monkeypatch.setattr(ops, "_op", forbidden)
    monkeypatch.setattr(ops, "_backward_op", forbidden)
    _, x, a, b = make(device)
    table = torch.nn.Parameter(a)
    rational(x, table, b).sum().backward()
    assert table.grad.any()
    with torch.no_grad():
        rational(x, table, b)
    with torch.autocast(device, torch.bfloat16):
        rational(x, table, b).sum().backward()


@pytest.fixture
def one_thread():
    """GELU of a busy machine's many threads is slow enough to make any function look good."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there the launches count, too")
def test_without_launches_it_costs_the_host_no_more_than_one_and_a_half_times_gelu(monkeypatch, one_thread):
    """Outputs are allocated and nothing is computed; GELU does compute, 96 elements in well under a microsecond."""
    monkeypatch.setattr(ops, "_forward", lambda x, a, b, rung: torch.empty_like(x))
    monkeypatch.setattr(ops, "_backward", lambda dy, *tensors: tuple(torch.empty_like(t) for t in tensors[:3]))
    cost = host_cost(shape=(8, 12), groups=4, rounds=40, calls=5)
    assert cost["ratio"] < 1.5, cost
    median = {name: timing["median"] for name, timing in cost["microseconds"].items()}
    assert 1 < median["rational"] < median["rational_op"], cost


@pytest.mark.gpu
def test_on_a_gpu_it_costs_the_host_no_more_than_one_and_a_half_times_gelu():
    cost = host_cost()
    assert cost["ratio"] <= 1.5, cost
