"""With a GPU the interpreter's check runs in a process beside; here it is asked as a GPU's check would ask it."""

import types
from unittest import mock

import beside_answers as answers
import pytest
import torch

from flashkat_lite.kernels import INTERPRETED
from flashkat_lite.lab import ahead
from flashkat_lite.lab.exercises import beside, common, kernels, right
from flashkat_lite.lab.exercises.common import Wrong

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="make test runs these in a process of their own")


@pytest.fixture(scope="module", autouse=True)
def end():
    yield
    ahead.close()


def test_a_right_answer_is_counted_beside_with_all_that_its_cell_has():
    assert beside.judged("09-3", (answers.column_sums,), clock=False) == "column sums, summed in the program first"


def test_a_process_that_was_started_ahead_answers_when_it_is_asked():
    ahead.close()
    for kind in ahead.KINDS:
        ahead.process(kind, asleep=True)
    beside.start()
    said = beside.judged("09-3", (answers.column_sums,), clock=False)
    assert said == "column sums, summed in the program first"


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
    monkeypatch.setattr(beside, "Process", lambda kind: asked.append(kind) or mock.Mock())
    yield asked
    common.state.begin()


def test_on_a_gpu_plain_pytorch_is_refused_since_nothing_is_launched(gpu):
    with pytest.raises(Wrong, match="expected a Triton kernel, got none: nothing was launched by Triton"):
        right("09-3", answers.by_pytorch)
    assert gpu == ["interpreter", "clock"]


def test_on_a_gpu_what_launches_kernels_is_counted_and_timed_in_other_processes(gpu, monkeypatch):
    monkeypatch.setattr(kernels, "launched", lambda f, *arguments: 1)
    assert right("09-3", answers.column_sums) == "counted"
    *started, last = gpu
    assert {*started} == {"interpreter", "clock"} and last == (("09-3", (answers.column_sums,)), {"clock": True})


def test_a_process_that_checks_beside_starts_none_of_its_own(gpu, monkeypatch):
    monkeypatch.setattr(kernels, "launched", lambda f, *arguments: 1)
    monkeypatch.setattr(common.state, "here", True)
    monkeypatch.setattr(common, "measured", lambda *given: "timed")
    assert right("09-3", answers.column_sums) != "counted" and gpu == []
    common.speeds.clear()


def test_launches_are_counted_by_tritons_own_hook():
    from triton import knobs

    def f(times):
        for _ in range(times):
            knobs.runtime.launch_enter_hook(types.SimpleNamespace(name="kernel"))

    assert (kernels.launched(f, 3), kernels.launched(torch.ones, 3)) == (3, 0)


def test_fewer_launches_on_the_gpu_than_in_the_interpreter_are_refused_and_more_are_not(monkeypatch):
    counted = {"right": "counted", "launches": [2, 1]}
    monkeypatch.setattr(beside, "Process", lambda kind: lambda *asked: counted)
    for launches in ([2, 1], [9, 1], [1], []):  # an autotuned kernel is launched more often
        common.state.launches[:] = launches
        assert beside.judged("09-3", (answers.column_sums,), clock=False) == "counted"
    common.state.launches[:] = [1, 1]
    with pytest.raises(Wrong, match=r"expected 2 launches of Triton kernels in a call, .* got 1 on the GPU"):
        beside.judged("09-3", (answers.column_sums,), clock=False)
    common.state.begin()


def test_the_sass_of_what_was_launched_is_read_and_where_it_cannot_be_nothing_is_said():
    text = "LDG.E.128 R4, [R2]\n@P0 LDG.E R5, [R2]\nREDG.E.ADD.F32 [R2], R4\nSTG.E [R2], R4\nRED.E [R2]\nLDGDEPBAR"
    good = types.SimpleNamespace(asm={"sass": text}, n_regs=32, n_spills=0)
    common.state.kernels.update(good=good, none=types.SimpleNamespace(asm={}), broken=None)
    (line,) = kernels.sass()
    assert line.startswith("On this GPU good has 32 registers, 0 spills; 2 loads (LDG), 1 stores (STG), 2 atomic")
    common.state.begin()
