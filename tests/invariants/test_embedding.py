"""A run inside another program: a thread, a running event loop, other global settings; all as it was afterwards."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import random
import signal
import sys
import threading
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import diffusers
import numpy
import pytest
import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from tastemaker.config.schema import Config, Evaluation, Optimizer, Sampling
from tastemaker.errors import ConfigError
from tastemaker.training.isolation import isolated
from tastemaker.training.progress import Display
from tastemaker.training.run import resume, train
from tastemaker.training.signals import Stop, listening


@pytest.fixture
def config(checkpoint: Path) -> Config:
    return Config(
        model=str(checkpoint), rounds=1, prompts="ddpo-animals", sampling=Sampling(steps=2, samples=4, per_prompt=2),
        optimizer=Optimizer(updates=1), evaluation=Evaluation(prompts=1, per_prompt=2, kl_images=0),
    )  # fmt: skip


def settings() -> dict[str, Any]:
    """What a training could leave changed in its process."""
    libraries = (diffusers.utils.logging, transformers.logging)
    return {
        "random": random.getstate(),
        "numpy": [str(part) for part in numpy.random.get_state()],
        "torch": torch.get_rng_state().tolist(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "matmul": torch.get_float32_matmul_precision(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "gradients": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "accelerate": [dict(kind._shared_state) for kind in (PartialState, AcceleratorState, GradientState)],
        "environment": dict(os.environ),
        "path": list(sys.path),
        "folder": Path.cwd(),
        "streams": (sys.stdout, sys.stderr),
        "warnings": list(warnings.filters),
        "logging": [logging.getLogger(name).level for name in ("", "accelerate", "diffusers", "transformers")],
        "verbosity": [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries],
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
    }


def test_a_run_in_another_program_is_the_same_run_and_leaves_the_program_as_it_was(config, tmp_path):
    train(config, tmp_path / "plain", command="a test")
    before, found = settings(), []

    async def job() -> None:
        torch.set_default_dtype(torch.float64)
        torch.set_float32_matmul_precision("medium")
        diffusers.utils.logging.disable_progress_bar()
        random.seed(3)
        AcceleratorState._reset_state(reset_partial_state=True)  # of tests before this one
        own = Accelerator(mixed_precision="bf16", cpu=True)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), redirect_stdout(io.StringIO()):
            torch.set_default_device("meta")
            found.append(settings())
            train(config, tmp_path / "run", command="a test")
            found.append(settings())
            resume(tmp_path / "run", 2)
            found.append(settings())
            torch.set_default_device(None)
        assert own.mixed_precision == "bf16"

    def work() -> None:
        try:
            with redirect_stderr(None):
                asyncio.run(job())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    torch.set_default_dtype(torch.float32)
    torch.set_float32_matmul_precision(before["matmul"])
    diffusers.utils.logging.enable_progress_bar()
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    for one in found:
        assert not isinstance(one, BaseException), one
    inside, *after = found
    for one in after:
        assert {name for name in inside if inside[name] != one[name]} == set()
    assert len(after) == 2
    records = [_records(tmp_path / name) for name in ("plain", "run")]
    assert records[0] == records[1][: len(records[0])]
    assert [record["round"] for record in records[1] if "round" in record] == [1, 2]


def _records(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith("seconds/")} for line in lines]


def test_handlers_that_are_not_pythons_stay(monkeypatch):
    """Those of a program that embeds Python: it could not put them back."""
    changed: list[Any] = []
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    monkeypatch.setattr(signal, "signal", lambda *given: changed.append(given))
    with listening(Stop(None), Display(1)):  # type: ignore[arg-type]
        pass
    assert not changed


def test_one_training_at_a_time(config, tmp_path):
    with isolated():
        with pytest.raises(ConfigError, match="another training runs in this process"):
            train(config, tmp_path / "run", command="a test")
        assert not (tmp_path / "run").exists()
    with isolated():
        pass


def test_an_error_leaves_the_program_as_it_was(config, tmp_path):
    before = settings()
    with pytest.raises(ConfigError, match="trackers has 'wandbb'; did you mean 'wandb'"):
        train(Config(trackers=("wandbb",)), tmp_path / "run", command="a test")
    assert settings() == before
    assert not list(tmp_path.iterdir())
