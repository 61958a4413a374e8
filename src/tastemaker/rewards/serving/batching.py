"""Joins requests that are waiting at the same time into one call of the reward."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from tastemaker.errors import RewardError
from tastemaker.rewards.serving.protocol import RequestError, ScoreRequest
from tastemaker.rewards.user_code import described

ScoreFunction = Callable[[Tensor, Sequence[str]], Tensor]


@dataclass(frozen=True)
class _Pending:
    request: ScoreRequest
    answer: asyncio.Future[Tensor]


class Batcher:
    """Joins requests into calls of `score`, one at a time, since rewards need not be thread-safe.

    A call has at most `size` images, all of one size. A request that arrives alone waits `join` seconds for others;
    with 0 none are joined, and each request is a call of its own. At most `max_waiting` pixels are queued.
    """

    def __init__(self, score: ScoreFunction, size: int, join: float, max_waiting: int) -> None:
        self.score, self.size, self.join, self.max_waiting = score, size, join, max_waiting
        self._queue: deque[_Pending] = deque()
        self._arrived = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Images in the queue."""
        return sum(len(entry.request.prompts) for entry in self._queue)

    async def submit(self, request: ScoreRequest) -> Tensor:
        """Rewards [B] of a request's images. Raises RewardError where the reward fails, RequestError when full."""
        pixels = sum(_pixels(entry.request) for entry in self._queue)
        if self._queue and pixels + _pixels(request) > self.max_waiting:
            raise RequestError(503, f"{self.waiting} images are waiting already: try again later")
        entry = _Pending(request, asyncio.get_running_loop().create_future())
        self._queue.append(entry)
        self._arrived.set()
        return await entry.answer

    async def run(self) -> None:
        """Processes the queue until it is cancelled."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="reward") as thread:
            while True:
                await self._arrived.wait()
                if self.join and self.waiting < self.size:
                    await asyncio.sleep(self.join)
                if batch := self._take():
                    _resolve(batch, await loop.run_in_executor(thread, self._score, [entry.request for entry in batch]))
                if not self._queue:
                    self._arrived.clear()

    def _take(self) -> list[_Pending]:
        """The first request in the queue and later ones with images of its size; the rest keep their order."""
        taken: list[_Pending] = []
        kept: deque[_Pending] = deque()
        count = 0
        for entry in self._queue:
            if entry.answer.done():  # the client has disconnected
                continue
            more = len(entry.request.prompts)
            if not taken or (self.join and count + more <= self.size and _same_size(entry, taken[0])):
                taken.append(entry)
                count += more
            else:
                kept.append(entry)
        self._queue = kept
        return taken

    def _score(self, batch: Sequence[ScoreRequest]) -> list[Tensor | RewardError]:
        """Each request's rewards, or the error."""
        try:
            values = self._call(
                torch.cat([request.x for request in batch]), [p for request in batch for p in request.prompts]
            )
            return list(values.split([len(request.prompts) for request in batch]))
        except BaseException as error:  # clients must get a response to anything; Ctrl-C is raised in another thread
            if len(batch) == 1:
                known = isinstance(error, RewardError)
                return [error if known else RewardError(f"scoring failed with {described(error)}")]
        # One of them may have made the call fail for the others.
        return [answer for request in batch for answer in self._score([request])]

    def _call(self, x: Tensor, prompts: Sequence[str]) -> Tensor:
        parts = [
            self.score(x[start : start + self.size], prompts[start : start + self.size])
            for start in range(0, len(prompts), self.size)
        ]
        return torch.cat(parts)


def _pixels(request: ScoreRequest) -> int:
    return request.x.shape[0] * request.x.shape[2] * request.x.shape[3]


def _same_size(one: _Pending, other: _Pending) -> bool:
    return one.request.x.shape[1:] == other.request.x.shape[1:]


def _resolve(batch: Sequence[_Pending], answers: Sequence[Tensor | RewardError]) -> None:
    for entry, answer in zip(batch, answers, strict=True):
        if entry.answer.done():
            continue
        if isinstance(answer, RewardError):
            entry.answer.set_exception(answer)
        else:
            entry.answer.set_result(answer)
