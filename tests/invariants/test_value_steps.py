"""The value network's own steps in whole rounds (DPOK's public code), against AdamW on a copy of the network."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from test_accumulation import config

from tastemaker.algorithms.dpok import DPOK
from tastemaker.config.schema import Advantage
from tastemaker.data.prompt_set import PromptSet
from tastemaker.errors import ConfigError
from tastemaker.runs.checkpoint import State
from tastemaker.training import rounds, setup
from tastemaker.training.draws import value_states

ALONE = DPOK(value="mlp", value_lr=1e-2, value_batch=30)
"""Steps on 30 of the round's 40 states."""


@pytest.mark.parametrize(
    "algorithm",
    [ALONE, replace(ALONE, value_updates=3), replace(ALONE, value_clip_norm=0.05), replace(ALONE, value_text="mean"),
     replace(ALONE, value_batch=90)],
    ids=["one", "three", "clipped", "mean", "more than there are"],
)  # fmt: skip
def test_the_steps_are_adamws_on_the_mean_squared_error(algorithm, checkpoint, tmp_path, monkeypatch):
    plain = config(checkpoint)
    settings = replace(plain, algorithm=algorithm, advantage=Advantage(normalise="none", clip=None))
    session = setup.start(settings, tmp_path, State())
    value, seen = session.task.value, []
    assert value is not None

    def watched(own, rollout, *rest):
        theirs, before = copy.deepcopy(value), copy.deepcopy(value.state_dict())
        record = train_value(own, rollout, *rest)
        seen.append((theirs, before, rollout, record, copy.deepcopy(value.state_dict())))
        return record

    train_value = rounds.train_value
    monkeypatch.setattr(rounds, "train_value", watched)
    record = rounds.one_round(session)
    ((theirs, before, rollout, own, after),) = seen
    text = session.model.encode(rollout.draw.prompts, 1.0)["text"].mean(dim=1)
    if algorithm.value_text == "pooled":
        pipe = session.model.pipeline
        tokens = pipe.tokenizer(
            list(rollout.draw.prompts), padding="max_length", truncation=True, return_tensors="pt", max_length=16
        )
        text = pipe.text_encoder(tokens.input_ids).pooler_output.detach()
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-2, weight_decay=1e-4)
    losses = []
    for states in value_states(settings.seed, 1, 40, algorithm.value_batch, algorithm.value_updates):
        images, steps = torch.tensor(states) // 5, torch.tensor(states) % 5
        times = session.task.sde.grid.times[rollout.steps[steps]]
        found = theirs(rollout.latents[images, steps], times, text[images].unsqueeze(1))
        loss = (found - rollout.reward[images]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        if algorithm.value_clip_norm is not None:
            norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), algorithm.value_clip_norm)
            assert norm > 2 * algorithm.value_clip_norm
        optimizer.step()
        losses.append(loss.item())
    assert own["value_loss"] == record["value_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    moved = 0.0
    for name, parameter in theirs.state_dict().items():
        torch.testing.assert_close(after[name], parameter, rtol=1e-3, atol=2e-5)
        moved = max(moved, (parameter - before[name]).abs().max().item())
        # The policy's updates leave the value network alone.
        assert torch.equal(value.state_dict()[name], after[name])
    assert moved > 5e-3
    assert record["updates"] == 2


def test_without_steps_of_its_own_the_value_network_learns_in_the_policys_updates(checkpoint, tmp_path):
    algorithm = replace(ALONE, value_batch=None)
    settings = replace(config(checkpoint), algorithm=algorithm, advantage=Advantage(normalise="none", clip=None))
    norms = {}
    for limit in (None, 1e-3):
        session = setup.start(replace(settings, algorithm=replace(algorithm, value_clip_norm=limit)), tmp_path, State())
        before = copy.deepcopy(session.task.value.state_dict())
        assert rounds.one_round(session)["value_loss"] > 0
        assert any(not torch.equal(before[name], p) for name, p in session.task.value.state_dict().items())
        moments = [session.optimizer.state[p]["exp_avg_sq"] for p in session.task.value.parameters()]
        norms[limit] = sum(moment.sum().item() for moment in moments)
    assert norms[1e-3] < 1e-2 * norms[None]


def lists(monkeypatch, trained, unseen):
    found = {"trained": PromptSet(trained, tuple(range(1, len(trained) + 1))), "unseen": PromptSet(unseen, (1.0,) * 2)}
    monkeypatch.setattr(setup, "load_prompts", found.__getitem__)
    return found["trained"]


def test_prompts_that_are_evaluated_are_held_out_of_the_training(checkpoint, monkeypatch):
    settings = replace(config(checkpoint), prompts="trained")
    settings = replace(settings, evaluation=replace(settings.evaluation, unseen="unseen"))
    held = replace(settings, evaluation=replace(settings.evaluation, hold_out=True))
    both = lists(monkeypatch, ("a", "b", "c"), ("b", "z"))
    with pytest.raises(ConfigError, match=r"1 of its 2 prompts are trained on too, 'b' among them: .*hold_out=true"):
        setup.split_prompts(settings, both)
    trained, unseen = setup.split_prompts(held, both)
    assert (trained.prompts, trained.weights) == (("a", "c"), (1, 3))
    assert unseen is not None
    assert unseen.prompts == ("b", "z")
    with pytest.raises(ConfigError, match="leaves no prompt to train on"):
        setup.split_prompts(held, lists(monkeypatch, ("z", "b"), ("b", "z")))
