"""Where the seconds of a round go: each is counted to one part, by timing what the round calls."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from tastemaker.algorithms.base import Task
from tastemaker.diffusion import sampler, single_pass
from tastemaker.evaluation import metrics
from tastemaker.training import rounds
from tastemaker.training.session import Session
from tastemaker.types import Draw

FORWARD, TRAIN, VALUE = "network without graph", "network with graph", "value network"
MATHS, NOISE, OTHER, SCORE = "log-prob and scheduler maths", "noise", "other", "scoring (waited for)"
DECODE, TEXT, JUDGE, STEP = "VAE decode", "text encoding", "judge", "optimizer step"
PARTS = (FORWARD, TRAIN, VALUE, MATHS, NOISE, DECODE, TEXT, SCORE, JUDGE, STEP, OTHER)
"""What a round's seconds are divided into."""
_ABSENT: Any = object()


def traced_round(session: Session) -> dict[str, float]:
    """Seconds of one round by PARTS."""
    session.seconds.clear()
    trace = Trace(session.accelerator.device)
    with tracing(session, trace), trace.part(OTHER):
        rounds.one_round(session)
    # Scoring goes on in another thread, and only what the round waited for it is the round's.
    waited = session.seconds.get("score", 0.0)
    return {name: trace.seconds[name] for name in PARTS} | {SCORE: waited, OTHER: trace.seconds[OTHER] - waited}


class Trace:
    """Counts each second to the innermost part that is open, in the thread that made it."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.device, self.thread = device, threading.current_thread()
        self.open: list[str] = []
        self.mark = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Counts the seconds inside to `name`, without those of parts opened inside; not in other threads."""
        if threading.current_thread() is not self.thread:
            yield
            return
        self._turn()
        self.open.append(name)
        try:
            yield
        finally:
            self._turn()
            self.open.pop()

    def become(self, name: str) -> None:
        """From here on, the open part is another. On a GPU the backward pass calls this from a thread of its own,
        while the one that opened the part waits for it."""
        self._turn()
        self.open[-1] = name

    def _turn(self) -> None:
        now = clock(self.device)
        if self.open:
            self.seconds[self.open[-1]] += now - self.mark
        self.mark = now


@contextmanager
def tracing(session: Session, trace: Trace) -> Iterator[None]:
    """Inside it, what a round calls is counted to its part."""
    # Around the network, not in it: a compiled one would be compiled again for what is in it.
    predict = session.model.predict

    def traced_predict(*args: Any) -> Any:
        grad = torch.is_grad_enabled()
        with trace.part(TRAIN if grad else FORWARD):
            out = predict(*args)
        if grad:
            # The backward pass reaches the network's output when it is through with the maths after it.
            out.register_hook(lambda _: trace.become(TRAIN))
        return out

    estimate = Task.estimate

    def traced_estimate(*args: Any) -> Any:
        with trace.part(VALUE):
            out = estimate(*args)
        if out.requires_grad:
            out.register_hook(lambda gradient: trace.become(VALUE))
        return out

    timed: list[tuple[Any, str, str]] = [
        (sampler, "sample", MATHS), (type(session.config.algorithm), "loss", MATHS), (Draw, "noise", NOISE),
        (session.accelerator, "backward", MATHS), (single_pass, "gradients_of", MATHS),
        (session.model, "decode", DECODE), (session.model, "encode", TEXT),
        (metrics, "judge", JUDGE), (session.accelerator, "clip_grad_norm_", STEP),
        (session.optimizer, "step", STEP), (session.optimizer, "zero_grad", STEP),
    ]  # fmt: skip
    with ExitStack() as stack:
        for owner, name, part in timed:
            stack.enter_context(replaced(owner, name, _counted(getattr(owner, name), trace, part)))
        stack.enter_context(replaced(session.model, "predict", traced_predict))
        stack.enter_context(replaced(Task, "estimate", traced_estimate))
        yield


def _counted(function: Callable[..., Any], trace: Trace, part: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        with trace.part(part):
            return function(*args, **kwargs)

    return call


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Inside it, `owner` has another attribute of this name; afterwards the old one, or again its class's."""
    own = vars(owner).get(name, _ABSENT)
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name) if own is _ABSENT else setattr(owner, name, own)


def clock(device: torch.device) -> float:
    """Seconds, once the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
