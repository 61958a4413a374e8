"""Shared fixtures: one small random checkpoint for the whole session."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

for folder in ("", "invariants"):
    sys.path.insert(0, str(Path(__file__).parent / folder))

import tiny  # noqa: E402
from drawing import undrawn  # noqa: E402

# The same examples on every machine, with no limit on their time; `--hypothesis-profile=default` looks for others.
settings.register_profile("same", derandomize=True, deadline=None)
settings.load_profile("same")


def pytest_collection() -> None:
    """No garbage is collected while all files are imported: there is none, and looking for it takes seconds."""
    gc.disable()


def pytest_collection_finish() -> None:
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def _frozen():
    """What was imported stays, so the garbage collector need not look through it again, as every run has it do.

    For each file anew, since tests import more of the libraries as they go; nothing else of earlier files is left.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Small tensors are slower on more threads, and results are the same on every machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def _undrawn():
    """Figures of reports are not drawn, also where fixtures of a module train; `drawing.drawn` has them drawn."""
    with undrawn():
        yield


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Stable Diffusion on disk."""
    return tiny.folder(tmp_path_factory.mktemp("model") / "sd")


@pytest.fixture
def model():
    """The small Stable Diffusion behind our door, not yet tuned."""
    from tastemaker.models.latent_unet import LatentUNet
    from tastemaker.models.stable_diffusion import SD

    return LatentUNet(SD, tiny.pipeline())
