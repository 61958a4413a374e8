"""guided-diffusion's checkpoints become pipelines of the same network, by a second implementation of it."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace

import pytest
import torch
from diffusers import DDPMPipeline, UNet2DModel

import guided_diffusion as reference
from tastemaker.cli.main import main
from tastemaker.errors import ModelError
from tastemaker.models import load_model
from tastemaker.models.guided_diffusion import converted, pipeline, read_checkpoint, scheduler_config, unet_config
from tastemaker.models.guided_diffusion_flags import Flags

FLAGS = Flags(
    image_size=16, num_channels=32, num_res_blocks=1, channel_mult="1,2,2", num_head_channels=16, class_cond=True,
    attention_resolutions="8,4", learn_sigma=True, resblock_updown=True, use_new_attention_order=True,
    noise_schedule="cosine", dropout=0.1,
)  # fmt: skip
"""Those of 64x64_diffusion.pt, but for the sizes."""
PUBLISHED = (
    "--attention_resolutions 32,16,8 --class_cond True --diffusion_steps 1000 --dropout 0.1 --image_size 64 "
    "--learn_sigma True --noise_schedule cosine --num_channels 192 --num_head_channels 64 --num_res_blocks 3 "
    "--resblock_updown True --use_new_attention_order True --use_fp16 True --use_scale_shift_norm True"
)
"""The flags of 64x64_diffusion.pt in guided-diffusion's README."""
SMALL = "--image_size 16 --num_channels 32 --num_res_blocks 1 --num_head_channels 16 --attention_resolutions 8,4 "
CLASSES = 5


def checkpoint(flags: Flags, channels: int = 3) -> reference.Weights:
    """Random weights under the published names."""
    weights = reference.Weights()
    classes = torch.tensor([0]) if flags.class_cond else None
    reference.unet(weights, flags, torch.zeros(1, channels, 16, 16), torch.tensor([0]), classes, CLASSES)
    return weights


@pytest.mark.parametrize(
    ("changes", "channels"),
    [
        ({}, 3),
        ({"use_new_attention_order": False}, 3),
        ({"resblock_updown": False}, 3),
        ({"use_scale_shift_norm": False}, 3),
        ({"attention_resolutions": "16", "num_res_blocks": 2}, 3),
        ({"num_head_channels": -1, "num_heads": 2, "resblock_updown": False}, 3),
        ({"class_cond": False, "learn_sigma": False}, 1),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else str(value),
)
@torch.no_grad()
def test_the_converted_network_gives_the_same_answers(changes, channels):
    flags = replace(FLAGS, **changes)
    weights = checkpoint(flags, channels)
    random = torch.Generator().manual_seed(1)
    x, t = torch.randn(3, channels, 16, 16, generator=random), torch.tensor([0, 300, 999])
    y = torch.tensor([1, 4, 0]) if flags.class_cond else None
    expected = reference.unet(weights, flags, x, t, y, CLASSES)
    found = converted(weights, flags)(x, t, class_labels=y, return_dict=False)[0]
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_published_model_has_its_parameters(capsys):
    """296 million, by table 12 of Dhariwal and Nichol 2021 (ImageNet 64x64)."""
    flags = Flags(
        attention_resolutions="32,16,8", class_cond=True, dropout=0.1, learn_sigma=True, noise_schedule="cosine",
        num_channels=192, num_head_channels=64, num_res_blocks=3, resblock_updown=True, use_new_attention_order=True,
    )  # fmt: skip
    with torch.device("meta"):
        network = UNet2DModel(**unet_config(flags, 3, 1000))
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6) == 296
    assert network.config["down_block_types"] == ("ResnetDownsampleBlock2D", *["AttnDownBlock2D"] * 3)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_becomes_a_folder_for_us_and_for_diffusers(tmp_path, capsys, suffix):
    from safetensors.torch import save_file

    weights = {name: value.clone() for name, value in checkpoint(FLAGS).items()}
    file, out, names = tmp_path / f"model{suffix}", tmp_path / "models/small", tmp_path / "classes.txt"
    torch.save(weights, file) if suffix == ".pt" else save_file(weights, file)
    names.write_text("tench, Tinca tinca\ngoldfish\ncrane\ncrane\nmacaw\n")
    flags = shlex.split(f"{PUBLISHED} {SMALL} --channel_mult 1,2,2 --classes {names}")
    assert main(["convert", "guided-diffusion", str(file), str(out), *flags]) == 0
    count = sum(value.numel() for value in weights.values())
    assert f"a U-Net of {count:,} parameters" in capsys.readouterr().out
    model, theirs = load_model(str(out)), DDPMPipeline.from_pretrained(out)
    x, t = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 700])
    with torch.no_grad():
        expected = reference.unet(checkpoint(FLAGS), FLAGS, x, t, torch.tensor([4, 0]), CLASSES)
        torch.testing.assert_close(theirs.unet(x, t, torch.tensor([4, 0])).sample, expected, atol=1e-5, rtol=1e-5)
        ours = model.predict(x, t, model.encode(["macaw", "Tinca tinca"], 1.0))
    torch.testing.assert_close(ours, expected[:, :3], atol=1e-5, rtol=1e-5)
    scheduler = json.loads((out / "scheduler/scheduler_config.json").read_text())
    assert (scheduler["beta_schedule"], scheduler["variance_type"]) == ("squaredcos_cap_v2", "learned_range")


def test_schedules_are_theirs():
    """alpha-bar(t) = f(t + 1) / f(0), f(t) = cos^2((t / T + 0.008) / 1.008 * pi / 2): at T = 4, t = 0, f is cos^2 of
    0.258 / 1.008 * pi / 2 = 0.402049, which is 0.846881, and f(0) is cos^2(0.0124666) = 0.999845. Linear: betas of
    0.1 / T to 20 / T.
    """
    from diffusers import DDPMScheduler

    cosine = DDPMScheduler(**scheduler_config(replace(FLAGS, diffusion_steps=4)))
    assert cosine.alphas_cumprod[0].item() == pytest.approx(0.846881 / 0.999845, abs=2e-6)
    linear = DDPMScheduler(**scheduler_config(replace(FLAGS, diffusion_steps=2000, noise_schedule="linear")))
    assert linear.betas[[0, -1]].tolist() == pytest.approx([0.00005, 0.01])
    config = scheduler_config(replace(FLAGS, predict_xstart=True, learn_sigma=False))
    assert (config["prediction_type"], config["variance_type"]) == ("sample", "fixed_large")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learn_sigma": False}, "6 channels out and 3 in, but learn_sigma is False"),
        ({"num_res_blocks": 2}, "the checkpoint lacks .*give the flags that it was trained with"),
        ({"attention_resolutions": "16"}, "the checkpoint lacks input_blocks.1.1.norm.weight"),
        ({"attention_resolutions": "8"}, r"the checkpoint lacks output_blocks.1.1.in_layers.2.bias, by these flags"),
        ({"class_cond": False}, "the checkpoint has label_emb.weight, for which these flags have no place"),
        ({"num_channels": 64}, r"is \[.*\], but by these flags \["),
        ({"num_channels": 40}, "these flags make no network"),
        ({"num_head_channels": -1}, "num_heads is 4, by which heads have 8, 16 channels"),
        ({"num_head_channels": 24}, "cannot have heads of 24"),
        ({"channel_mult": "2,1,1"}, "channel_mult begins with 2"),
        ({"channel_mult": "1,two"}, "channel_mult is '1,two', but must be whole numbers"),
        ({"channel_mult": ""}, "image_size is 16, for which no channel_mult is known"),
        ({"diffusion_steps": 4000, "rescale_timesteps": True}, "fractions of times"),
    ],
    ids=str,
)
def test_flags_that_do_not_fit_are_one_sentence(changes, message):
    flags = replace(FLAGS, **changes)
    if changes.get("num_head_channels") == -1:
        flags = replace(flags, attention_resolutions="16,4")
    with pytest.raises(ModelError, match=message) as error:
        pipeline(checkpoint(FLAGS), flags)
    assert "\n" not in str(error.value)


def test_other_checkpoints_are_refused():
    with pytest.raises(ModelError, match="takes 6 channels, as upsamplers"):
        converted(checkpoint(replace(FLAGS, learn_sigma=False), 6), FLAGS)
    with pytest.raises(ModelError, match=r"no weight input_blocks.0.0.weight"):
        converted({"unet.conv_in.weight": torch.zeros(1, 1)}, FLAGS)
    damaged = checkpoint(FLAGS)
    damaged["out.0.bias"] = damaged["out.0.bias"] / 0
    with pytest.raises(ModelError, match=r"checkpoint's out.0.bias holds other values than finite floats"):
        converted(damaged, FLAGS)


@pytest.mark.parametrize("names", [["a"] * 3, ["a"] * 6])
def test_names_must_be_those_of_the_classes(names):
    with pytest.raises(ModelError, match=f"{len(names)} names of classes, but the checkpoint has 5 classes"):
        pipeline(checkpoint(FLAGS), FLAGS, names)


class Code:
    def __reduce__(self):
        return print, ("run",)


def test_files_that_hold_code_are_not_read(tmp_path, capsys):
    torch.save({"input_blocks.0.0.weight": Code()}, tmp_path / "code.pt")
    with pytest.raises(ModelError, match="holds more than tensors"):
        read_checkpoint(tmp_path / "code.pt")
    assert capsys.readouterr().out == ""
    torch.save({"state_dict": {}}, tmp_path / "nested.pt")
    with pytest.raises(ModelError, match="is no state dict"):
        read_checkpoint(tmp_path / "nested.pt")
    (tmp_path / "broken.pt").write_bytes(b"\x80")
    with pytest.raises(ModelError, match=r"cannot be read|more than tensors"):
        read_checkpoint(tmp_path / "broken.pt")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["guided-difusion"], "did you mean 'guided-diffusion'"),
        (["guided-diffusion"], "give a checkpoint and a new folder"),
        (["guided-diffusion", "nowhere.pt", "out"], "the checkpoint nowhere.pt cannot be read"),
        (["guided-diffusion", "a.pt", "out", "--num_chanels", "3"], "num-channels"),
        (["guided-diffusion", "a.pt", "out", "--classes", "none.txt"], "there is no file none.txt"),
    ],
)
def test_mistakes_on_the_command_line(argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", *argv]) == 2
    assert message in capsys.readouterr().err
