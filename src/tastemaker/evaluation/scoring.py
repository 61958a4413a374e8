"""Rewards of images while the next ones are sampled: one thread, in batches, cut short after a failure.

Rewards that are `whole`, such as people, are called once, when all images are there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager

import torch
from torch import Tensor

from tastemaker.rewards.base import Reward, functions, leaf_scores


class BackgroundScorer:
    """Scores batches in one thread, since rewards need not be thread-safe. After a failure it asks for nothing more."""

    def __init__(self, rewards: Mapping[str, Reward]) -> None:
        self.rewards, self.thread = rewards, ThreadPoolExecutor(max_workers=1)
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
            self.answers.append(self.thread.submit(self._score, self._by_batch, x, prompts, latents))
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
            self.answers.append(self.thread.submit(self._score, self._whole, images, self._prompts, latents))
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
        for reward in self.rewards.values():
            reward.cancel()

    def _score(
        self, rewards: Mapping[str, Reward], x: Tensor, prompts: Sequence[str], latents: Tensor
    ) -> dict[str, Tensor]:
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
        scorer.thread.shutdown(wait=False, cancel_futures=True)
        while under_way := [answer for answer in scorer.answers if not answer.done()]:
            scorer.cancel()
            wait(under_way, timeout=0.1)
        raise
    finally:
        scorer.thread.shutdown(cancel_futures=True)
