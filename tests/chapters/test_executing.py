"""`make execute`: what passes is kept, stamped; what fails changes nothing and is named."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile

import psutil
import pytest

from flashkat_lite import records
from tools import notebooks
from tools.notebooks import claims, execute, stamp

FACTS = {"gpu": "NVIDIA H200", "driver": "580.1", "versions": {"torch": "2.11.0", "triton": "3.6.0"}}
FACTS |= {"device": {"name": "NVIDIA H200", "slug": "h200", "count": 1, "driver": "580.1"}}
ADDRESS = """import os
from importlib.util import find_spec
assert find_spec("flashkat_lite") and "TRITON_INTERPRET" not in os.environ
if not __debug__: raise RuntimeError("asserts are off")
object()"""
WIDGETS = """import ipywidgets as w
slider = w.IntSlider(max=1)
box = w.Stack([w.HTML("<b>1</b>"), w.HTML("<b>2</b>")], selected_index=0)
w.jslink((slider, "value"), (box, "selected_index"))
w.VBox([slider, box])"""


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A house with no chapters yet, on a machine with a GPU; `house(name, notebook)` adds one and returns its path."""
    monkeypatch.setattr(notebooks, "CHAPTERS", tmp_path / "chapters")
    monkeypatch.setattr(execute, "FOLDER", tmp_path / "execute")
    monkeypatch.setattr(execute, "machine", lambda env: FACTS)
    monkeypatch.setattr(claims, "FRESH", tmp_path / "records")
    monkeypatch.setattr(claims, "KEPT", tmp_path / "kept")

    def add(name, notebook):
        path = tmp_path / "chapters" / f"{name}.ipynb"
        notebooks.write(notebook, path)
        return path

    add.machine = lambda facts: monkeypatch.setattr(execute, "machine", lambda env: facts)
    return add


def test_a_chapter_that_passes_is_kept_stamped_and_repeatable(house, notebook, code, capsys, tmp_path, monkeypatch):
    """Temporary files may be anywhere, and no setting of the user's switches a chapter's asserts off."""
    (tmp_path / "_build" / "a b").mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "_build" / "a b"))
    for name, value in (("PYTHONOPTIMIZE", "1"), ("PYTHONWARNINGS", "error"), ("PYTHONSAFEPATH", "1")):
        monkeypatch.setenv(name, value)
    path = house(
        "01_first",
        notebook(
            code("import sys\nprint('out')\nprint('err', file=sys.stderr)\nprint('more')", "streams"),
            code(ADDRESS, "address"),
            code(WIDGETS, "widgets"),
            code("1 / 0", "check", "check", "skip-execution"),
        ),
    )
    texts = []
    for _ in range(2):
        execute.main(["01"])
        made = notebooks.read(path)
        kept = made.metadata.flashkat
        assert kept.pop("seconds") > 0
        texts.append(notebooks.text(made))
    assert texts[0] == texts[1]
    assert kept.gpu == "NVIDIA H200" and kept.driver == "580.1" and kept.versions.torch == "2.11.0"
    assert kept.code_sha256 == stamp.code_sha256(made)
    assert kept.package_sha256 == stamp.package_sha256(made)
    streams, address, widgets, check = made.cells[1:]
    assert [output.text for output in streams.outputs] == ["out\nmore\n", "err\n"]
    assert address.outputs[0].data["text/plain"] == "<object at 0x…>"
    assert widgets.outputs[0].data["application/vnd.jupyter.widget-view+json"].model_id in widget_ids(made)
    assert not check.outputs and check.execution_count is None
    assert "01_first … " in capsys.readouterr().out


def test_a_chapters_claims_and_its_most_memory_are_kept_with_it(house, notebook, code, tmp_path, monkeypatch, capsys):
    def nbmake(source, env):
        made, html = (
            notebooks.read(source),
            '<p class="fk-claim"><span class="fk-mark">✓</span> Faster by <strong>2</strong></p>',
        )
        made.cells[1].outputs = [{"output_type": "display_data", "metadata": {}, "data": {"text/html": html}}]
        with open(env["FLASHKAT_TELL_MEMORY"], "w", encoding="utf-8") as file:
            json.dump({"peak_gb": 3.25}, file)
        return made, None

    monkeypatch.setattr(execute, "nbmake", nbmake)
    path, _ = (house(name, notebook(code("1", "claim"))) for name in ("01_first", "02_second"))
    before = path.read_bytes()
    execute.main(["--apart"])
    assert path.read_bytes() == before, "apart from the notebooks"
    made = notebooks.read(execute.FOLDER / path.name)
    assert made.metadata.flashkat.peak_gb == 3.25 and "3.25 GB of GPU memory" in capsys.readouterr().out
    record = tmp_path / "records" / "h200" / "claims.json"
    kept = json.loads(record.read_text(encoding="utf-8"))
    assert records.problems(kept, record) == [] and kept["data"].keys() == {"01_first", "02_second"}
    assert kept["data"]["01_first"][0]["sentence"] == "Faster by"
    record.unlink()
    monkeypatch.setenv("FLASHKAT_GPU_MEMORY", "7.5")
    execute.main(["01"])
    assert path.read_bytes() == before and not record.exists(), "sizes that are nobody's own change nothing"
    within = record.with_name("within_7_5_gb.json")
    capped = json.loads(within.read_text(encoding="utf-8"))
    assert capped["data"] == {"01_first": 3.25} and records.problems(capped, within) == []


def widget_ids(made):
    return made.metadata.widgets[notebooks.WIDGET_STATE].state


def test_a_failing_chapter_is_left_untouched_and_the_others_go_on(house, notebook, code, capsys):
    failing = house("01_failing", notebook(code("print(1)", "fine"), code("# why\nint('x')\n", "culprit")))
    passing = house("02_passing", notebook(code("print(2)", "fine")))
    before = failing.read_bytes()
    with pytest.raises(SystemExit) as stopped:
        execute.main([])
    assert stopped.value.code == "1 of 2 failed: 01_failing"
    assert failing.read_bytes() == before
    assert notebooks.read(passing).cells[1].outputs[0].text == "2\n"
    said = capsys.readouterr().out
    assert "cell 3 of 3 (id culprit): # why" in said
    assert "ValueError: invalid literal for int() with base 10: 'x'" in said
    assert notebooks.read(execute.FOLDER / "01_failing.ipynb").cells[2].outputs[0].ename == "ValueError"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import time\ntime.sleep(60)", "(id culprit): import time\n    ran past its time limit"),
        ("import os\nos._exit(1)", "died"),
    ],
)
def test_a_run_that_does_not_end_well_is_a_failure(notebook, code, tmp_path, environment, source, said):
    path = tmp_path / "01_first.ipynb"
    notebooks.write(notebook(code("1", "fine"), code(source, "culprit")), path)
    _, failed = execute.nbmake(path, environment, timeout=2)
    assert said in failed


def test_a_warm_process_reads_prints_ends_and_is_ended_as_another_would_be(warm, tmp_path):
    code = "import os, sys\nprint(sys.stdin.read(), os.getcwd(), sys.argv[1:])\nsys.exit(int(os.environ['ENDS']))"
    done = subprocess.run(
        warm([sys.executable, "-c", code, "one", "two"]), input="in", env=os.environ | {"ENDS": "3"}, cwd=tmp_path,
        capture_output=True, encoding="utf-8",
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (3, f"in {tmp_path} ['one', 'two']")
    wrong = subprocess.run(warm([sys.executable, "-c", "1 / 0"]), capture_output=True, encoding="utf-8")
    assert wrong.returncode == 1 and "ZeroDivisionError" in wrong.stderr
    code = "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(60)"
    asked = subprocess.Popen(warm([sys.executable, "-c", code]), stdout=subprocess.PIPE, encoding="utf-8")
    process = psutil.Process(int(asked.stdout.readline()))
    asked.kill()
    asked.communicate()
    with contextlib.suppress(psutil.NoSuchProcess):
        process.wait(10)


STARTS = """
import os, subprocess, sys
for word in ("", "1"):
    found = "import sys; print(*(name in sys.modules for name in ('triton', 'IPython')))"
    subprocess.run([sys.executable, "-c", found], env=os.environ | {"TRITON_INTERPRET": word}, check=True)
"""


def test_what_a_warm_process_starts_to_compile_is_warm_and_interprets_nothing(warm):
    if warm(["python"]) == ["python"]:
        pytest.skip("no process is warm here")
    done = subprocess.run(warm([sys.executable, "-c", STARTS]), capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.splitlines() == ["True False", "False False"]


def test_outputs_of_a_skipped_cell_stay_unless_it_is_a_check(notebook, code):
    original = notebook(
        code("measured_elsewhere()", "recorded", "skip-execution"),
        code("check()", "check", "skip-execution", "check"),
    )
    for cell in notebooks.code_cells(original):
        cell.outputs = [{"output_type": "stream", "name": "stdout", "text": "said once\n"}]
    executed = notebooks.canonical(original)
    for cell in notebooks.code_cells(executed):
        cell.outputs = []
    recorded, check = notebooks.code_cells(execute.keep(executed, original, FACTS, 1.0))
    assert recorded.outputs[0].text == "said once\n"
    assert not check.outputs


def test_without_a_gpu_nothing_is_overwritten(house, notebook, code):
    path = house("01_first", notebook(code("1", "one")))
    before = path.read_bytes()
    house.machine(FACTS | {"gpu": None, "driver": None})
    with pytest.raises(SystemExit, match="--cpu"):
        execute.main(["01"])
    assert path.read_bytes() == before


def test_a_cpus_outputs_say_so(house, notebook, code):
    path = house("01_first", notebook(code("1", "one")))
    house.machine(FACTS | {"gpu": None, "driver": None, "device": None})
    execute.main(["01", "--cpu"])
    made = notebooks.read(path)
    assert made.cells[1].outputs[0].data["text/plain"] == "1"
    assert made.metadata.flashkat.gpu is None
    assert stamp.staleness(made) == ["executed without a GPU"]


def test_names_of_chapters(house, notebook):
    first, second = house("01_first", notebook()), house("02_second", notebook())
    assert notebooks.select([]) == [first, second]
    assert notebooks.select(["02", "chapters/01_first.ipynb", "02_second"]) == [second, first]
    with pytest.raises(ValueError, match=r"no chapter '03'; there are: 01_first, 02_second"):
        notebooks.select(["03"])
    with pytest.raises(SystemExit, match="no chapter '0'"):
        execute.main(["0"])


def test_the_machines_facts_come_from_the_package(environment):
    facts = execute.machine(environment)
    assert facts.keys() == {"gpu", "driver", "versions", "device"}
    assert facts["versions"]["flashkat_lite"] == notebooks.version()


def test_the_users_own_settings_do_not_reach_a_chapter(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("JUPYTER_PATH", "/elsewhere")
    env = execute.environment(tmp_path)
    assert "TRITON_INTERPRET" not in env
    assert env["JUPYTER_PATH"] == str(tmp_path / "jupyter")
    assert (tmp_path / "jupyter/kernels/python3/kernel.json").exists()
