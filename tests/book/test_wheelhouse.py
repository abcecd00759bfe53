"""The wheels for a machine without a network: all that Jupyter needs there, nothing that it has."""

from tools.measure import wheelhouse


def names(python_version="3.12", machine="x86_64"):
    return set(wheelhouse.closure(wheelhouse.WANTED, wheelhouse.target(python_version, machine), wheelhouse.THERE))


def test_the_closure_reaches_what_is_needed_at_third_hand():
    assert {*wheelhouse.WANTED, "pytest", "ipython", "pyzmq", "platformdirs", "nest-asyncio2"} <= names()


def test_what_such_a_machine_has_is_left_out():
    assert not wheelhouse.THERE & names()


def test_markers_are_those_of_the_target():
    assert not {"colorama", "appnope", "pywin32"} & names()
    assert names("3.10") - names("3.12") >= {"exceptiongroup", "tomli"}


def test_every_wheel_for_the_default_target_is_pinned(root):
    assert names() <= set(wheelhouse.pins((root / "requirements.txt").read_text(encoding="utf-8")))
