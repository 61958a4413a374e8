"""Prior preservation: what its gradient is, that it adds up however rows are cut, and where its images come from."""

from __future__ import annotations

import json
from dataclasses import replace
from unittest import mock

import pytest
import torch
from one_update import double, first_gradients
from safetensors.torch import load_file
from test_accumulation import config as a_config
from test_accumulation import distance, two_processes

import given
from tastemaker import noise
from tastemaker.algorithms.grpo import GRPO
from tastemaker.cli.main import main
from tastemaker.config.schema import Config, PriorPreservation, Reference
from tastemaker.data.captioned_images import fitted, load_captioned, opened
from tastemaker.diffusion.sampler import sample
from tastemaker.errors import ConfigError, DataError
from tastemaker.runs.checkpoint import State
from tastemaker.training import prior_preservation, rounds, setup, update

PRIOR = PriorPreservation(weight=0.7, images=5, rows=6)


def config(checkpoint, **options):
    """One update a round, whose policy gradient is that of DDPO."""
    made = a_config(checkpoint, updates=1)
    return replace(made, prior_preservation=PRIOR, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, checkpoint):
    return first_gradients(config(checkpoint), tmp_path_factory.mktemp("whole"))


def test_the_gradient_is_the_policys_plus_that_of_the_prior_images_computed_apart(tmp_path, checkpoint, whole):
    """Its gradient by diffusers' own parts: its images sampled anew, noised by the scheduler, and the plain U-Net."""
    policy, _ = first_gradients(replace(config(checkpoint), prior_preservation=PriorPreservation()), tmp_path)
    with mock.patch.object(setup, "load_model", double):
        session = setup.start(replace(config(checkpoint), prior_preservation=PriorPreservation()), tmp_path, State())
    made, model, pipe = config(checkpoint), session.model, session.model.pipeline
    draw = prior_preservation.draw_round(session.prompts, made.seed, prior_preservation.ROUND, 5, 1)
    cond = model.encode(draw.prompts, made.sampling.guidance)
    x0 = sample(model, cond, draw, session.task.sde).x0
    random = torch.Generator().manual_seed(7)
    for name, parameter in sorted(model.weights.trainable().items()):
        if "lora_B" in name:
            parameter.data.copy_(0.02 * torch.randn(parameter.shape, generator=random))
    turns = prior_preservation.in_turn(5, made.seed, 0, 6, 4)
    assert sorted(turns[:5]) == list(range(5))
    losses = []
    for row, image in enumerate(turns):
        time, eps = noise.diffused((4, 8, 8), range(1000), made.seed, 1, 2**62 + image, row, 0, 0)
        noisy = pipe.scheduler.add_noise(x0[[image]].double(), eps[None].double(), torch.tensor([time]))
        text = pipe.encode_prompt([draw.prompts[image]], "cpu", 1, False)[0].double()
        losses.append((pipe.unet(noisy, time, text).sample - eps).square().mean())
    parameters = model.weights.trainable()
    alone = torch.autograd.grad(0.7 * torch.stack(losses).mean(), list(parameters.values()))
    for (name, got), extra in zip(whole[0].items(), alone, strict=True):
        torch.testing.assert_close(got, policy[name] + extra, rtol=1e-4, atol=1e-6)
    assert whole[1]["prior_loss"] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
    assert distance(whole[0], policy) > 1e-3


@pytest.mark.parametrize("rows", [1, 4])
def test_every_split_into_micro_batches_gives_the_same_gradient(tmp_path, checkpoint, whole, rows):
    made = config(checkpoint)
    split, record = first_gradients(replace(made, optimizer=replace(made.optimizer, rows=rows)), tmp_path)
    assert distance(whole[0], split) < 1e-6
    assert record["prior_loss"] == pytest.approx(whole[1]["prior_loss"], rel=1e-6)


def test_two_processes_give_the_same_gradient_also_with_a_held_reference(tmp_path, checkpoint):
    """Five rows are three for one process and two for the other."""
    made = config(checkpoint, algorithm=GRPO(clip=0.1, kl=1.0), reference=Reference(every=1))
    made = replace(made, prior_preservation=replace(PRIOR, rows=5))
    one, record = first_gradients(made, tmp_path)
    two, other = two_processes(tmp_path, [made])[0]
    assert distance(one, two) < 1e-6
    assert other["prior_loss"] == pytest.approx(record["prior_loss"], rel=1e-5)
    # Adapters moved away from the held ones, so that the divergence has a gradient.
    assert record["kl"] == pytest.approx(other["kl"], rel=1e-5)
    assert record["kl"] > 1e-4


def test_a_weight_of_zero_changes_nothing_bit_for_bit(tmp_path, checkpoint):
    weights = []
    for options in (
        PriorPreservation(),
        PriorPreservation(weight=0.0, images=3, rows=2, drop_captions=0.5, source="nowhere"),
    ):
        session = setup.start(replace(a_config(checkpoint), prior_preservation=options), tmp_path, State())
        assert session.prior_images is None
        assert "prior_loss" not in rounds.one_round(session)
        weights.append({name: p.detach() for name, p in session.model.weights.trainable().items()})
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])


def test_the_images_do_not_depend_on_the_batch_and_are_the_base_models(tmp_path, checkpoint):
    made = config(checkpoint)
    one = setup.start(made, tmp_path, State()).prior_images
    two = setup.start(replace(made, sampling=replace(made.sampling, batch=2)), tmp_path, State()).prior_images
    other = setup.start(replace(made, seed=1), tmp_path, State()).prior_images
    torch.testing.assert_close(one.x0, two.x0, rtol=0, atol=1e-4)
    assert (one.x0 - other.x0).abs().max() > 0.1
    assert len(one.x0) == len(one.cond) == 5


def test_captions_are_dropped_by_share_and_guidance_is_asked_for(tmp_path, checkpoint):
    made = replace(config(checkpoint), prior_preservation=replace(PRIOR, drop_captions=0.5, guided=True))
    session = setup.start(made, tmp_path, State())
    rows = prior_preservation._noised(session, session.prior_images, [(n % 5, n) for n in range(200)])
    empty = (rows.cond["text"] == session.model.encode([""], 1.0)["text"]).all(dim=2).all(dim=1)
    assert 70 < int(empty.sum()) < 130
    asked = []
    residual = type(session.task).residual

    def record(self, rows, *, guided=True, of="output"):
        asked.append(guided)
        return residual(self, rows, guided=guided, of=of)

    with mock.patch.object(type(session.task), "residual", record):
        prior_preservation.add_prior_loss(session, session.prior_images, 0)
        session.config = config(checkpoint)
        prior_preservation.add_prior_loss(session, session.prior_images, 0)
    assert asked == [True, False]
    assert update.MetricAccumulator().prior_losses == []


def captioned(folder, count=6):
    folder.mkdir()
    rows = []
    for n in range(count):
        given.image(n, (48, 32)).save(folder / f"{n}.png")
        rows.append({"file_name": f"{n}.png", "text": given.PROMPTS[n % 5]})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_given_images_are_encoded_with_their_captions(tmp_path, checkpoint, monkeypatch):
    folder = captioned(tmp_path / "images")
    made = replace(config(checkpoint), prior_preservation=replace(PRIOR, source=str(folder), images=4))
    session = setup.start(made, tmp_path, State())
    chosen = prior_preservation.in_turn(6, made.seed, 0, 4, 3)
    assert len(set(chosen)) == 4
    images = torch.stack([fitted(given.image(n, (48, 32)), 32, 32) for n in chosen])
    torch.testing.assert_close(session.prior_images.x0, session.model.encode_images(images), rtol=1e-5, atol=1e-5)
    text = session.model.encode([given.PROMPTS[n % 5] for n in chosen], 1.0)["text"]
    torch.testing.assert_close(session.prior_images.cond["text"], text, rtol=1e-5, atol=1e-5)
    assert "prior_loss" in rounds.one_round(session)
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    # The same folder through the library's own reader of image folders, whose images it decodes.
    datasets.load_dataset("imagefolder", data_dir=str(folder)).save_to_disk(tmp_path / "set")
    one, two = load_captioned(str(folder)), load_captioned(str(tmp_path / "set"))
    assert sorted(one.captions) == sorted(two.captions)
    for n in range(6):
        same = [m for m in range(6) if opened(two.source(m), "").tobytes() == opened(one.source(n), "").tobytes()]
        assert [two.captions[m] for m in same] == [one.captions[n]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"file_name": "0.png"}], "no column prompt or caption or text"),
        ([{"text": "cat"}], "no file_name"),
        ([{"file_name": "none.png", "text": "cat"}], "there is no image"),
        ([{"file_name": "0.png", "text": 1}], "expected a caption"),
    ],
)
def test_unusable_images_are_refused(tmp_path, rows, message):
    folder = captioned(tmp_path / "images")
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=message):
        load_captioned(str(folder))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": -1}, "must not be negative"),
        ({"rows": 0}, "prior_preservation.rows is 0"),
        ({"drop_captions": 1}, "lie in"),
    ],
)
def test_settings_that_cannot_be(options, message):
    with pytest.raises(ConfigError, match=message):
        Config(prior_preservation=PriorPreservation(**options))


def test_a_run_with_an_anchor_resumes_bit_for_bit(checkpoint, tmp_path):
    words = [
        "train", "ddpo-compressibility", "--model", str(checkpoint), "--prompts", "ddpo-animals", "sampling.steps=3",
        "sampling.samples=4", "sampling.per_prompt=2", "optimizer.updates=2", "optimizer.lr=1e-3",
        "prior_preservation.weight=1",
        "prior_preservation.images=5", "prior_preservation.rows=3", 
        "evaluation.every=9", "evaluation.prompts=1", "evaluation.per_prompt=2", "evaluation.kl_images=0",
    ]  # fmt: skip
    assert main([*words, "--rounds", "2", "--out", str(tmp_path / "whole")]) == 0
    assert main([*words, "--rounds", "1", "--out", str(tmp_path / "cut")]) == 0
    assert main(["resume", str(tmp_path / "cut"), "--rounds", "2"]) == 0
    for name in ("weights", "optimizer"):
        one, two = (load_file(tmp_path / f"{r}/checkpoints/step-000002/{name}.safetensors") for r in ("whole", "cut"))
        assert all(one[key].equal(two[key]) for key in one), name
