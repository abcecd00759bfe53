"""Where kernels run: chosen when this is imported, before Triton is."""

import contextlib
import importlib.util
import os
import sys
from typing import TypeVar

import torch
from IPython.display import HTML, display

from flashkat_lite import _interpreter
from flashkat_lite._torch import interpreted

T = TypeVar("T")

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"


def note(html: str) -> None:
    """Show one quiet line in a notebook and in the built page."""
    display(HTML(f'<p class="fk-note">{html}</p>'))


def pick(*, gpu: T, cpu: T) -> T:
    """Return `gpu` where there is a CUDA device, else `cpu`: how a cell says both of its sizes."""
    return gpu if GPU else cpu


def _set_up() -> None:
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # as all compilers did that the measurements come from
    if GPU and importlib.util.find_spec("triton") is None:
        advice = "<code>pip install triton-windows</code>" if os.name == "nt" else "install it"
        note(f"A {torch.cuda.get_device_name()}, but no Triton: kernel cells do not run. For them {advice}.")
    elif GPU:
        note(f"Kernels run on this machine's {torch.cuda.get_device_name()}.")
    elif importlib.util.find_spec("triton") is None and _interpreter.folder() is None:
        note(
            "No CUDA device, and no Triton here: everything reads, PyTorch cells run, kernel cells do not. In a clone "
            "<code>python book/tools standin</code> fetches what they need."
        )
    elif "triton" in sys.modules and not interpreted():
        note("No CUDA device, and Triton was imported before <code>flashkat_lite.lab</code>: restart the kernel.")
    else:
        os.environ["TRITON_INTERPRET"] = "1"
        standing_in = False
        with contextlib.suppress(ImportError):  # of a Triton that does not load: what needs it will say so
            standing_in = _interpreter.prepare()
        how = ", with a stand-in for its compiled part" if standing_in else ""
        note(f"No CUDA device: kernels run in Triton's interpreter{how}, at small sizes; timings are recorded ones.")


_set_up()
