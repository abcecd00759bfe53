"""What typesets formulas and the fonts that the pages need, fetched once from the npm registry into book/extra/vendor.

With them a built page asks no third party for a byte. Each package is pinned to a version and to the sha512 of its
archive; an archive that differs is refused.
"""

import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ..paths import ROOT

VENDOR = ROOT / "book" / "extra" / "vendor"


@dataclass(frozen=True)
class Package:
    """An npm package; `keep` maps prefixes of the paths in its archive to folders below the vendor folder."""

    name: str
    version: str
    integrity: str
    keep: tuple[tuple[str, str], ...]


FONTS = ("Main-Regular", "Main-Bold", "Main-Italic", "Math-Italic", "Math-BoldItalic", "AMS-Regular")
FONTS += ("Caligraphic-Regular", "Script-Regular", *(f"Size{size}-Regular" for size in range(1, 5)))
PACKAGES = (
    Package(
        "katex",
        "0.19.1",
        "sha512-jG8uKntjSEcm2EpQOh0XturpPuuC9r3Sq5HLHdsFdWZT27E672SF19QEi+of0/YeOy15lDgRhKvr5614uRrEfA==",
        (
            ("package/dist/katex.min.js", "katex"),  # the build's; no page loads it
            ("package/dist/katex.min.css", "katex"),
            *((f"package/dist/fonts/KaTeX_{name}.woff2", "katex/fonts") for name in FONTS),
            ("package/LICENSE", "katex"),
        ),
    ),
    Package(
        "@fontsource-variable/inter",
        "5.3.0",
        "sha512-OupL48va4JNofb97w6NYeF9S7W/kHNKM0Er8Dem5nqi4jeOLrVJDoE8tZEpnMJmtkvNbB1EIPPwHcdkF6b1oUA==",
        (("package/files/inter-latin-wght-normal.woff2", "inter"), ("package/LICENSE", "inter")),
    ),
    Package(
        "@fontsource-variable/source-serif-4",
        "5.3.1",
        "sha512-4Rtay22SC4lMvw11r/+9kxANB6P3M0X8s1NudBC2v0J1KU2y3DcMoNcT3lBoZ/CqLirzf+StlO6UlJilyrvaUg==",
        (
            ("package/files/source-serif-4-latin-wght-normal.woff2", "source-serif-4"),
            ("package/files/source-serif-4-latin-wght-italic.woff2", "source-serif-4"),
            ("package/LICENSE", "source-serif-4"),
        ),
    ),
)


class IntegrityError(Exception):
    """An archive is not the one that was pinned."""


def verify(archive: Path, package: Package) -> None:
    """Raise IntegrityError unless the archive's sha512 is the package's."""
    found = "sha512-" + base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if found != package.integrity:
        raise IntegrityError(
            f"{package.name}@{package.version} is not the archive that book/tools/site/vendor.py pins:\n"
            f"  pinned {package.integrity}\n  found  {found}"
        )


def unpack(archive: Path, package: Package, into: Path) -> None:
    """Extract what the package keeps: a prefix that ends in / is a folder, any other a file."""
    with tarfile.open(archive) as tar:
        for member in tar:
            for prefix, folder in package.keep:
                if member.isfile() and member.name.startswith(prefix):
                    name = member.name.removeprefix(prefix) or Path(prefix).name
                    target = into / folder / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(tar.extractfile(member).read())


def download(package: Package, into: Path) -> Path:
    """`npm pack` the package and verify it; returns the archive's path."""
    command = ["npm", "pack", "--silent", "--ignore-scripts", f"{package.name}@{package.version}"]
    done = subprocess.run(command, cwd=into, check=True, capture_output=True, encoding="utf-8", errors="replace")
    archive = into / done.stdout.split()[-1]
    verify(archive, package)
    return archive


def fetch(packages: tuple[Package, ...], into: Path) -> None:
    """Bring the packages to the folder `into`, unless exactly these are there already."""
    pins = hashlib.sha256(repr(packages).encode()).hexdigest()
    stamp = into / ".pins"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == pins:
        return
    into.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into.parent, prefix=".fetch-") as work:
        fresh = Path(work) / "unpacked"
        for package in packages:
            unpack(download(package, Path(work)), package, fresh)
        (fresh / ".pins").write_text(pins, encoding="utf-8")
        shutil.rmtree(into, ignore_errors=True)
        fresh.rename(into)


def vendor() -> bool:
    """Fetch what pages need; False, with one line that says why, where they cannot be had."""
    if shutil.which("npm") is None:
        print("npm is missing: the pages will load MathJax from a CDN. On Debian: apt install npm")
        return False
    try:
        fetch(PACKAGES, VENDOR)
    except subprocess.CalledProcessError as error:
        reason = (error.stderr or error.stdout).strip().splitlines()[-1:]
        print("npm could not fetch KaTeX and the fonts: the pages will load MathJax from a CDN.", *reason)
        return False
    return True


def main() -> int:
    return 0 if vendor() else 1
