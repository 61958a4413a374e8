"""The average of the weights: by hand, in what a run leaves, and over a resumption."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file

from tastemaker.cli.main import main
from tastemaker.config.schema import Config, Evaluation, Optimizer, Sampling
from tastemaker.models import load_model
from tastemaker.models.tuning import Tuning
from tastemaker.models.weight_copy import WeightCopy
from tastemaker.runs.checkpoint import State
from tastemaker.training.evaluations import evaluate_run
from tastemaker.training.rounds import one_round
from tastemaker.training.setup import start

SETTINGS = [
    "--prompts", "ddpo-animals", "sampling.steps=4", "sampling.samples=8", "sampling.per_prompt=2",
    "optimizer.updates=2", "optimizer.rows=16", "optimizer.lr=1e-2", "advantage.normalise=round", "evaluation.every=99",
    "evaluation.prompts=2", "evaluation.per_prompt=2",
    "evaluation.kl_images=0", "checkpoint.keep=9", "optimizer.ema=0.75",
]  # fmt: skip


def words(checkpoint, out, rounds):
    return [
        "train",
        "ddpo-compressibility",
        "--model",
        str(checkpoint),
        "--out",
        str(out),
        "--rounds",
        rounds,
        *SETTINGS,
    ]


def test_it_follows_by_hand():
    """0.75 * 1 + 0.25 * 3 = 1.5, then 0.75 * 1.5 + 0.25 * 5 = 2.375."""
    weights = {"a": torch.nn.Parameter(torch.ones(2))}
    average = WeightCopy(weights)
    for value, expected in ((3.0, 1.5), (5.0, 2.375)):
        with torch.no_grad():
            weights["a"].fill_(value)
        average.ema_update(0.75)
        torch.testing.assert_close(average.copies["a"], torch.full((2,), expected))
    with average.swapped_in():
        assert weights["a"].tolist() == [2.375, 2.375]
    assert weights["a"].tolist() == [5.0, 5.0]


def test_it_moves_after_every_update_and_evaluations_show_it(checkpoint, tmp_path, monkeypatch):
    config = Config(
        model=str(checkpoint), prompts="ddpo-animals", rounds=1,
        sampling=Sampling(steps=4, samples=8, per_prompt=2), optimizer=Optimizer(lr=1e-2, updates=2, rows=16, ema=0.75),
        evaluation=Evaluation(prompts=2, per_prompt=2, kl_images=0),
    )  # fmt: skip
    session = start(config, tmp_path, State())
    weights = session.model.weights.trainable()
    by_hand = {name: p.detach().clone() for name, p in weights.items()}
    step, steps = session.optimizer.step, []

    def stepped(*args, **kwargs):
        step(*args, **kwargs)
        steps.append(1)
        for name, p in weights.items():
            by_hand[name] = 0.75 * by_hand[name] + 0.25 * p.detach()

    monkeypatch.setattr(session.optimizer, "step", stepped)
    one_round(session)
    assert len(steps) == 2
    assert session.average is not None
    for name, value in session.average.copies.items():
        torch.testing.assert_close(value, by_hand[name])
    shown = evaluate_run(session).seen.images
    with torch.no_grad():
        for name, p in weights.items():
            p.copy_(session.average.copies[name])
    assert evaluate_run(session).seen.images.equal(shown)
    assert not any(session.average.copies[name].data_ptr() == p.data_ptr() for name, p in weights.items())


def test_the_average_that_samples_resumes_bit_for_bit(checkpoint, tmp_path):
    more = [
        "algorithm=nft", "algorithm.noises=1", "algorithm.sampling_decay=0.9", "algorithm.sampling_decay_rate=0.2",
        "optimizer.ema=0",
    ]  # fmt: skip
    assert main([*words(checkpoint, tmp_path / "whole", "3"), *more]) == 0
    assert main([*words(checkpoint, tmp_path / "cut", "2"), *more]) == 0
    assert main(["resume", str(tmp_path / "cut"), "--rounds", "3"]) == 0
    for name in ("weights", "optimizer", "copies"):
        one, two = (
            load_file(tmp_path / f"{run}/checkpoints/step-000003/{name}.safetensors") for run in ("whole", "cut")
        )
        assert one.keys() == two.keys()
        assert all(one[key].equal(two[key]) for key in one), name
        if name == "copies":
            assert all(key.startswith("sampling.") for key in one)


def test_a_run_leaves_the_average_and_resumes_bit_for_bit(checkpoint, tmp_path):
    assert main(words(checkpoint, tmp_path / "whole", "2")) == 0
    assert main(words(checkpoint, tmp_path / "cut", "1")) == 0
    assert main(["resume", str(tmp_path / "cut"), "--rounds", "2"]) == 0
    for name in ("weights", "optimizer", "copies"):
        one, two = (
            load_file(tmp_path / f"{run}/checkpoints/step-000002/{name}.safetensors") for run in ("whole", "cut")
        )
        assert one.keys() == two.keys()
        assert all(one[key].equal(two[key]) for key in one), name
    saved = tmp_path / "whole/checkpoints/step-000002"
    trained, copies = load_file(saved / "weights.safetensors"), load_file(saved / "copies.safetensors")
    assert not any(copies[f"average.{name}"].equal(value) for name, value in trained.items())
    model = load_model(str(checkpoint))
    model.tune(Tuning())
    with torch.no_grad():
        for name, p in model.weights.trainable().items():
            p.copy_(copies[f"average.{name}"])
    left = load_file(tmp_path / "whole/adapter/pytorch_lora_weights.safetensors")
    expected = get_peft_model_state_dict(model.pipeline.unet)
    assert sorted(v.double().sum().item() for v in left.values()) == pytest.approx(
        sorted(v.double().sum().item() for v in expected.values())
    )
