"""Each setting of the sampler reaches the model, in every command and function of Python that makes images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel

import tastemaker as tm
import tiny
import tiny_flow
from tastemaker.cli import ask, compare_create, evaluate, label_create, mix, sample
from tastemaker.config.schema import Config, Sampling
from tastemaker.diffusion.sampler import LocalSampler
from tastemaker.errors import ConfigError, ModelError
from tastemaker.evaluation.evaluation_plan import EvaluationPlan
from tastemaker.evaluation.model_settings import set_up
from tastemaker.iteration.labels import sample_tasks
from tastemaker.iteration.settings import Loop
from tastemaker.labelling.sources import Policy
from tastemaker.models import wrap_pipeline
from tastemaker.models.tuning import Tuning

GIVEN = Sampling(
    steps=3, guidance=2.5, embedded_guidance=7.0, negative_prompt="blurry", eta=0.4, sde_type="flow-sde", height=16,
    width=24,
)  # fmt: skip
NAMES = ("steps", "guidance", "embedded_guidance", "negative_prompt", "eta", "sde_type", "height", "width")
ARGUMENTS: dict[str, Any] = {name: vars(GIVEN)[name] for name in NAMES}
FLAGS = [word for name in NAMES for word in (f"--{name.replace('_', '-')}", str(ARGUMENTS[name]))]


class Reached(Exception):
    """Sampling began."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small FLUX with an adapter and a run of it."""
    place = tmp_path_factory.mktemp("flux")
    tiny_flow.flux().save_pretrained(place / "model")
    model = wrap_pipeline(tiny_flow.flux())
    model.tune(Tuning(rank=2), 0)
    (place / "adapter").mkdir()
    model.weights.save(place / "adapter")
    (place / "prompts.txt").write_text("a cat\ntwo dogs\n")
    return place


@pytest.fixture
def seen(monkeypatch, tmp_path) -> dict[str, Any]:
    """What the sampler was given; sampling ends with its first step."""
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    forward = FluxTransformer2DModel.forward

    def network(self, *args, **options):
        found["embedded_guidance"] = options["guidance"].unique().item()
        return forward(self, *args, **options)

    def sampled(self, draw, cond, keep=(), on_step=None):
        x = draw.noise(0, self.model.latent_shape)
        self.model.denoise(x, torch.full((len(x),), 500.0), cond)
        found.update(
            steps=len(self.sde), guidance=cond.guidance, eta=self.sde.eta, sde=self.sde.sde_type,
            size=tuple(4 * side for side in self.model.latent_shape[1:]), away=cond.states["pooled"][cond.negative],
        )  # fmt: skip
        raise Reached

    monkeypatch.setattr(FluxTransformer2DModel, "forward", network)
    monkeypatch.setattr(LocalSampler, "__call__", sampled)
    return found


def command(module: Any, *words: object) -> None:
    module.run([str(word) for word in words] + FLAGS)


CALLS = {
    "sample": lambda at: command(sample, "--model", at / "model", "--prompt", "a cat"),
    "sample, adapter at some steps": lambda at: command(
        sample, "--model", at / "model", "--adapter", at / "adapter", "--adapter-steps", "0:1", "--prompt", "a cat"
    ),
    "label create": lambda at: command(
        label_create, "new", "--model", at / "model", "--prompts", at / "prompts.txt"
    ),
    "compare create": lambda at: command(
        compare_create, "new", f"a={at}/model", f"b={at}/adapter", "--base", at / "model", "--prompts",
        at / "prompts.txt",
    ),
    "ask": lambda at: command(ask, "bundled", at / "model", "--take", 1, "--n", 1),
    "evaluate": lambda at: command(
        evaluate, at / "model", "--prompts", at / "prompts.txt", "--rewards", "jpeg-compressibility"
    ),
    "mix": lambda at: command(
        mix, at / "adapter", "--model", at / "model", "--prompts", at / "prompts.txt", "--reward",
        "jpeg-compressibility", "--alpha", 1,
    ),
    "iterate": lambda at: sample_tasks(
        Path("new"), Loop(tasks=1), Config(model=f"{at}/model", prompts=f"{at}/prompts.txt", sampling=GIVEN), 0,
        [Policy("a")], print,
    ),
    "tm.sample": lambda at: tm.sample(at / "model", ["a cat"], **ARGUMENTS),
    "tm.sample of a pipeline": lambda at: tm.sample(tiny_flow.flux(), ["a cat"], **ARGUMENTS),
    "tm.evaluate": lambda at: tm.evaluate(at / "model", ["a cat"], "jpeg-compressibility", **ARGUMENTS),
    "tm.evaluate_models": lambda at: tm.evaluate_models(
        at / "model", prompts={"own": ["a cat"]}, rewards="jpeg-compressibility", **ARGUMENTS
    ),
    "tm.label.create": lambda at: tm.label.create("new", model=at / "model", prompts=["a cat"], **ARGUMENTS),
    "tm.label.create of a pipeline": lambda at: tm.label.create(
        "new", model=tiny_flow.flux(), prompts=["a cat"], **ARGUMENTS
    ),
    "tm.compare.create": lambda at: tm.compare.create(
        "new", {"a": at / "model", "b": tiny_flow.flux()}, prompts=["a cat"], **ARGUMENTS
    ),
    "tm.compare.create of a pipeline": lambda at: tm.compare.create(
        "new", {"a": tiny_flow.flux(), "b": at / "model"}, prompts=["a cat"], **ARGUMENTS
    ),
    "tm.ask": lambda at: tm.ask("bundled", at / "model", take=1, n=1, **ARGUMENTS),
    "tm.ask of a pipeline": lambda at: tm.ask("bundled", tiny_flow.flux(), take=1, n=1, **ARGUMENTS),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_every_setting_reaches_the_model(name, folder, seen):
    with pytest.raises(Reached):
        CALLS[name](folder)
    blurry = wrap_pipeline(tiny_flow.flux()).encode(["blurry"], 1.0)["pooled"][0]
    assert torch.equal(seen.pop("away"), blurry)
    assert seen == {
        "steps": 3, "guidance": 2.5, "embedded_guidance": 7.0, "eta": 0.4, "sde": "flow-sde", "size": (16, 24)
    }  # fmt: skip


DRY = {
    "sample": lambda at: sample.run(["--model", at, "--prompt", "a cat", "--embedded-guidance", "7", "--dry-run"]),
    "label create": lambda at: label_create.run(
        ["new", "--model", at, "--prompts", "bundled-pair", "--embedded-guidance", "7", "--dry-run"]
    ),
    "compare create": lambda at: compare_create.run(
        ["new", f"a={at}", "b=bundled", "--prompts", "bundled-pair", "--embedded-guidance", "7", "--dry-run"]
    ),
    "ask": lambda at: ask.run(["bundled", at, "--embedded-guidance", "7", "--dry-run"]),
    "evaluate": lambda at: evaluate.run(
        [at, "--prompts", "bundled-pair", "--rewards", "jpeg-compressibility", "--embedded-guidance", "7", "--dry-run"]
    ),
}


@pytest.mark.parametrize("name", DRY)
def test_a_dry_run_refuses_embedded_guidance_of_a_network_without(name, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="the embedded guidance is 7, but the network of this model takes no guidance"):
        DRY[name](str(checkpoint))


def test_what_is_left_out_is_the_model_s_own():
    model = wrap_pipeline(tiny_flow.flux())
    shape = model.latent_shape
    set_up(model, Sampling())
    assert (model.embedded_guidance, model.negative_prompt, model.latent_shape) == (3.5, "", shape)
    assert wrap_pipeline(tiny.pipeline()).embedded_guidance is None


def test_what_is_left_out_is_the_model_s_own_after_other_settings_too():
    model = wrap_pipeline(tiny_flow.flux())
    set_up(model, Sampling(embedded_guidance=7.0, negative_prompt="blurry"))
    assert (model.embedded_guidance, model.negative_prompt) == (7.0, "blurry")
    set_up(model, Sampling())
    assert (model.embedded_guidance, model.negative_prompt) == (3.5, "")


def test_images_and_records_of_an_evaluation_and_a_benchmark_depend_on_it():
    """Else the folder of other images would be gone on with."""
    from tastemaker.question_benchmarks.sampling import identity_of

    plain = replace(GIVEN, embedded_guidance=None)
    assert identity_of("m", None, GIVEN) == {
        "model": "m", "adapter": None, "height": 16, "width": 24, "negative_prompt": "blurry", "embedded_guidance": 7.0
    }  # fmt: skip
    assert "embedded_guidance" not in identity_of("m", None, plain)
    plans = [EvaluationPlan((), (), one, {}, (), "fp32").arguments() for one in (GIVEN, plain)]
    assert plans[0] | {"embedded_guidance": None} == plans[1] != plans[0]


def test_wrong_numbers_are_named_as_python_has_them():
    cases: list[tuple[dict[str, Any], str]] = [
        ({"eta": -1}, r"^eta is -1, but must be at least 0"),
        ({"embedded_guidance": float("inf")}, r"^embedded_guidance is inf, but must be finite"),
        ({"guidance": 1.0, "negative_prompt": "x"}, r"^negative_prompt is 'x', but the guidance is 1"),
        ({"steps": 1001}, r"^steps is 1001, but the schedule has only 1000"),
    ]
    for wrong, message in cases:
        with pytest.raises(ConfigError, match=message):
            tm.label.create("new", model="bundled", prompts=["a star"], **wrong)
