"""Every algorithm trains pixel models: with classes as prompts, a predicted variance and no VAE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import given
import tiny
from tastemaker.algorithms.ppo import PPO
from tastemaker.algorithms.registry import ALGORITHMS
from tastemaker.config.data_settings import Pairs
from tastemaker.config.schema import Advantage, Config, Evaluation, Optimizer, Sampling
from tastemaker.models.tuning import Tuning
from tastemaker.runs.checkpoint import State
from tastemaker.training import setup
from tastemaker.training.rounds import one_round

SETTINGS: dict[str, dict[str, Any]] = {
    "rwr": {"advantage": Advantage(normalise="softmax")},
    "ppo": {"algorithm": PPO(value="unet")},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of five classes and the null class that predicts its variance, a file of the classes, and pairs."""
    root = tmp_path_factory.mktemp("pixels")
    pipeline = tiny.pixels(channels=3, classes=6, unet={"out_channels": 6}, variance_type="learned_range")
    pipeline.register_to_config(id2label=dict(enumerate(given.PROMPTS)))
    pipeline.save_pretrained(root / "model")
    (root / "classes.txt").write_text("\n".join(given.PROMPTS))
    given.pairs(root / "pairs", 2)
    return root


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_trains_a_pixel_model(name, folder, tmp_path):
    """One round of one update, guided by the null class; the weights of the predicted variance stay as they were."""
    options = {"algorithm": ALGORITHMS[name](), "advantage": Advantage(normalise="round")} | SETTINGS.get(name, {})
    if options["algorithm"].needs == "pairs":
        options["pairs"] = Pairs((str(folder / "pairs"),))
    config = Config(
        model=str(folder / "model"), prompts=str(folder / "classes.txt"), reward="smooth:warmth", rounds=1,
        sampling=Sampling(steps=3, samples=2, per_prompt=2, batch=2, guidance=2.0),
        optimizer=Optimizer(lr=1e-3, updates=1, rows=50, clip_norm=1e9, weight_decay=0.0), tuning=Tuning(mode="full"),
        evaluation=Evaluation(prompts=1, per_prompt=2, kl_images=0), **options,
    )  # fmt: skip
    session = setup.start(config, tmp_path / "run", State())
    session.display.interactive = False
    before = {key: value.detach().clone() for key, value in session.model.weights.trainable().items()}
    record = one_round(session)
    after = session.model.weights.trainable()
    assert record["updates"] == 1
    assert all(value.isfinite().all() for value in after.values())
    changed = {key for key, value in after.items() if not torch.equal(before[key], value)}
    assert "conv_in.weight" in changed
    for key in ("conv_out.weight", "conv_out.bias"):
        assert not torch.equal(before[key][:3], after[key][:3])
        assert torch.equal(before[key][3:], after[key][3:])
