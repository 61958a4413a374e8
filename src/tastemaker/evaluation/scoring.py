"""Rewards of images while the next ones are sampled: in a thread, in batches, cut short after a failure.

Rewards that are `whole`, such as people, are called once, when all images are there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager

import torch
from torch import Tensor

from tastemaker.rewards.base import Reward, functions, leaf_scores


class BackgroundScorer:
    """Scores one batch after the other, since rewards need not be thread-safe; after a failure it asks for no more.

    Each batch has a thread of its own, which ends with it. As long as a thread that has computed on several cores is
    there, GNU's OpenMP counts more threads than cores, and those of the network sleep where they would wait for each
    other, which makes sampling slower (docs/results/speed.md).
    """

    def __init__(self, rewards: Mapping[str, Reward]) -> None:
        self.rewards = rewards
        self.answers: list[Future[dict[str, Tensor]]] = []
        self.failed: BaseException | None = None
        found = functions(rewards)
        self._whole = {name: one for name, one in found.items() if one.whole}
        self._by_batch = {name: one for name, one in found.items() if not one.whole}
        self._images: list[Tensor] = []
        self._latents: list[Tensor] = []
        self._prompts: list[str] = []

    def submit(self, x: Tensor, prompts: Sequence[str], latents: Tensor) -> None:
        """Asks for the rewards of one batch of images [N,3,H,W], or of their latents [N,*D] for rewards on these."""
        if self._by_batch:
            self._ask(self._by_batch, x, prompts, latents)
        if self._whole:
            self._images.append(x)
            self._latents.append(latents)
            self._prompts += prompts

    def finish(self, meanwhile: Callable[[], None]) -> dict[str, Tensor]:
        """The rewards [B] of all images by the names of their functions; calls `meanwhile` again and again until they
        are there."""
        batches = len(self.answers)
        if self._images:
            images, latents = torch.cat(self._images), torch.cat(self._latents)
            self._ask(self._whole, images, self._prompts, latents)
        found = []
        for answer in self.answers:
            while wait([answer], timeout=0.2).not_done:
                meanwhile()
            found.append(answer.result())
        names = found[0] if batches else {}
        joined = {name: torch.cat([answer[name] for answer in found[:batches]]) for name in names}
        return joined | (found[-1] if self._images else {})

    def check(self) -> None:
        """Raises what a reward has raised."""
        if self.failed is not None:
            raise self.failed

    def cancel(self) -> None:
        """Cuts short what is under way; batches that wait are not scored any more."""
        self.failed = self.failed or CancelledError()
        for reward in self.rewards.values():
            reward.cancel()

    def _ask(self, rewards: Mapping[str, Reward], x: Tensor, prompts: Sequence[str], latents: Tensor) -> None:
        before = self.answers[-1:]
        with_own_thread = ThreadPoolExecutor(max_workers=1)
        self.answers.append(with_own_thread.submit(self._score, before, rewards, x, prompts, latents))
        with_own_thread.shutdown(wait=False)

    def _score(
        self,
        before: Sequence[Future[dict[str, Tensor]]],
        rewards: Mapping[str, Reward],
        x: Tensor,
        prompts: Sequence[str],
        latents: Tensor,
    ) -> dict[str, Tensor]:
        wait(before)
        self.check()
        try:
            return leaf_scores(rewards, x, prompts, latents)
        except BaseException as error:  # a reward may raise KeyboardInterrupt
            self.failed = error
            raise


@contextmanager
def background_scorer(rewards: Mapping[str, Reward]) -> Iterator[BackgroundScorer]:
    """After an error or a signal, images that still wait are not scored, and a reward that can be is cut short."""
    scorer = BackgroundScorer(rewards)
    try:
        yield scorer
    except BaseException:
        while under_way := [answer for answer in scorer.answers if not answer.done()]:
            scorer.cancel()
            wait(under_way, timeout=0.1)
        raise
    finally:
        wait(scorer.answers)
