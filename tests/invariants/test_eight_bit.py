"""8-bit AdamW states train, and are saved and put back bit for bit."""

from __future__ import annotations

import json
from importlib.metadata import version

import pytest
from safetensors import safe_open
from safetensors.torch import load_file
from test_processes import distance
from test_runs import words

from tastemaker.cli.main import main

pytest.importorskip("bitsandbytes", reason="needs the extra eight-bit")

FULL = ["tuning.mode=full", "--optimizer.eight-bit", "optimizer.lr=1e-3"]


@pytest.fixture(scope="module")
def runs(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("eight-bit")
    assert main(words(checkpoint, folder / "whole", *FULL, "--rounds", "2")) == 0
    assert main(words(checkpoint, folder / "resumed", *FULL, "--rounds", "1")) == 0
    assert main(["resume", str(folder / "resumed"), "--rounds", "2"]) == 0
    return folder


def test_states_are_in_eight_bits_and_the_weights_move(runs):
    last = runs / "whole/checkpoints/step-000002"
    with safe_open(last / "optimizer.safetensors", "pt") as file:
        kinds = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    assert "U8" in kinds
    before = load_file(runs / "resumed/checkpoints/step-000001/weights.safetensors")
    assert distance(before, load_file(last / "weights.safetensors")) > 1e-4


def test_resumed_is_uninterrupted(runs):
    whole, resumed = (runs / run / "checkpoints/step-000002" for run in ("whole", "resumed"))
    for name in ("weights.safetensors", "optimizer.safetensors"):
        assert (whole / name).read_bytes() == (resumed / name).read_bytes()
    assert json.loads((whole / "state.json").read_text()) == json.loads((resumed / "state.json").read_text())


def test_the_version_of_bitsandbytes_is_kept(runs):
    manifest = json.loads((runs / "whole/checkpoints/step-000002/manifest.json").read_text())
    assert manifest["fingerprint"]["versions"]["bitsandbytes"] == version("bitsandbytes")
