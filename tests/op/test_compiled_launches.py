"""What torch.compile sees of an op on a GPU: the launches themselves, traced here with tensors that hold no values."""

import functools
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from torch._dynamo.backends.common import aot_autograd
from torch._subclasses import FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from flashkat_lite import _torch, rational
from flashkat_lite._torch import (
    KERNEL_SOURCES,
    norm_rational_backward_op,
    norm_rational_op,
    rational_backward_op,
    rational_op,
    sources,
)
from flashkat_lite.kernels import backward_stationary, norm_backward, norm_forward
from flashkat_lite.kernels import launch as launching

LAUNCH = torch.ops.higher_order.triton_kernel_wrapper_functional


class H200:
    """As much of a driver as it takes to lower a kernel to Triton's IR."""

    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = staticmethod(lambda: 0)


@pytest.fixture
def an_h200(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    for module in (backward_stationary, norm_backward, launching):
        monkeypatch.setattr(module, "capability", lambda device: 90)
    for module in (backward_stationary, norm_forward, norm_backward):
        monkeypatch.setattr(module, "multiprocessors", lambda device: 132)
    monkeypatch.setattr(type(driver), "active", H200())


def calls(function, *shapes, dynamic=False):
    """The calls in the graph that a compiler is handed for that function of float32 tensors on a GPU."""
    graphs = []

    def keep(module, inputs):
        graphs.append(module)
        return module

    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        tensors = [torch.empty(shape, device="cuda:0") for shape in shapes]
        torch.compile(function, backend=aot_autograd(fw_compiler=keep), dynamic=dynamic)(*tensors)
    return [node for node in graphs[0].graph.nodes if node.op == "call_function"]


def forward_and_backward(dy, x, a, b, rung="stationary"):
    return rational_op(x, a, b, rung, KERNEL_SOURCES), rational_backward_op(dy, x, a, b, rung, KERNEL_SOURCES)


SHAPES = (9, 197, 96), (9, 197, 96), (8, 6), (8, 4)


def test_a_compiler_sees_three_launches_that_write_to_their_results_alone(an_h200, compiled_afresh):
    seen = calls(forward_and_backward, *SHAPES)
    launches = [node for node in seen if node.target is LAUNCH]
    assert [node.kwargs["tensors_to_clone"] for node in launches] == [
        ["y_ptr"],
        ["dx_ptr", "partial_ptr"],
        ["da_ptr", "db_ptr"],
    ]
    assert not [node for node in seen if "flashkat_lite" in str(node.target)]


def test_with_symbols_for_sizes_the_grid_is_computed_in_the_graph(an_h200, compiled_afresh):
    launches = [node for node in calls(forward_and_backward, *SHAPES, dynamic=True) if node.target is LAUNCH]
    forward, main, _ = launches
    for launch in (forward, main):
        assert isinstance(launch.kwargs["grid"][0][0], torch.fx.Node)
        assert isinstance(launch.kwargs["kwargs"]["rows"], torch.fx.Node)
        assert isinstance(launch.kwargs["kwargs"]["vectors_per_row"], int)


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_compiler_sees_the_norms_three_launches_too(an_h200, compiled_afresh, dynamic):
    def both(dz, x, weight, bias, a, b):
        parameters = weight, bias, a, b
        z, total, mean, rstd = norm_rational_op(x, dz, *parameters, False, 1e-6, torch.bfloat16, KERNEL_SOURCES)
        options = False, 1e-6, None, KERNEL_SOURCES
        return z, norm_rational_backward_op(dz, x, total, mean, rstd, *parameters, *options)

    seen = calls(both, (9, 197, 96), (9, 197, 96), (96,), (96,), (8, 6), (8, 4), dynamic=dynamic)
    launches = [node for node in seen if node.target is LAUNCH]
    assert [node.kwargs["tensors_to_clone"] for node in launches] == [
        ["z_ptr", "sum_ptr", "mean_ptr", "rstd_ptr"],
        ["dx_ptr", "partial_ptr"],
        ["dweight_ptr", "dbias_ptr", "da_ptr", "db_ptr"],
    ]
    assert not [node for node in seen if "flashkat_lite" in str(node.target)]
    assert isinstance(launches[0].kwargs["kwargs"]["rows"], torch.fx.Node if dynamic else int)


@pytest.mark.parametrize("rung", ["atomic", "block"])
def test_the_other_rungs_are_calls_of_the_op(an_h200, compiled_afresh, rung):
    seen = calls(functools.partial(forward_and_backward, rung=rung), *SHAPES)
    assert LAUNCH not in [node.target for node in seen]
    assert torch.ops.flashkat_lite.rational_backward.default in [node.target for node in seen]


def test_graphs_kept_on_disk_are_found_by_the_kernels_sources_too(compiled_afresh):
    graphs = []

    def backend(module, inputs):
        graphs.append(module)
        return module

    tensors = torch.randn(3, 16), torch.randn(2, 4), torch.randn(2, 3)
    torch.compile(rational, backend=backend)(*tensors)
    (call,) = [node for node in graphs[0].graph.nodes if node.op == "call_function" and "flashkat" in str(node.target)]
    assert call.args[-2:] == ("stationary", KERNEL_SOURCES)


def test_a_change_of_a_kernel_or_of_the_reference_is_other_sources(tmp_path):
    (tmp_path / "kernels").mkdir()
    files = [tmp_path / name for name in ("reference.py", "kernels/forward.py", "kernels/layout.py")]
    for file in files:
        file.write_text("before", encoding="utf-8")
    seen = {sources(tmp_path)}
    for file in files:
        file.write_text("after", encoding="utf-8")
        seen.add(sources(tmp_path))
    assert len(seen) == 4
    assert sources(Path(_torch.__file__).parent) == KERNEL_SOURCES
