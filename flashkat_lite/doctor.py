"""`python -m flashkat_lite doctor`: what this machine can run, and what to do about what it cannot."""

import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from . import _interpreter, console, hardware, ops, records
from .reference import rational_gradients, rational_reference
from .testing import check_kernels, random_inputs

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "/usr/lib/chromium/chromium")
NPM_ADVICE = "install Node.js to build pages that ask no third party; without it they use a CDN"


@dataclass(frozen=True)
class Finding:
    """One line: status is "ok", "missing" (something is done without it) or "broken"; advice is for the last two."""

    name: str
    status: str
    value: str
    advice: str = ""


def doctor(as_json: bool = False, optional: bool = False) -> int:
    """Print what works here, or what is missing of `optional_tools`. 1 where the package cannot run at all, that is,
    where its reference does not; else 0.
    """
    found = []
    for finding in optional_tools() if optional else findings():
        found.append(finding)
        if not as_json:
            mark = {"ok": "ok", "missing": "--", "broken": "!!"}[finding.status]
            print(f" {mark}  {finding.name:<16} {finding.value}", flush=True)
            if finding.advice:
                print(f"     {'':<16} -> {finding.advice}", flush=True)
    if as_json:
        print(json.dumps(hardware.provenance() | {"findings": [asdict(finding) for finding in found]}, indent=1))
    return int(any(f.name == "reference" and f.status == "broken" for f in found))


def findings() -> Iterator[Finding]:
    versions = hardware.versions()
    yield Finding("Python", "ok", f"{versions['python']} on {platform.system()} {platform.machine()}")
    yield _torch(versions["torch"])
    yield _triton(versions["triton"])
    yield _outcome("reference", check_reference, "agrees with autograd", "the package cannot run: reinstall PyTorch")
    yield from _gpu(hardware.device(), versions["triton"])
    if Path.home().name.startswith(console.LENT):
        advice = "set HOME to a folder of yours; until then each program compiles its kernels anew"
        yield Finding("home", "missing", "none that can be written to", advice)
    if records.in_clone():
        yield _ncu()
        yield _tool("make", "install it (Debian: apt install make) or run the Makefile's commands by hand")
        yield _tool("npm", NPM_ADVICE)
        yield _chromium()


def _torch(version: str) -> Finding:
    if tuple(int(part) for part in version.split(".")[:2]) < (2, 11):
        return Finding("PyTorch", "broken", version, "2.11 or newer is needed: pip install 'torch>=2.11'")
    return Finding("PyTorch", "ok", version)


def _triton(version: str | None) -> Finding:
    if version:
        how = ", its Python files with a stand-in for its compiled module" if _interpreter.folder() else ""
        return Finding("Triton", "ok", version + how)
    system, windows_gpu = platform.system(), platform.system() == "Windows" and torch.cuda.is_available()
    if system == "Linux" or windows_gpu:
        package = "triton-windows" if windows_gpu else "'triton>=3.6'"
        return Finding("Triton", "missing", "not installed", f"pip install {package}; until then the reference runs")
    works, kernels = "the reference works", "use Linux, WSL 2 or a hosted notebook"
    if records.in_clone():
        works, kernels = "the reference and the pages work", "python book/tools standin, once"
    advice = f"nothing to do: {works}; for kernels {kernels}"
    return Finding("Triton", "missing", f"there is none for {system}", advice)


def _outcome(name: str, check: Callable[[], object], value: str, advice: str) -> Finding:
    try:
        check()
    except Exception as error:
        first_line = str(error).strip().split("\n")[0]
        missing = re.search(r"No module named '(\w+)", first_line)
        advice = f"pip install {missing[1]}" if missing else advice
        return Finding(name, "broken", f"{type(error).__name__}: {first_line}", advice)
    return Finding(name, "ok", value)


def check_reference() -> None:
    """Hold the closed-form gradients to autograd's, on the CPU."""
    dy, x, a, b = (t.double().requires_grad_() for t in random_inputs(5, 16, device="cpu"))
    expected = torch.autograd.grad(rational_reference(x, a, b), (x, a, b), dy)
    for found, gradient in zip(rational_gradients(dy, x, a, b), expected):
        torch.testing.assert_close(found, gradient)


def kernels_agree() -> None:
    """Hold all kernels to the reference at a small size."""
    check_kernels(*random_inputs(300, 48), ops.BACKWARDS)


def check_interpreter() -> None:
    """In a process of its own: Triton reads TRITON_INTERPRET when it is imported."""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = console.python("doctor", "kernels_agree()")
    answer = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8")
    if answer.returncode:
        raise RuntimeError(answer.stderr.strip().split("\n")[-1])


def _gpu(facts: hardware.Device | None, triton: str | None) -> Iterator[Finding]:
    if facts is None:
        yield Finding("GPU", "missing", *_why_no_gpu())
        if triton:
            advice = "report it with the output of doctor --json; the reference still runs"
            if records.in_clone():
                advice = "chapters need it here: make test shows the error in full"
            name = "stand-in" if _interpreter.folder() else "interpreter"
            yield _outcome(name, check_interpreter, "runs the kernels, and they agree", advice)
        return
    yield Finding("GPU", "ok", facts.name)
    yield Finding("driver", "ok" if facts.driver else "missing", facts.driver or "unknown: no nvidia-smi")
    yield Finding("capability", "ok", f"{facts.capability}, {facts.multiprocessors} multiprocessors")
    yield Finding("memory", "ok", f"{facts.memory_bytes / 1e9:.1f} GB, L2 cache {facts.l2_bytes / 1e6:.1f} MB")
    yield _outcome_of_copy(facts)
    if _interpreter.folder():
        yield Finding(
            "kernels",
            "missing",
            "are not compiled: there is no Triton for this GPU",
            "on Windows: pip install triton-windows",
        )
    elif triton:
        advice = "the reference still runs: report it with the output of doctor --json"
        yield _outcome("kernels", kernels_agree, "compile, and agree with the reference", advice)


def _why_no_gpu() -> tuple[str, str]:
    without = "without it, kernels run in Triton's interpreter"
    without += ", and timings are recorded ones" if records.in_clone() else " where TRITON_INTERPRET=1 is set"
    if shutil.which("nvidia-smi") is None:
        return "none", f"nothing to do on a laptop: {without}"
    if torch.version.cuda is None:
        return "there, but this PyTorch is a build without CUDA", f"pip install a CUDA build; {without}"
    return "there, but CUDA does not start", f"does nvidia-smi work, and is the driver recent? {without}"


def _outcome_of_copy(facts: hardware.Device) -> Finding:
    measured = hardware.measured_copy_bandwidth()
    value = f"{measured:.0f} GB/s measured"
    if facts.datasheet_bandwidth is None:
        return Finding("copy bandwidth", "ok", value + " (no datasheet figure known)")
    share = measured * 1e9 / facts.datasheet_bandwidth
    value += f", {share:.0%} of the datasheet's {facts.datasheet_bandwidth / 1e9:.0f}"
    low = "less than usual (80 to 93 %): is another process using the GPU?" if share < 0.75 else ""
    return Finding("copy bandwidth", "ok", value, low)


def _ncu() -> Finding:
    path = shutil.which("ncu")
    if path is None:
        advice = "comes with the CUDA toolkit (add its bin to PATH); without it, chapters show recorded counters"
        return Finding("ncu", "missing", "not on the PATH", advice)
    answer = subprocess.run([path, "--version"], capture_output=True, encoding="utf-8")
    version = next((line for line in answer.stdout.splitlines() if line.startswith("Version")), "unknown version")
    if not may_read_counters():
        advice = (
            "sudo, a container with --cap-add SYS_ADMIN, or the driver option NVreg_RestrictProfilingToAdminUsers=0"
        )
        return Finding("ncu", "missing", f"{version}, but counters are for administrators", advice)
    return Finding("ncu", "ok", version)


def may_read_counters(proc: Path = Path("/proc")) -> bool:
    """Whether the driver lets this process read performance counters: all may, or it has CAP_SYS_ADMIN."""
    parameters, status = proc / "driver/nvidia/params", proc / "self/status"
    if not parameters.exists():
        return True
    if "RmProfilingAdminOnly: 1" not in parameters.read_text(encoding="utf-8"):
        return True
    effective = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("CapEff"))
    return bool(int(effective.split()[1], 16) >> 21 & 1)


def _tool(name: str, advice: str) -> Finding:
    path = shutil.which(name)
    return Finding(name, "ok", path) if path else Finding(name, "missing", "not on the PATH", advice)


def chromium() -> str | None:
    """Return the path of a Chromium that the browser tests can drive: FLASHKAT_CHROMIUM, or one in a usual place."""
    return os.environ.get("FLASHKAT_CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)


def _chromium() -> Finding:
    path = chromium()
    advice = "install it (Debian: apt install chromium) or set FLASHKAT_CHROMIUM; without it the pages go untested"
    return Finding("chromium", "ok", path) if path else Finding("chromium", "missing", "not on the PATH", advice)


def optional_tools() -> Iterator[Finding]:
    """What is missing of what a clone's `make test` can do without, the browser and npm, and of Triton."""
    of_clone = (_chromium(), _tool("npm", NPM_ADVICE)) if records.in_clone() else ()
    for finding in (*of_clone, _triton(hardware.versions()["triton"])):
        if finding.status != "ok":
            yield finding
