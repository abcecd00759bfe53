"""The effective configuration: _config.yml plus what depends on the machine and on the repository's address."""

import base64
import hashlib
import re

import pytest
import yaml

from tools.address import repository
from tools.site import vendor
from tools.site.build import effective_config, site


@pytest.fixture
def base(root):
    return yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))


def urls(config):
    """All addresses in a configuration."""
    return [word for word in str(config).replace("'", " ").split() if "://" in word]


def test_without_an_address_nothing_links_to_a_repository(base):
    config = effective_config(base, {}, vendored=True)
    assert config["repository"] == {"url": ""}
    assert not {"use_repository_button", "use_issues_button", "use_edit_page_button"} & set(config["html"])
    assert "launch_buttons" not in config
    assert "baseurl" not in config["html"]


def test_a_github_address_brings_links_colab_and_the_site(base):
    environ = {"REPO_URL": "https://github.com/owner/book.git/", "REPO_BRANCH": "trunk"}
    config = effective_config(base, environ, vendored=True)
    assert config["repository"] == {"url": "https://github.com/owner/book", "branch": "trunk"}
    assert all(config["html"][f"use_{button}_button"] for button in ("repository", "issues", "edit_page"))
    assert config["launch_buttons"] == {"colab_url": "https://colab.research.google.com"}
    assert config["html"]["baseurl"] == "https://owner.github.io/book/"


def test_another_host_has_links_but_no_colab(base):
    config = effective_config(base, {"REPO_URL": "https://gitlab.com/owner/book"}, vendored=True)
    assert config["repository"]["url"] == "https://gitlab.com/owner/book"
    assert "launch_buttons" not in config
    assert config["html"]["baseurl"] == ""


@pytest.mark.parametrize(
    "environ, address",
    [
        ({}, None),
        ({"REPO_URL": "", "GITHUB_REPOSITORY": ""}, None),
        ({"GITHUB_REPOSITORY": "owner/book"}, "https://github.com/owner/book"),
        (
            {"GITHUB_REPOSITORY": "owner/book", "GITHUB_SERVER_URL": "https://git.company.net"},
            "https://git.company.net/owner/book",
        ),
        ({"REPO_URL": "https://a.net/b", "GITHUB_REPOSITORY": "owner/book"}, "https://a.net/b"),
    ],
)
def test_the_address_comes_from_the_environment(environ, address):
    assert repository(environ) == address


def test_a_user_site_has_no_folder_and_site_url_has_the_last_word():
    assert site("https://github.com/Owner/owner.github.io", {}) == "https://owner.github.io/"
    assert site("https://github.com/owner/book", {"SITE_URL": "https://book.net"}) == "https://book.net/"


def test_vendored_scripts_leave_no_address_of_a_third_party(base):
    assert not urls(effective_config(base, {}, vendored=True))


def test_without_npm_formulas_are_the_work_of_a_pinned_script_from_the_cdn(base):
    config = effective_config(base, {}, vendored=False)
    assert config["sphinx"]["config"]["html_math_renderer"] == "mathjax"
    assert re.search(r"/mathjax@\d+\.\d+\.\d+/", " ".join(urls(config)))
    assert "html_extra_path" not in config["sphinx"]["config"]
    assert effective_config(base, {}, vendored=True)["sphinx"]["config"]["html_math_renderer"] == "katex"


def test_the_overlay_leaves_the_base_alone(base, root):
    effective_config(base, {"REPO_URL": "https://github.com/owner/book"}, vendored=True)
    assert base == yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))


def test_a_missing_npm_is_said_in_one_line(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    assert vendor.vendor() is False
    assert capsys.readouterr().out.count("\n") == 1


def test_an_archive_that_differs_is_refused(tmp_path):
    archive = tmp_path / "package.tgz"
    archive.write_bytes(b"what was pinned")
    pin = "sha512-" + base64.b64encode(hashlib.sha512(b"what was pinned").digest()).decode()
    package = vendor.Package("package", "1.0.0", pin, ())
    vendor.verify(archive, package)
    archive.write_bytes(b"what was pinned, and more")
    with pytest.raises(vendor.IntegrityError, match=r"package@1\.0\.0"):
        vendor.verify(archive, package)
