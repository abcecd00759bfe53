"""With a GPU the interpreter's check runs in a process beside; here it is asked as a GPU's check would ask it."""

import types

import beside_answers as answers
import pytest
import torch

from flashkat_lite.kernels import INTERPRETED
from flashkat_lite.lab.exercises import beside, common, kernels, right
from flashkat_lite.lab.exercises.common import Wrong

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="make test runs these in a process of their own")


@pytest.fixture(scope="module", autouse=True)
def end():
    yield
    beside._close()


def test_a_right_answer_is_counted_beside_with_all_that_its_cell_has():
    assert beside.judged("09-3", (answers.column_sums,), clock=False) == "column sums, summed in the program first"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (answers.by_pytorch, "in the interpreter, which counts: expected a Triton kernel, got none"),
        (answers.without_mask, "loads outside of dy_ptr.*a missing mask"),
        (answers.too_many, "expected at most 6,144 atomic additions, got 12,288"),
    ],
)
def test_what_no_gpu_tells_is_refused_beside(answer, words):
    with pytest.raises(Wrong, match=words):
        beside.judged("09-3", (answer,), clock=False)


def test_what_has_no_text_is_refused_with_advice():
    for answer in (lambda dy: dy, answers.of_a_tensor, answers.closed(), answers.Called()):
        with pytest.raises(Wrong, match=r"could not be taken to the process that counts .* define functions"):
            beside.text_of((answer,))


@pytest.fixture
def gpu(monkeypatch):
    """A GPU to the checks' eyes, whose kernels are the interpreter's."""
    for module in (common, kernels):
        monkeypatch.setattr(module, "GPU", True)
    asked = []
    monkeypatch.setattr(beside, "judged", lambda *given, **named: asked.append((given, named)) or "counted")
    yield asked
    common.state.counted = common.state.timed = False


def test_on_a_gpu_plain_pytorch_is_refused_since_nothing_is_launched(gpu):
    with pytest.raises(Wrong, match="expected a Triton kernel, got none: nothing was launched by Triton"):
        right("09-3", answers.by_pytorch)
    assert gpu == []


def test_on_a_gpu_what_launches_kernels_is_counted_and_timed_in_other_processes(gpu, monkeypatch):
    monkeypatch.setattr(kernels, "launched", lambda f, *arguments: 1)
    assert right("09-3", answers.column_sums) == "counted"
    assert gpu == [(("09-3", (answers.column_sums,)), {"clock": True})]


def test_launches_are_counted_by_tritons_own_hook():
    from triton import knobs

    def f(times):
        for _ in range(times):
            knobs.runtime.launch_enter_hook(types.SimpleNamespace(name="kernel"))

    assert (kernels.launched(f, 3), kernels.launched(torch.ones, 3)) == (3, 0)
