"""Checkpoints as other programs leave them: loaded as they are meant, or refused in one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from tastemaker.cli.main import main
from tastemaker.errors import ModelError
from tastemaker.models import load_model
from tastemaker.models.config_checks import require_latent, require_pixels
from tastemaker.models.files import Weights, chosen_weights
from tastemaker.models.loading import load_pipeline

UNET, TEXT, VAE = "unet/config.json", "text_encoder/config.json", "vae/config.json"
TOKENS, INDEX, SCHEDULER = "tokenizer/tokenizer_config.json", "model_index.json", "scheduler/scheduler_config.json"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pixels") / "model"
    tiny.pixels(channels=3, classes=2).save_pretrained(folder)
    return folder


@pytest.fixture
def sd(checkpoint, tmp_path):
    return Path(shutil.copytree(checkpoint, tmp_path / "model"))


@pytest.fixture
def ddpm(pixels, tmp_path):
    return Path(shutil.copytree(pixels, tmp_path / "model"))


def edit(folder: Path, file: str, **changes) -> None:
    """Changes keys of a JSON file; `...` removes one."""
    content = json.loads((folder / file).read_text()) | changes
    (folder / file).write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def refused(folder: Path | str, message: str) -> None:
    with pytest.raises(ModelError) as error:
        load_pipeline(str(folder))
    assert message in str(error.value), str(error.value)
    assert "\n" not in str(error.value)


def same(one, other) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("shards", [None, "20KB"], ids=["whole", "sharded"])
@pytest.mark.parametrize(("variant", "safe"), [("fp16", True), ("non_ema", True), ("fp16", False), (None, False)])
def test_weights_of_a_variant_are_loaded(tmp_path, variant, safe, shards):
    pipeline = tiny.pipeline().to(torch.float16)
    sizes = {} if shards is None else {"max_shard_size": shards}
    pipeline.save_pretrained(tmp_path / "model", variant=variant, safe_serialization=safe, **sizes)
    if shards is not None:
        assert len(list((tmp_path / "model/unet").glob("*-of-*"))) > 1
    made = load_pipeline(str(tmp_path / "model"))
    for part in ("unet", "vae", "text_encoder"):
        assert same(getattr(made, part), getattr(pipeline, part).float())


def test_parts_may_have_variants_of_their_own_and_plain_weights_come_first(sd):
    expected = load_pipeline(str(sd))
    for file, variant in ((WEIGHTS, "bf16"), ("text_encoder/model.safetensors", "ema")):
        path = sd / file
        path.rename(path.with_name(path.name.replace(".safetensors", f".{variant}.safetensors")))
    (sd / "vae/diffusion_pytorch_model.fp16.safetensors").write_bytes(b"not looked at")
    made = load_pipeline(str(sd))
    assert all(same(getattr(made, part), getattr(expected, part)) for part in ("unet", "vae", "text_encoder"))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["model.safetensors", "model.fp16.safetensors", "pytorch_model.bin"], Weights(None, True)),
        (["pytorch_model.bin", "model.fp16.safetensors"], Weights(None, False)),
        (["model.fp16.bin", "model.fp16.safetensors"], Weights("fp16", True)),
        (["diffusion_pytorch_model.fp16.bin", "diffusion_flax_model.msgpack"], Weights("fp16", False)),
        (["diffusion_pytorch_model-00001-of-00002.safetensors"], Weights(None, True)),
        (["diffusion_pytorch_model.fp16-00001-of-00002.safetensors"], Weights("fp16", True)),
        (["diffusion_pytorch_model-00001-of-00002.fp16.safetensors"], Weights("fp16", True)),
        (["model.safetensors.index.fp16.json", "model.non_ema.safetensors"], Weights("non_ema", True)),
        (["model.fp16.safetensors", "model.bf16.safetensors"], "in the variants bf16 and fp16 and no plain ones"),
        (["flax_model.msgpack"], "no weights, only flax_model.msgpack"),
        (["config.json", "model.safetensors.index.json"], "no weights: expected"),
    ],
)  # fmt: skip
def test_which_weights_are_chosen(names, expected):
    if isinstance(expected, Weights):
        assert chosen_weights(names, "unet") == expected
    else:
        with pytest.raises(ModelError, match=expected):
            chosen_weights(names, "unet")


class Code:
    """Pickled, it would make a folder where it is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return Path.mkdir, (self.folder,)


def test_a_torch_file_that_holds_code_is_not_run(ddpm, tmp_path):
    (ddpm / WEIGHTS).unlink()
    torch.save({"conv_in.bias": Code(tmp_path / "made")}, ddpm / "unet/diffusion_pytorch_model.bin")
    refused(ddpm, "a torch file (diffusion_pytorch_model.bin) that does not hold tensors alone")
    assert not (tmp_path / "made").exists()


def removed(weights):
    del weights["conv_in.bias"]


def added(weights):
    weights["down_blocks.7.bias"] = torch.zeros(1)


def broken(weights):
    weights["conv_in.bias"][0] = float("nan")


def rounded(weights):
    weights["conv_in.bias"] = weights["conv_in.bias"].to(torch.int8)


def widened(weights):
    weights["conv_in.bias"] = torch.zeros(9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (removed, "lack conv_in.bias, which its config.json asks for"),
        (added, "hold down_blocks.7.bias, for which its config.json has no place"),
        (broken, "are not finite: conv_in.bias holds NaN or infinity"),
        (rounded, "holds whole numbers (I8), as quantized weights do"),
        (widened, "conv_in.bias expected shape torch.Size([8]), but got torch.Size([9])."),
    ],
)
def test_weights_that_do_not_fit_their_config_are_never_made_up_or_left_out(ddpm, change, message):
    weights = load_file(ddpm / WEIGHTS)
    change(weights)
    save_file(weights, ddpm / WEIGHTS)
    refused(ddpm, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("final_layer_norm.bias"), "lack final_layer_norm.bias"),
        (lambda weights: weights.update({"strange": torch.zeros(1)}), "hold strange"),
        (lambda weights: weights.update({"final_layer_norm.bias": torch.zeros(9)}), "final_layer_norm.bias is [9] and"),
    ],
)
def test_a_text_encoders_weights_too(sd, change, message):
    file = sd / "text_encoder/model.safetensors"
    weights = load_file(file)
    named = {name.removeprefix("text_model."): value for name, value in weights.items()}
    change(named)
    save_file(named, file)
    refused(sd, message)


def test_a_text_encoder_out_of_a_whole_clip_is_loaded(sd):
    file = sd / "text_encoder/model.safetensors"
    more = {"vision_model.x": torch.zeros(1), "text_model.embeddings.position_ids": torch.arange(16)[None]}
    expected = load_pipeline(str(sd)).text_encoder
    save_file(load_file(file) | more, file)
    assert same(load_pipeline(str(sd)).text_encoder, expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda whole: whole[:1000], "is damaged or cut off: Error while deserializing header"),
        (lambda whole: whole[:-10], "is damaged or cut off: Error while deserializing header"),
        (lambda whole: b"", "is damaged or cut off"),
        (lambda whole: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "run `git lfs pull`"),
    ],
)
def test_damaged_weights(ddpm, content, message):
    (ddpm / WEIGHTS).write_bytes(content((ddpm / WEIGHTS).read_bytes()))
    refused(ddpm, message)


@pytest.mark.parametrize("file", [INDEX, SCHEDULER, UNET, VAE, TEXT, TOKENS, "tokenizer/tokenizer.json"])
def test_files_of_settings_that_are_cut_off_or_something_else(sd, file):
    whole = (sd / file).read_bytes()
    for content, message in (
        (whole[:20], "is not JSON, or was cut off"), (b"[1]", "holds a JSON list, but must hold an object"),
        (b"", "is not JSON, or was cut off"), (b"\xff\xfe{", "cannot be read"),
    ):  # fmt: skip
        (sd / file).write_bytes(content)
        refused(sd, message)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (INDEX, {"vae": [None, None]}, "model_index.json names no vae, but [None, None]: expected AutoencoderKL"),
        (INDEX, {"text_encoder": ...}, "model_index.json names no text_encoder, but None"),
        (INDEX, {"scheduler": [None, None]}, "model_index.json names no scheduler"),
        (INDEX, {"unet": ["diffusers", "UNetNoSuch"]}, "its unet is a UNetNoSuch, but this version knows"),
        (INDEX, {"vae": ["diffusers", "AutoencoderTiny"]}, "its vae is a AutoencoderTiny"),
        (INDEX, {"_class_name": "KandinskyPipeline"}, "it is a KandinskyPipeline; this version trains"),
        (INDEX, {"_class_name": ...}, "a class that model_index.json does not name"),
        (UNET, {"_class_name": "UNet2DModel"}, "unet/config.json is of a UNet2DModel, but model_index.json says"),
        (UNET, {"quantization_config": {"quant_method": "bitsandbytes"}}, "quantized weights, which cannot be trained"),
        (UNET, {"down_block_types": ["No", "DownBlock2D"]}, "its unet cannot be loaded: ValueError"),
        (TOKENS, {"model_max_length": 77}, "gives 77 tokens (model_max_length), but its text_encoder reads 16"),
        (TOKENS, {"pad_token": None}, "no pad_token"),
        (VAE, {"scaling_factor": None}, "scaling_factor None, but it must be a number above 0"),
        (SCHEDULER, {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "the model's scheduler is a FlowMatchEuler"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_each_other(sd, file, changes, message):
    edit(sd, file, **changes)
    refused(sd, message)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_part_that_is_missing(sd, part):
    shutil.rmtree(sd / part)
    refused(sd, part)


def with_unet(**changes):
    pipeline = tiny.pipeline()
    pipeline.unet.register_to_config(**changes)
    return pipeline


def with_vae(**changes):
    pipeline = tiny.pipeline()
    pipeline.vae.register_to_config(**changes)
    return pipeline


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_channels": 9}, "4 channels out but 9 in, as for inpainting or image editing: expected as many"),
        ({"out_channels": 8}, "predicts its own variance"),
        ({"in_channels": 16, "out_channels": 16}, "takes latents of 16 channels, but its vae makes 4"),
        ({"cross_attention_dim": 32}, "takes text states of 32 numbers (cross_attention_dim), but its"),
        ({"cross_attention_dim": (16, 32)}, "takes text states of 32"),
        ({"encoder_hid_dim": 8, "encoder_hid_dim_type": "text_proj"}, "takes text states of 8"),
        ({"encoder_hid_dim_type": "image_proj"}, "encoder_hid_dim_type 'image_proj'"),
        ({"class_embed_type": "timestep"}, "takes a class or a further time (class_embed_type 'timestep')"),
        ({"num_class_embeds": 4}, "takes a class (num_class_embeds 4)"),
        ({"addition_embed_type": "text_time"}, "SDXL's pipeline is a StableDiffusionXLPipeline"),
        ({"time_cond_proj_dim": 256}, "takes the guidance weight"),
        ({"sample_size": None}, "set sample_size"),
        ({"sample_size": "8"}, "sample_size in the model's unet/config.json is '8'"),
        ({"sample_size": [8]}, "is [8], but must be a whole number"),
        ({"sample_size": True}, "is True, but must be a whole number"),
    ],
)  # fmt: skip
def test_networks_that_are_told_more_or_other_things(changes, message):
    with pytest.raises(ModelError) as error:
        require_latent(with_unet(**changes))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scaling_factor": 0}, "scaling_factor 0, but it must be a number above 0"),
        ({"scaling_factor": float("nan")}, "scaling_factor nan"),
        ({"scaling_factor": "0.18215"}, "scaling_factor '0.18215'"),
        ({"shift_factor": 0.1}, "shift_factor, which is not used here"),
        ({"latents_mean": [0.1] * 4}, "latents_mean, which is not used here"),
        ({"out_channels": 4}, "has 4 channels, but an image has 3"),
    ],
)
def test_vaes_that_cannot_be_used(changes, message):
    with pytest.raises(ModelError) as error:
        require_latent(with_vae(**changes))
    assert message in str(error.value)


def test_a_tokenizer_with_more_tokens_than_the_text_encoder_has():
    pipeline = tiny.pipeline()
    pipeline.tokenizer.add_tokens(["<new>"])
    with pytest.raises(ModelError, match="tokenizer has 55 tokens, but its text_encoder knows 54"):
        require_latent(pipeline)


@pytest.mark.parametrize(
    ("unet", "message"),
    [
        ({"sample_size": (16, 25)}, "is 25, but must be a multiple of 2"),
        ({"sample_size": 15}, "is 15, but must be a multiple of 2"),
        ({"time_embedding_type": "fourier"}, "takes noise levels"),
        ({"time_embedding_type": "learned", "num_train_timesteps": 500}, "knows 500 times, but its scheduler has 1000"),
    ],
)
def test_pixel_models_that_cannot_be_trained(unet, message):
    with pytest.raises(ModelError, match=message):
        require_pixels(tiny.pixels(unet=unet))


def test_unusual_but_legal_forms(sd):
    """Two equal sides, no scaling_factor, heads for each block, a tokenizer without a length."""
    expected = load_model(str(sd))
    edit(sd, UNET, sample_size=[8, 8], attention_head_dim=[2, 4], cross_attention_dim=[16, 16])
    edit(sd, VAE, scaling_factor=..., shift_factor=None, latents_mean=None)
    edit(sd, TOKENS, model_max_length=...)
    edit(sd, INDEX, safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    made = load_model(str(sd))
    assert made.latent_shape == expected.latent_shape == (4, 8, 8)
    assert made.pipeline.vae.config.scaling_factor == 0.18215
    assert torch.equal(made.encode(["a cat"], 1.0)["text"], expected.encode(["a cat"], 1.0)["text"])


def test_parts_that_do_not_fit_are_found_by_asking_them(ddpm, monkeypatch):
    """A fault that no check knows."""
    from diffusers import UNet2DModel

    monkeypatch.setattr(UNet2DModel, "forward", lambda *_, **__: torch.zeros(1, 2) @ torch.zeros(3, 4))
    refused(ddpm, "its components do not fit each other: RuntimeError: mat1 and mat2 shapes")


@pytest.mark.parametrize("place", ["my models/ünï 模型", "link", "model/", "~/model"])
def test_folders_by_any_name(ddpm, monkeypatch, tmp_path, place):
    (tmp_path / "my models").mkdir()
    shutil.copytree(ddpm, tmp_path / "my models/ünï 模型")
    (tmp_path / "link").symlink_to(ddpm)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert load_model(place).latent_shape == (3, 16, 16)


def test_what_is_no_folder_of_a_pipeline(ddpm, tmp_path):
    run, adapter, full = tmp_path / "run", tmp_path / "adapter", tmp_path / "full"
    for folder in (run, adapter, full / "unet"):
        folder.mkdir(parents=True)
    (run / "config.yaml").write_text("")
    (run / "metrics.jsonl").write_text("")
    (adapter / "pytorch_lora_weights.safetensors").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("")
    for source, message in (
        (ddpm / INDEX, f"give the folder that it is in, {ddpm}"),
        (ddpm / WEIGHTS, "is a single file, but a model is a folder of a diffusers pipeline: make one with "),
        (tmp_path / "notes.txt", "is a file: expected a folder"),
        (ddpm / "unet", f"it is one component of the model in {ddpm}"),
        (run, "it is a run and no model, so give it as --adapter"),
        (adapter, "it is an adapter and no model"),
        (full, "it holds a network and no whole model"),
        (tmp_path, "has no model_index.json: expected a folder written by a diffusers pipeline"),
        ("", "the model's name is empty"),
        ("x" * 5000, "there is no model at"),
        ("no\0where", "there is no model at"),
        ("~no-such-user-here/model", "there is no model at"),
        ("./owner", "there is no model at ./owner"),
    ):
        refused(source, message)


def test_pixel_models_clip_as_their_own_scheduler_does(ddpm):
    """Through the whole of a folder: DDPM's config says to clip, an Euler config made anew does not."""
    assert load_model(str(ddpm)).process.grid(5).clip == 1.0
    (ddpm / SCHEDULER).write_text(json.dumps({"_class_name": "EulerDiscreteScheduler"}))
    for kind in ("DDPMPipeline", "DDIMPipeline"):
        edit(ddpm, INDEX, scheduler=["diffusers", "EulerDiscreteScheduler"], _class_name=kind)
        assert load_model(str(ddpm)).process.grid(5).clip is None


def test_through_the_command_line(ddpm, tmp_path, capsys):
    edit(ddpm, SCHEDULER, prediction_type="v-prediction")
    out = tmp_path / "out"
    sampled = ["sample", "--prompt", "0", "--model", str(ddpm), "--out", str(out)]
    trained = ["train", "ddpo-compressibility", "--prompts", "none", "--model", str(ddpm), "--out", str(out)]
    for words in (sampled, trained):
        assert main(words) == 2
        errors = capsys.readouterr().err.strip()
        assert errors.startswith(f"tastemaker: cannot load the model {ddpm}: ")
        assert errors.count("\n") == 0
        assert not out.exists()


def test_more_steps_than_the_model_knows_through_the_command_line(ddpm, tmp_path, capsys):
    edit(ddpm, SCHEDULER, num_train_timesteps=20)
    out = tmp_path / "out"
    words = ["sample", "--prompt", "0", "--guidance", "1", "--model", str(ddpm), "--out", str(out), "--steps", "30"]
    assert main(words) == 2
    assert "sampling.steps is 30, but the model was trained on 20 times" in capsys.readouterr().err
    assert not out.exists()
