"""Rewards of images while the next ones are sampled: one thread, in batches, cut short after a failure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager

from torch import Tensor

from tastemaker.rewards.base import Reward, leaf_scores


class BackgroundScorer:
    """Scores batches in one thread, since rewards need not be thread-safe. After a failure it asks for nothing more."""

    def __init__(self, rewards: Mapping[str, Reward]) -> None:
        self.rewards, self.thread = rewards, ThreadPoolExecutor(max_workers=1)
        self.answers: list[Future[dict[str, Tensor]]] = []
        self.failed: BaseException | None = None

    def submit(self, x: Tensor, prompts: Sequence[str], latents: Tensor) -> None:
        """Asks for the rewards of one batch of images [N,3,H,W], or of their latents [N,*D] for rewards on these."""
        self.answers.append(self.thread.submit(self._score, x, prompts, latents))

    def finished(self, meanwhile: Callable[[], None]) -> Iterator[dict[str, Tensor]]:
        """The batches' rewards in order, each when it is there; calls `meanwhile` again and again until then."""
        for answer in self.answers:
            while wait([answer], timeout=0.2).not_done:
                meanwhile()
            yield answer.result()

    def check(self) -> None:
        """Raises what a reward has raised."""
        if self.failed is not None:
            raise self.failed

    def cancel(self) -> None:
        for reward in self.rewards.values():
            reward.cancel()

    def _score(self, x: Tensor, prompts: Sequence[str], latents: Tensor) -> dict[str, Tensor]:
        self.check()
        try:
            return leaf_scores(self.rewards, x, prompts, latents)
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
