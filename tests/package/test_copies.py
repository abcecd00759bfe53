"""Copies of the package under other names, as the Hugging Face Hub loads kernels: alone, and beside one another."""

import os
import subprocess
import sys

import pytest

from flashkat_lite import _torch
from tools import hub

CODE = """
import importlib.util, pkgutil, shutil, sys
from pathlib import Path

import torch
from torch.fx.experimental.proxy_tensor import make_fx

HAS_TRITON = importlib.util.find_spec("triton") is not None

def load(name, folder):
    spec = importlib.util.spec_from_file_location(name, Path(folder, "__init__.py"))
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]

def use(package):
    function = sys.modules[package.__name__ + ".reference"].rational_reference
    torch.manual_seed(0)
    x, a, b = (torch.randn(s, requires_grad=True) for s in ((3, 8), (2, 6), (2, 4)))
    expected = torch.autograd.grad(function(x, a, b).sum(), (x, a, b))
    for rational in (package.rational, torch.compile(package.rational, backend="aot_eager", fullgraph=True)):
        for found, gradient in zip(torch.autograd.grad(rational(x, a, b).sum(), (x, a, b)), expected):
            torch.testing.assert_close(found, gradient)
    traced = make_fx(lambda x, a, b: package.rational(x, a, b))(x, a, b).graph
    return {str(node.target) for node in traced.nodes if "rational" in str(node.target)}

sys.modules["flashkat_lite"] = None  # an import that is not relative fails
before = {module.partition(".")[0] for module in sys.modules}
hub = load("_flashkat_lite_cpu_0a1b2c3", sys.argv[1])
new = {module.partition(".")[0] for module in sys.modules} - before - sys.stdlib_module_names
assert new == {hub.__name__}, "the Hub lets a kernel import PyTorch, Triton and itself"
for module in pkgutil.walk_packages(hub.__path__, hub.__name__ + "."):
    if module.name.rpartition(".")[2] != "__main__" and (HAS_TRITON or ".kernels" not in module.name):
        importlib.import_module(module.name)
assert use(hub) == {"_flashkat_lite_cpu_0a1b2c3.rational.default"}
if HAS_TRITON:
    registers = hub.inspection.inspect_kernel(
        hub.kernels.forward.forward_kernel, dict(M1=6, N=4, VECTOR=4, BLOCK=128, UNROLL=1)
    ).registers
    assert registers > 8

del sys.modules["flashkat_lite"]
import flashkat_lite
sys.path.insert(0, sys.argv[2])
shutil.copytree(sys.argv[1], Path(sys.argv[2], "vendored", "flashkat_lite"))
vendored = importlib.import_module("vendored.flashkat_lite")
if HAS_TRITON:
    importlib.import_module("vendored.flashkat_lite.doctor").check_interpreter()
(ours,), (theirs,) = use(flashkat_lite), use(vendored)
assert ours == "flashkat_lite.rational.default" and theirs.startswith("vendored_flashkat_lite_")
assert isinstance(hub.GRKAN(8), hub.GRKAN) and not isinstance(hub.GRKAN(8), flashkat_lite.GRKAN)
"""


def test_copies_under_other_names_work_alone_and_beside_the_package_each_with_ops_of_its_own(root, tmp_path):
    hub.lay_out(tmp_path / "hub", {})
    folder = tmp_path / "hub" / "torch-ext" / "flashkat_lite"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, "-c", CODE, str(folder), str(tmp_path)]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["flashkat_lite", "_flashkat_lite_cuda_7a4e5a7", "copy2"])
def test_the_ops_namespace_is_the_name_that_the_package_was_imported_under(name):
    assert _torch.namespace(name) == name


def test_names_that_are_no_identifiers_have_namespaces_that_are_and_that_differ():
    names = ["a.b", "a_b", "a-b", "a.b.c", "a.b_c", "3a", "_3a"]
    found = [_torch.namespace(name) for name in names]
    assert all(name.isidentifier() for name in found) and len(set(found)) == len(names)
