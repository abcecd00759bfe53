"""How much the L2 cache fetches from memory for one sector: a hint that CUDA takes."""

import contextlib
import ctypes
from collections.abc import Iterator

import torch

LIMIT = 5  # CU_LIMIT_MAX_L2_FETCH_GRANULARITY


@contextlib.contextmanager
def fetch_granularity(nbytes: int) -> Iterator[int | None]:
    """Ask for `nbytes` (32, 64 or 128) inside; yield what the driver says is in force, None where none can be asked.

    It is a hint, of this process: hardware may do otherwise. What was in force before is put back.
    """
    driver = None
    if torch.cuda.is_available() and torch.version.hip is None:
        with contextlib.suppress(OSError):
            driver = ctypes.CDLL("libcuda.so.1")
    if driver is None:
        yield None
        return
    torch.cuda.synchronize()  # makes the context, too
    before, now = ctypes.c_size_t(), ctypes.c_size_t()
    driver.cuCtxGetLimit(ctypes.byref(before), LIMIT)
    try:
        driver.cuCtxSetLimit(LIMIT, ctypes.c_size_t(nbytes))
        known = driver.cuCtxGetLimit(ctypes.byref(now), LIMIT) == 0
        yield now.value if known else None
    finally:
        torch.cuda.synchronize()
        driver.cuCtxSetLimit(LIMIT, before)
