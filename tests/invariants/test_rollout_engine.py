"""Images of a rollout engine: those that the model in this process would have made, and nothing else is trained on."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import msgspec
import pytest
import torch
from fastapi import Response
from safetensors.torch import load_file

import rollout_server
import tiny
import tiny_flow
from rollout_server import Engine, fails, packed, running, slow
from tastemaker.algorithms.alignprop import AlignProp
from tastemaker.algorithms.dppo import DPPO
from tastemaker.algorithms.grpo import GRPO
from tastemaker.cli.main import main
from tastemaker.config.engine_settings import RolloutEngine
from tastemaker.config.schema import Config, Evaluation, Sampling
from tastemaker.diffusion.sampler import sample
from tastemaker.diffusion.sde import make_sde
from tastemaker.errors import ConfigError, EngineError, EngineUnavailable
from tastemaker.models import wrap_pipeline
from tastemaker.models.latent_unet import LatentUNet
from tastemaker.models.stable_diffusion import SD
from tastemaker.models.tuning import Tuning
from tastemaker.models.weight_copy import WeightCopy
from tastemaker.noise import engine_seed
from tastemaker.rewards.serving import retry
from tastemaker.rollout_engine.sampler import EngineSampler, engine_sampler, require_engine_fits
from tastemaker.runs.checkpoint import saved_round
from tastemaker.runs.fingerprint import differences, fingerprint
from tastemaker.training import setup
from tastemaker.training.plan import Facts, make_plan
from tastemaker.types import Draw

PROMPTS = ("a cat", "a dog", "a dog")
DRAW = Draw(3, 1, PROMPTS, (0, 1, 1), (0, 0, 1))
STEPS, GUIDANCE = 4, 2.0


@dataclass(frozen=True)
class EngineDraw(Draw):
    """A draw whose noise is the test server's, so that the sampler of this process makes the same images."""

    def noise(self, step, shape, device="cpu"):
        keys = zip(self.prompt_index, self.sample_index, strict=True)
        seeds = [engine_seed(self.seed, self.round, prompt, sample) for prompt, sample in keys]
        return torch.cat([rollout_server.noise(seed, step, shape) for seed in seeds])

    def roots(self):
        return self, list(range(len(self)))


@dataclass(frozen=True)
class SeededSampler:
    """`LocalSampler` with the test server's noise."""

    model: Any
    sde: Any

    def __call__(self, draw, cond, keep=(), on_step=lambda: None):
        own = EngineDraw(draw.seed, draw.round, draw.prompts, draw.prompt_index, draw.sample_index)
        return replace(sample(self.model, cond, own, self.sde, keep, on_step), draw=draw)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(retry, "backoff", lambda tries: 0.01)
    monkeypatch.delenv("TASTEMAKER_ENGINE_TOKEN", raising=False)


def moved(model, seed=7, size=0.3):
    """Gives the adapters' second factors values, as updates do."""
    random = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.weights.trainable().items()):
        if "lora_B" in name:
            parameter.data.copy_(size * torch.randn(parameter.shape, generator=random))


@pytest.fixture(scope="module")
def model():
    made = wrap_pipeline(tiny_flow.sd3(with_t5=False))
    # A scale of 1/2: alpha is half the rank.
    made.tune(Tuning(rank=4, alpha=2, targets=("to_q", "to_v")), 0)
    return made


@pytest.fixture
def engine():
    return Engine(tiny_flow.sd3(with_t5=False))


def sampler(model, urls, folder, sde_type="cps", eta=0.7, check=lambda: None, log=print, **settings) -> EngineSampler:
    options = {name: settings.pop(name) for name in ("reduction", "noise_outside") if name in settings}
    own = RolloutEngine(**({"folder": str(folder), "wait": 0.2, "tries": 2, "timeout": 20.0} | settings))
    sde = make_sde(model, STEPS, eta, sde_type)
    return engine_sampler(model, sde, urls, own, GUIDANCE, log, check, **options)


# What a good engine's images are.


@pytest.mark.parametrize(
    ("sde_type", "eta", "noise_outside", "keep"),
    [("cps", 0.7, True, [0, 1, 2]), ("cps", 0.7, False, [1]), ("flow-sde", 0.7, True, [2, 3]), ("cps", 0.5, True, [])],
)
def test_images_and_likelihood_are_those_of_this_process(model, engine, tmp_path, sde_type, eta, noise_outside, keep):
    moved(model)
    model.negative_prompt = "a fox"
    try:
        cond = model.encode(PROMPTS, GUIDANCE)
        with running(engine) as (url, _):
            own = sampler(model, url, tmp_path, sde_type, eta, noise_outside=noise_outside)
            made = own(DRAW, cond, keep)
    finally:
        model.negative_prompt = ""
    sde = own.sde if noise_outside or not keep else own.sde.noise_only_at(keep)
    local = sample(model, cond, EngineDraw(3, 1, *(DRAW.prompts, DRAW.prompt_index, DRAW.sample_index)), sde, keep)
    torch.testing.assert_close(made.x0, local.x0, rtol=1e-4, atol=1e-4)
    assert own.figures()["ratio_deviation/engine"] < 1e-5
    assert own.figures() == {"ratio_deviation/engine": 0.0}
    if keep:
        torch.testing.assert_close(made.latents, local.latents, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(made.logp, local.logp, rtol=1e-4, atol=1e-4)
        assert (made.latents.dtype, made.logp.dtype) == (torch.float32, torch.float64)
        assert made.steps.tolist() == keep
    else:
        assert made.trajectory is None


def test_sums_of_log_probabilities(model, engine, tmp_path):
    """A latent has 4 * 8 * 8 elements."""
    with running(engine) as (url, _):
        cond = model.encode(PROMPTS, GUIDANCE)
        mean, total = (sampler(model, url, tmp_path, reduction=kind)(DRAW, cond, [1]) for kind in ("mean", "sum"))
    torch.testing.assert_close(total.logp, 256 * mean.logp)


def test_older_answers_are_read(model, engine, tmp_path):
    """JSON with base64, all latents and no word of which they are."""
    import base64

    def older(payload):
        made = msgspec.to_builtins(payload)  # bytes become base64
        del made[0]["dit_trajectory"]["latent_step_indices"], made[0]["dit_trajectory"]["sigmas"]
        assert base64.b64decode(made[0]["rollout_log_probs"]["data"])
        # Not finite where a step has no noise, as in the engine.
        return Response(json.dumps(made, allow_nan=True), media_type="application/json")

    image = engine._image
    engine._image = lambda body: image(body | {"rollout_return_step_indices": list(range(STEPS + 1))})
    cond = model.encode(PROMPTS, GUIDANCE)
    with running(engine) as (url, _):
        new = sampler(model, url, tmp_path)(DRAW, cond, [1, 2])
        engine.encode = older
        old = sampler(model, url, tmp_path)(DRAW, cond, [1, 2])
    assert torch.equal(new.latents, old.latents)
    assert torch.equal(new.x0, old.x0)


def test_what_is_sent(model, engine, tmp_path, monkeypatch):
    monkeypatch.setenv("TASTEMAKER_ENGINE_TOKEN", "secret-token")
    with running(engine) as (url, _):
        sampler(model, url, tmp_path)(DRAW, model.encode(PROMPTS, GUIDANCE), [1])
    sent = engine.asked[-3:]
    assert sorted(one["prompt"] for one in sent) == sorted(PROMPTS)
    assert len({one["seed"] for one in sent}) == 3
    first = sent[0]
    assert (first["width"], first["height"], first["num_inference_steps"], first["guidance_scale"]) == (32, 32, 4, 2.0)
    assert (first["rollout_sde_type"], first["rollout_noise_level"]) == ("cps", 0.7)
    # The last step of cps has no noise; x before step 1, after it, and the final one.
    assert (first["rollout_sde_step_indices"], first["rollout_return_step_indices"]) == ([0, 1, 2], [1, 2, 4])
    assert {headers["authorization"] for headers in engine.headers} == {"Bearer secret-token"}


def test_adapters_are_sent_when_they_change_and_not_before(model, engine, tmp_path):
    moved(model)
    cond = model.encode(PROMPTS, GUIDANCE)
    with running(engine) as (url, _):
        own = sampler(model, url, tmp_path)
        own(DRAW, cond, [1])
        own(DRAW, cond, [1])
        assert len(engine.loads) == 2  # one with noise, then the model's
        moved(model, seed=8)
        made = own(DRAW, cond, [1])
        assert len(engine.loads) == 3
    local = SeededSampler(model, own.sde)(DRAW, cond, [1])
    torch.testing.assert_close(made.x0, local.x0, rtol=1e-4, atol=1e-4)
    assert len(set(engine.loads)) == 3
    assert [str(path) for path in tmp_path.rglob("*.safetensors")] == engine.loads[-1:]  # others are taken away


def test_averaged_weights_are_sent_while_they_are_in_place(model, engine, tmp_path):
    """As NFT samples its rounds, and evaluations with `optimizer.ema`."""
    moved(model)
    cond = model.encode(PROMPTS, GUIDANCE)
    with running(engine) as (url, _):
        own = sampler(model, url, tmp_path)
        average = WeightCopy(model.weights.trainable())
        moved(model, seed=9)
        with average.swapped_in():
            averaged = own(DRAW, cond, [1])
        made = own(DRAW, cond, [1])
    local = SeededSampler(model, own.sde)
    torch.testing.assert_close(made.x0, local(DRAW, cond, [1]).x0, rtol=1e-4, atol=1e-4)
    moved(model)
    torch.testing.assert_close(averaged.x0, local(DRAW, cond, [1]).x0, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(made.x0, averaged.x0, rtol=1e-3, atol=1e-3)


def test_two_engines_share_the_work(model, engine, tmp_path):
    other = Engine(tiny_flow.sd3(with_t5=False))
    with running(engine) as (one, _), running(other) as (two, _):
        own = sampler(model, f"{one},{two}", tmp_path)
        made = own(DRAW, model.encode(PROMPTS, GUIDANCE), [1])
    assert engine.loads == other.loads
    # Three probes each.
    assert sorted([len(engine.asked) - 3, len(other.asked) - 3]) == [1, 2]
    assert len(made) == 3


# What is noticed.


def noticed(model, engine, tmp_path, said, error=EngineError, keep=(1,), prepare=None, **settings):
    """Samples once with a good engine, then makes it faulty, and the next batch is refused with these words."""
    moved(model)
    cond = model.encode(PROMPTS, GUIDANCE)
    with running(engine) as (url, stop):
        own = sampler(model, url, tmp_path, **settings)
        own(DRAW, cond, list(keep))
        prepare(SimpleNamespace(engine=engine, stop=stop, own=own))
        with pytest.raises(error, match=said) as raised:
            own(DRAW, cond, list(keep))
    return str(raised.value)


def latents(change):
    """A response whose latents are changed."""

    def changed(payload: Any) -> Any:
        from safetensors.torch import load

        trajectory = payload[0]["dit_trajectory"]
        trajectory["latents"] = packed(change(load(trajectory["latents"]["data"])["t"]))
        return payload

    return changed


def with_nan(x):
    return torch.where(x == x.max(), torch.nan, x)


def without(name):
    return lambda payload: [payload[0] | {name: None}]


ANSWERS = {
    "nan": (latents(with_nan), "not finite"),
    "another size": (latents(lambda x: x[..., :4]), r"latents \[3, 4, 8, 4\], but expected were \[K,4,8,8\]"),
    "tokens": (latents(lambda x: x.reshape(3, 16, 16)), "packed into tokens"),
    "too few": (latents(lambda x: x[:2]), "2 latents, of 3 steps"),
    "integers": (latents(lambda x: x.int()), "of the type torch.int32"),
    "no latents": (without("dit_trajectory"), "no latents"),
    "no likelihood": (without("rollout_log_probs"), "no log-probabilities"),
    "another prompt": (lambda payload: [payload[0] | {"prompt": "a fox"}], "of the prompt 'a fox'"),
    "another seed": (lambda payload: [payload[0] | {"seed": 1}], "and seed 1, not of those"),
    "two images": (lambda payload: payload * 2, "it has 2 images"),
    "no image": (lambda payload: [], "it has 0 images"),
    "pickle": (
        lambda payload: [payload[0] | {"rollout_log_probs": {"data": b"\x80\x04K\x01."}}], "are not safetensors"
    ),
    "a text": (lambda payload: "hello", "not the contract's"),
}  # fmt: skip


@pytest.mark.parametrize("fault", ANSWERS)
def test_wrong_answers(model, engine, tmp_path, fault):
    change, said = ANSWERS[fault]
    noticed(model, engine, tmp_path, said, prepare=lambda now: setattr(now.engine, "change", change))


def test_a_body_that_is_cut(model, engine, tmp_path):
    def cut(payload):
        return Response(msgspec.msgpack.encode(payload)[:-100], media_type="application/msgpack")

    noticed(model, engine, tmp_path, "not the contract's", prepare=lambda now: setattr(now.engine, "encode", cut))


def test_a_body_without_an_end(model, engine, tmp_path):
    """Read up to what the images of the request may have, and no further."""

    def long(payload):
        return Response(msgspec.msgpack.encode([{"prompt": "a" * 2**21}]))

    noticed(model, engine, tmp_path, "not the contract's", prepare=lambda now: setattr(now.engine, "encode", long))


def test_a_dead_engine(model, engine, tmp_path):
    def die(now):
        now.stop()
        with suppress(EngineUnavailable):  # until it has gone
            while True:
                now.own.client.adapters()

    text = noticed(model, engine, tmp_path, "rollout_engine.wait", EngineUnavailable, prepare=die)
    assert "gave no image" in text


def test_a_slow_engine(model, engine, tmp_path):
    def delay(now):
        now.own.client.settings = replace(now.own.client.settings, timeout=0.3)
        now.engine.before = slow(1)

    noticed(model, engine, tmp_path, "no complete response within 0.3 s", EngineUnavailable, prepare=delay)


def test_an_engine_that_fails(model, engine, tmp_path):
    for status, error, said in ((500, EngineUnavailable, "status 500: no memory"), (422, EngineError, "refuses")):
        own = Engine(engine.pipeline)
        noticed(
            model, own, tmp_path, said, error,
            prepare=lambda now, status=status: setattr(now.engine, "before", fails(status, "no memory")),
        )  # fmt: skip


def test_an_engine_that_was_restarted(model, engine, tmp_path):
    noticed(model, engine, tmp_path, "has no adapter, and not", prepare=lambda now: now.engine.restart(),
            ratio_bound=1e9)  # fmt: skip


def other_adapter(now):
    """Same file, other weights."""
    for name, value in now.engine.pipeline.transformer.named_parameters():
        if "lora_B" in name:
            value.data.mul_(1.3)


def test_a_likelihood_that_is_no_number(model, engine, tmp_path):
    def change(payload):
        return [payload[0] | {"rollout_log_probs": packed(torch.full((STEPS,), torch.nan))}]

    noticed(
        model, engine, tmp_path, "log-probability of nan", ratio_bound=1e9,
        prepare=lambda now: setattr(now.engine, "change", change),
    )  # fmt: skip


@pytest.mark.parametrize("keep", [(1,), ()])
def test_images_of_other_weights(model, engine, tmp_path, keep):
    """In a round, and in an evaluation, which keeps no steps."""
    said = "images are not this model's"
    text = noticed(model, engine, tmp_path, said, keep=keep, prepare=other_adapter, ratio_bound=5e-5)
    assert "rollout_engine.ratio_bound allows 5e-05" in text


def test_another_model(model, tmp_path):
    moved(model)
    with running(Engine(tiny_flow.sd3(1, with_t5=False))) as (url, _):
        own = sampler(model, url, tmp_path)
        with pytest.raises(EngineError, match="images are not this model's"):
            own(DRAW, model.encode(PROMPTS, GUIDANCE), [1])


def test_other_times(model, tmp_path):
    with running(Engine(tiny_flow.sd3(with_t5=False, shift=2.0))) as (url, _):
        own = sampler(model, url, tmp_path)
        with pytest.raises(EngineError, match="other noise levels"):
            own(DRAW, model.encode(PROMPTS, GUIDANCE), [1])


def test_weights_that_are_stale(model, engine, tmp_path):
    """By the checksum, and where that is made up, by the probe; both at the start, and after an update."""
    cond = model.encode(PROMPTS, GUIDANCE)
    count = iter(range(1000))
    for made_up, said in ((False, "the checksum of its weights is the one from before"), (True, "applies no adapter")):
        for late in (False, True):
            own_engine = Engine(tiny_flow.sd3(with_t5=False))
            moved(model)
            with running(own_engine) as (url, _):
                own = sampler(model, url, tmp_path, ratio_bound=1e9)
                if late:
                    own(DRAW, cond, [1])
                    moved(model, seed=8)
                own_engine.ignores = True
                if made_up:
                    own_engine.checksum = lambda real: f"{next(count):064x}"
                with pytest.raises(EngineError, match=said):
                    own(DRAW, cond, [1])


def test_engines_that_differ(model, engine, tmp_path):
    other = Engine(tiny_flow.sd3(1, with_t5=False))
    with running(engine) as (one, _), running(other) as (two, _):
        own = sampler(model, f"{one},{two}", tmp_path)
        with pytest.raises(EngineError, match="different weights with the same adapter"):
            own(DRAW, model.encode(PROMPTS, GUIDANCE), [1])


def test_a_checksum_that_is_none(model, engine, tmp_path):
    engine.checksum = lambda real: "not_found"
    with running(engine) as (url, _), pytest.raises(EngineError, match="no checksum of its transformer, but not_found"):
        sampler(model, url, tmp_path)(DRAW, model.encode(PROMPTS, GUIDANCE), [1])


def test_a_folder_that_cannot_be_written(model, engine, tmp_path):
    (tmp_path / "file").write_text("")
    with running(engine) as (url, _), pytest.raises(ConfigError, match=r"rollout_engine.folder is .*file"):
        sampler(model, url, tmp_path / "file")(DRAW, model.encode(PROMPTS, GUIDANCE), [1])


def test_a_run_that_should_stop_waits_for_no_image(model, engine, tmp_path):
    class Stop(Exception):
        pass

    def check():
        if len(engine.asked) > 3:
            raise Stop

    engine.before = lambda number: slow(3)(number) if number >= 3 else None
    with running(engine) as (url, _), pytest.raises(Stop):
        sampler(model, url, tmp_path, check=check)(DRAW, model.encode(PROMPTS, GUIDANCE), [1])


def test_tokens_are_in_no_message(model, engine, tmp_path, monkeypatch):
    monkeypatch.setenv("TASTEMAKER_ENGINE_TOKEN", "secret-token")
    lines: list[str] = []
    text = noticed(
        model, engine, tmp_path, "refuses", log=lines.append,
        prepare=lambda now: setattr(now.engine, "before", fails(403, "you sent secret-token")),
    )  # fmt: skip
    assert "you sent ***; is the right token in $TASTEMAKER_ENGINE_TOKEN?" in text
    assert not any("secret-token" in line for line in lines)


# Whole runs.


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "sd3"
    tiny_flow.sd3(with_t5=False).save_pretrained(path)
    return path


def words(folder, out, *more):
    return [
        "train", "grpo-compressibility", "--model", str(folder), "--out", str(out), "--reward", "smooth:redness",
        "--prompts", "ddpo-animals", "--rounds", "2", "sampling.steps=4", "sampling.samples=4", "sampling.per_prompt=2",
        "sampling.batch=4", "sampling.guidance=2", "sampling.height=32", "sampling.width=32", "optimizer.updates=1",
        "optimizer.rows=16", "optimizer.lr=1e-3", "tuning.rank=2", "precision=fp32", "evaluation.prompts=2",
        "evaluation.per_prompt=1", "evaluation.kl_images=0", "evaluation.every=5", "checkpoint.every=5", *more,
    ]  # fmt: skip


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def _no_report(monkeypatch):
    monkeypatch.setattr("tastemaker.training.run.write_report", lambda folder: folder / "report.html")


@pytest.mark.usefixtures("_no_report")
def test_a_run_is_the_run_of_this_process_and_goes_on_after_the_engine_died(folder, engine, tmp_path, capsys):
    """Within rounding: the engine computes one image at a time. Its death is in round 2, of which nothing is kept."""
    local, run = tmp_path / "local", tmp_path / "run"
    with mock.patch.object(setup, "_sampler", lambda config, model, sde, *rest: SeededSampler(model, sde)):
        assert main(words(folder, local)) == 0
    fast = ["rollout_engine.wait=0.3", f"rollout_engine.folder={tmp_path / 'shared'}"]
    with running(engine) as (url, stop):

        def die(number: int) -> None:
            # After 3 probes, 2 images of the evaluation, 4 of round 1, and the probe of round 2. A server that is told
            # to stop answers a little longer, on a fast machine for the rest of the round.
            if number >= 10:
                stop()
                fails(503, "it is stopping")(number)

        engine.before = die
        assert main(words(folder, run, f"sampling.engine={url}", *fast)) == 69
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("tastemaker: the rollout engine")
    assert said.endswith(f"saved up to round 1; go on with: tastemaker resume {run}")
    assert saved_round(run) == 1
    engine.before = lambda number: None
    port = int(url.rsplit(":", 1)[1])
    with running(engine, port):
        assert main(["resume", str(run)]) == 0
    one, two = metrics(local), metrics(run)
    assert [record.keys() - {"ratio_deviation/engine"} for record in one if "round" in record]
    for first, second in zip(one, two, strict=True):
        for name, value in first.items():
            if isinstance(value, float) and not name.startswith(("seconds/", "ratio_deviation", "clip_fraction")):
                assert second[name] == pytest.approx(value, rel=2e-3, abs=2e-4), name
    assert all(record["ratio_deviation/engine"] < 1e-4 for record in two if "round" in record)
    first, second = (load_file(path / "adapter/pytorch_lora_weights.safetensors") for path in (local, run))
    change = torch.cat([(first[name] - second[name]).flatten() for name in first]).norm()
    assert change < 0.02 * torch.cat([value.flatten() for name, value in first.items() if "lora_B" in name]).norm()


# What is refused before anything is sampled.


def config(**changes):
    engine = {"engine": "http://127.0.0.1:1", **changes.pop("sampling", {})}
    own = changes.pop("rollout_engine", {"folder": "adapters"})
    return Config(sampling=Sampling(**engine), rollout_engine=RolloutEngine(**own), **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rollout_engine": {}}, "rollout_engine.folder is not"),
        ({"sampling": {"engine": "127.0.0.1:1"}}, "rollout engine '127.0.0.1:1' is not an address"),
        ({"sampling": {"engine": "http://me:secret@a"}}, "put a token into .TASTEMAKER_ENGINE_TOKEN"),
        ({"sampling": {"per_prompt": 2, "branches": 2}}, "sampling.branches is 2"),
        ({"tuning": Tuning(mode="full")}, "set tuning.mode to lora"),
        ({"algorithm": DPPO()}, "dppo under these settings asks for the noise"),
        ({"algorithm": GRPO(ratio="normalised")}, "grpo under these settings asks for the noise"),
        ({"algorithm": AlignProp()}, "alignprop samples no rounds"),
    ],
)
def test_settings_that_are_refused(changes, said):
    with pytest.raises(ConfigError, match=said) as raised:
        config(**changes)
    assert "secret" not in str(raised.value)
    config()
    config(algorithm=GRPO())


def test_models_that_are_refused(model):
    unet = LatentUNet(SD, tiny.pipeline())
    flux = wrap_pipeline(tiny_flow.flux())
    for refused, sde, said in (
        (unet, make_sde(unet, STEPS, 0.7, "cps"), "flow-matching models alone"),
        (model, make_sde(model, STEPS, 0.7, "dance-sde"), "sampling.sde_type cps or flow-sde"),
        (flux, make_sde(flux, STEPS, 0.7), "FluxPipeline has latents packed into tokens"),
    ):
        with pytest.raises(ConfigError, match=said):
            require_engine_fits(refused, sde, 1)
    fine = make_sde(model, STEPS, 0.7)
    with pytest.raises(ConfigError, match="2 processes train"):
        require_engine_fits(model, fine, 2)
    require_engine_fits(model, fine, 1)


def test_a_resumed_run_may_have_another_engine_but_not_none():
    process: Any = SimpleNamespace(num_processes=1, is_fsdp2=False, device=torch.device("cpu"))
    one, two = config(), config(sampling={"engine": "http://b:2"}, rollout_engine={"folder": "x", "ratio_bound": 0.1})
    assert differences(fingerprint(one, process), fingerprint(two, process)) == []
    assert differences(fingerprint(one, process), fingerprint(Config(), process)) == [
        "sampling.engine a rollout engine -> None"
    ]


def test_a_plan_counts_what_is_computed_here():
    """The likelihood of 3 steps of 4 that have noise, and of one step of each image of an evaluation."""
    zero = {field.name: 0 for field in fields(Facts) if field.type == "int"}
    facts = Facts(**zero | {"prompts": 10, "processes": 1, "stochastic": (0, 1, 2)})
    for given, rows, evaluated in (({}, 8 * 4, 4), ({"engine": "http://127.0.0.1:1"}, 8 * 3, 1)):
        own = Config(
            rounds=1,
            sampling=Sampling(steps=STEPS, samples=8, guidance=1.0, **given),
            rollout_engine=RolloutEngine(folder="adapters"),
            evaluation=Evaluation(prompts=2, per_prompt=1, kl_images=0),
        )
        found = make_plan(own, facts)
        # Evaluations of 2 images before and after the round.
        assert (found.sampling_rows, found.evaluation_rows) == (rows, 2 * 2 * evaluated)
