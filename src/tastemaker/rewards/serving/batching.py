"""Requests that wait together are scored together: one call of the reward for several of them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from tastemaker.errors import RewardError
from tastemaker.rewards.foreign import described
from tastemaker.rewards.serving.protocol import RequestError, ScoreRequest

Score = Callable[[Tensor, Sequence[str]], Tensor]


@dataclass(frozen=True)
class _Waiting:
    asked: ScoreRequest
    answer: asyncio.Future[Tensor]


class Batcher:
    """Joins requests into calls of `score`, which is never called twice at once, as rewards need not bear that.

    A call has at most `size` images, all of one size. A request that comes alone waits `join` seconds for others;
    with 0 none are joined, and each request is a call of its own. At most `room` pixels wait.
    """

    def __init__(self, score: Score, size: int, join: float, room: int) -> None:
        self.score, self.size, self.join, self.room = score, size, join, room
        self._queue: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Images that wait."""
        return sum(len(entry.asked.prompts) for entry in self._queue)

    async def ask(self, asked: ScoreRequest) -> Tensor:
        """Rewards [B] of a request's images. Raises RewardError where the reward fails, RequestError when full."""
        pixels = sum(_pixels(entry.asked) for entry in self._queue)
        if self._queue and pixels + _pixels(asked) > self.room:
            raise RequestError(503, f"{self.waiting} images are waiting already: try again later")
        entry = _Waiting(asked, asyncio.get_running_loop().create_future())
        self._queue.append(entry)
        self._arrived.set()
        return await entry.answer

    async def run(self) -> None:
        """Serves what is asked, until it is cancelled."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="reward") as thread:
            while True:
                await self._arrived.wait()
                if self.join and self.waiting < self.size:
                    await asyncio.sleep(self.join)
                if joined := self._take():
                    _settle(joined, await loop.run_in_executor(thread, self._scored, [e.asked for e in joined]))
                if not self._queue:
                    self._arrived.clear()

    def _take(self) -> list[_Waiting]:
        """The first request that still waits, and with it later ones of its size; the rest keep their order."""
        taken: list[_Waiting] = []
        kept: deque[_Waiting] = deque()
        count = 0
        for entry in self._queue:
            if entry.answer.done():  # who asked has left
                continue
            more = len(entry.asked.prompts)
            if not taken or (self.join and count + more <= self.size and _alike(entry, taken[0])):
                taken.append(entry)
                count += more
            else:
                kept.append(entry)
        self._queue = kept
        return taken

    def _scored(self, joined: Sequence[ScoreRequest]) -> list[Tensor | RewardError]:
        """Each request's rewards, or why it has none."""
        try:
            values = self._call(
                torch.cat([asked.x for asked in joined]), [p for asked in joined for p in asked.prompts]
            )
            return list(values.split([len(asked.prompts) for asked in joined]))
        except BaseException as error:  # whatever it is, those who wait must hear of it; Ctrl-C comes to another thread
            if len(joined) == 1:
                known = isinstance(error, RewardError)
                return [error if known else RewardError(f"scoring failed with {described(error)}")]
        # One of them may have spoilt it for the others.
        return [answer for asked in joined for answer in self._scored([asked])]

    def _call(self, x: Tensor, prompts: Sequence[str]) -> Tensor:
        parts = [
            self.score(x[start : start + self.size], prompts[start : start + self.size])
            for start in range(0, len(prompts), self.size)
        ]
        return torch.cat(parts)


def _pixels(asked: ScoreRequest) -> int:
    return asked.x.shape[0] * asked.x.shape[2] * asked.x.shape[3]


def _alike(one: _Waiting, other: _Waiting) -> bool:
    return one.asked.x.shape[1:] == other.asked.x.shape[1:]


def _settle(joined: Sequence[_Waiting], answers: Sequence[Tensor | RewardError]) -> None:
    for entry, answer in zip(joined, answers, strict=True):
        if entry.answer.done():
            continue
        if isinstance(answer, RewardError):
            entry.answer.set_exception(answer)
        else:
            entry.answer.set_result(answer)
