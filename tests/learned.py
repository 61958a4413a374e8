"""Small random checkpoints of the networks that learned rewards read, as their authors' files have them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (
    CLIPTokenizer,
    Owlv2Config,
    Owlv2ForObjectDetection,
    OwlViTConfig,
    OwlViTForObjectDetection,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *("##" + letter for letter in LETTERS), "star", "red"]


def image_reward_state(seed: int = 0, wide: int = 128, narrow: int = 64, depth: int = 2) -> dict[str, torch.Tensor]:
    """Random weights under the names of THUDM's ImageReward.pt: 32 x 32 images, patches of 16, an MLP of 5 layers."""
    generator = torch.Generator().manual_seed(seed)
    state = {}

    def put(name: str, *shape: int, scale: float = 1.0) -> None:
        fan = shape[-1] if len(shape) == 2 else 1
        state[name] = scale * torch.randn(*shape, generator=generator) / fan**0.5

    def linear(name: str, inputs: int, outputs: int) -> None:
        put(f"{name}.weight", outputs, inputs)
        put(f"{name}.bias", outputs, scale=0.1)

    def norm(name: str, width: int) -> None:
        put(f"{name}.weight", width, scale=0.2)
        state[f"{name}.weight"] += 1
        put(f"{name}.bias", width, scale=0.2)

    eye, book = "blip.visual_encoder", "blip.text_encoder"
    put(f"{eye}.cls_token", 1, 1, wide)
    put(f"{eye}.pos_embed", 1, 5, wide)
    put(f"{eye}.patch_embed.proj.weight", wide, 3, 16, 16, scale=0.05)
    put(f"{eye}.patch_embed.proj.bias", wide, scale=0.1)
    for n in range(depth):
        block = f"{eye}.blocks.{n}"
        norm(f"{block}.norm1", wide)
        norm(f"{block}.norm2", wide)
        linear(f"{block}.attn.qkv", wide, 3 * wide)
        linear(f"{block}.attn.proj", wide, wide)
        linear(f"{block}.mlp.fc1", wide, 2 * wide)
        linear(f"{block}.mlp.fc2", 2 * wide, wide)
    norm(f"{eye}.norm", wide)
    state[f"{book}.embeddings.position_ids"] = torch.arange(40)[None]
    put(f"{book}.embeddings.word_embeddings.weight", len(WORDS) + 2, narrow)
    put(f"{book}.embeddings.position_embeddings.weight", 40, narrow)
    norm(f"{book}.embeddings.LayerNorm", narrow)
    for n in range(depth):
        layer = f"{book}.encoder.layer.{n}"
        for attention, inputs in (("attention", narrow), ("crossattention", wide)):
            linear(f"{layer}.{attention}.self.query", narrow, narrow)
            linear(f"{layer}.{attention}.self.key", inputs, narrow)
            linear(f"{layer}.{attention}.self.value", inputs, narrow)
            linear(f"{layer}.{attention}.output.dense", narrow, narrow)
            norm(f"{layer}.{attention}.output.LayerNorm", narrow)
        linear(f"{layer}.intermediate.dense", narrow, 2 * narrow)
        linear(f"{layer}.output.dense", 2 * narrow, narrow)
        norm(f"{layer}.output.LayerNorm", narrow)
    linear("blip.vision_proj", wide, 16)
    linear("blip.text_proj", narrow, 16)
    sizes = (narrow, 32, 16, 8, 4, 1)
    for place, inputs, outputs in zip((0, 2, 4, 6, 7), sizes, sizes[1:], strict=False):
        linear(f"mlp.layers.{place}", inputs, outputs)
    return state


def image_reward_folder(folder: Path, state: dict[str, torch.Tensor] | None = None) -> Path:
    """A folder with ImageReward.safetensors and vocab.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state or image_reward_state(), folder / "ImageReward.safetensors")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return folder


def detector_folder(folder: Path, kind: str = "owlvit", side: int = 32) -> Path:
    """An OwlViT or OWLv2 with random weights, and its tokenizer, as a folder of transformers'."""
    torch.manual_seed(0)
    vocabulary = [*LETTERS, *(letter + "</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    text = {
        "vocab_size": len(vocabulary), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 16, "pad_token_id": 0,
        "bos_token_id": len(vocabulary) - 2, "eos_token_id": len(vocabulary) - 1,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": side, "patch_size": 8,
    }  # fmt: skip
    configs = {"owlvit": OwlViTConfig, "owlv2": Owlv2Config}
    networks = {"owlvit": OwlViTForObjectDetection, "owlv2": Owlv2ForObjectDetection}
    network = networks[kind](configs[kind](text_config=text, vision_config=vision, projection_dim=32))
    for parameter in network.parameters():  # theirs are so small that no image would matter
        torch.nn.init.normal_(parameter, std=0.3)
    torch.nn.init.constant_(network.class_head.logit_scale.bias, 8.0)
    torch.nn.init.zeros_(network.class_head.logit_shift.weight)
    network.save_pretrained(folder)
    tokens = CLIPTokenizer(vocab={word: n for n, word in enumerate(vocabulary)}, merges=[], model_max_length=16)
    tokens.save_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"pad_token": "a"}))
    return folder
