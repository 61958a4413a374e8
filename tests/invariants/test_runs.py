"""Whole runs on a small random model, through the command line: what they leave behind, resuming, stopping."""

from __future__ import annotations

import json
import signal
import sys
import time

import pytest
from safetensors.torch import load_file

from drawing import drawn
from forked import Child, finish
from tastemaker.cli.main import main

SETTINGS = [
    "--prompts", "ddpo-animals", "--rounds", "3", "--checkpoint.every", "1", "sampling.steps=4", "sampling.samples=8",
    "sampling.per_prompt=2", "sampling.batch=8", "optimizer.updates=2", "optimizer.rows=16", "optimizer.lr=1e-3",
    "evaluation.every=2", "evaluation.prompts=2", "evaluation.per_prompt=2", "evaluation.kl_images=0",
]  # fmt: skip


def words(checkpoint, out, *more):
    return ["train", "ddpo-compressibility", "--model", str(checkpoint), "--out", str(out), *SETTINGS, *more]


def metrics(run):
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if not k.startswith("seconds/")} for record in records]


@pytest.fixture(scope="module")
def finished(checkpoint, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "whole"
    with drawn():
        assert main(words(checkpoint, run)) == 0
    return run


def test_a_run_leaves_what_design_md_promises(finished):
    for name in ("config.yaml", "env.json", "metrics.jsonl", "report.html", "README.md", "adapter", "checkpoints"):
        assert (finished / name).exists(), name
    assert not list(finished.rglob(".tmp*"))
    assert [r["round"] for r in metrics(finished) if "round" in r] == [1, 2, 3]
    assert [r["evaluation"] for r in metrics(finished) if "evaluation" in r] == [0, 2, 3]
    grids = sorted(path.name for path in (finished / "samples").iterdir())
    assert grids == ["round-0000", "round-0002", "round-0003"]
    prompts = [
        [s["prompt"] for s in json.loads((finished / f"samples/{g}/samples.json").read_text())["samples"]]
        for g in grids
    ]
    assert prompts[0] == prompts[1] == prompts[2]


def test_the_ratio_is_one_before_the_first_update_of_every_round(finished):
    for record in metrics(finished):
        if "round" in record:
            assert record["ratio_deviation/first"] < 1e-6
            assert record["ratio_deviation/max"] > 1e-6  # after an update it no longer is


def test_a_stopped_and_resumed_run_is_the_uninterrupted_one(finished, checkpoint, tmp_path):
    assert main(words(checkpoint, tmp_path / "cut", "--rounds", "1")) == 0
    # What a kill in the middle of a write leaves: a torn line, which resuming drops.
    with (tmp_path / "cut/metrics.jsonl").open("a") as file:
        file.write('{"round": 2, "reward/me')
    assert main(["resume", str(tmp_path / "cut"), "--rounds", "3"]) == 0
    for name in ("weights", "optimizer"):
        one = load_file(finished / f"checkpoints/step-000003/{name}.safetensors")
        two = load_file(tmp_path / f"cut/checkpoints/step-000003/{name}.safetensors")
        assert one.keys() == two.keys()
        assert all(one[key].equal(two[key]) for key in one), name
    rounds = lambda run: [record for record in metrics(run) if "round" in record]  # noqa: E731
    # The one-round run evaluated its last model as well, which the whole run did not.
    assert rounds(finished) == rounds(tmp_path / "cut")


def exit_with_main(*arguments):
    """The program, in a process of its own."""
    sys.exit(main(list(arguments)))


def test_ctrl_c_finishes_the_round_saves_and_says_how_to_go_on(checkpoint, tmp_path):
    run = tmp_path / "run"
    arguments = words(checkpoint, run, "--rounds", "500")
    child = Child(exit_with_main, *arguments, log=tmp_path / "log")
    deadline = time.monotonic() + 240
    while not (run / "metrics.jsonl").exists() or len((run / "metrics.jsonl").read_text().splitlines()) < 3:
        assert time.monotonic() < deadline
        assert child.poll() is None, child.output()
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    said = finish(child, 130)
    assert "stopping after this round" in said
    done = max(record["round"] for record in metrics(run) if "round" in record)
    assert (
        f"stopped by Ctrl-C after round {done} of 500; saved up to round {done}; go on with: tastemaker resume {run}"
        in said
    )
    assert (run / "report.html").exists()
    assert (run / f"checkpoints/step-{done:06d}/state.json").exists()
    assert main(["resume", str(run), "--rounds", str(done + 1)]) == 0
    assert max(record["round"] for record in metrics(run) if "round" in record) == done + 1


def test_tensorboard_gets_metrics_evaluations_and_their_images_at_their_rounds(checkpoint, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    more = ["--rounds", "1", "--trackers", "tensorboard", "tensorboard", "--evaluation.unseen", "bundled-eight"]
    assert main(words(checkpoint, run, *more)) == 0
    assert main(["resume", str(run), "--rounds", "2"]) == 0
    log = EventAccumulator(str(run / "trackers/tastemaker")).Reload()
    assert [path.name for path in (run / "trackers").rglob("*") if path.is_dir()] == ["tastemaker"]  # one run, not two
    records = metrics(run)
    for kind, names in {
        "round": ("reward/mean", "loss", "diversity"),
        "evaluation": ("eval/reward/mean", "eval/diversity", "eval/unseen/reward/mean"),
    }.items():
        for name in names:
            expected = [(record[kind], record[name]) for record in records if kind in record]
            assert [(one.step, one.value) for one in log.Scalars(name)] == [
                (step, pytest.approx(value)) for step, value in expected
            ]
    assert [one.step for one in log.Scalars("eval/reward/mean")] == [0, 1, 2]
    for name in ("eval/images", "eval/unseen/images"):
        shown = log.Images(name)
        assert [one.step for one in shown] == [0, 1, 2]
        # Two prompts of two images each, enlarged to 96 pixels, with 4 in between.
        assert {(one.width, one.height) for one in shown} == {(196, 196)}
    for kind, name in {"round": "eval/table", "unseen": "eval/unseen/table"}.items():
        tables = log.Tensors(f"{name}/text_summary")
        assert [one.step for one in tables] == [0, 1, 2]
        lines = tables[1].tensor_proto.string_val[0].decode().splitlines()
        listed = json.loads((run / f"samples/{kind}-0001/samples.json").read_text())["samples"]
        assert lines[0] == "| prompt | image | reward |"
        assert lines[2:] == [f"| {one['prompt']} | {n % 2} | {one['reward']:.4g} |" for n, one in enumerate(listed)]
    (settings,) = log.Tensors("config/text_summary")
    assert "prompts: ddpo-animals" in settings.tensor_proto.string_val[0].decode()


def test_the_score_function_and_the_whole_network(checkpoint, tmp_path):
    more = ["algorithm.estimator=sf", "optimizer.updates=1", "--tuning.mode", "full", "--rounds", "1"]
    assert main(words(checkpoint, tmp_path / "run", *more)) == 0
    assert (tmp_path / "run/model/unet/diffusion_pytorch_model.safetensors").exists()


@pytest.mark.parametrize("checkpointing", ["block", "edict"])
def test_a_run_that_follows_the_gradient_resumes_bit_for_bit_and_its_adapter_learns(
    checkpointing, checkpoint, tmp_path
):
    chosen = ["algorithm=alignprop", "--reward", "smooth:warmth", "sampling.eta=0", "optimizer.rows=4"]
    chosen += [f"algorithm.checkpointing={checkpointing}"]
    assert main(words(checkpoint, tmp_path / "whole", *chosen)) == 0
    assert main(words(checkpoint, tmp_path / "cut", *chosen, "--rounds", "1")) == 0
    assert main(["resume", str(tmp_path / "cut"), "--rounds", "3"]) == 0
    one, two = (load_file(tmp_path / f"{r}/checkpoints/step-000003/weights.safetensors") for r in ("whole", "cut"))
    assert all(one[key].equal(two[key]) for key in one)
    rounds = [record for record in metrics(tmp_path / "whole") if "round" in record]
    assert rounds == [record for record in metrics(tmp_path / "cut") if "round" in record]
    assert [record["reward_queries"] for record in rounds] == [8, 16, 24]
    last = metrics(tmp_path / "whole")[-1]
    assert last["eval/reward/base_stds"] > 0.05


@pytest.mark.parametrize("algorithm", ["draft", "refl", "direct-align"])
def test_the_other_methods_that_follow_the_gradient_run(algorithm, checkpoint, tmp_path):
    more = ["algorithm.noises=2"] if algorithm == "draft" else []
    chosen = [f"algorithm={algorithm}", *more, "--reward", "smooth:warmth", "--rounds", "1", "optimizer.rows=4"]
    assert main(words(checkpoint, tmp_path / "run", *chosen)) == 0
    (record,) = [record for record in metrics(tmp_path / "run") if "round" in record]
    assert record["grad_norm"] > 0
    assert record["reward_queries"] == (16 if algorithm == "draft" else 8)
    assert (tmp_path / "run/report.html").is_file()
