"""Rewards in the background: one batch after the other, in threads that end, and none after an error."""

import threading
import time

import pytest
import torch

from tastemaker.evaluation.scoring import background_scorer
from tastemaker.rewards.base import wrap

IMAGES, LATENTS = torch.zeros(2, 3, 8, 8), torch.zeros(2, 4, 1, 1)


def test_batches_come_one_after_the_other_and_each_thread_ends_with_its_batch():
    """A thread that stays makes OpenMP's threads sleep while the next batch is sampled."""
    threads, running, most = [], [], []

    def slow(images, prompts):
        threads.append(threading.current_thread())
        running.append(1)
        time.sleep(0.05)
        most.append(len(running))
        running.pop()
        return [float(len(threads))] * len(images)

    with background_scorer({"slow": wrap(slow, "slow")}) as scorer:
        scorer.submit(IMAGES, ["a", "b"], LATENTS)
        scorer.answers[0].result()
        threads[0].join(timeout=60)
        assert not threads[0].is_alive()
        for _ in range(3):
            scorer.submit(IMAGES, ["a", "b"], LATENTS)
        found = scorer.finish(lambda: None)
    assert most == [1] * 4
    assert [values.tolist() for values in found.values()] == [[1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 4.0]]


def test_after_an_error_batches_that_wait_are_not_scored():
    begun, go, calls = threading.Event(), threading.Event(), []

    def blocked(images, prompts):
        calls.append(prompts)
        begun.set()
        assert go.wait(60)
        return [0.0] * len(images)

    def fail(scorer):
        for name in ("a", "b", "c"):
            scorer.submit(IMAGES, [name, name], LATENTS)
        assert begun.wait(60)
        threading.Timer(0.3, go.set).start()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), background_scorer({"blocked": wrap(blocked, "blocked")}) as scorer:
        fail(scorer)
    assert len(calls) == 1
    assert all(answer.done() for answer in scorer.answers)
