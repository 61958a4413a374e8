"""Whole runs on combined rewards, with rewards and prompts that are only evaluated; small random model."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from drawing import drawn
from scoring import total
from serving import Scripted, redness
from tastemaker.cli.main import main
from tastemaker.config.schema import Config
from tastemaker.config.yaml_file import load_config
from tastemaker.rewards.registry import load_reward
from tastemaker.runs import checkpoint
from tastemaker.runs.checkpoint import State
from tastemaker.training import setup
from tastemaker.training.evaluations import evaluate_run

SETTINGS = [
    "--prompts", "b2-template2-train", "--rounds", "2", "--checkpoint.every", "1", "sampling.steps=4",
    "sampling.samples=8", "sampling.per_prompt=2", "sampling.batch=8", "optimizer.updates=2", "optimizer.rows=16",
    "optimizer.lr=1e-3", "evaluation.every=2", "evaluation.prompts=2", "evaluation.per_prompt=2",
    "evaluation.kl_images=0",
    "remote.format=safetensors",
]  # fmt: skip
LOOKING = ("colourfulness", "min(soft-colourfulness, jpeg-compressibility)")


def words(checkpoint, out, reward, *more):
    return [
        "train", "ddpo-compressibility", "--model", str(checkpoint), "--out", str(out), *SETTINGS, "--reward", reward,
        "--evaluation.unseen", "b2-template2-test", "--evaluation.rewards", *LOOKING, *more,
    ]  # fmt: skip


def metrics(run):
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if not k.startswith("seconds/")} for record in records]


def mixed(url):
    return f"standardise({url}) + 0.5*standardise(jpeg-compressibility) - colourfulness"


@pytest.fixture(scope="module")
def finished(checkpoint, tmp_path_factory):
    run = tmp_path_factory.mktemp("combined") / "whole"
    with Scripted([]) as server, drawn():
        assert main(words(checkpoint, run, mixed(server.url))) == 0
    return run


def test_every_part_is_logged_by_itself(finished):
    base, *_ = (record for record in metrics(finished) if "evaluation" in record)
    parts = ["remote", "jpeg-compressibility", "colourfulness"]
    for record in metrics(finished):
        under = "reward/parts/" if "round" in record else "eval/reward/parts/"
        assert [key.removeprefix(under) for key in record if key.startswith(under)] == parts
    told = json.loads((finished / "reward.json").read_text())
    scale = told["base"]["parts"]["reward"]
    # Of the base model's images the standardised parts have mean 0, so that only the third is left.
    assert base["eval/reward/mean"] == pytest.approx(-base["eval/reward/parts/colourfulness"], abs=1e-5)
    for record in metrics(finished):
        under = "" if "round" in record else "eval/"
        raw = {part: record[f"{under}reward/parts/{part}"] for part in parts}
        by_hand = (
            (raw["remote"] - scale["remote"]["mean"]) / scale["remote"]["std"]
            + 0.5 * (raw[parts[1]] - scale[parts[1]]["mean"]) / scale[parts[1]]["std"]
            - raw["colourfulness"]
        )
        assert record[f"{under}reward/mean"] == pytest.approx(by_hand, abs=1e-4)
    state, _, _ = newest_state(finished)
    assert state.base_parts["reward"]["standardise(remote)"] == [scale["remote"]["mean"], scale["remote"]["std"]]
    assert told["base"]["reward"]["mean"] == state.base_mean


def newest_state(run):
    path, files, facts, _ = checkpoint.newest(run)
    return State(**json.loads(files["state.json"])["state"]), path, facts


def test_rewards_and_prompts_that_are_only_evaluated(finished, tmp_path):
    """The figures of the base model's evaluation, made again from its images."""
    config = load_config(finished / "config.yaml", Config())
    with Scripted([]) as server:
        config = replace(config, reward=mixed(server.url))
        session = setup.start(config, tmp_path, State())
        with session.display:
            found = evaluate_run(session)
    recorded = metrics(finished)[0]
    assert (
        found.record(session.state).items()
        >= {key: value for key, value in recorded.items() if "base_stds" not in key}.items()
    )
    assert found.unseen is not None
    assert not set(found.unseen.draw.prompts) & set(session.prompts.prompts)
    for under, seen in (("eval/", found.seen), ("eval/unseen/", found.unseen)):
        for name in LOOKING:
            by_hand = total(load_reward(name), seen.images, seen.draw.prompts).mean().item()
            assert recorded[f"{under}rewards/{name}"] == pytest.approx(by_hand, abs=1e-6)
        own = total(redness, seen.images, seen.draw.prompts).mean().item()
        assert recorded[f"{under}reward/parts/remote"] == pytest.approx(own, abs=1e-6)
    # Their noise is not that of the images beside them, though their places in the lists are.
    assert found.seen.draw.prompt_index == found.unseen.draw.prompt_index
    assert not torch.equal(found.seen.draw.noise(0, (4,)), found.unseen.draw.noise(0, (4,)))
    assert sorted(path.name for path in (finished / "samples").iterdir()) == [
        "round-0000", "round-0002", "unseen-0000", "unseen-0002"
    ]  # fmt: skip


def test_evaluation_alone_changes_no_weight(finished, checkpoint, tmp_path):
    plain, run = words(checkpoint, tmp_path / "run", ""), tmp_path / "run"
    with Scripted([]) as server:
        assert main([*plain[: plain.index("--reward")], "--rounds", "1", "--reward", mixed(server.url)]) == 0
    one, two = (load_file(folder / "checkpoints/step-000001/weights.safetensors") for folder in (finished, run))
    assert all(one[name].equal(two[name]) for name in one)


def test_a_resumed_run_uses_the_same_scale_wherever_the_server_is(finished, checkpoint, tmp_path, capsys):
    run = tmp_path / "cut"
    with Scripted([]) as server:
        assert main(words(checkpoint, run, mixed(server.url), "--rounds", "1")) == 0
        old = server.url
    (run / "reward.json").unlink()  # it is for people: the checkpoint has what is needed
    with Scripted([]) as server:
        text = (run / "config.yaml").read_text()
        (run / "config.yaml").write_text(text.replace("0.5*", "0.6*").replace(old, server.url))
        assert main(["resume", str(run), "--rounds", "2"]) == 2
        assert re.search(r"reward .*0\.5 \* .* -> .*0\.6 \* ", capsys.readouterr().err)
        (run / "config.yaml").write_text(text.replace(old, server.url))
        assert main(["resume", str(run), "--rounds", "2"]) == 0
    rounds = lambda run: [record for record in metrics(run) if "round" in record]  # noqa: E731
    assert rounds(run) == rounds(finished)
    weights = [load_file(r / "checkpoints/step-000002/weights.safetensors") for r in (run, finished)]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])


def test_the_report_shows_parts_others_and_unseen_prompts(finished):
    page = (finished / "report.html").read_text()
    for said in ("Parts of the reward", "Held-out rewards", "Prompts not trained on", "min(soft-colourfulness"):
        assert said in page, said


def test_prompts_that_are_trained_on_are_not_unseen(checkpoint, tmp_path, capsys):
    arguments = words(checkpoint, tmp_path / "run", "colourfulness")
    arguments[arguments.index("b2-template2-test")] = "b2-template2-train"
    assert main(arguments) == 2
    assert "40 of its 40 prompts are trained on too, 'red apple' among them" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_methods_that_follow_the_gradient(checkpoint, tmp_path, capsys, monkeypatch):
    settings = [
        "train", "alignprop-compressibility", "--model", str(checkpoint), "--prompts", "b2-template2-train", "--rounds",
        "1", "sampling.steps=3", "sampling.samples=4", "optimizer.updates=2", "optimizer.rows=2",
        "evaluation.prompts=2", "evaluation.per_prompt=2", "evaluation.kl_images=0", "early_stop.metric=none",
    ]  # fmt: skip
    good = "standardise(soft-colourfulness) + 0.1*jpeg-surrogate-compressibility"
    run = tmp_path / "run"
    assert main([*settings, "--out", str(run), "--reward", good, "--evaluation.rewards", "colourfulness"]) == 0
    record = next(record for record in metrics(run) if "round" in record)
    scale = json.loads((run / "reward.json").read_text())["base"]["parts"]["reward"]["soft-colourfulness"]
    by_hand = (record["reward/parts/soft-colourfulness"] - scale["mean"]) / scale["std"]
    by_hand += 0.1 * record["reward/parts/jpeg-surrogate-compressibility"]
    assert record["reward/mean"] == pytest.approx(by_hand, abs=1e-4)

    def load(*_):
        raise AssertionError("weights are loaded")

    monkeypatch.setattr(setup, "load_model", load)
    bad = "soft-colourfulness + 0.1*jpeg-compressibility + colourfulness"
    assert main([*settings, "--out", str(tmp_path / "bad"), "--reward", bad]) == 2
    assert "but jpeg-compressibility and colourfulness have none" in capsys.readouterr().err
