"""The book is built once for all workers, by the real `build`, and served to a real browser."""

import functools
import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import triton_first  # noqa: F401
from filelock import FileLock

from flashkat_lite.doctor import chromium
from tools import notebooks

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "book" / "theme"))
ADDRESSES = ("REPO_URL", "REPO_BRANCH", "SITE_URL", "GITHUB_REPOSITORY", "GITHUB_REF_NAME", "GITHUB_SERVER_URL")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="session")
def build_book():
    """Runs a tree's `build` without a repository's address; returns the finished process."""

    def build(root, environ=os.environ):
        environ = {name: value for name, value in environ.items() if name not in ADDRESSES}
        command = [sys.executable, str(root / "book" / "tools"), "build"]
        return subprocess.run(command, capture_output=True, encoding="utf-8", env=environ)

    return build


@pytest.fixture(scope="session")
def html(root, build_book, shared):
    """The folder of built pages."""
    (root / "_build").mkdir(exist_ok=True)
    with FileLock(root / "_build" / ".test.lock"):
        if not (shared / "html.built").exists():
            done = build_book(root)
            assert done.returncode == 0, done.stdout + done.stderr
            (shared / "html.built").touch()
    return root / "_build" / "html"


@pytest.fixture(scope="session")
def built(html):
    """The built pages; not the theme's templates, which also end in .html."""
    return list(notebooks.files(html, "*.html", without=("_static",)))


@pytest.fixture(scope="session")
def serve():
    """Serves a folder on localhost; returns its address."""
    servers = []

    def start(folder):
        handler = functools.partial(Quiet, directory=str(folder))
        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/"

    yield start
    for server in servers:
        server.shutdown()


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium. FLASHKAT_REQUIRE_BROWSER=1 makes its absence a failure."""
    path = chromium()
    if path is None:
        if os.environ.get("FLASHKAT_REQUIRE_BROWSER"):
            pytest.fail("Chromium is required here and missing: apt install chromium")
        pytest.skip("Chromium is missing: apt install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        running = playwright.chromium.launch(executable_path=path, args=options)
        yield running
        running.close()
