"""Adapters in kohya's and ComfyUI's names: against lists written out by hand, and against diffusers' own converters."""

from __future__ import annotations

import re
from functools import cache

import pytest
import torch
from diffusers import (
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
    ZImageTransformer2DModel,
)
from diffusers.loaders.lora_conversion_utils import (
    _convert_kohya_flux2_lora_to_diffusers,
    _convert_kohya_flux_lora_to_diffusers,
    _convert_non_diffusers_flux2_lora_to_diffusers,
    _convert_non_diffusers_lora_to_diffusers,
    _convert_non_diffusers_z_image_lora_to_diffusers,
    _maybe_map_sgm_blocks_to_diffusers,
)
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from safetensors.torch import save_file

import tiny
from tastemaker.errors import ModelError
from tastemaker.models import adapter_files
from tastemaker.models.adapter_export import comfyui_state, kohya_metadata, kohya_state, write_state
from tastemaker.models.adapter_names import Module, fused, naming, split
from tastemaker.models.lora import adaptable
from tastemaker.models.mixing import Factors, product

ENDS = (".lora_down.weight", ".lora_up.weight", ".alpha")


@cache
def sd15():
    """Blocks as those of SD 1.5, two of the four."""
    return UNet2DConditionModel(
        sample_size=8, layers_per_block=2, block_out_channels=(8, 16), norm_num_groups=4, cross_attention_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2,
    )  # fmt: skip


@cache
def sdxl():
    """The blocks of SDXL, with 1, 1 and 2 layers of transformer and not 1, 2 and 10."""
    return UNet2DConditionModel(
        sample_size=8, layers_per_block=2, block_out_channels=(8, 16, 16), norm_num_groups=4, cross_attention_dim=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2), attention_head_dim=2,
        addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=32, use_linear_projection=True,
    )  # fmt: skip


@cache
def sd3(dual=()):
    return SD3Transformer2DModel(
        sample_size=8, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=4, num_attention_heads=2,
        joint_attention_dim=8, caption_projection_dim=8, pooled_projection_dim=8, pos_embed_max_size=8,
        dual_attention_layers=dual,
    )  # fmt: skip


@cache
def flux():
    return FluxTransformer2DModel(
        in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=4, num_attention_heads=2,
        joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=(1, 1, 2), guidance_embeds=True,
    )  # fmt: skip


@cache
def flux_2():
    return Flux2Transformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=1,
        joint_attention_dim=8, timestep_guidance_channels=16, axes_dims_rope=(2, 2, 2, 2), guidance_embeds=False,
    )  # fmt: skip


@cache
def z_image():
    return ZImageTransformer2DModel(
        in_channels=4, dim=16, n_layers=2, n_refiner_layers=1, n_heads=1, n_kv_heads=1, cap_feat_dim=8,
        axes_dims=[8, 4, 4], axes_lens=[64, 16, 16],
    )  # fmt: skip


def made(network, names=None, rank=2, scale=0.5):
    """Factors of the layers whose names end so, of values drawn here; of all layers where none are given."""
    random = torch.Generator().manual_seed(0)
    found = {}
    for name, layer in adaptable(network).items():
        if names is None or name.endswith(names):
            weight = layer.weight
            found[name] = Factors(
                torch.randn(rank, *weight.shape[1:], generator=random),
                torch.randn(len(weight), rank, *[1] * (weight.ndim - 2), generator=random),
                scale,
            )
    return found


def modules(state, prefix=""):
    return {name.removesuffix(".alpha").removeprefix(prefix) for name in state if name.endswith(".alpha")}


ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TRANSFORMER = [f"attn{n}_to_{part}" for n in (1, 2) for part in ("q", "k", "v", "out_0")] + [
    "ff_net_0_proj",
    "ff_net_2",
]
BLOCK = [*(f"transformer_blocks_0_{name}" for name in TRANSFORMER), "proj_in", "proj_out"]


def test_kohya_names_of_sd15_written_out():
    """What sd-scripts' networks/lora.py makes of its U-Net, which has diffusers' names."""
    network = sd15()
    targets = (*ATTENTION, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
    places = [
        "down_blocks_0_attentions_0", "down_blocks_0_attentions_1", "mid_block_attentions_0",
        "up_blocks_1_attentions_0", "up_blocks_1_attentions_1", "up_blocks_1_attentions_2",
    ]  # fmt: skip
    expected = {f"lora_unet_{place}_{name}{end}" for place in places for name in BLOCK for end in ENDS}
    state = kohya_state(made(network, targets), network)
    assert state.keys() == expected
    assert "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight" in state
    # alpha = scale * rank = 0.5 * 2
    assert {value.item() for name, value in state.items() if name.endswith(".alpha")} == {1.0}


def test_kohya_names_of_sdxl_written_out():
    """sd-scripts' SDXL has Stability's U-Net: input_blocks, middle_block, output_blocks."""
    network = sdxl()
    targets = (*ATTENTION, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
    two = [*BLOCK, *(f"transformer_blocks_1_{name}" for name in TRANSFORMER)]
    places = {
        "input_blocks_4_1": BLOCK, "input_blocks_5_1": BLOCK, "input_blocks_7_1": two, "input_blocks_8_1": two,
        "middle_block_1": two, "output_blocks_0_1": two, "output_blocks_1_1": two, "output_blocks_2_1": two,
        "output_blocks_3_1": BLOCK, "output_blocks_4_1": BLOCK, "output_blocks_5_1": BLOCK,
    }  # fmt: skip
    expected = {f"lora_unet_{place}_{name}{end}" for place, names in places.items() for name in names for end in ENDS}
    assert kohya_state(made(network, targets), network).keys() == expected


def test_names_of_the_other_layers_of_sdxl_written_out():
    network = sdxl()
    others = ("conv_in", "conv_out", "linear_1", "linear_2", "conv", "conv1", "conv2", "conv_shortcut", "time_emb_proj")
    resnet = ["in_layers.2", "emb_layers.1", "out_layers.3"]
    places = [f"input_blocks.{n}.0" for n in (1, 2, 4, 5, 7, 8)] + ["middle_block.0", "middle_block.2"]
    places += [f"output_blocks.{n}.0" for n in range(9)]
    expected = {f"{place}.{name}" for place in places for name in resnet}
    expected |= {f"output_blocks.{n}.0.skip_connection" for n in range(9)} | {"input_blocks.4.0.skip_connection"}
    expected |= {"input_blocks.3.0.op", "input_blocks.6.0.op", "output_blocks.2.2.conv", "output_blocks.5.2.conv"}
    expected |= {"input_blocks.0.0", "out.2", "time_embed.0", "time_embed.2", "label_emb.0.0", "label_emb.0.2"}
    assert modules(comfyui_state(made(network, others), network), "diffusion_model.") == expected


def test_names_of_sd15_in_comfyui_have_an_upsampler_without_attention_before_it():
    network = sd15()
    state = comfyui_state(made(network, ("conv",)), network)
    assert modules(state) == {"diffusion_model.input_blocks.3.0.op", "diffusion_model.output_blocks.2.1.conv"}


def test_kohya_names_of_sd3_written_out():
    """sd-scripts' networks/lora_sd3.py: q, k and v are one module; the last block has no text after its attention."""
    network = sd3(dual=(0,))
    first = [
        "context_block_attn_qkv", "context_block_attn_proj", "context_block_mlp_fc1", "context_block_mlp_fc2",
        "context_block_adaLN_modulation_1", "x_block_attn_qkv", "x_block_attn_proj", "x_block_attn2_qkv",
        "x_block_attn2_proj", "x_block_mlp_fc1", "x_block_mlp_fc2", "x_block_adaLN_modulation_1",
    ]  # fmt: skip
    last = [
        "context_block_attn_qkv", "context_block_adaLN_modulation_1", "x_block_attn_qkv", "x_block_attn_proj",
        "x_block_mlp_fc1", "x_block_mlp_fc2", "x_block_adaLN_modulation_1",
    ]  # fmt: skip
    others = [
        "x_embedder_proj", "context_embedder", "t_embedder_mlp_0", "t_embedder_mlp_2", "y_embedder_mlp_0",
        "y_embedder_mlp_2", "final_layer_adaLN_modulation_1", "final_layer_linear",
    ]  # fmt: skip
    names = [*(f"joint_blocks_0_{n}" for n in first), *(f"joint_blocks_1_{n}" for n in last), *others]
    assert kohya_state(made(network), network).keys() == {f"lora_unet_{name}{end}" for name in names for end in ENDS}


def test_kohya_names_and_shapes_of_flux_written_out():
    """The list at the head of sd-scripts' networks/convert_flux_lora.py, at width 8 and rank 2."""
    network = flux()
    state = kohya_state(made(network, ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj",
        "to_add_out", "net.0.proj", "net.2", "norm1.linear", "norm1_context.linear", "proj_mlp", "blocks.0.proj_out",
        "norm.linear")), network)  # fmt: skip
    expected = {
        "double_blocks_0_img_attn_proj": ((2, 8), (8, 2)), "double_blocks_0_img_attn_qkv": ((6, 8), (24, 6)),
        "double_blocks_0_img_mlp_0": ((2, 8), (32, 2)), "double_blocks_0_img_mlp_2": ((2, 32), (8, 2)),
        "double_blocks_0_img_mod_lin": ((2, 8), (48, 2)), "double_blocks_0_txt_attn_proj": ((2, 8), (8, 2)),
        "double_blocks_0_txt_attn_qkv": ((6, 8), (24, 6)), "double_blocks_0_txt_mlp_0": ((2, 8), (32, 2)),
        "double_blocks_0_txt_mlp_2": ((2, 32), (8, 2)), "double_blocks_0_txt_mod_lin": ((2, 8), (48, 2)),
        "single_blocks_0_linear1": ((8, 8), (56, 8)), "single_blocks_0_linear2": ((2, 40), (8, 2)),
        "single_blocks_0_modulation_lin": ((2, 8), (24, 2)),
    }  # fmt: skip
    assert state.keys() == {f"lora_unet_{name}{end}" for name in expected for end in ENDS}
    for name, shapes in expected.items():
        down, up = state[f"lora_unet_{name}.lora_down.weight"], state[f"lora_unet_{name}.lora_up.weight"]
        assert (tuple(down.shape), tuple(up.shape)) == shapes
        assert state[f"lora_unet_{name}.alpha"].item() == 0.5 * len(down)


def test_kohya_files_of_flux_by_diffusers_own_converter():
    """It cuts linear1 at FLUX's own width, 3072 and 12288; here the width is 8."""
    network = flux()
    adapter = made(network, ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_v_proj", "net.2"))
    # Layers of single blocks apart: their converter knows FLUX's sizes alone.
    adapter = {name: factors for name, factors in adapter.items() if not name.startswith("single")}
    found = _convert_kohya_flux_lora_to_diffusers(kohya_state(adapter, network))
    for name, factors in adapter.items():
        a, b = (found.pop(f"transformer.{name}.lora_{end}.weight") for end in "AB")
        assert torch.allclose(b @ a, product(factors).float(), atol=1e-5)
    # add_k_proj, which the adapter does not have, is a part of the module txt_attn.qkv.
    assert {name.removeprefix("transformer.transformer_blocks.0.attn.") for name in found} == {
        "add_k_proj.lora_A.weight", "add_k_proj.lora_B.weight"
    }  # fmt: skip
    assert not any(value.any() for value in found.values())


def test_names_of_flux_2_written_out():
    """What musubi-tuner's networks/lora_flux_2.py makes of Black Forest Labs' code, whose names ComfyUI has too."""
    network = flux_2()
    double = [f"double_blocks.0.{kind}_{part}" for kind in ("img", "txt")
              for part in ("attn.qkv", "attn.proj", "mlp.0", "mlp.2")]  # fmt: skip
    single = ["single_blocks.0.linear1", "single_blocks.0.linear2"]
    blocks = {name: factors for name, factors in made(network).items() if "transformer_blocks" in name}
    kohya = {f"lora_unet_{name.replace('.', '_')}{end}" for name in double + single for end in ENDS}
    assert kohya_state(blocks, network).keys() == kohya
    assert "lora_unet_double_blocks_0_txt_attn_qkv.lora_down.weight" in kohya
    others = [
        "img_in", "txt_in", "time_in.in_layer", "time_in.out_layer", "double_stream_modulation_img.lin",
        "double_stream_modulation_txt.lin", "single_stream_modulation.lin", "final_layer.linear",
        "final_layer.adaLN_modulation.1",
    ]  # fmt: skip
    assert modules(comfyui_state(made(network), network)) == {
        f"diffusion_model.{name}" for name in double + single + others
    }


def test_names_of_z_image_written_out():
    """What musubi-tuner's networks/lora_zimage.py makes of its transformer, and the names of ComfyUI's own one."""
    network = z_image()
    blocks = ["layers.0", "layers.1", "noise_refiner.0", "context_refiner.0"]
    parts = ["attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0", "feed_forward.w1",
             "feed_forward.w2", "feed_forward.w3"]  # fmt: skip
    state = kohya_state(made(network, tuple(parts)), network)
    assert state.keys() == {
        f"lora_unet_{block}_{part}{end}".replace(".", "_", f"{block}_{part}".count("."))
        for block in blocks for part in parts for end in ENDS
    }  # fmt: skip
    assert "lora_unet_layers_1_attention_to_out_0.lora_up.weight" in state
    fused_parts = ["attention.qkv", "attention.out", *parts[4:]]
    comfyui = [f"{block}.{part}" for block in blocks for part in fused_parts]
    modulated = [f"{block}.adaLN_modulation.0" for block in blocks[:3]]
    others = ["x_embedder", "final_layer.linear", "final_layer.adaLN_modulation.1", "cap_embedder.1",
              "t_embedder.mlp.0", "t_embedder.mlp.2"]  # fmt: skip
    found = comfyui_state(made(network), network)
    assert modules(found) == {f"diffusion_model.{name}" for name in comfyui + modulated + others}
    # Three layers of rank 2 and scale 0.5: rank 6, and an alpha of 3.
    qkv = "diffusion_model.layers.0.attention.qkv"
    assert found[f"{qkv}.lora_A.weight"].shape == (6, 16)
    assert found[f"{qkv}.lora_B.weight"].shape == (48, 6)
    assert found[f"{qkv}.alpha"].item() == 3
    with pytest.raises(ModelError, match=r"the layer cap_embedder\.1 of a ZImageTransformer2DModel has no name that"):
        kohya_state(made(network, ("cap_embedder.1",)), network)


@pytest.mark.parametrize(
    ("make", "state", "convert"),
    [
        (flux_2, kohya_state, _convert_kohya_flux2_lora_to_diffusers),
        (flux_2, comfyui_state, _convert_non_diffusers_flux2_lora_to_diffusers),
        (z_image, kohya_state, _convert_non_diffusers_z_image_lora_to_diffusers),
    ],
)
def test_files_of_new_transformers_by_diffusers_own_converters(make, state, convert):
    """diffusers has no converter for ComfyUI's fused q, k and v of Z-Image, and its one for FLUX.2 reads no alpha."""
    network = make()
    adapter = {
        name: factors for name, factors in made(network, scale=1.0 if state is comfyui_state else 0.5).items()
        if re.search(r"attn|attention\.|\.ff|feed_forward", name)
    }  # fmt: skip
    given = state(adapter, network)
    if state is comfyui_state:
        given = {name: value for name, value in given.items() if not name.endswith(".alpha")}
    found = convert(given)
    for name, factors in adapter.items():
        a, b = (found.pop(f"transformer.{name}.lora_{end}.weight") for end in "AB")
        assert torch.allclose(b @ a, product(factors).float(), atol=1e-5), name
    assert not found


@pytest.mark.parametrize("prefix", ["diffusion_model.", "transformer."])
def test_z_image_files_with_diffusers_names(tmp_path, prefix):
    """Most published ones: q, k and v apart, and ComfyUI's prefix."""
    network, file = z_image(), tmp_path / "adapter.safetensors"
    adapter = made(network, ("attention.to_q", "attention.to_out.0"), scale=1.0)
    save_file(
        {f"{prefix}{name}.lora_{end}.weight": value for name, factors in adapter.items()
         for end, value in (("A", factors.a), ("B", factors.b))},
        file,
    )  # fmt: skip
    found = adapter_files.read(file, network)
    assert found.keys() == adapter.keys()
    assert all(found[name].b.equal(factors.b) and found[name].scale == 1 for name, factors in adapter.items())


@pytest.mark.parametrize("make", [sd15, sdxl])
def test_kohya_files_of_unets_by_diffusers_own_converter(make):
    network = make()
    adapter = made(network, (*ATTENTION, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "time_emb_proj"))
    state = _maybe_map_sgm_blocks_to_diffusers(kohya_state(adapter, network), network.config)
    found, alphas = _convert_non_diffusers_lora_to_diffusers(state)
    peft = {name.removeprefix("unet."): value for name, value in convert_unet_state_dict_to_peft(found).items()}
    assert peft.keys() == {f"{name}.lora_{end}.weight" for name in adapter for end in "AB"}
    for name, factors in adapter.items():
        assert peft[f"{name}.lora_A.weight"].equal(factors.a)
        assert peft[f"{name}.lora_B.weight"].equal(factors.b)
    assert set(alphas.values()) == {1.0}
    assert len(alphas) == len(adapter)


@pytest.mark.parametrize("form", ["kohya", "comfyui"])
@pytest.mark.parametrize("make", [sd15, sdxl, sd3, flux, flux_2, z_image])
def test_what_is_written_is_read_back_to_the_bit(tmp_path, make, form):
    network = make()
    adapter, file = made(network), tmp_path / "adapter.safetensors"
    if (make, form) == (z_image, "kohya"):  # whose adapters are of blocks alone
        adapter = {name: factors for name, factors in adapter.items() if "layers." in name or "refiner." in name}
    write_state(adapter, network, file, form, torch.float32, {"ss_output_name": "adapter"})
    found = adapter_files.read(file, network)
    assert found.keys() == adapter.keys()
    for name, factors in adapter.items():
        assert found[name].a.equal(factors.a), name
        assert found[name].b.equal(factors.b), name
        assert found[name].scale == factors.scale


@pytest.mark.parametrize("form", ["kohya", "comfyui"])
def test_ranks_and_scales_of_a_fused_module_may_differ(tmp_path, form):
    network, file = flux(), tmp_path / "adapter.safetensors"
    adapter = made(network, ("attn.to_q",), rank=3, scale=2.0) | made(network, ("attn.to_v",), rank=1, scale=-0.5)
    write_state(adapter, network, file, form, torch.float32, {})
    found = adapter_files.read(file, network)
    for name, factors in adapter.items():
        assert torch.allclose(product(found[name]), product(factors), atol=1e-5), name
    extra = found.keys() - adapter.keys()  # the rest of the same modules, which gets a part that adds nothing
    assert not any(product(found[name]).any() for name in extra)


def test_fused_by_hand():
    """q: A = [1 2], B = [3; 4]; v: A = [5 6], B = [7; 8], twice q's scale, so that its B doubles. k is not there."""
    q = Factors(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]]), 1.0)
    v = Factors(torch.tensor([[5.0, 6.0]]), torch.tensor([[7.0], [8.0]]), 2.0)
    qkv = Module("qkv", ("q", "k", "v"))
    rows = dict.fromkeys("qkv", 2)
    found = fused({"q": q, "v": v}, [qkv], rows)["qkv"]
    assert found.a.tolist() == [[1, 2], [0, 0], [5, 6]]
    assert found.b.tolist() == [[3, 0, 0], [4, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 14], [0, 0, 16]]
    assert found.scale == 1.0
    back = split(qkv, found.a, found.b, rows)
    assert {name: (a.tolist(), b.tolist()) for name, (a, b) in back.items()} == {
        "q": ([[1, 2]], [[3], [4]]), "v": ([[5, 6]], [[14], [16]])
    }  # fmt: skip
    swapped = Module("final", ("norm",), halves_swapped=True)
    assert fused({"norm": q}, [swapped], {})["final"].b.tolist() == [[4], [3]]
    assert split(swapped, q.a, q.b, {})["norm"][1].tolist() == [[4], [3]]


def test_a_trained_fused_module_gives_every_layer_all_of_its_a(tmp_path):
    """As kohya's scripts train one, with a full B; its alpha of 3 at rank 2 is each layer's too."""
    network, random = flux(), torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 8, generator=random), torch.randn(24, 2, generator=random)
    stem = "lora_unet_double_blocks_0_img_attn_qkv"
    save_file(
        {f"{stem}.lora_down.weight": a, f"{stem}.lora_up.weight": b, f"{stem}.alpha": torch.tensor(3.0)},
        tmp_path / "a.safetensors",
    )
    found = adapter_files.read(tmp_path / "a.safetensors", network)
    for name, part in zip(("to_q", "to_k", "to_v"), b.split(8), strict=True):
        factors = found.pop(f"transformer_blocks.0.attn.{name}")
        assert factors.a.equal(a)
        assert factors.b.equal(part)
        assert factors.scale == 1.5
    assert not found


def test_shift_and_scale_are_the_other_way_round_in_the_original_code(tmp_path):
    """Of SD 3's last text norm, as diffusers' convert_sd3_to_diffusers.py swaps them; the first stays as it is."""
    network = sd3()
    adapter = made(network, ("norm1_context.linear", "norm_out.linear"))
    state = kohya_state(adapter, network)
    first, last = (f"lora_unet_joint_blocks_{n}_context_block_adaLN_modulation_1.lora_up.weight" for n in (0, 1))
    assert state[first].equal(adapter["transformer_blocks.0.norm1_context.linear"].b)
    scale, shift = adapter["transformer_blocks.1.norm1_context.linear"].b.chunk(2)
    assert state[last].equal(torch.cat([shift, scale]))
    scale, shift = adapter["norm_out.linear"].b.chunk(2)
    assert state["lora_unet_final_layer_adaLN_modulation_1.lora_up.weight"].equal(torch.cat([shift, scale]))
    # FLUX.2's last norm too, as in diffusers' loaders/single_file_utils.py.
    adapter = made(flux_2(), ("norm_out.linear",))
    scale, shift = adapter["norm_out.linear"].b.chunk(2)
    state = comfyui_state(adapter, flux_2())
    assert state["diffusion_model.final_layer.adaLN_modulation.1.lora_B.weight"].equal(torch.cat([shift, scale]))


def test_half_precision_is_rounded_and_no_more(tmp_path):
    network, file = sd3(), tmp_path / "adapter.safetensors"
    adapter = made(network)
    write_state(adapter, network, file, "kohya", torch.float16, {})
    found = adapter_files.read(file, network)
    name = "transformer_blocks.0.ff.net.2"
    assert found[name].a.equal(adapter[name].a.half().float())


def test_marks_of_a_file():
    network = sdxl()
    assert kohya_metadata(made(network, ("to_q",)), network) == {
        "ss_network_module": "networks.lora", "ss_network_dim": "2", "ss_network_alpha": "1",
        "ss_base_model_version": "sdxl_base_v1-0", "ss_v2": "False", "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
    }  # fmt: skip
    mixed = made(network, ("to_q",)) | made(network, ("to_k",), rank=3)
    assert kohya_metadata(mixed, network)["ss_network_dim"] == "Dynamic"
    versions = {naming(make()).base for make in (sd15, sd3, flux)} | {naming(sd3(dual=(0,))).base}
    assert versions == {"sd_v1", "3-medium", "3-5-medium", "flux1"}
    assert kohya_metadata(made(z_image(), ("to_q",)), z_image())["ss_network_module"] == "networks.lora_zimage"
    assert naming(z_image()).base == "z_image"
    assert naming(flux_2()).base == "flux_2_klein_4b"


def test_what_has_no_names_is_refused():
    pixels = tiny.pixels().unet
    assert isinstance(pixels, UNet2DModel)
    assert naming(pixels) is None
    with pytest.raises(
        ModelError, match="no name that kohya's scripts or ComfyUI know: export it with --format diffus"
    ):
        kohya_state(made(pixels, ("to_q",)), pixels)
