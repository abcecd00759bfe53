"""Where kernels run: chosen when this is imported, before Triton is."""

import contextlib
import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Mapping, MutableMapping
from typing import TypeVar

import torch
from IPython import get_ipython
from IPython.display import HTML, display

from flashkat_lite import _interpreter, console, hardware, inspection
from flashkat_lite._torch import interpreted

from . import ahead

T = TypeVar("T")
CHOSEN = "FLASHKAT_DEVICE"  # cpu: kernels are interpreted, though there is a GPU


def choose(environ: MutableMapping[str, str] = os.environ) -> None:
    """Hide every GPU from this process and its children if FLASHKAT_DEVICE is cpu: before anything asks for one.

    Raises ValueError where it is neither cpu nor cuda.
    """
    said = environ.get(CHOSEN, "").strip().lower()
    if said not in ("", "cpu", "cuda"):
        raise ValueError(f"{CHOSEN}={said!r}: expected cpu or cuda")
    if said == "cpu":
        environ.update(CUDA_VISIBLE_DEVICES="", HIP_VISIBLE_DEVICES="")


choose()
GPU = torch.cuda.is_available()
if GPU and os.environ.get(CHOSEN, "").strip().lower() == "cpu":
    raise RuntimeError(f"{CHOSEN}=cpu came too late: import lab before anything that uses the GPU")
DEVICE = "cuda" if GPU else "cpu"
CAP = "FLASHKAT_GPU_MEMORY"  # GB: chapters take no more, whatever the GPU has
SLOW = 300  # GB/s: on a GPU below that, sizes are small too. A T4 has 320, an L4 300


def cap(environ: Mapping[str, str] = os.environ) -> float | None:
    """Return the GB of GPU memory that FLASHKAT_GPU_MEMORY allows; None where it is not set.

    Raises ValueError where it is no number of GB above zero.
    """
    said = environ.get(CAP, "").strip()
    if not said:
        return None
    with contextlib.suppress(ValueError):
        if 0 < float(said) < float("inf"):
            return float(said)
    raise ValueError(f"{CAP}={said!r}: expected GB of GPU memory, such as 7.5")


def memory_gb() -> float:
    """Return the GB (1e9 bytes) of GPU memory that chapters may take, 0 without a GPU."""
    facts = hardware.device()
    return min(facts.memory_bytes / 1e9, cap() or float("inf")) if facts else 0.0


def bandwidth() -> float | None:
    """Return the GPU memory's GB/s, by its datasheet or by the driver's clock and width; None where neither tells."""
    facts = hardware.device()
    if facts is None or facts.datasheet_bandwidth:
        return facts and facts.datasheet_bandwidth / 1e9
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    khz, bits = (getattr(found, name, 0) for name in ("memory_clock_rate", "memory_bus_width"))
    return 2 * khz * bits / 8e6 or None  # two transfers a clock


_turn = []  # an open file: whoever locks it has the GPU
IMPORTS = "matplotlib.pyplot", "ipywidgets", "sklearn.datasets", "sympy", "torch.utils.flop_counter", "triton"
IMPORTS += "torch._dynamo", "torch._inductor.compile_fx"


def _wait_for_turn(turn: str) -> None:
    """Wait until no other process holds the file `turn`: `make execute` starts a chapter while another has the GPU.

    What needs no GPU is done meanwhile: imports, and the start of the processes that check and compile, which wait in
    turn until something is `asked` of them.
    """
    for name in IMPORTS:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    with contextlib.suppress(ImportError, AttributeError):  # a hash of all of Triton, kept for this process
        importlib.import_module("triton.runtime.cache").triton_key()
    if turn == ahead.ASKED:
        import select

        select.select([sys.stdin], [], [])
        if not sys.stdin.buffer.peek(1):  # nothing will be
            sys.exit()
        return
    import fcntl

    for kind in ahead.KINDS:
        ahead.process(kind, asleep=True)
    inspection.start_compilers(min(inspection.CORES, 8))
    _turn.append(open(turn, "ab"))  # noqa: SIM115, held until this process ends
    fcntl.flock(_turn[-1], fcntl.LOCK_EX)


def _prepare() -> None:
    """Do what comes before anything that opens the GPU, imports Triton or draws."""
    console.settle()
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # as all compilers did that the measurements come from
    if os.environ.get("FLASHKAT_TELL_MEMORY"):
        _tell_memory(os.environ.pop("FLASHKAT_TELL_MEMORY"))
    turn = os.environ.pop("FLASHKAT_TURN", None)
    if GPU and turn:
        _wait_for_turn(turn)


def _half() -> torch.dtype:
    return torch.float16 if GPU and not torch.cuda.is_bf16_supported(including_emulation=False) else torch.bfloat16


def note(html: str) -> None:
    """Show one quiet line in a notebook and in the built page."""
    display(HTML(f'<p class="fk-note">{html}</p>'))


def pick(*, gpu: T, cpu: T, small: T | None = None, gb: float = 0.0) -> T:
    """Return the one that this machine can take: how a cell says its sizes.

    gpu: on a GPU; small: on one with less memory than `gb`, which is what the cell takes at the size `gpu`, or with
    less than 300 GB/s; then a line says so. cpu: where there is none.
    """
    if not GPU:
        return cpu
    slow = (bandwidth() or SLOW) < SLOW
    if small is None or not (memory_gb() < gb or slow):
        return gpu
    if (gpu, small) not in _told:
        _told.append((gpu, small))
        why = f"its memory gives {bandwidth():.0f} GB/s" if slow else f"{gb:g} GB are needed, {memory_gb():.1f} there"
        note(f"On this GPU {_said(small)} in place of {_said(gpu)}: {why}.")
    return small


_told: list[tuple] = []


def _said(size: object) -> str:
    return f"{size:,}" if isinstance(size, int) else str(size)


def _tell_memory(path: str) -> None:
    """After each cell, write the most GPU memory that tensors took so far, for `make execute`."""

    def tell(*_) -> None:
        told = {"peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 3)}
        told |= {"memory_gb": round(memory_gb(), 3)} if cap() else {}
        with open(path, "w", encoding="utf-8") as file:
            json.dump(told, file)

    if GPU and get_ipython():
        get_ipython().events.register("post_run_cell", tell)


def _set_up() -> None:
    if GPU and importlib.util.find_spec("triton") is None:
        advice = "<code>pip install triton-windows</code>" if os.name == "nt" else "install it"
        note(f"A {torch.cuda.get_device_name()}, but no Triton: kernel cells do not run. For them {advice}.")
    elif GPU:
        limit = cap()
        if limit and limit * 1e9 < hardware.device().memory_bytes:
            torch.cuda.set_per_process_memory_fraction(limit * 1e9 / hardware.device().memory_bytes)
        only = f", in {limit:g} GB of its memory" if limit else ""
        note(f"Kernels run on this machine's {torch.cuda.get_device_name()}{only}.")
        if HALF is not torch.bfloat16:
            note(
                "It does no arithmetic in bfloat16. Our kernels only read and write it, and work as everywhere; models "
                "multiply their matrices in float16 instead."
            )
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


_prepare()
HALF = _half()  # what models multiply matrices in
_set_up()
