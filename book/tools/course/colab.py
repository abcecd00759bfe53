"""`make colab REPO_URL=…`: the chapters get a first code cell that brings the book to Colab and installs its package.

Off Colab the cell does nothing, nor where the package is there already. It is not part of a chapter: pages leave it
out (`remove-cell`) and no stamp counts it.
"""

import os
import sys

import nbformat

from .. import notebooks
from ..address import branch, repository

CELL = """# On Colab, once: clone the book and install its package. Elsewhere this does nothing.
import importlib.util
import subprocess
import sys
from pathlib import Path

if "google.colab" in sys.modules and importlib.util.find_spec("flashkat_lite") is None:
    folder = Path("flashkat").resolve()
    if not folder.exists():
        subprocess.run(["git", "clone", "--quiet", "--depth=1", "--branch={branch}", "{address}", folder], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--editable", f"{{folder}}[lab]"], check=True)
    sys.path.insert(0, str(folder))  # this process started before the package was installed"""


def address(environ=os.environ):
    """The repository's address and branch, as `make book` knows them; None without an address."""
    found = repository(environ)
    return found and (found, branch(environ))


def with_cell(notebook, address, branch):
    """A copy of the notebook whose first code cell is this one; an older one is replaced."""
    notebook = nbformat.from_dict(notebook)
    notebook.cells = [cell for cell in notebook.cells if notebooks.COLAB not in notebooks.tags(cell)]
    first = next(number for number, cell in enumerate(notebook.cells) if cell.cell_type == "code")
    source = CELL.format(address=address, branch=branch)
    made = nbformat.v4.new_code_cell(source, id="colab", metadata={"tags": [notebooks.COLAB, "remove-cell"]})
    notebook.cells.insert(first, made)
    return notebook


def main():
    where = address()
    if not where:
        sys.exit(
            "Say where the repository is, in pyproject.toml or by make colab REPO_URL=https://github.com/owner/name"
        )
    for path in notebooks.select([]):
        notebooks.write(with_cell(notebooks.read(path), *where), path)
    print(f"The chapters begin with a cell that clones {where[0]}, branch {where[1]}.")
