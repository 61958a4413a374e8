"""The bundled models by name, their folders, and the scripts that train them (scripts/bundled)."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from torch import nn
from transformers import CLIPTextModel

import tastemaker as tm
from tastemaker.cli.compared_models import recognised
from tastemaker.cli.evaluated import find_models
from tastemaker.cli.evaluation_options import Options, make_plan
from tastemaker.data.prompts import load_prompts
from tastemaker.drawings.scene import parse
from tastemaker.errors import ModelError, PromptError
from tastemaker.models import bundled, load_model
from tastemaker.models.bundled import ASSETS, BUNDLED, bundled_pipeline, folder_of

SCRIPTS = Path(__file__).parents[2] / "scripts/bundled"


def script(name: str, monkeypatch: pytest.MonkeyPatch):
    """A module of scripts/bundled, whose modules import each other as scripts do."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    for other in ("build", "training", name):
        sys.modules.pop(other, None)
    return importlib.import_module(name)


def test_a_bundled_name_stands_for_its_folder(tmp_path, monkeypatch):
    assert folder_of("bundled") == str(ASSETS / "bundled")
    assert folder_of("runwayml/bundled") == "runwayml/bundled"
    monkeypatch.setattr(bundled, "ASSETS", tmp_path)
    with pytest.raises(ModelError, match=r"missing at .*bundled-flow: .* or build it with `make bundled-flow`"):
        load_model("bundled-flow")
    (tmp_path / "bundled-pixel").mkdir()
    (tmp_path / "bundled-pixel/model_index.json").write_text("{}")
    assert folder_of("bundled-pixel") == str(tmp_path / "bundled-pixel")
    assert list(bundled.shipped()) == ["bundled", "bundled-pixel"]


@pytest.mark.parametrize("name", sorted(set(BUNDLED) - {"bundled"}))
def test_a_bundled_model_takes_at_most_8_megabytes(name):
    folder = ASSETS / name
    if not folder.exists():
        pytest.skip(f"{name} is not in this package yet")
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= 8_000_000


def test_a_training_that_was_interrupted_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    training = script("training", monkeypatch)

    def started(path: Path):
        torch.manual_seed(0)
        network = nn.Linear(3, 3)
        optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
        loss = lambda step: (network(torch.randn(4, 3)) - step % 2).square().mean()  # noqa: E731
        return training.Training(path, network, [optimizer], decay=0.9, every=2), loss

    whole, loss = started(tmp_path / "whole.pt")
    whole.run(loss, 5)
    whole.run(loss, 5, cool=4)
    for steps, cool in ((3, 0), (5, 0), (5, 1), (5, 4)):
        part, loss = started(tmp_path / "part.pt")
        part.run(loss, steps, cool=cool)
    assert (part.step, part.cooled) == (whole.step, whole.cooled) == (9, 4)
    for name in ("network", "average"):
        for one, other in zip(getattr(part, name).parameters(), getattr(whole, name).parameters(), strict=True):
            assert one.equal(other)
    # The last of four steps of cooling is made at a quarter of the rate, which the 9th of 100 steps still raises.
    assert part.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 * 9 / 100 / 4)


def test_the_text_encoders_of_the_flow_are_the_bundled_one_and_its_first_layer(monkeypatch):
    flow = script("flow", monkeypatch)
    ids = flow.new_tokenizer()(["a red star", ""], padding="max_length", return_tensors="pt").input_ids
    source = CLIPTextModel.from_pretrained(bundled_pipeline() / "text_encoder", dtype=torch.float32).eval()
    first, second = flow.new_text_encoders()
    with torch.no_grad():
        whole = source(ids, output_hidden_states=True)
        one, other = (encoder(ids, output_hidden_states=True) for encoder in (first, second))
    assert one.hidden_states[-2].equal(whole.hidden_states[-2])
    assert one.text_embeds.allclose(whole.pooler_output, atol=1e-6)
    assert other.hidden_states[-2].equal(whole.hidden_states[0])
    assert other.hidden_states[-1].allclose(whole.hidden_states[1], atol=1e-6)


def test_the_classes_of_the_pixel_model_are_colours_of_objects_with_captions_that_the_judge_reads(monkeypatch):
    pixel = script("pixel", monkeypatch)
    assert len(set(pixel.CLASSES)) == 64
    assert pixel.CLASSES[:2] == ["red circle", "red square"]
    assert pixel.caption("orange fish") == "an orange fish"
    for name in pixel.CLASSES:
        wanted = parse(pixel.caption(name))
        assert wanted == parse(name) is not None
        assert f"{wanted.things[0].colour} {wanted.things[0].kind}" == name


def test_the_flow_is_exported_as_a_pipeline_of_at_most_8_megabytes(tmp_path, monkeypatch):
    flow = script("flow", monkeypatch)
    network = flow.new_transformer()
    nn.init.normal_(network.proj_out.weight, std=0.1)
    torch.save({"average": network.state_dict()}, tmp_path / "state.pt")
    folder = flow.export(tmp_path, tmp_path / "state.pt")
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= 8_000_000
    pipeline = StableDiffusion3Pipeline.from_pretrained(
        folder, text_encoder_3=None, tokenizer_3=None, dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    image = pipeline(
        "a red star", latents=noise, num_inference_steps=1, guidance_scale=1.0, output_type="pt", height=32, width=32
    ).images
    # One step of a rectified flow from time 1: x_0 = noise - velocity, decoded by the bundled VAE.
    ids = flow.new_tokenizer()(["a red star"], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        seen = [encoder(ids, output_hidden_states=True) for encoder in flow.new_text_encoders()]
        states = torch.cat([one.hidden_states[-2] for one in seen], dim=-1)
        pooled = torch.cat([one.text_embeds for one in seen], dim=-1)
        states = torch.cat([states, torch.zeros(1, flow.ZERO_TOKENS, 256)], dim=1)
        x0 = noise - network(noise, states, pooled, torch.tensor([1000.0])).sample
        vae = flow.new_vae()
        expected = vae.decode(x0 / vae.config.scaling_factor).sample / 2 + 0.5
    torch.testing.assert_close(image, expected.clamp(0, 1), atol=5e-3, rtol=0)  # weights are kept in float16


def test_the_pixel_model_is_exported_with_its_classes_and_a_null_class(tmp_path, monkeypatch):
    pixel = script("pixel", monkeypatch)
    network = pixel.new_network()
    torch.save({"average": network.state_dict()}, tmp_path / "state.pt")
    folder = pixel.export(tmp_path, tmp_path / "state.pt")
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= 8_000_000
    model = load_model(str(folder))
    assert (model.classes["orange fish"], model.classes["an orange fish"], model.null) == ((15,), (15,), 64)
    sums, names = network.class_embedding, torch.tensor([15, 7, 14, 64])  # orange fish, red fish, orange house, none
    fish, house, none = sums.kinds[7], sums.kinds[6], sums.kinds[8]
    red, orange, no_colour = sums.colours[0], sums.colours[1], sums.colours[8]
    assert sums(names).equal(torch.stack([fish + orange, fish + red, house + orange, none + no_colour]))
    x, time = torch.randn(2, 3, 32, 32), torch.tensor([400, 700])
    found = model.predict(x, time, model.encode(["an orange fish", ""], 1.0))
    with torch.no_grad():
        expected = network(x, time, torch.tensor([15, 64])).sample
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=0)  # weights are kept in float16
    model.check(load_prompts("bundled-single").prompts)
    with pytest.raises(PromptError, match="names of its classes"):
        model.check(["two red hearts"])


def test_every_bundled_model_is_known_by_name_and_judged(tmp_path, monkeypatch):
    pixel = script("pixel", monkeypatch)
    torch.save({"average": pixel.new_network().state_dict()}, tmp_path / "state.pt")
    pixel.export(tmp_path, tmp_path / "state.pt").rename(tmp_path / "bundled-pixel")
    monkeypatch.setattr(bundled, "ASSETS", tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/bundled-pixel").mkdir()  # a folder of the name does not hide the model
    monkeypatch.chdir(tmp_path / "elsewhere")

    prompts, brightness = ["a red star", "blue fish"], lambda images, prompts: images.mean((1, 2, 3))
    found = tm.evaluate("bundled-pixel", prompts, brightness, n=1, steps=2, guidance=2.0)
    assert found.samples.images[0].size == (32, 32)
    assert set(found.correct) <= {True, False}
    assert found.metrics["judge/correct"] == sum(found.correct) / 2
    elsewhere = tm.evaluate(str(tmp_path / "bundled-pixel"), prompts, brightness, n=1, steps=2, guidance=2.0)
    assert elsewhere.rewards[next(iter(found.rewards))].equal(found.rewards[next(iter(found.rewards))])
    assert "judge/correct" not in elsewhere.metrics

    (given,) = find_models(["bundled-pixel"], None)
    assert given.evaluated.model == "bundled-pixel"
    assert (
        "judge"
        in make_plan(Options(["bundled-pixel"], prompts={"known": "bundled-eight"}, rewards=["colourfulness"])).metrics
    )
    assert recognised("bundled-pixel").model == "bundled-pixel"
