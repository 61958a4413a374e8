"""The cost model by hand: work from settings, seconds from work, and what `--dry-run` says of the time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_plan import FACTS, SMALL
from torch import nn

from tastemaker.algorithms.ppo import PPO
from tastemaker.cli.main import main
from tastemaker.config.presets import PRESETS
from tastemaker.config.schema import Config
from tastemaker.models import load_model
from tastemaker.training.cost import (
    CARDS,
    Seconds,
    Work,
    at,
    card_named,
    counted_seconds,
    duration,
    peak,
    round_seconds,
    round_work,
    run_cost,
    waited,
    work_of,
)
from tastemaker.training.plan import Calls, make_plan, round_calls
from tastemaker.training.preflight import preflight

SECONDS = Seconds({8: 1.0, 16: 2.0}, {4: 1.5, 2: 1.0, 8: 3.0}, 0.25, 0.5, 0.125, 0.5)


def test_work_and_seconds_of_a_round_by_hand():
    calls = round_calls(SMALL, FACTS.stochastic, 1)
    assert calls == Calls({16: 4, 8: 4}, {8: 8, 4: 2})
    work = work_of(SMALL, calls, {})
    # 12 images in batches of 8 and 4, decoded and scored; two updates.
    assert work == Work({16: 4, 8: 4}, {8: 8, 4: 2}, 2, 12, 0, 12, False, 2)
    assert round_seconds(work, SECONDS) == {
        "network without graph": 4 * 2.0 + 4 * 1.0, "network with graph": 8 * 3.0 + 2 * 1.5, "decoding": 3.0,
        "rewards": 1.5, "optimizer": 1.0,
    }  # fmt: skip
    assert work_of(SMALL, calls, {}, 2).scored == 6


def test_the_reference_is_asked_for_every_trained_row():
    """DPOK asks the reference in each update; the network without guidance has one row for an image."""
    dpok = replace(SMALL, algorithm=PRESETS["dpok-compressibility"].config.algorithm)
    assert dpok.algorithm.requirements.reference
    assert round_work(dpok, FACTS.stochastic, 1).forward == {16: 4, 8: 4 + 8, 4: 2}


def test_what_the_network_said_before_the_first_update_is_counted():
    """PPO with the exact divergence asks the network and the reference for all rows before, and the reference beside.

    With one pass over the round, each row has one call with a graph.
    """
    ppo = replace(SMALL, algorithm=PPO(kl=0.1, kl_estimator="exact"))
    rows = sum(size * count for size, count in round_calls(ppo, FACTS.stochastic, 1).backward.items())
    before = sum(size * count for size, count in round_work(ppo, FACTS.stochastic, 1).forward.items())
    assert before == (16 * 4 + 8 * 4) + 2 * rows + rows


def test_trained_steps_of_a_chain_are_made_twice_unless_everything_is_kept():
    again = PRESETS["alignprop-compressibility"].config
    work = work_of(again, Calls({8: 5}, {8: 3}), {})
    own = again.sampling.samples
    assert (work.forward, work.decoded, work.decoded_with_gradient, work.batches) == ({8: 8}, own, own, 0)
    kept = replace(again, algorithm=replace(again.algorithm, checkpointing="none"))
    work = work_of(kept, Calls({8: 5}, {8: 3}), {})
    assert (work.forward, work.decoded, work.decoded_with_gradient) == ({8: 5}, 0, own)


def test_rewards_that_are_scored_meanwhile_by_hand():
    # Three batches, sampled in 2 s each. Scored in 1 s each, only the last is waited for; in 5 s each, the sampling of
    # the first and then all three: 2 + 15 - 6 = 11.
    assert waited(6.0, 3.0, 3) == pytest.approx(1.0)
    assert waited(6.0, 15.0, 3) == pytest.approx(11.0)
    work = Work({8: 6}, {}, 3, 0, 0, 15, False, 0)
    slow = replace(SECONDS, reward=1.0)
    assert round_seconds(work, slow)["rewards"] == 15.0
    assert round_seconds(work, slow, servers=1)["rewards"] == pytest.approx(11.0)
    assert round_seconds(work, slow, servers=5)["rewards"] == pytest.approx(1.0)


def test_a_run_by_hand():
    plan = make_plan(SMALL, FACTS)
    cost = run_cost(SMALL, FACTS, plan, SECONDS)
    assert cost.rounds == pytest.approx(4 * sum(cost.round.values()))
    # A row takes 2 s / 16; an image 0.25 s to decode and 0.125 s to score.
    assert cost.evaluations == pytest.approx(plan.evaluation_rows / 8 + plan.evaluation_images * 0.375)
    assert cost.total == cost.rounds + cost.evaluations


def test_sizes_that_were_not_measured_are_in_proportion_to_the_nearest():
    assert at({4: 1.0, 16: 2.0}, 4) == 1.0
    assert at({4: 1.0, 16: 2.0}, 6) == 1.5
    assert at({4: 1.0, 16: 2.0}, 32) == 4.0


def test_counted_operations_on_a_card_by_hand():
    facts = replace(FACTS, forward_flops=10**12, backward_flops=3 * 10**12, decode_flops=10**12)
    half = replace(Config(), precision="bf16")
    found = counted_seconds(half, facts, CARDS["a100"], 0.1)
    assert at(found.forward, 8) == pytest.approx(8 / (0.35 * 312))
    assert at(found.backward, 2) == pytest.approx(6 / (0.35 * 312))
    assert found.decode == pytest.approx(1 / (0.35 * 19.5))  # the VAE is in float32
    assert found.reward == 0.1
    again = replace(half, tuning=replace(half.tuning, gradient_checkpointing=True))
    assert at(counted_seconds(again, facts, CARDS["a100"], 0).backward, 2) == pytest.approx(8 / (0.35 * 312))
    assert peak(Config(), CARDS["a100"]) == 19.5
    assert peak(replace(Config(), speed=replace(Config().speed, tf32=True)), CARDS["a100"]) == 156


@pytest.mark.parametrize(
    ("device", "name"),
    [("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA GeForce RTX 4090", "rtx-4090"), ("NVIDIA A100-SXM4-80GB", "a100"),
     ("Tesla T4", "t4"), ("NVIDIA L40S", "l40s"), ("NVIDIA GeForce GTX 1080", None)],
)  # fmt: skip
def test_cards_by_their_drivers_names(device, name):
    assert card_named(device) == name


def test_durations():
    assert [duration(value) for value in (0.25, 42, 720, 12240)] == ["0.25 s", "42 s", "12 min", "3.4 h"]


def test_operations_of_the_bundled_network_are_those_of_its_layers_and_its_attention():
    """Independently: 2 x weights x places where a layer is applied, for linear layers and convolutions."""
    model, counted = load_model("bundled"), []

    def count(layer, inputs, output):
        places = output.numel() / (layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features)
        counted.append(2 * layer.weight.numel() * places)

    for layer in model.network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.register_forward_hook(count)
    with torch.no_grad():
        model.predict(torch.zeros(1, *model.latent_shape), torch.zeros(1, dtype=torch.int64), model.encode([""], 1.0))
    facts = preflight(Config(prompts="bundled-single"), None)
    assert sum(counted) < facts.forward_flops < 1.2 * sum(counted)
    assert 1.5 * facts.forward_flops < facts.backward_flops < 3 * facts.forward_flops


TINY = ["sampling.samples=2", "sampling.per_prompt=1", "sampling.steps=2", "sampling.batch=2", "optimizer.rows=2",
    "optimizer.updates=1"]  # fmt: skip


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--dry-run"], "not estimated: --machine.measure"),
        (["--dry-run", "--machine.card", "h100", "--machine.gpus", "2"], "2 processes with h100 at 35% of 67 TFLOP/s"),
        (["--dry-run", "--machine.card=l4", "--machine.reward-seconds", "3"], "3 s for a reward"),
        (["--dry-run", "--machine.measure"], "measured here in a few calls, for 1 process"),
    ],
)
def test_the_line_of_a_dry_run(argv, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "ddpo-compressibility", *TINY, *argv]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("time ")
    assert said in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--machine.card", "h100"], "for --dry-run"),
        (["--dry-run", "--machine.card", "h10"], "did you mean 'h100'"),
        (["--dry-run", "--machine.card", "h100", "--machine.measure"], "about this machine"),
        (["--dry-run", "--machine.gpus", "0"], "--machine.gpus is 0"),
    ],
)
def test_wrong_machines(argv, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "ddpo-compressibility", *argv]) == 2
    assert said in capsys.readouterr().err
