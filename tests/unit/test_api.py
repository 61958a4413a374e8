"""The Python API: the same runs, images and figures as the command line, with objects in place of names."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import tastemaker as tm
import tiny
from tastemaker.algorithms.registry import load_algorithm, saved_name
from tastemaker.algorithms.requirements import Requirements
from tastemaker.cli.main import main
from tastemaker.config.schema import Config
from tastemaker.config.yaml_file import dump_config, parse_config
from tastemaker.errors import ConfigError, ModelError, PromptError, RewardError

SETTINGS = [
    "sampling.steps=3", "sampling.samples=4", "sampling.per_prompt=2", "sampling.batch=4", "optimizer.updates=2",
    "optimizer.rows=8", "optimizer.lr=1e-3", "evaluation.every=1", "evaluation.prompts=2", "evaluation.per_prompt=2",
    "evaluation.kl_images=0",
]  # fmt: skip
PROMPTS = ["cat", "dog", "fish"]
WEIGHTS = "pytorch_lora_weights.safetensors"


def config(*more):
    return tm.preset("ddpo-compressibility", *SETTINGS, *more)


def brightness(images, prompts):
    return images.mean(dim=(1, 2, 3))


def weights(run):
    found = load_file(run.adapter / WEIGHTS)
    assert any(values.any() for name, values in found.items() if "lora_B" in name or "lora.up" in name)
    return found


def same(first, second):
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two rounds on a pipeline, a function and a list."""
    return tm.train(config(), tiny.pipeline(), brightness, PROMPTS, tmp_path_factory.mktemp("api") / "objects", 2)


# The module itself


def test_the_import_is_quick_and_loads_no_torch():
    code = (
        "import sys, time; start = time.perf_counter(); import tastemaker; print(time.perf_counter() - start); "
        "print(*[m for m in ('torch', 'numpy', 'yaml', 'tyro', 'tastemaker.api') if m in sys.modules])"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    assert min(float(done.stdout.splitlines()[0]) for done in runs) < 0.1
    assert runs[0].stdout.splitlines()[1] == ""


def test_every_public_name_is_there_and_documented():
    for name in tm.__all__:
        assert getattr(tm, name).__doc__, name
        assert name in dir(tm)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = tm.trian  # type: ignore[attr-defined]


# Presets


def test_a_preset_with_assignments():
    plain = tm.preset("ddpo-compressibility")
    changed = tm.preset("ddpo-compressibility", "optimizer.lr=1e-4", "evaluation.rewards=[colourfulness]")
    assert isinstance(plain, tm.Config)
    assert changed == dataclasses.replace(
        plain,
        optimizer=dataclasses.replace(plain.optimizer, lr=1e-4),
        evaluation=dataclasses.replace(plain.evaluation, rewards=("colourfulness",)),
    )
    assert {"ddpo-compressibility", "ddpo-relations"} <= set(tm.presets())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ddpo-compresibility"], "did you mean 'ddpo-compressibility'"),
        (["ddpo-compressibility", "optimizer.l=1"], "did you mean --optimizer.lr"),
        (["ddpo-compressibility", "optimizer.lr"], "'optimizer.lr' is no assignment"),
        (["ddpo-compressibility", "--help"], "'--help' is no assignment"),
        (["ddpo-compressibility", "out=here"], "unknown flag --out"),
        (["ddpo-compressibility", "optimizer.lr=nan"], "must be finite"),
    ],
)
def test_wrong_presets_are_one_sentence(words, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        tm.preset(*words)


# Training


def test_it_is_the_commands_run(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["train", "ddpo-compressibility", "--model", str(checkpoint), "--out", "command", "--rounds", "1"]
    assert main([*words, *SETTINGS]) == 0
    found = tm.train(config(), checkpoint, rounds=1)
    assert found.folder == Path("runs/ddpo-1")
    assert same(weights(found), weights(tm.load_run("command")))
    assert found.config == tm.load_run("command").config


def test_objects_give_the_run_of_their_names(run, checkpoint, tmp_path, monkeypatch):
    """The pipeline on disk, a module's function and a file of prompts are the same as those in memory."""
    (tmp_path / "own_taste.py").write_text("def brightness(images, prompts):\n    return images.mean(dim=(1, 2, 3))\n")
    (tmp_path / "list.txt").write_text("\n".join(PROMPTS))
    monkeypatch.chdir(tmp_path)
    named = tm.train(config(), str(checkpoint), "own_taste:brightness", "list.txt", "named", 2)
    assert same(weights(named), weights(run))
    assert named.config.reward == "own_taste:brightness"
    assert run.config.reward == "in-memory:brightness"
    assert re.fullmatch(r"in-memory:StableDiffusionPipeline-[0-9a-f]{8}", run.config.model)
    assert re.fullmatch(r"in-memory:3-prompts-[0-9a-f]{8}", run.config.prompts)


def test_a_pipeline_stays_as_it_is(tmp_path):
    pipeline = tiny.pipeline().to(torch.float64)
    pipeline.unet.train()
    before = {name: values.clone() for name, values in pipeline.unet.state_dict().items()}
    made = tm.train(config(), pipeline, brightness, PROMPTS, tmp_path / "run", 1)
    tm.sample(pipeline, PROMPTS, adapter=made, steps=2)
    assert same(before, pipeline.unet.state_dict())
    assert pipeline.unet.training
    assert {parameter.requires_grad for parameter in pipeline.unet.parameters()} == {True}
    assert {part.dtype for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder)} == {torch.float64}
    pipeline.to(torch.float32).load_lora_weights(made.adapter)  # what the docstring says


def test_a_pixel_model(tmp_path):
    settings = config("sampling.guidance=1")
    found = tm.train(settings, tiny.pixels(), lambda x, prompts: x.mean(dim=(1, 2, 3)), PROMPTS, tmp_path / "run", 1)
    assert found.config.reward == "in-memory:<lambda>"
    assert found.config.model.startswith("in-memory:DDPMPipeline-")
    assert len(found.metrics()) == 1


def test_a_prompt_that_comes_twice_is_drawn_twice_as_often(tmp_path):
    """8 images of 2 prompts, systematically drawn by weight: 6 of one and 2 of the other at a weight of 3 to 1."""
    seen = []

    def count(images, prompts):
        seen.extend(prompts)
        return brightness(images, prompts)

    settings = config("sampling.samples=8", "sampling.per_prompt=1", "sampling.batch=8", "evaluation.every=9")
    settings = dataclasses.replace(settings, evaluation=dataclasses.replace(settings.evaluation, per_prompt=1))
    tm.train(settings, tiny.pipeline(), count, ["cat", "dog", "cat", "cat"], tmp_path / "run", 1)
    round_one = seen[2:10]  # after the base model's two, before the last model's
    assert (round_one.count("cat"), round_one.count("dog")) == (6, 2)


def test_the_command_refuses_to_go_on_with_objects(run, capsys, tmp_path):
    assert main(["resume", str(run.folder), "--rounds", "3"]) == 2
    said = capsys.readouterr().err
    assert "tastemaker.resume(run, model=..., reward=..., prompts=...)" in said
    assert len(said.strip().splitlines()) == 1
    words = ["sample", "--adapter", str(run.folder), "--prompt", "cat", "--out", str(tmp_path / "new")]
    assert main(words) == 2
    assert "was an object of the Python program" in capsys.readouterr().err


def test_a_run_with_objects_goes_on_bit_for_bit(run, tmp_path):
    half = tm.train(config(), tiny.pipeline(), brightness, PROMPTS, tmp_path / "half", 1)
    done = tm.resume(half, 2, model=tiny.pipeline(), reward=brightness, prompts=PROMPTS)
    assert same(weights(done), weights(run))
    assert [record["loss"] for record in done.metrics()] == [record["loss"] for record in run.metrics()]


def darkness(images, prompts):
    return -brightness(images, prompts)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompts": None}, "was started with the prompts in-memory:3-prompts-"),
        ({"prompts": ["cat", "dog"]}, "but is given in-memory:2-prompts-"),
        ({"prompts": ["dog", "cat", "fish"]}, "but is given in-memory:3-prompts-"),
        ({"prompts": "ddpo-animals"}, "but is given ddpo-animals"),
        ({"reward": darkness}, "but is given in-memory:darkness"),
        ({"model": 1}, "but is given in-memory:StableDiffusionPipeline-"),
    ],
)
def test_it_goes_on_with_the_same_objects_only(run, changed, message):
    given = {"model": tiny.pipeline(), "reward": brightness, "prompts": PROMPTS} | changed
    if given["model"] == 1:
        given["model"] = tiny.pipeline(seed=1)
    before = (run.folder / "config.yaml").read_bytes()
    with pytest.raises(ConfigError, match=re.escape(message)):
        tm.resume(run, 3, **given)
    assert (run.folder / "config.yaml").read_bytes() == before


def test_objects_for_what_had_a_name_are_refused(checkpoint, tmp_path):
    named = tm.train(config(), checkpoint, out=tmp_path / "named", rounds=1)
    with pytest.raises(ConfigError, match="or leave reward out"):
        tm.resume(named, 2, reward=brightness)
    assert len(tm.resume(named, 2).metrics()) == 2


def test_ctrl_c_lets_the_round_end_and_says_how_to_go_on(tmp_path):
    calls = []

    def interrupts(images, prompts):
        calls.append(len(images))
        if len(calls) == 2:  # the first round's, after the base model's
            os.kill(os.getpid(), signal.SIGINT)
        return brightness(images, prompts)

    handler, folder = signal.getsignal(signal.SIGINT), tmp_path / "run"
    with pytest.raises(tm.TastemakerError, match=r"after round 1 of 5.*tastemaker\.resume\(.*in Python"):
        tm.train(config(), tiny.pipeline(), interrupts, PROMPTS, folder, 5)
    assert signal.getsignal(signal.SIGINT) is handler
    assert len(tm.load_run(folder).metrics()) == 1
    assert tm.load_run(folder).adapter.is_dir()


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"reward": 3}, RewardError, "is no function, but int"),
        ({"reward": dict}, RewardError, "the reward 'dict' is a class"),
        ({"reward": lambda x, p: x}, RewardError, "<lambda> returned shape"),
        ({"prompts": []}, PromptError, "the list of prompts is empty"),
        ({"prompts": ["a", 1]}, PromptError, "prompt 2"),
        ({"model": object()}, ModelError, "the model is a object"),
        ({"rounds": 0}, ConfigError, "rounds is 0"),
    ],
)
def test_wrong_objects_leave_no_folder(given, error, message, tmp_path):
    arguments = {"model": tiny.pipeline(), "reward": brightness, "prompts": PROMPTS, "rounds": 1} | given
    with pytest.raises(error, match=re.escape(message)):
        tm.train(config(), out=tmp_path / "run", **arguments)
    assert not list(tmp_path.iterdir())


def test_a_pipeline_with_an_adapter_is_refused(run, tmp_path):
    pipeline = tiny.pipeline()
    pipeline.load_lora_weights(run.adapter)
    with pytest.raises(ModelError, match="has an adapter already"):
        tm.train(config(), pipeline, brightness, PROMPTS, tmp_path / "run", 1)


# Runs


def test_what_a_run_holds(run):
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["round"] for record in run.metrics()] == [1, 2]
    assert [record["evaluation"] for record in run.evaluations()] == [0, 1, 2]
    assert len(lines) == 5
    assert all(record in lines for record in [*run.metrics(), *run.evaluations()])
    assert run.table()["reward/mean"].tolist() == [record["reward/mean"] for record in run.metrics()]
    assert run.report.read_text().startswith("<!")
    assert run.config.rounds == 2
    assert tm.load_run(str(run.folder)) == run


def test_a_runs_images(run):
    before, after = run.images(round=0), run.images()
    assert [(shown.prompt, shown.seed) for shown in before] == [(shown.prompt, shown.seed) for shown in after]
    for number, shown in enumerate(after):
        # The reward is the mean of the image's pixels, which the file has in 8 bits.
        assert abs(np.asarray(shown.image).mean() / 255 - shown.reward) < 1 / 255
        assert shown.image == Image.open(run.folder / f"samples/round-0002/{number:03d}.png")
    mean = sum(shown.reward for shown in after) / len(after)
    assert mean == pytest.approx(run.evaluations()[-1]["eval/reward/mean"])
    with pytest.raises(ConfigError, match="no images of round 7; rounds with images: 0, 1, 2"):
        run.images(7)


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(ConfigError, match="is not a run"):
        tm.load_run(tmp_path)


# Sampling and evaluation


def test_samples_are_the_commands(run, checkpoint, tmp_path):
    words = ["sample", "--model", str(checkpoint), "--adapter", str(run.adapter), "--prompt", "cat", "--prompt", "dog"]
    words += ["--n", "2", "--seed", "3", "--steps", "4", "--guidance", "2", "--eta", "0.5"]
    assert main([*words, "--out", str(tmp_path / "command")]) == 0
    options = {"n": 2, "seed": 3, "steps": 4, "guidance": 2.0, "eta": 0.5}
    found = tm.sample(checkpoint, ["cat", "dog"], adapter=run, **options)
    assert found.save(tmp_path / "api") == tmp_path / "api"
    names = sorted(path.name for path in (tmp_path / "command").iterdir())
    assert names == ["000-00.png", "000-01.png", "001-00.png", "001-01.png", "samples.json", "sheet.png"]
    for name in names:
        assert (tmp_path / "api" / name).read_bytes() == (tmp_path / "command" / name).read_bytes(), name
    assert (found.prompts, found.seeds, len(found)) == (["cat", "cat", "dog", "dog"], [0, 1, 0, 1], 4)

    in_memory = tm.sample(tiny.pipeline(), ["cat", "dog"], adapter=run, **options)
    assert in_memory.images == found.images
    assert tm.sample(checkpoint, ["cat", "dog"], **options).images != found.images
    with pytest.raises(ConfigError, match="exists already"):
        found.save(tmp_path / "api")


def test_an_evaluation_by_hand(checkpoint):
    found = tm.evaluate(checkpoint, ["cat", "dog"], [brightness, "jpeg-compressibility"], n=2, steps=3, batch=3)
    pixels = np.stack([np.asarray(image, dtype=float) / 255 for image in found.samples.images])
    assert found.rewards["brightness"].numpy() == pytest.approx(pixels.mean(axis=(1, 2, 3)), abs=1 / 255)
    values = found.rewards["brightness"].double().numpy()
    assert found.metrics["brightness/mean"] == pytest.approx(values.mean())
    assert found.metrics["brightness/std"] == pytest.approx(values.std(), abs=1e-9)
    # Of two images the population deviation is half their distance.
    spread = np.mean([np.abs(pixels[0] - pixels[1]).mean() / 2, np.abs(pixels[2] - pixels[3]).mean() / 2])
    assert found.metrics["diversity"] == pytest.approx(spread, abs=1 / 255)
    assert found.correct == [None] * 4
    assert set(found.metrics) == {
        "brightness/mean", "brightness/std", "jpeg-compressibility/mean", "jpeg-compressibility/std", "diversity"
    }  # fmt: skip
    assert torch.equal(
        found.rewards["jpeg-compressibility"],
        tm.evaluate(checkpoint, ["cat", "dog"], "jpeg-compressibility", n=2, steps=3).rewards["jpeg-compressibility"],
    )


def test_the_bundled_model_is_judged():
    found = tm.evaluate("bundled", ["a red circle", "nonsense"], brightness, n=1, steps=2)
    assert found.correct[1] is None
    assert found.metrics["judge/correct"] == float(found.correct[0] is True)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n": 0}, ConfigError, "n is 0, but must be at least 1"),
        ({"steps": 0}, ConfigError, "steps is 0"),
        ({"steps": 1001}, ConfigError, "1001"),
        ({"eta": -1.0}, ConfigError, "eta is -1.0"),
        ({"batch": 0}, ConfigError, "batch is 0"),
        ({"adapter": "nowhere"}, ConfigError, "nowhere"),
    ],
)
def test_wrong_numbers(checkpoint, options, error, message):
    with pytest.raises(error, match=message):
        tm.sample(checkpoint, ["cat"], **options)


def test_two_rewards_of_one_name(checkpoint):
    with pytest.raises(RewardError, match="two rewards are called 'brightness'"):
        tm.evaluate(checkpoint, ["cat"], [brightness, brightness], steps=1)


def test_a_reward_by_name_and_by_mark():
    marked = tm.reward(differentiable=True)(lambda images, prompts: brightness(images, prompts))
    assert marked.differentiable
    x = torch.rand(2, 3, 8, 8)
    combined = tm.load_reward("2*jpeg-compressibility - 1")
    assert torch.allclose(combined(x, ["a", "b"]), 2 * tm.load_reward("jpeg-compressibility")(x, ["a", "b"]) - 1)


# Algorithms of other packages

OWN = """
from dataclasses import dataclass
from typing import ClassVar

from tastemaker.algorithms.requirements import Requirements

@dataclass(frozen=True)
class Mine:
    name: ClassVar[str] = "mine"
    needs: ClassVar[str] = "rollouts"
    scale: float = 1.0
    requirements = Requirements()
    def prepare(self, task, rollout): ...
    def loss(self, task, rows): ...

@dataclass(frozen=True)
class Needy:
    must: int
    name: ClassVar[str] = "needy"
    needs: ClassVar[str] = "rollouts"
    requirements = Requirements()
    def prepare(self, task, rollout): ...
    def loss(self, task, rows): ...

@dataclass(frozen=True)
class Unresolved:
    scale: "Missing" = 1.0
    name: ClassVar[str] = "unresolved"
    needs: ClassVar[str] = "rollouts"
    requirements = Requirements()
    def prepare(self, task, rollout): ...
    def loss(self, task, rows): ...

@dataclass(frozen=True)
class Mapping(Mine):
    weights: "dict[str, float] | None" = None

@dataclass(frozen=True)
class Inner:
    weights: "dict[str, float] | None" = None

@dataclass(frozen=True)
class Nested(Mine):
    inner: Inner = Inner()

@dataclass(frozen=True)
class Optional(Mine):
    inner: "Requirements | None" = None

@dataclass(frozen=True)
class Either(Mine):
    weights: "int | str" = 1

@dataclass(frozen=True)
class Lists(Mine):
    weights: "tuple[list[int], ...]" = ()

class Plain: ...

@dataclass(frozen=True)
class Nameless:
    scale: float = 1.0
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_algorithms.py").write_text(OWN)
    (tmp_path / "broken_algorithms.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield load_algorithm("own_algorithms:Mine")
    sys.modules.pop("own_algorithms", None)


def test_an_own_algorithm_comes_back_from_its_file(own):
    config = Config(algorithm=own(scale=2.0))
    text = dump_config(config)
    assert "name: own_algorithms:Mine\n  scale: 2.0" in text
    assert parse_config(text, Config()) == config
    assert parse_config("algorithm: {name: 'own_algorithms:Mine'}", Config()).algorithm == own()


def test_an_entry_point_names_an_algorithm(own, monkeypatch, capsys):
    monkeypatch.setattr("tastemaker.algorithms.registry.installed", lambda: {"mine-too": "own_algorithms:Mine"})
    assert saved_name(own) == "mine-too"
    assert load_algorithm("mine-too") is own
    assert main(["ls", "algorithms"]) == 0
    assert "from an installed package: own_algorithms:Mine" in capsys.readouterr().out
    assert parse_config(dump_config(Config(algorithm=own())), Config()).algorithm == own()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ddpoo", "did you mean 'ddpo'"),
        ("nowhere:Mine", "cannot be imported"),
        ("__main__:Mine", "defined in a script or notebook"),
        ("broken_algorithms:Mine", "ZeroDivisionError"),
        ("own_algorithms:Yours", "cannot be imported"),
        ("own_algorithms:Plain", "must be a frozen dataclass"),
        ("own_algorithms:Nameless", "has no name"),
        ("own_algorithms:Needy", "has no default value for must"),
        ("own_algorithms:Mapping", "setting weights of the algorithm 'own_algorithms:Mapping' has a type that config"),
        ("own_algorithms:Nested", "setting inner of the algorithm 'own_algorithms:Nested' has a type that config.yaml"),
        ("own_algorithms:Optional", "setting inner of the algorithm 'own_algorithms:Optional' has a type that config"),
        ("own_algorithms:Either", "has a type that config.yaml cannot hold"),
        ("own_algorithms:Lists", "has a type that config.yaml cannot hold"),
        ("own_algorithms:Unresolved", "cannot be read .NameError: name 'Missing' is not defined"),
    ],
)
def test_what_is_no_algorithm(own, name, message):
    with pytest.raises(ConfigError, match=message):
        load_algorithm(name)
    with pytest.raises(ConfigError, match=r"run\.yaml:1: "):
        parse_config(f"algorithm: {{name: '{name}'}}", Config(), "run.yaml")


def test_an_algorithm_that_could_not_be_read_again_is_refused(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Local:
        name = "local"
        needs = "rollouts"
        requirements = Requirements()

    settings = dataclasses.replace(config(), algorithm=Local())
    with pytest.raises(ConfigError, match="cannot be imported"):
        tm.train(settings, tiny.pipeline(), brightness, PROMPTS, tmp_path / "run")
