"""Stopped and resumed runs are the uninterrupted ones with settings by which a model is not just loaded and adapted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_runs import metrics, words

import tiny
from every_setting import drift
from tastemaker.cli.main import main
from tastemaker.models.latent_unet import LatentUNet
from tastemaker.models.prompt_states import PromptStates
from tastemaker.models.stable_diffusion import SD
from tastemaker.models.tuning import Tuning

SMALL = ["sampling.steps=2", "sampling.samples=4", "evaluation.prompts=1", "evaluation.kl_images=0"]


def train(model: Path, out: Path, rounds: int, *more: str) -> Path:
    assert main(words(model, out, *SMALL, *more, "--rounds", str(rounds))) == 0
    return out


def resume(run: Path) -> Path:
    assert main(["resume", str(run), "--rounds", "2"]) == 0
    return run


def require_same(resumed: Path, whole: Path) -> None:
    """Weights, the optimizer's state, all else that is kept, and the figures of the rounds."""
    one, two = (run / "checkpoints/step-000002" for run in (resumed, whole))
    for name in ("weights.safetensors", "optimizer.safetensors"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    assert json.loads((one / "state.json").read_text()) == json.loads((two / "state.json").read_text())
    rounds = lambda run: [record for record in metrics(run) if "round" in record]  # noqa: E731
    assert rounds(resumed) == rounds(whole)
    assert [record["round"] for record in rounds(whole)] == [1, 2]


def adapter(folder: Path, seed: int) -> Path:
    """An adapter that changes the images."""
    made = LatentUNet(SD, tiny.pipeline())
    made.tune(Tuning(rank=2), seed)
    drift(made)
    made.weights.save(folder)
    return folder


def test_an_adapter_from_a_file_on_frozen_ones(checkpoint, tmp_path):
    under, start = adapter(tmp_path / "under", 1), adapter(tmp_path / "start", 2)
    more = [f"tuning.frozen_adapters={under}", "tuning.frozen_weights=0.5", f"tuning.start_from={start}"]
    whole = train(checkpoint, tmp_path / "whole", 2, *more)
    cut = train(checkpoint, tmp_path / "cut", 1, *more)
    # Its values are those of the checkpoint from now on: the file only says which layers it has.
    values = start / "pytorch_lora_weights.safetensors"
    before = load_file(cut / "checkpoints/step-000001/weights.safetensors")
    assert not any(value.equal(before[name]) for name, value in load_file(values).items() if name in before)
    require_same(resume(cut), whole)


@pytest.fixture
def computed(monkeypatch) -> list[list[str]]:
    """The prompts that text encoders are asked for, by call."""
    asked: list[list[str]] = []
    made = PromptStates.__init__

    def listening(self: PromptStates, compute: Any) -> None:
        made(self, lambda prompts: asked.append(prompts) or compute(prompts))

    monkeypatch.setattr(PromptStates, "__init__", listening)
    return asked


def test_prompt_states_on_disk_in_place_of_the_text_encoder(tmp_path, computed, capsys):
    """With two prompts, all of which the first round has; its text encoder's weights are then away."""
    model, prompts = tiny.folder(tmp_path / "model"), tmp_path / "prompts.txt"
    prompts.write_text("a cat\na dog\n")
    more = ["memory.prompt_states=true", "--prompts", str(prompts)]
    whole = train(model, tmp_path / "whole", 2, *more)
    cut = train(model, tmp_path / "cut", 1, *more)
    weights = model / "text_encoder/model.safetensors"
    weights.rename(tmp_path / "away")
    computed.clear()
    lost = shutil.copytree(cut, tmp_path / "lost")
    require_same(resume(cut), whole)
    assert not computed
    for file in (lost / "prompt_states").rglob("*.safetensors"):
        file.unlink()
    capsys.readouterr()
    assert main(["resume", str(lost), "--rounds", "2"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(f"tastemaker: {lost}/prompt_states has no states of the prompt '', for which the text enc")
    assert said.endswith("text_encoder has no weights: expected safetensors as `save_pretrained` of diffusers writes")
    (tmp_path / "away").rename(weights)
    require_same(resume(lost), whole)
    assert computed


def test_prompt_states_on_disk_with_new_prompts(checkpoint, tmp_path, computed):
    """The second round has prompts of its own, for which the text encoder is loaded."""
    whole = train(checkpoint, tmp_path / "whole", 2, "memory.prompt_states=true")
    cut = train(checkpoint, tmp_path / "cut", 1, "memory.prompt_states=true")
    known = [prompt for part in computed for prompt in part]
    computed.clear()
    require_same(resume(cut), whole)
    new = [prompt for part in computed for prompt in part]
    assert new
    assert not set(new) - set(known)  # the whole run had them too
    assert len(new) == len(set(new))


def test_base_weights_in_4_bits(checkpoint, tmp_path):
    pytest.importorskip("bitsandbytes", reason="needs the extra eight-bit")
    whole = train(checkpoint, tmp_path / "whole", 2, "tuning.base_weights=nf4")
    require_same(resume(train(checkpoint, tmp_path / "cut", 1, "tuning.base_weights=nf4")), whole)
    found = load_file(whole / "checkpoints/step-000002/weights.safetensors")
    assert all(value.dtype == torch.float32 for value in found.values())  # the adapters alone
