"""What every family of models keeps, each on a small genuine pipeline of diffusers that was saved and loaded.

A new family is added to FAMILIES: how a small pipeline is made, and how diffusers' own pipeline is asked for images.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

import given
import tiny
import tiny_flow
from tastemaker.algorithms.base import Task
from tastemaker.algorithms.ppo import PPO
from tastemaker.algorithms.registry import ALGORITHMS
from tastemaker.config.data_settings import Pairs
from tastemaker.config.schema import Advantage, Config, Evaluation, Optimizer, Sampling
from tastemaker.diffusion.sampler import sample
from tastemaker.diffusion.sde import is_flow, make_sde
from tastemaker.errors import ModelError
from tastemaker.evaluation.images import images
from tastemaker.models import load_meta_model, load_model, wrap_pipeline
from tastemaker.models.check import check_model
from tastemaker.models.flux import packed
from tastemaker.models.kept_prompt_states import keep_prompt_states, kept_states, load_with_kept_states
from tastemaker.models.loading import load_pipeline
from tastemaker.models.tuning import Tuning
from tastemaker.models.value import value_network
from tastemaker.runs.checkpoint import State
from tastemaker.training import setup
from tastemaker.training.rounds import one_round
from tastemaker.types import Draw, all_rows

DRAW = Draw(0, 1, ("a cat", "dog"), (0, 1), (0, 0))
STEPS, GUIDANCE = 3, 3.0
SIZES = ((16, 16), (16, 24))


@dataclass(frozen=True)
class Family:
    pipeline: Callable[..., Any]
    """A small pipeline with random weights."""
    call: Callable[[Tensor], dict[str, Any]]
    """What the pipeline is called with for latents [N,C,H,W], beside prompts, steps and size, for GUIDANCE."""
    network: str = "transformer"


FAMILIES = {
    "sd": Family(tiny.pipeline, lambda x: {"latents": x, "guidance_scale": GUIDANCE}, "unet"),
    "sdxl": Family(tiny.xl, lambda x: {"latents": x, "guidance_scale": GUIDANCE}, "unet"),
    "sd3": Family(tiny_flow.sd3, lambda x: {"latents": x, "guidance_scale": GUIDANCE}),
    "sd3 without t5": Family(
        lambda: tiny_flow.sd3(with_t5=False), lambda x: {"latents": x, "guidance_scale": GUIDANCE}
    ),
    "flux": Family(
        tiny_flow.flux,
        lambda x: {"latents": packed(x), "true_cfg_scale": GUIDANCE, "negative_prompt": ["", ""]},
    ),
    # This pipeline's weight is of c + w (c - u), which is ours less 1.
    "z-image": Family(tiny_flow.z_image, lambda x: {"latents": x, "guidance_scale": GUIDANCE - 1}),
    "flux-2": Family(tiny_flow.flux_2, lambda x: {"latents": x, "guidance_scale": GUIDANCE}),
}  # fmt: skip
each_family = pytest.mark.parametrize("name", FAMILIES)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    for name, family in FAMILIES.items():
        family.pipeline().save_pretrained(root / name)
    return {name: root / name for name in FAMILIES}


@pytest.fixture(scope="module")
def loaded(saved: dict[str, Path]) -> dict[str, Any]:
    return {name: load_pipeline(str(folder)) for name, folder in saved.items()}


def fresh(loaded: dict[str, Any], name: str, size: tuple[int, int] = (16, 16)) -> Any:
    model = wrap_pipeline(copy.deepcopy(loaded[name]))
    model.resize(*size)
    return model


def theirs(name: str, pipeline: Any, x: Tensor, size: tuple[int, int]) -> np.ndarray:
    """[N,H,W,3] images that diffusers' pipeline makes of these first latents."""
    options = FAMILIES[name].call(x)
    return pipeline(
        prompt=list(DRAW.prompts), num_inference_steps=STEPS, height=size[0], width=size[1], output_type="np", **options
    ).images


def ours(model: Any) -> np.ndarray:
    made = images(model, DRAW, make_sde(model, STEPS, 0.0), GUIDANCE, batch=2)
    return made.permute(0, 2, 3, 1).numpy()


@each_family
@pytest.mark.parametrize("size", SIZES, ids=["square", "wide"])
def test_images_are_those_of_diffusers(name, size, loaded):
    model, pipeline = fresh(loaded, name, size), tiny_flow.quiet(FAMILIES[name].pipeline())
    expected = theirs(name, pipeline, DRAW.noise(0, model.latent_shape), size)
    assert expected.shape == (2, *size, 3)
    assert expected.std() > 0.01
    assert np.abs(ours(model) - expected).max() < 1e-3


@each_family
def test_the_contract(name, loaded):
    assert check_model(lambda: fresh(loaded, name, (16, 24)), DRAW.prompts) == []


@each_family
def test_guidance_in_one_pass_is_that_of_two(name, loaded):
    model = fresh(loaded, name)
    cond, x = model.encode(DRAW.prompts, GUIDANCE), DRAW.noise(0, model.latent_shape)
    t = model.process.grid(STEPS, model.latent_shape).times[1].expand(2)
    with torch.no_grad():
        empty, full = (model.denoise(x, t, part) for part in (cond.unconditional(), cond.unguided()))
        found = model.denoise(x, t, cond)
    assert (empty - full).abs().max() > 1e-4
    assert torch.allclose(found, empty + GUIDANCE * (full - empty), atol=1e-4)


@each_family
@pytest.mark.parametrize("mode", ["lora", "full"])
def test_gradients_reach_exactly_what_is_trained(name, mode, loaded):
    model = fresh(loaded, name)
    model.tune(Tuning(mode=mode, rank=2))
    trained = model.weights.trainable()
    for key, parameter in trained.items():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.1)
    cond, x = model.encode(DRAW.prompts, 1.0), DRAW.noise(0, model.latent_shape)
    t = model.process.grid(STEPS, model.latent_shape).times[1].expand(2)
    model.predict(x, t, cond).square().sum().backward()
    network = getattr(model.pipeline, FAMILIES[name].network)
    learning = {key for key, parameter in network.named_parameters() if parameter.grad is not None}
    unused = set(trained) - learning
    assert learning <= set(trained)
    # Full: networks have weights that only other inputs reach, such as another patch size.
    assert len(unused) <= (0 if mode == "lora" else 4), unused
    for part in model.components.values():
        assert all(parameter.grad is None for parameter in part.parameters())


@each_family
def test_an_adapter_loads_into_diffusers_pipeline(name, loaded, tmp_path):
    """The image of our model with its adapter is that of a pipeline that has loaded its file."""
    model = fresh(loaded, name)
    base = ours(model)
    model.tune(Tuning(rank=2, alpha=3.0))
    random = torch.Generator().manual_seed(7)
    for key, parameter in sorted(model.weights.trainable().items()):
        if "lora_B" in key:
            parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=random))
    model.weights.save(tmp_path)
    pipeline = tiny_flow.quiet(FAMILIES[name].pipeline())
    pipeline.load_lora_weights(str(tmp_path))
    expected = theirs(name, pipeline, DRAW.noise(0, model.latent_shape), (16, 16))
    assert np.abs(ours(model) - expected).max() < 1e-3
    assert np.abs(base - expected).max() > 1e-3


@each_family
def test_a_whole_network_comes_back(name, loaded, tmp_path):
    model, other = fresh(loaded, name), fresh(loaded, name)
    model.tune(Tuning(mode="full"))
    with torch.no_grad():
        for parameter in model.weights.trainable().values():
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    model.weights.save(tmp_path / "model")
    assert (tmp_path / "model" / FAMILIES[name].network / "config.json").is_file()
    other.weights.load(tmp_path)
    assert np.abs(ours(model) - ours(other)).max() < 1e-5
    assert f"'model/{FAMILIES[name].network}'" in model.usage("'base'")


@each_family
def test_bfloat16_estimates_nearly_the_same_and_learns(name, loaded):
    """bfloat16 has 8 bits: estimates of a size of about 1 agree to some hundredths."""
    found = []
    for precision in ("fp32", "bf16"):
        model: Any = wrap_pipeline(copy.deepcopy(loaded[name]), precision)
        model.resize(16, 16)
        model.tune(Tuning(rank=2))
        x, cond = DRAW.noise(0, model.latent_shape), model.encode(DRAW.prompts, GUIDANCE)
        t = model.process.grid(STEPS, model.latent_shape).times[1].expand(2)
        x0 = model.denoise(x, t, cond)
        x0.sum().backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.weights.trainable().values())
        found.append(x0.detach())
    assert (found[0] - found[1]).abs().mean() < 0.05
    assert (found[0] - found[1]).abs().max() < 0.25
    assert not torch.equal(*found)


TYPES = ("ddim", "cps", "flow-sde", "dance-sde")


@each_family
def test_the_ratio_is_1_before_the_first_update(name, loaded):
    """For every noise schedule that the family has, at every step that has noise."""
    model = fresh(loaded, name)
    model.tune(Tuning(rank=2))
    cond = model.encode(DRAW.prompts, GUIDANCE)
    flow = is_flow(model.process.grid(STEPS, model.latent_shape))
    assert flow == (name not in ("sd", "sdxl"))
    for kind in TYPES if flow else TYPES[:2]:
        sde = make_sde(model, STEPS, 0.7, kind)
        rollout = replace(sample(model, cond, DRAW, sde, sde.stochastic()), advantage=torch.ones(2))
        with torch.no_grad():
            logp = Task(model, sde).log_prob(all_rows(rollout).transitions())
        assert (logp.reshape(2, -1) - rollout.logp).exp().sub(1).abs().max() < 1e-4, kind


@each_family
def test_text_encoders_are_loaded_for_new_prompts_alone(name, saved, tmp_path):
    """The weights are away when the model is loaded, and back before a prompt without kept states is asked for."""
    source = shutil.copytree(saved[name], tmp_path / "model")
    whole = load_model(str(source))
    whole.resize(16, 16)
    keep_prompt_states(whole, tmp_path / "kept", str(source), "fp32")
    expected, other = ours(whole), whole.encode(["bird"], 1.0)
    weights = list(source.glob("text_encoder*/*.safetensors"))
    for file in [*weights, *(tmp_path / "kept").rglob(f"{hashlib.sha256(b'bird').hexdigest()}.safetensors")]:
        file.rename(file.with_suffix(".away"))
    kept = kept_states(tmp_path / "kept", str(source), "fp32")
    assert kept is not None
    late = load_with_kept_states(str(source), kept)
    late.resize(16, 16)
    assert np.array_equal(ours(late), expected)
    encoders = {key: part for key, part in late.components.items() if key != "vae"}
    assert len(encoders) == len(weights)
    assert all(value.is_meta for part in encoders.values() for value in part.parameters())
    with pytest.raises(
        ModelError, match=r"kept has no states of the prompt 'bird', .*text_encoder\w* has no weights"
    ) as error:
        late.encode(["bird"], 1.0)
    assert "\n" not in str(error.value)
    for file in weights:
        file.with_suffix(".away").rename(file)
    found = late.encode(["bird"], 1.0)
    assert all(torch.equal(found[key], other[key]) for key in other.states)


@each_family
def test_a_model_on_the_meta_device(name, saved):
    """The same parameters and shapes as with weights."""
    model = load_meta_model(str(saved[name]))
    model.resize(16, 24)
    cond = model.encode(["a cat"], GUIDANCE)
    x = torch.zeros(1, *model.latent_shape, device="meta")
    assert model.predict(x, torch.zeros(1, dtype=torch.int64, device="meta"), cond).shape == x.shape
    assert model.decode(x).shape == (1, 3, 16, 24)
    model.tune(Tuning(rank=2))
    assert all(parameter.is_meta for parameter in model.weights.trainable().values())


SETTINGS: dict[str, dict[str, Any]] = {
    "rwr": {"advantage": Advantage(normalise="softmax")},
    "ppo": {"algorithm": PPO(value="conv")},
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return given.pairs(tmp_path_factory.mktemp("pairs"), 2)


MATRIX = [(name, algorithm) for name in FAMILIES for algorithm in ALGORITHMS if name != "sd3 without t5"]


def train_one_update(name, algorithm, loaded, pairs, tmp_path, eta):
    """One round of one update, which changes the adapters; returns its record."""
    options = SETTINGS.get(algorithm, {"algorithm": ALGORITHMS[algorithm]()})
    options = {"algorithm": ALGORITHMS[algorithm]()} | options
    if options["algorithm"].needs == "pairs":
        options["pairs"] = Pairs((str(pairs),))
    config = Config(
        model=str(tmp_path), prompts="ddpo-animals", reward="smooth:warmth", rounds=1,
        sampling=Sampling(
            steps=2, samples=2, per_prompt=2, batch=2, guidance=GUIDANCE, height=16, width=16,
            eta=eta,
        ),
        optimizer=Optimizer(lr=1e-3, updates=1, rows=50, clip_norm=1e9), tuning=Tuning(rank=2),
        evaluation=Evaluation(prompts=1, per_prompt=2, kl_images=0),
        **({"advantage": Advantage(normalise="round")} | options),
    )  # fmt: skip
    own = lambda source, *placed: wrap_pipeline(copy.deepcopy(loaded[name]), *placed)  # noqa: E731
    with mock.patch.object(setup, "load_model", own):
        session = setup.start(config, tmp_path / "run", State())
    session.display.interactive = False
    before = {key: value.detach().clone() for key, value in session.model.weights.trainable().items()}
    record = one_round(session)
    after = session.model.weights.trainable()
    assert record["updates"] == 1
    assert all(value.isfinite().all() for value in after.values())
    assert any(not torch.equal(before[key], after[key]) for key in before)
    return record


@pytest.mark.parametrize(("name", "algorithm"), MATRIX)
def test_every_algorithm_trains_every_family(name, algorithm, loaded, pairs, tmp_path):
    train_one_update(name, algorithm, loaded, pairs, tmp_path, eta=0.7)


@pytest.mark.parametrize("algorithm", [name for name, kind in ALGORITHMS.items() if kind.needs == "samples"])
def test_methods_that_learn_from_finished_images_need_no_noise(algorithm, loaded, pairs, tmp_path):
    """The ODE draws the images; both of its steps are learned from, where one without noise has no likelihood."""
    assert train_one_update("sd3", algorithm, loaded, pairs, tmp_path, eta=0.0)["window"] == 2


def test_the_embedded_guidance_is_an_input_of_the_network(loaded):
    """FLUX.1-dev: diffusers' default is 3.5, and another weight makes another image, apart from guidance."""
    model = fresh(loaded, "flux")
    assert model.embedded_guidance == 3.5
    before = ours(model)
    model.embedded_guidance = 7.0
    after = ours(model)
    pipeline = tiny_flow.quiet(tiny_flow.flux())
    call = FAMILIES["flux"].call(DRAW.noise(0, model.latent_shape)) | {"guidance_scale": 7.0}
    expected = pipeline(
        list(DRAW.prompts), num_inference_steps=STEPS, height=16, width=16, output_type="np", **call
    ).images  # fmt: skip
    assert np.abs(before - after).max() > 1e-4
    assert np.abs(after - expected).max() < 1e-3


def changed(folder: Path, copied: Path, file: str, **values: Any) -> str:
    """A copy of a model's folder with other values in one of its JSON files."""
    shutil.copytree(folder, copied)
    path = copied / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return str(copied)


def test_wrong_models_are_refused_in_one_sentence(saved, tmp_path):
    for number, (name, file, values, match) in enumerate(
        [
            ("sd3", "model_index.json", {"_class_name": "AuraFlowPipeline"}, "it is a AuraFlowPipeline; this version"),
            ("sd3", "model_index.json", {"text_encoder_2": [None, None]}, "names no text_encoder_2, but"),
            ("flux", "model_index.json", {"text_encoder_2": None}, "names no text_encoder_2, but None: expected T5Enc"),
            (
                "sd3",
                "scheduler/scheduler_config.json",
                {"_class_name": "DDIMScheduler"},
                "scheduler is a DDIMScheduler",
            ),
            ("sd3", "vae/config.json", {"scaling_factor": 0}, "says scaling_factor 0, but it must be a number above 0"),
            ("sd3", "vae/config.json", {"shift_factor": "a"}, "says shift_factor 'a', but it must be a number"),
            ("flux-2", "model_index.json", {"is_distilled": True}, "it is distilled to a few steps"),
        ]
    ):
        with pytest.raises(ModelError, match=match) as error:
            load_model(changed(saved[name], tmp_path / str(number), file, **values))
        assert "\n" not in str(error.value)


def test_few_step_flux_is_refused(tmp_path):
    tiny_flow.flux(guidance_embeds=False, use_dynamic_shifting=False, shift=1.0).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"it is distilled to a few steps, as FLUX.1-schnell .* give FLUX.1-dev"):
        load_model(str(tmp_path))


def test_sizes_that_a_family_cannot_make(loaded):
    model = fresh(loaded, "sd3")
    with pytest.raises(ModelError, match=r"sampling\.height is 12, but this model needs a multiple of 8"):
        model.resize(12, None)
    with pytest.raises(ModelError, match=r"sampling\.width is 72, but the positions that this model knows end at 64"):
        model.resize(None, 72)


def test_an_adapter_of_another_family_is_refused(loaded, tmp_path):
    model = fresh(loaded, "flux")
    model.tune(Tuning(rank=2))
    model.weights.save(tmp_path)
    for name in ("sd", "sdxl", "sd3"):
        with pytest.raises(ModelError, match=r"adapts the layer .*, which the model does not have"):
            fresh(loaded, name).weights.load(tmp_path)


def test_a_u_net_as_value_network_needs_a_u_net(loaded):
    with pytest.raises(ModelError, match=r"algorithm.value is unet, .* is a SD3Transformer2DModel: take conv or mlp"):
        value_network("unet", fresh(loaded, "sd3"))
