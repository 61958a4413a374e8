"""Algorithms of other packages on the command line: named, set by flags, planned, trained and resumed."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

import tastemaker as tm
from tastemaker.algorithms.ddpo import DDPO
from tastemaker.algorithms.registry import load_algorithm
from tastemaker.cli import settings
from tastemaker.cli.main import main
from tastemaker.cli.train import TrainArgs
from tastemaker.config.presets import PRESETS
from tastemaker.config.schema import Config
from tastemaker.config.yaml_file import dump_config, parse_config
from tastemaker.errors import ConfigError

PRESET = "ddpo-compressibility"
NAME = "own_reinforce:Mine"
OWN = """
from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from tastemaker.algorithms.requirements import Requirements
from tastemaker.errors import ConfigError
from tastemaker.types import all_rows

@dataclass(frozen=True)
class Schedule:
    warmup: int = 0
    decay: float = 1.0

@dataclass(frozen=True)
class Mine:
    \"\"\"REINFORCE with scaled advantages.\"\"\"

    name: ClassVar[str] = "mine"
    needs: ClassVar[Literal["rollouts"]] = "rollouts"
    scale: float = 1.0
    \"\"\"Factor of the advantages.\"\"\"
    centred: bool = False
    sign: Literal["plus", "minus"] = "plus"
    range: tuple[float, float] = (0.0, 1.0)
    steps: tuple[int, ...] = ()
    limit: Annotated[float, "seconds"] | None = None
    schedule: Schedule = Schedule()

    def __post_init__(self):
        if self.scale <= 0:
            raise ConfigError(f"algorithm.scale is {self.scale}, but must be greater than 0")

    requirements = Requirements()

    def prepare(self, task, rollout):
        return all_rows(rollout)

    def loss(self, task, rows):
        step = rows.transitions()
        return -self.scale * step.advantage * task.log_prob(step), {}
"""


@pytest.fixture(autouse=True)
def _own(tmp_path, monkeypatch):
    (tmp_path / "own_reinforce.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("own_reinforce", None)


def read(*argv):
    return settings.read(TrainArgs, list(argv), "train")[0].settings


@pytest.mark.parametrize("words", [[f"algorithm={NAME}"], ["--algorithm", NAME], [f"--algorithm={NAME}"]])
def test_it_is_named_with_or_without_dashes_and_set_by_flags(words):
    own = load_algorithm(NAME)
    assert read(PRESET, *words) == tm.preset(PRESET, f"algorithm={NAME}")
    assert read(PRESET, *words).algorithm == own()
    assert read(PRESET, *words).optimizer == PRESETS[PRESET].config.optimizer
    flags = ["--algorithm.scale", "3", "algorithm.centred=true", "algorithm.sign=minus", "algorithm.range=[2,3]"]
    flags += ["algorithm.steps=4,5,6", "algorithm.limit=7", "--algorithm.schedule.warmup", "8"]
    expected = own(scale=3.0, centred=True, sign="minus", range=(2.0, 3.0), steps=(4, 5, 6), limit=7.0)
    expected = replace(expected, schedule=replace(own().schedule, warmup=8))
    assert read(PRESET, *words, *flags).algorithm == expected
    assert read(*flags, *words, PRESET).algorithm == expected
    saved = dump_config(read(PRESET, *words, *flags))
    assert parse_config(saved, Config()).algorithm == expected
    assert read(PRESET, *words, "--algorithm.centred").algorithm == own(centred=True)


def test_flags_go_over_a_file_that_names_it(tmp_path):
    own = load_algorithm(NAME)
    (tmp_path / "own.yaml").write_text(f"preset: {PRESET}\nalgorithm: {{name: '{NAME}', scale: 2, centred: true}}\n")
    words = ["--config", "own.yaml"]
    assert read(*words, "algorithm.scale=4").algorithm == own(scale=4.0, centred=True)
    # Its own name keeps what the file says; another one's begins with its defaults.
    assert read(*words, f"algorithm={NAME}").algorithm == own(scale=2.0, centred=True)
    assert read(*words, "algorithm=ddpo", "algorithm.clip=0.5").algorithm == DDPO(clip=0.5)


def test_an_entry_points_name(monkeypatch):
    monkeypatch.setattr("tastemaker.algorithms.registry.installed", lambda: {"reinforce": NAME})
    assert read(PRESET, "algorithm=reinforce", "algorithm.scale=2").algorithm == load_algorithm(NAME)(scale=2.0)
    with pytest.raises(ConfigError, match="algorithm cannot be 'reinforse'; did you mean 'reinforce'"):
        read(PRESET, "algorithm=reinforse")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["algorithm=own_reinforce:Yours"], "the algorithm 'own_reinforce:Yours' cannot be imported (AttributeError"),
        (["algorithm=nowhere:Mine"], "the algorithm 'nowhere:Mine' cannot be imported (ModuleNotFoundError"),
        (["algorithm=own_reinforce:ConfigError"], "but must be a frozen dataclass"),
        ([f"algorithm={NAME}", "algorithm.clip=3"], "unknown flag --algorithm.clip"),
        ([f"algorithm={NAME}", "algorithm.scal=3"], "did you mean --algorithm.scale?"),
        ([f"algorithm={NAME}", "algorithm.scale=x"], "--algorithm.scale is 'x', expected a number"),
        ([f"algorithm={NAME}", "algorithm.scale=nan"], "algorithm.scale is nan, but must be finite"),
        ([f"algorithm={NAME}", "algorithm.scale=-1"], "algorithm.scale is -1.0, but must be greater than 0"),
        ([f"algorithm={NAME}", "algorithm.sign=left"], "--algorithm.sign cannot be 'left'; known: 'plus', 'minus'"),
        (["window=own_reinforce:Mine"], "window cannot be 'own_reinforce:Mine'; known: backward"),
    ],
)
def test_mistakes_are_one_sentence(words, message, capsys):
    assert main(["train", PRESET, *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("tastemaker: ")
    assert len(error.splitlines()) == 1


def test_help_shows_its_flags(capsys):
    assert main(["train", PRESET, "--algorithm", NAME, "--algorithm.scale", "3", "--help"]) == 0
    text = capsys.readouterr().out
    assert "REINFORCE with scaled advantages." in text
    assert "--algorithm.scale FLOAT" in text
    assert "Factor of the advantages. (default: 1.0)" in text
    assert "--algorithm.estimator" not in text


def test_a_dry_run_plans_it(capsys, tmp_path):
    assert main(["train", PRESET, f"algorithm={NAME}", "rounds=3", "--dry-run"]) == 0
    assert "algorithm       mine\n" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_a_run_takes_its_settings_and_goes_on(checkpoint, tmp_path):
    words = [
        "train", PRESET, "--model", str(checkpoint), "--rounds", "1", "--algorithm", NAME, "sampling.steps=3",
        "sampling.samples=4", "sampling.per_prompt=2", "sampling.batch=4", "optimizer.updates=1",
        "evaluation.prompts=1", "evaluation.per_prompt=1", "evaluation.kl_images=0",
    ]  # fmt: skip
    assert main([*words, "--out", "one"]) == 0
    assert main([*words, "--out", "three", "algorithm.scale=3"]) == 0
    one, three = tm.load_run("one"), tm.load_run("three")
    # The loss is that of the untrained model, before the round's only update, and proportional to the scale.
    assert three.metrics()[0]["loss"] == pytest.approx(3 * one.metrics()[0]["loss"], rel=1e-5)
    assert one.metrics()[0]["loss"] != 0

    assert main(["resume", "three", "--rounds", "2"]) == 0
    assert len(tm.load_run("three").metrics()) == 2
    text = (tmp_path / "three" / "config.yaml").read_text()
    assert "algorithm:\n  name: own_reinforce:Mine\n  scale: 3.0\n  centred: false\n" in text
    assert tm.load_run("three").config.algorithm == load_algorithm(NAME)(scale=3.0)
    assert "rounds: 2\n" in text
