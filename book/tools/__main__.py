"""`python book/tools NAME …`, from any folder, runs a tool; without a name it lists them."""

import ast
import importlib
import runpy
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# Without this folder, where `site` would stand for Python's own.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != HERE]


def tools() -> dict[str, Path]:
    """The files that can be run, by name: those with a main()."""
    paths = sorted({*HERE.glob("[a-z]*.py"), *HERE.glob("*/[a-z]*.py")}, key=lambda path: (path.parent, path.name))
    return {path.stem: path for path in paths if "\ndef main(" in path.read_text(encoding="utf-8")}


def why(path: Path) -> str:
    """The first paragraph of a tool's docstring, in one line."""
    return " ".join(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).partition("\n\n")[0].split())


def main() -> object:
    # By its path: importing the package imports PyTorch, which not every tool needs.
    runpy.run_path(str(ROOT / "flashkat_lite" / "console.py"))["prepare"]()
    name, known = (sys.argv[1:] or ["--help"])[0], tools()
    if name in known:
        root = place_to_work()
        sys.path[:0] = [str(root / "book"), str(root)]
        sys.argv = [f"{sys.argv[0]} {name}", *sys.argv[2:]]
        module = importlib.import_module(".".join(["tools", *known[name].relative_to(HERE).with_suffix("").parts]))
        module.__doc__ = module.__doc__ or why(known[name])  # with -OO there is none
        return module.main()
    print("python book/tools NAME …", *(f"{tool:<12} {why(path)}" for tool, path in known.items()), sep="\n")
    return 0 if name in ("-h", "--help") else f"there is no tool {name!r}"


def place_to_work() -> Path:
    """This clone or, where it cannot be written to, a copy of it, which is named."""
    paths = runpy.run_path(str(HERE / "paths.py"))
    place = paths["unwritable"]()
    if place is None:
        return ROOT
    copy = paths["own_copy"]()
    print(f"{place} cannot be written to: working on a copy, in {copy}", file=sys.stderr, flush=True)
    return copy


if __name__ == "__main__":
    sys.exit(main())
