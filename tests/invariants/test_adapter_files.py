"""Adapters on disk: in full or not at all, by diffusers, peft and our own reader, against values put there by hand."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin
from diffusers.utils.state_dict_utils import convert_state_dict_to_diffusers
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file

import tiny
from tastemaker.cli.main import main
from tastemaker.config.schema import Config, Pairs
from tastemaker.config.yaml_file import dump_config
from tastemaker.errors import ConfigError, ModelError, TastemakerError
from tastemaker.models import adapter_files, lora
from tastemaker.models.bundled import bundled_pipeline
from tastemaker.models.latent_unet import LatentUNet
from tastemaker.models.lora import PEFT_WEIGHTS, WEIGHTS
from tastemaker.models.mixing import Factors, delta, product
from tastemaker.models.pixel import PixelUNet
from tastemaker.models.stable_diffusion import SD
from tastemaker.models.tuning import ATTENTION, Tuning
from tastemaker.training.finish import _card

EVERYTHING = (
    *ATTENTION, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv", "conv1", "conv2", "conv_in", "conv_out",
    "conv_shortcut", "time_emb_proj", "linear_1", "linear_2",
)  # fmt: skip


def latent(linear=False):
    """The tiny Stable Diffusion, with proj_in and proj_out convolutions as in SD 1.x, or linear as in SD 2.x."""
    pipe = tiny.pipeline()
    if linear:
        torch.manual_seed(0)
        pipe.unet = UNet2DConditionModel.from_config(pipe.unet.config, use_linear_projection=True)
    return pipe


def perturbed(model, seed=1):
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.weights.trainable().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=random))
    return model


def on(network):
    """Factors and scales of the layers that have an adapter, by peft's own modules."""
    return {
        name: (m.lora_A[key].weight, m.lora_B[key].weight, m.scaling[key])
        for name, m in network.named_modules()
        if isinstance(m, BaseTunerLayer)
        for key in m.active_adapters
    }


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, (a, b, scale) in expected.items():
        assert torch.equal(found[name][0], a)
        assert torch.equal(found[name][1], b)
        assert found[name][2] == scale


def made(network, names=("to_q", "conv1", "time_emb_proj", "proj_in", "ff.net.2"), rank=2, scale=1.0, seed=0):
    """An adapter of values drawn here, on the layers whose names end so."""
    random = torch.Generator().manual_seed(seed)
    found = {}
    for name, module in network.named_modules():
        if name.endswith(names) and hasattr(module, "weight"):
            weight = module.weight
            found[name] = Factors(
                0.3 * torch.randn(rank, *weight.shape[1:], generator=random),
                0.3 * torch.randn(weight.shape[0], rank, *[1] * (weight.ndim - 2), generator=random),
                scale,
            )
    return found


def peft_names(adapter, prefix="unet."):
    return {
        f"{prefix}{name}.lora_{end}.weight": value
        for name, factors in adapter.items()
        for end, value in (("A", factors.a), ("B", factors.b))
    }


def written(folder, state, name=WEIGHTS, metadata=None, config=None):
    folder.mkdir()
    save_file({key: value.clone().contiguous() for key, value in state.items()}, folder / name, metadata)
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def settings(**values):
    """Of peft, as diffusers writes them into a file."""
    values = {"r": 2, "lora_alpha": 2} | values
    return {"format": "pt", "lora_adapter_metadata": json.dumps({f"unet.{k}": v for k, v in values.items()})}


# ---------------------------------------------------------------- saved


@pytest.mark.parametrize(
    ("targets", "linear"),
    [
        ((*ATTENTION, "proj_in", "proj_out"), False),
        ((*ATTENTION, "proj_in", "proj_out"), True),
        (("mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "conv_in", "downsamplers.0.conv"), False),
        (EVERYTHING, False),
    ],
    ids=["proj-convolution", "proj-linear", "full-names", "everything"],
)
def test_diffusers_and_our_reader_load_all_of_what_was_saved(tmp_path, targets, linear):
    model = LatentUNet(SD, latent(linear))
    model.tune(Tuning(rank=2, alpha=-3.0, targets=targets))
    trained = on(perturbed(model).network)
    assert len(load_file(saved(model, tmp_path) / WEIGHTS)) == 2 * len(trained) == len(model.weights.trainable())
    assert {scale for _, _, scale in trained.values()} == {-1.5}
    pipe = latent(linear)
    pipe.load_lora_weights(tmp_path)
    assert_same(on(pipe.unet), trained)
    other = LatentUNet(SD, latent(linear))
    other.weights.load(tmp_path)
    assert_same(on(other.network), trained)
    assert not other.weights.trainable()


def saved(model, folder):
    model.weights.save(folder)
    return folder


@pytest.mark.parametrize("target", ["conv_in", "conv_shortcut", "linear_2", "attn2.to_out.0", "proj_out"])
def test_one_target_alone(tmp_path, target):
    model, pipe = LatentUNet(SD, latent()), latent()
    model.tune(Tuning(rank=1, targets=(target,)))
    model.weights.save(tmp_path)
    pipe.load_lora_weights(tmp_path)
    assert_same(on(pipe.unet), on(model.network))


def test_all_layers_of_a_pixel_model_are_saved_for_peft(tmp_path):
    model = PixelUNet(tiny.pixels(classes=3))
    model.tune(Tuning(rank=2, alpha=3.0, targets=(*ATTENTION, "conv1", "conv2", "conv_in", "conv", "linear_1")))
    trained = on(perturbed(model).network)
    saved(model, tmp_path)
    fresh, other = PixelUNet(tiny.pixels(classes=3)), PixelUNet(tiny.pixels(classes=3))
    PeftModel.from_pretrained(fresh.network, str(tmp_path))
    other.weights.load(tmp_path)
    for network in (fresh.network, other.network):
        assert_same(on(network), trained)


@pytest.mark.filterwarnings("ignore:While injecting the PEFT adapters")
def test_saving_is_an_error_where_diffusers_would_load_a_part(tmp_path, monkeypatch):
    """diffusers' own conversion to its older names mixes them with peft's where targets are not all attention."""
    model = LatentUNet(SD, latent())
    model.tune(Tuning(targets=(*ATTENTION, "proj_in")))
    write = StableDiffusionLoraLoaderMixin.save_lora_weights

    def mixed(folder, unet_lora_layers, **rest):
        write(folder, unet_lora_layers=convert_state_dict_to_diffusers(unet_lora_layers), **rest)

    monkeypatch.setattr(StableDiffusionLoraLoaderMixin, "save_lora_weights", mixed)
    with pytest.raises(ModelError, match=r"of the adapter's \d+ layers would not be loaded as they are"):
        model.weights.save(tmp_path)
    fresh = LatentUNet(SD, latent())
    fresh.weights.load(tmp_path)  # as earlier versions have written it
    assert_same(on(fresh.network), on(model.network))


def test_a_layer_that_diffusers_would_rename_is_refused_before_training():
    network = torch.nn.ModuleDict({"processor": torch.nn.ModuleDict({"to_k": torch.nn.Linear(2, 2)})})
    with pytest.raises(ModelError, match=r"diffusers would rename a\.processor\.to_k\.lora_A\.weight"):
        lora.add_lora(torch.nn.ModuleDict({"a": network}), 1, None, ["to_k"])


def test_saving_leaves_random_numbers_and_the_network_as_they_were(tmp_path):
    model = PixelUNet(tiny.pixels())
    model.tune(Tuning())
    before = torch.get_rng_state(), {name: value.clone() for name, value in model.network.state_dict().items()}
    model.weights.save(tmp_path)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert all(torch.equal(value, before[1][name]) for name, value in model.network.state_dict().items())


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("to_q", "to_qq"), "of 'to_qq' there is none: this model has conv, .*to_out.0, to_q"),
        (("attn1",), "attn1 is a Attention"),
        (("0",), r"is a (CrossAttnDownBlock2D|ModuleList)"),
        (("norm1",), "is a LayerNorm"),
        (("all-linear",), "of 'all-linear' there is none"),
        ((".*to_q",), "there is none"),
    ],
)
def test_targets_that_are_no_layers_are_refused(targets, message):
    with pytest.raises(ModelError, match=re.escape(f"tuning.targets is {list(targets)}") + f".*{message}"):
        LatentUNet(SD, latent()).tune(Tuning(targets=targets))


def test_an_alpha_of_zero_never_learns():
    with pytest.raises(ConfigError, match=r"tuning\.alpha is 0"):
        Tuning(alpha=0.0)


# ---------------------------------------------------------------- read and applied in full


def kohya(adapter, alpha=None):
    state = {}
    for name, factors in adapter.items():
        stem = "lora_unet_" + name.replace(".", "_")
        state |= {f"{stem}.lora_down.weight": factors.a, f"{stem}.lora_up.weight": factors.b}
        if alpha is not None:
            state[f"{stem}.alpha"] = torch.tensor(float(alpha))
    return state


def processors(adapter):
    """The names of diffusers' attention processors before peft."""
    state = {}
    for name, factors in adapter.items():
        stem = re.sub(r"\.(to_[qkv]|to_out)(\.0)?$", r".processor.\1_lora", name)
        state |= {f"{stem}.down.weight": factors.a, f"{stem}.up.weight": factors.b}
    return state


OTHERS = {
    "no prefix": (lambda made: peft_names(made, ""), {}, 1.0),
    "peft's prefix": (lambda made: peft_names(made, "base_model.model."), {}, 1.0),
    "both prefixes": (lambda made: peft_names(made, "base_model.model.unet."), {}, 1.0),
    "diffusers": (lambda made: convert_state_dict_to_diffusers(peft_names(made)), {}, 1.0),
    "alpha of the file": (peft_names, {"metadata": settings(lora_alpha=3)}, 1.5),
    "rslora": (peft_names, {"metadata": settings(lora_alpha=3, use_rslora=True)}, 3 / 2**0.5),
    "peft": (
        lambda made: peft_names(made, "base_model.model."),
        {"name": PEFT_WEIGHTS, "config": {"peft_type": "LORA", "r": 2, "lora_alpha": 5}},
        2.5,
    ),
    "kohya": (kohya, {}, 1.0),
    "kohya with alpha": (lambda made: kohya(made, 0.5), {}, 0.25),
    "kohya under another name": (lambda made: kohya(made, 1), {"name": "my style v2.safetensors"}, 0.5),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_forms_are_put_on_in_full(tmp_path, case):
    form, options, scale = OTHERS[case]
    model = LatentUNet(SD, latent())
    adapter = made(model.network)
    folder = written(tmp_path / "x", form(adapter), **options)
    expected = {name: (f.a, f.b, scale) for name, f in adapter.items()}
    assert len(expected) > 15
    for given in (folder, next(folder.glob("*.safetensors"))):
        model.weights.load(given)
        assert_same(on(model.network), expected)
        lora.remove(model.network)


def test_old_attention_processors_are_put_on_in_full(tmp_path):
    model = LatentUNet(SD, latent())
    adapter = made(model.network, ATTENTION)
    model.weights.load(written(tmp_path / "x", processors(adapter)))
    assert_same(on(model.network), {name: (f.a, f.b, 1.0) for name, f in adapter.items()})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_other_precisions_are_read_as_their_values(tmp_path, dtype):
    network = latent().unet
    adapter = made(network)
    state = {name: value.to(dtype) for name, value in peft_names(adapter).items()}
    read = adapter_files.read(written(tmp_path / "x", state), network)
    for name, factors in read.items():
        assert factors.a.dtype == torch.float32
        assert torch.equal(factors.a, state[f"unet.{name}.lora_A.weight"].float())


def test_ranks_and_alphas_of_single_layers(tmp_path):
    """to_q has rank 3 and alpha 6, all else rank 2 and alpha -1; kohya's alphas are each layer's own, or the rank."""
    model = LatentUNet(SD, latent())
    adapter = made(model.network) | made(model.network, ("to_q",), rank=3)
    metadata = settings(lora_alpha=-1, rank_pattern={"to_q": 3}, alpha_pattern={"to_q": 6})
    scales = {name: 2.0 if name.endswith("to_q") else -0.5 for name in adapter}
    expected = {name: (f.a, f.b, scales[name]) for name, f in adapter.items()}
    folder = written(tmp_path / "x", peft_names(adapter), metadata=metadata)
    model.weights.load(folder)
    assert_same(on(model.network), expected)
    lora.remove(model.network)
    # Written again, they are what diffusers loads.
    adapter_files.write(adapter_files.read(folder, model.network), model.network, tmp_path / "again")
    pipe = latent()
    pipe.load_lora_weights(tmp_path / "again")
    assert_same(on(pipe.unet), expected)
    state = kohya(adapter)
    first = next(iter(adapter))
    state[f"lora_unet_{first.replace('.', '_')}.alpha"] = torch.tensor([4.0])
    model.weights.load(written(tmp_path / "kohya", state))
    given = {first: 4 / adapter[first].rank}
    assert_same(on(model.network), {name: (f.a, f.b, given.get(name, 1.0)) for name, f in adapter.items()})


def test_a_mixture_of_unlike_adapters_is_the_dense_merge(tmp_path):
    """Ranks, alphas, dtypes and layers differ, convolutions among them: outputs in float64 against merged weights."""
    network = latent().unet
    one = written(
        tmp_path / "one",
        peft_names(made(network, ("to_q", "conv1", "proj_in"), rank=2, seed=1)),
        metadata=settings(lora_alpha=-3),
    )
    two = written(tmp_path / "two", kohya(made(network, ("to_q", "conv2", "conv_in", "ff.net.2"), rank=3, seed=2), 1.5))
    half = {k: v.half() for k, v in peft_names(made(network, ("conv1", "time_emb_proj"), rank=1, seed=3)).items()}
    three = written(tmp_path / "three", half, metadata=settings(r=1, lora_alpha=0.5, use_rslora=True))
    parts, weights = [adapter_files.read(folder, network) for folder in (one, two, three)], (0.5, -0.25, 2.0)
    assert [next(iter(part.values())).scale for part in parts] == [-1.5, 0.5, 0.5]
    adapter_files.write(delta(parts, weights), network, tmp_path / "mixed")
    mixed, dense = latent(), latent().unet
    mixed.load_lora_weights(tmp_path / "mixed")
    with torch.no_grad():
        for part, weight in zip(parts, weights, strict=True):
            for name, factors in part.items():
                layer = dense.get_submodule(name).weight
                layer += (weight * product(factors)).reshape(layer.shape)
        x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        ours, theirs, base = (
            unet(x, 500, encoder_hidden_states=torch.ones(1, 16, 16)).sample for unet in (mixed.unet, dense, network)
        )
    assert (theirs - base).abs().max() > 0.05
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- refused


def changed(change):
    """The file of a good adapter with something changed: a function of its tensors and of the name of its first."""

    def make(folder, good):
        first = min(good)
        return written(folder, change(good, first))

    return make


def with_settings(**values):
    return lambda folder, good: written(folder, good, metadata=settings(**values))


def damaged(change):
    def make(folder, good):
        file = written(folder, good) / WEIGHTS
        file.write_bytes(change(file.read_bytes()))
        return folder

    return make


def named(*names):
    def make(folder, good):
        folder.mkdir()
        for name in names:
            save_file(good, folder / name)
        return folder

    return make


def run_without_adapter(folder, good):
    folder.mkdir()
    (folder / "config.yaml").write_text(dump_config(Config()))
    return folder


REFUSED = {
    "text encoder": (changed(lambda s, f: s | {"text_encoder.q_proj.lora_A.weight": s[f]}), "has text_encoder"),
    "kohya's text encoder": (changed(lambda s, f: s | {"lora_te_x_q_proj.lora_down.weight": s[f]}), "has lora_te_x"),
    "only a text encoder": (changed(lambda s, f: {"text_encoder.q_proj.lora_A.weight": s[f]}), "has text_encoder"),
    "DoRA": (changed(lambda s, f: s | {f.replace("lora_A.weight", "lora_magnitude_vector"): s[f][0]}), "magnitude"),
    "kohya's DoRA": (changed(lambda s, f: s | {f.replace("lora_A.weight", "dora_scale"): s[f]}), "dora_scale"),
    "LoHa": (changed(lambda s, f: s | {"lora_unet_x.hada_w1_a": s[f]}), "hada_w1_a"),
    "bias": (changed(lambda s, f: s | {f.replace("lora_A.weight", "lora_B.bias"): s[f][0]}), "lora_B.bias"),
    "unknown key": (changed(lambda s, f: s | {"unet.conv_in.weight": s[f]}), "has unet.conv_in.weight"),
    "one factor": (changed(lambda s, f: {k: v for k, v in s.items() if k != f}), "lacks .*lora_A.weight"),
    "a layer twice": (changed(lambda s, f: s | {f.removeprefix("unet."): s[f]}), "names a layer twice"),
    "alpha of no layer": (changed(lambda s, f: s | {"unet.x.alpha": torch.tensor(1.0)}), "lacks x.lora_A.weight"),
    "other layers": (changed(lambda s, f: {k.replace("_blocks.0", "_blocks.7"): v for k, v in s.items()}), "not have"),
    "one other layer": (changed(lambda s, f: s | {f"unet.x.lora_{e}.weight": s[f] for e in "AB"}), "layer x, which"),
    "SDXL": (
        changed(lambda s, f: {f"lora_unet_input_blocks_4_1_to_q.lora_{e}.weight": s[f] for e in ("down", "up")}),
        "layer lora_unet_input_blocks_4_1_to_q, which the model does not have",
    ),
    "a norm": (changed(lambda s, f: {f"unet.conv_norm_out.lora_{e}.weight": s[f] for e in "AB"}), "conv_norm_out"),
    "other shapes": (changed(lambda s, f: s | {f: s[f].repeat(1, 2)}), r"shapes \[2, 32\] and \[16, 2\]"),
    "other ranks": (changed(lambda s, f: s | {f: s[f][:1]}), r"shapes \[1, 16\] and \[16, 2\]"),
    "a vector": (changed(lambda s, f: s | {f: s[f][0]}), "shapes"),
    "rank 0": (changed(lambda s, f: {k: v[:0] if "_A" in k else v[:, :0] for k, v in s.items()}), "shapes"),
    "not a number": (changed(lambda s, f: s | {f: s[f] * float("nan")}), "no finite"),
    "infinite": (changed(lambda s, f: s | {f: s[f] * float("inf")}), "no finite"),
    "integers": (changed(lambda s, f: {k: v.int() for k, v in s.items()}), "no finite"),
    "infinite alpha": (
        changed(lambda s, f: s | {f.replace("lora_A.weight", "alpha"): torch.tensor(float("inf"))}), "scale inf",
    ),
    "an alpha of two": (changed(lambda s, f: s | {f.replace("lora_A.weight", "alpha"): torch.ones(2)}), "cannot read"),
    "another rank in its settings": (with_settings(r=4), "rank 2 at the layer .* say 4"),
    "use_dora": (with_settings(use_dora=True), "use_dora=True"),
    "other modules": (with_settings(modules_to_save=["conv_in"]), "modules_to_save"),
    "pissa": (with_settings(init_lora_weights="pissa_niter_4"), "init_lora_weights=pissa"),
    "alpha in words": (with_settings(lora_alpha="two"), "cannot read the adapter"),
    "empty": (damaged(lambda data: b""), "cannot read the adapter"),
    "truncated": (damaged(lambda data: data[:-100]), "cannot read the adapter"),
    "text": (damaged(lambda data: b"version https://git-lfs.github.com/spec/v1"), "cannot read the adapter"),
    "no tensors": (changed(lambda s, f: {}), "has no factors"),
    "two adapters": (named("a.safetensors", "b.safetensors"), "has the adapters a.safetensors and b.safetensors"),
    "two forms": (named(WEIGHTS, PEFT_WEIGHTS), "has the adapters"),
    "peft without settings": (named(PEFT_WEIGHTS), "adapter_config.json"),
    "not LoRA": (
        lambda folder, good: written(folder, good, PEFT_WEIGHTS, config={"peft_type": "LOHA"}), "peft_type=LOHA",
    ),
    "pickle": (lambda folder, good: named("pytorch_lora_weights.bin")(folder, good), "is no .safetensors file"),
    "a run without adapter": (run_without_adapter, "expected a finished run .*tastemaker resume"),
    "nothing": (lambda folder, good: folder, "there is no adapter in"),
}  # fmt: skip


@pytest.fixture(scope="module")
def plain():
    return LatentUNet(SD, latent())


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_and_leaves_the_network_alone(tmp_path, plain, case):
    make, message = REFUSED[case]
    names = [name for name, _ in plain.network.named_parameters()]
    good = {key: value.contiguous() for key, value in peft_names(made(plain.network, ("attn1.to_q",))).items()}
    given = make(tmp_path / "x", good)
    for call in (plain.weights.load, lambda folder: adapter_files.read(folder, plain.network)):
        with pytest.raises(TastemakerError, match=message) as error:
            call(given)
        assert "\n" not in str(error.value)
    assert [name for name, _ in plain.network.named_parameters()] == names


def test_a_second_adapter_is_refused(tmp_path):
    model = LatentUNet(SD, latent())
    folder = written(tmp_path / "x", peft_names(made(model.network)))
    model.weights.load(folder)
    with pytest.raises(ModelError, match="has an adapter already"):
        model.weights.load(folder)


def whole(change=lambda state: None, edit=lambda config: None):
    def make(folder):
        unet = latent().unet
        state = unet.state_dict()
        change(state)
        unet.save_pretrained(folder / "unet")
        save_file(state, folder / "unet/diffusion_pytorch_model.safetensors", {"format": "pt"})
        config = json.loads((folder / "unet/config.json").read_text())
        edit(config)
        (folder / "unet/config.json").write_text(json.dumps(config))

    return make


WHOLE = {
    "another kind": (
        lambda folder: tiny.pixels().unet.save_pretrained(folder / "unet"),
        "a UNet2DModel, and the model",
    ),
    "other sizes": (lambda folder: latent(True).unet.save_pretrained(folder / "unet"), "use_linear_projection is True"),
    "the same shapes": (whole(edit=lambda c: c.update(attention_head_dim=4)), "attention_head_dim is 4 there and 2"),
    "a tensor missing": (whole(lambda s: s.pop("conv_in.bias")), "conv_in.bias is one of its missing keys"),
    "a tensor too many": (whole(lambda s: s.update(x=torch.ones(1))), "x is one of its unexpected keys"),
    "not finite": (whole(lambda s: s["conv_in.bias"].fill_(float("nan"))), "conv_in.bias is not finite"),
    "another shape": (whole(lambda s: s.update({"conv_in.bias": torch.ones(3)})), "cannot read|mismatched"),
    "truncated": (
        lambda folder: (
            whole()(folder),
            (folder / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"damaged"),
        ),
        "cannot read the network",
    ),
    "no weights": (lambda folder: (folder / "unet").mkdir(parents=True), "cannot read the network"),
}


@pytest.mark.parametrize("case", WHOLE)
def test_a_whole_network_that_does_not_fit_is_refused(tmp_path, plain, case):
    make, message = WHOLE[case]
    make(tmp_path / "model")
    before = {name: value.clone() for name, value in plain.network.state_dict().items()}
    with pytest.raises(ModelError, match=message):
        plain.weights.load(tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in plain.network.state_dict().items())


def test_a_whole_network_that_fits_is_put_on(tmp_path, plain):
    model = LatentUNet(SD, latent())
    model.tune(Tuning(mode="full"))
    perturbed(model).weights.save(tmp_path / "model")
    other = LatentUNet(SD, latent())
    for given in (tmp_path, tmp_path / "model", tmp_path / "model/unet"):
        other.weights.load(given)
        trained = model.network.state_dict()
        assert all(torch.equal(value, trained[name]) for name, value in other.network.state_dict().items())
        other.network.load_state_dict(plain.network.state_dict())


def test_the_command_line_refuses_in_one_line_and_leaves_no_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny.folder(Path("base"))
    capsys.readouterr()
    good = made(latent().unet)
    written(Path("good"), peft_names(good))
    written(Path("bad"), {f"unet.x.{key}": value for key, value in peft_names(good, "").items()})
    ends = ["--model", "base", "--steps", "2", "--out", "out"]
    for words in (
        ["sample", "--adapter", "bad", "--prompt", "x", *ends],
        ["sample", "--adapter", "bad", "--prompt", "x", "--adapter-steps", "0:1", *ends],
        ["sample", "--adapter", "nowhere", "--prompt", "x", *ends],
        ["mix", "bad", "--n", "0", *ends],
        ["mix", "good", "bad", "--n", "0", *ends],
        ["mix", "good", "nowhere", "--n", "0", *ends],
    ):
        assert main(words) == 2
        out, err = capsys.readouterr()
        assert err.startswith("tastemaker: ")
        assert (out, err.count("\n"), Path("out").exists()) == ("", 1, False)
    file = f"good/{WEIGHTS}"
    assert main(["sample", "--adapter", file, "--prompt", "x", "--n", "1", *ends]) == 0
    assert main(["mix", file, "good", "--n", "0", "--alpha", "0.5", *ends[:-1], "mixed"]) == 0
    half = adapter_files.read("mixed/adapters/alpha-0.5", latent().unet)
    assert all(torch.allclose(half[name].a, good[name].a) for name in good)


# ---------------------------------------------------------------- the Python in a run's README.md


def readme(model, source, tuning):
    """The block of code, as a reader copies it."""
    config = Config(model=source, tuning=tuning, pairs=Pairs())
    (code,) = re.findall(r"```python\n(.*?)```", _card(SimpleNamespace(config=config, model=model), 1), re.DOTALL)
    return code


@pytest.mark.parametrize("tuning", [Tuning(rank=2, alpha=6.0, targets=("to_q", "conv1")), Tuning(mode="full")])
@pytest.mark.parametrize("kind", ["bundled", "folder", "variant", "pixels"])
def test_the_code_of_a_run_s_readme_gives_the_trained_pipeline(tmp_path, monkeypatch, kind, tuning):
    """Of the bundled model the text encoder is half precision on disk; folders have names that need quoting."""
    monkeypatch.chdir(tmp_path)
    source = 'a "model" of\\it\'s'
    if kind == "bundled":
        source = "bundled"
        model = LatentUNet(SD, StableDiffusionPipeline.from_pretrained(bundled_pipeline(), safety_checker=None))
    else:
        pipe = tiny.pixels() if kind == "pixels" else latent()
        pipe.save_pretrained(source, variant="fp16" if kind == "variant" else None)
        model = PixelUNet(pipe) if kind == "pixels" else LatentUNet(SD, pipe)
    model.tune(tuning)
    code = readme(perturbed(model), source, tuning)
    run = tmp_path / "run"
    model.weights.save(run / ("adapter" if tuning.mode == "lora" else "model"))
    monkeypatch.chdir(run)
    if kind != "bundled":
        monkeypatch.setitem(sys.modules, "tastemaker", None)  # not needed
    found = {}
    exec(code, found)
    pipe = found["pipe"]
    pipe.set_progress_bar_config(disable=True)
    ours, theirs = model.network.state_dict(), pipe.unet.state_dict()
    assert len(ours) == len(theirs)
    assert all(torch.equal(one, other) for one, other in zip(ours.values(), theirs.values(), strict=True))
    words = {} if kind == "pixels" else {"prompt": "a red star", "height": 32, "width": 32}
    assert len(pipe(**words, num_inference_steps=1).images) == 1


def test_a_name_on_the_hub_stays_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = LatentUNet(SD, latent())
    model.tune(Tuning())
    assert "StableDiffusionPipeline.from_pretrained('owner/name')\n" in readme(model, "owner/name", Tuning())
    latent().save_pretrained("owner/name")
    assert f"from_pretrained({str(tmp_path / 'owner/name')!r})" in readme(model, "owner/name", Tuning())
