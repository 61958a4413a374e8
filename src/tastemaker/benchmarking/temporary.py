"""A run that is set up to be measured, and leaves nothing behind."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tastemaker.config.schema import Config
from tastemaker.runs.checkpoint import State
from tastemaker.training.evaluations import evaluate_run
from tastemaker.training.isolation import isolated
from tastemaker.training.session import Session
from tastemaker.training.setup import start


@contextmanager
def temporary_session(config: Config) -> Iterator[Session]:
    """The session of a new run in a temporary folder, without trackers, before its first round.

    Where a reward is standardised by the base model's images, these have been sampled and scored. Raises a
    TastemakerError where the run could not start.
    """
    with isolated(), tempfile.TemporaryDirectory() as folder:
        session = start(replace(config, trackers=()), Path(folder), State())
        if any(reward.unmeasured for reward in session.combinations.values()):
            evaluate_run(session)
        yield session
