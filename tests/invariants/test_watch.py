"""Early stopping: a run ends where what it watches falls, and leaves the model that was there before."""

import json

import pytest
from safetensors.torch import load_file

import tastemaker as tm
from tastemaker.cli.evaluated import find_model
from tastemaker.cli.main import main
from tastemaker.report.data import read_run
from tastemaker.training.progress import plain

# |R + 10| is smaller where the reward is: a run that works against its own evaluations.
DOWNHILL = [
    "algorithm=alignprop", "algorithm.objective=distance", "algorithm.target=-10", "--reward", "smooth:warmth",
    "--prompts", "ddpo-animals", "sampling.steps=3", "sampling.samples=4", "sampling.per_prompt=1", "optimizer.rows=4",
    "optimizer.updates=2", "optimizer.lr=1e-2", "optimizer.warmup=0", "evaluation.every=1", "evaluation.prompts=2",
    "evaluation.per_prompt=2", "--rounds", "5",
]  # fmt: skip


def train(checkpoint, run, *more):
    return main(["train", "ddpo-compressibility", "--model", str(checkpoint), "--out", str(run), *DOWNHILL, *more])


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def adapter(run):
    return load_file(run / "adapter/pytorch_lora_weights.safetensors")


def test_a_run_ends_where_its_measure_falls_and_leaves_the_model_before(checkpoint, tmp_path, capsys):
    assert train(checkpoint, tmp_path / "free", "--rounds", "2") == 0
    expected = adapter(tmp_path / "free")
    assert main(["resume", str(tmp_path / "free"), "--rounds", "3"]) == 0
    values = [record["eval/reward/mean"] for record in metrics(tmp_path / "free") if "evaluation" in record]
    assert values == sorted(values, reverse=True)  # it does fall
    assert "early_stop/kept_round" not in metrics(tmp_path / "free")[-1]
    # Between the fall after two rounds and that after three.
    fall = values[0] - (values[2] + values[3]) / 2
    watched = ["early_stop.metric=reward/mean", f"early_stop.min_delta={fall}"]
    capsys.readouterr()
    assert train(checkpoint, tmp_path / "watched", *watched) == 0
    said = capsys.readouterr().out
    assert "stopping after round 3" in said
    # What is said of the run at its end, and its report, are of the model that it leaves.
    assert f"smooth:warmth: {plain(values[0])} -> {plain(values[2])} (" in said
    evaluations = [record for record in metrics(tmp_path / "watched") if "evaluation" in record]
    assert [record["early_stop/kept_round"] for record in evaluations] == [0, 1, 2, 2]
    assert read_run(tmp_path / "watched").kept == evaluations[2]
    run = tm.load_run(tmp_path / "watched")
    assert [image.reward for image in run.images()] == [image.reward for image in run.images(2)]
    assert [find_model(str(tmp_path / run), None).evaluated.round for run in ("watched", "free")] == [2, 3]
    assert [r["round"] for r in metrics(tmp_path / "watched") if "round" in r] == [1, 2, 3]
    assert (tmp_path / "watched/report.html").is_file()
    left = adapter(tmp_path / "watched")
    assert all(left[name].equal(expected[name]) for name in expected)
    # Stopped in between and resumed, it ends at the same place with the same model.
    assert train(checkpoint, tmp_path / "cut", *watched, "--rounds", "2") == 0
    assert main(["resume", str(tmp_path / "cut"), "--rounds", "5"]) == 0
    resumed = adapter(tmp_path / "cut")
    assert all(left[name].equal(resumed[name]) for name in left)
    assert [r["round"] for r in metrics(tmp_path / "cut") if "round" in r] == [1, 2, 3]


def test_warnings_and_the_best_model_are_the_same_in_a_resumed_run(checkpoint, tmp_path, capsys):
    """The run is trained for warmth against itself, with a held-out reward that is twice its opposite: as the trained
    reward rises, that one falls. Warnings, intervals, divergence and the best model do not depend on a stop between."""
    uphill = [
        "algorithm.target=10", "evaluation.per_prompt=8", "evaluation.kl_images=3",
        "--evaluation.rewards", "smooth:coldness", "over_optimisation.keep_best=reward/mean", "--rounds", "4",
    ]  # fmt: skip
    assert train(checkpoint, tmp_path / "whole", *uphill) == 0
    said = capsys.readouterr().out
    assert "over-optimisation after round" in said
    assert "rewards/smooth:coldness fell from" in said
    assert train(checkpoint, tmp_path / "cut", *uphill, "--rounds", "2") == 0
    assert main(["resume", str(tmp_path / "cut"), "--rounds", "4"]) == 0
    one, two = ([r for r in metrics(tmp_path / run) if "evaluation" in r] for run in ("whole", "cut"))
    assert one == two
    assert one[-1]["over_optimisation/rewards/smooth:coldness/warning"] == 1
    assert one[0]["eval/kl"] == 0 < one[1]["eval/kl"] < one[-1]["eval/kl"]
    left = [json.loads((tmp_path / run / "best/best.json").read_text()) for run in ("whole", "cut")]
    assert left[0] == left[1]
    name = "best/pytorch_lora_weights.safetensors"
    best, again = (load_file(tmp_path / run / name) for run in ("whole", "cut"))
    assert all(best[key].equal(again[key]) for key in best)
    # It is the model of the round that it says: of a run that ends there.
    number = left[0]["round"]
    if number:
        assert train(checkpoint, tmp_path / "until", *uphill, "--rounds", str(number)) == 0
        until = adapter(tmp_path / "until")
        assert all(best[key].equal(until[key]) for key in until)
    sound = [r["evaluation"] for r in one if not any("coldness/warning" in key for key in r)]
    assert number in sound


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["early_stop.metric=rewrd/mean"], "evaluations of this run have reward/mean"),
        (["early_stop.min_delta=-1"], "must not be negative"),
        (
            ["over_optimisation.keep_best=rewrd"],
            "over_optimisation.keep_best is rewrd, but evaluations of this run have",
        ),
        (["over_optimisation.kl_limit=5", "evaluation.kl_images=0"], "no divergence is measured"),
    ],
)
def test_what_cannot_be_watched(checkpoint, tmp_path, capsys, words, message):
    assert train(checkpoint, tmp_path / "run", *words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
