"""Checkpoints of OpenAI's guided-diffusion (Dhariwal and Nichol 2021) and improved-diffusion as pipelines of diffusers.

Both libraries' U-Nets are a UNet2DModel under other names, with each attention's query, key and value in one layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tastemaker.errors import ModelError
from tastemaker.models.guided_diffusion_flags import Flags
from tastemaker.models.library_logging import quiet
from tastemaker.safe_torch import require_safe_torch

_RESNET = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
    "out_layers.3": "conv2",
}  # fmt: skip
_ENDS = ("weight", "bias")


def unet_config(flags: Flags, channels: int, classes: int | None) -> dict[str, Any]:
    """The config of the UNet2DModel for images of so many channels, and for so many classes or none.

    Raises ModelError for a network that is no UNet2DModel.
    """
    multipliers, attended = flags.multipliers, flags.attended
    if multipliers[0] != 1:
        raise ModelError(
            f"channel_mult begins with {multipliers[0]}, but a UNet2DModel of diffusers takes times of as many numbers "
            "as its first level has channels: only checkpoints that begin with 1 can be converted"
        )
    resize = "resnet" if flags.resblock_updown else "conv"
    plain = (
        ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if flags.resblock_updown else ("DownBlock2D", "UpBlock2D")
    )
    return {
        "sample_size": flags.image_size,
        "in_channels": channels,
        "out_channels": channels * (2 if flags.learn_sigma else 1),
        "layers_per_block": flags.num_res_blocks,
        "block_out_channels": tuple(factor * flags.num_channels for factor in multipliers),
        "down_block_types": tuple("AttnDownBlock2D" if attends else plain[0] for attends in attended),
        "up_block_types": tuple("AttnUpBlock2D" if attends else plain[1] for attends in reversed(attended)),
        "downsample_type": resize,
        "upsample_type": resize,
        "attention_head_dim": _head_channels(flags),
        "norm_num_groups": 32,
        "attn_norm_num_groups": 32,
        "norm_eps": 1e-5,
        "dropout": flags.dropout,
        "resnet_time_scale_shift": "scale_shift" if flags.use_scale_shift_norm else "default",
        "num_class_embeds": classes,
    }


def scheduler_config(flags: Flags) -> dict[str, Any]:
    """The config of the DDPMScheduler. Raises ModelError for times that no scheduler gives to a network."""
    if flags.rescale_timesteps and flags.diffusion_steps != 1000:
        raise ModelError(
            f"rescale_timesteps with diffusion_steps {flags.diffusion_steps} gives the network fractions of times, "
            "which no scheduler of diffusers does: only checkpoints with 1000 steps, or without, can be converted"
        )
    scale = 1000 / flags.diffusion_steps
    return {
        "num_train_timesteps": flags.diffusion_steps,
        "beta_start": scale * 0.0001,
        "beta_end": scale * 0.02,
        "beta_schedule": "squaredcos_cap_v2" if flags.noise_schedule == "cosine" else "linear",
        "prediction_type": "sample" if flags.predict_xstart else "epsilon",
        "variance_type": "learned_range" if flags.learn_sigma else "fixed_large",
        "clip_sample": True,
    }


def converted(state: Mapping[str, Tensor], flags: Flags) -> UNet2DModel:
    """The network of a state dict with guided-diffusion's names, in float32. Raises ModelError where it is another."""
    first, last = _parameter(state, "input_blocks.0.0.weight"), _parameter(state, "out.2.weight")
    channels, out = first.shape[1], last.shape[0]
    if channels not in (1, 3):
        raise ModelError(
            f"the checkpoint's network takes {channels} channels, as upsamplers of small images do: only those that "
            "take an image alone, of 1 channel or 3, can be converted"
        )
    if out != channels * (2 if flags.learn_sigma else 1):
        raise ModelError(
            f"the checkpoint has {out} channels out and {channels} in, but learn_sigma is {flags.learn_sigma}"
        )
    classes = len(_parameter(state, "label_emb.weight")) if flags.class_cond else None
    made, found = unet_config(flags, channels, classes), dict(state)
    network = _empty(made)
    names = _names(flags)
    weights = {ours: found.pop(theirs) for theirs, ours in names.items() if theirs in found}
    for theirs, ours in _attentions(flags).items():
        weights |= _attention(found, theirs, ours, made["attention_head_dim"], flags.use_new_attention_order)
    expected = network.state_dict()
    published = {ours: theirs for theirs, ours in names.items()}
    for name in sorted(weights.keys() ^ expected.keys()):
        where = "lacks" if name in expected else "should not have"
        raise ModelError(f"the checkpoint {where} {published.get(name, name)}, by these flags: {_FLAGS}")
    if found:
        raise ModelError(f"the checkpoint has {min(found)}, for which these flags have no place: {_FLAGS}")
    for name, value in weights.items():
        where, shape = f"the checkpoint's {published.get(name, name)}", list(expected[name].shape)
        if list(value.shape) != shape:
            raise ModelError(f"{where} is {list(value.shape)}, but by these flags {shape}: {_FLAGS}")
        if not value.is_floating_point() or not value.isfinite().all():
            raise ModelError(f"{where} holds other values than finite floats: it is damaged")
    network.load_state_dict({name: value.float().contiguous() for name, value in weights.items()}, assign=True)
    return network.requires_grad_(False).eval()


def pipeline(state: Mapping[str, Tensor], flags: Flags, names: Sequence[str] | None = None) -> DDPMPipeline:
    """The pipeline of a checkpoint. `names` are its classes', each one or several with commas in between.

    Raises ModelError where flags or names do not fit the checkpoint.
    """
    scheduler = DDPMScheduler(**scheduler_config(flags))
    network = converted(state, flags)
    made = DDPMPipeline(network, scheduler)
    if names is not None:
        classes = network.config["num_class_embeds"]
        if classes is None or len(names) not in (classes, classes - 1):
            expected = "no classes (class_cond is False)" if classes is None else f"{classes} classes"
            raise ModelError(f"there are {len(names)} names of classes, but the checkpoint has {expected}")
        made.register_to_config(id2label={str(index): name for index, name in enumerate(names)})
    return made


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a torch file or a safetensors file. Raises ModelError where it holds anything else."""
    if path.suffix != ".safetensors":
        require_safe_torch(f"the checkpoint {path}", ModelError)
    try:
        found: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ModelError(f"the checkpoint {path} cannot be read: {' '.join(str(error).split())[:200]}") from error
    except Exception as error:  # pickle.UnpicklingError, where a file holds code
        raise ModelError(f"the checkpoint {path} holds more than tensors: save its state dict alone") from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ModelError(f"the checkpoint {path} is no state dict: expected tensors by name, as guided-diffusion saves")
    return found


_FLAGS = "give the flags that it was trained with, as guided-diffusion's README states them"


def _empty(config: Mapping[str, Any]) -> UNet2DModel:
    """The network without weights. Raises ModelError where diffusers cannot make it."""
    try:
        with torch.device("meta"), quiet():
            return UNet2DModel(**config)
    except ValueError as error:
        raise ModelError(f"these flags make no network ({' '.join(str(error).split())[:200]}): {_FLAGS}") from error


def _head_channels(flags: Flags) -> int:
    """Channels of a head, which are the same in all attention layers of a UNet2DModel. Raises ModelError."""
    levels = [flags.multipliers[-1]]  # the middle block always has attention
    levels += [factor for factor, attends in zip(flags.multipliers, flags.attended, strict=True) if attends]
    widths = sorted({factor * flags.num_channels for factor in levels})
    if flags.num_head_channels != -1:
        sizes = {flags.num_head_channels}
    else:
        heads = {flags.num_heads, flags.num_heads if flags.num_heads_upsample == -1 else flags.num_heads_upsample}
        sizes = {width // count for width in widths for count in heads if count > 0}
    if len(sizes) != 1:
        raise ModelError(
            f"num_heads is {flags.num_heads}, by which heads have {', '.join(map(str, sorted(sizes)))} channels, but "
            "those of a UNet2DModel of diffusers all have as many: this checkpoint cannot be converted"
        )
    size = sizes.pop()
    if size < 1 or any(width % size for width in widths):
        raise ModelError(f"attention layers of {widths[0]} channels cannot have heads of {size}: {_FLAGS}")
    return size


def _modules(flags: Flags) -> Iterator[tuple[str, str, str]]:
    """Modules by guided-diffusion's name and by diffusers', and what they are: plain, resnet or attention."""
    resize = "resnet" if flags.resblock_updown else "plain"
    levels, attended = len(flags.multipliers), flags.attended
    yield from (
        ("time_embed.0", "time_embedding.linear_1", "plain"),
        ("time_embed.2", "time_embedding.linear_2", "plain"),
    )
    yield "input_blocks.0.0", "conv_in", "plain"
    block = 1
    for level in range(levels):
        for layer in range(flags.num_res_blocks):
            yield f"input_blocks.{block}.0", f"down_blocks.{level}.resnets.{layer}", "resnet"
            if attended[level]:
                yield f"input_blocks.{block}.1", f"down_blocks.{level}.attentions.{layer}", "attention"
            block += 1
        if level < levels - 1:
            theirs, ours = f"input_blocks.{block}.0", f"down_blocks.{level}.downsamplers.0"
            yield (theirs, ours, resize) if flags.resblock_updown else (f"{theirs}.op", f"{ours}.conv", resize)
            block += 1
    yield "middle_block.0", "mid_block.resnets.0", "resnet"
    yield "middle_block.1", "mid_block.attentions.0", "attention"
    yield "middle_block.2", "mid_block.resnets.1", "resnet"
    block = 0
    for up, level in enumerate(reversed(range(levels))):
        for layer in range(flags.num_res_blocks + 1):
            yield f"output_blocks.{block}.0", f"up_blocks.{up}.resnets.{layer}", "resnet"
            if attended[level]:
                yield f"output_blocks.{block}.1", f"up_blocks.{up}.attentions.{layer}", "attention"
            if level and layer == flags.num_res_blocks:
                theirs, ours = f"output_blocks.{block}.{1 + attended[level]}", f"up_blocks.{up}.upsamplers.0"
                yield (theirs, ours, resize) if flags.resblock_updown else (f"{theirs}.conv", f"{ours}.conv", resize)
            block += 1
    yield from (("out.0", "conv_norm_out", "plain"), ("out.2", "conv_out", "plain"))


def _names(flags: Flags) -> dict[str, str]:
    """diffusers' names of weights by guided-diffusion's; without those of attention layers."""
    found = {"label_emb.weight": "class_embedding.weight"} if flags.class_cond else {}
    for theirs, ours, kind in _modules(flags):
        parts = {"": ""} if kind == "plain" else {f".{a}": f".{b}" for a, b in _RESNET.items()}
        if kind == "resnet":
            parts[".skip_connection"] = ".conv_shortcut"
        if kind != "attention":
            found |= {f"{theirs}{a}.{end}": f"{ours}{b}.{end}" for a, b in parts.items() for end in _ENDS}
    return found


def _attentions(flags: Flags) -> dict[str, str]:
    return {theirs: ours for theirs, ours, kind in _modules(flags) if kind == "attention"}


def _attention(found: dict[str, Tensor], theirs: str, ours: str, head: int, new_order: bool) -> dict[str, Tensor]:
    """The weights of an attention layer, which are taken out of `found`. Raises ModelError where they do not fit."""
    made: dict[str, Tensor] = {}
    for end in _ENDS:
        for name, to in (("norm", "group_norm"), ("proj_out", "to_out.0"), ("qkv", "")):
            if (value := found.pop(f"{theirs}.{name}.{end}", None)) is None:
                raise ModelError(f"the checkpoint lacks {theirs}.{name}.{end}, by these flags: {_FLAGS}")
            value = value.squeeze(-1) if value.ndim == 3 else value  # convolutions of width 1 over positions
            if name != "qkv":
                made[f"{ours}.{to}.{end}"] = value
                continue
            width = len(value) // 3
            if len(value) % 3 or width % head:
                raise ModelError(f"the checkpoint's {theirs}.qkv.{end} is {list(value.shape)}, with heads of {head}")
            # In the older order each head's query, key and value come one after the other.
            order = (3, width // head, head) if new_order else (width // head, 3, head)
            parts = value.reshape(*order, *value.shape[1:])
            for part, each in zip("qkv", parts.unbind(0 if new_order else 1), strict=True):
                made[f"{ours}.to_{part}.{end}"] = each.reshape(width, *value.shape[1:])
    return made


def _parameter(state: Mapping[str, Tensor], name: str) -> Tensor:
    """Raises ModelError where there is none, or one without dimensions."""
    found = state.get(name)
    if found is None or found.ndim < 2:
        raise ModelError(
            f"the checkpoint has no weight {name}: expected the state dict of a diffusion model of guided-diffusion or "
            "improved-diffusion, with the flags that it was trained with"
        )
    return found
