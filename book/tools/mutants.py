"""`make mutants`: seeds faults, one at a time in a copy of the tree, and sees whether the tests that should notice do.

Each fault is a text that occurs once in its file, what stands there instead, and the narrowest tests that must fail.
Where one survives, a test is missing. Where its text is gone, the fault is to be seeded anew.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import console

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 300  # seconds for the tests of one fault


class Mutant(NamedTuple):
    name: str
    file: str
    old: str
    new: str
    tests: str  # pytest's arguments


KERNELS = "flashkat_lite/kernels"
CHECKS = "flashkat_lite/lab/exercises"
TOOLS = "book/tools"

PROPERTIES = "tests/kernels/test_properties.py::test_both_passes_are_the_reference"
FLOAT64 = "tests/kernels/test_kernels.py::test_against_float64"
LAYOUTS = "tests/kernels/test_kernels.py::test_a_mixed_layout_of_gradient_and_input"
KINKS = "tests/kernels/test_kernels.py::test_the_kinks_have_sign_plus_one"
ANSWERS = "tests/exercises/test_wrong_answers.py"
STATUS = "tests/chapters/test_records_and_status.py"
STUDENTS = "tests/chapters/test_students.py"

MUTANTS = (
    # Kernels
    Mutant(
        "forward: the last row is masked out",
        f"{KERNELS}/forward.py",
        "mask=(row + k * unit_rows < rows)[:, None]",
        "mask=(row + k * unit_rows < rows - 1)[:, None]",
        FLOAT64,
    ),
    Mutant(
        "forward: the stride of x is taken for a row's length",
        f"{KERNELS}/forward.py",
        "x_at = ((row + k * unit_rows) * x_stride + column)",
        "x_at = ((row + k * unit_rows) * vectors_per_row + column)",
        "tests/kernels/test_kernels.py::test_shapes_and_strides_of_input_and_gradient",
    ),
    Mutant(
        "forward: the next group from the last column on",
        f"{KERNELS}/forward.py",
        "group = column // vectors_per_group",
        "group = tl.minimum(column + 1, vectors_per_row - 1) // vectors_per_group",
        FLOAT64,
    ),
    Mutant(
        "atomic: sums that nothing zeroes",
        f"{KERNELS}/backward_atomic.py",
        "da = torch.zeros(",
        "da = torch.empty(",
        "tests/kernels/test_kernels.py::test_writes_every_element_of_a_poisoned_buffer",
    ),
    Mutant(
        "atomic: a plain store",
        f"{KERNELS}/backward_atomic.py",
        "tl.atomic_add(da_ptr + group * M1 + i, u, mask=inside)",
        "tl.store(da_ptr + group * M1 + i, tl.load(da_ptr + group * M1 + i) + u, mask=inside)",
        FLOAT64,
    ),
    Mutant(
        "atomic: the previous group in the first column",
        f"{KERNELS}/backward_atomic.py",
        "group = column // group_width",
        "group = tl.maximum(column - 1, 0) // group_width",
        FLOAT64,
    ),
    Mutant(
        "atomic: sign(0) of a coefficient",
        f"{KERNELS}/backward_atomic.py",
        "tl.where(b[j] < 0, w, -w)",
        "tl.where(b[j] <= 0, w, -w)",
        KINKS,
    ),
    Mutant(
        "atomic and block: sign(0) of x",
        f"{KERNELS}/polynomial.py",
        "tl.where(x < 0, -w, w)",
        "tl.where(x <= 0, -w, w)",
        KINKS,
    ),
    Mutant(
        "block: a lost sign",
        f"{KERNELS}/backward_block.py",
        "total = tl.where(b[j] < 0, total, -total)",
        "total = -total",
        FLOAT64,
    ),
    Mutant(
        "block: a load without `other`",
        f"{KERNELS}/backward_block.py",
        "dy = tl.load(dy_ptrs, mask=inside, other=0.0)",
        "dy = tl.load(dy_ptrs, mask=inside)",
        PROPERTIES,
    ),
    Mutant(
        "block: the stride of x for that of dy",
        f"{KERNELS}/backward_block.py",
        "dy_ptrs = dy_ptr + (row * dy_stride + start)",
        "dy_ptrs = dy_ptr + (row * x_stride + start)",
        LAYOUTS,
    ),
    Mutant(
        "block: a load without its mask",
        f"{KERNELS}/backward_block.py",
        "dy = tl.load(dy_ptrs, mask=inside, other=0.0)",
        "dy = tl.load(dy_ptrs)",
        PROPERTIES,
    ),
    Mutant(
        "stationary: a load without `other`",
        f"{KERNELS}/backward_stationary.py",
        "x = tl.load(x_ptr + x_at, mask=inside, other=0.0)",
        "x = tl.load(x_ptr + x_at, mask=inside)",
        PROPERTIES,
    ),
    Mutant(
        "stationary: the previous group in the first column",
        f"{KERNELS}/backward_stationary.py",
        "group = column // vectors_per_group",
        "group = tl.maximum(column - 1, 0) // vectors_per_group",
        FLOAT64,
    ),
    Mutant(
        "stationary: one partial sum left out",
        f"{KERNELS}/backward_stationary.py",
        "mask=lane < lanes_of_group, other=0.0)",
        "mask=lane < lanes_of_group - 1, other=0.0)",
        PROPERTIES,
    ),
    Mutant(
        "stationary: sums of the second unrolled row alone",
        f"{KERNELS}/backward_stationary.py",
        "dx, new_a, new_b = element(dys[i], xs[i], a, b, new_a, new_b)",
        "dx, new_a, new_b = element(dys[i], xs[i], a, b, () if i == 0 else new_a, () if i == 0 else new_b)",
        PROPERTIES,
    ),
    Mutant(
        "stationary: a coefficient's sign is lost",
        f"{KERNELS}/backward_stationary.py",
        "tl.where(b < 0, result, -result)",
        "-result",
        FLOAT64,
    ),
    Mutant(
        "stationary: the sign of x is lost",
        f"{KERNELS}/polynomial.py",
        "(x.to(tl.int32, bitcast=True) & -2147483648)",
        "(x.to(tl.int32, bitcast=True) & 0)",
        FLOAT64,
    ),
    Mutant(
        "forward: offsets of 32 bits",
        f"{KERNELS}/forward.py",
        "row = tl.cast(program // unit, tl.int64) * (unit_rows * UNROLL)",
        "row = program // unit * (unit_rows * UNROLL)",
        "tests/codegen/test_codegen.py -k no_spill and forward-fp16",
    ),
    Mutant(
        "vectors wider than a row's stride allows",
        f"{KERNELS}/__init__.py",
        "math.gcd(16 // element_size, group_width, *row_strides)",
        "math.gcd(16 // element_size, group_width)",
        "tests/kernels/test_kernels.py::test_shapes_and_strides_of_input_and_gradient",
    ),
    Mutant(
        "a shared table's stride",
        f"{KERNELS}/__init__.py",
        "table.stride(0) if table.shape[0] > 1 else 0",
        "table.stride(0)",
        FLOAT64,
    ),
    Mutant(
        "a shared table's gradient is the first group's",
        f"{KERNELS}/__init__.py",
        "sums.sum(0, keepdim=True)).to(table.dtype)",
        "sums[:1]).to(table.dtype)",
        FLOAT64,
    ),
    Mutant(
        "one launch: the counter's fence dropped",
        f"{CHECKS}/ch10.py",
        'tl.atomic_add(done_ptr, 1, sem="acq_rel")',
        'tl.atomic_add(done_ptr, 1, sem="relaxed")',
        "tests/codegen/test_codegen.py::test_the_last_program_sees_what_the_others_stored",
    ),
    # The op and the modules
    Mutant(
        "autocast leaves x as it is",
        "flashkat_lite/ops.py",
        "x = x.to(torch.get_autocast_dtype(device))",
        "x = x.clone()",
        "tests/op/test_guarantees.py::test_under_autocast_x_is_cast_and_tables_are_not",
    ),
    Mutant(
        "fake gradients in x's dtype",
        "flashkat_lite/ops.py",
        "numerator.new_empty(numerator.shape)",
        "x.new_empty(numerator.shape)",
        "tests/op/test_op.py::test_pytorchs_own_checks_of_an_op tests/op/test_op.py::test_shapes_without_values",
    ),
    Mutant(
        "vmap: a shared table's gradient is the first group's",
        "flashkat_lite/ops.py",
        "total.sum(1, keepdim=True)",
        "total[:, :1]",
        "tests/op/test_guarantees.py::test_torch_func_vmap",
    ),
    Mutant(
        "reference: sign(0) = 0",
        "flashkat_lite/reference.py",
        "return torch.where(t < 0, -1.0, 1.0).to(t.dtype)",
        "return torch.sign(t)",
        "tests/reference",
    ),
    Mutant(
        "modules: variance for standard deviation",
        "flashkat_lite/modules.py",
        "std=(linear.in_features * power) ** -0.5",
        "std=(linear.in_features * power) ** -1.0",
        "tests/package/test_modules.py::test_variance_passes_through_both_linear_layers",
    ),
    Mutant(
        "modules: a checkpoint's shared table stays one row",
        "flashkat_lite/modules.py",
        "table.repeat(self.groups, 1) if shared else table",
        "table",
        "tests/package/test_modules.py::test_published_checkpoints_load",
    ),
    # The checks
    Mutant(
        "checks: NaN compares as right",
        f"{CHECKS}/common.py",
        "bad = ~(error <= bound)",
        "bad = error > bound",
        f"{ANSWERS} -k wrong_answer_is",
    ),
    Mutant(
        "checks: numbers to a part in a thousand",
        f"{CHECKS}/common.py",
        "within: float = 1e-6",
        "within: float = 1e-3",
        f"{ANSWERS} -k a_part_in_ten_thousand",
    ),
    Mutant(
        "checks: any second result is the same bits",
        f"{CHECKS}/common.py",
        "if torch.equal(first, again):",
        "if first.shape == again.shape:",
        f"{ANSWERS} -k order",
    ),
    Mutant(
        "checks: a missing `other` goes unseen",
        "flashkat_lite/testing.py",
        "if other is None and not active.all():",
        "if other is None and active.all():",
        f"{ANSWERS} -k other",
    ),
    Mutant(
        "checks: column sums to a tolerance a thousand times too wide",
        f"{CHECKS}/column_sums.py",
        "tolerance = 4 * len(dy) ** 0.5 * 2.0**-24 * size + 1e-30",
        "tolerance = 4 * len(dy) ** 0.5 * 2.0**-14 * size + 1e-30",
        f"{ANSWERS} -k 07-3",
    ),
    Mutant(
        "checks: no bfloat16 among column sums",
        f"{CHECKS}/column_sums.py",
        "normal(5000, 3, seed=4, dtype=torch.bfloat16)",
        "normal(5000, 3, seed=4)",
        f"{ANSWERS} -k 16",
    ),
    Mutant(
        "checks: a race goes unseen",
        f"{CHECKS}/common.py",
        "    if not adds:\n",
        "    if adds < 0:\n",
        f"{ANSWERS} -k none",
    ),
    Mutant(
        "checks: one tile size",
        f"{CHECKS}/ch13.py",
        ", (7, 5, 3, torch.float32))",
        ")",
        f"{ANSWERS} -k 13-2",
    ),
    Mutant(
        "checks: loads outside of the tensor go unseen",
        f"{CHECKS}/ch05.py",
        "        if outside:\n",
        "        if outside < 0:\n",
        f"{ANSWERS} -k 05-4",
    ),
    Mutant(
        "checks: a relaxed counter goes unseen",
        f"{CHECKS}/ch10.py",
        'if orders != {("ACQUIRE_RELEASE", "GPU")}:',
        "if not orders:",
        f"{ANSWERS} -k fence",
    ),
    # What students hand in
    Mutant(
        "student: solutions are handed out",
        f"{TOOLS}/student.py",
        'if "solution" not in notebooks.tags(cell)',
        'if "solutions" not in notebooks.tags(cell)',
        f"{STUDENTS}::test_a_student_notebook_holds_no_solution_and_no_output",
    ),
    Mutant(
        "grade: a student's own check stays",
        f"{TOOLS}/grade.py",
        "        if answers(cell) in checks:\n            place(answers(cell))\n            continue",
        "        if answers(cell) in checks:\n            placed.add(answers(cell))",
        f"{STUDENTS}::test_editing_or_deleting_a_check_gains_nothing",
    ),
    Mutant(
        "grade: a deleted check is not put back",
        f"{TOOLS}/grade.py",
        "    for name in checks:\n        place(name)\n",
        "",
        f"{STUDENTS}::test_editing_or_deleting_a_check_gains_nothing",
    ),
    Mutant(
        "grade: a failed check counts",
        f"{TOOLS}/grade.py",
        'return Row(exercise, 0, worth, outcome["message"], "", printed)',
        'return Row(exercise, worth, worth, outcome["message"], "", printed)',
        f"{STUDENTS}::test_a_slow_kernel_earns_a_share_of_its_worst_band",
    ),
    Mutant(
        "grade: an answer counts without its seal",
        f"{TOOLS}/grade.py",
        'if answer.get("id") != cell.id or content.get("proof") != grade_kernel.seal(self.secret, answer):',
        'if answer.get("id") != cell.id:',
        f"{STUDENTS}::test_an_answer_counts_only_with_its_seal",
    ),
    Mutant(
        "grade: a later definition counts where it earns less",
        f"{TOOLS}/grade.py",
        "if last.points > first.points:",
        "if last.points != first.points:",
        f"{STUDENTS}::test_the_better_of_two_definitions_counts",
    ),
    Mutant(
        "grade: regrading begins with an empty table",
        f"{TOOLS}/grade.py",
        "for name, rows in self.table.rows.items()}",
        "for name, rows in {}.items()}",
        f"{STUDENTS}::test_regrading_replaces_the_rows_of_each_file_as_it_is_graded",
    ),
    Mutant(
        "checks: an error shows the lines of its check",
        f"{CHECKS}/common.py",
        "        one.__traceback__ = _only(one.__traceback__, _is_students)\n",
        "",
        "tests/exercises/test_wrong_answers.py::test_no_error_of_any_kind_shows_a_check",
    ),
    Mutant(
        "grade: half as fast for all points",
        f"{CHECKS}/common.py",
        '("slow", 2.0, 0.25)',
        '("slow", 2.0, 1.0)',
        f"{STUDENTS}::test_speed_is_scored_in_bands",
    ),
    # Claims, records, stamps
    Mutant(
        "claims: none fails",
        "flashkat_lite/lab/show.py",
        "if not true and (source is None or",
        "if not true and (source is not None and",
        "tests/package/test_lab.py -k claim",
    ),
    Mutant(
        "records: a live figure passes for a recorded one",
        "flashkat_lite/records.py",
        'return "measured here" if self.live else',
        'return "measured here" if not self.live else',
        "tests/package/test_lab.py",
    ),
    Mutant(
        "record: a broken record is kept",
        f"{TOOLS}/record.py",
        'for name in ("name", "count", "driver") if name not in record["device"]',
        'for name in ("name", "driver") if name not in record["device"]',
        f"{STATUS} -k schema",
    ),
    Mutant(
        "stamps: changed code is not stale",
        f"{TOOLS}/notebooks.py",
        'if stamp["code_sha256"] != code_sha256(notebook):',
        "if False:",
        f"{STATUS} -k stale",
    ),
    Mutant(
        "stamps: what a module imports does not count",
        f"{TOOLS}/notebooks.py",
        "todo |= self.imports(self.tree(module), module) - found - {PACKAGE}",
        "todo |= set()",
        "tests/chapters/test_canonical_form.py",
    ),
)


def found_once(mutant, root=ROOT):
    return (root / mutant.file).read_text(encoding="utf-8").count(mutant.old) == 1


def copy(root, folder):
    """The tree without what is hidden or built."""
    shutil.copytree(root, folder, ignore=shutil.ignore_patterns(".*", "_build", "dist", "*.egg-info", "__pycache__"))
    return folder


def run(tests, tree, limit=LIMIT):
    """(pytest's exit status or None past the time limit, the test that failed, seconds)."""
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "-p", "no:xdist", "-p", "no:cacheprovider"]
    said = {"capture_output": True, "encoding": "utf-8", "errors": "replace"}
    start = time.monotonic()
    try:
        done = subprocess.run([*command, *split(tests)], cwd=tree, env=environment, timeout=limit, **said)
    except subprocess.TimeoutExpired:
        return None, f"ran past {limit} s", time.monotonic() - start
    if done.returncode < 0:
        return done.returncode, f"the process ended by signal {-done.returncode}", time.monotonic() - start
    failed = re.search(r"^(?:FAILED|ERROR) (?:\S*/)?(\S+\.py.*?)(?: - |$)", done.stdout, re.MULTILINE)
    last = (done.stdout + done.stderr).strip().splitlines()[-1:]
    return done.returncode, failed[1] if failed else "".join(last), time.monotonic() - start


def split(tests):
    files, _, words = tests.partition(" -k ")
    return [*files.split(), *(["-k", words] if words else [])]


def judge(mutant, tree, limit=LIMIT):
    """Seeds the fault in `tree`, runs its tests, and takes it out again: (killed?, what was said, seconds)."""
    if not found_once(mutant, tree):
        return False, "its text is no longer found exactly once", 0.0
    path = tree / mutant.file
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        status, said, seconds = run(mutant.tests, tree, limit)
    finally:
        path.write_text(text, encoding="utf-8")
    if status in (1, None) or status < 0:  # a test failed, ran too long, or took the process with it
        return True, said, seconds
    return False, "SURVIVED" if status == 0 else f"no test ran: {said}", seconds


def main(arguments=None, mutants=MUTANTS, root=ROOT):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--list", action="store_true", help="name the faults and run nothing")
    parser.add_argument("--only", metavar="NAME", help="the faults whose name or file holds this")
    options = parser.parse_args(arguments)
    chosen = [m for m in mutants if not options.only or options.only in f"{m.name} {m.file}"]
    if not chosen:
        sys.exit(f"no fault is called {options.only!r}; --list names them")
    if options.list:
        for mutant in chosen:
            print(f"{mutant.file}: {mutant.name}")
        return
    left = []
    with tempfile.TemporaryDirectory(prefix="flashkat-mutants-") as folder:
        tree = copy(root, Path(folder) / "tree")
        for tests in dict.fromkeys(mutant.tests for mutant in chosen):  # what fails without a fault says nothing
            status, said, _ = run(tests, tree)
            if status != 0:
                sys.exit(f"{tests}: fails without any fault: {said}")
        print("| file | fault | noticed by | seconds |\n|---|---|---|---|", flush=True)
        for mutant in chosen:
            killed, said, seconds = judge(mutant, tree)
            print(f"| {mutant.file} | {mutant.name} | {said} | {seconds:.0f} |", flush=True)
            left += [] if killed else [mutant.name]
    print(f"{len(chosen) - len(left)} of {len(chosen)} faults noticed.")
    if left:
        sys.exit(f"Not noticed: {'; '.join(left)}")


if __name__ == "__main__":
    console.prepare()
    main()
