"""The container: its files agree with each other and with what the pages say, and its steps run as far as they can
where there is no Docker."""

import contextlib
import functools
import json
import os
import re
import shlex
import shutil
import socket
import string
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

import pytest
from filelock import FileLock

from tools.site import vendor

ROOT = Path(__file__).resolve().parents[2]
DEFINITIONS = (".devcontainer/devcontainer.json", ".devcontainer/gpu/devcontainer.json")
PAGES = ("Dockerfile", "README.md", "CONTRIBUTING.md", "book/running.md", "book/teaching.md")
UNSAFE = ("token", "password", "allow-root", "allow_root")
LINTER = tuple(
    vendor.Package(
        name, version, integrity, tuple((f"package/{kept}", f"node_modules/{name}{at}") for kept, at in keep)
    )
    for name, version, integrity, keep in (
        (
            "dockerfile-utils",
            "0.16.3",
            "sha512-BslaqRR6PzCnhu+toDbkVAjq0B0CEgrCltk+enJ/xwCmvAHB1QqpO9QhXVIzMg/iSuD4tzS0Ex9n4Ik5ffI7pA==",
            (("lib/", "/lib"), ("package.json", "")),
        ),
        (
            "dockerfile-ast",
            "0.7.1",
            "sha512-oX/A4I0EhSkGqrFv0YuvPkBUSYp1XiY8O8zAKc8Djglx8ocz+JfOr8gP0ryRMC2myqvDLagmnZaU9ot1vG2ijw==",
            (("lib/", "/lib"), ("package.json", "")),
        ),
        (
            "vscode-languageserver-textdocument",
            "1.0.16",
            "sha512-qeNEuOi9a3qkqRf7Gfez2WL2VwlBTLCNekHBGO9kxPVUp9XuY15yfTJ9jwvOwKI0I2MhUUfZq95NSp+LK1CLQg==",
            (("lib/", "/lib"), ("package.json", "")),
        ),
        (
            "vscode-languageserver-types",
            "3.18.5",
            "sha512-kPd6+JQNz3HMJvjKlqUxERSlZHAntl/aGpsk7ImwIh0ewDKDcjgAEyVSYciPiOJD3ftbK9IrfiqUeTZLSbCizw==",
            (("lib/", "/lib"), ("package.json", "")),
        ),
    )
)
LINT = """
const { validate } = require(process.argv[1] + "/node_modules/dockerfile-utils");
const faults = validate(require("fs").readFileSync(0, "utf8"), { instructionWorkdir: 2, instructionCmdMultiple: 2 });
process.stdout.write(JSON.stringify(faults.map((fault) => fault.message)));
"""
# A Python whose environments are this one's: what is installed into them is written down.
STAND_INS = {
    "apt-get": 'echo "$@" >> {log}\n',
    "python3": '[ "$1 $2" = "-m venv" ] || exec {python} "$@"\n'
    "mkdir -p .venv/bin && cp {folder}/made .venv/bin/python && cp {folder}/lab .venv/bin/jupyter-lab\n",
    "made": '[ "$1 $2" = "-m pip" ] || exec {python} "$@"\necho "$PIP_EXTRA_INDEX_URL" "$@" >> {log}\n',
    "lab": 'exec {python} -m jupyterlab "$@"\n',
}


@dataclass
class Step:
    """An instruction, and what holds where it stands."""

    name: str
    said: str
    user: str
    folder: str
    variables: dict


def parse(text, **arguments):
    """The steps of a Dockerfile; `arguments` are those of --build-arg."""
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    variables = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    user, folder, steps = "root", "/", []
    for line in filter(str.strip, text.splitlines()):
        name, _, said = line.strip().partition(" ")
        if name not in ("RUN", "CMD"):  # their variables are the shell's
            said = string.Template(said.strip()).safe_substitute(variables)
        if name == "ARG":
            key, _, default = said.partition("=")
            variables[key] = arguments.get(key, default)
        elif name == "ENV":
            variables |= dict(word.split("=", 1) for word in shlex.split(said))
        elif name == "USER":
            user = said
        elif name == "WORKDIR":
            folder = said
        steps.append(Step(name, said.strip(), user, folder, dict(variables)))
    return steps


def only(steps, name):
    (step,) = (step for step in steps if step.name == name)
    return step


def copied(step):
    """(options, sources, target) of a COPY."""
    words = shlex.split(step.said)
    options = [word for word in words if word.startswith("--")]
    *sources, target = words[len(options) :]
    return options, sources, target


def ignores(text):
    """Whether a path of the context is left out of it, by the lines of a .dockerignore."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    assert not any(line.startswith("!") for line in lines), "exceptions are not understood here"
    parts = {"**/": "(?:.*/)?", "*": "[^/]*"}
    patterns = [
        "".join(parts.get(part) or re.escape(part) for part in re.split(r"(\*\*/|\*)", line.strip("/")))
        for line in lines
    ]
    matches = re.compile(f"(?:{'|'.join(patterns)})(?:/.*)?").fullmatch
    return lambda path: bool(matches(path))


def targets(read):
    return {*re.findall(r"^([.a-z/-]+):", read("Makefile"), re.MULTILINE)}


def commented(text):
    """JSON with comments, as development containers have it."""
    return json.loads(re.sub(r"^\s*//.*", "", text, flags=re.MULTILINE))


def commands(read):
    """(page, words) of each `docker` command that a page shows."""
    for page in PAGES:
        text = re.sub(r"\\\n#?\s*", " ", read(page))
        for line in re.findall(r"^#? *(docker (?:build|run) .*)", text, re.MULTILINE):
            yield page, shlex.split(line, comments=True)


@functools.cache
def options():
    """The options that JupyterLab takes."""
    from jupyter_server.serverapp import ServerApp
    from jupyterlab.labapp import LabApp

    return {name for app in (LabApp(), ServerApp()) for name in (*app.aliases, *app.flags)}


def faults_of_the_image(read):
    steps, left_out = parse(read("Dockerfile")), ignores(read(".dockerignore"))
    arguments = {step.said.partition("=")[0] for step in steps if step.name == "ARG"}
    for step in steps:
        if step.name == "FROM" and not re.fullmatch(r"[a-z/]+:\d[\w.-]*", step.said):
            yield f"{step.said} is not pinned by its tag"
        if step.name == "ENTRYPOINT":
            yield "Binder's command would go through an entry point"
        if step.name in ("COPY", "ADD"):
            given, sources, _ = copied(step)
            if f"--chown={step.variables.get('NB_UID')}" not in given:
                yield f"what {step.said} brings belongs to root"
            for source in sources:
                if not (ROOT / source).exists() or left_out(source):
                    yield f"{source} is not in the context"
        if step.name == "RUN":
            done = subprocess.run(["sh", "-n", "-c", step.said], capture_output=True, encoding="utf-8")
            if done.returncode:
                yield f"the shell does not read {step.said}: {done.stderr.strip()}"
            if "apt-get install" in step.said:
                for part in ("apt-get update &&", "--no-install-recommends", " -y ", "rm -rf /var/lib/apt/lists/*"):
                    if part not in " ".join(step.said.split()):
                        yield f"apt-get without {part}"
            for target in re.findall(r"(?:^|&& *)make ([\w./-]+)", step.said):
                if target not in targets(read):
                    yield f"there is no make {target}"
            if "pip install" in step.said:
                yield "pins come from requirements.txt, by make"
    last = steps[-1]
    if last.user != "1000":
        yield f"it runs as {last.user}"
    if not {"NB_USER", "NB_UID"} <= arguments:
        yield "Binder cannot name its user"
    if not last.variables["PATH"].startswith(f"{last.folder}/.venv/bin:"):
        yield "Binder's python3 is not the book's"
    if (ROOT / "binder").exists() or (ROOT / ".binder").exists():
        yield "Binder would look elsewhere"


def faults_of_the_command(read):
    steps = parse(read("Dockerfile"))
    program, *words = json.loads(only(steps, "CMD").said)
    scripts = {script.name for script in distribution("jupyterlab").entry_points if script.group == "console_scripts"}
    if program not in scripts:
        yield f"JupyterLab has no {program}"
    given = dict(word.removeprefix("--").partition("=")[::2] for word in words)
    for name in given:
        if name not in options():
            yield f"JupyterLab has no option {name}"
        if any(part in name.lower() for part in UNSAFE):
            yield f"{name} opens the lab to everyone"
    if given.get("ip") != "0.0.0.0":
        yield "nothing outside of the container reaches it"
    if given.get("port") != only(steps, "EXPOSE").said:
        yield "another port is exposed than is served"
    if not (ROOT / given.get("notebook-dir", "?")).is_dir():
        yield "its folder is not there"


def faults_of_development(read):
    steps = parse(read("Dockerfile"))
    folder, port = steps[-1].folder, int(only(steps, "EXPOSE").said)
    for name in DEFINITIONS:
        said, place = commented(read(name)), (ROOT / name).parent
        if (place / said["build"]["dockerfile"]).resolve() != ROOT / "Dockerfile":
            yield f"{name}: its Dockerfile is another"
        if (place / said["build"]["context"]).resolve() != ROOT:
            yield f"{name}: its context is another"
        if said["forwardPorts"] != [port]:
            yield f"{name}: it forwards another port"
        if said["remoteUser"] != steps[-1].variables["NB_USER"]:
            yield f"{name}: its user is another"
        mounted = dict(part.split("=") for part in said["workspaceMount"].split(","))["target"]
        if not said["workspaceFolder"] == mounted == folder:
            yield f"{name}: its folder is another"
        if [dict(part.split("=") for part in mount.split(","))["target"] for mount in said["mounts"]] != [
            f"{folder}/.venv"
        ]:
            yield f"{name}: the clone hides the image's .venv"
        program, target = said["postCreateCommand"].split()
        if program != "make" or target not in targets(read):
            yield f"{name}: there is no {said['postCreateCommand']}"
        arguments = said["build"].get("args", {})
        for argument in arguments:
            if not any(step.name == "ARG" and step.said.partition("=")[0] == argument for step in steps):
                yield f"{name}: the Dockerfile takes no {argument}"
        if ("--gpus" in said.get("runArgs", [])) != (arguments.get("PIP_EXTRA_INDEX_URL") == ""):
            yield f"{name}: a GPU and CUDA's PyTorch go together"


def faults_of_the_pages(read):
    steps = parse(read("Dockerfile"))
    folder, port = steps[-1].folder, only(steps, "EXPOSE").said
    arguments = {step.said.partition("=")[0] for step in steps if step.name == "ARG"}
    shown, built = list(commands(read)), {}
    for page, words in shown:
        if words[1] == "build":
            given = [words[i + 1] for i, word in enumerate(words) if word == "--build-arg"]
            built.setdefault(words[words.index("-t") + 1], set()).update(given)
            for argument in given:
                if argument.partition("=")[0] not in arguments:
                    yield f"{page}: the Dockerfile takes no {argument}"
            if words[-1] != ".":
                yield f"{page}: {shlex.join(words)} has no context"
    for page, words in shown:
        if words[1] == "run":
            given, rest = {}, words[2:]
            while rest[0].startswith("-"):
                option = rest.pop(0)
                given[option] = rest.pop(0) if option in ("-p", "-v", "-e", "--gpus", "--network") else ""
            image, *command = rest
            if image not in built:
                yield f"{page}: nothing builds {image}"
            if ("--gpus" in given) != ("PIP_EXTRA_INDEX_URL=" in built.get(image, ())):
                yield f"{page}: a GPU and CUDA's PyTorch go together"
            if not command and given.get("-p", "").split(":")[-1] != port:
                yield f"{page}: the lab's port is not published"
            if command and (command[0] != "make" or command[1] not in targets(read)):
                yield f"{page}: there is no {shlex.join(command)}"
            inside = given.get("-v", "").rpartition(":")[2]
            if inside.startswith(folder) and not (ROOT / inside.removeprefix(f"{folder}/")).exists():
                yield f"{page}: the book has no {inside}"
            if inside and not inside.startswith(folder) and inside not in shlex.join(command):
                yield f"{page}: {inside} is not used"
    for page, image in (
        ("book/running.md", "flashkat"),
        ("book/running.md", "flashkat-gpu"),
        ("book/teaching.md", "flashkat"),
    ):
        if not any(where == page and words[1] == "run" and image in words for where, words in shown):
            yield f"{page}: it does not run {image}"


CHECKS = (faults_of_the_image, faults_of_the_command, faults_of_development, faults_of_the_pages)


def faults(read):
    return [fault for check in CHECKS for fault in check(read)]


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_containers_files_agree_with_each_other_and_the_pages():
    assert faults(read) == []


CPU, GPU = DEFINITIONS
BROKEN = [
    ("Dockerfile", "debian:12-slim", "debian:latest", "not pinned"),
    ("Dockerfile", "debian:12-slim", "debian", "not pinned"),
    ("Dockerfile", "EXPOSE 8888", 'EXPOSE 8888\nENTRYPOINT ["sh"]', "entry point"),
    ("Dockerfile", "COPY --chown=$NB_UID . .", "COPY --chown=$NB_UID setup.cfg .", "setup.cfg is not in the context"),
    ("Dockerfile", "COPY --chown=$NB_UID . .", "COPY . .", "belongs to root"),
    (".dockerignore", "**/_build", "**/_build\n.", ". is not in the context"),
    ("Dockerfile", '"$NB_USER" &&', '"$NB_USER" && (', "the shell does not read"),
    ("Dockerfile", "--no-install-recommends ", "", "apt-get without --no-install-recommends"),
    ("Dockerfile", "install -y", "install", "apt-get without  -y"),
    ("Dockerfile", "RUN make .venv/.ready", "RUN make ready", "there is no make ready"),
    ("Dockerfile", "RUN make .venv/.ready", "RUN pip install jupyterlab", "pins"),
    ("Dockerfile", "USER $NB_UID\n", "", "it runs as root"),
    ("Dockerfile", "NB_UID=1000", "NB_UID=0", "it runs as 0"),
    ("Dockerfile", "ARG NB_USER=reader", "ENV NB_USER=reader", "cannot name its user"),
    ("Dockerfile", " PATH=/book/.venv/bin:$PATH", "", "python3"),
    ("Dockerfile", "jupyter-lab", "jupyterlab", "JupyterLab has no jupyterlab"),
    ("Dockerfile", "--no-browser", "--no-browsers", "no option no-browsers"),
    ("Dockerfile", "--no-browser", "--ServerApp.token=", "opens the lab"),
    ("Dockerfile", "--no-browser", "--allow-root", "opens the lab"),
    ("Dockerfile", "0.0.0.0", "127.0.0.1", "nothing outside"),
    ("Dockerfile", "EXPOSE 8888", "EXPOSE 8889", "another port is exposed"),
    ("Dockerfile", "--notebook-dir=chapters", "--notebook-dir=notebooks", "folder is not there"),
    (CPU, "../Dockerfile", "Dockerfile", "its Dockerfile"),
    (GPU, '"../.."', '".."', "its context"),
    (CPU, "[8888]", "[8000]", "another port"),
    (GPU, '"reader"', '"root"', "its user"),
    (CPU, "target=/book,", "target=/workspace,", "its folder"),
    (GPU, "/book/.venv", "/venv", "hides"),
    (CPU, "make .venv/.ready", "make venv", "there is no make venv"),
    (GPU, "PIP_EXTRA_INDEX_URL", "TORCH", "takes no TORCH"),
    (CPU, '"forwardPorts"', '"runArgs": ["--gpus", "all"],\n  "forwardPorts"', "go together"),
    ("book/running.md", "-p 8888:8888 flashkat\n", "flashkat\n", "not published"),
    ("book/running.md", "--gpus all -p", "-p", "go together"),
    ("book/running.md", "--build-arg PIP_EXTRA", "--build-arg EXTRA", "takes no EXTRA"),
    ("book/running.md", "flashkat-gpu --build", "gpu --build", "nothing builds flashkat-gpu"),
    ("book/running.md", ":/book/chapters", ":/book/notebooks", "the book has no /book/notebooks"),
    ("book/teaching.md", "flashkat make grade", "flashkat make mark", "there is no make mark"),
    ("book/teaching.md", "SUBMISSIONS=/submissions", "SUBMISSIONS=submitted", "/submissions is not used"),
]


@pytest.mark.parametrize("name, ours, wrong, words", BROKEN, ids=[f"{row[0]}: {row[2]}" for row in BROKEN])
def test_a_wrong_line_is_noticed(name, ours, wrong, words):
    assert ours in read(name)
    found = faults(lambda path: read(path).replace(ours, wrong) if path == name else read(path))
    assert any(words in fault for fault in found), found


def test_the_context_leaves_out_what_git_does_and_nothing_that_is_committed():
    lines = [line.rstrip("/") for line in read(".gitignore").splitlines()]
    expected = [line[1:] if line[0] == "/" else line if "/" in line else f"**/{line}" for line in lines]
    assert [line for line in read(".dockerignore").splitlines() if line[0] != "#"] == [".git", *expected]
    left_out = ignores(read(".dockerignore"))
    assert all(map(left_out, (".git/HEAD", ".venv/bin/python", "tests/book/__pycache__/a.pyc", "book/status.md")))
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, encoding="utf-8")
    if done.returncode:
        pytest.skip("this is no clone of git's")
    assert [path for path in done.stdout.splitlines() if left_out(path)] == []


def packages():
    (step,) = (step for step in parse(read("Dockerfile")) if "apt-get install" in step.said)
    said = step.said.partition("apt-get install")[2].partition("&&")[0]
    return [word for word in said.split() if not word.startswith("-")]


def known_to_apt(names):
    done = subprocess.run(["apt-cache", "show", "--no-all-versions", *names], capture_output=True, encoding="utf-8")
    return set(names) & {*re.findall(r"^Package: (.*)", done.stdout, re.MULTILINE)}


def test_debian_has_the_packages():
    if not (shutil.which("apt-cache") and known_to_apt(["make"])):
        pytest.skip("apt has no lists here: apt-get update")
    assert known_to_apt([*packages(), "no-such-package"]) == set(packages())


@pytest.fixture(scope="module")
def lint():
    """Lints a Dockerfile's text; returns the faults."""
    if not (shutil.which("npm") and shutil.which("node")):
        pytest.skip("npm is missing, which brings the linter. On Debian: apt install npm")
    folder = ROOT / "_build" / "dockerfile-utils"
    folder.parent.mkdir(exist_ok=True)
    try:
        with FileLock(f"{folder}.lock"):
            vendor.fetch(LINTER, folder)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"npm could not fetch the linter: {error.stderr.strip().splitlines()[-1]}")

    def run(text):
        command = ["node", "-e", LINT, str(folder)]
        done = subprocess.run(command, input=text, capture_output=True, encoding="utf-8", check=True)
        return json.loads(done.stdout)

    return run


def test_a_linter_finds_what_is_wrong_and_nothing_in_ours(lint):
    ours = read("Dockerfile")
    assert lint(ours) == []
    for right, wrong in (("EXPOSE 8888", "EXPOSE lab"), ("\nRUN make", "\nDO make"), ("COPY --chown", "COPY --owner")):
        assert lint(ours.replace(right, wrong)), wrong


@pytest.fixture
def context(tmp_path):
    """A copy of what Docker would be sent."""
    left_out = ignores(read(".dockerignore"))

    def ignored(folder, names):
        return [name for name in names if left_out((Path(folder) / name).relative_to(ROOT).as_posix())]

    return shutil.copytree(ROOT, tmp_path / "context", ignore=ignored)


def stand_ins(folder, log):
    folder.mkdir()
    for name, text in STAND_INS.items():
        text = text.format(log=log, python=shlex.quote(sys.executable), folder=shlex.quote(str(folder)))
        (folder / name).write_text(f"#!/bin/sh\n{text}", encoding="utf-8")
        (folder / name).chmod(0o755)
    return folder


def served(port):
    """The command on another port, which is free."""
    return [
        re.sub(r"^--port=.*", f"--port={port}", word)
        for word in json.loads(only(parse(read("Dockerfile")), "CMD").said)
    ]


@pytest.fixture
def port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextlib.contextmanager
def running(args, log, **more):
    with open(log, "w", encoding="utf-8") as file, subprocess.Popen(args, stdout=file, stderr=file, **more) as process:
        try:
            yield process
        finally:
            process.kill()  # unshare minds no other signal


def asked(address):
    with urllib.request.urlopen(address, timeout=30) as answer:
        return answer.url, answer.read().decode()


def lab_answers(process, log, port):
    """The lab asks a stranger for a token, and shows whoever has it the chapters."""
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 150
    while True:
        said = log.read_text(encoding="utf-8")
        assert process.poll() is None and time.monotonic() < deadline, said
        token = re.search(r"[?&]token=([0-9a-f]{20,})", said)
        with contextlib.suppress(OSError):
            if token:
                where, _ = asked(f"{address}/lab")
                break
        time.sleep(0.1)
    assert "/login" in where
    where, page = asked(f"{address}/lab?token={token[1]}")
    assert "/login" not in where and "JupyterLab" in page
    found = {entry["name"] for entry in json.loads(asked(f"{address}/api/contents?token={token[1]}")[1])["content"]}
    assert {path.name for path in (ROOT / "chapters").glob("*.ipynb")} <= found


def in_shell(step, command, **variables):
    """The step's command where it stands, as words for a shell."""
    given = " ".join(f"{name}={shlex.quote(value)}" for name, value in (step.variables | variables).items())
    return f"cd {shlex.quote(step.folder)} && exec env -i {given} {command}"


def test_the_readers_steps_run_in_a_copy_of_the_tree_and_the_lab_answers(context, tmp_path, port):
    log = tmp_path / "installed"
    bin = stand_ins(tmp_path / "bin", log)
    steps = parse(read("Dockerfile"))
    last = steps[-1]
    for step in steps:
        path = step.variables["PATH"].replace(last.folder, str(context)).replace("/usr/local/sbin", str(bin))
        step.variables |= {"PATH": path, "HOME": str(tmp_path)}
        if step.name == "RUN" and step.user == last.user:
            step.folder = str(context)
            subprocess.run(["sh", "-c", in_shell(step, f"sh -c {shlex.quote(step.said)}")], check=True)
    installed = log.read_text(encoding="utf-8")
    assert installed.startswith("https://download.pytorch.org/whl/cpu -m pip install ")
    assert [line.split()[-1] for line in installed.splitlines()[-2:]] == ["requirements.txt", "check"]
    as_root = ["--allow-root"] if os.geteuid() == 0 else []
    last.folder, said = str(context), tmp_path / "said"
    command = in_shell(last, shlex.join([*served(port), *as_root]))
    with running(["sh", "-c", command], said) as process:
        lab_answers(process, said, port)


# This system as it is, below a layer in memory that takes what is written. What else is mounted can only be read.
FRESH_ROOT = """\
set -eu
here=$1; shift
mount -t tmpfs tmpfs "$here"
mkdir "$here/upper" "$here/work" "$here/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$here/upper,workdir=$here/work" "$here/root"
mount -t proc proc "$here/root/proc"
mount --rbind /dev "$here/root/dev"
for place; do
  mkdir -p "$here/root$place"
  mount -o bind,ro "$place" "$here/root$place"
  while [ "$place" != / ]; do place=$(dirname "$place"); chmod a+rx "$here/root$place"; done
done
exec chroot "$here/root" sh -eu -c "$STEPS"
"""
NOBODY_YET = """\
echo root:x:0:0::/root:/bin/sh > /etc/passwd
echo root:x:0: > /etc/group
rm -rf /etc/shadow* /etc/gshadow* /home/* /book
"""


def fresh_root(folder, readable, steps):
    folder.mkdir()
    words = [
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "sh",
        "-c",
        FRESH_ROOT,
        "sh",
        str(folder),
        *readable,
    ]
    return {"args": words, "env": os.environ | {"STEPS": steps}}


def as_user(step, command):
    become = "" if step.user == "root" else f"setpriv --reuid={step.user} --regid={step.user} --clear-groups "
    return f"({in_shell(step, become + command)})\n"


def test_all_steps_run_in_a_fresh_root_and_the_lab_starts_as_its_user(context, tmp_path, port):
    if os.geteuid() != 0 or not (shutil.which("unshare") and shutil.which("setpriv")):
        pytest.skip("only root makes a fresh root")
    tried = fresh_root(tmp_path / "tried", [], "true")
    if subprocess.run(**tried, capture_output=True).returncode:
        pytest.skip("no fresh root can be mounted here")
    bin = stand_ins(tmp_path / "bin", "/tmp/said")
    script = f"{NOBODY_YET}rm -rf /tmp/said; touch /tmp/said; chmod a+w /tmp/said\n"
    steps = parse(read("Dockerfile"))
    for step in steps:
        step.variables["PATH"] = step.variables["PATH"].replace("/usr/local/sbin", str(bin))
        if step.name == "RUN":
            script += as_user(step, f"sh -eu -c {shlex.quote(step.said)}")
        elif step.name == "WORKDIR":
            script += f"mkdir -p {step.folder}\n"
        elif step.name == "COPY":
            given, sources, target = copied(step)
            (owner,) = (option.partition("=")[2] for option in given)
            target = os.path.join(step.folder, target)
            for source in sources:
                script += f"cp -R {shlex.quote(f'{context}/{source}')} {target}\n"
            script += f"find {target} -mindepth 1 -exec chown -h {owner}:{owner} {{}} +\n"
    last = steps[-1]
    script += as_user(last, "sh -c 'id -u; id -un; touch here chapters/here ~/here; make help; cat /tmp/said'")
    script += as_user(last, shlex.join(served(port)))
    readable = [str(context), str(bin), *{sys.prefix, sys.base_prefix} - {"/usr"}]
    said = tmp_path / "said"
    with running(**fresh_root(tmp_path / "fresh", readable, script), log=said) as process:
        lab_answers(process, said, port)
    told = said.read_text(encoding="utf-8")
    assert "\n1000\nreader\n" in told and "make grade" in told
    assert f"install -y --no-install-recommends {' '.join(packages())}\n" in told
    assert "\nhttps://download.pytorch.org/whl/cpu -m pip install " in told
