import json

import pytest
import torch

from tools.measure import scaling

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="what happens without a GPU")


@without_gpu
def test_without_a_gpu_it_says_so_in_one_line_and_fails(capsys):
    assert scaling.main([]) == 2
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "needs a CUDA device" in out and "doctor" in out


@without_gpu
def test_two_processes_train_together_and_one_sets_the_scale(tmp_path, capsys):
    out = tmp_path / "deep" / "scaling.json"
    assert scaling.main(["--quick", "--out", str(out)]) == 0
    record = json.loads(out.read_text(encoding="utf-8"))
    assert record["experiment"] == "scaling" and record["command"] == "python book/tools scaling --quick"
    one, *two = record["data"]["results"]
    assert one["gpus"] == 1 and one["fraction_of_linear"] == 1 and one["ms_all_reduce_alone"] == 0
    assert [(row["gpus"], row["bucket_mb"]) for row in two] == [(2, 1), (2, 25)]
    for row in two:
        assert 0 < row["low"] <= row["ms"] <= row["high"] and row["ms_all_reduce_alone"] > 0
        assert row["images_per_second"] == pytest.approx(2 * 4 / row["ms"] * 1e3)
        assert row["fraction_of_linear"] == pytest.approx(one["ms"] / row["ms"])
    assert record["data"]["gradient_bytes"] == 4 * one["parameters"]
    assert "of linear" in capsys.readouterr().out and list(out.parent.iterdir()) == [out]


def test_speeds_are_shares_of_one_gpu_times_their_number():
    rows = scaling.with_speeds([{"gpus": 1, "ms": 100.0}, {"gpus": 4, "ms": 125.0}], batch=256)
    assert [row["fraction_of_linear"] for row in rows] == [1.0, 0.8]
    assert rows[1]["images_per_second"] == pytest.approx(8192)
    [alone] = scaling.with_speeds([{"gpus": 2, "ms": 100.0}], batch=256)
    assert alone["fraction_of_linear"] is None


def test_ranks_see_different_images():
    model = scaling.VisionTransformer(**scaling.PICO["model"])
    batches = [scaling.images_and_labels(model, 4, rank, torch.device("cpu")) for rank in (0, 1, 0)]
    assert torch.equal(batches[0][0], batches[2][0]) and not torch.equal(batches[0][0], batches[1][0])


@pytest.mark.gpu
def test_more_gpus_than_there_are_is_an_error(capsys):
    assert scaling.main(["--gpus", "64"]) == 2
    assert "there are" in capsys.readouterr().out
