"""Negative prompts: against diffusers' pipeline, and by hand where they must not act."""

from __future__ import annotations

import pytest
import torch

import tiny
from tastemaker.cli.sampling import SamplingFlags, chosen_sampling
from tastemaker.config.schema import Sampling
from tastemaker.diffusion.sde import ddim
from tastemaker.errors import ConfigError
from tastemaker.evaluation.images import images, write_samples
from tastemaker.models.check import check_model
from tastemaker.models.latent_unet import LatentUNet
from tastemaker.models.pixel import PixelUNet
from tastemaker.models.prompt_states import PromptStates, conditioned
from tastemaker.models.stable_diffusion import SD
from tastemaker.types import Draw

DRAW = Draw(0, 1, ("a cat", "two dogs"), (0, 1), (0, 0))


def test_images_are_those_of_diffusers_with_the_same_negative_prompt():
    model = LatentUNet(SD, tiny.pipeline())
    sde = ddim(model.process.grid(5), 0.0)
    plain = images(model, DRAW, sde, 4.0, batch=2)
    model.negative_prompt = "blurry grey"
    found = images(model, DRAW, sde, 4.0, batch=2)
    pipe = tiny.pipeline()
    expected = pipe(
        list(DRAW.prompts), negative_prompt=["blurry grey"] * 2, num_inference_steps=5, guidance_scale=4.0, eta=0.0,
        latents=DRAW.noise(0, model.latent_shape), height=32, width=32, output_type="pt",
    ).images  # fmt: skip
    assert (found - expected).abs().max() < 1e-4
    assert (plain - expected).abs().max() > 1e-3


def test_dropped_captions_stay_empty_and_compact_keeps_the_negative_prompt():
    """Each state is the length of its prompt: empty 0, negative "bad" 3, prompts 1 and 2."""
    states = PromptStates(lambda prompts: {"text": torch.tensor([[float(len(prompt))] for prompt in prompts])})
    cond = conditioned([states], ["a", "bb", "a"], 2.0, "cpu", "bad")
    assert cond["text"].flatten().tolist() == [1, 2, 1]
    assert cond.unconditional()["text"].flatten().tolist() == [3, 3, 3]
    assert cond.dropped(torch.tensor([True, False, False]))["text"].flatten().tolist() == [0, 2, 1]
    few = cond.select(torch.tensor([1])).compact()
    assert few.states["text"].flatten().tolist() == [0, 3, 2]
    assert few["text"].flatten().tolist() == [2]
    assert few.unconditional()["text"].flatten().tolist() == [3]
    # As always where there is none: the empty prompt is both.
    plain = conditioned([states], ["a", "bb"], 2.0, "cpu")
    assert plain.unconditional()["text"].flatten().tolist() == [0, 0]
    assert plain.compact().states["text"].flatten().tolist() == [0, 1, 2]


def test_a_negative_prompt_that_is_among_the_prompts_or_empty():
    states = PromptStates(lambda prompts: {"text": torch.tensor([[float(len(prompt))] for prompt in prompts])})
    assert conditioned([states], ["bad", "a"], 2.0, "cpu", "bad").unconditional()["text"].flatten().tolist() == [3, 3]


def test_a_class_is_a_negative_prompt_in_pixel_space():
    model = PixelUNet(tiny.pixels(classes=3))
    model.null = 2
    model.negative_prompt = "1"
    cond = model.encode(["0"], 2.0)
    assert cond.unconditional()["text"].argmax().item() == 1
    assert cond.dropped(torch.tensor([True]))["text"].argmax().item() == 2


def test_a_family_that_ignores_it_breaks_the_contract():
    class Ignoring(LatentUNet):
        def encode(self, prompts, guidance, *, pooled=False):
            kept, self.negative_prompt = self.negative_prompt, ""
            found = super().encode(prompts, guidance, pooled=pooled)
            self.negative_prompt = kept
            return found

    assert check_model(lambda: LatentUNet(SD, tiny.pipeline()), ["a cat", "two dogs"]) == []
    assert check_model(lambda: Ignoring(SD, tiny.pipeline()), ["a cat", "two dogs"]) == [
        "encode: the negative prompt changes nothing"
    ]


def test_samples_of_the_command_have_it(checkpoint, tmp_path):
    for name, negative in (("plain", ""), ("negative", "blurry")):
        write_samples(
            model=str(checkpoint), adapter=None, prompts=["a cat"], n=1, seed=0, out=tmp_path / name,
            sampling=Sampling(steps=2, eta=0.0, negative_prompt=negative),
        )  # fmt: skip
    assert (tmp_path / "plain/sheet.png").read_bytes() != (tmp_path / "negative/sheet.png").read_bytes()


def test_flags_go_before_the_run_and_need_guidance():
    run = Sampling(negative_prompt="blurry")
    assert chosen_sampling(run, SamplingFlags()).negative_prompt == "blurry"
    assert chosen_sampling(run, SamplingFlags(negative_prompt="")).negative_prompt == ""
    with pytest.raises(ConfigError, match="--negative-prompt is 'blurry', but the guidance is 1"):
        chosen_sampling(run, SamplingFlags(guidance=1.0))


def test_a_run_with_a_negative_prompt_and_no_guidance_is_refused():
    from tastemaker.config.schema import Config

    with pytest.raises(ConfigError, match=r"sampling\.negative_prompt is 'x', but sampling\.guidance is 1"):
        Config(sampling=Sampling(guidance=1.0, negative_prompt="x"))
