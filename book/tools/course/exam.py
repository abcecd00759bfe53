"""`make exam SEED=7`: an exam with numbers drawn anew, and its answers, in _build/exam/7.

Everybody who has the repository can read the templates, as they can read what is asked in class; with a seed that the
teacher keeps, nobody knows the numbers. The same seed draws the same exam.
"""

import argparse
import html
import math
import random

from ..paths import BUILD

FOLDER = BUILD / "exam"
HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 12pt/1.45 serif; max-width: 44rem; margin: 2rem auto; padding: 0 1rem }}
pre {{ font: 10pt/1.35 monospace }} section {{ break-inside: avoid; margin: 1.2rem 0 }} @page {{ margin: 2cm }}
</style></head><body><h1>{title}</h1>
"""


def digits(value, figures=3):
    """A number with so many figures, as one writes it: 1,230 and 0.0952."""
    if value == 0:
        return "0"
    places = figures - 1 - math.floor(math.log10(abs(value)))
    rounded = round(value, places)
    return f"{rounded:,.{max(0, places)}f}"


def millions(count):
    return f"{digits(count / 1e6)} million"


# Each question: what is drawn, and (points, question, answer) from it.


def draw_sums(rng):
    columns, groups = rng.choice([512, 1024, 1536, 2048]), rng.choice([4, 8, 16, 32])
    rows = rng.choice([50_000, 80_000, 100_000, 120_000, 200_000])
    return {"rows": rows, "columns": columns, "groups": groups, "gb_s": rng.choice([2000, 3000, 4000]),
            "adds_ns": rng.choice([0.57, 0.79, 1.2])}  # fmt: skip


def sums(rows, columns, groups, gb_s, adds_ns):
    elements = rows * columns
    by_bytes, by_adds = 12 * elements / gb_s / 1e6, elements / adds_ns / 1e6
    return (
        6,
        f"Group g of {groups} scales its columns: y = s_g · x; x is {rows:,} × {columns} float32. For the gradient "
        "of s: how "
        f"many sums, terms of each, and additions, if each element adds once? Times by bytes ({gb_s:,} GB/s; the "
        "gradient of "
        f"y, x, the gradient of x) and by additions ({adds_ns} a nanosecond).",
        f"{groups} sums of {millions(elements / groups)} terms, {millions(elements)} additions. Bytes: "
        f"{digits(12 * elements / 1e9)} GB, {digits(by_bytes)} ms. Additions: {digits(by_adds)} ms, "
        f"{digits(by_adds / by_bytes)} times as long. One point for each of the first three, one for each time, one "
        "for "
        "naming the limit.",
    )


def draw_bounds(rng):
    gb_s, rate = rng.choice([2000, 3350, 4200, 4800]), rng.choice([2.1e13, 3.35e13, 4.0e13])
    half = 4 / gb_s / 1e9 * rate  # instructions an element that take as long as four bytes
    return {"gb_s": gb_s, "rate": rate, "instructions": round(rng.uniform(0.9, 0.97) * half)}


def bounds(gb_s, rate, instructions):
    memory, issue = 8e8 / gb_s / 1e6, 1e8 * instructions / rate * 1e3
    return (
        6,
        f"A kernel moves 8 bytes and executes {instructions} instructions an element, for 10⁸ elements; "
        f"{rate / 1e13:g} · 10¹³ "
        f"thread instructions a second, {gb_s:,} GB/s. Both bounds; then with 4 bytes. What do you expect of the "
        "second?",
        f"{digits(memory)} and {digits(issue)} ms: memory (2). With 4 bytes {digits(memory / 2)} and {digits(issue)} "
        "(2). Two "
        "limits of nearly one length rarely hide each other: longer than either is to be expected (2).",
    )


FAULTS = {
    "columns": "the mask forgets columns",
    "other": "without `other` masked positions hold anything, and it is summed",
    "wide": "32-bit offsets",
    "float": "the 16-bit numbers are not widened before the sum",
    "race": "load, add and store race between programs",
    "store": "the store has no mask",
}


def draw_faults(rng):
    return {"faults": sorted(rng.sample(sorted(FAULTS), 4))}


def faults(faults):
    row, other = "" if "wide" in faults else ".to(tl.int64)", "" if "other" in faults else ", other=0.0"
    inside = "row < rows" if "columns" in faults else "(row < rows) & (column < columns)"
    masked = "" if "store" in faults else ", mask=tl.arange(0, COLUMNS) < columns"
    add = "tl.store(at, tl.load(at{m}) + total{m})" if "race" in faults else "tl.atomic_add(at, total{m})"
    lines = [
        f"row = tl.program_id(0){row} * ROWS + tl.arange(0, ROWS)[:, None]",
        "column = tl.arange(0, COLUMNS)[None, :]",
        f"x = tl.load(x_ptr + row * columns + column, mask={inside}{other})",
        f"total = tl.sum(x{'' if 'float' in faults else '.to(tl.float32)'}, 0)",
        "at = out_ptr + tl.arange(0, COLUMNS)",
        add.replace("{m}", masked),
    ]
    return (
        8,
        "Name four faults. `x` may be bfloat16; `out` holds float32 zeros.\n\n```python\n" + "\n".join(lines) + "\n```",
        f"Two points each: {'; '.join(FAULTS[name] for name in faults)}.",
    )


def draw_trial(rng):
    kernels = ["LayerNorm backward", "RMSNorm backward", "column sum of a gradient", "embedding's backward"]
    return {"kernel": rng.choice(kernels), "times": rng.choice([2, 3, 4, 6])}


def trial(kernel, times):
    return (
        8,
        f"A {kernel} takes {times} times its limit. Suspects: loads, arithmetic, atomic additions. One experiment "
        "for each, "
        "what would clear it, and how you show that one thing changed.",
        "Loads: row stride 0, same compiled kernel. Arithmetic: repeat it with a zero that the compiler cannot see "
        "through; "
        "count instructions. Additions: more copies of the totals, same number, by argument. Two points each; two for "
        "thresholds fixed beforehand, or for removing two at once where they may overlap.",
    )


def draw_flight(rng):
    while True:
        drawn = {"gb_s": rng.choice([1500, 2000, 3000, 3350]), "ns": rng.choice([500, 600, 700, 800]),
                 "sms": rng.choice([80, 108, 132]), "registers": rng.choice([64, 80, 96, 128, 168])}  # fmt: skip
        fit, needed = in_flight(**drawn)
        if abs(fit * 4096 / needed - 1) > 0.1 and _stages(fit, needed) <= 6:  # neither "nearly" nor out of reach
            return drawn


def in_flight(gb_s, ns, sms, registers):
    """How many programs fit on a multiprocessor, and the bytes that Little's law asks of it."""
    return 65536 // (registers * 128), gb_s * ns / sms


def _stages(fit, needed):
    return 1 + math.ceil(2 * needed / (fit * 4096))


def flight(gb_s, ns, sms, registers):
    fit, needed = in_flight(gb_s, ns, sms, registers)
    verdict = "enough on average" if fit * 4096 > needed else "not enough"
    stages = _stages(fit, needed)
    return (
        8,
        f"{gb_s:,} GB/s, {ns} ns, {sms} multiprocessors with 65,536 registers. Programs of 128 threads use "
        f"{registers} registers "
        "a thread and load 2 × 16 bytes a thread and pass. How many fit? Are the bytes enough with two stages, one "
        "of which is "
        "in flight? With how many stages are there twice as many as the law asks for?",
        f"65,536 / ({registers} · 128): {fit} programs (2). Needed: {digits(gb_s * ns / 1e6)} MB, "
        f"{digits(needed / 1e3)} KB on each "
        f"(2). Two stages: {fit} · 128 · 32 = {digits(fit * 4.096)} KB, {verdict} (2). {stages}: "
        f"{digits((stages - 1) * fit * 4.096)} KB (2). Near the limit answers come later, so the margin is used.",
    )


def draw_rounding(rng):
    terms = rng.choice([20, 22, 24, 26])
    return {"terms": terms, "chains": rng.choice([8, 10, 12]), "chunk": rng.choice([3, 4, 5, 6])}


def rounding(terms, chains, chunk):
    """The three are exponents of two."""
    each, tree = 2 ** (terms - chains), 0.18 * chains
    errors = (
        0.8 * math.sqrt(0.09 * 2**terms),
        0.8 * math.sqrt(0.09 * each + tree),
        0.8 * math.sqrt(0.09 * (2**chunk + each / 2**chunk) + tree),
    )
    power = str(terms).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return (
        8,
        f"2{power} terms of mixed sign: one chain; {2**chains:,} chains and a tree; the same with chunks of "
        f"{2**chunk}. Mean errors "
        "in units, from 0.09 n for a chain and 0.18 log₂ n for a tree, times 0.8 after the root. Which of them "
        "repeat to the "
        "bit?",
        f"{digits(errors[0])}; 0.8 √(0.09 · {each:,} + 0.18 · {chains}) = {digits(errors[1])}; "
        f"0.8 √(0.09 ({2**chunk} + {each // 2**chunk}) + {tree:.2f}) = {digits(errors[2])} (2 each). All three, if "
        "the order is "
        "fixed by shape and grid; none, if programs add atomically (2).",
    )


SILENT = {
    "autograd": "No autograd: gradients end there; look for `grad is None` before the op; the layers in front never "
    "learn.",
    "autocast": "Autocast by the ready-made rule: tables are rounded to bfloat16, small updates vanish; move a table "
    "by "
    "10⁻³ and count outputs that change.",
    "buffer": "Sums are added to a buffer that is not zeroed: the second step's gradients hold the first's; call "
    "backward "
    "twice on the same input and compare.",
}


def draw_silent(rng):
    return {"symptom": rng.choice(["falls more slowly than with the reference", "stops falling after some epochs"])}


def silent(symptom):
    return (
        8,
        f"A custom op is put into a model; the loss {symptom}, and nothing raises. Two silent faults that fit, a "
        "one-line "
        "test for each, and what each costs.",
        " ".join(SILENT.values())
        + " Forgotten autocast is silent too, but costs time, not learning. Four points each, of two.",
    )


def draw_graph(rng):
    few, many = rng.choice([50, 100, 200]), rng.choice([10**6, 2 * 10**6])
    return {"messages": rng.choice([10**7, 2 * 10**7]), "width": rng.choice([32, 64, 128]), "few": few, "many": many}


def graph(messages, width, few, many):
    return (
        8,
        f"A graph network adds {millions(messages)} messages of {width} float32 to nodes. Which cure for {few} "
        "nodes, which for "
        f"{millions(many)}? What would you count, what measure? What is the same choice among 8 GPUs?",
        f"{few} nodes: {messages // few:,} messages a row, {digits(few * width * 4 / 1e3)} KB: sort or own the sums "
        "(2). "
        f"{millions(many)}: {messages // many} a row, {digits(many * width * 4 / 1e6)} MB; atomic additions may do, "
        "but the table "
        "exceeds an H200's L2, so measure (2). Count additions, lines and words of an instruction; measure the rate "
        "of that "
        "pattern, and whether bits must repeat (2). Server or all-reduce (2).",
    )


QUESTIONS = (
    (draw_sums, sums), (draw_bounds, bounds), (draw_faults, faults), (draw_trial, trial), (draw_flight, flight),
    (draw_rounding, rounding), (draw_silent, silent), (draw_graph, graph),
)  # fmt: skip


def exam(seed):
    """[(points, question, answer)]; the same for the same seed, whatever it is."""
    found = []
    for number, (draw, ask) in enumerate(QUESTIONS, 1):
        found.append(ask(**draw(random.Random(f"{seed}/{number}"))))
    return found


def markdown(seed, answers):
    asked = exam(seed)
    total = sum(points for points, *_ in asked)
    parts = [f"# {'Answers' if answers else 'Exam'}: {seed}"]
    if not answers:
        parts.append(f"90 minutes, {total} points, a calculator and one page of notes.")
    parts += [
        f"**{n}** ({points}). {(question, answer)[answers]}" for n, (points, question, answer) in enumerate(asked, 1)
    ]
    return "\n\n".join(parts) + "\n"


def page(seed, answers):
    """The same, to print: nothing is loaded."""
    body = []
    for part in markdown(seed, answers).split("\n\n**")[1:]:
        text, _, code = ("**" + part).partition("\n\n```python\n")
        number, _, rest = text.removeprefix("**").partition("**")
        code = html.escape(code.rstrip().removesuffix("```").rstrip())
        inner = f"<p><strong>{number}</strong>{html.escape(rest)}</p>"
        body.append(f"<section>{inner}{f'<pre>{code}</pre>' if code else ''}</section>")
    title = f"{'Answers' if answers else 'Exam'}: {html.escape(str(seed))}"
    return HEAD.format(title=title) + "\n".join(body) + "\n</body></html>\n"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("seed", help="any word or number; the same draws the same")
    seed = parser.parse_args(arguments).seed
    folder = FOLDER / "".join(c if c.isalnum() or c in "-_" else "-" for c in seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name, answers in (("exam", False), ("answers", True)):
        (folder / f"{name}.md").write_text(markdown(seed, answers), encoding="utf-8")
        (folder / f"{name}.html").write_text(page(seed, answers), encoding="utf-8")
        print(folder / f"{name}.html")
