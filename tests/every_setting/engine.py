"""Cases of `sampling.engine` and the section `rollout_engine`, with an engine on 127.0.0.1."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from torch import Tensor

import tiny_flow
from every_setting import DRAW, Lab, acts
from rollout_server import Engine, fails, running, slow
from tastemaker.errors import EngineError, EngineUnavailable
from tastemaker.models import wrap_pipeline
from tastemaker.rewards.serving import retry
from tastemaker.training import setup


@contextmanager
def served(lab: Lab, **settings: Any) -> Iterator[tuple[Engine, Callable[[], Tensor]]]:
    """An engine, and what samples four images of a run that uses it, to their final latents."""
    engine = Engine(tiny_flow.sd3(with_t5=False))
    with running(engine) as (url, _):
        own = {"folder": str(lab.new("adapters")), "wait": 0.0} | settings
        model = wrap_pipeline(tiny_flow.sd3(with_t5=False))
        with mock.patch.object(setup, "load_model", return_value=model):
            session = lab.session(
                model="sd3",
                sampling={"engine": url, "height": 32, "width": 32, "eta": 0.7},
                rollout_engine=own,
                trained=True,
            )
        with mock.patch.object(retry, "backoff", return_value=0.01):
            yield engine, lambda: session.sampler(DRAW, session.model.encode(DRAW.prompts, 1.0), [0, 1]).x0


@acts("sampling.engine", "rollout_engine.folder")
def engine(lab: Lab) -> None:
    """The images are the engine's, with the adapter out of the folder."""
    folder = lab.new("shared")
    with served(lab, folder=str(folder)) as (own, sampled):
        found = sampled()
    assert len(found) == 4
    assert sorted(one["prompt"] for one in own.asked[-4:]) == sorted(DRAW.prompts)
    assert [Path(path).parents[2] for path in own.loads] == [folder] * 2


@acts("rollout_engine.in_flight")
def in_flight(lab: Lab) -> None:
    now, most, lock = 0, 0, threading.Lock()

    def count(number: int) -> None:
        nonlocal now, most
        with lock:
            now, most = now + 1, max(most, now + 1)
        time.sleep(0.1)
        with lock:
            now -= 1

    with served(lab, in_flight=2) as (own, sampled):
        own.before = count
        sampled()
    assert most == 2


@acts("rollout_engine.timeout")
def timeout(lab: Lab) -> None:
    with served(lab, timeout=0.7) as (own, sampled):
        own.before = slow(3)
        with pytest.raises(EngineUnavailable, match=r"no complete response within 0\.7 s"):
            sampled()


@acts("rollout_engine.wait")
def wait(lab: Lab) -> None:
    """Busy once, which passes unless there is no waiting."""
    for seconds in (0.0, 30.0):
        with served(lab, wait=seconds) as (own, sampled):
            own.before = lambda number: fails(503, "busy")(number) if number == 0 else None
            if seconds:
                assert len(sampled()) == 4
            else:
                with pytest.raises(EngineUnavailable, match="after 1 try"):
                    sampled()


@acts("rollout_engine.tries")
def tries(lab: Lab) -> None:
    with served(lab, tries=5, wait=30.0) as (own, sampled):
        own.before = fails(500, "out of memory")
        with pytest.raises(EngineUnavailable, match="after 5 tries"):
            sampled()
    assert len(own.asked) == 5


@acts("rollout_engine.ratio_bound")
def ratio_bound(lab: Lab) -> None:
    """Rounding alone is 1e-8."""
    with served(lab, ratio_bound=1e-15) as (_, sampled), pytest.raises(EngineError, match="bound allows 1e-15"):
        sampled()


@acts("rollout_engine.token_env")
def token_env(lab: Lab) -> None:
    with mock.patch.dict(os.environ, {"MY_TOKEN": "abc"}), served(lab, token_env="MY_TOKEN") as (own, sampled):
        sampled()
    assert {headers["authorization"] for headers in own.headers} == {"Bearer abc"}
