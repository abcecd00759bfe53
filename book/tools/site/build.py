"""Build the pages: `make book`. Executes nothing, warns about nothing, asks no third party where npm is at hand.

The effective configuration is _config.yml plus what depends on the machine: vendored scripts, and, where the
repository's address is known (../address.py), the links that need one.
"""

import copy
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import distributions
from pathlib import Path

import yaml

from .. import WITHOUT_IT, notebooks
from ..address import branch, repository
from ..notebooks.claims import write_claims_page
from ..notebooks.status import write_status_page
from ..paths import BUILD, ROOT
from .compilers_page import write_compilers_page
from .records_page import write_records_page
from .sizes_page import write_sizes_page
from .vendor import vendor

HTML = BUILD / "html"
LOG = BUILD / "build.log"
BUILT = HTML / ".built"
INPUTS = (
    "_config.yml",
    "_toc.yml",
    "book",
    "chapters",
    "flashkat_lite",
)
NO_INPUTS = ("__pycache__", ".ipynb_checkpoints", "data")


def site(address: str, environ: Mapping[str, str]) -> str:
    """Where the pages will be served: SITE_URL, or GitHub Pages' address of a GitHub repository, or nothing."""
    if environ.get("SITE_URL"):
        return environ["SITE_URL"].rstrip("/") + "/"
    on_github = re.fullmatch(r"https://github\.com/([^/]+)/([^/]+)", address)
    if not on_github:
        return ""
    owner, name = on_github.groups()
    host = f"{owner.lower()}.github.io"
    return f"https://{host}/" if name.lower() == host else f"https://{host}/{name}/"


def effective_config(base: dict, environ: Mapping[str, str], vendored: bool) -> dict:
    """_config.yml's content with the vendored scripts and the repository's links laid over it."""
    config = copy.deepcopy(base)
    config["sphinx"]["local_extensions"] = {
        name: str(ROOT / folder) for name, folder in base["sphinx"]["local_extensions"].items()
    }
    if vendored:
        config["sphinx"]["config"] |= {
            "html_extra_path": ["book/extra"],
            "html_math_renderer": "katex",
            "mathjax_path": "",
        }
    address = repository(environ)
    if address:
        config["repository"] = {"url": address, "branch": branch(environ)}
        config["html"] |= {
            "use_repository_button": True,
            "use_issues_button": True,
            "use_edit_page_button": True,
            "baseurl": site(address, environ),
        }
        if address.startswith("https://github.com/"):
            config["launch_buttons"] = {"colab_url": "https://colab.research.google.com"}
    else:
        config["repository"] = {"url": ""}
    return config


def inputs(root: Path = ROOT) -> Iterator[Path]:
    """All files that a page can depend on, in order."""
    for name in INPUTS:
        path = root / name
        yield from [path] if path.is_file() else notebooks.files(path, without=NO_INPUTS)


def fingerprint(config: str) -> str:
    """A hash of the effective configuration, the installed packages, and the inputs' names and contents."""
    packages = sorted(f"{d.name} {d.version}" for d in distributions())
    digest = hashlib.sha256("\n".join([config, *packages]).encode())
    for path in inputs():
        digest.update(f"\n{path.relative_to(ROOT)}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def run_jupyter_book(config: Path) -> None:
    """Run Jupyter Book with its thousand lines in a log; on failure, print those that matter and exit."""
    # For each citation pybtex asks for its plugins anew, of all packages there are; and of what is read for the pages
    # hardly anything can go before the end, so that to look for it again and again is in vain.
    asked_once = "import functools, importlib.metadata as m; m.entry_points = functools.cache(m.entry_points); "
    asked_once += "import gc; gc.set_threshold(200_000, 20, 100); "
    command = [
        sys.executable,
        "-c",
        f"{WITHOUT_IT}{asked_once}from jupyter_book.cli.main import main; main()",
        "build",
        ".",
        "--config",
        str(config),
    ]
    command += ["--path-output", ".", "-W", "-n", "--keep-going"]
    environ = os.environ | {"PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", errors="replace", env=environ)
    said = re.sub(r"\x1b\[[\d;]*m", "", done.stdout + done.stderr)
    LOG.write_text(said, encoding="utf-8")
    if done.returncode:
        lines = said.splitlines()
        telling = [line for line in lines if re.search(r"WARNING|ERROR|CRITICAL|[Ee]xception|Error:", line)]
        print(*(dict.fromkeys(telling) or lines[-20:]), sep="\n")
        sys.exit(f"The book did not build; everything that Sphinx said is in {LOG.relative_to(ROOT)}")


def main() -> None:
    os.chdir(ROOT)
    BUILD.mkdir(exist_ok=True)
    write_status_page()
    write_claims_page()
    write_records_page()
    write_sizes_page()
    write_compilers_page()
    vendored = vendor()
    base = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    config = yaml.safe_dump(effective_config(base, os.environ, vendored), sort_keys=False)
    now = fingerprint(config)
    if BUILT.exists() and BUILT.read_text(encoding="utf-8") == now:
        print("Nothing has changed since the last build.")
    else:
        # All or nothing: each page carries the titles of all, and a warning about a page is only given when it is read.
        started = time.monotonic()
        print("Building the pages …", flush=True)
        for stale in (HTML, BUILD / ".doctrees", BUILD / "jupyter_execute"):
            shutil.rmtree(stale, ignore_errors=True)
        (BUILD / "config.yml").write_text(config, encoding="utf-8")
        run_jupyter_book(BUILD / "config.yml")
        BUILT.write_text(now, encoding="utf-8")
        pages = len(list(notebooks.files(HTML, "*.html", without=("_static",))))
        print(f"{pages} pages in {time.monotonic() - started:.0f} s")
    print(HTML / "index.html")
