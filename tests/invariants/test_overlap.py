"""Rewards that take time are computed while the next images are sampled."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from tastemaker.config.schema import Config, Evaluation, Optimizer, Sampling
from tastemaker.rewards.base import as_reward
from tastemaker.runs.checkpoint import State
from tastemaker.training import rounds, setup

pytestmark = pytest.mark.alone

BATCHES, SECONDS = 16, 0.15


def seconds_of_a_round(checkpoint, tmp_path, monkeypatch, wait):
    """Wall time of a round in which sampling a batch takes `SECONDS` or more, and rewarding it `wait`."""
    config = Config(
        model=str(checkpoint), prompts="ddpo-animals", rounds=1,
        sampling=Sampling(steps=3, samples=2 * BATCHES, per_prompt=2, batch=2),
        optimizer=Optimizer(updates=2, rows=24), evaluation=Evaluation(prompts=1, per_prompt=2),
    )  # fmt: skip
    session = setup.start(config, tmp_path, State())

    def slow(x, prompts):
        time.sleep(wait)
        return x.mean((1, 2, 3))

    session = replace(session, reward=as_reward(slow))
    original = rounds.sample

    def sampled(*arguments, **named):
        begin = time.perf_counter()
        rollout = original(*arguments, **named)
        time.sleep(max(0.0, SECONDS - (time.perf_counter() - begin)))
        return rollout

    with monkeypatch.context() as patch:
        patch.setattr(rounds, "sample", sampled)
        begin = time.perf_counter()
        rounds.one_round(session)
        return time.perf_counter() - begin, session.seconds["score"]


def test_a_reward_as_slow_as_sampling_adds_at_most_fifteen_percent(checkpoint, tmp_path, monkeypatch):
    seconds = {0.0: float("inf"), SECONDS: float("inf")}
    for _ in range(8):
        # The quickest of several, in turns: what else the machine does can only lengthen a round.
        for wait, shortest in seconds.items():
            now, waited = seconds_of_a_round(checkpoint, tmp_path, monkeypatch, wait)
            assert now > BATCHES * SECONDS
            # Only the last has nothing to overlap with.
            assert wait == 0 or waited > 0.5 * SECONDS
            seconds[wait] = min(shortest, now)
        if seconds[SECONDS] <= 1.15 * seconds[0.0]:
            break
    assert seconds[SECONDS] <= 1.15 * seconds[0.0]
