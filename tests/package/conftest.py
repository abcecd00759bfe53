import pytest
import triton_first  # noqa: F401


@pytest.fixture
def h200(monkeypatch):
    """Has the package take this machine for one with an H200; returns what is known of it."""
    from flashkat_lite import hardware

    facts = hardware.Device("NVIDIA H200", "h200", "9.0", 132, 2**37, 60 * 2**20, "580.159.04", 4.8e12)
    monkeypatch.setattr(hardware, "device", lambda: facts)
    return facts
