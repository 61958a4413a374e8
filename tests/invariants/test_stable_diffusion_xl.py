"""SDXL: diffusers' own states and images, what is trained, and files that diffusers loads."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

import tiny
from tastemaker.diffusion.sde import ddim
from tastemaker.errors import ModelError, RewardError
from tastemaker.evaluation.images import images
from tastemaker.models import load_meta_model, load_model
from tastemaker.models.attention_pool import AttentionPool
from tastemaker.models.check import check_model
from tastemaker.models.config_checks import require_xl
from tastemaker.models.latent_unet import LatentUNet
from tastemaker.models.stable_diffusion_xl import SDXL
from tastemaker.models.tuning import ATTENTION, Tuning
from tastemaker.models.unet_encoder import UNetEncoder
from tastemaker.rewards.preferences.architecture import Architecture
from tastemaker.rewards.preferences.backbones import DiffusionBackbone
from tastemaker.rewards.preferences.model import RewardModel, Scale
from tastemaker.rewards.preferences.value import value_from
from tastemaker.types import Draw

PROMPTS = ("a cat", "two dogs")


def draw(*prompts):
    return Draw(0, 1, prompts, tuple(range(len(prompts))), (0,) * len(prompts))


def model(force_zeros: bool = True, **scheduler) -> LatentUNet:
    return LatentUNet(SDXL, tiny.xl(force_zeros=force_zeros, **scheduler))


def theirs(pipeline, chosen, shape, guidance, steps=4):
    """Images [N,H,W,3] of diffusers' pipeline for the draw's noise."""
    height, width = (2 * side for side in shape[-2:])
    latents = chosen.noise(0, shape)
    return pipeline(
        list(chosen.prompts), height=height, width=width, num_inference_steps=steps, guidance_scale=guidance, eta=0.0,
        latents=latents, output_type="np",
    ).images  # fmt: skip


@pytest.mark.parametrize("force_zeros", [True, False])
def test_states_are_those_of_encode_prompt(force_zeros):
    made = model(force_zeros)
    cond = made.encode(PROMPTS, 5.0)
    text, none, pooled, none_pooled = made.pipeline.encode_prompt(list(PROMPTS), device="cpu")
    torch.testing.assert_close(cond["text"], text)
    torch.testing.assert_close(cond["pooled"], pooled)
    torch.testing.assert_close(cond.unconditional()["text"], none)
    torch.testing.assert_close(cond.unconditional()["pooled"], none_pooled)
    assert bool((none == 0).all()) == force_zeros
    # Height, width, crop top and left, height, width.
    assert cond["size"].tolist() == [[16, 16, 0, 0, 16, 16]] * 2
    made.resize(8, 24)
    assert made.encode(PROMPTS, 5.0)["size"].tolist() == [[8, 24, 0, 0, 8, 24]] * 2


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("height", "width", "guidance"), [(16, 16, 5.0), (8, 24, 5.0), (8, 24, 1.0)])
def test_same_latents_give_the_images_of_diffusers_pipeline(prediction, height, width, guidance):
    made, chosen = model(prediction_type=prediction), draw(*PROMPTS)
    made.resize(height, width)
    ours = images(made, chosen, ddim(made.process.grid(4), 0.0), guidance, batch=2)
    expected = theirs(made.pipeline, chosen, made.latent_shape, guidance)
    assert ours.shape == (2, 3, height, width)
    assert ours.std() > 0.05
    assert np.abs(ours.permute(0, 2, 3, 1).numpy() - expected).max() < 1e-3


def test_the_schedulers_own_offset_is_used():
    """SDXL's pipeline does not mend it, where Stable Diffusion's sets 1."""
    made, chosen = model(steps_offset=0), draw("a cat")
    assert made.process.grid(4).times.tolist() == [750, 500, 250, 0]
    ours = images(made, chosen, ddim(made.process.grid(4), 0.0), 3.0, batch=1)
    expected = theirs(made.pipeline, chosen, made.latent_shape, 3.0)
    assert np.abs(ours.permute(0, 2, 3, 1).numpy() - expected).max() < 1e-3


@torch.no_grad()
def test_size_and_pooled_states_reach_the_network():
    made = model()
    x, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([500, 20])
    cond = made.encode(PROMPTS, 1.0)
    base = made.predict(x, t, cond)
    for name in ("text", "pooled", "size"):
        other = type(cond)({**cond.states, name: cond.states[name] * 3 + 1}, cond.index, 1.0)
        assert (made.predict(x, t, other) - base).abs().max() > 1e-4


@torch.no_grad()
def test_guidance_in_one_pass_is_two_passes():
    made = model()
    x, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([500, 20])
    cond = made.encode(PROMPTS, 4.0)
    given, none = (made.predict(x, t, one).double() for one in (cond.unguided(), cond.unconditional()))
    expected = made.process.x0(none + 4.0 * (given - none), x.double(), t)
    assert (given - none).abs().max() > 1e-3
    torch.testing.assert_close(made.denoise(x, t, cond), expected, atol=1e-4, rtol=1e-4)


def test_the_family_keeps_the_contract():
    assert check_model(model, PROMPTS) == []


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_gradients_reach_exactly_what_is_trained(mode):
    made = model()
    made.tune(Tuning(mode=mode))
    cond = made.encode(PROMPTS, 3.0)
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([500, 20])
    with torch.no_grad():
        for parameter in made.weights.trainable().values():
            parameter += 0.1
    made.denoise(x, t, cond).square().mean().backward()
    modules = {**made.components, "unet": made.pipeline.unet}
    reached = {
        f"{part}.{name}" for part, net in modules.items() for name, p in net.named_parameters() if p.grad is not None
    }
    assert reached == {f"unet.{name}" for name in made.weights.trainable()}
    if mode == "lora":
        # 2 + 4 transformer blocks (down; up has 2 layers), 2 in the middle, of 8 projections, of 2 factors.
        blocks = 2 + 4 + 2
        assert len(made.weights.trainable()) == blocks * 2 * len(ATTENTION) * 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("xl") / "model"
    tiny.xl().save_pretrained(path)
    return path


def trained(folder, tuning) -> LatentUNet:
    made = load_model(str(folder))
    assert isinstance(made, LatentUNet)
    assert made.family is SDXL
    made.tune(tuning)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.weights.trainable().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=random))
    return made


@pytest.mark.parametrize("tuning", [Tuning(rank=2, alpha=6.0), Tuning(mode="full")], ids=["lora", "full"])
def test_what_is_saved_gives_the_same_images_in_diffusers(folder, tmp_path, tuning):
    """By the lines that a run's README.md holds."""
    made, chosen = trained(folder, tuning), draw(*PROMPTS)
    base = theirs(load_model(str(folder)).pipeline, chosen, made.latent_shape, 3.0)
    made.weights.save(tmp_path / ("adapter" if tuning.mode == "lora" else "model"))
    lines = made.usage(repr(str(folder))).replace("'adapter'", repr(str(tmp_path / "adapter")))
    scope: dict = {}
    exec(lines.replace("'model/unet'", repr(str(tmp_path / "model/unet"))), scope)
    scope["pipe"].set_progress_bar_config(disable=True)
    expected = theirs(scope["pipe"], chosen, made.latent_shape, 3.0)
    ours = images(made, chosen, ddim(made.process.grid(4), 0.0), 3.0, batch=2).permute(0, 2, 3, 1).numpy()
    assert np.abs(ours - expected).max() < 1e-3
    assert np.abs(ours - base).max() > 0.01
    again = load_model(str(folder))
    again.weights.load(tmp_path)
    same = images(again, chosen, ddim(again.process.grid(4), 0.0), 3.0, batch=2).permute(0, 2, 3, 1).numpy()
    assert np.abs(ours - same).max() < 1e-4


def test_the_vae_stays_in_float32():
    made = LatentUNet(SDXL, tiny.xl(), "bf16")
    assert {p.dtype for p in made.pipeline.vae.parameters()} == {torch.float32}
    assert {p.dtype for p in made.network.parameters()} == {torch.bfloat16}
    x = made.denoise(torch.randn(1, 4, 8, 8), torch.tensor([500]), made.encode(["a cat"], 3.0))
    assert made.decode(x.float()).dtype == torch.float32


def copied(folder, tmp_path, index=None, part=None, **config):
    path = tmp_path / "model"
    shutil.copytree(folder, path)
    if index is not None:
        file = path / "model_index.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | index))
    if part is not None:
        file = next(path.glob(f"{part}/*config.json"))
        file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return str(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"index": {"text_encoder_2": [None, None]}}, "names no text_encoder_2, but .*expected CLIPTextModelWithProj"),
        ({"index": {"text_encoder_2": ["transformers", "CLIPTextModel"]}}, "text_encoder_2 is a CLIPTextModel, but"),
        ({"index": {"_class_name": "StableDiffusionXLImg2ImgPipeline"}}, "refiner, which only finishes images"),
        ({"part": "unet", "addition_embed_type": None}, "expected 'text_time'"),
        ({"part": "unet", "projection_class_embeddings_input_dim": 26}, "told 5 numbers .*and not the refiner"),
        ({"part": "unet", "cross_attention_dim": 8}, r"states of 8 numbers .*text_encoders give 8 \+ 12"),
        ({"part": "unet", "time_cond_proj_dim": 4}, "takes the guidance weight"),
        ({"part": "vae", "latents_mean": [0.1] * 4}, "latents_mean, which is not used here"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_sdxl_is_refused_in_one_sentence(folder, tmp_path, changes, message):
    with pytest.raises(ModelError, match=message) as error:
        load_meta_model(copied(folder, tmp_path, **changes))
    assert "\n" not in str(error.value)


def test_tokenizers_of_other_lengths_and_missing_parts():
    pipeline = tiny.xl()
    pipeline.tokenizer_2.model_max_length = 8
    with pytest.raises(ModelError, match="tokenizers give 16 and 8 tokens"):
        require_xl(pipeline)
    pipeline.text_encoder_2 = None
    with pytest.raises(ModelError, match="the model has no text_encoder_2"):
        require_xl(pipeline)


def test_its_bottleneck_is_told_the_size_and_the_pooled_prompt_as_a_reward_model():
    """What the whole U-Net's middle block answers, caught by a hook; and no value network can begin as it."""
    whole, made, caught = model(), model(), []
    encoder = UNetEncoder(made, "xl")
    assert not list(made.network.up_blocks.parameters())
    whole.network.mid_block.register_forward_hook(lambda *a: caught.append(a[-1]))
    x, t = torch.randn(2, *whole.latent_shape), torch.tensor([0, 500])
    with torch.no_grad():
        for prompts in (["a cat", "dog"], ["a cat", ""]):
            cond = whole.encode(prompts, 1.0)
            whole.predict(x, t, cond)
            maps = encoder.maps(x, t, made.encode(prompts, 1.0))
            torch.testing.assert_close(maps, caught[-1])
            assert maps.shape[1:] == (encoder.channels, encoder.side, encoder.side)
    assert not torch.allclose(caught[0][1], caught[1][1], atol=1e-4)
    backbone = DiffusionBackbone(made, "xl", encoder, (0,))
    pool = AttentionPool(encoder.channels, backbone.text_channels, 1, encoder.side)
    reward_model = RewardModel(Architecture(model="xl"), backbone, (pool,), Scale(((0.0, 1.0),)))
    with pytest.raises(RewardError, match="whose U-Net is told the size of images and a pooled prompt"):
        value_from(reward_model)


def test_a_size_that_the_network_cannot_make():
    with pytest.raises(ModelError, match=r"sampling.height is 18, but this model needs a multiple of 4"):
        model().resize(18, 16)


FULL_SIZE = {
    "sample_size": 128, "in_channels": 4, "out_channels": 4, "layers_per_block": 2,
    "block_out_channels": (320, 640, 1280), "transformer_layers_per_block": (1, 2, 10),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048, "use_linear_projection": True, "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
"""unet/config.json of stabilityai/stable-diffusion-xl-base-1.0."""
SD15 = {
    "sample_size": 64, "in_channels": 4, "out_channels": 4, "layers_per_block": 2, "cross_attention_dim": 768,
    "attention_head_dim": 8, "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
}  # fmt: skip
"""unet/config.json of Stable Diffusion 1.5."""


@pytest.mark.parametrize(
    ("config", "expected"), [(FULL_SIZE, 2_567_463_684), (SD15, 859_520_964)], ids=["SDXL", "SD 1.5"]
)
def test_real_sizes(config, expected):
    with torch.device("meta"):
        network = UNet2DConditionModel(**config)
    assert sum(parameter.numel() for parameter in network.parameters()) == expected


def test_the_class_of_the_folder(folder):
    found = load_meta_model(str(folder))
    assert isinstance(found, LatentUNet)
    assert found.family is SDXL
    assert type(StableDiffusionXLPipeline.from_pretrained(folder)) is StableDiffusionXLPipeline
