"""Checkpoints of open_clip as transformers' CLIPModel, by their names and shapes alone.

open_clip itself needs torchvision. Names: mlfoundations/open_clip, src/open_clip/{model,transformer}.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tastemaker.errors import RewardError

if TYPE_CHECKING:
    from transformers import CLIPModel

HEAD_WIDTH = {1280: 80, 1408: 88, 1664: 104}
"""Width of an attention head by the image transformer's width, of ViT-H-14, ViT-g-14 and ViT-bigG-14; else 64."""
_LAYER = re.compile(r"^(visual\.)?transformer\.resblocks\.(\d+)\.(.+)$")
_IN_LAYER = {
    "ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}  # fmt: skip
_ELSEWHERE = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
_TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
"""Matrices that open_clip multiplies from the right, and a linear layer from the left: they are transposed."""


@dataclass(frozen=True)
class Heads:
    """What cannot be read from a checkpoint's shapes; by default as open_clip has it."""

    vision: int | None = None
    text: int | None = None
    quick_gelu: bool = False


def clip_from_open_clip(state: Mapping[str, Tensor], eos_token_id: int, heads: Heads | None = None) -> CLIPModel:
    """A float32 CLIPModel with the weights of an open_clip state dict of a ViT CLIP, in evaluation mode.

    `eos_token_id` is the token whose feature is the text's, the largest of open_clip's vocabulary. Raises RewardError
    for a state dict that is of another kind.
    """
    from transformers import CLIPConfig, CLIPModel

    state = _plain(state)
    try:
        config = CLIPConfig(**_config(state, eos_token_id, heads or Heads()))
        renamed = _renamed(state)
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        raise RewardError(
            f"these weights are not those of an open_clip ViT CLIP: {type(error).__name__}: {error}; expected names "
            "such as visual.transformer.resblocks.0.attn.in_proj_weight"
        ) from error
    with torch.device("meta"):
        model = CLIPModel(config)
    wanted = set(model.state_dict())
    absent, unexpected = sorted(wanted - set(renamed)), sorted(set(renamed) - wanted)
    if absent or unexpected:
        problems = [f"{len(names)} {what} (the first is {names[0]})"
                for names, what in ((absent, "are missing"), (unexpected, "are unexpected")) if names]  # fmt: skip
        raise RewardError(f"these weights are not all those of an open_clip ViT CLIP: {', '.join(problems)}")
    model.load_state_dict(renamed, assign=True)
    # Buffers that are not weights have to leave the meta device too.
    for part in (model.text_model.embeddings, model.vision_model.embeddings):
        for name, buffer in list(part.named_buffers(recurse=False)):
            part.register_buffer(name, torch.arange(buffer.numel()).expand(1, -1), persistent=False)
    return model.eval().requires_grad_(False)


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefixes of distributed training and of open_clip's CustomTextCLIP, and without the causal mask."""
    names = {name: name.removeprefix("module.").removeprefix("text.") for name in state}
    return {short: state[name] for name, short in names.items() if not short.endswith("attn_mask")}


def _config(state: Mapping[str, Tensor], eos_token_id: int, heads: Heads) -> dict[str, Any]:
    vocabulary, text_width = state["token_embedding.weight"].shape
    vision_width, _, patch, _ = state["visual.conv1.weight"].shape
    side = round((len(state["visual.positional_embedding"]) - 1) ** 0.5)
    embedding = state["text_projection"].shape[1]
    activation = "quick_gelu" if heads.quick_gelu else "gelu"

    def layers(prefix: str) -> dict[str, int]:
        numbers = [int(m[2]) for m in map(_LAYER.match, state) if m and (m[1] or "") == prefix]
        wide = state[f"{prefix}transformer.resblocks.0.mlp.c_fc.weight"].shape[0]
        return {"num_hidden_layers": max(numbers) + 1, "intermediate_size": wide}

    return {
        "projection_dim": embedding,
        "text_config": {
            "vocab_size": vocabulary, "hidden_size": text_width, "projection_dim": embedding, **layers(""),
            "num_attention_heads": heads.text or text_width // 64, "hidden_act": activation,
            "max_position_embeddings": len(state["positional_embedding"]), "eos_token_id": eos_token_id,
            "bos_token_id": eos_token_id - 1, "pad_token_id": eos_token_id,
        },
        "vision_config": {
            "hidden_size": vision_width, "projection_dim": embedding, "patch_size": patch, "image_size": side * patch,
            **layers("visual."), "hidden_act": activation,
            "num_attention_heads": heads.vision or vision_width // HEAD_WIDTH.get(vision_width, 64),
        },
    }  # fmt: skip


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    new: dict[str, Tensor] = {}
    for name, value in state.items():
        value, layer = value.float(), _LAYER.match(name)
        if layer:
            new |= _of_layer(f"{'vision' if layer[1] else 'text'}_model.encoder.layers.{layer[2]}", layer[3], value)
        elif name in _TRANSPOSED:
            new[_TRANSPOSED[name]] = value.T.contiguous()
        else:
            new[_ELSEWHERE.get(name, name)] = value.reshape(()) if name == "logit_scale" else value
    return new


def _of_layer(path: str, name: str, value: Tensor) -> dict[str, Tensor]:
    if name in ("attn.in_proj_weight", "attn.in_proj_bias"):
        kind = name.removeprefix("attn.in_proj_")
        parts = zip(("q_proj", "k_proj", "v_proj"), value.chunk(3), strict=True)
        return {f"{path}.self_attn.{part}.{kind}": third.contiguous() for part, third in parts}
    module, _, kind = name.rpartition(".")
    return {f"{path}.{_IN_LAYER.get(module, module)}.{kind}": value}
