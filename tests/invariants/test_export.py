"""`tastemaker export`: what is written acts in a fresh process, by diffusers alone, as the run's own adapter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_runs import words

import tastemaker as tm
import tiny
from forked import Child, finish
from tastemaker.cli.main import main
from tastemaker.models import adapter_files, load_model
from tastemaker.models.lora import WEIGHTS

SHORT = ["--rounds", "2", "evaluation.every=1", "checkpoint.keep=4", "over_optimisation.keep_best=reward/mean",
         "tuning.alpha=2", "optimizer.lr=1e-2"]  # fmt: skip


@pytest.fixture(scope="module")
def run(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "run"
    assert main(words(checkpoint, folder, *SHORT)) == 0
    return folder


@pytest.fixture(scope="module")
def full(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "full"
    assert main(words(checkpoint, folder, "--rounds", "1", "tuning.mode=full")) == 0
    return folder


def adapter(run, name="adapter"):
    return adapter_files.read(run / name, load_model(str(checkpoint_of(run))).weights.network)


def checkpoint_of(run):
    return yaml.safe_load((run / "config.yaml").read_text())["model"]


def same(one, other):
    assert one.keys() == other.keys()
    for name, factors in other.items():
        assert one[name].a.equal(factors.a)
        assert one[name].b.equal(factors.b)
        assert one[name].scale == factors.scale


def drawn(checkpoint: str, loaded: str, out: str) -> None:
    """Images of a pipeline with an adapter that diffusers has loaded; in a process of its own."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(checkpoint)
    pipe.set_progress_bar_config(disable=True)
    if loaded:
        path = Path(loaded)
        pipe.load_lora_weights(path.parent, weight_name=path.name)
    images = pipe(["a cat", "a dog"], num_inference_steps=3, guidance_scale=2.0, output_type="pt",
                  generator=torch.Generator().manual_seed(0)).images  # fmt: skip
    save_file({"images": images.contiguous()}, out)


def in_a_fresh_process(run, file, folder):
    out = folder / f"{file.stem if file else 'base'}-{len(list(folder.iterdir()))}.images"
    finish(Child(drawn, checkpoint_of(run), str(file or ""), str(out), log=folder / "log.txt"))
    return load_file(out)["images"]


def test_exported_files_give_the_runs_own_images_in_a_fresh_process(run, tmp_path):
    """Both forms that diffusers reads, each by its own loader; ComfyUI's is read back by ours, to the bit."""
    own = in_a_fresh_process(run, run / "adapter" / WEIGHTS, tmp_path)
    base = in_a_fresh_process(run, None, tmp_path)
    assert (own - base).abs().max() > 1e-3
    for form in ("diffusers", "kohya"):
        file = tmp_path / f"{form}.safetensors"
        assert main(["export", str(run), "--format", form, "--out", str(file)]) == 0
        assert torch.equal(in_a_fresh_process(run, file, tmp_path), own), form
    assert main(["export", str(run), "--format", "comfyui", "--out", str(tmp_path / "comfyui")]) == 0
    network = load_model(checkpoint_of(run)).weights.network
    same(adapter_files.read(tmp_path / "comfyui" / "run.safetensors", network), adapter(run))


def test_forms_and_precisions(run, tmp_path):
    names = {}
    for form in ("diffusers", "kohya", "comfyui"):
        made = tm.export(run, tmp_path / form, format=form, precision="fp16")
        with safe_open(made.weights, "pt") as file:
            names[form] = min(file.keys())
            kinds = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
        assert kinds == {"F16"}
        if form != "diffusers":
            assert metadata["ss_network_dim"] == "4"
            assert metadata["ss_network_alpha"] == "2"
            assert metadata["ss_base_model_version"] == "sd_v1"
            assert metadata["ss_output_name"] == "run"
            assert metadata["ss_num_epochs"] == "2"
            assert metadata["ss_learning_rate"] == "0.01"
    stem = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k"
    assert names == {
        "diffusers": f"unet.{stem}.lora_A.weight",
        "kohya": f"lora_unet_{stem.replace('.', '_')}.alpha",
        # One block of one layer: input_blocks.0 is conv_in, and 1 its resnet and attention.
        "comfyui": "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_k.alpha",
    }


def test_checkpoint_chooses_the_weights(run, tmp_path):
    best = json.loads((run / "best/best.json").read_text())["round"]
    read = lambda path: adapter_files.read(path, load_model(checkpoint_of(run)).weights.network)  # noqa: E731
    found = {which: read(tm.export(run, tmp_path / str(which), checkpoint=which).weights) for which in (1, 2, "best")}
    same(found[2], adapter(run))
    same(found["best"], found[best] if best else adapter(run, "best"))
    name = next(iter(found[1]))
    assert not found[1][name].b.equal(found[2][name].b)
    cards = {which: (tmp_path / str(which) / "README.md").read_text() for which in (1, "best")}
    assert "| rounds | 1 |" in cards[1]
    assert f"| rounds | {best} (the best by reward/mean) |" in cards["best"]


def test_the_card_says_what_was_trained_and_shows_it(run, tmp_path):
    made = tm.export(tm.load_run(run), tmp_path / "out")
    text = made.card.read_text()
    _, head, body = text.split("---\n", 2)
    front = yaml.safe_load(head)
    assert "license" not in front
    assert "# license:" in head
    assert front["library_name"] == "diffusers"
    assert "lora" in front["tags"]
    assert "base_model" not in front  # a folder on this machine is no name on the hub
    assert len(front["widget"]) == 4
    for entry in front["widget"]:
        assert entry["text"] in body
        drawn_there = run / "samples" / "round-0002"
        assert (tmp_path / "out" / entry["output"]["url"]).read_bytes() in [
            file.read_bytes() for file in drawn_there.iterdir()
        ]
    # Two prompts with two images each: both prompts come before second images.
    assert len({entry["text"] for entry in front["widget"][:2]}) == 2
    for said in (
        "`jpeg-compressibility`", "`ddpo-animals`", "| method | ddpo |", "rank 4", "4 steps", "load_lora_weights('.')",
        checkpoint_of(run),
    ):  # fmt: skip
        assert said in body, said
    evaluations = {one["evaluation"]: one["eval/reward/mean"] for one in tm.load_run(run).evaluations()}
    assert f"{evaluations[0]:.4g} before, {evaluations[2]:.4g} after" in body


def test_a_file_has_its_card_beside_it(run, tmp_path):
    assert main(["export", str(run), "--format", "kohya", "--out", str(tmp_path / "cats.safetensors")]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cats-images", "cats.md", "cats.safetensors"]
    assert "`cats.safetensors`" in (tmp_path / "cats.md").read_text()


def test_a_whole_network_is_exported_for_diffusers_alone(full, tmp_path, capsys):
    from diffusers import UNet2DConditionModel

    made = tm.export(full, tmp_path / "out")
    loaded = UNet2DConditionModel.from_pretrained(made.weights)
    right = UNet2DConditionModel.from_pretrained(full / "model" / "unet")
    assert all(value.equal(right.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert "UNet2DConditionModel.from_pretrained('unet')" in made.card.read_text()
    by_round = tm.export(full, tmp_path / "round", checkpoint=1)
    again = UNet2DConditionModel.from_pretrained(by_round.weights)
    assert all(value.equal(right.state_dict()[name]) for name, value in again.state_dict().items())
    assert main(["export", str(full), "--format", "kohya", "--out", str(tmp_path / "no")]) == 2
    assert "whole network (tuning.mode = full), but --format kohya is a form of adapters" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_an_adapter_in_pixel_space_is_exported_in_pefts_form(tmp_path, capsys):
    tiny.pixels(channels=3).save_pretrained(tmp_path / "pixels")
    run = tmp_path / "run"
    assert main(words(tmp_path / "pixels", run, "--rounds", "1", "sampling.guidance=1")) == 0
    made = tm.export(run, tmp_path / "out")
    assert made.weights.name == "adapter_model.safetensors"
    assert (tmp_path / "out" / "adapter_config.json").is_file()
    assert main(["export", str(run), "--format", "comfyui"]) == 2
    assert "of which --format comfyui has no names here: use --format diffusers" in capsys.readouterr().err
    assert main(["export", str(run), "--out", str(tmp_path / "x.safetensors")]) == 2
    assert "is two files: give a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--checkpoint", "7"], "has no checkpoint of round 7; there are those of 0, 1, 2"),
        (["--checkpoint", "newest"], "must be last, best, or the number of a round"),
        (["--format", "webui"], "webui"),
    ],
)
def test_wrong_input(run, tmp_path, capsys, more, said):
    assert main(["export", str(run), "--out", str(tmp_path / "out"), *more]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_not_overwritten(run, tmp_path, capsys):
    (tmp_path / "a.md").write_text("mine")
    assert main(["export", str(run), "--out", str(tmp_path / "a.safetensors")]) == 2
    assert f"{tmp_path / 'a.md'} exists already" in capsys.readouterr().err
    assert main(["export", str(run), "--out", str(tmp_path)]) == 2
    assert main(["export"]) == 2
    assert "give the folder of a run" in capsys.readouterr().err


def test_dry_run_writes_nothing(run, tmp_path, capsys):
    assert main(["export", str(run), "--format", "kohya", "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    # Blocks with attention: one going down, the middle, two going up; in each two attentions of four projections.
    assert "an adapter of 32 layers" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
