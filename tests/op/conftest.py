import pytest
import torch

pytest.register_assert_rewrite("cases")

from cases import DEVICES  # noqa: E402


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@pytest.fixture
def compiled_afresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
