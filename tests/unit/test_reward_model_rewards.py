"""Trained reward models as rewards: their files, options, latents and images, combinations, servers, gradients."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tastemaker as tm
from compared import quick, trained
from scoring import total
from serving import served
from tastemaker.algorithms import reward_backprop
from tastemaker.algorithms.base import Task as LearningTask
from tastemaker.algorithms.ppo import PPO
from tastemaker.diffusion.backprop import chain
from tastemaker.diffusion.sde import ddim
from tastemaker.errors import ConfigError, RewardError
from tastemaker.evaluation.evaluate import generate
from tastemaker.evaluation.images import fixed_draw
from tastemaker.models import load_model
from tastemaker.models.tuning import Tuning
from tastemaker.rewards.base import leaf_scores, require_latents_of, score
from tastemaker.rewards.check import check_reward
from tastemaker.rewards.preferences.architecture import Architecture
from tastemaker.rewards.preferences.files import Description, files, read
from tastemaker.rewards.preferences.model import Scale
from tastemaker.rewards.preferences.names import Options, folder_of, parse_options
from tastemaker.rewards.preferences.reward import load_reward_model
from tastemaker.rewards.preferences.value import value_from, value_from_folder
from tastemaker.rewards.registry import load_reward
from tastemaker.rewards.serving.settings import Remote
from tastemaker.types import Rollout, all_rows

PROMPTS = ["a red star", "a blue heart", "a green fish"]
X = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Reward models of all kinds: `unet` an ensemble with dropped prompts, `single` one model without."""
    root = tmp_path_factory.mktemp("rm")
    trained(root / "unet", Architecture(), quick(epochs=6, members=3, text_dropout=0.3))
    trained(root / "single", Architecture(), quick())
    trained(root / "clip", Architecture("clip"))
    trained(root / "head", Architecture("head"), quick(members=2))
    return root


@pytest.fixture
def copied(folders, tmp_path):
    """A copy of a reward model, to be damaged."""
    return Path(shutil.copytree(folders / "single", tmp_path / "rm"))


FLOW = [
    "sampling.steps=2", "sampling.samples=4", "sampling.per_prompt=1", "optimizer.updates=1", "optimizer.rows=4",
    "evaluation.prompts=2", "evaluation.per_prompt=2", "evaluation.kl_images=0", "rounds=1",
]  # fmt: skip


def latents(count=3):
    return load_model("bundled").encode_images(X[:count])


@pytest.mark.parametrize("name", ["unet", "single", "clip", "head", "unet:guidance=2", "unet:penalty=1",
                                  "head:value=std", "unet:space=image"])  # fmt: skip
def test_reward_models_keep_the_contract(folders, name):
    findings = check_reward(load_reward(f"{folders}/{name}"), PROMPTS, size=32)
    assert "failed" not in [finding.state for finding in findings], findings
    assert any("has the gradient" in finding.what for finding in findings) == ("space=image" not in name)


def test_the_reward_is_the_mean_of_standardised_members(folders):
    model, z = load_reward_model(folders / "unet"), latents()
    with torch.no_grad():
        raw = model.raw(z, PROMPTS)
    mean, std = (torch.tensor(column)[:, None] for column in zip(*model.scale.members, strict=True))
    members = ((raw - mean) / std - model.scale.mean) / model.scale.std
    torch.testing.assert_close(total(load_reward(f"{folders}/unet"), z, PROMPTS), members.mean(dim=0))
    deviation = members.std(dim=0)
    torch.testing.assert_close(total(load_reward(f"{folders}/unet:value=std"), z, PROMPTS), deviation)
    penalised = total(load_reward(f"{folders}/unet:penalty=0.5"), z, PROMPTS)
    torch.testing.assert_close(penalised, members.mean(dim=0) - 0.5 * deviation)
    # The same as an expression.
    both = total(load_reward(f"{folders}/unet - 0.5*{folders}/unet:value=std"), z, PROMPTS)
    torch.testing.assert_close(both, penalised)


def test_guidance_is_an_option_after_training(folders):
    model, z = load_reward_model(folders / "unet"), latents()
    with torch.no_grad():
        one, none = model.raw(z, PROMPTS, 1.0), model.raw(z, [""] * 3, 1.0)
    assert not torch.allclose(one, none, atol=1e-4)
    mean, std = (torch.tensor(column)[:, None] for column in zip(*model.scale.members, strict=True))
    expected = (((none + 4 * (one - none)) - mean) / std - model.scale.mean) / model.scale.std
    found = total(load_reward(f"{folders}/unet:guidance=4"), z, PROMPTS)
    torch.testing.assert_close(found, expected.mean(dim=0), rtol=1e-4, atol=1e-4)
    with pytest.raises(RewardError, match="was trained without text dropout: train it with --text-dropout"):
        load_reward(f"{folders}/single:guidance=4")


def test_images_are_encoded_where_there_are_no_latents(folders):
    of_latents = load_reward(f"{folders}/unet")
    of_images = load_reward(f"{folders}/unet:space=image")
    assert (of_latents.space, of_images.space) == ("latent", "image")
    torch.testing.assert_close(
        total(of_images, X, PROMPTS), total(of_latents, latents(), PROMPTS), rtol=1e-4, atol=1e-5
    )
    with pytest.raises(RewardError, match=r"reads latents of shape \[4, 8, 8\], but was given \[3, 32, 32\]"):
        total(of_latents, X, PROMPTS)
    with pytest.raises(RewardError, match="reads images of 32 x 32 pixels, but was given 64 x 64"):
        total(of_images, torch.rand(1, 3, 64, 64), ["a"])


def test_a_server_has_images(folders):
    with served(f"{folders}/unet", join=0.0) as url:
        remote = load_reward(url, Remote(format="safetensors", cache=0))
        torch.testing.assert_close(
            total(remote, X, PROMPTS), total(load_reward(f"{folders}/unet:space=image"), X, PROMPTS)
        )
        identity = str(remote.identity())
    assert identity.startswith("unet (")
    assert str(folders) not in identity
    with served(f"{folders}/single", join=0.0) as url:
        assert str(load_reward(url).identity()) != identity


def test_sampling_gives_rewards_the_latents(folders):
    """The reward of the sampled latents themselves: encoding the decoded images would give another."""
    model = load_model("bundled")
    draw = fixed_draw(PROMPTS, 1, 0)
    from tastemaker.diffusion.sampler import LocalSampler

    sampler = LocalSampler(model, ddim(model.process.grid(3, model.latent_shape), 1.0))
    name = f"{folders}/unet + 0.1*clip-score"
    rewards = {name: load_reward(name), "alone": load_reward(f"{folders}/unet")}
    made = generate(model, sampler, draw, guidance=2.0, batch=2, rewards=rewards)
    expected = total(load_reward(f"{folders}/unet"), made.rollout.x0, PROMPTS)
    torch.testing.assert_close(made.found["alone"], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made.found[f"{folders}/unet"], expected, rtol=1e-4, atol=1e-5)
    again = model.encode_images(made.images)
    assert not torch.allclose(total(load_reward(f"{folders}/unet"), again, PROMPTS), expected, atol=1e-3)


@pytest.mark.parametrize("extra", ["", " - 0.1*soft-colourfulness"])
def test_the_gradient_reaches_the_network_past_the_decoder(folders, extra, monkeypatch):
    """AlignProp's own step: the adapters have a gradient, and the decoder is not gone back through unless another part
    of the reward is on images."""
    model = load_model("bundled")
    model.tune(Tuning(rank=2), 0)
    reward = load_reward(f"{folders}/unet{extra}")
    sde = ddim(model.process.grid(2, model.latent_shape), 0.0)
    draw = fixed_draw(PROMPTS, 1, 0)
    decoded_with_graph = []
    decode = model.decode
    monkeypatch.setattr(model, "decode", lambda x: decoded_with_graph.append(torch.is_grad_enabled()) or decode(x))
    seen = []
    task = LearningTask(model, sde, reward=reward, on_images=lambda *given: seen.append(given))
    rollout = Rollout(model.encode(draw.prompts, 1.0), draw)
    rows = all_rows(rollout, count=1)
    made = chain(model, rollout.cond, draw, sde, [1])
    found = reward_backprop.rewarded(task, rows, made.x0, recompute=False)
    expected = score(reward, decode(made.x0), draw.prompts, made.x0).total
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    norms = [p.grad.norm().item() for p in model.weights.trainable().values() if p.grad is not None]
    assert norms
    assert max(norms) > 0
    assert any(decoded_with_graph) == bool(extra)
    _, images, rewards, _ = seen[0]
    assert images.shape == (3, 3, 32, 32)
    assert rewards.equal(found.detach())


def test_another_models_latents_are_refused(folders):
    reward = load_reward(f"{folders}/unet")
    model = load_model("bundled")
    require_latents_of(model, {"r": reward})
    model.resize(48, 48)
    with pytest.raises(RewardError, match=r"\(images of 32 pixels\), but this model makes \[4, 12, 12\] \(48 pixels\)"):
        require_latents_of(model, {"r": reward})
    other = load_model("bundled")
    with torch.no_grad():
        other.components["vae"].decoder.conv_in.bias += 1
    with pytest.raises(RewardError, match="was trained on the latents of bundled, and the model here has others"):
        require_latents_of(other, {"r": reward})
    require_latents_of(other, {"r": load_reward(f"{folders}/unet:space=image")})


def test_a_base_model_that_has_changed_is_refused(folders, tmp_path):
    from tastemaker.models.bundled import bundled_pipeline

    base = shutil.copytree(bundled_pipeline(), tmp_path / "base")
    trained(tmp_path / "rm", Architecture(model=str(base)), quick())
    load_reward(f"{tmp_path}/rm")
    from safetensors.torch import load_file, save_file

    path = next((base / "unet").glob("*.safetensors"))
    weights = load_file(path)
    weights["conv_in.bias"] = weights["conv_in.bias"] + 1
    save_file(weights, path, metadata={"format": "pt"})
    from tastemaker.rewards.preferences import reward

    reward._load.cache_clear()
    with pytest.raises(RewardError, match=r"was trained on another .*base than is there now \(its unet differ\)"):
        load_reward(f"{tmp_path}/rm")


def test_files_come_back_bit_for_bit(folders, copied):
    description, heads = read(folders / "unet")
    assert (len(heads), description.text_dropout, description.shape) == (3, 0.3, (4, 8, 8))
    written = files(description, heads)
    assert written["model.safetensors"] == (folders / "unet/model.safetensors").read_bytes()
    assert written["reward_model.json"] == (folders / "unet/reward_model.json").read_bytes()
    for made, stored in zip(load_reward_model(folders / "unet").heads, heads, strict=True):
        assert all(value.equal(stored[name]) for name, value in made.state_dict().items())


def test_every_byte_is_checked(copied):
    for name in ("model.safetensors", "reward_model.json"):
        path = copied / name
        whole = path.read_bytes()
        for at in range(0, len(whole), max(1, len(whole) // 12)):
            damaged = bytearray(whole)
            damaged[at] ^= 1
            path.write_bytes(bytes(damaged))
            try:
                read(copied)
            except RewardError:
                continue
            # A change of JSON that says the same, such as of a space, is none.
            assert name == "reward_model.json"
            assert json.loads(bytes(damaged)) == json.loads(whole)
        path.write_bytes(whole)
    read(copied)


def test_damaged_files_are_named_in_a_sentence(copied):
    path, whole = copied / "reward_model.json", (copied / "reward_model.json").read_bytes()
    cases = {
        whole[:100]: "is damaged, or no reward model's",
        b"[]": "is damaged, or no reward model's: it holds no object",
        whole.replace(b'"format": 1', b'"format": 9'): "has format 9, but this version of tastemaker reads format 1",
        whole.replace(b'"guidance": 1.0', b'"guidance": 3.0'): "is not what was written: restore it",
    }
    for content, said in cases.items():
        path.write_bytes(content)
        with pytest.raises(RewardError, match=said):
            load_reward(str(copied))
    path.write_bytes(whole)
    (copied / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(RewardError, match=r"model.safetensors is damaged: its SHA-256 is another than"):
        load_reward(str(copied))
    (copied / "model.safetensors").unlink()
    with pytest.raises(RewardError, match=r"lacks model.safetensors"):
        load_reward(str(copied))


def test_weights_that_do_not_fit_the_architecture_are_refused(tmp_path, folders):
    description, heads = read(folders / "head")
    for name, data in files(replace(description, architecture=Architecture("head", hidden=3)), heads).items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(RewardError, match=r"the weights of .* do not fit its architecture"):
        load_reward(str(tmp_path))
    empty = Description(description.architecture, description.fingerprint, None, Scale(()))
    for name, data in files(empty, []).items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(RewardError, match="cannot be read"):
        load_reward(str(tmp_path))


def test_names_and_options(folders):
    assert folder_of(f"{folders}/unet") == (folders / "unet", "")
    assert folder_of(f"{folders}/unet:penalty=1") == (folders / "unet", "penalty=1")
    assert folder_of("clip-score:bundled") is None
    assert folder_of("x\0y") is None
    assert parse_options("guidance=2,penalty=0.5,value=std,space=image", "r") == Options(2.0, 0.5, "std", "image")
    for text, said in (
        ("guidence=2", "has the option 'guidence'; did you mean 'guidance'"),
        ("guidance=much", "has guidance = 'much', but it must be a number"),
        ("penalty=inf", "must be a number"),
        ("value=median", "has value = 'median', but it must be mean or std"),
        ("space=pixels", "must be latent or image"),
    ):
        with pytest.raises(RewardError, match=said):
            parse_options(text, "r")
    with pytest.raises(RewardError, match=r"asks for the spread of an ensemble, but .*single has one member"):
        load_reward(f"{folders}/single:penalty=1")


def test_a_model_that_was_trained_again_is_another_reward(folders, tmp_path):
    """What a resumed run compares."""
    first = load_reward(f"{folders}/single").identity()
    assert first == load_reward(f"{folders}/single").identity() != load_reward(f"{folders}/unet").identity()
    assert str(first).startswith("reward model ")


def test_a_value_network_begins_as_the_reward(folders):
    """At time 0 its estimates are the standardised rewards of the first member; it is a copy that learns."""
    model, z = load_reward_model(folders / "unet"), latents()
    value = value_from(model)
    text = model.backbone.texts(PROMPTS)
    found = value(z, torch.zeros(3, dtype=torch.int64), text)
    torch.testing.assert_close(found, model.members(z, PROMPTS)[0], rtol=1e-4, atol=1e-4)
    found.sum().backward()
    assert all(parameter.grad is not None for name, parameter in value.named_parameters() if "mid_block" in name)
    with torch.no_grad():
        for parameter in value.parameters():
            parameter.add_(1)
    torch.testing.assert_close(model.members(z, PROMPTS)[0], found.detach(), rtol=1e-4, atol=1e-4)
    with pytest.raises(RewardError, match="and this one is of kind head on clip features: train one with --kind unet"):
        value_from(load_reward_model(folders / "head"))


def test_a_reward_model_on_a_transformers_blocks_is_a_reward_with_a_gradient(folders, tmp_path):
    """It scores the latents of its own model and of all with the same VAE, and refuses others."""
    trained(tmp_path / "rm", Architecture("transformer", "bundled-flow"), quick(text_dropout=0.2))
    model, reward_model = load_model("bundled-flow"), load_reward_model(tmp_path / "rm")
    z = model.encode_images(X)
    reward = load_reward(str(tmp_path / "rm"))
    torch.testing.assert_close(total(reward, z, PROMPTS), reward_model.members(z, PROMPTS)[0])
    of_images = load_reward(f"{tmp_path / 'rm'}:space=image")
    torch.testing.assert_close(total(of_images, X, PROMPTS), total(reward, z, PROMPTS), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(
        total(load_reward(f"{tmp_path / 'rm'}:guidance=3"), z, PROMPTS), total(reward, z, PROMPTS)
    )
    for same in (model, load_model("bundled")):
        require_latents_of(same, {"r": reward})
    other = load_model("bundled")
    with torch.no_grad():
        next(other.components["vae"].parameters()).mul_(1.5)
    with pytest.raises(RewardError, match="was trained on the latents of bundled-flow"):
        require_latents_of(other, {"r": reward})
    with pytest.raises(RewardError, match="and this one is of kind transformer: train one with --kind unet"):
        value_from(reward_model)
    config = tm.preset("alignprop-compressibility", *FLOW)
    run = tm.train(config, model="bundled-flow", reward=str(tmp_path / "rm"), prompts=PROMPTS, out=tmp_path / "run")
    assert [record["round"] for record in run.metrics()] == [1]
    assert run.metrics()[0]["grad_norm"] > 0


def test_a_value_network_begins_as_the_reward_model_of_the_same_base(folders, tmp_path):
    """Where the reward model's prompts or latents are others it is refused, as is another kind of value network."""
    model = load_model("bundled")
    own = value_from_folder(str(folders / "unet"), model)
    found = own(latents(), torch.zeros(3, dtype=torch.int64), model.encode(PROMPTS, 1.0)["text"])
    torch.testing.assert_close(found, load_reward_model(folders / "unet").members(latents(), PROMPTS)[0],
                               rtol=1e-4, atol=1e-4)  # fmt: skip
    with torch.no_grad():
        next(model.components["text_encoder"].parameters()).mul_(1.5)
    model.clear_prompt_cache()
    with pytest.raises(RewardError, match="has another text encoder than the model that is trained"):
        value_from_folder(str(folders / "unet"), model)
    model.resize(48, 48)
    with pytest.raises(RewardError, match="reads latents of shape"):
        value_from_folder(str(folders / "unet"), model)
    with pytest.raises(RewardError, match="begins as a reward model of kind unet, and this one is of kind clip"):
        value_from_folder(str(folders / "clip"), load_model("bundled"))
    with pytest.raises(RewardError, match="is no reward model"):
        value_from_folder(str(tmp_path), load_model("bundled"))
    with pytest.raises(ConfigError, match="only a value network of kind unet can begin as a reward model"):
        PPO(value="conv", value_from="runs/rm")


def test_a_run_begins_its_value_network_as_the_reward_model(folders, tmp_path):
    """And resumes bit for bit; the explained variance of the returns is recorded."""
    config = tm.preset("ppo-compressibility", *QUICK, f"algorithm.value_from={folders}/unet")
    whole = tm.train(config, reward=f"{folders}/unet", prompts=PROMPTS, out=tmp_path / "whole", rounds=2)
    half = tm.train(config, reward=f"{folders}/unet", prompts=PROMPTS, out=tmp_path / "half", rounds=1)
    half = tm.resume(half, rounds=2, prompts=PROMPTS)
    last, again = whole.metrics()[-2], half.metrics()[-2]
    exact = [{k: v for k, v in one.items() if not k.startswith("seconds")} for one in (last, again)]
    assert exact[0] == exact[1]
    assert last["value/explained_variance"] <= 1
    plain = tm.train(replace(config, algorithm=replace(config.algorithm, value_from=None)), reward=f"{folders}/unet",
                     prompts=PROMPTS, out=tmp_path / "plain", rounds=1)  # fmt: skip
    first = next(record for record in whole.metrics() if record.get("round") == 1)
    new = next(record for record in plain.metrics() if record.get("round") == 1)
    assert new["value"] == 0.0 != first["value"]


QUICK = (
    "sampling.samples=4", "sampling.per_prompt=2", "sampling.steps=3", "evaluation.prompts=1",
    "evaluation.per_prompt=2", "evaluation.kl_images=0", "rounds=1", "optimizer.updates=1",
)  # fmt: skip


@pytest.mark.parametrize("preset", ["ddpo-compressibility", "alignprop-compressibility"])
def test_runs_train_on_reward_models(folders, tmp_path, preset):
    config = tm.preset(preset, *QUICK)
    run = tm.train(config, reward=f"{folders}/unet:penalty=0.5", prompts=PROMPTS, out=tmp_path / "run")
    assert math.isfinite(run.metrics()[-1]["reward/mean"])
    large = tm.preset(preset, *QUICK, "sampling.height=48", "sampling.width=48")
    with pytest.raises(RewardError, match="reads latents of shape"):
        tm.train(large, reward=f"{folders}/unet", prompts=PROMPTS, out=tmp_path / "large")
    assert not (tmp_path / "large").exists()


def test_a_run_does_not_go_on_with_another_reward_model(folders, tmp_path):
    folder = shutil.copytree(folders / "single", tmp_path / "rm")
    run = tm.train(tm.preset("ddpo-compressibility", *QUICK), reward=str(folder), prompts="bundled-eight",
                   out=tmp_path / "run")  # fmt: skip
    for name in ("model.safetensors", "reward_model.json"):
        shutil.copy(folders / "unet" / name, folder / name)
    with pytest.raises(tm.TastemakerError, match=r"reward model \w+ -> reward model \w+"):
        tm.resume(run, rounds=2)


def test_what_standardises_a_reward_model_is_measured_on_latents(folders):
    function = load_reward(f"standardise({folders}/unet)")
    z = latents()
    function.measure(leaf_scores({function.name: function}, X, PROMPTS, z))
    assert score(function, X, PROMPTS, z).total.mean().item() == pytest.approx(0, abs=1e-5)
