"""The last answers of servers, so that none is asked twice for the same."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class AnswerCache(Generic[T]):
    """The `size` answers that were kept last, by key: a least recently used cache. One of size 0 keeps none."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: OrderedDict[bytes, T] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def known(self, keys: Sequence[bytes]) -> dict[bytes, T]:
        """The answers to those of the keys that have one."""
        return {key: self._kept[key] for key in keys if key in self._kept}

    def keep(self, answers: Iterable[tuple[bytes, T]]) -> None:
        """Keeps answers, also known ones, as the last ones, and drops the oldest beyond the size."""
        for key, answer in answers:
            self._kept[key] = answer
            self._kept.move_to_end(key)
            if len(self._kept) > self._size:
                self._kept.popitem(last=False)
