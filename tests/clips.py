"""Small CLIPs with random weights, as open_clip's files and as transformers folders, and open_clip's forward pass."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tastemaker.models.bundled import bundled_pipeline

WIDTH, LAYERS, EMBEDDING, PATCH, SIDE, LENGTH = 128, 2, 48, 8, 32, 24
TOKENIZER = bundled_pipeline() / "tokenizer"


def open_clip_state(seed: int = 0) -> dict[str, Tensor]:
    """A state dict with open_clip's names, shapes and orientation; heads are 64 wide, as its rule has it."""
    g = torch.Generator().manual_seed(seed)
    normal = lambda *shape: 0.3 * torch.randn(*shape, generator=g)  # noqa: E731
    scale = lambda n: 1 + 0.2 * torch.randn(n, generator=g)  # noqa: E731
    vocabulary = len(CLIPTokenizer.from_pretrained(TOKENIZER))
    state = {
        "logit_scale": torch.tensor(3.0), "token_embedding.weight": normal(vocabulary, WIDTH),
        "positional_embedding": normal(LENGTH, WIDTH), "text_projection": normal(WIDTH, EMBEDDING),
        "ln_final.weight": scale(WIDTH), "ln_final.bias": normal(WIDTH),
        "visual.class_embedding": normal(WIDTH), "visual.proj": normal(WIDTH, EMBEDDING),
        "visual.conv1.weight": normal(WIDTH, 3, PATCH, PATCH),
        "visual.positional_embedding": normal(1 + (SIDE // PATCH) ** 2, WIDTH),
    }  # fmt: skip
    for name in ("visual.ln_pre", "visual.ln_post"):
        state |= {f"{name}.weight": scale(WIDTH), f"{name}.bias": normal(WIDTH)}
    for prefix in ("", "visual."):
        for layer in range(LAYERS):
            block = f"{prefix}transformer.resblocks.{layer}."
            state |= {
                block + "attn.in_proj_weight": normal(3 * WIDTH, WIDTH), block + "attn.in_proj_bias": normal(3 * WIDTH),
                block + "attn.out_proj.weight": normal(WIDTH, WIDTH) / 3, block + "attn.out_proj.bias": normal(WIDTH),
                block + "mlp.c_fc.weight": normal(4 * WIDTH, WIDTH) / 3, block + "mlp.c_fc.bias": normal(4 * WIDTH),
                block + "mlp.c_proj.weight": normal(WIDTH, 4 * WIDTH) / 6, block + "mlp.c_proj.bias": normal(WIDTH),
                block + "ln_1.weight": scale(WIDTH), block + "ln_1.bias": normal(WIDTH),
                block + "ln_2.weight": scale(WIDTH), block + "ln_2.bias": normal(WIDTH),
            }  # fmt: skip
    return state


def quick_gelu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-1.702 * x))


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def open_clip_features(
    state: dict[str, Tensor], pixels: Tensor, tokens: Tensor, act=gelu, heads: int = 2
) -> tuple[Tensor, Tensor]:
    """Features of length 1 as open_clip computes them: of normalised images, and of tokens padded with 0."""

    def norm(x, name):
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return x * state[name + ".weight"] + state[name + ".bias"]

    def blocks(x, prefix, causal):
        length = x.shape[1]
        for layer in range(LAYERS):
            block = f"{prefix}transformer.resblocks.{layer}."
            mixed = (
                norm(x, block + "ln_1") @ state[block + "attn.in_proj_weight"].T + state[block + "attn.in_proj_bias"]
            )
            q, k, v = mixed.view(*x.shape[:2], 3, heads, -1).unbind(2)
            chance = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
            if causal:
                chance = chance + torch.full((length, length), -math.inf).triu(1)
            out = torch.einsum("bhqk,bkhd->bqhd", chance.softmax(-1), v).reshape(x.shape)
            x = x + out @ state[block + "attn.out_proj.weight"].T + state[block + "attn.out_proj.bias"]
            wide = act(norm(x, block + "ln_2") @ state[block + "mlp.c_fc.weight"].T + state[block + "mlp.c_fc.bias"])
            x = x + wide @ state[block + "mlp.c_proj.weight"].T + state[block + "mlp.c_proj.bias"]
        return x

    cells = SIDE // PATCH
    patches = (
        pixels.view(-1, 3, cells, PATCH, cells, PATCH).permute(0, 2, 4, 1, 3, 5).reshape(-1, cells**2, 3 * PATCH**2)
    )
    x = patches @ state["visual.conv1.weight"].flatten(1).T
    x = torch.cat([state["visual.class_embedding"].expand(len(x), 1, -1), x], 1) + state["visual.positional_embedding"]
    x = blocks(norm(x, "visual.ln_pre"), "visual.", causal=False)
    image = norm(x[:, 0], "visual.ln_post") @ state["visual.proj"]
    t = blocks(state["token_embedding.weight"][tokens] + state["positional_embedding"], "", causal=True)
    text = norm(t, "ln_final")[torch.arange(len(t)), tokens.argmax(-1)] @ state["text_projection"]
    return image / image.norm(dim=-1, keepdim=True), text / text.norm(dim=-1, keepdim=True)


def open_clip_file(folder: Path, name: str = "HPS_v2_compressed.pt", seed: int = 0) -> Path:
    """A checkpoint as HPS' is, `{"state_dict": ...}` (or the bare weights as safetensors), with tokens beside it."""
    shutil.copytree(TOKENIZER, folder, dirs_exist_ok=True)
    if name.endswith(".safetensors"):
        save_file(open_clip_state(seed), folder / name)
    else:
        torch.save({"state_dict": open_clip_state(seed), "epoch": 3}, folder / name)
    return folder / name


def clip_folder(folder: Path, seed: int = 0) -> Path:
    """A transformers CLIP of 32x32 images with its processor's files, as PickScore_v1 has them."""
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    torch.manual_seed(seed)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=LENGTH, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, initializer_factor=5.0,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE,
        patch_size=PATCH, initializer_factor=5.0,
    )  # fmt: skip
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=EMBEDDING)
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(
        folder
    )
    return folder


def head_state(width: int, seed: int = 0) -> dict[str, Tensor]:
    """A head in LAION's form, on features of `width` numbers."""
    g, wide = torch.Generator().manual_seed(seed), (width, 1024, 128, 64, 16, 1)
    state = {}
    for place, number in enumerate((0, 2, 4, 6, 7)):
        state[f"layers.{number}.weight"] = torch.randn(wide[place + 1], wide[place], generator=g) / wide[place] ** 0.5
        state[f"layers.{number}.bias"] = torch.randn(wide[place + 1], generator=g)
    return state
