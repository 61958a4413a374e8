"""Adapters: off is the base model, at first they change nothing, and diffusers loads what was saved."""

import textwrap
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from forked import Child, finish, run_script
from tastemaker.diffusion.sde import DDIM
from tastemaker.errors import ConfigError, ModelError
from tastemaker.evaluation.images import images
from tastemaker.models.stable_diffusion import LatentUNet
from tastemaker.models.tuning import Tuning
from tastemaker.types import Draw

DRAW = Draw(0, 1, ("a cat", "two dogs"), (0, 1), (0, 0))


def trained(tuning):
    model = LatentUNet(tiny.pipeline())
    model.tune(tuning)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.weights.trainable().values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=random))
    return model


def shown(model):
    return images(model, DRAW, DDIM(model.process.grid(5), 1.0), 5.0, batch=2)


def test_a_new_adapter_changes_nothing_and_off_is_the_base_model():
    base = shown(LatentUNet(tiny.pipeline()))
    fresh = LatentUNet(tiny.pipeline())
    fresh.tune(Tuning())
    assert torch.equal(shown(fresh), base)
    model = trained(Tuning())
    assert (shown(model) - base).abs().max() > 0.01
    with model.weights.reference():
        assert torch.equal(shown(model), base)
    assert (shown(model) - base).abs().max() > 0.01


def test_default_targets_are_the_attention_projections_of_methods_md():
    """4 projections of 2 attentions a block, rank 4: A is [4, in], B is [out, 4]."""
    model = LatentUNet(tiny.pipeline())
    model.tune(Tuning())
    blocks = sum(name.endswith("attn2.to_k") for name, _ in model.pipeline.unet.named_modules() if "lora" not in name)
    assert len(model.weights.trainable()) == blocks * 2 * 4 * 2
    # A block of width C and text width 16 has 4 (14 C + 2 * 16) parameters: 1024 at C = 16 (three blocks), 1920 at
    # C = 32 (the middle one).
    assert blocks == 4
    assert sum(p.numel() for p in model.weights.trainable().values()) == 3 * 1024 + 1920


def test_stable_diffusion_has_the_published_number_of_adapter_parameters():
    """797,184 for SD 1.x (AlignProp §4.1 says 800K), from its public configuration."""
    from diffusers import UNet2DConditionModel

    from tastemaker.models.lora import add_lora
    from tastemaker.models.tuning import ATTENTION

    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
        add_lora(unet, 4, None, ATTENTION)
    assert sum(p.numel() for p in unet.parameters() if p.requires_grad) == 797_184
    assert sum(p.numel() for p in unet.parameters() if not p.requires_grad) == 859_520_964


def test_wrong_targets_are_named():
    with pytest.raises(ModelError, match=r"tuning.targets is \['to_x'\].*to_k"):
        LatentUNet(tiny.pipeline()).tune(Tuning(targets=("to_x",)))


def test_a_fully_tuned_model_has_no_reference():
    model = trained(Tuning(mode="full"))
    assert len(model.weights.trainable()) == len(list(model.pipeline.unet.parameters()))
    with pytest.raises(ModelError, match="no copy"):
        model.weights.reference()


@pytest.mark.parametrize(
    "tuning", [Tuning(), Tuning(rank=2, alpha=6.0), Tuning(mode="full")], ids=["lora", "alpha", "full"]
)
def test_a_fresh_process_with_diffusers_alone_gives_the_same_images(tmp_path, tuning):
    """alpha = 3 rank would be lost if the adapter's metadata were."""
    model = trained(tuning)
    expected = shown(model)
    tiny.folder(tmp_path / "base")
    model.weights.save(tmp_path / "saved")
    noises = torch.stack([DRAW.noise(step, (4, 8, 8)) for step in range(6)])
    torch.save(noises, tmp_path / "noises.pt")
    load = "pipe.load_lora_weights(f'{root}/saved')"
    if tuning.mode == "full":
        load = "pipe.unet = UNet2DConditionModel.from_pretrained(f'{root}/saved/unet')"
    script = textwrap.dedent(f"""
        import torch
        from diffusers import StableDiffusionPipeline, UNet2DConditionModel
        from diffusers.schedulers import scheduling_ddim
        root = {str(tmp_path)!r}
        torch.set_num_threads(1)
        pipe = StableDiffusionPipeline.from_pretrained(f"{{root}}/base", safety_checker=None)
        {load}
        noises = iter(torch.load(f"{{root}}/noises.pt", weights_only=True))
        first = next(noises)
        scheduling_ddim.randn_tensor = lambda *a, **k: next(noises)
        images = pipe({list(DRAW.prompts)!r}, num_inference_steps=5, guidance_scale=5.0, eta=1.0, height=32, width=32,
                      latents=first).images
        for i, image in enumerate(images):
            image.save(f"{{root}}/{{i}}.png")
        assert "tastemaker" not in __import__("sys").modules
    """)
    finish(Child(run_script, script, log=tmp_path / "log"))
    for index in range(2):
        theirs = np.asarray(Image.open(tmp_path / f"{index}.png")).astype(int)
        ours = (expected[index].permute(1, 2, 0) * 255).round().numpy().astype(int)
        assert np.abs(theirs - ours).max() <= 1


@pytest.mark.parametrize("alpha", [None, 12.0])
def test_training_that_starts_from_an_adapter_begins_with_its_output(tmp_path, alpha):
    """The file's scale is 6 / 2. B takes up the ratio to the new scale; off is still the base model."""
    model = trained(Tuning(rank=2, alpha=6.0))
    model.weights.save(tmp_path / "saved")
    further = LatentUNet(tiny.pipeline())
    further.tune(Tuning(rank=2, alpha=alpha, start_from=str(tmp_path / "saved")))
    torch.testing.assert_close(shown(further), shown(model), rtol=0, atol=2e-3)
    base = shown(LatentUNet(tiny.pipeline()))
    assert (shown(further) - base).abs().max() > 0.01
    with further.weights.reference():
        assert torch.equal(shown(further), base)
    assert len(further.weights.trainable()) == len(model.weights.trainable())


def test_an_adapter_that_training_cannot_start_from_is_named(tmp_path):
    trained(Tuning(rank=2)).weights.save(tmp_path / "saved")
    for tuning, message in (
        (Tuning(rank=4), "whose rank is 2, but the adapter to be trained has rank 4: set tuning.rank to 2"),
        (Tuning(rank=2, targets=("to_q",)), r"saved.* adapts the layer .* and tuning.targets does not"),
        (Tuning(rank=2, targets=("to_q", "to_k", "to_v", "to_out.0", "conv1")), r"tuning.targets adapts the layer .*"),
    ):
        with pytest.raises(ModelError, match=message):
            LatentUNet(tiny.pipeline()).tune(replace(tuning, start_from=str(tmp_path / "saved")))
    with pytest.raises(ConfigError, match="there is no adapter in"):
        LatentUNet(tiny.pipeline()).tune(Tuning(start_from=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"start_from is x, an adapter, but tuning\.mode is full"):
        Tuning(mode="full", start_from="x")
