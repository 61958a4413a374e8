"""What saves memory: quantized base weights, text encoders and VAE off the device, prompt states on disk."""

from __future__ import annotations

import json
import sys
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import tiny
from tastemaker.errors import ConfigError, ModelError
from tastemaker.models import load_model
from tastemaker.models.kept_prompt_states import INDEX, keep_prompt_states, kept_states, load_with_kept_states
from tastemaker.models.latent_unet import LatentUNet
from tastemaker.models.loading import is_text_encoder
from tastemaker.models.memory import offload, save_memory
from tastemaker.models.memory_settings import Memory
from tastemaker.models.pipeline_folder import wanted
from tastemaker.models.pixel import PixelUNet
from tastemaker.models.quantization import quantize
from tastemaker.models.stable_diffusion import SD
from tastemaker.models.tuning import Tuning


def model(seed=0):
    return LatentUNet(SD, tiny.pipeline(seed))


# ---------------------------------------------------------------- base weights in 4 or 8 bits


def test_without_bitsandbytes_its_lack_is_named():
    with (
        mock.patch.dict(sys.modules, {"bitsandbytes": None, "bitsandbytes.nn": None}),
        pytest.raises(ConfigError, match=r"tuning\.base_weights is int8, which needs bitsandbytes .*pip install"),
    ):
        quantize(nn.Sequential(nn.Linear(2, 2)), "int8")


def test_a_whole_network_cannot_be_trained_quantized():
    with pytest.raises(ConfigError, match=r"base_weights is nf4, but tuning\.mode is full"):
        Tuning(mode="full", base_weights="nf4")


@pytest.mark.parametrize(("kind", "bound"), [("nf4", 1 / 7), ("int8", 1 / 127)])
def test_quantized_weights_are_the_weights_to_their_rounding(kind, bound):
    """Of 16 x 64 weights nf4 rounds each block of 64, which is a row, to 16 levels in [-1, 1] of its largest, that lie
    at most 0.31 apart at the ends (so at most 0.16 away); int8 to 127 of a row's largest, so at most half of that."""
    pytest.importorskip("bitsandbytes", reason="needs the extra eight-bit")
    torch.manual_seed(0)
    network: nn.Module = nn.Sequential(nn.Linear(64, 16), nn.Linear(16, 4, bias=False))
    layer = network[0]
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    assert quantize(network, kind) == 2
    found = network[0](torch.eye(64)) - bias
    error = (found.T - weight).abs() / weight.abs().amax(dim=1, keepdim=True)
    assert 0 < error.max() < 1.15 * bound
    assert network[0].weight.dtype == {"nf4": torch.uint8, "int8": torch.int8}[kind]
    # Two weights to a byte of nf4.
    assert network[0].weight.numel() == 64 * 16 // {"nf4": 2, "int8": 1}[kind]


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_adapters_train_on_quantized_weights_and_are_saved_alone(tmp_path, kind):
    pytest.importorskip("bitsandbytes", reason="needs the extra eight-bit")
    plain, found = model(), model()
    plain.tune(Tuning(rank=2))
    found.tune(Tuning(rank=2, base_weights=kind))
    names = plain.weights.trainable()
    assert found.weights.trainable().keys() == names.keys()
    assert all(value.equal(names[name]) for name, value in found.weights.trainable().items())
    layer = found.network.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
    assert layer.base_layer.weight.dtype in (torch.uint8, torch.int8)
    x, t = torch.randn(2, *found.latent_shape, generator=torch.Generator().manual_seed(0)), torch.tensor([500, 20])
    cond = found.encode(["a cat", "a dog"], 1.0)
    base = plain.predict(x, t, cond)
    before = found.predict(x, t, cond)
    assert 0 < (before - base).abs().max() < 0.5 * base.abs().max()
    optimizer = torch.optim.AdamW(found.weights.trainable().values(), lr=1e-2)
    frozen = {name: value.clone() for name, value in found.network.named_parameters() if not value.requires_grad}
    for _ in range(2):
        optimizer.zero_grad()
        loss = found.predict(x, t, cond).square().mean()
        loss.backward()
        optimizer.step()
    after = found.predict(x, t, cond)
    assert after.square().mean() < before.square().mean()
    assert all(value.equal(frozen[name]) for name, value in found.network.named_parameters() if name in frozen)
    with found.weights.reference():
        torch.testing.assert_close(found.predict(x, t, cond), before)
    found.weights.save(tmp_path)
    other = model()
    other.tune(Tuning(base_weights=kind, start_from=str(tmp_path)))
    torch.testing.assert_close(other.predict(x, t, cond), after)
    whole = model()
    whole.weights.load(tmp_path)  # on weights that are not quantized
    assert (whole.predict(x, t, cond) - after).abs().max() < 0.5 * after.abs().max()


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantized_layers_put_out_half_precision_as_others_do_under_autocast(kind):
    pytest.importorskip("bitsandbytes", reason="needs the extra eight-bit")
    plain, found = (LatentUNet(SD, tiny.pipeline(), "bf16") for _ in range(2))
    found.tune(Tuning(rank=2, base_weights=kind))
    layer = found.network.get_submodule("down_blocks.0.resnets.0.time_emb_proj")
    seen = []
    layer.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0].dtype, output.dtype)))
    x, t = torch.randn(2, *found.latent_shape, generator=torch.Generator().manual_seed(0)), torch.tensor([500, 20])
    cond = found.encode(["a cat", "a dog"], 1.0)
    answer, base = found.predict(x, t, cond), plain.predict(x, t, cond)
    assert seen == [(torch.bfloat16, torch.bfloat16)]
    assert 0 < (answer - base).abs().max() < 0.5 * base.abs().max()
    answer.square().mean().backward()
    assert all(value.grad is not None for value in found.weights.trainable().values())


# ---------------------------------------------------------------- off the device


class Recorded(nn.Linear):
    """A layer that notes where it is moved to and when it works."""

    def __init__(self):
        super().__init__(2, 2)
        self.seen = []

    def to(self, device):
        self.seen.append(str(device))
        return self

    def forward(self, x):
        self.seen.append("forward")
        return super().forward(x)


def test_a_module_is_on_the_device_for_its_own_passes_alone():
    layer = Recorded().requires_grad_(False)
    offload(layer, torch.device("cuda:1"))
    with mock.patch("tastemaker.models.memory.send_to_device", lambda value, device: value):
        layer(torch.zeros(1, 2))
        assert layer.seen == ["cpu", "cuda:1", "forward", "cpu"]
        layer(torch.zeros(1, 2, requires_grad=True))  # whose backward pass needs the weights where they are
    assert layer.seen[4:] == ["cuda:1", "forward"]


def test_offloading_changes_no_image_and_covers_text_encoder_and_vae():
    plain, saving = model(), model()
    save_memory(saving, Memory(offload=True))
    parts = [saving.components["text_encoder"], *saving.components["vae"].children()]
    assert len(parts) == 5  # encoder, decoder and the convolutions before and after the latents
    assert all(part._forward_pre_hooks and part._forward_hooks for part in parts)
    x = torch.randn(2, *plain.latent_shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(saving.decode(x), plain.decode(x))
    assert torch.equal(saving.encode_images(plain.decode(x)), plain.encode_images(plain.decode(x)))
    assert torch.equal(saving.encode(["a cat"], 1.0)["text"], plain.encode(["a cat"], 1.0)["text"])


def test_slicing_changes_no_image():
    plain, saving = model(), model()
    save_memory(saving, Memory(vae_slicing=True))
    x = torch.randn(3, *plain.latent_shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(saving.decode(x), plain.decode(x))


@pytest.mark.parametrize("name", ["vae_slicing", "vae_tiling"])
def test_what_the_model_has_not_is_named(name):
    with pytest.raises(ConfigError, match=rf"memory\.{name} is true, but the model has no VAE"):
        save_memory(PixelUNet(tiny.pixels()), Memory(**{name: True}))


# ---------------------------------------------------------------- prompt states on disk


def keep(one, folder):
    keep_prompt_states(one, folder, "sd", "fp32")


def test_prompt_states_on_disk_are_taken_without_the_text_encoder(tmp_path):
    first = model()
    early = first.encode(["a cat"], 1.0)["text"]
    keep(first, tmp_path)
    late = first.encode(["a dog"], 1.0, pooled=True)
    again = model()
    keep(again, tmp_path)
    with mock.patch.object(type(again.pipeline.text_encoder), "forward", side_effect=AssertionError("it was asked")):
        assert torch.equal(again.encode(["a cat"], 1.0)["text"], early)
        found = again.encode(["a dog"], 1.0, pooled=True)
        assert torch.equal(found["text"], late["text"])
        assert torch.equal(found["pooled"], late["pooled"])
        with pytest.raises(AssertionError, match="it was asked"):
            again.encode(["a bird"], 1.0)


def test_states_of_other_weights_are_others(tmp_path):
    for seed in (0, 1):
        one = model(seed)
        keep(one, tmp_path)
        assert torch.equal(one.encode(["a cat"], 1.0)["text"], model(seed).encode(["a cat"], 1.0)["text"])
    assert len([folder for folder in tmp_path.iterdir() if folder.name.startswith("text-")]) == 2


def test_a_damaged_file_is_computed_again(tmp_path):
    one = model()
    keep(one, tmp_path)
    right = one.encode(["a cat"], 1.0)["text"]
    files = [file for file in tmp_path.rglob("*.safetensors") if load_file(file)["text"].equal(right[0])]
    assert len(files) == 1
    files[0].write_bytes(files[0].read_bytes()[:50])
    other = model()
    keep(other, tmp_path)
    assert torch.equal(other.encode(["a cat"], 1.0)["text"], right)
    assert load_file(files[0])["text"].equal(right[0])


@pytest.fixture
def saved(tmp_path):
    """A model's folder, and what it keeps of two prompts."""
    folder = tiny.folder(tmp_path / "sd")
    one = load_model(str(folder), "bf16")
    keep_prompt_states(one, tmp_path / "kept", str(folder), "bf16")
    return folder, kept_states(tmp_path / "kept", str(folder), "bf16"), one.encode(["a cat"], 1.0, pooled=True)


def test_offloaded_text_encoders_are_in_main_memory_when_they_are_loaded_late(saved):
    folder, kept, first = saved
    late = load_with_kept_states(str(folder), kept, "bf16", offloaded=True)
    save_memory(late, Memory(offload=True))
    assert late.components["text_encoder"].device.type == "meta"
    assert all(part._forward_pre_hooks for part in late.components["vae"].children())
    assert torch.equal(late.encode(["a cat"], 1.0, pooled=True)["pooled"], first["pooled"])
    moves, whole = [], load_model(str(folder), "bf16")
    with mock.patch("tastemaker.models.memory.send_to_device", lambda value, device: moves.append(device) or value):
        found = late.encode(["a dog"], 1.0)
    assert moves == [late.device] * 2  # once for the arguments, once for the options
    assert late.components["text_encoder"].dtype == torch.bfloat16
    assert torch.equal(found["text"], whole.encode(["a dog"], 1.0)["text"])


def test_kept_states_of_another_model_or_precision_are_not_taken(saved, tmp_path):
    folder, kept, _ = saved
    assert kept is not None
    assert kept_states(tmp_path / "kept", "another", "bf16") is None
    assert kept_states(tmp_path / "kept", str(folder), "fp32") is None
    for damaged in ("[]", '{"model"', json.dumps({"model": str(folder), "precision": "bf16"})):
        (tmp_path / "kept" / INDEX).write_text(damaged)
        assert kept_states(tmp_path / "kept", str(folder), "bf16") is None


def test_text_encoders_that_are_others_than_before_are_refused(saved):
    folder, kept, _ = saved
    tiny.folder(folder, seed=1)
    late = load_with_kept_states(str(folder), kept, "bf16")
    late.encode(["a cat"], 1.0)
    with pytest.raises(ModelError, match=r"no states of the prompt 'a dog', .*but those of .* are others than they w"):
        late.encode(["a dog"], 1.0)


def test_weights_of_text_encoders_are_downloaded_when_they_are_needed():
    """Of a repository of an SDXL."""
    parts = ("text_encoder", "text_encoder_2", "unet", "vae", "tokenizer", "tokenizer_2", "scheduler")
    index = {"_class_name": "StableDiffusionXLPipeline"} | {part: ["diffusers", "A"] for part in parts}
    names = [f"{part}/{name}" for part in parts[:4] for name in ("config.json", "model.safetensors")]
    whole, late = wanted(names, index), wanted(names, index, lambda part: not is_text_encoder(part))
    assert set(whole) - set(late) == {"text_encoder/model.safetensors", "text_encoder_2/model.safetensors"}


def test_a_model_without_text_encoder_has_no_states_to_keep():
    with pytest.raises(ConfigError, match=r"memory\.prompt_states is true, but the model has no text encoder"):
        save_memory(PixelUNet(tiny.pixels()), Memory(prompt_states=True))
