"""Files of weights are read with a torch that reads them safely, or not at all."""

import pytest
import torch
from torch.torch_version import TorchVersion

import clips
import tiny
from tastemaker.cli.main import main
from tastemaker.errors import ModelError, RewardError
from tastemaker.models import load_model
from tastemaker.rewards.learned.weights import read_weights
from tastemaker.rewards.registry import load_reward
from tastemaker.safe_torch import OLDEST, require_safe_torch


@pytest.fixture(params=["2.5.1", "2.6.0+cu124", "2.9.1", "2.10.0a0"])
def old(request, monkeypatch):
    monkeypatch.setattr(torch, "__version__", TorchVersion(request.param))
    return request.param


def test_an_old_torch_reads_no_weights_of_others(old, tmp_path):
    """CVE-2025-32434 below 2.6, CVE-2026-24747 below 2.10: `weights_only=True` is no protection."""
    said = rf"is not read with torch {old.split('+')[0]}.*install torch 2\.10 or newer"
    torch.save({"a": torch.zeros(1)}, tmp_path / "weights.pt")
    with pytest.raises(RewardError, match=said):
        read_weights(tmp_path / "weights.pt", "mine")
    path = clips.open_clip_file(tmp_path, "HPS_v2_compressed.pt")
    for name in (
        f"hps-v2:{path}",
        f"clip-score:{path}",
        f"image-reward:{tmp_path / 'weights.pt'}",
        f"aesthetic:{path}",
    ):
        with pytest.raises(RewardError, match=said):
            load_reward(name)
    with pytest.raises(ModelError, match=said):
        load_model(str(tiny.folder(tmp_path / "sd")))


def test_what_holds_nothing_but_tensors_is_read(old, tmp_path):
    clips.open_clip_file(tmp_path, "open_clip_model.safetensors")
    assert read_weights(tmp_path / "open_clip_model.safetensors", "mine")


@pytest.mark.parametrize("version", ["2.10.0", "2.10.1+cpu", "2.13.0", "3.0"])
def test_newer_ones_read(version, monkeypatch):
    monkeypatch.setattr(torch, "__version__", TorchVersion(version))
    require_safe_torch("it", RewardError)


def test_doctor_reports_an_old_torch(monkeypatch, capsys):
    from tastemaker.cli import doctor

    monkeypatch.setattr(doctor, "version", lambda name: "2.9.1" if name == "torch" else "99")
    assert main(["doctor"]) == 1
    assert "torch 2.9.1 is too old: needs 2.10 or newer" in capsys.readouterr().out
    assert doctor.REQUIRED["torch"] == OLDEST
