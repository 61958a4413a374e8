"""What kohya's scripts and ComfyUI call the layers of diffusers' networks, and the layers that are one module there.

Both name modules as the models' original code does (Stability's sgm for U-Nets and MMDiT, Black Forest Labs' flux and
flux2), where q, k and v are often one layer. kohya's scripts have a U-Net of their own for SD 1.x and 2.x, and a
transformer of their own for Z-Image (musubi-tuner), with diffusers' names; ComfyUI's Z-Image has one layer for q, k
and v.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from tastemaker.errors import ModelError
from tastemaker.models.lora import weight_shape
from tastemaker.models.mixing import Adapter, Factors

KOHYA, COMFYUI = "lora_unet_", "diffusion_model."
"""What stands before a module's name in their files."""


@dataclass(frozen=True)
class Module:
    """A module of a model's original code."""

    name: str
    """With dots, as double_blocks.0.img_attn.qkv."""
    layers: tuple[str, ...]
    """The layers of diffusers that its rows are, from the first to the last."""
    halves_swapped: bool = False
    """Whether it puts out shift and scale, and the layer of diffusers scale and shift."""


@dataclass(frozen=True)
class Naming:
    """How files of an adapter are marked that is of networks of one kind."""

    base: str
    """kohya's ss_base_model_version."""
    architecture: str
    """modelspec.architecture, without /lora."""
    module: str
    """kohya's ss_network_module."""


def naming(network: Any) -> Naming | None:
    """None for a network that kohya's scripts and ComfyUI do not have, or whose names are not known here."""
    match type(network).__name__:
        case "UNet2DConditionModel" if _is_sdxl(network):
            return Naming("sdxl_base_v1-0", "stable-diffusion-xl-v1-base", "networks.lora")
        case "UNet2DConditionModel" if network.config.cross_attention_dim == 1024:
            return Naming("sd_v2", "stable-diffusion-v2-512", "networks.lora")
        case "UNet2DConditionModel":
            return Naming("sd_v1", "stable-diffusion-v1", "networks.lora")
        case "SD3Transformer2DModel":
            size = "large" if network.config.num_layers == 38 else "medium"
            kind = "3-5" if network.config.dual_attention_layers or size == "large" else "3"
            return Naming(f"{kind}-{size}", f"stable-diffusion-{kind}-{size}", "networks.lora_sd3")
        case "FluxTransformer2DModel":
            return Naming("flux1", "flux-1-dev", "networks.lora_flux")
        case "Flux2Transformer2DModel":
            size = "4b" if network.config.num_layers <= 5 else "9b"
            return Naming(f"flux_2_klein_{size}", f"Flux.2-klein-{size}", "networks.lora_flux_2")
        case "ZImageTransformer2DModel":
            return Naming("z_image", "Z-Image", "networks.lora_zimage")
        case _:
            return None


def kohya_modules(network: Any, layers: Iterable[str]) -> list[Module]:
    """The modules of kohya's scripts that the layers of a network are. Raises ModelError where one has none."""
    return _modules(network, layers, _kohya_renaming(network))


def original_modules(network: Any, layers: Iterable[str]) -> list[Module]:
    """The modules of the original code that the layers of a network are. Raises ModelError where one has none."""
    return _modules(network, layers, _renaming(network))


def _modules(network: Any, layers: Iterable[str], rename: Callable[[str], Module | None]) -> list[Module]:
    found: dict[Module, None] = {}
    for layer in layers:
        module = rename(layer)
        if module is None:
            raise ModelError(
                f"the layer {layer} of a {type(network).__name__} has no name that kohya's scripts or ComfyUI know: "
                "export it with --format diffusers"
            )
        found[module] = None
    return list(found)


def known_modules(network: Any, layers: Iterable[str]) -> dict[str, Module]:
    """The modules of the original code by all names that files have of them."""
    rename = _renaming(network)
    found = [module for layer in layers if (module := rename(layer)) is not None]
    return {name: module for module in found for name in (kohya_name(module.name), COMFYUI + module.name)}


def kohya_name(module: str) -> str:
    """As lora_unet_double_blocks_0_img_attn_qkv."""
    return KOHYA + module.replace(".", "_")


def _is_sdxl(network: Any) -> bool:
    return network.config.addition_embed_type == "text_time"


def _kohya_renaming(network: Any) -> Callable[[str], Module | None]:
    match type(network).__name__:
        case "UNet2DConditionModel" if not _is_sdxl(network):
            return lambda layer: Module(layer, (layer,))
        case "ZImageTransformer2DModel":  # adapters are of its blocks alone
            return lambda layer: Module(layer, (layer,)) if re.match(_Z_IMAGE_BLOCK, layer) else None
        case _:
            return _renaming(network)


def _renaming(network: Any) -> Callable[[str], Module | None]:
    match type(network).__name__:
        case "UNet2DConditionModel":
            return _sgm(network.config)
        case "SD3Transformer2DModel":
            # The last block's text has no attention after it, and its norm is one of scale and shift.
            last = f"transformer_blocks.{network.config.num_layers - 1}.norm1_context.linear"
            return lambda layer: _matched(layer, _SD3_PATTERNS, {"norm_out.linear", last})
        case "FluxTransformer2DModel":
            return lambda layer: _matched(layer, _FLUX_PATTERNS, {"norm_out.linear"})
        case "Flux2Transformer2DModel":
            return lambda layer: _matched(layer, _FLUX_2_PATTERNS, {"norm_out.linear"})
        case "ZImageTransformer2DModel":
            return lambda layer: _matched(layer, _Z_IMAGE_PATTERNS, set())
        case _:
            return lambda layer: None


# U-Nets. A down block of L layers is L modules of input_blocks, and one more for its downsampler.

_SGM_WHOLE = {
    "conv_in": "input_blocks.0.0", "conv_out": "out.2", "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2", "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip
_SGM_RESNET = {
    "conv1": "in_layers.2", "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"
}  # fmt: skip
_SGM_BLOCK = re.compile(r"(down_blocks\.(?P<down>\d+)|up_blocks\.(?P<up>\d+)|mid_block)\.(\w+)\.(\d+)\.(.+)")


def _sgm(config: Any) -> Callable[[str], Module | None]:
    count, per_block = len(config.block_out_channels), config.layers_per_block
    layers = [per_block] * count if isinstance(per_block, int) else list(per_block)
    inputs = list(accumulate((number + 1 for number in layers), initial=1))
    outputs = list(accumulate((number + 1 for number in reversed(layers)), initial=0))

    def rename(layer: str) -> str | None:
        match = _SGM_BLOCK.fullmatch(layer)
        if match is None:
            return _SGM_WHOLE.get(layer)
        kind, number, rest = match[4], int(match[5]), match[6]
        inner = _SGM_RESNET[rest] if kind == "resnets" else rest
        if match["down"] is not None:
            block = int(match["down"])
            if kind == "downsamplers":
                return f"input_blocks.{inputs[block] + layers[block]}.0.op"
            return f"input_blocks.{inputs[block] + number}.{int(kind == 'attentions')}.{inner}"
        if match["up"] is not None:
            block = int(match["up"])
            if kind == "upsamplers":
                return f"output_blocks.{outputs[block + 1] - 1}.{1 + ('Attn' in config.up_block_types[block])}.{rest}"
            return f"output_blocks.{outputs[block] + number}.{int(kind == 'attentions')}.{inner}"
        return f"middle_block.{1 if kind == 'attentions' else 2 * number}.{inner}"

    return lambda layer: None if (name := rename(layer)) is None else Module(name, (layer,))


# Transformers, by patterns of layers' names: the module, and the layers that are its rows. {} is what (\d+) found.

_Pattern = tuple[str, str, tuple[str, ...]]
_BLOCK, _SINGLE = r"transformer_blocks\.(\d+)\.", r"single_transformer_blocks\.(\d+)\."


def _attention(block: str, own: str, context: str, second: str | None = None) -> list[_Pattern]:
    """q, k and v of the image and of the text, and the projections after them."""
    found: list[_Pattern] = [
        (rf"{_BLOCK}attn\.to_[qkv]", f"{block}.{own}qkv", ("attn.to_q", "attn.to_k", "attn.to_v")),
        (rf"{_BLOCK}attn\.add_[qkv]_proj", f"{block}.{context}qkv",
         ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")),
        (rf"{_BLOCK}attn\.to_out\.0", f"{block}.{own}proj", ("attn.to_out.0",)),
        (rf"{_BLOCK}attn\.to_add_out", f"{block}.{context}proj", ("attn.to_add_out",)),
    ]  # fmt: skip
    if second is not None:
        found += [
            (rf"{_BLOCK}attn2\.to_[qkv]", f"{block}.{second}qkv", ("attn2.to_q", "attn2.to_k", "attn2.to_v")),
            (rf"{_BLOCK}attn2\.to_out\.0", f"{block}.{second}proj", ("attn2.to_out.0",)),
        ]
    return found


_SD3_PATTERNS: list[_Pattern] = [
    *_attention("joint_blocks.{}", "x_block.attn.", "context_block.attn.", "x_block.attn2."),
    (rf"{_BLOCK}ff\.net\.0\.proj", "joint_blocks.{}.x_block.mlp.fc1", ("ff.net.0.proj",)),
    (rf"{_BLOCK}ff\.net\.2", "joint_blocks.{}.x_block.mlp.fc2", ("ff.net.2",)),
    (rf"{_BLOCK}ff_context\.net\.0\.proj", "joint_blocks.{}.context_block.mlp.fc1", ("ff_context.net.0.proj",)),
    (rf"{_BLOCK}ff_context\.net\.2", "joint_blocks.{}.context_block.mlp.fc2", ("ff_context.net.2",)),
    (rf"{_BLOCK}norm1\.linear", "joint_blocks.{}.x_block.adaLN_modulation.1", ("norm1.linear",)),
    (rf"{_BLOCK}norm1_context\.linear", "joint_blocks.{}.context_block.adaLN_modulation.1", ("norm1_context.linear",)),
    (r"pos_embed\.proj", "x_embedder.proj", ()),
    (r"context_embedder", "context_embedder", ()),
    (r"time_text_embed\.timestep_embedder\.linear_1", "t_embedder.mlp.0", ()),
    (r"time_text_embed\.timestep_embedder\.linear_2", "t_embedder.mlp.2", ()),
    (r"time_text_embed\.text_embedder\.linear_1", "y_embedder.mlp.0", ()),
    (r"time_text_embed\.text_embedder\.linear_2", "y_embedder.mlp.2", ()),
    (r"norm_out\.linear", "final_layer.adaLN_modulation.1", ()),
    (r"proj_out", "final_layer.linear", ()),
]
_FLUX_PATTERNS: list[_Pattern] = [
    *_attention("double_blocks.{}", "img_attn.", "txt_attn."),
    (rf"{_BLOCK}ff\.net\.0\.proj", "double_blocks.{}.img_mlp.0", ("ff.net.0.proj",)),
    (rf"{_BLOCK}ff\.net\.2", "double_blocks.{}.img_mlp.2", ("ff.net.2",)),
    (rf"{_BLOCK}ff_context\.net\.0\.proj", "double_blocks.{}.txt_mlp.0", ("ff_context.net.0.proj",)),
    (rf"{_BLOCK}ff_context\.net\.2", "double_blocks.{}.txt_mlp.2", ("ff_context.net.2",)),
    (rf"{_BLOCK}norm1\.linear", "double_blocks.{}.img_mod.lin", ("norm1.linear",)),
    (rf"{_BLOCK}norm1_context\.linear", "double_blocks.{}.txt_mod.lin", ("norm1_context.linear",)),
    (rf"{_SINGLE}(?:attn\.to_[qkv]|proj_mlp)", "single_blocks.{}.linear1",
     ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")),
    (rf"{_SINGLE}proj_out", "single_blocks.{}.linear2", ("proj_out",)),
    (rf"{_SINGLE}norm\.linear", "single_blocks.{}.modulation.lin", ("norm.linear",)),
    (r"x_embedder", "img_in", ()),
    (r"context_embedder", "txt_in", ()),
    (r"time_text_embed\.timestep_embedder\.linear_1", "time_in.in_layer", ()),
    (r"time_text_embed\.timestep_embedder\.linear_2", "time_in.out_layer", ()),
    (r"time_text_embed\.text_embedder\.linear_1", "vector_in.in_layer", ()),
    (r"time_text_embed\.text_embedder\.linear_2", "vector_in.out_layer", ()),
    (r"time_text_embed\.guidance_embedder\.linear_1", "guidance_in.in_layer", ()),
    (r"time_text_embed\.guidance_embedder\.linear_2", "guidance_in.out_layer", ()),
    (r"norm_out\.linear", "final_layer.adaLN_modulation.1", ()),
    (r"proj_out", "final_layer.linear", ()),
]  # fmt: skip

_FLUX_2_PATTERNS: list[_Pattern] = [
    *_attention("double_blocks.{}", "img_attn.", "txt_attn."),
    (rf"{_BLOCK}ff\.linear_in", "double_blocks.{}.img_mlp.0", ("ff.linear_in",)),
    (rf"{_BLOCK}ff\.linear_out", "double_blocks.{}.img_mlp.2", ("ff.linear_out",)),
    (rf"{_BLOCK}ff_context\.linear_in", "double_blocks.{}.txt_mlp.0", ("ff_context.linear_in",)),
    (rf"{_BLOCK}ff_context\.linear_out", "double_blocks.{}.txt_mlp.2", ("ff_context.linear_out",)),
    (rf"{_SINGLE}attn\.to_qkv_mlp_proj", "single_blocks.{}.linear1", ("attn.to_qkv_mlp_proj",)),
    (rf"{_SINGLE}attn\.to_out", "single_blocks.{}.linear2", ("attn.to_out",)),
    (r"x_embedder", "img_in", ()),
    (r"context_embedder", "txt_in", ()),
    (r"time_guidance_embed\.timestep_embedder\.linear_1", "time_in.in_layer", ()),
    (r"time_guidance_embed\.timestep_embedder\.linear_2", "time_in.out_layer", ()),
    (r"time_guidance_embed\.guidance_embedder\.linear_1", "guidance_in.in_layer", ()),
    (r"time_guidance_embed\.guidance_embedder\.linear_2", "guidance_in.out_layer", ()),
    (r"double_stream_modulation_img\.linear", "double_stream_modulation_img.lin", ()),
    (r"double_stream_modulation_txt\.linear", "double_stream_modulation_txt.lin", ()),
    (r"single_stream_modulation\.linear", "single_stream_modulation.lin", ()),
    (r"norm_out\.linear", "final_layer.adaLN_modulation.1", ()),
    (r"proj_out", "final_layer.linear", ()),
]
_Z_IMAGE_BLOCK = r"((?:layers|noise_refiner|context_refiner)\.\d+)\."
_Z_IMAGE_PATTERNS: list[_Pattern] = [
    (rf"{_Z_IMAGE_BLOCK}attention\.to_[qkv]", "{}.attention.qkv",
     ("attention.to_q", "attention.to_k", "attention.to_v")),
    (rf"{_Z_IMAGE_BLOCK}attention\.to_out\.0", "{}.attention.out", ("attention.to_out.0",)),
    *((rf"{_Z_IMAGE_BLOCK}{re.escape(name)}", f"{{}}.{name}", (name,))
      for name in ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3", "adaLN_modulation.0")),
    (r"all_x_embedder\.2-1", "x_embedder", ()),
    (r"all_final_layer\.2-1\.linear", "final_layer.linear", ()),
    (r"all_final_layer\.2-1\.adaLN_modulation\.1", "final_layer.adaLN_modulation.1", ()),
    *((re.escape(name), name, ()) for name in ("cap_embedder.1", "t_embedder.mlp.0", "t_embedder.mlp.2")),
]  # fmt: skip


def _matched(layer: str, patterns: Iterable[_Pattern], swapped: set[str]) -> Module | None:
    for pattern, name, rows in patterns:
        if match := re.fullmatch(pattern, layer):
            number = match[1] if match.groups() else ""
            block = layer[: match.end(1) + 1] if number else ""
            return Module(name.format(number), tuple(block + row for row in rows) or (layer,), layer in swapped)
    return None


# Factors of several layers as one module's, and back.


def fused(adapter: Adapter, modules: Iterable[Module], rows: Mapping[str, int]) -> Adapter:
    """Factors by the modules' names. `rows`: how many a layer's weight has.

    A module of several layers has their A below each other, and a B with blocks on its diagonal; layers that the
    adapter does not have are zero blocks, of the rank of the module's first, so that all blocks are equally wide where
    the layers' ranks are equal.
    """
    found: Adapter = {}
    for module in modules:
        parts = [adapter.get(layer) for layer in module.layers]
        given = [part for part in parts if part is not None]
        scale = given[0].scale
        blocks = []
        for layer, part in zip(module.layers, parts, strict=True):
            if part is None:
                a, b = torch.zeros_like(given[0].a), given[0].b.new_zeros(rows[layer], given[0].rank)
            else:
                a, b = part.a, part.b if part.scale == scale else part.b * (part.scale / scale)
            blocks.append((a, b))
        a = torch.cat([block for block, _ in blocks])
        b = torch.block_diag(*(block for _, block in blocks)) if len(blocks) > 1 else blocks[0][1]
        found[module.name] = Factors(a, _swapped(b) if module.halves_swapped else b, scale)
    return found


def split(module: Module, a: Tensor, b: Tensor, rows: Mapping[str, int]) -> dict[str, tuple[Tensor, Tensor]]:
    """`fused` undone: A and B by layer. Where B is no diagonal of equal blocks, every layer has all of A.

    Raises ValueError where B has another number of rows than the layers.
    """
    b = _swapped(b) if module.halves_swapped else b
    if len(module.layers) == 1:
        return {module.layers[0]: (a, b)}
    sizes = [rows[layer] for layer in module.layers]
    if len(b) != sum(sizes):
        raise ValueError(f"{module.name} has {len(b)} rows, but the model's has {sum(sizes)}")
    parts, count = b.split(sizes), len(sizes)
    if len(a) % count == 0:
        rank = len(a) // count
        own = [part[:, i * rank : (i + 1) * rank] for i, part in enumerate(parts)]
        if torch.block_diag(*own).equal(b):
            return {
                layer: (piece, block)
                for layer, piece, block in zip(module.layers, a.split(rank), own, strict=True)
                # A layer without an adapter is a zero block.
                if piece.any() or block.any()
            }
    return {layer: (a, part) for layer, part in zip(module.layers, parts, strict=True)}


def to_layers(tensors: Mapping[str, Tensor], network: Any, layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Tensors of a file, of which those of kohya's and ComfyUI's modules get the layers' names, as lora_A and lora_B.

    The alpha of a module is divided as its rank is. All other tensors stay as they are. Raises ValueError where a
    module has another number of rows than its layers, or is named twice.
    """
    modules, rows = known_modules(network, layers), rows_of(layers)
    found: dict[str, Tensor] = {}
    ours: dict[Module, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        match = _TENSOR.fullmatch(name)
        if match is None or match["module"] not in modules:
            found[name] = value
        else:
            parts = ours.setdefault(modules[match["module"]], {})
            if _END[match["end"]] in parts:
                raise ValueError(f"it names {modules[match['module']].name} twice")
            parts[_END[match["end"]]] = value
    for module, parts in ours.items():
        alpha = parts.get("alpha")
        if not parts.keys() >= {"lora_A", "lora_B"} or min(parts["lora_A"].ndim, parts["lora_B"].ndim) < 2:
            found |= {f"{module.layers[0]}.{end}.weight": parts[end] for end in parts.keys() - {"alpha"}}
            continue
        for layer, (a, b) in split(module, parts["lora_A"], parts["lora_B"], rows).items():
            found |= {f"{layer}.lora_A.weight": a, f"{layer}.lora_B.weight": b}
            if alpha is not None:
                found[f"{layer}.alpha"] = alpha * (len(a) / len(parts["lora_A"]))
    return found


_TENSOR = re.compile(r"(?P<module>.+?)\.(?P<end>alpha|(?:lora_A|lora_B|lora_down|lora_up)\.weight)")
_END = {
    "alpha": "alpha", "lora_A.weight": "lora_A", "lora_down.weight": "lora_A", "lora_B.weight": "lora_B",
    "lora_up.weight": "lora_B",
}  # fmt: skip


def _swapped(b: Tensor) -> Tensor:
    first, second = b.chunk(2)
    return torch.cat([second, first])


def rows_of(layers: Mapping[str, nn.Module]) -> dict[str, int]:
    """How many rows the layers' weights have."""
    return {name: weight_shape(layer)[0] for name, layer in layers.items()}
