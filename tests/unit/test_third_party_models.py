"""Models of other packages: found, checked, trained, resumed and planned like the built-in ones."""

from __future__ import annotations

import json
import sys

import pytest
from safetensors.torch import load_file

from tastemaker.cli.main import main
from tastemaker.diffusion.model import Model
from tastemaker.errors import ModelError
from tastemaker.models import load_model, third_party

OWN = """
import tiny
from tastemaker.models.latent_unet import LatentUNet
from tastemaker.models.stable_diffusion import SD

class Family(LatentUNet):
    def __init__(self, precision, device, network_device):
        pipeline = tiny.pipeline()
        pipeline = pipeline.to("meta") if str(device) == "meta" else pipeline
        super().__init__(SD, pipeline, precision, device, network_device)

def failing(precision, device, network_device):
    raise ValueError("no weights here")

def wrong(precision, device, network_device):
    return object()
"""


@pytest.fixture(autouse=True)
def _own(tmp_path, monkeypatch):
    (tmp_path / "own_family.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("own_family", None)


def argv(out, *more, model="own_family:Family"):
    return [
        "train", "ddpo-compressibility", "--model", model, "--prompts", "ddpo-animals", "--out", str(out),
        "sampling.steps=3", "sampling.samples=4", "sampling.per_prompt=2", "optimizer.updates=1",
        "evaluation.prompts=1", "evaluation.per_prompt=2", "evaluation.kl_images=0", *more,
    ]  # fmt: skip


def test_a_run_and_its_continuation_are_those_of_the_family_s_own_name(tmp_path, capsys):
    assert main(argv(tmp_path / "plan", "--dry-run")) == 0
    assert "own_family:Family at 32 x 32 px" in capsys.readouterr().out
    assert not (tmp_path / "plan").exists()
    assert main(argv(tmp_path / "run", "--rounds", "2")) == 0
    assert main(argv(tmp_path / "cut", "--rounds", "1")) == 0
    assert main(["resume", str(tmp_path / "cut"), "--rounds", "2"]) == 0
    one, two = (load_file(tmp_path / f"{run}/checkpoints/step-000002/weights.safetensors") for run in ("run", "cut"))
    assert one.keys() == two.keys()
    assert all(one[name].equal(two[name]) for name in one)
    assert (tmp_path / "run/report.html").is_file()
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [record["round"] for record in records if "round" in record] == [1, 2]


def test_an_entry_point_names_a_model(monkeypatch):
    monkeypatch.setattr(third_party, "installed", lambda: {"mine": "own_family:Family"})
    assert type(load_model("mine")).__name__ == "Family"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_family:failing", "ValueError: no weights here"),
        ("own_family:nothing", "has no attribute 'nothing'"),
        ("nowhere_at_all:Family", "No module named 'nowhere_at_all'"),
        ("own_family:wrong", "is a object without network"),
    ],
)
def test_what_is_no_model_is_one_sentence(name, message, tmp_path, capsys):
    with pytest.raises(ModelError, match=message):
        load_model(name)
    assert main(argv(tmp_path / "run", model=name)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("tastemaker: the model ")
    assert not (tmp_path / "run").exists()


def test_the_parts_that_are_asked_for_are_those_of_the_protocol():
    members = {name for base in Model.__mro__ for name in (*vars(base), *getattr(base, "__annotations__", {}))}
    assert set(third_party._PARTS) == {name for name in members if not name.startswith("_")}
