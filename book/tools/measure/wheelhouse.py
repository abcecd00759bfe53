"""Download to .whl what a GPU machine without a network needs to execute the chapters: `make wheelhouse`.

Such a machine is taken to have its own torch, Triton, NumPy and matplotlib, and no Jupyter. The wheels are those that
requirements.txt pins, for that machine's Python and processor rather than this one's:
`make wheelhouse WHEELHOUSE="--python-version 3.13 --machine aarch64"`. `EXTRA=census` adds what an extra of
pyproject.toml pins, and none of what that asks for: `make wheelhouse EXTRA=census`.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ..paths import ROOT

WHEELS = ROOT / ".whl"
WANTED = ("nbmake", "nbclient", "ipykernel", "ipywidgets")
THERE = {"torch", "triton", "numpy", "matplotlib", "scikit-learn", "scipy", "sympy", "pillow"}
GLIBC = ("manylinux_2_28", "manylinux_2_17", "manylinux2014", "manylinux_2_12", "manylinux2010", "manylinux_2_5")


def target(python_version: str, machine: str) -> dict[str, str]:
    """The marker environment of CPython on Linux."""
    linux = {"os_name": "posix", "sys_platform": "linux", "platform_system": "Linux"}
    cpython = {"platform_python_implementation": "CPython", "implementation_name": "cpython"}
    versions = {"python_version": python_version, "python_full_version": f"{python_version}.0"}
    return {**default_environment(), **linux, **cpython, **versions, "platform_machine": machine}


def closure(wanted: tuple[str, ...], environment: dict[str, str], there: set[str]) -> dict[str, Requirement]:
    """The packages that these need in that environment, by name; those that are there already are left out, with all
    that only they need. What a package asks for is read from its copy in this environment; one that is not installed
    here, because only the target needs it, is taken to ask for nothing."""
    found, waiting = {}, [(Requirement(name), "") for name in wanted]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({**environment, "extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        if name in there or (name in found and not requirement.extras):
            continue
        found.setdefault(name, requirement)
        try:
            needs = [Requirement(line) for line in requires(name) or []]
        except PackageNotFoundError:
            continue
        waiting += [(need, extra) for need in needs for extra in ("", *requirement.extras)]
    return found


def pins(text: str) -> dict[str, str]:
    """The `name==version` lines of a requirements file."""
    return {canonicalize_name(name): version for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.M)}


def extra_of(text: str, name: str) -> list[str]:
    """The `name==version` of an extra of pyproject.toml. KeyError: there is none; ValueError: it pins one loosely."""
    import tomllib

    wanted = tomllib.loads(text)["project"]["optional-dependencies"][name]
    if loose := [one for one in wanted if not re.fullmatch(r"[\w.-]+==[\w.]+", one)]:
        raise ValueError(f"the extra {name} does not pin {', '.join(loose)}")
    return wanted


def download(specifiers: list[str], python_version: str, machine: str, into: Path) -> None:
    """`pip download` of exactly these, as wheels for the target."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python_version]
    for glibc in GLIBC:
        command += ["--platform", f"{glibc}_{machine}"]
    subprocess.run([*command, "--dest", str(into), *specifiers], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python-version", default="3.12", help="of the machine without a network (3.12)")
    parser.add_argument("--machine", default="x86_64", choices=["x86_64", "aarch64"])
    parser.add_argument("--extra", default="", help="of pyproject.toml, whose packages come along")
    options = parser.parse_args([*shlex.split(os.environ.get("WHEELHOUSE", "")), *sys.argv[1:]])

    pinned = pins((ROOT / "requirements.txt").read_text(encoding="utf-8"))
    packages = closure(WANTED, target(options.python_version, options.machine), THERE)
    specifiers = [
        f"{name}=={pinned[name]}" if name in pinned else f"{name}{requirement.specifier}"
        for name, requirement in sorted(packages.items())
    ]
    if options.extra:
        try:
            specifiers += extra_of((ROOT / "pyproject.toml").read_text(encoding="utf-8"), options.extra)
        except (KeyError, ValueError) as error:
            sys.exit(f"EXTRA={options.extra}: {error if isinstance(error, ValueError) else 'there is no such extra'}")
    print(
        f"Downloading {len(specifiers)} wheels for Python {options.python_version}, Linux, {options.machine} …",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as work:
        try:
            download(specifiers, options.python_version, options.machine, Path(work))
        except subprocess.CalledProcessError:
            sys.exit("pip could not download them; .whl is as it was")
        shutil.rmtree(WHEELS, ignore_errors=True)
        shutil.copytree(work, WHEELS)
    size = sum(path.stat().st_size for path in WHEELS.glob("*.whl"))
    print(
        f"{len(list(WHEELS.glob('*.whl')))} wheels, {size / 1e6:.0f} MB, in .whl. Copy this folder to the node; there:"
    )
    print("  python3 -m pip install --no-index --no-deps --target site .whl/*.whl")
    print("  PYTHONPATH=site:. make execute PY=python3")
