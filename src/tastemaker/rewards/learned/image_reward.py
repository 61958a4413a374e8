"""ImageReward: how much people prefer an image of a prompt (Xu et al. 2023, THUDM/ImageReward, v1.0).

BLIP's text encoder looks at the image through cross-attention; linear layers read its first token, [CLS]. (BLIP puts
[ENC] there where it encodes both; ImageReward does not.) The networks are transformers' BLIP, under the names of the
original checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tastemaker.errors import RewardError
from tastemaker.rewards.base import RewardFunction, reward
from tastemaker.rewards.learned.device import device_for
from tastemaker.rewards.learned.preprocess import Preprocess
from tastemaker.rewards.learned.weights import downloaded, missing, read_weights

FILES = ("ImageReward.safetensors", "ImageReward.pt")
TOKENS = "google-bert/bert-base-uncased"
TOKEN_FILES = ("tokenizer.json", "vocab.txt")
LENGTH = 35
MEAN, STD = 0.16717362830052426, 1.0333394966054072
HEAD = 64
"""Width of an attention head in all of BLIP's networks, which the weights' shapes do not determine."""
_VISION = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^blocks\.(\d+)\.norm(\d)\.", r"encoder.layers.\1.layer_norm\2."),
    (r"^blocks\.(\d+)\.attn\.qkv\.", r"encoder.layers.\1.self_attn.qkv."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.projection."),
    (r"^blocks\.(\d+)\.mlp\.", r"encoder.layers.\1.mlp."),
    (r"^norm\.", "post_layernorm."),
)


@dataclass(frozen=True)
class ImageReward:
    """The networks, in evaluation mode and without gradients of their own, and what makes their input."""

    vision: nn.Module
    text: nn.Module
    head: nn.Sequential
    tokenizer: Any
    preprocess: Preprocess

    def __call__(self, x: Tensor, prompts: Sequence[str]) -> Tensor:
        """[B] of images [B,3,H,W] in [0,1], differentiable, on the images' device."""
        device = device_for(x)
        for network in (self.vision, self.text, self.head):
            network.to(device)
        tokens = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
        ).to(device)
        seen = self.vision(pixel_values=self.preprocess(x.to(device).float())).last_hidden_state
        read = self.text(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=device),
        ).last_hidden_state  # fmt: skip
        return ((self.head(read[:, 0]).squeeze(1) - MEAN) / STD).to(x.device)


def image_reward(source: str) -> RewardFunction:
    """The reward `image-reward[:WEIGHTS]`: ImageReward's score [B], about N(0,1) over its training images.

    WEIGHTS is a repository of the Hugging Face hub with ImageReward.pt in it (THUDM/ImageReward where it is left out),
    that file itself or the same as safetensors, or a folder with one of them; a BERT tokenizer beside the file is
    taken, else bert-base-uncased's. Prompts are cut after 35 tokens. Raises RewardError where something does not load.
    """
    file = _file(source)
    network = assemble(read_weights(file, "image-reward"), _tokenizer(file), str(file))

    @reward(differentiable=True)
    def image_reward(x: Tensor, prompts: Sequence[str]) -> Tensor:
        return network(x, prompts)

    return image_reward


def assemble(state: Mapping[str, Tensor], tokenizer: Any, source: str = "the checkpoint") -> ImageReward:
    """The networks of the original's state dict, whose shapes give their width and depth. Raises RewardError."""
    from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

    from tastemaker.models.library_logging import quiet

    vision = {_renamed(name): value for name, value in _part(state, "blip.visual_encoder.").items()}
    text = {n: value for n, value in _part(state, "blip.text_encoder.").items() if not n.endswith("position_ids")}
    head = _part(state, "mlp.layers.")
    try:
        patch, patch_positions = vision["embeddings.patch_embedding.weight"], vision["embeddings.position_embedding"]
        words, positions = text["embeddings.word_embeddings.weight"], text["embeddings.position_embeddings.weight"]
        wide, narrow = patch.shape[0], words.shape[1]
        side = int((patch_positions.shape[1] - 1) ** 0.5) * patch.shape[-1]
        seeing = BlipVisionConfig(
            hidden_size=wide, intermediate_size=vision["encoder.layers.0.mlp.fc1.weight"].shape[0],
            num_hidden_layers=_depth(vision, "encoder.layers."), num_attention_heads=max(1, wide // HEAD),
            image_size=side, patch_size=patch.shape[-1], layer_norm_eps=1e-6,
        )  # fmt: skip
        reading = BlipTextConfig(
            vocab_size=words.shape[0], hidden_size=narrow, encoder_hidden_size=wide,
            intermediate_size=text["encoder.layer.0.intermediate.dense.weight"].shape[0],
            num_hidden_layers=_depth(text, "encoder.layer."), num_attention_heads=max(1, narrow // HEAD),
            max_position_embeddings=positions.shape[0], layer_norm_eps=1e-12,
        )  # fmt: skip
        # Cross-attention is there only in a "decoder"; without is_decoder at the call it still looks both ways.
        reading.is_decoder, reading._attn_implementation = True, "eager"
        with quiet():
            networks: Any = (BlipVisionModel(seeing), BlipTextModel(reading, add_pooling_layer=False), _head(head))
        for network, weights in zip(networks, (vision, text, head), strict=True):
            missing = set(network.state_dict()) - set(weights)
            if missing:
                raise KeyError(min(missing))
            network.load_state_dict({name: weights[name] for name in network.state_dict()})
    except (KeyError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise RewardError(
            f"the reward image-reward does not know the weights in {source} ({type(error).__name__}: {reason[:200]}): "
            "expected those of THUDM's ImageReward.pt, blip.visual_encoder.*, blip.text_encoder.* and mlp.layers.*"
        ) from error
    if len(tokenizer) > words.shape[0]:
        raise RewardError(
            f"the reward image-reward has a tokenizer of {len(tokenizer)} tokens, but the weights in {source} know "
            f"{words.shape[0]}: put the vocab.txt that belongs to them beside them"
        )
    for network in networks:
        network.float().eval().requires_grad_(False)
    eyes, reader, scorer = networks
    return ImageReward(eyes, reader, scorer, tokenizer, Preprocess((side, side)))


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _renamed(name: str) -> str:
    for pattern, replacement in _VISION:
        name, changed = re.subn(pattern, replacement, name)
        if changed:
            break
    return name


def _depth(weights: Mapping[str, Tensor], prefix: str) -> int:
    return 1 + max(int(name.removeprefix(prefix).split(".")[0]) for name in weights if name.startswith(prefix))


def _head(weights: Mapping[str, Tensor]) -> nn.Sequential:
    """Linear layers at the indices that have weights; between them is dropout, which is off."""
    shapes = {int(name.split(".")[0]): value.shape for name, value in weights.items() if name.endswith(".weight")}
    layers = [nn.Linear(shapes[n][1], shapes[n][0]) if n in shapes else nn.Identity() for n in range(max(shapes) + 1)]
    return nn.Sequential(*layers)


def _file(source: str) -> Path:
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        found = next((path / name for name in FILES if (path / name).is_file()), None)
        if found is None:
            raise RewardError(f"the reward image-reward:{source} finds no {' or '.join(FILES)} in {path}")
        return found
    if path.suffix or source.count("/") != 1:
        raise RewardError(
            f"the reward image-reward:{source} has no weights: there is no file or folder {path}, and a repository of "
            "the Hugging Face hub is written OWNER/NAME"
        )
    return downloaded(source, FILES[1], "image-reward")


def _tokenizer(file: Path) -> Any:
    from transformers import BertTokenizer

    from tastemaker.models.library_logging import quiet

    beside = any((file.parent / name).is_file() for name in TOKEN_FILES)
    source = str(file.parent) if beside else TOKENS
    try:
        with quiet():
            return BertTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise missing("image-reward", f"{source}'s vocab.txt", f"hf download {TOKENS} vocab.txt", error) from error
