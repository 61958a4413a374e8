"""Options for speed: they do what they say, and leave results where they were."""

import sys

import pytest
import torch
from safetensors.torch import load_file
from test_runs import words

from tastemaker.cli.main import main


def weights(run):
    return load_file(run / "checkpoints/step-000001/weights.safetensors")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # torch's compiler uses what torch deprecates
def test_a_compiled_network_trains_the_same_weights_under_the_same_names(checkpoint, tmp_path, capsys):
    assert main(words(checkpoint, tmp_path / "plain", "--rounds", "1")) == 0
    assert main(words(checkpoint, tmp_path / "compiled", "--rounds", "1", "--speed.compile")) == 0
    assert "torch.compile: the network is compiled" in capsys.readouterr().out
    one, two = weights(tmp_path / "plain"), weights(tmp_path / "compiled")
    assert one.keys() == two.keys()
    norm = torch.cat([w.flatten() for w in one.values()]).norm()
    assert torch.cat([(one[name] - two[name]).flatten() for name in one]).norm() < 1e-3 * norm


def test_tf32_says_that_a_cpu_has_none(checkpoint, tmp_path, capsys):
    before = torch.get_float32_matmul_precision()
    try:
        assert main(words(checkpoint, tmp_path / "run", "--rounds", "1", "--speed.tf32")) == 0
    finally:
        torch.set_float32_matmul_precision(before)
    assert "TF32: no effect, this device (cpu) has none" in capsys.readouterr().out


def test_eight_bit_states_name_the_package_that_is_missing(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    assert main(words(checkpoint, tmp_path / "run", "--rounds", "1", "--optimizer.eight-bit")) == 2
    assert "pip install bitsandbytes" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
