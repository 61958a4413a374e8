"""Every family of models keeps the contract, and breaking it is noticed."""

from __future__ import annotations

import re

import pytest
import torch

import tiny
from tastemaker.models.check import check_model
from tastemaker.models.latent_unet import LatentUNet
from tastemaker.models.pixel import PixelUNet
from tastemaker.models.stable_diffusion import SD

PROMPTS = ("0", "1")
WORDS = ("a cat", "two dogs")
"""Of letters, which the small Stable Diffusion's tokenizer has; to it all digits are unknown."""


def classes():
    pipeline = tiny.pixels(channels=3, classes=3)
    pipeline.register_to_config(id2label={0: "0", 1: "1"})  # the third is the null class
    return PixelUNet(pipeline)


def latent():
    return LatentUNet(SD, tiny.pipeline())


@pytest.mark.parametrize(
    ("make", "prompts", "guided"),
    [
        (latent, WORDS, True),
        (lambda: LatentUNet(SD, tiny.pipeline(prediction_type="v_prediction")), WORDS, True),
        (classes, PROMPTS, True),
        (lambda: PixelUNet(tiny.pixels()), PROMPTS, False),
    ],
    ids=["latent", "latent v", "pixel with classes", "pixel"],
)
def test_families_keep_the_contract(make, prompts, guided):
    assert check_model(make, prompts, guided=guided) == []


def broken(name, value):
    class Broken(LatentUNet):
        pass

    setattr(Broken, name, value)
    return lambda: Broken(SD, tiny.pipeline())


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("denoise", lambda self, x, t, cond: LatentUNet.denoise(self, x, t, cond).float(), "in float64"),
        (
            "denoise",
            lambda self, x, t, cond: LatentUNet.denoise(self, x, t, cond.unguided()),
            "guidance changes nothing",
        ),
        (
            "denoise",
            lambda self, x, t, cond: LatentUNet.denoise(self, x, t, cond) + 0.1 * x.mean(),
            "a row alone has another result",
        ),
        ("decode", lambda self, x0: 2 * LatentUNet.decode(self, x0), r"in \[0,1\]"),
        ("decode", lambda self, x0: LatentUNet.decode(self, x0.detach()) + 0 * x0.sum(), "no gradient"),
        ("encode_images", lambda self, images: torch.zeros(2, 1), "encode_images: expected"),
    ],
    ids=["float32", "no guidance", "depends on the batch", "range", "detached", "latents"],
)
def test_what_breaks_the_contract_is_said(name, value, expected):
    assert any(re.search(expected, line) for line in check_model(broken(name, value), PROMPTS))
