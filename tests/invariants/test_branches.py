"""Branches, windows and selection in whole rounds (B2-DiffuRL): what is shared, what is asked, what is learned."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from test_accumulation import config as in_three_batches

from tastemaker.algorithms.dpo import DPO
from tastemaker.algorithms.dpok import DPOK
from tastemaker.algorithms.selection import All, BestWorst
from tastemaker.algorithms.windows import Backward, Sliding, Whole
from tastemaker.cli.main import main
from tastemaker.diffusion.sampler import LocalSampler, sample
from tastemaker.diffusion.sde import ddim
from tastemaker.models.tuning import Tuning
from tastemaker.runs import checkpoint as checkpoint_file
from tastemaker.runs.checkpoint import State
from tastemaker.training import setup
from tastemaker.training.rounds import one_round
from tastemaker.training.saving import training_state as training_of
from tastemaker.types import Draw

STEPS, KEEP = 5, [3, 4]
DRAW = Draw(0, 1, ("a cat",) * 4 + ("a dog",) * 2, (0,) * 4 + (1,) * 2, (0, 1, 2, 3, 4, 5), (0, 0, 2, 2, 4, 4))
"""Two roots of a cat and one of a dog, two branches each."""


def sampled(model, draw, keep=KEEP, **options):
    model.tune(Tuning()) if model.weights.tuning is None else None
    return sample(model, model.encode(draw.prompts, 3.0), draw, ddim(model.process.grid(STEPS), 1.0), keep, **options)


def test_branches_are_one_until_the_window_and_part_there(model):
    rollout = sampled(model, DRAW)
    for one, other in ((0, 1), (2, 3), (4, 5)):
        assert torch.equal(rollout.latents[one, 0], rollout.latents[other, 0])
        for place in (1, 2):
            assert (rollout.latents[one, place] - rollout.latents[other, place]).abs().mean() > 0.01
    for one, other in ((0, 2), (2, 4)):
        assert (rollout.latents[one, 0] - rollout.latents[other, 0]).abs().mean() > 0.1
    # A root by itself goes the same way up to the window: it is the image whose number it has, sampled alone.
    alone = sampled(model, Draw(0, 1, ("a cat", "a dog"), (0, 1), (2, 4)))
    torch.testing.assert_close(rollout.latents[[2, 4], 0], alone.latents[:, 0], atol=1e-5, rtol=1e-5)
    # The first branch has its root's number, and so its noise to the end; the second parts.
    torch.testing.assert_close(rollout.x0[[2, 4]], alone.x0, atol=1e-5, rtol=1e-5)


def test_a_window_over_the_whole_chain_shares_only_the_first_noise(model):
    rollout = sampled(model, DRAW, keep=range(STEPS))
    assert torch.equal(rollout.latents[0, 0], rollout.latents[1, 0])
    assert (rollout.latents[0, 1] - rollout.latents[1, 1]).abs().mean() > 0.01


def test_the_network_is_asked_once_for_each_root_before_the_window(model):
    """3 roots for 3 steps, then 6 branches for 2, both halves of the guidance."""
    rows = []
    model.network.register_forward_hook(lambda module, arguments, answer: rows.append(len(arguments[0])))
    sampled(model, DRAW)
    assert rows == [6, 6, 6, 12, 12]


@pytest.mark.parametrize("places", [[0, 1, 2, 3, 4, 5], [1, 3], [3, 0, 5]])
def test_branches_are_the_same_one_by_one(model, places):
    """Also where a batch has one branch of each root, and not the first."""
    together = sampled(model, DRAW)
    batch = sampled(model, DRAW.select(places))
    torch.testing.assert_close(batch.latents, together.latents[places], atol=1e-5, rtol=1e-5)
    for place in places:
        alone = sampled(model, DRAW.select([place]))
        torch.testing.assert_close(alone.latents[0], together.latents[place], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(alone.x0[0], together.x0[place], atol=1e-5, rtol=1e-5)


def test_quiet_steps_have_no_noise(model):
    """MixGRPO: outside the window every step is the deterministic one, whatever the round's noise."""
    sde, cond = ddim(model.process.grid(STEPS), 1.0), model.encode(DRAW.prompts, 3.0)
    one, two = (
        LocalSampler(model, sde, noise_outside=outside)(replace(DRAW, root_index=()), cond, [1])
        for outside in (False, True)
    )
    assert (one.latents[:, 0] - two.latents[:, 0]).abs().mean() > 0.01
    grid = sde.grid
    x = DRAW.noise(0, model.latent_shape)
    for step in range(STEPS):
        if step == 1:
            x = one.latents[:, 1]
            continue
        if step == 0:
            torch.testing.assert_close(x, DRAW.noise(0, model.latent_shape))
        with torch.no_grad():
            x0 = model.denoise(x, grid.times[step].expand(6), cond)
        eps = (x - grid.alpha[step] * x0) / grid.sigma[step]
        x = (grid.alpha_next[step] * x0 + grid.sigma_next[step] * eps).float()
        if step == 0:
            torch.testing.assert_close(x, one.latents[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(x, one.x0, atol=1e-4, rtol=1e-4)


def config(checkpoint):
    """Images are sampled in one batch, since nothing here is about how they are cut."""
    plain = in_three_batches(checkpoint)
    return replace(plain, sampling=replace(plain.sampling, batch=16))


def weights_after(settings, folder, rounds=2):
    """The adapters after some rounds, and the rounds' records."""
    session = setup.start(settings, folder, State())
    records = [one_round(session) for _ in range(rounds)]
    return {name: p.detach().clone() for name, p in session.model.weights.trainable().items()}, records


def test_without_its_parts_b2_is_ddpo_bit_for_bit(checkpoint, tmp_path):
    """One branch, every image, and windows that are as long as the chain, by whatever name."""
    plain = config(checkpoint)
    expected, _ = weights_after(plain, tmp_path)
    assert any(value.abs().max() > 0 for name, value in expected.items() if "lora_B" in name)
    for window in (Whole(), Backward(initial=5), Sliding(size=5, every=1)):
        sampling = replace(plain.sampling, branches=1, noise_outside=False)
        found, _ = weights_after(replace(plain, window=window, selection=All(), sampling=sampling), tmp_path)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected), window
    other, _ = weights_after(replace(plain, window=Backward(initial=2)), tmp_path)
    assert not all(torch.equal(expected[name], other[name]) for name in expected)


B2 = [
    "--prompts", "ddpo-animals", "--rounds", "2", "sampling.steps=4", "sampling.samples=8", "sampling.per_prompt=4",
    "sampling.branches=2", "sampling.batch=8", "optimizer.updates=2", "optimizer.rows=16", "optimizer.lr=1e-3",
    "evaluation.every=9", "evaluation.prompts=2", "evaluation.per_prompt=2",
    "evaluation.kl_images=0", "window=backward", "window.initial=2",
    "window.rounds=2", "selection=best-worst", "advantage.normalise=windowed", "advantage.min_count=2",
]  # fmt: skip


def run(checkpoint, out, *more):
    assert main(["train", "ddpo-compressibility", "--model", str(checkpoint), "--out", str(out), *B2, *more]) == 0
    return [r for r in map(json.loads, (out / "metrics.jsonl").read_text().splitlines()) if "round" in r]


def test_a_run_of_b2_counts_its_queries_and_selected_images(checkpoint, tmp_path):
    """All branches are scored; of 4 roots with 2 branches at most all 8 are selected. Window 2, then 2 + 3 // 2 = 3."""
    records = run(checkpoint, tmp_path / "run", "selection.threshold=0")
    assert [record["reward_queries"] for record in records] == [8, 16]
    assert [record["window"] for record in records] == [2, 3]
    for record in records:
        assert record["ratio_deviation/first"] < 1e-6
        assert record["rows"] == pytest.approx(record["selected"] * 8 * record["window"])
        assert 0 < record["selected"] <= 1


def test_a_round_in_which_nothing_is_selected_is_skipped_and_logged(checkpoint, tmp_path, capsys):
    records = run(checkpoint, tmp_path / "run", "selection.threshold=100")
    assert [(record["updates"], record["selected"]) for record in records] == [(0, 0.0), (0, 0.0)]
    assert "round 1: no image was selected, so nothing was learned from it" in capsys.readouterr().out
    weights = [load_file(tmp_path / f"run/checkpoints/step-00000{n}/weights.safetensors") for n in (1, 2)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert all(not value.any() for name, value in weights[1].items() if "lora_B" in name)
    assert (tmp_path / "run/report.html").exists()


def test_a_resumed_run_is_the_uninterrupted_one(checkpoint, tmp_path):
    """With a value network, a moved weight of the divergence and the rounds of past rewards."""
    more = ["algorithm=ppo", "algorithm.value=cnn", "algorithm.kl_target=0.1", "optimizer.minibatch=states"]
    run(checkpoint, tmp_path / "whole", *more)
    run(checkpoint, tmp_path / "cut", *more, "--rounds", "1")
    assert main(["resume", str(tmp_path / "cut"), "--rounds", "2"]) == 0
    for name in ("weights", "optimizer"):
        one, two = (load_file(tmp_path / f"{r}/checkpoints/step-000002/{name}.safetensors") for r in ("whole", "cut"))
        assert one.keys() == two.keys()
        assert all(one[key].equal(two[key]) for key in one), name
        assert name == "optimizer" or any(key.startswith("value.") for key in one)
    states = [json.loads((tmp_path / f"{r}/checkpoints/step-000002/state.json").read_text()) for r in ("whole", "cut")]
    assert states[0]["state"] == states[1]["state"]
    assert states[0]["state"]["kl"] not in (None, 0.02)
    assert states[0]["state"]["past_rounds"]


def selecting(checkpoint, **optimizer):
    """16 images, of which some are selected; 3 of them in an update, over two passes."""
    plain = config(checkpoint)
    return replace(
        plain, window=Backward(3, 9), selection=BestWorst(0.5),
        sampling=replace(plain.sampling, samples=16, per_prompt=4, branches=2),
        optimizer=replace(plain.optimizer, **({"images_per_update": 3, "inner_epochs": 2, "rows": 16} | optimizer)),
    )  # fmt: skip


def test_an_update_for_each_number_of_selected_images(checkpoint, tmp_path):
    """Of S selected images and two passes 2 S // 3 updates; each takes 3 images with all their 3 steps."""
    _, (record, *_) = weights_after(selecting(checkpoint), tmp_path, rounds=1)
    selected = round(record["selected"] * 16)
    assert selected >= 3
    assert record["updates"] == 2 * selected // 3
    assert record["rows"] == record["updates"] * 3 * record["window"]
    _, (plain, *_) = weights_after(selecting(checkpoint, images_per_update=None, updates=2), tmp_path, rounds=1)
    assert (plain["updates"], plain["rows"]) == (4, 2 * selected * plain["window"])


def test_pairs_go_with_their_preferred_image(checkpoint, tmp_path):
    """All 16 images, 8 pairs of branches: updates of 8 images take 8 pairs in all, which are those of both together."""
    settings = replace(selecting(checkpoint, images_per_update=8, inner_epochs=1), selection=All(), algorithm=DPO())
    _, (record, *_) = weights_after(settings, tmp_path, rounds=1)
    assert (record["updates"], record["rows"]) == (2, 8 * record["window"])


def test_too_few_selected_images_for_an_update_are_said(checkpoint, tmp_path, capsys):
    session = setup.start(selecting(checkpoint, images_per_update=32), tmp_path, State())
    record = one_round(session)
    selected = round(record["selected"] * 16)
    assert (record["updates"], session.state.updates) == (0, 0)
    assert "lr" not in record
    said = f"only {selected} images were selected, too few for optimizer.images_per_update, so nothing was learned"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["selected images", "value's own steps"])
def test_a_round_after_a_checkpoint_is_that_of_the_uninterrupted_run(kind, checkpoint, tmp_path):
    """The warm-up and the schedule go on by the updates done, of which rounds have different numbers."""
    settings = selecting(checkpoint, warmup=9, lr_scheduler="piecewise_constant", step_rules="1:5,0.5:9,0.25")
    if kind != "selected images":
        own = {"images_per_update": None, "inner_epochs": 1, "lr_scheduler": "cosine", "step_rules": "", "warmup": 1}
        settings = replace(
            settings, rounds=4, algorithm=DPOK(value="mlp", value_batch=30), selection=All(),
            advantage=replace(settings.advantage, normalise="none", clip=None),
            optimizer=replace(settings.optimizer, **own),
        )  # fmt: skip
    whole, cut, again = (setup.start(settings, tmp_path / name, State()) for name in ("whole", "cut", "again"))
    first, second = one_round(whole), one_round(whole)
    assert one_round(cut)["lr"] == first["lr"]
    checkpoint_file.save(tmp_path / "cut", cut.state, training_of(cut), {}, settings.checkpoint)
    again.state, _, _ = checkpoint_file.load(tmp_path / "cut", training_of(again))
    third = one_round(again)
    assert third["lr"] == second["lr"]
    assert again.state == whole.state
    expected, found = training_of(whole).weights, training_of(again).weights
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    done, rate = first["updates"] + second["updates"], settings.optimizer.lr
    if kind == "selected images":
        factor = 1 if done <= 5 else 0.5 if done <= 9 else 0.25
        assert second["lr"] == pytest.approx(rate * min(1, done / 10) * factor)
        assert whole.state.updates == done
    else:  # update 3 of 8, one of warm-up: two of seven parts of half a cosine are done
        assert second["lr"] == pytest.approx(rate * (1 + math.cos(math.pi * 2 / 7)) / 2)
