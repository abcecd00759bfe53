"""Every rung against the float64 closed form: shapes, dtypes, degrees, strides, special values.

Tolerances come from the arithmetic. A result stored in b bits rounds to 2^-b of itself; each of its float32 terms
costs a few roundings of 2^-24 of that term. Sums of many independent terms are judged in units of
2^-24 · sqrt(Σ term²) (see `rounding_units`): a mean of 4 and a worst of 16 where partial sums form trees; where K
additions meet at one address each rounds the running total, which adds about sqrt(K) units. Sums of few or of repeated
terms do not average, and are held to the worst case, 2^-24 · Σ|term| for each rounding.
"""

import itertools
import math
from fractions import Fraction

import pytest
import torch
import triton
import triton.language as tl
from exact import errors, exact
from triton.runtime import driver

from flashkat_lite import GroupRational, _interpreter, rational
from flashkat_lite.kernels import backward_block, forward, stream
from flashkat_lite.ops import BACKWARDS
from flashkat_lite.reference import rational_gradients, rational_reference, rounding_units
from flashkat_lite.testing import ROUND, check_dx, check_forward, errors_in_units, random_inputs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

WIDTHS, GROUPS, ROWS = (1, 7, 24, 48, 96, 384), (1, 3, 8), (1, 37, 1000)
DEGREES = ((5, 4), (3, 2), (6, 5), (2, 1))
SHARED = ("neither", "numerator", "denominator", "both")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FACTORS = (WIDTHS, GROUPS, ROWS, DEGREES, SHARED, DTYPES)


def pairwise(*factors):
    """A few tuples, one value a factor, in which every pair of values of every two factors occurs."""
    wanted = {
        (i, x, j, y) for i, j in itertools.combinations(range(len(factors)), 2) for x in factors[i] for y in factors[j]
    }

    def gain(case):
        return sum((i, case[i], j, case[j]) in wanted for i, j in itertools.combinations(range(len(case)), 2))

    cases, everything = [], list(itertools.product(*factors))
    while wanted:
        best = max(everything, key=gain)
        cases.append(best)
        wanted -= {(i, best[i], j, best[j]) for i, j in itertools.combinations(range(len(best)), 2)}
    return cases


def make(rows, width, groups, degrees, shared="neither", dtype=torch.float32, seed=0):
    made = dict(tables=0.5, shared=shared, device="cpu", seed=seed)  # the same numbers on every machine
    return [t.to(DEVICE) for t in random_inputs(rows, width * groups, groups, degrees, dtype, **made)]


def adds_at_an_address(name, rows, width, groups, tables):
    """K of the module's docstring: additions that meet at one total."""
    across = 1
    for table in tables:
        across = max(across, groups // len(table))
    if name == "atomic":
        return rows * width
    if name == "stationary":  # no address, but a position adds up at most every row
        return rows
    return triton.cdiv(rows, backward_block.tile(width)[0]) * triton.cdiv(width, backward_block.tile(width)[1]) * across


def check_sums(name, sums, dy, x, a, b, repeated=False):
    groups = max(len(a), len(b))
    rows, width = x.numel() // x.shape[-1], x.shape[-1] // groups
    adds = adds_at_an_address(name, rows, width, groups, (a, b))
    few = 30 if name == "block" else 400  # terms: too few to average
    if repeated or rows * width < few:
        # Every summand positive: what the roundings inside a term are relative to, even where P cancels.
        sizes = rational_gradients(*(t.double().abs() for t in (dy, x, a, b)))[1:]
        for total, exact, size in zip(sums, rounding_units(dy, x, a, b), sizes):
            error = (total - exact).abs()
            assert (error <= (8 + adds) * ROUND * size.abs()).all(), f"{name}: {(error / size.abs()).max() / ROUND:.1f}"
        return
    errors = torch.cat([error.flatten() for error in errors_in_units(*sums, dy, x, a, b)])
    mean, most = (4 + adds**0.5, 16 + 4 * adds**0.5) if name == "atomic" else (4, 16)
    if name == "stationary":
        mean *= 1 + errors.numel() ** -0.5  # the mean of a handful of sums scatters
    assert errors.mean() <= mean, f"{name}: mean error {errors.mean():.1f} units, allowed {mean:.1f}"
    assert errors.max() <= most, f"{name}: worst error {errors.max():.1f} units, allowed {most:.1f}"


def check(case, seed=0):
    width, groups, rows, degrees, shared, dtype = case
    dy, x, a, b = make(rows, width, groups, degrees, shared, dtype, seed)
    check_forward(forward.forward(x, a, b), x, a, b)
    for name, backward in BACKWARDS.items():
        dx, da, db = backward(dy, x, a, b)
        check_dx(dx, dy, x, a, b)
        check_sums(name, (da, db), dy, x, a, b)


def label(value):
    return str(value).removeprefix("torch.").replace(" ", "")


@pytest.mark.parametrize("case", pairwise(*FACTORS), ids=lambda case: "-".join(map(label, case)))
def test_against_float64(case):
    check(case)


@pytest.mark.full
@pytest.mark.gpu
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=label)
def test_against_float64_everywhere(width, dtype):
    for groups, rows, degrees, shared in itertools.product(GROUPS, ROWS, DEGREES, SHARED):
        check((width, groups, rows, degrees, shared, dtype), seed=1)


@pytest.mark.standin
@pytest.mark.parametrize("backward", BACKWARDS)
def test_writes_every_element_of_a_poisoned_buffer(backward, monkeypatch):
    empty = torch.empty

    def poisoned(*args, **kwargs):
        buffer = empty(*args, **kwargs)
        return buffer.fill_(float("nan")) if buffer.is_floating_point() else buffer

    dy, x, a, b = make(37, 7, 8, (5, 4))
    monkeypatch.setattr(torch, "empty", poisoned)
    results = [forward.forward(x, a, b), *BACKWARDS[backward](dy, x, a, b)]
    monkeypatch.undo()
    assert not any(t.isnan().any() for t in results)


LAYOUTS = {
    "1-D": lambda t: t[0],
    "3-D": lambda t: t.reshape(6, 6, -1),
    "4-D": lambda t: t.reshape(2, 3, 6, -1),
    "sliced rows": lambda t: t[::2],
    "sliced columns": lambda t: torch.cat([t, t], 1)[:, 5 : 5 + t.shape[1]],
    "rows of an odd stride": lambda t: torch.cat([t[:, :1], t], 1)[:, 1:],
    "transposed": lambda t: t.T.contiguous().T,
    "permuted": lambda t: t.reshape(6, 6, -1).transpose(0, 1),
    "expanded": lambda t: t[:1].expand(36, -1),
    "expanded batch": lambda t: t[:6, None].expand(6, 5, -1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backward", BACKWARDS)
def test_shapes_and_strides_of_input_and_gradient(backward, layout):
    dy, x, a, b = make(36, 12, 4, (3, 2))
    dy, x = (LAYOUTS[layout](t) for t in (dy, x))
    leaves = [t.detach().requires_grad_() for t in (x, a, b)]
    y = rational(*leaves, backward=backward)
    check_forward(y, x, a, b)
    y.backward(dy)
    check_dx(leaves[0].grad, dy, x, a, b)
    check_sums(backward, (leaves[1].grad, leaves[2].grad), dy, x, a, b, repeated="expanded" in layout)


@pytest.mark.parametrize("backward", BACKWARDS)
def test_a_mixed_layout_of_gradient_and_input(backward):
    dy, x, a, b = make(36, 12, 4, (3, 2))
    dx, da, db = BACKWARDS[backward](LAYOUTS["transposed"](dy), LAYOUTS["sliced columns"](x), a, b)
    check_dx(dx, dy, LAYOUTS["sliced columns"](x), a, b)
    check_sums(backward, (da, db), dy, LAYOUTS["sliced columns"](x), a, b)


@pytest.mark.parametrize("backward", BACKWARDS)
def test_the_gradient_of_a_sum(backward):
    _, x, a, b = make(37, 24, 3, (5, 4))
    leaves = [t.clone().requires_grad_() for t in (x, a, b)]
    rational(*leaves, backward=backward).sum().backward()
    ones = torch.ones_like(x)
    check_dx(leaves[0].grad, ones, x, a, b)
    check_sums(backward, (leaves[1].grad, leaves[2].grad), ones, x, a, b, repeated=True)


@pytest.mark.parametrize("backward", BACKWARDS)
def test_the_kinks_have_the_sign_of_the_bit_for_x_and_plus_one_for_b(backward):
    _, x, a, b = make(4, 8, 2, (5, 4))
    x[:, ::2] = 0.0
    x[:, 2] = -0.0
    dx, da, db = BACKWARDS[backward](torch.ones_like(x), x, a, torch.zeros_like(b))
    want = rational_gradients(torch.ones_like(x).double(), x.double(), a.double(), torch.zeros_like(b).double())
    assert want[2].abs().min() > 0
    for got, expected in zip((dx, da, db), want):
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
    zeros = torch.zeros_like(x)
    zeros[:, 1::2] = -0.0
    at_zero = BACKWARDS[backward](torch.ones_like(x), zeros, a, b)[0]
    expected = rational_gradients(torch.ones_like(x).double(), zeros.double(), a.double(), b.double())[0]
    assert (expected[:, ::2] - expected[:, 1::2]).abs().min() > 0
    torch.testing.assert_close(at_zero.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backward", BACKWARDS)
@pytest.mark.parametrize("degrees", [(5, 4), (8, 8), (1, 8), (8, 1)])
def test_inputs_as_large_as_the_polynomials_allow(backward, degrees):
    """|x| from 1 to where P or Q leaves float32, in a group of its own each: held to exact arithmetic."""
    last = 1e36 ** (1 / max(degrees))
    x = torch.logspace(0, 1, 12).pow(math.log10(last)) * torch.tensor([1.0, -1.0]).repeat(6)
    generator = torch.Generator().manual_seed(16)
    a, b = (torch.randn(12, k, generator=generator) for k in (degrees[0] + 1, degrees[1]))
    x, a, b = (t.to(DEVICE) for t in (x[None], a, b))
    dy = torch.full_like(x, 3.0)
    y, (dx, da, db) = forward.forward(x, a, b), BACKWARDS[backward](dy, x, a, b)
    found = torch.cat([y[0, :, None], dx[0, :, None], da, db], 1).tolist()
    for point, table_a, table_b, got in zip(x[0].tolist(), a.tolist(), b.tolist(), found):
        want = exact(3.0, point, table_a, table_b)
        # dy P/Q² may be below float32's normal numbers: what |x|^j then makes of the loss is in guarantees.md.
        lost = Fraction(2) ** -126 * max(Fraction(abs(point)) ** k for k in range(max(degrees) + 1))
        worst = max(errors(got, [want.y, want.dx, *want.da, *want.db], Fraction(2) ** -23, lost, Fraction(3e38)))
        assert worst < 20, f"x = {point:g}"


@pytest.mark.parametrize("backward", BACKWARDS)
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_infinities_and_nan_as_the_reference_has_them(backward, value):
    dy, x, a, b = make(5, 8, 4, (5, 4))
    x[2, 3] = value
    got = [forward.forward(x, a, b), *BACKWARDS[backward](dy, x, a, b)]
    want = [rational_reference(x, a, b), *rational_gradients(dy, x, a, b)]
    for g, w in zip(got, want):
        assert torch.equal(g.isnan(), w.isnan())
        assert torch.equal(g.isinf(), w.isinf())
        assert torch.isfinite(g).sum() > 0


@pytest.mark.parametrize("backward", BACKWARDS)
@pytest.mark.parametrize("shape", [(0, 24), (3, 0, 24)])
def test_an_empty_batch(backward, shape):
    _, _, a, b = make(1, 12, 2, (5, 4))
    x = torch.empty(shape, device=DEVICE, requires_grad=True)
    a.requires_grad_(), b.requires_grad_()
    y = rational(x, a, b, backward=backward)
    y.sum().backward()
    assert y.shape == x.grad.shape == shape
    assert a.grad.shape == a.shape and b.grad.shape == b.shape
    assert not a.grad.any() and not b.grad.any()


@pytest.mark.parametrize("backward", BACKWARDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_tables_of_any_float_dtype(backward, dtype):
    dy, x, a, b = make(37 if DEVICE == "cuda" else 9, 24, 3, (5, 4))
    a, b = a.to(dtype), b.to(dtype)
    a32, b32 = a.float(), b.float()
    torch.testing.assert_close(forward.forward(x, a, b), forward.forward(x, a32, b32), rtol=0, atol=0)
    dx, da, db = BACKWARDS[backward](dy, x, a, b)
    assert da.dtype == db.dtype == dtype
    check_dx(dx, dy, x, a32, b32)
    _, exact_a, exact_b = rational_gradients(*(t.double() for t in (dy, x, a32, b32)))
    rounding = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-11
    torch.testing.assert_close(da.double(), exact_a, rtol=2 * rounding, atol=2e-3)
    torch.testing.assert_close(db.double(), exact_b, rtol=2 * rounding, atol=2e-3)


@pytest.mark.standin
@pytest.mark.parametrize("backward", BACKWARDS)
def test_a_bfloat16_model_trains(backward):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 24), GroupRational(24, groups=3, backward=backward)).to(DEVICE)
    model = model.bfloat16()
    x = torch.randn(40, 16, device=DEVICE, dtype=torch.bfloat16)
    model(x).square().mean().backward()
    for parameter in model.parameters():
        assert parameter.grad.dtype == torch.bfloat16 and parameter.grad.isfinite().all() and parameter.grad.any()


@pytest.mark.parametrize("dtype", DTYPES, ids=label)
def test_stationary_sums_are_the_same_bits_every_time(dtype):
    tensors = make(1000 if DEVICE == "cuda" else 37, 24, 8, (5, 4), dtype=dtype)
    first = BACKWARDS["stationary"](*tensors)
    for _ in range(3 if DEVICE == "cuda" else 1):
        assert all(torch.equal(p, q) for p, q in zip(first, BACKWARDS["stationary"](*tensors)))


@pytest.mark.parametrize("backward", BACKWARDS)
def test_a_group_wider_than_a_tile(backward):
    dy, x, a, b = make(3, 5120, 2, (5, 4))
    dx, da, db = BACKWARDS[backward](dy, x, a, b)
    check_forward(forward.forward(x, a, b), x, a, b)
    check_dx(dx, dy, x, a, b)
    check_sums(backward, (da, db), dy, x, a, b)


def test_pairs_are_all_covered():
    cases = pairwise((1, 2, 3), "ab", (True, False))
    for i, j in itertools.combinations(range(3), 2):
        pairs = {(case[i], case[j]) for case in cases}
        assert len(pairs) == len({p[0] for p in pairs}) * len({p[1] for p in pairs})
    assert len(cases) < 12


@pytest.mark.gpu
@pytest.mark.parametrize("backward", BACKWARDS)
def test_a_new_batch_compiles_nothing(backward):
    compiled = []
    a_rows = (64, 65, 1379, 2048, 4096)

    def run(rows):
        dy, x, a, b = make(rows, 96, 8, (5, 4))
        forward.forward(x, a, b)
        BACKWARDS[backward](dy, x, a, b)

    run(a_rows[0])
    before = set(triton_cache())
    for rows in a_rows[1:]:
        run(rows)
    compiled = set(triton_cache()) - before
    assert not compiled, f"compiled again for a new number of rows: {compiled}"


def triton_cache():
    """What has been compiled in this process, by kernel and specialisation."""
    from flashkat_lite.kernels import backward_atomic, backward_stationary

    device = driver.active.get_current_device()
    modules = forward, backward_atomic, backward_block, backward_stationary
    kernels = {name: value for module in modules for name, value in vars(module).items() if name.endswith("_kernel")}
    return [(name, key) for name, kernel in kernels.items() for key in kernel.device_caches[device][0]]


@pytest.mark.gpu
@pytest.mark.full
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("columns", [192, 768, 3072])
def test_sums_at_full_size(columns, seed):
    generator = torch.Generator(DEVICE).manual_seed(seed)
    x, dy = (torch.randn(1024 * 197, columns, device=DEVICE, generator=generator) for _ in range(2))
    _, _, a, b = make(1, columns // 8, 8, (5, 4), seed=seed)
    exact = None
    for part in zip(dy.split(8192), x.split(8192)):
        *sums, unit_a, unit_b = rounding_units(*part, a, b)
        found = torch.cat(sums, 1), torch.cat([unit_a, unit_b], 1).square()
        exact = found if exact is None else tuple(p + q for p, q in zip(exact, found))
    for name in ("block", "stationary"):
        errors = (torch.cat(BACKWARDS[name](dy, x, a, b)[1:], 1) - exact[0]).abs() / exact[1].sqrt()
        assert errors.mean() <= 4 and errors.max() <= 16, f"{name}: {errors.mean():.1f}, {errors.max():.1f} units"


@pytest.mark.gpu
@pytest.mark.full
def test_more_than_two_to_the_31_elements():
    columns = 768
    rows = 2**31 // columns + 1000
    x = torch.zeros(rows, columns, device=DEVICE, dtype=torch.bfloat16)
    dy = torch.zeros_like(x)
    a, b = torch.rand(8, 6, device=DEVICE) + 0.5, torch.rand(8, 4, device=DEVICE)
    ends = torch.cat([torch.arange(500), torch.arange(rows - 500, rows)]).to(DEVICE)
    small_dy, small_x, _, _ = make(1000, 96, 8, (5, 4), dtype=torch.bfloat16)
    x[ends], dy[ends] = small_x, small_dy
    y = forward.forward(x, a, b)
    check_forward(y[ends], small_x, a, b)
    del y
    for name in ("block", "stationary"):
        dx, da, db = BACKWARDS[name](dy, x, a, b)
        check_dx(dx[ends], small_dy, small_x, a, b)
        check_sums("atomic", (da, db), small_dy, small_x, a, b)
        assert not dx[rows // 2].any()
        del dx
    dx, _, _ = BACKWARDS["atomic"](dy, x, a, b)
    check_dx(dx[ends], small_dy, small_x, a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("add", [False, True])
def test_every_plain_kernel_of_the_limits_moves_all_elements_and_no_more(add, dtype):
    for columns in (1021, 1024):
        x, y = (torch.randint(-9, 9, (5, columns), device=DEVICE).to(dtype) for _ in range(2))
        out = torch.empty(6, columns, dtype=dtype, device=DEVICE)
        for function in stream.streams(x, y, out, add).values():
            out.fill_(70.0)
            assert torch.equal(function()[:5], x + y if add else x)
            assert (out[5] == 70.0).all()


@triton.jit
def steps_kernel(out_ptr, steps):
    for step in range(steps):
        tl.store(out_ptr + step, step)


@pytest.mark.standin
@pytest.mark.skipif(DEVICE == "cuda", reason="of the interpreter")
def test_a_loop_ends_at_an_argument_also_where_numpy_takes_an_array_of_one_element_for_no_number(monkeypatch):
    """Triton 3.6 asks for int(array) of such an array, which NumPy 2.4 refuses."""
    from triton.runtime import interpreter

    out = torch.zeros(5, dtype=torch.int32)
    patch = interpreter._patch_lang_tensor.__wrapped__

    def as_in_3_6(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data))

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", as_in_3_6)
    _interpreter.mend()
    steps_kernel[(1,)](out, 4)
    assert out.tolist() == [0, 1, 2, 3, 0]


@pytest.mark.skipif(DEVICE == "cuda", reason="of the interpreter")
def test_the_quickened_interpreter_replaces_what_tritons_own_does_and_gives_the_same_bits(monkeypatch):
    """At every launch, since each puts the language back; and no overflow is looked for that nobody is told of."""
    from triton.runtime import interpreter

    builder = interpreter.interpreter_builder
    tritons_own = type(builder.options)()
    assert tritons_own.sanitize_overflow and not tritons_own.debug and not builder.options.sanitize_overflow
    quick, attr, replaced, searches = interpreter._patch_builtin, interpreter._patch_attr, [], []
    tensors = make(5, 8, 2, (3, 2))

    def own(*given):
        searches.append(given)
        quick.__wrapped__(*given)

    monkeypatch.setattr(interpreter, "_patch_attr", lambda *given: replaced.append(given[:2]) or attr(*given))
    results, found = [], []
    for search, options in ((quick, builder.options), (own, tritons_own)):
        monkeypatch.setattr(interpreter, "_patch_builtin", search)
        monkeypatch.setattr(builder, "options", options)
        for _ in range(2):
            results.append(forward.forward(*tensors[1:]))
            found.append(replaced.copy())
            replaced.clear()
    assert all(torch.equal(result, results[0]) for result in results)
    assert found[0] and all(names == found[0] for names in found)
    assert len(searches) > 20, "at each device function's call: what is spared"
