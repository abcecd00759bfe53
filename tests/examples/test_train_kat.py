"""examples/train_kat.py: one process or two, killed or not, the losses are the same; what cannot be is refused."""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

pytestmark = pytest.mark.usefixtures("one_thread")

MODEL = ["--cpu", "--width", "8", "--depth", "1", "--heads", "2", "--batch", "64", "--log-every", "1"]


@pytest.fixture
def start(script, root):
    """The command in a process of its own, whose Python does not look beside the script."""

    def begin(*arguments, **variables):
        environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"} | variables
        command = [sys.executable, str(script), *arguments]
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8"
        )

    return begin


@pytest.fixture
def at_step(train_kat, monkeypatch):
    """Does something before the loss of a step is asked for."""

    def arrange(step, do):
        mean_loss = train_kat.Run.mean_loss

        def doing(run):
            if run.step == step:
                do(run)
            return mean_loss(run)

        monkeypatch.setattr(train_kat.Run, "mean_loss", doing)

    return arrange


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def checkpoint(folder, name="checkpoint.pt"):
    return torch.load(folder / name, weights_only=True)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_other_processes_or_parts_of_a_batch_have_the_losses_of_one_and_may_go_on_with_its_run(
    train_kat, start, at_step, losses, rows, tmp_path, capsys, monkeypatch
):
    common = ["digits", *MODEL, "--steps", "5", "--lr", "1e-2"]
    train_kat.main([*common, "--out", str(tmp_path / "one")])
    at_step(2, lambda run: setattr(run, "signalled", True))
    two, parts = tmp_path / "two", tmp_path / "parts"
    train_kat.main([*common, "--out", str(two)])
    shutil.copytree(two, parts)

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    other = start(*common, "--out", str(two), **meeting, RANK="1")

    state = checkpoint(parts)  # as two processes would have left it, on a machine that has no log.csv
    torch.save(state | {"random": state["random"] * 2}, parts / "checkpoint.pt")
    (parts / "log.csv").unlink()
    train_kat.main([*common, "--out", str(parts), "--accumulate", "4"])
    assert "goes on with 1 process(es) instead of 2" in capsys.readouterr().out

    for name, value in {**meeting, "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    train_kat.main([*common, "--out", str(two)])
    said = other.communicate(timeout=120)[0]
    assert other.returncode == 0, said
    one = losses(tmp_path / "one")
    assert list(one) == [1, 2, 3, 4, 5] and len(set(one.values())) == 5
    assert losses(two) == pytest.approx(one, rel=1e-5)
    assert losses(parts) == pytest.approx({step: one[step] for step in (3, 4, 5)}, rel=1e-5)
    assert (
        len({tuple(rows(tmp_path / name)[-1][which] for which in ("accuracy", "top-5")) for name in ("one", "two")})
        == 1
    )


def test_a_run_that_was_stopped_and_killed_has_the_very_losses_and_averages_of_one_that_was_not(
    train_kat, start, at_step, losses, rows, tmp_path, capsys
):
    common = ["digits", *MODEL, "--steps", "50", "--save-every", "7", "--drop-path", "0.3", "--ema", "0.9"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train_kat.main([*common, "--out", str(whole)])

    at_step(5, lambda run: os.kill(os.getpid(), signal.SIGTERM))
    train_kat.main([*common, "--out", str(broken)])
    assert "stopped; the same command goes on from here" in capsys.readouterr().out
    assert len(losses(broken)) == 5

    killed = start(*common, "--out", str(broken))
    wait_for(lambda: len(losses(broken)) > 25)
    killed.kill()
    killed.wait()
    assert len(losses(broken)) < 50
    with (broken / "log.csv").open("a", encoding="utf-8") as log:
        log.write("\0\0\0\n4")  # a machine that loses its power leaves such lines
    train_kat.main([*common, "--out", str(broken)])
    assert losses(broken) == losses(whole)
    for name in ("accuracy", "top-5", "EMA accuracy", "EMA top-5"):
        assert [row[name] for row in rows(broken)] == [row[name] for row in rows(whole)]
    for name in ("model", "model_ema"):
        assert same(checkpoint(broken)[name], checkpoint(whole)[name])
        assert same(checkpoint(broken, "best.pt")[name], checkpoint(whole, "best.pt")[name])


def test_a_signal_waits_for_a_line_of_the_log_at_which_all_processes_stop(train_kat, monkeypatch, tmp_path):
    def advance(run, loader, advance=train_kat.Run.advance):
        advance(run, loader)
        if run.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(train_kat.Run, "advance", advance)
    train_kat.main(["digits", *MODEL, "--steps", "9", "--log-every", "4", "--out", str(tmp_path)])
    assert checkpoint(tmp_path)["step"] == 4


@pytest.mark.parametrize("model", ["kat", "vit"])
def test_it_learns(train_kat, tmp_path, model):
    options = ["--model", model, "--width", "32", "--depth", "1", "--heads", "2", "--batch", "50", "--lr", "1e-2"]
    accuracy = train_kat.main(["digits", "--cpu", *options, "--epochs", "4", "--out", str(tmp_path)])
    assert accuracy > 0.3  # three times chance


def test_the_average_follows_the_weights_and_starts_as_they_are(train_kat, at_step, tmp_path):
    seen = []
    for step in range(1, 5):
        at_step(step, lambda run: seen.append(run.model.head.weight.detach().clone()))
    train_kat.main(["digits", *MODEL, "--steps", "4", "--ema", "0.75", "--out", str(tmp_path)])
    average = seen[0]
    for weight in seen[1:]:
        average = 0.75 * average + 0.25 * weight
    assert len(seen) == 4 and not torch.equal(seen[0], seen[3])
    torch.testing.assert_close(checkpoint(tmp_path)["model_ema"]["head.weight"], average)
    torch.testing.assert_close(checkpoint(tmp_path)["model"]["head.weight"], seen[3])


@pytest.mark.parametrize("ema", [(), ("--ema", "0.5")])
def test_the_best_weights_are_kept_by_the_averages_accuracy_where_there_is_an_average(
    train_kat, tmp_path, monkeypatch, capsys, ema
):
    accuracies = {False: [0.2, 0.6, 0.3], True: [0.5, 0.4, 0.1]}

    def accuracy(run, model):
        return accuracies[model is not run.model].pop(0), 0.9

    monkeypatch.setattr(train_kat.Run, "accuracy", accuracy)
    common = ["digits", *MODEL, "--batch", "500", "--epochs", "3", "--out", str(tmp_path), *ema]
    train_kat.main(common)
    step, best = (3, 0.5) if ema else (6, 0.6)
    kept = checkpoint(tmp_path, "best.pt")
    assert kept["step"] == step and not same(kept["model"], checkpoint(tmp_path)["model"])
    assert f"best {best:.4f} at step {step}" in capsys.readouterr().out


def test_a_run_goes_on_without_its_best_weights_and_keeps_those_to_come(train_kat, at_step, tmp_path):
    common = ["digits", *MODEL, "--batch", "500", "--steps", "6", "--out", str(tmp_path)]
    at_step(4, lambda run: setattr(run, "signalled", True))
    train_kat.main(common)
    state = checkpoint(tmp_path)
    torch.save(state | {"best": [0.99, 3]}, tmp_path / "checkpoint.pt")
    (tmp_path / "best.pt").unlink()
    train_kat.main(common)
    assert checkpoint(tmp_path, "best.pt")["step"] == 6


def test_a_finished_run_does_nothing_more_and_is_tested_by_eval(train_kat, rows, tmp_path, capsys):
    common = ["digits", *MODEL, "--steps", "2", "--out", str(tmp_path)]
    first = train_kat.main(common)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert train_kat.main(common) == first
    capsys.readouterr()
    assert train_kat.main([*common, "--eval"]) == first
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    said = capsys.readouterr().out
    row = rows(tmp_path)[-1]
    assert f"top-1 {row['accuracy']}, top-5 {row['top-5']} of 297 images" in said and "checkpoint.pt, model" in said


def test_top_1_and_top_5_count_every_image_once(train_kat):
    options = train_kat.parser().parse_args(["digits", "--cpu", "--batch", "50"])
    train_kat.settle(options)
    trial = train_kat.Trial(options, None)
    labels = trial.valid.labels
    places = torch.arange(297) % 10  # how many classes are thought likelier than the right one
    scores = torch.rand(297, 10) / 2

    class Known(torch.nn.Module):
        at = 0

        def forward(self, images):
            mine = slice(self.at, self.at + len(images))
            self.at += len(images)
            logits = scores[mine].clone()
            for row, label, place in zip(logits, labels[mine], places[mine]):
                row[(label + 1 + torch.arange(place)) % 10] += 2
                row[label] = 1
            return logits

    first, five = (places == 0).sum().item(), (places < 5).sum().item()
    assert trial.accuracy(Known()) == (first / 297, five / 297)


def test_tables_of_functions_biases_and_positions_do_not_decay(train_kat):
    from flashkat_lite.vit import VisionTransformer

    model = VisionTransformer(image_size=8, patch_size=4, width=16, heads=2, depth=1, mlp="grkan")
    decaying = {name for name, parameter in model.named_parameters() if train_kat.decays(name, parameter)}
    linear = {f"blocks.0.{name}.weight" for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    assert decaying == linear | {"patch_embed.proj.weight", "head.weight"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["cifar10"], "cifar10 needs --path"),
        (["cifar10", "--path", "nowhere"], "nowhere holds no data_batch_1.bin or data_batch_1"),
        (["folder", "--path", "nowhere"], "holds no images: CLASS/FILE was expected"),
        (["digits", "--batch", "10", "--accumulate", "4"], "--batch 10 does not divide by 1 process(es) times"),
        (["digits", "--batch", "2000"], "--batch 2000 is more than the 1500 training images"),
        (["digits", "--width", "50"], "width 50, 4 heads"),
        (["digits", "--patch-size", "3"], "image_size must be a positive multiple of patch_size: 8 and 3"),
        (["digits", "--image-size", "16"], "--image-size is 8 for digits"),
        (["digits", "--epochs", "0"], "must be a positive whole number, not 0"),
        (["digits", "--ema", "1.5"], "must be a number from 0 to 1, not 1.5"),
        (["digits", "--lr", "nan"], "must be a number of at least 0, not nan"),
        (["digits", "--weight-decay=-1"], "must be a number of at least 0, not -1"),
        (["digits", "--workers=-1"], "must be a positive whole number, not -1"),
        (["digits", "--mean", "1", "2"], "--mean must be 1 number(s)"),
        (["digits", "--std", "0"], "a standard deviation above 0"),
        (["digits", "--eval"], "runs/digits-kat/checkpoint.pt cannot be read: No such file or directory"),
        (["digits", "--init", "nowhere.pt"], "nowhere.pt cannot be read: No such file or directory"),
        (["digits", *MODEL, "--lr", "1e20", "--warmup", "0"], "a smaller --lr"),
    ],
)
def test_what_is_refused_and_why(refusal, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert said in refusal(*arguments)


def test_a_checkpoint_of_another_run_is_refused(train_kat, refusal, monkeypatch, tmp_path):
    common = ["digits", *MODEL, "--out", str(tmp_path)]
    train_kat.main([*common, "--steps", "2"])
    said = refusal(*common, "--seed", "4", "--ema", "0.9")
    for part in ("belongs to a run ", "with --seed 0", "with --steps 2", "without --ema", "for another --out"):
        assert part in said
    file, state = tmp_path / "checkpoint.pt", checkpoint(tmp_path)
    torch.save(state | {"classes": [*state["classes"][:-1], "ten"]}, file)
    assert f"only {file} has ten; only the data has 9" in refusal(*common, "--steps", "2")
    torch.save({"model": state["model"]}, file)
    assert f"{file} belongs to a run of another script" in refusal(*common, "--steps", "2")
    file.write_bytes(b"half of a checkpoint")
    assert f"{file} is no checkpoint that can be read" in refusal(*common, "--steps", "2")
    file.unlink()
    monkeypatch.setattr(train_kat.Run, "everyones", lambda run, thing: [thing, 5])
    assert f"checkpoints of steps [0, 5] in {tmp_path}" in refusal(*common, "--steps", "2")


def test_every_command_of_the_help_and_the_book_can_be_given(train_kat, root, capsys):
    with pytest.raises(SystemExit):
        train_kat.main(["--help"])
    said = capsys.readouterr().out
    texts = [said, (root / "book" / "running.md").read_text(encoding="utf-8")]
    commands = [re.findall(r"examples/train_kat\.py (.+(?:\n  --.+)*)", text) for text in texts]
    assert [len(some) for some in commands] == [5, 4]
    commands = [*commands[0], *commands[1]]
    for command in commands:
        words = shlex.split(re.split(r" {3,}", command.replace("\\\n", ""))[0], comments=True)
        train_kat.parser().parse_args(words)
    assert "lessons" in said and "flashkat_lite.kat" in said and "coming_from_kat" in said
    assert "promises none of their accuracies" in said
