"""The examples run, with settings small enough for a test."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tastemaker as tm
import tiny
from tastemaker.data.images import to_tensor
from tastemaker.drawings.draw import render
from tastemaker.drawings.scene import Scene, Thing
from tastemaker.rewards.jpeg import jpeg_compressibility

EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = [
    "sampling.steps=3", "sampling.samples=4", "sampling.per_prompt=2", "sampling.batch=4", "optimizer.updates=2",
    "optimizer.rows=8", "evaluation.prompts=1", "evaluation.per_prompt=2", "evaluation.kl_images=0",
]  # fmt: skip


@pytest.fixture
def example(tmp_path, monkeypatch):
    """Imports an example as a module of its own name, which config files can name, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def load(name):
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load


def test_quickstart(example, capsys):
    run = example("quickstart").main([*TINY, "--rounds", "1"])
    assert run.folder == Path("runs/ddpo-1")
    assert "round 1: mean reward" in capsys.readouterr().out


def test_quickstart_notebook(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = json.loads((EXAMPLES / "quickstart.ipynb").read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in cells if cell["cell_type"] == "code")
    space = {"__name__": "__main__"}
    for number, text in enumerate(code):
        exec(compile(text, f"cell {number}", "exec"), space)
        if "SETTINGS" in text and "ROUNDS" in text and number == 0:  # the first cell's settings, made small
            space |= {"SETTINGS": TINY, "ROUNDS": 1, "STEPS": 3}
    assert len(space["run"].metrics()) == 1
    assert (tmp_path / "images" / "sheet.png").is_file()


def test_custom_reward(example):
    run = example("custom_reward").main([*TINY, "--rounds", "1"])
    assert run.config.reward == "in-memory:darkness"
    assert -1 <= run.metrics()[0]["reward/mean"] <= 0
    assert (run.folder / "after.png").is_file()


def test_leave_one_out_by_hand(example):
    """Prompt 0 has rewards 1, 2, 6; prompt 1 has 5 alone."""
    found = example("custom_algorithm").leave_one_out(torch.tensor([1.0, 5.0, 2.0, 6.0]), [0, 1, 0, 0])
    assert found.tolist() == [1 - 4, 0, 2 - 3.5, 6 - 1.5]


def test_custom_algorithm_is_saved_and_goes_on(example):
    module = example("custom_algorithm")
    settings = [*TINY, "sampling.per_prompt=2", "optimizer.updates=1"]
    whole = module.main([*settings, "--rounds", "2", "--out", "whole"])
    assert "name: custom_algorithm:Rloo" in (whole.folder / "config.yaml").read_text()
    assert whole.config.algorithm == module.Rloo()

    half = module.main([*settings, "--rounds", "1", "--out", "half"])
    assert tm.resume(half, rounds=2).metrics()[1]["loss"] == whole.metrics()[1]["loss"]
    name = "adapter/pytorch_lora_weights.safetensors"
    found, expected = load_file(half.folder / name), load_file(whole.folder / name)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert any(values.any() for key, values in expected.items() if "lora_B" in key or "lora.up" in key)


def test_the_single_file_trains_the_same_weights_as_the_library(example, tmp_path):
    module = example("ddpo_single_file")
    prompts = ("cat", "dog", "fish")
    s = module.Settings(
        rounds=2,
        steps=4,
        samples=8,
        per_prompt=2,
        batch=4,
        updates=2,
        rows=12,
        lr=1e-3,
        clip=1e-3,
        min_count=2,
        rank=4,
        clip_norm=1e-4,
        advantage_clip=0.5,
    )
    module.train(tiny.pipeline(), prompts, jpeg_compressibility, s).weights.save(tmp_path / "single")

    config = tm.preset(
        "ddpo-compressibility", "sampling.steps=4", "sampling.samples=8", "sampling.per_prompt=2", "sampling.batch=4",
        "optimizer.updates=2", "optimizer.rows=12", "optimizer.lr=1e-3", "optimizer.warmup=0",
        "optimizer.first_share=1", "algorithm.clip=1e-3", "advantage.min_count=2", "tuning.rank=4",
        "optimizer.clip_norm=1e-4", "advantage.clip=0.5",
        "evaluation.prompts=1", "evaluation.per_prompt=1", "evaluation.kl_images=0",
    )  # fmt: skip
    run = tm.train(config, tiny.pipeline(), prompts=list(prompts), rounds=2, out=tmp_path / "library")
    name = "pytorch_lora_weights.safetensors"
    found, expected = load_file(tmp_path / "single" / name), load_file(run.adapter / name)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    # Both have learned: lora_B is 0 before the first update.
    assert any(values.any() for key, values in expected.items() if "lora_B" in key or "lora.up" in key)
    assert len((EXAMPLES / "ddpo_single_file.py").read_text().splitlines()) <= 150


def test_hidden_tastes(example):
    """A red star of radius 0.31 on a ground of each worth, with a prompt that it shows, or not."""
    taste = example("hidden_taste")
    grounds = {"yellow": 1.5, "orange": 0.5, "white": 0.3, "green": 0.0}
    scenes = [Scene((Thing("star", "red", 0.5, 0.5, 0.31),), ground) for ground in grounds]
    x = torch.stack([to_tensor(render(scene)) for scene in scenes])
    found = taste.parts(x, ["a red star"] * 4)
    assert found["ground"].tolist() == pytest.approx(list(grounds.values()))
    assert found["prompt"].tolist() == [1.0] * 4
    assert found["size"].abs().max() < 0.2
    # jpeg_compressibility is minus the kilobytes of the image.
    detail = [4 * (-float(negative) - 1.16) for negative in jpeg_compressibility(x, ["a red star"] * 4)]
    assert found["detail"].tolist() == pytest.approx(detail, abs=1e-5)
    ground, detail, size = found["ground"], found["detail"], found["size"]
    assert taste.utility(x, ["a red star"] * 4).tolist() == pytest.approx((ground + detail + size + 1).tolist())
    assert taste.utility(x, ["a green circle"] * 4).tolist() == pytest.approx((ground + detail + size).tolist())
    weight = torch.tensor([-1.5, 1.5, 1.5, 1.5])
    liked = taste.calm_on_yellow(x, ["a red star"] * 4)
    assert liked.tolist() == pytest.approx((ground + weight * detail + size + 1).tolist())
