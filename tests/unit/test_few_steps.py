"""Which models are taken for distilled ones: by the configs that are published, and what is said about them."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

import tiny
import tiny_flow
from tastemaker.models.few_steps import sign, warn
from tastemaker.models.loading import load_skeleton

SD, SDXL, SD3, Z = "StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "ZImagePipeline"
TRAILING = {"timestep_spacing": "trailing", "prediction_type": "epsilon"}
LEADING = {"timestep_spacing": "leading", "prediction_type": "epsilon"}


@pytest.mark.parametrize(
    ("kind", "scheduler", "scheduler_class", "expected"),
    [
        (SDXL, TRAILING, "EulerAncestralDiscreteScheduler", "timestep_spacing trailing"),  # sdxl-turbo
        (SD, TRAILING, "EulerDiscreteScheduler", "timestep_spacing trailing"),  # sd-turbo
        (SDXL, LEADING, "LCMScheduler", "is a LCMScheduler"),
        (SDXL, LEADING, "TCDScheduler", "is a TCDScheduler"),  # Hyper-SD
        (SDXL, LEADING, "EulerDiscreteScheduler", None),  # stable-diffusion-xl-base-1.0
        (SD, TRAILING | {"prediction_type": "v_prediction"}, "DDIMScheduler", None),  # a zero terminal SNR
        ("DDPMPipeline", TRAILING, "DDIMScheduler", None),
        (Z, {"shift": 3.0}, "FlowMatchEulerDiscreteScheduler", "has shift 3, as that of Z-Image-Turbo"),
        (Z, {"shift": 6.0}, "FlowMatchEulerDiscreteScheduler", None),
        (SD3, {"shift": 3.0}, "FlowMatchEulerDiscreteScheduler", None),  # stable-diffusion-3.5-large
    ],
)
def test_by_configs(kind, scheduler, scheduler_class, expected):
    found = sign(Path("model"), {"_class_name": kind}, {}, scheduler, scheduler_class)
    assert found is None if expected is None else expected in str(found)


@pytest.mark.parametrize(
    ("folder", "index", "network", "name"),
    [
        ("hub/models--stabilityai--stable-diffusion-3.5-large-turbo/snapshots/0a1b", {}, {}, "3.5-large-turbo"),
        ("my-model", {"_name_or_path": "tensorart/stable-diffusion-3.5-large-TurboX"}, {}, "-large-TurboX"),
        ("my-model", {}, {"_name_or_path": "/data/Hyper-SDXL"}, "/data/Hyper-SDXL"),
        ("turbo/model", {"_name_or_path": "turbo/sd3"}, {}, None),  # of a folder, and not of the model
        ("turbochargers", {"_name_or_path": "stable-diffusion-3.5-large"}, {}, None),
    ],
)
def test_by_name_where_nothing_else_says_so(folder, index, network, name):
    index = {"_class_name": SD3} | index
    found = sign(Path(folder), index, network, {"shift": 3.0}, "FlowMatchEulerDiscreteScheduler")
    if name is None:
        assert found is None
    else:
        assert name in str(found)
        assert "nothing else in its files says whether it is" in str(found)


def test_it_is_said_once_when_a_model_is_read(tmp_path, caplog):
    tiny_flow.z_image(shift=3.0).save_pretrained(tmp_path / "z")
    tiny.xl(timestep_spacing="trailing").save_pretrained(tmp_path / "xl")
    tiny.xl(timestep_spacing="leading").save_pretrained(tmp_path / "base")
    warn.cache_clear()
    with caplog.at_level(logging.WARNING):
        for name in ("z", "xl", "base", "z", "xl"):
            load_skeleton(str(tmp_path / name))
    told = [record.getMessage() for record in caplog.records]
    assert [message.count("seems to be distilled to a few steps (its scheduler has") for message in told] == [1, 1]
    assert all("sampling.guidance=1; denoising losses" in message for message in told)
