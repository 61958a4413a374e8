"""Failed log-ins, of which only some are allowed in a time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field

WINDOW_SECONDS = 600.0
"""The time over which failures count."""
MOST_OF_NAME = 10
"""Failures for one user's name, from anywhere."""
MOST_OF_ADDRESS = 30
"""Failures from one address, for any names: an office may have one address."""
MOST_KEPT = 10_000
"""Names and addresses that are remembered; the oldest are forgotten first."""


@dataclass
class Attempts:
    """Failures by what they were of: a name or an address. Kept in memory, and gone with a restart."""

    _failures: OrderedDict[tuple[str, str], list[float]] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, name: str, address: str, now: float) -> float:
        """Counts an attempt, before its outcome is known, and returns 0; or seconds until another one is allowed."""
        keys = (("name", name), ("address", address))
        with self._lock:
            wait = max(self._wait(keys[0], MOST_OF_NAME, now), self._wait(keys[1], MOST_OF_ADDRESS, now))
            if wait:
                return wait
            for key in keys:
                self._failures.setdefault(key, []).append(now)
                self._failures.move_to_end(key)
            while len(self._failures) > MOST_KEPT:
                self._failures.popitem(last=False)
            return 0.0

    def succeeded(self, name: str, address: str, began: float) -> None:
        """Takes back the attempt that began at a time, as it was right, and forgets the name's failures."""
        with self._lock:
            self._failures.pop(("name", name), None)
            times = self._failures.get(("address", address), [])
            if began in times:
                times.remove(began)

    def _wait(self, key: tuple[str, str], most: int, now: float) -> float:
        times = [time for time in self._failures.get(key, []) if time > now - WINDOW_SECONDS]
        if key in self._failures:
            self._failures[key] = times
        return 0.0 if len(times) < most else times[-most] + WINDOW_SECONDS - now
