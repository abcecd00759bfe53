"""Where Triton's compiled module is out of reach, as on macOS and Windows: kernels run, and nothing is compiled.

`make test` runs these, and the tests that are marked `standin`, with FLASHKAT_STANDIN: see `python book/tools standin`.
"""

import linecache
import sys

import pytest
import torch
import torch._inductor.config
import triton
import triton.language as tl
from torch.utils import _triton

from flashkat_lite import _interpreter, doctor, hardware, inspection
from tools import notebooks

pytestmark = [
    pytest.mark.standin,
    pytest.mark.skipif(not _interpreter.standing_in(), reason="Triton's compiled module is here"),
]


def test_no_compiled_module_of_triton_is_loaded():
    loaded = [getattr(module, "__file__", None) for name, module in sys.modules.items() if name.startswith("triton")]
    assert len(loaded) > 30 and not [file for file in loaded if file and not file.endswith(".py")]
    assert triton.backends.backends == {}


def test_pytorch_takes_it_for_no_triton_and_compiles_for_the_processor(monkeypatch):
    """A product of matrices asks for Triton's key, and needs no C++ compiler, which would take most of the time."""
    assert not _triton.has_triton_package() and not _triton.has_triton()
    monkeypatch.setattr(torch._inductor.config, "force_disable_caches", True)
    x = torch.randn(5, 5, requires_grad=True)
    (expected,) = torch.autograd.grad(x @ x, x, torch.ones(5, 5))
    (found,) = torch.autograd.grad(torch.compile(torch.mm)(x, x), x, torch.ones(5, 5))
    torch.testing.assert_close(found, expected)


def test_doctor_says_that_it_stands_in(monkeypatch):
    monkeypatch.setattr(doctor, "check_interpreter", doctor.kernels_agree)
    found = {finding.name: finding for finding in doctor.findings()}
    assert found["Triton"].value.startswith(triton.__version__) and "stand-in" in found["Triton"].value
    assert found["stand-in"].status == "ok" and "interpreter" not in found
    assert hardware.versions()["triton"] == triton.__version__


@triton.jit
def atomics_kernel(sums_ptr, cells_ptr, terms_ptr, index_ptr, before_ptr, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    terms, index = tl.load(terms_ptr + offs), tl.load(index_ptr + offs)
    before = tl.atomic_add(sums_ptr + index, terms)
    tl.store(before_ptr + offs, before)
    tl.atomic_max(cells_ptr, tl.max(index))
    tl.atomic_xchg(cells_ptr + 1, 7)
    tl.atomic_cas(cells_ptr + 2, 0, 5)
    tl.atomic_cas(cells_ptr + 2, 0, 6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int64], ids=str)
def test_atomic_additions_of_each_dtype_happen_in_order_and_return_what_was_there(dtype):
    torch.manual_seed(0)
    terms = (torch.randn(256) * 8).to(dtype)
    index = torch.randint(5, (256,))
    sums, before = torch.zeros(5, dtype=dtype), torch.empty(256, dtype=dtype)
    cells = torch.zeros(3, dtype=torch.int32)
    atomics_kernel[(1,)](sums, cells, terms, index, before, BLOCK=256)
    in_turn = torch.zeros(5, dtype=dtype)
    for k, place in enumerate(index.tolist()):
        assert before[k] == in_turn[place]
        in_turn[place] += terms[k]
    assert torch.equal(sums, in_turn) and cells.tolist() == [4, 7, 5]


CELLS = ("setup", "lost", "lost-claims", "add-kernel", "inspect", "inspect-table", "inspect-claims")


def test_cells_of_a_chapter_run_with_their_claims_and_its_listings_come_from_a_record(capsys):
    (path,) = notebooks.select(["06"])
    cells = {cell.id: cell.source for cell in notebooks.code_cells(notebooks.read(path))}
    variables = {"__name__": "__main__"}
    for name in CELLS:
        file = f"cell {name}"
        text = cells[name] + "\n"  # as IPython has it
        linecache.cache[file] = len(text), None, text.splitlines(keepends=True), file
        exec(compile(text, file, "exec"), variables)
    assert f"compiled elsewhere by Triton {inspection.listings()['triton']}" in capsys.readouterr().out
    assert variables["reports"][0].atomics


def test_a_kernel_that_no_record_has_is_named():
    with pytest.raises(RuntimeError, match="no compiler here, and no record of atomics_kernel"):
        inspection.inspect_kernel(atomics_kernel, {"BLOCK": 64})
