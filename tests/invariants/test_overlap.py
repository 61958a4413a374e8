"""Rewards that take time are computed while the next images are sampled."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest

from tastemaker.config.schema import Config, Evaluation, Optimizer, Sampling
from tastemaker.diffusion import sampler
from tastemaker.rewards.base import as_reward
from tastemaker.runs.checkpoint import State
from tastemaker.training import rounds, setup

BATCHES, SECONDS = 16, 0.15


def session_of(checkpoint, tmp_path, reward):
    """A run whose rounds have `BATCHES` batches, and which is rewarded by `reward`."""
    config = Config(
        model=str(checkpoint), prompts="ddpo-animals", rounds=1,
        sampling=Sampling(steps=3, samples=2 * BATCHES, per_prompt=2, batch=2),
        optimizer=Optimizer(updates=2, rows=24), evaluation=Evaluation(prompts=1, per_prompt=2, kl_images=0),
    )  # fmt: skip
    return replace(setup.start(config, tmp_path, State()), reward=as_reward(reward))


def test_a_batch_is_rewarded_while_the_next_is_sampled(checkpoint, tmp_path, monkeypatch):
    """A reward ends once the next batch is being sampled, and a batch is sampled once the last is being rewarded."""
    sampling, rewarding = ([threading.Event() for _ in range(BATCHES + 1)] for _ in range(2))
    sampled, rewarded = iter(range(BATCHES)), iter(range(BATCHES))
    sampling[BATCHES].set()  # after the last there is none to wait for
    original = sampler.sample

    def sample(*arguments, **named):
        number = next(sampled)
        sampling[number].set()
        assert number == 0 or rewarding[number - 1].wait(60), "the reward did not begin"
        return original(*arguments, **named)

    def reward(x, prompts):
        number = next(rewarded)
        rewarding[number].set()
        assert sampling[number + 1].wait(60), "the next batch was not begun"
        return x.mean((1, 2, 3))

    session = session_of(checkpoint, tmp_path, reward)
    monkeypatch.setattr(sampler, "sample", sample)
    assert rounds.one_round(session)["reward_queries"] == 2 * BATCHES
    assert (next(sampled, None), next(rewarded, None)) == (None, None)


def seconds_of_a_round(checkpoint, tmp_path, monkeypatch, wait):
    """Wall time of a round in which sampling a batch takes `SECONDS` or more, and rewarding it `wait`."""

    def slow(x, prompts):
        time.sleep(wait)
        return x.mean((1, 2, 3))

    session = session_of(checkpoint, tmp_path, slow)
    original = sampler.sample

    def sampled(*arguments, **named):
        begin = time.perf_counter()
        rollout = original(*arguments, **named)
        time.sleep(max(0.0, SECONDS - (time.perf_counter() - begin)))
        return rollout

    with monkeypatch.context() as patch:
        patch.setattr(sampler, "sample", sampled)
        begin = time.perf_counter()
        rounds.one_round(session)
        return time.perf_counter() - begin, session.seconds["score"]


@pytest.mark.slow
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
