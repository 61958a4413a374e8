"""Adapters: off is the base model, at first they change nothing, and diffusers loads what was saved."""

import textwrap
from dataclasses import replace
from shutil import rmtree

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import tiny
from forked import Child, finish, run_script
from tastemaker.diffusion.sde import ddim
from tastemaker.errors import ConfigError, ModelError
from tastemaker.evaluation.images import images
from tastemaker.evaluation.mixture import common_frozen
from tastemaker.models import adapter_files
from tastemaker.models.adapter_export import write_state
from tastemaker.models.latent_unet import LatentUNet
from tastemaker.models.lora import WEIGHTS
from tastemaker.models.stable_diffusion import SD
from tastemaker.models.tuning import Tuning
from tastemaker.types import Draw

DRAW = Draw(0, 1, ("a cat", "two dogs"), (0, 1), (0, 0))


def trained(tuning):
    model = LatentUNet(SD, tiny.pipeline())
    model.tune(tuning)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.weights.trainable().values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=random))
    return model


def shown(model):
    return images(model, DRAW, ddim(model.process.grid(5), 1.0), 5.0, batch=2)


def test_a_new_adapter_changes_nothing_and_off_is_the_base_model():
    base = shown(LatentUNet(SD, tiny.pipeline()))
    fresh = LatentUNet(SD, tiny.pipeline())
    fresh.tune(Tuning())
    assert torch.equal(shown(fresh), base)
    model = trained(Tuning())
    assert (shown(model) - base).abs().max() > 0.01
    with model.weights.reference():
        assert torch.equal(shown(model), base)
    assert (shown(model) - base).abs().max() > 0.01


def test_default_targets_are_the_attention_projections_of_methods_md():
    """4 projections of 2 attentions a block, rank 4: A is [4, in], B is [out, 4]."""
    model = LatentUNet(SD, tiny.pipeline())
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
        LatentUNet(SD, tiny.pipeline()).tune(Tuning(targets=("to_x",)))


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
    further = LatentUNet(SD, tiny.pipeline())
    further.tune(Tuning(rank=2, alpha=alpha, start_from=str(tmp_path / "saved")))
    torch.testing.assert_close(shown(further), shown(model), rtol=0, atol=2e-3)
    base = shown(LatentUNet(SD, tiny.pipeline()))
    assert (shown(further) - base).abs().max() > 0.01
    with further.weights.reference():
        assert torch.equal(shown(further), base)
    assert len(further.weights.trainable()) == len(model.weights.trainable())


@pytest.mark.parametrize("form", ["diffusers", "kohya", "comfyui"])
def test_training_that_starts_from_a_file_of_others_has_its_layers_ranks_and_scales(tmp_path, form):
    """Rank 3, alpha 1.5, on layers that are not the default's; the images are the ones that it gave."""
    model = trained(Tuning(rank=3, alpha=1.5, targets=("attn1.to_q", "conv1", "proj_in")))
    network = model.weights.network
    file = tmp_path / "other.safetensors"
    if form == "diffusers":
        model.weights.save(tmp_path)
        file = tmp_path / WEIGHTS
    else:
        model.weights.save(tmp_path / "own")
        write_state(adapter_files.read(tmp_path / "own", network), network, file, form, torch.float32, {})
    further = LatentUNet(SD, tiny.pipeline())
    further.tune(Tuning(start_from=str(file)))
    assert torch.equal(shown(further), shown(model))
    expected = {name: value.shape for name, value in model.weights.trainable().items()}
    assert {name: value.shape for name, value in further.weights.trainable().items()} == expected
    assert set(adapter_files.scales(further.network).values()) == {0.5}


def frozen(tmp_path):
    """Two adapters on disk, of rank 2 and scale 2 and of rank 1, on layers of which some are both's."""
    for name, tuning in {"one": Tuning(rank=2, alpha=4.0), "two": Tuning(rank=1, targets=("to_q", "conv1"))}.items():
        trained(tuning).weights.save(tmp_path / name)
    return Tuning(rank=2, frozen_adapters=(str(tmp_path / "one"), str(tmp_path / "two")), frozen_weights=(0.5, -1.0))


def test_frozen_adapters_are_under_the_trained_one(tmp_path):
    """As diffusers' fuse_lora adds two adapters with weights; the reference has both, and the file none."""
    tuning, pipe = frozen(tmp_path), tiny.pipeline()
    for name, weight in (("one", 0.5), ("two", -1.0)):
        pipe.load_lora_weights(tmp_path / name)
        pipe.fuse_lora(lora_scale=weight)
        pipe.unload_lora_weights()
    expected = shown(LatentUNet(SD, pipe))
    model = LatentUNet(SD, tiny.pipeline())
    model.tune(tuning)
    assert (shown(model) - shown(LatentUNet(SD, tiny.pipeline()))).abs().max() > 0.01
    torch.testing.assert_close(shown(model), expected, rtol=0, atol=1e-3)
    before = shown(model)
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.weights.trainable().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=random))
    changed = shown(model)
    assert (changed - before).abs().max() > 0.01
    with model.weights.reference():
        assert torch.equal(shown(model), before)
    model.weights.save(tmp_path / "saved")
    names = {name.split(".lora_")[0] for name in load_file(tmp_path / "saved" / WEIGHTS)}
    assert len(names) == len(model.weights.trainable()) / 2  # its own factors alone
    again = LatentUNet(SD, tiny.pipeline())
    own = {name: value.clone() for name, value in again.network.state_dict().items()}
    with again.weights.loaded(tmp_path / "saved"):
        torch.testing.assert_close(shown(again), changed, rtol=0, atol=1e-4)
    assert all(value.equal(own[name]) for name, value in again.network.state_dict().items())


def test_what_frozen_adapters_cannot_be_is_named(tmp_path):
    tuning = frozen(tmp_path)
    model = LatentUNet(SD, tiny.pipeline())
    model.tune(tuning)
    model.weights.save(tmp_path / "saved")
    start = replace(tuning, frozen_adapters=(), frozen_weights=(), start_from=str(tmp_path / "saved"))
    with pytest.raises(ModelError, match=r"was trained on top of .*one.*two: set tuning\.frozen_adapters to these"):
        LatentUNet(SD, tiny.pipeline()).tune(start)
    further = LatentUNet(SD, tiny.pipeline())
    further.tune(replace(tuning, start_from=str(tmp_path / "saved")))
    assert torch.equal(shown(further), shown(model))
    with pytest.raises(ModelError, match=r"was itself trained on top of .*one: name that before it"):
        LatentUNet(SD, tiny.pipeline()).tune(Tuning(frozen_adapters=(str(tmp_path / "saved"),)))
    with pytest.raises(ModelError, match="only adapters on top of the same ones can be mixed"):
        common_frozen([tmp_path / "saved", tmp_path / "one"])
    assert [weight for _, weight in common_frozen([tmp_path / "saved", tmp_path / "saved"])] == [0.5, -1.0]
    rmtree(tmp_path / "two")
    with pytest.raises(ModelError, match=r"on top of .*two, which is not there"):
        LatentUNet(SD, tiny.pipeline()).weights.load(tmp_path / "saved")
    with pytest.raises(ConfigError, match=r"frozen_weights is \[1\.0\], but there are 2 frozen_adapters"):
        replace(tuning, frozen_weights=(1.0,))


def test_an_adapter_that_training_cannot_start_from_is_named(tmp_path):
    trained(Tuning(rank=2)).weights.save(tmp_path / "saved")
    for tuning, message in (
        (Tuning(rank=8), r"whose rank is 2, but tuning\.rank is 8: leave it out"),
        (Tuning(rank=2, targets=("to_q",)), r"the file adapts the layer .* and tuning\.targets does not"),
        (Tuning(targets=("to_q", "to_k", "to_v", "to_out.0", "conv1")), r"tuning\.targets adapts the layer .*conv1"),
    ):
        with pytest.raises(ModelError, match=message):
            LatentUNet(SD, tiny.pipeline()).tune(replace(tuning, start_from=str(tmp_path / "saved")))
    with pytest.raises(ConfigError, match="there is no adapter in"):
        LatentUNet(SD, tiny.pipeline()).tune(Tuning(start_from=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"start_from is x, an adapter, but tuning\.mode is full"):
        Tuning(mode="full", start_from="x")
