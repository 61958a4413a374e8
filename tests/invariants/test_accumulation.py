"""One update's gradient is the same however its rows are cut, and on however many processes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from one_update import first_gradients, in_a_group
from safetensors.torch import load_file

import given
from forked import Group
from tastemaker.algorithms.alignprop import AlignProp
from tastemaker.algorithms.dgpo import DGPO
from tastemaker.algorithms.diffusion_kto import DiffusionKTO
from tastemaker.algorithms.dpo import DPO
from tastemaker.algorithms.dpok import DPOK
from tastemaker.algorithms.dppo import DPPO
from tastemaker.algorithms.grpo import GRPO
from tastemaker.algorithms.nft import NFT
from tastemaker.algorithms.ppo import PPO
from tastemaker.algorithms.selection import BestWorst, NonZero
from tastemaker.algorithms.windows import Backward
from tastemaker.config.schema import Advantage, Config, Evaluation, Optimizer, Pairs, Sampling
from tastemaker.config.yaml_file import dump_config


def config(checkpoint, **optimizer):
    return Config(
        model=str(checkpoint), prompts="ddpo-animals", rounds=1,
        sampling=Sampling(steps=5, samples=8, per_prompt=2, batch=3, guidance=5.0),
        advantage=Advantage(normalise="round"),
        optimizer=Optimizer(**({"lr": 1e-3, "updates": 2, "rows": 40, "clip_norm": 1e9} | optimizer)),
        evaluation=Evaluation(prompts=1, per_prompt=2, kl_images=0),
    )  # fmt: skip


@pytest.fixture(scope="module")
def settings(checkpoint, tmp_path_factory):
    """Configs by name: of plain rounds, and of some in which processes have uneven parts, or could have pairs and
    minibatches of their own. Where pairs are made the prompts are two, so that both processes have images of each."""
    prompts = tmp_path_factory.mktemp("prompts") / "two.txt"
    prompts.write_text("cat\ndog\n")
    plain = config(checkpoint)
    options, sampling = plain.optimizer, replace(plain.sampling, batch=8)
    # Most are of updates, so they sample in one batch; "plain", its share of steps, "best-worst" and the single pass
    # sample in several.
    one = replace(plain, sampling=sampling)
    b2 = replace(
        one, window=Backward(3, 9), selection=BestWorst(0.5), optimizer=replace(options, updates=1, rows=4),
        sampling=replace(sampling, samples=16, per_prompt=4, branches=2),
    )  # fmt: skip
    in_batches = replace(b2, sampling=replace(b2.sampling, batch=3))
    return {
        "plain": plain,
        "share of steps": config(checkpoint, timestep_fraction=0.4),
        "best-worst": in_batches,
        "one process without rows": replace(
            b2, algorithm=PPO(value="cnn", normalise="none"), selection=BestWorst(1.6),
            advantage=Advantage(normalise="round", step_weights="noise"),
        ),
        "selected images": replace(
            b2, optimizer=replace(b2.optimizer, images_per_update=3, inner_epochs=2)
        ),
        "value's own steps": replace(
            one, algorithm=DPOK(value="mlp", value_batch=30, value_updates=2, value_lr=1e-2, clip=1.0),
            optimizer=replace(options, minibatch="states", rows=3), advantage=Advantage(normalise="none", clip=None),
        ),
        "states": replace(
            one, algorithm=PPO(value="cnn"), advantage=Advantage(normalise="round", step_weights="inverse-dt"),
            optimizer=replace(options, minibatch="states", updates=4, rows=3)
        ),
        "reference": replace(one, algorithm=GRPO(kl=50.0, ratio="normalised")),
        "single pass": replace(
            in_batches, algorithm=DPPO(), selection=NonZero(),
            advantage=Advantage(normalise="group", step_weights="noise"),
            optimizer=replace(b2.optimizer, rows=2, single_pass=True),
        ),
        "pairs": replace(
            one, algorithm=DPO(), prompts=str(prompts), optimizer=replace(options, updates=1),
            sampling=replace(sampling, samples=12),
        ),
        "samples": replace(one, algorithm=NFT(noises=2)),
        "given pairs": replace(
            one, algorithm=DiffusionKTO(beta=50.0),
            pairs=Pairs((str(given.pairs(tmp_path_factory.mktemp("pairs") / "given", 7)),)),
        ),
        "groups of samples": replace(
            one, algorithm=DGPO(noises=2, kl=0.1), prompts=str(prompts), optimizer=replace(options, updates=1),
            sampling=replace(sampling, samples=12, per_prompt=3),
        ),
        "parts": replace(one, reward="standardise(smooth:redness) + 0.5*min(standardise(colourfulness), 0.3)"),
        "chain": replace(
            one, algorithm=AlignProp(kl=0.1), reward="smooth:warmth", optimizer=replace(options, rows=3)
        ),
        "draws": replace(
            one, algorithm=AlignProp(images_per_draw=2), reward="smooth:warmth",
            optimizer=replace(options, updates=1, rows=3),
        ),
    }  # fmt: skip


@pytest.fixture(scope="module")
def two(settings, tmp_path_factory):
    """By config: gradients of a round's first update on two processes, and its record."""
    found = two_processes(tmp_path_factory.mktemp("two"), list(settings.values()))
    return dict(zip(settings, found, strict=True))


def two_processes(folder, configs):
    """Gradients of a round's first update on two processes that talk through gloo, and its record, of each config."""
    words = []
    for number, chosen in enumerate(configs):
        words += [folder / f"{number}.yaml", folder / str(number)]
        words[-2].write_text(dump_config(chosen))
    Group(2, in_a_group, *map(str, words), log=folder / "log").finish()
    return [(load_file(f"{out}.safetensors"), json.loads(Path(f"{out}.json").read_text())) for out in words[1::2]]


def distance(one, two):
    assert one.keys() == two.keys()
    a, b = (torch.cat([g[name].flatten().double() for name in one]) for g in (one, two))
    assert a.norm() > 0
    return ((a - b).norm() / a.norm()).item()


@pytest.fixture(scope="module")
def whole(tmp_path_factory, checkpoint):
    return first_gradients(config(checkpoint), tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("rows", [1, 3, 7, 20])
def test_every_split_into_micro_batches_gives_the_same_gradient(tmp_path, checkpoint, whole, rows):
    split, _ = first_gradients(config(checkpoint, rows=rows), tmp_path)
    assert distance(whole[0], split) < 1e-6


def test_two_processes_give_the_same_gradient_and_rewards(whole, two):
    gradients, record = two["plain"]
    assert distance(whole[0], gradients) < 1e-6
    for key in ("reward/mean", "reward/std", "reward/min", "reward/max", "reward_queries", "advantage/std"):
        assert record[key] == pytest.approx(whole[1][key], abs=1e-6), key


def test_a_random_share_of_steps_is_the_same_on_two_processes(tmp_path, settings, whole, two):
    one, _ = first_gradients(settings["share of steps"], tmp_path)
    assert distance(one, two["share of steps"][0]) < 1e-6
    assert distance(whole[0], one) > 1e-3  # other rows, so another gradient


@pytest.mark.parametrize(
    "name",
    [
        "best-worst", "selected images", "single pass", "one process without rows", "states", "value's own steps",
        "reference", "pairs", "samples", "groups of samples",
        "given pairs",
    ],
)  # fmt: skip
def test_two_processes_give_the_same_gradient_whatever_is_selected_and_pooled(name, tmp_path, settings, two):
    (one, alone), (gradients, record) = first_gradients(settings[name], tmp_path), two[name]
    for part in ("lora", "value"):
        a, b = ({key: g for key, g in both.items() if part in key} for both in (one, gradients))
        if a or b:
            # The value networks are in float32.
            assert distance(a, b) < (1e-6 if part == "lora" else 1e-5), part
    for key in alone.keys() & {"updates", "rows", "selected", "loss", "kl", "value_loss", "pair_accuracy"}:
        assert record[key] == pytest.approx(alone[key], rel=1e-5, abs=1e-7), key
    first = sum(image < 8 for image in alone["images"])
    if name in ("best-worst", "one process without rows"):
        assert (first, len(alone["images"]) - first) == ((3, 2) if name == "best-worst" else (1, 0))


def test_parts_of_a_combined_reward_are_the_same_on_two_processes(tmp_path, settings, whole, two):
    (one, alone), (gradients, record) = first_gradients(settings["parts"], tmp_path), two["parts"]
    # Rewards around -1.47 that differ by 0.013 have five digits to differ in.
    assert distance(one, gradients) < 1e-4
    assert distance(one, whole[0]) > 1e-2
    parts = [key for key in alone if key.startswith("reward/")]
    assert {"reward/parts/smooth:redness", "reward/parts/colourfulness", "reward/mean"} < set(parts)
    for key in parts:
        assert record[key] == pytest.approx(alone[key], abs=1e-3), key


def test_a_chains_gradient_is_the_same_in_micro_batches_and_on_two_processes(tmp_path, settings, two):
    one, alone = first_gradients(settings["chain"], tmp_path)
    options = settings["chain"].optimizer
    split, _ = first_gradients(replace(settings["chain"], optimizer=replace(options, rows=1)), tmp_path)
    # Latents and the decoder are in float32.
    assert distance(one, split) < 1e-5
    assert distance(one, two["chain"][0]) < 1e-5
    for key in ("reward/mean", "reward/max", "depth", "divergence", "diversity", "reward_queries"):
        assert two["chain"][1][key] == pytest.approx(alone[key], rel=1e-4), key


def test_draws_of_steps_are_the_same_in_micro_batches_and_on_two_processes(tmp_path, settings, two):
    """Four draws of two images in the one update, two of them on each process, in micro-batches of 2, 1 and 3."""
    one, alone = first_gradients(settings["draws"], tmp_path)
    options = settings["draws"].optimizer
    for rows in (1, 8):
        split, record = first_gradients(replace(settings["draws"], optimizer=replace(options, rows=rows)), tmp_path)
        assert distance(one, split) < 1e-5
        assert record["depth"] == alone["depth"]
    assert distance(one, two["draws"][0]) < 1e-5
    assert two["draws"][1]["depth"] == alone["depth"]
    together, record = first_gradients(replace(settings["draws"], algorithm=AlignProp()), tmp_path)
    assert record["depth"] != alone["depth"]
    assert distance(one, together) > 1e-3


def test_the_test_can_fail(tmp_path, checkpoint, whole):
    other, _ = first_gradients(replace(config(checkpoint), seed=1), tmp_path)
    assert distance(whole[0], other) > 1e-3
