"""What PyTorch expects of a registered op, and the promises of `rational`'s docstring, outside the interpreter."""

import itertools
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from cases import CUDA, DTYPES, LAYOUTS, TABLES, check, close, leaves, make

from flashkat_lite import GroupRational, _torch, rational
from flashkat_lite._torch import KERNEL_SOURCES, rational_backward_op, rational_op
from flashkat_lite.ops import BACKWARDS, DEFAULT_BACKWARD
from flashkat_lite.reference import rational_gradients, rational_reference


def opcheck_inputs(device, dtype, tables, layout):
    dy, x, a, b = make(device, (6, 12), dtype, tables)
    return LAYOUTS[layout](dy), LAYOUTS[layout](x), a, b


EACH = ("test_schema", "test_autograd_registration", "test_faketensor")
ALL = (*EACH, "test_aot_dispatch_dynamic")  # by far the longest, of a graph that is much the same for all
OPCHECKS = [
    *((dtype, "none shared", "as it comes") for dtype in DTYPES),
    *((torch.float32, tables, "3-D") for tables in TABLES if tables != "none shared"),
    *((torch.bfloat16, "numerator shared", layout) for layout in ("transposed", "some columns", "expanded", "no rows")),
]


@pytest.mark.parametrize("backward", BACKWARDS if CUDA else [DEFAULT_BACKWARD])
@pytest.mark.parametrize(("dtype", "tables", "layout"), OPCHECKS)
def test_pytorchs_own_checks_of_an_op(device, dtype, tables, layout, backward):
    dy, *inputs = opcheck_inputs(device, dtype, TABLES[tables], layout)
    # opcheck compares two runs of an op; float32 sums come in an order left to chance on a GPU.
    few = [OPCHECKS[0], (torch.float32, "both shared", "3-D"), (torch.bfloat16, "numerator shared", "transposed")]
    options = dict(rtol=torch.finfo(dtype).eps, atol=1e-3)
    options["test_utils"] = ALL if CUDA or (dtype, tables, layout) in few else EACH
    torch.library.opcheck(rational_op, (*leaves(*inputs), backward, KERNEL_SOURCES), **options)
    torch.library.opcheck(rational_backward_op, (dy, *inputs, backward, KERNEL_SOURCES), **options)


def test_pytorchs_own_checks_where_gradients_are_differentiated(device):
    arguments = *leaves(*make(device)), DEFAULT_BACKWARD, KERNEL_SOURCES
    torch.library.opcheck(rational_backward_op, arguments, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tables", TABLES)
@pytest.mark.parametrize("backward", BACKWARDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_the_reference(device, dtype, backward, tables):
    check(*make(device, dtype=dtype, tables=TABLES[tables]), backward=backward)


@pytest.mark.parametrize("degrees", [(5, 4), (3, 2), (6, 5), (2, 1), (1, 1)])
def test_any_degrees(device, degrees):
    check(*make(device, degrees=degrees))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("which", ["input", "gradient", "both"])
def test_shapes_and_strides(device, which, layout):
    dy, x, a, b = make(device, (6, 12))
    moved_dy, moved_x = LAYOUTS[layout](dy), LAYOUTS[layout](x)
    if which == "input":
        moved_dy = moved_dy.contiguous()
    if which == "gradient":
        moved_x = moved_x.contiguous()
    check(moved_dy, moved_x, a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_tables_of_any_float_dtype(device, dtype):
    check(*make(device, table_dtype=dtype))


def test_tables_of_two_dtypes_and_any_strides(device):
    dy, x, a, b = make(device)
    check(dy, x, a.half().T.contiguous().T, b.repeat_interleave(2, 1).bfloat16()[:, ::2])


@pytest.mark.parametrize("wanted", [w for w in itertools.product((True, False), repeat=3) if any(w)])
def test_gradients_of_some_inputs_only(device, wanted):
    dy, *inputs = make(device)
    want = rational_gradients(dy, *inputs)
    inputs = [t.requires_grad_(w) for t, w in zip(inputs, wanted)]
    rational(*inputs).backward(dy)
    for leaf, gradient, w in zip(inputs, want, wanted):
        assert (leaf.grad is not None) == w
        if w:
            close(leaf.grad, gradient)


def test_no_graph_without_gradients(device):
    _, x, a, b = make(device)
    assert rational(x, a, b).grad_fn is None
    with torch.no_grad():
        assert rational(*leaves(x, a, b)).grad_fn is None


def test_the_gradient_of_a_sum(device):
    _, x, a, b = make(device)
    check(torch.ones(1, 1, device=device).expand(5, 12), x, a, b)
    inputs = leaves(x, a, b)
    rational(*inputs).sum().backward()
    for leaf, want in zip(inputs, rational_gradients(torch.ones_like(x), x, a, b)):
        close(leaf.grad, want)


def test_a_table_used_twice_collects_both_gradients(device):
    dy, x, a, b = make(device)
    first, second = rational_gradients(dy, x, a, b), rational_gradients(dy, 2 * x, a, b)
    inputs = leaves(x, a, b)
    (rational(*inputs) + rational(2 * inputs[0], *inputs[1:])).backward(dy)
    close(inputs[0].grad, first[0] + 2 * second[0])
    close(inputs[1].grad, first[1] + second[1])
    close(inputs[2].grad, first[2] + second[2])


def test_one_table_as_numerator_and_denominator(device):
    dy, x, _, b = make(device)
    table = b.clone().requires_grad_()
    rational(x, table, table).backward(dy)
    _, da, db = rational_gradients(dy, x, b, b)
    close(table.grad, da + db)


def test_inputs_and_tables_are_left_as_they_were(device):
    tensors = make(device)
    before = [t.clone() for t in tensors]
    check(*tensors)
    assert all(torch.equal(t, was) for t, was in zip(tensors, before))


@pytest.mark.parametrize("backward", BACKWARDS)
def test_the_kinks_have_sign_plus_one(device, backward):
    dy, x, a, b = make(device)
    x[:, ::3], x[:, 1::3] = 0.0, -0.0
    b[:, ::2] = 0.0
    check(dy, x, a, b, backward=backward)
    check(dy, x, a, torch.zeros_like(b), backward=backward)
    assert rational_gradients(dy, x, a, torch.zeros_like(b))[2].abs().min() > 0


@pytest.mark.parametrize("backward", BACKWARDS)
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_infinities_and_nan_stay_where_the_reference_has_them(device, value, backward):
    dy, x, a, b = make(device)
    x[2, 4] = value
    inputs = leaves(x, a, b)
    y = rational(*inputs, backward=backward)
    y.backward(dy)
    got = [y, *(leaf.grad for leaf in inputs)]
    want = [rational_reference(x, a, b), *rational_gradients(dy, x, a, b)]
    for g, w in zip(got, want):
        assert torch.equal(g.isnan(), w.isnan()) and torch.equal(g.isinf(), w.isinf())
        assert g.isfinite().any()


@pytest.mark.parametrize("backward", BACKWARDS)
@pytest.mark.parametrize("shape", [(0, 12), (3, 0, 12)])
def test_an_empty_batch(device, shape, backward):
    _, x, a, b = make(device, shape)
    inputs = leaves(x, a, b)
    y = rational(*inputs, backward=backward)
    y.sum().backward()
    assert y.shape == shape
    for leaf in inputs:
        assert leaf.grad.shape == leaf.shape and not leaf.grad.any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_shapes_without_values(dtype):
    inputs = [t.to("meta").requires_grad_() for t in make("cpu", (2, 5, 12), dtype)[1:]]
    y = rational(*inputs)
    y.sum().backward()
    assert (y.shape, y.dtype, y.device.type) == ((2, 5, 12), dtype, "meta")
    assert all(leaf.grad.shape == leaf.shape and leaf.grad.dtype == leaf.dtype for leaf in inputs)


def test_a_model_in_bfloat16(device):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 12), GroupRational(12, groups=4)).to(device).bfloat16()
    x = torch.randn(5, 6, device=device, dtype=torch.bfloat16)
    y = model(x)
    assert y.dtype == torch.bfloat16
    y.square().sum().backward()
    for parameter in model.parameters():
        assert parameter.grad.dtype == torch.bfloat16 and parameter.grad.isfinite().all() and parameter.grad.any()


def python(text, **settings):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | settings
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text)], env=environment, capture_output=True, encoding="utf-8"
    )
    assert not done.returncode, done.stderr
    return done.stdout.split()


def test_importing_the_package_imports_pytorch_and_nothing_else():
    found = python("""
        import sys
        import torch
        before = set(sys.modules)
        import flashkat_lite
        for name in sorted({module.partition(".")[0] for module in set(sys.modules) - before}):
            print(name)
    """)
    assert not {"triton", "IPython", "ipywidgets", "matplotlib", "pandas", "sklearn", "sympy"} & set(found)
    assert "flashkat_lite" in found


VALUES = ["1", "true", "True", "on", "ON", "yes", "y", "Y", "0", "", "false", "off", "no", "2", " 1", "t"]


@pytest.mark.parametrize("imported", [False, True])
@pytest.mark.parametrize("value", VALUES)
def test_kernels_are_interpreted_by_the_values_that_triton_takes_for_true(monkeypatch, value, imported):
    triton = pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", value)
    if not imported:
        monkeypatch.delitem(sys.modules, "triton")
    assert _torch.interpreted() is triton.knobs.runtime.interpret
    kernels_run = {"1", "true", "on", "yes", "y"}
    assert _torch._use_kernels(torch.ones(1)) is (value.lower() in kernels_run)


def test_a_cpu_runs_kernels_where_triton_interprets_by_another_word_than_1():
    pytest.importorskip("triton")
    found = python(
        """
        import sys
        import torch
        from flashkat_lite import rational
        x = torch.ones(2, 8, requires_grad=True)
        rational(x, torch.ones(2, 3), torch.ones(2, 2)).sum().backward()
        kernels = "flashkat_lite.kernels"
        print(sys.modules[kernels].INTERPRETED, f"{kernels}.backward_stationary" in sys.modules)
        """,
        TRITON_INTERPRET="True",
        CUDA_VISIBLE_DEVICES="",
    )
    assert found == ["True", "True"]


def test_it_runs_where_triton_cannot_be_imported():
    found = python("""
        import sys

        class Blocker:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] == "triton":
                    raise ModuleNotFoundError("No module named 'triton'", name="triton")

        sys.meta_path.insert(0, Blocker())
        import torch
        from flashkat_lite import GRKAN
        model = GRKAN(8, 16, 4, groups=2)
        y = model(torch.randn(3, 8))
        y.square().sum().backward()
        print(list(y.shape) == [3, 4], all(p.grad.any() for p in model.parameters()), "triton" in sys.modules)
    """)
    assert found == ["True", "True", "False"]
