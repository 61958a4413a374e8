"""Images that are not square, through every algorithm, checkpoints, given images and what is shown of them."""

from __future__ import annotations

import dataclasses

import pytest
import sqlalchemy as sa
import torch
from PIL import Image
from safetensors.torch import load_file

import given
import tastemaker as tm
import tiny
from tastemaker.cli.label_create import run as create
from tastemaker.cli.main import main
from tastemaker.data.captioned_images import fitted
from tastemaker.data.images import to_tensor
from tastemaker.diffusion.model import image_size
from tastemaker.errors import ConfigError, ModelError
from tastemaker.evaluation.images import contact_sheet
from tastemaker.labelling.project import open_project
from tastemaker.labelling.tables import ImageRow
from tastemaker.models import load_model
from tastemaker.models.latent_unet import LatentUNet
from tastemaker.models.stable_diffusion import SD
from tastemaker.rewards.base import reward, score
from tastemaker.rewards.registry import load_reward
from tastemaker.types import Draw

SIZE = ("sampling.height=16", "sampling.width=40")
SMALL = (
    "sampling.steps=2", "sampling.samples=4", "sampling.per_prompt=2", "sampling.batch=4", "optimizer.rows=8",
    "optimizer.updates=1", "optimizer.lr=1e-3", "evaluation.prompts=1", "evaluation.per_prompt=2",
    "evaluation.kl_images=0", *SIZE,
)  # fmt: skip
WEIGHTS = "pytorch_lora_weights.safetensors"
ALGORITHMS = {
    "ddpo": (), "pg": (), "dpok": (), "grpo": ("advantage.normalise=group",), "dpo": (),
    "rwr": ("advantage.normalise=softmax",), "nft": ("advantage.normalise=group",), "ppo-unet": (), "ppo-cnn": (),
    "ppo-conv": (), "ppo-mlp": (), "alignprop": (), "draft": (), "refl": (), "direct-align": (),
}  # fmt: skip


@reward(differentiable=True)
def wide(images, prompts):
    """The right half's brightness, of images that must be 16 x 40."""
    assert images.shape[1:] == (3, 16, 40)
    return images[..., 20:].mean(dim=(1, 2, 3))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_trains_on_them(tmp_path, name):
    algorithm, _, value = name.partition("-") if name.startswith("ppo") else (name, "", "")
    settings = [f"algorithm={algorithm}", *ALGORITHMS[name], *([f"algorithm.value={value}"] if value else [])]
    config = tm.preset("ddpo-compressibility", *SMALL, "rounds=1", *settings)
    run = tm.train(config, tiny.pipeline(), wide, ["cat", "dog"], tmp_path / "run")
    assert run.images()[0].image.size == (40, 16)
    assert any(values.any() for key, values in load_file(run.adapter / WEIGHTS).items() if "lora_B" in key)


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    config = tm.preset("ddpo-compressibility", *SMALL, "rounds=2")
    whole = tm.train(config, tiny.pipeline(), wide, ["cat", "dog"], tmp_path / "whole")
    tm.train(dataclasses.replace(config, rounds=1), tiny.pipeline(), wide, ["cat", "dog"], tmp_path / "half")
    half = tm.resume(tmp_path / "half", model=tiny.pipeline(), reward=wide, prompts=["cat", "dog"], rounds=2)
    first, second = load_file(whole.adapter / WEIGHTS), load_file(half.adapter / WEIGHTS)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert whole.metrics()[0]["ratio_deviation/first"] < 1e-5


def test_a_transposed_image_is_the_same_image_for_a_network_without_directions():
    """Height and width are not mixed up anywhere: with the same noise transposed, images are transposed."""
    model = LatentUNet(SD, tiny.pipeline())
    for module in model.network.modules():  # kernels that are symmetric under transposition
        if isinstance(module, torch.nn.Conv2d):
            module.weight.data.copy_((module.weight + module.weight.transpose(-1, -2)) / 2)
    for module in model.pipeline.vae.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.weight.data.copy_((module.weight + module.weight.transpose(-1, -2)) / 2)
    model.resize(16, 40)
    assert image_size(model) == (16, 40)
    x = Draw(0, 1, ("a",), (0,), (0,)).noise(0, model.latent_shape)
    cond, t = model.encode(["a"], 3.0), torch.tensor([500])
    with torch.no_grad():
        plain = model.decode(model.denoise(x, t, cond).float())
        turned = model.decode(model.denoise(x.transpose(-1, -2), t, cond).float())
    assert plain.shape == (1, 3, 16, 40)
    torch.testing.assert_close(turned, plain.transpose(-1, -2), atol=1e-4, rtol=0)


def test_checkpoints_may_have_two_sides(tmp_path):
    made = tiny.pipeline()
    made.unet.register_to_config(sample_size=[4, 10])
    made.save_pretrained(tmp_path)
    model = load_model(str(tmp_path), "fp32", "cpu")
    assert image_size(model) == (16, 40)
    model.resize(None, 24)
    assert image_size(model) == (16, 24)
    with pytest.raises(ModelError, match=r"sampling.height is 20, but this model needs a multiple of 8"):
        model.resize(20, 24)


def test_given_pairs_and_images_are_cut_to_the_size(tmp_path):
    folder = given.pairs(tmp_path / "pairs", 4)
    algorithm = ("algorithm=diffusion-dpo", f"pairs.sources={folder}")
    config = tm.preset("ddpo-compressibility", *SMALL, "rounds=1", *algorithm)
    prior = ("prior_preservation.weight=0.1", "prior_preservation.images=4", "prior_preservation.rows=2")
    run = tm.train(config, tiny.pipeline(), wide, ["cat", "dog"], tmp_path / "run")
    assert run.images()[0].image.size == (40, 16)
    config = tm.preset("ddpo-compressibility", *SMALL, "rounds=1", *prior)
    tm.train(config, tiny.pipeline(), wide, ["cat", "dog"], tmp_path / "prior")
    # Columns 0 to 7 of 8 x 4 pixels: for a square the middle four are left, for 2 x 4 all at half the size.
    image = Image.new("RGB", (8, 4))
    for x in range(8):
        for y in range(4):
            image.putpixel((x, y), (16 * x, 0, 0))
    assert (255 * fitted(image, 4, 4)[0, 0]).round().tolist() == [32, 48, 64, 80]
    assert fitted(image, 2, 4).shape == (3, 2, 4)
    assert fitted(image, 4, 8).equal(to_tensor(image))


def test_another_size_is_another_run(tmp_path):
    config = tm.preset("ddpo-compressibility", *SMALL, "rounds=1")
    tm.train(config, tiny.pipeline(), wide, ["cat", "dog"], tmp_path / "run")
    settings = tmp_path / "run" / "config.yaml"
    settings.write_text(settings.read_text().replace("width: 40", "width: 48"))
    with pytest.raises(ConfigError, match=r"sampling.width 40 -> 48"):
        tm.resume(tmp_path / "run", model=tiny.pipeline(), reward=wide, prompts=["cat", "dog"], rounds=2)


def test_contact_sheets_keep_the_shape():
    images = [Image.new("RGB", (40, 16), colour) for colour in ("red", "green", "blue")]
    sheet = contact_sheet(images, columns=2, cell=100, gap=4)
    assert sheet.size == (204, 84)  # two of 100 and two of 40, with 4 between
    assert [sheet.getpixel(at) for at in ((0, 0), (99, 39), (104, 0), (0, 44), (104, 44))] == [
        (255, 0, 0), (255, 0, 0), (0, 128, 0), (0, 0, 255), (255, 255, 255),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "jpeg-compressibility",
        "jpeg-surrogate-compressibility",
        "colourfulness",
        "soft-colourfulness",
        "clip-score:bundled",
    ],
)  # fmt: skip
def test_rewards_take_them(name):
    images = torch.rand(2, 3, 32, 80, generator=torch.Generator().manual_seed(0))
    assert score(load_reward(name), images, ["a red circle", "a blue star"]).total.isfinite().all()


def test_samples_of_a_run_have_its_size(tmp_path):
    config = tm.preset("ddpo-compressibility", *SMALL[:-2], "rounds=1", "sampling.height=32", "sampling.width=64")
    run = tm.train(config, out=tmp_path / "run")
    argv = ["sample", "--adapter", str(run.folder), "--prompt", "a red circle", "--n", "1"]
    assert main([*argv, "--out", str(tmp_path / "own")]) == 0
    with Image.open(tmp_path / "own" / "000-00.png") as image:
        assert image.size == (64, 32)
    assert main([*argv, "--width", "32", "--adapter-steps", "0:1", "--out", str(tmp_path / "other")]) == 0
    with Image.open(tmp_path / "other" / "000-00.png") as image:
        assert image.size == (32, 32)
    made = tm.sample("bundled", ["a red circle"], adapter=run, steps=1, height=64)
    assert made.images[0].size == (tm.sample("bundled", ["a red circle"], steps=1).images[0].width, 64)
    project = ["label", "create", str(tmp_path / "labels"), "--run", str(run.folder), "--tasks", "1", "--height", "64"]
    assert create(project[2:]) == 0
    with open_project(tmp_path / "labels") as made_project, made_project.database.read() as session:
        row = session.scalars(sa.select(ImageRow)).first()
        assert row is not None
        assert (row.width, row.height) == (64, 64)
