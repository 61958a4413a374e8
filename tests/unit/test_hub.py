"""What is said where the hub gives nothing: the true cause, whichever library asked."""

from __future__ import annotations

import errno
from functools import partial

import huggingface_hub
import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

import tiny
from hub import REFUSALS, serving
from tastemaker.errors import ModelError, RewardError
from tastemaker.hub import hub_cause
from tastemaker.models import load_model
from tastemaker.models.loading import load_pipeline
from tastemaker.models.pipeline_folder import wanted


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pixel-space pipeline, with weights of other kinds beside its own."""
    folder = tmp_path_factory.mktemp("hub") / "model"
    tiny.pixels().save_pretrained(folder)
    (folder / "unet/diffusion_flax_model.msgpack").write_bytes(b"flax")
    (folder / "unet/diffusion_pytorch_model.fp16.safetensors").write_bytes(b"half")
    (folder / "digits.ckpt").write_bytes(b"checkpoint")
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    return tmp_path / "cache"


def at(monkeypatch, address):
    monkeypatch.setattr(huggingface_hub, "HfApi", partial(HfApi, endpoint=address))


def said(name: str) -> str:
    with pytest.raises(ModelError) as error:
        load_pipeline(name)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_model_from_the_hub_and_then_from_its_cache(folder, cache, monkeypatch):
    with serving(folder) as (address, asked):
        at(monkeypatch, address)
        made = load_model("owner/model")
    # Neither flax nor half precision nor files outside the components.
    kept = {"model_index.json", "scheduler/scheduler_config.json"}
    assert set(asked) == kept | {"unet/config.json", "unet/diffusion_pytorch_model.safetensors"}
    at(monkeypatch, "http://127.0.0.1:9")  # a port that nothing listens on
    again = load_model("owner/model")
    weights = again.network.state_dict()
    assert all((value == weights[name]).all() for name, value in made.network.state_dict().items())
    next(cache.rglob("diffusion_pytorch_model.safetensors")).unlink()
    assert "a part of it is in the cache, but weights is not" in said("owner/model")


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        (
            "gated/model",
            "access to gated/model must be granted first: ask for it at https://huggingface.co/gated/model",
        ),
        ("private/model", "has no repository private/model, or it is private: check the name"),
        ("absent/model", "has no repository absent/model, or it is private: check the name"),
        ("forbidden/model", "refuses access to forbidden/model (403)"),
        ("faulty/model", "answers 500: try again later"),
        ("bad name/model", "is not a name that the Hugging Face hub has"),
    ],
)
def test_what_the_hub_answers(folder, cache, monkeypatch, name, cause):
    with serving(folder) as (address, _):
        at(monkeypatch, address)
        assert cause in said(name)


def test_every_answer_was_tried():
    assert len(REFUSALS) == 5


def test_a_repository_that_is_no_pipeline(tmp_path, cache, monkeypatch):
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.json").write_text("{}")
    with serving(tmp_path / "other") as (address, _):
        at(monkeypatch, address)
        assert "the repository has no model_index.json, which a diffusers pipeline has" in said("owner/model")


def test_no_network(cache, monkeypatch):
    at(monkeypatch, "http://127.0.0.1:9")
    text = said("owner/model")
    assert f"is not in the download cache {cache}, and the Hugging Face hub could not be reached (Connect" in text
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    text = said("owner/model")
    assert "there is no such folder here" in text
    assert "HF_HUB_OFFLINE is set: unset it, or run `hf download owner/model`" in text


def behind(outer: Exception, inner: Exception) -> Exception:
    """An error that a library raised from another."""
    outer.__cause__ = inner
    return outer


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (behind(OSError("cannot load"), OSError(errno.ENOSPC, "No space left on device")), "is full: make room"),
        (behind(OSError("cannot load"), PermissionError(errno.EACCES, "denied")), "cannot be written: set HF_HOME"),
        (behind(OSError("We couldn't connect"), LocalEntryNotFoundError("not in cache")), "could not be reached:"),
        (
            behind(OSError("We couldn't connect"), behind(LocalEntryNotFoundError("not"), TimeoutError("timed out"))),
            "could not be reached",
        ),
        (
            behind(ConnectionError("Couldn't reach o/n on the Hub"), OfflineModeIsEnabled("x")),
            "HF_HUB_OFFLINE is set",
        ),
        (PermissionError(errno.EACCES, "denied", "/home/somebody/model/config.json"), None),
        (ValueError("not a CLIP"), None),
    ],
)  # fmt: skip
def test_causes_behind_other_libraries_errors(error, cause):
    found = hub_cause(error, "owner/name")
    assert found is None if cause is None else cause in (found or "")


def test_only_what_is_needed_is_downloaded():
    index = {"_class_name": "StableDiffusionPipeline"}
    names = [
        "model_index.json", "README.md", "v1.ckpt", "scheduler/scheduler_config.json", "tokenizer/vocab.json",
        "tokenizer/merges.txt", "text_encoder/config.json", "text_encoder/model.safetensors",
        "text_encoder/pytorch_model.bin", "unet/config.json", "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.bin", "vae/config.json", "vae/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.fp16.bin", "safety_checker/model.safetensors",
    ]  # fmt: skip
    assert sorted(set(names) - set(wanted(names, index))) == [
        "README.md", "safety_checker/model.safetensors", "text_encoder/pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.bin", "v1.ckpt", "vae/diffusion_pytorch_model.fp16.bin",
    ]  # fmt: skip
    with pytest.raises(ModelError, match="vae/ has no weights"):
        wanted([name for name in names if not name.startswith("vae/diff")], index)


def test_rewards_name_the_cause_too(cache, monkeypatch):
    from tastemaker.rewards.learned.weights import missing

    error = behind(OSError("We couldn't connect to 'https://huggingface.co'"), LocalEntryNotFoundError("no"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    text = missing("clip-score", "openai/clip-vit-base-patch32", "hf download openai/clip-vit-base-patch32", error)
    assert isinstance(text, RewardError)
    assert "openai/clip-vit-base-patch32 is not in the download cache" in str(text)
    assert "HF_HUB_OFFLINE is set" in str(text)
