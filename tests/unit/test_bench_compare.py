"""`tastemaker bench --compare`: options in processes of their own, in turns with the settings as given."""

from __future__ import annotations

import io
import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tastemaker.benchmarking import bench, compare, compare_worker
from tastemaker.benchmarking.compare import AS_GIVEN, Measured, usual_options
from tastemaker.cli import bench as verb
from tastemaker.cli.main import main
from tastemaker.config.presets import PRESETS
from tastemaker.config.schema import Config, Sampling
from tastemaker.errors import ConfigError

SMALL = (
    "sampling.samples=4", "sampling.per_prompt=2", "sampling.steps=3", "optimizer.updates=2", "optimizer.rows=4",
)  # fmt: skip
CONFIG = PRESETS["ddpo-compressibility"].config


class FakeWorker:
    """Rounds take as many seconds as its config has images, times 1, 2, 3, .. for its first, second, third round."""

    order: list[int]

    def __init__(self, config: Config) -> None:
        self.images, self.rounds, self.failed = config.sampling.samples, 0, False
        self.compile_seconds = 5.0 if config.speed.compile else 0.0

    def __enter__(self) -> FakeWorker:
        if self.images == 48:
            raise compare.WorkerFailed("out of memory")
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def round(self) -> dict[str, float]:
        self.rounds += 1
        self.order.append(self.images)
        if self.images == 16:
            self.failed = True
            raise compare.WorkerFailed("it broke")
        return {
            "wall": float(self.images * self.rounds), "images_per_second": 2.0, "rows_per_second": 3.0,
            "peak_memory_gib": 0.5 * self.rounds,
        }  # fmt: skip


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeWorker]:
    monkeypatch.setattr(FakeWorker, "order", [], raising=False)
    monkeypatch.setattr(compare, "Worker", FakeWorker)
    return FakeWorker


def sized(images: int, **more: Any) -> Config:
    return replace(CONFIG, sampling=replace(CONFIG.sampling, samples=images), **more)


def test_options_take_turns_with_the_settings_as_given(fake: type[FakeWorker]):
    quicker = sized(32, speed=replace(CONFIG.speed, compile=True))
    found = compare.compare(sized(64), {"quicker": quicker, "slower": sized(128)}, 2)
    assert fake.order == [64, 32, 64, 32, 64, 128, 64, 128]
    given, first, second = found
    assert (given.option, given.walls, given.ratios) == (AS_GIVEN, [64, 128, 192, 256], [1, 1, 1, 1])
    # 32, 64 beside 64, 128; 128, 256 beside 192, 256.
    assert (first.walls, first.ratios, first.compile_seconds) == ([32, 64], [0.5, 0.5], 5.0)
    assert (second.walls, second.ratios) == ([128, 256], [128 / 192, 1.0])
    assert (second.wall, second.ratio) == (192, pytest.approx((128 / 192 + 1) / 2))
    assert first.peak_memory_gib == 0.5  # of the first round


def test_an_option_that_cannot_be_used_does_not_stop_the_others(fake: type[FakeWorker]):
    options = {"refused": ConfigError("no such thing"), "does not start": sized(48), "breaks": sized(16)}
    found = compare.compare(sized(64), options, 3)
    assert [one.refused for one in found] == ["", "no such thing", "out of memory", "it broke"]
    assert found[0].walls == [128, 192, 256]  # its first round was beside an option that broke
    assert [one.ratio for one in found[1:]] == [0, 0, 0]


def test_settings_as_given_that_break_end_the_comparison(fake: type[FakeWorker]):
    with pytest.raises(ConfigError, match="it broke"):
        compare.compare(sized(16), {"other": sized(32)}, 1)
    with pytest.raises(ConfigError, match="out of memory"):
        compare.compare(sized(48), {"other": sized(32)}, 1)


def test_pairs_are_refused():
    with pytest.raises(ConfigError, match="has none"):
        compare_worker.serve(PRESETS["mapo-sdxl"].config, io.StringIO(), io.StringIO())


def test_the_usual_options_are_those_the_settings_lack():
    expected = {
        "speed.compile=true", "speed.channels_last=true", "speed.attention=flash", "speed.attention=efficient",
        "speed.attention=math", "precision=bf16", "tuning.gradient_checkpointing=true",
    }  # fmt: skip
    assert set(usual_options(CONFIG, cuda=False)) == expected
    assert set(usual_options(CONFIG, cuda=True)) == expected | {"speed.tf32=true", "precision=fp16"}
    fast = replace(CONFIG, precision="bf16", speed=replace(CONFIG.speed, compile=True, attention="math"))
    assert set(usual_options(fast, cuda=False)) == expected - {
        "speed.compile=true", "precision=bf16", "speed.attention=math"
    }  # fmt: skip


def test_what_a_worker_answers(checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    """8 images in 2 s of sampling, and half of 24 rows in 3 s of training."""
    rows = replace(CONFIG.optimizer, updates=2, rows=4, first_share=1.0)
    config = replace(
        CONFIG, model=str(checkpoint), optimizer=rows, sampling=Sampling(samples=8, per_prompt=2, steps=3, guidance=1)
    )
    monkeypatch.setattr(
        compare_worker, "plain_round", lambda session: bench.PlainRound(6.0, {"sample": 2.0, "train": 3.0}, 0.5)
    )
    monkeypatch.setattr(compare_worker, "peak_memory", lambda device: 1.5)
    answers = io.StringIO()
    compare_worker.serve(config, io.StringIO("round\nround\n"), answers)
    started, *rounds = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert started == {"compile_seconds": 0.0}
    expected = {"wall": 6.0, "images_per_second": 4.0, "rows_per_second": 4.0, "peak_memory_gib": 1.5}
    assert rounds == [expected, expected]


def test_a_single_pass_trains_while_it_samples(checkpoint: Path, tmp_path: Path):
    optimizer = replace(CONFIG.optimizer, updates=1)
    config = replace(CONFIG, model=str(checkpoint), optimizer=optimizer)
    with bench.measured_session(replace(config, sampling=replace(config.sampling, samples=8, per_prompt=2))) as (
        session, _,
    ):  # fmt: skip
        calls = bench.calls_of_round(session)
        two = bench.rates(session, calls, {"sample": 2.0, "train": 3.0}, 1.0)
        session.config = replace(session.config, optimizer=replace(session.config.optimizer, single_pass=True))
        one = bench.rates(session, calls, {"sample": 2.0, "train": 3.0}, 1.0)
    assert two[0] == one[0] == 4.0
    assert two[1] / one[1] == pytest.approx(5 / 3)


def test_the_processes_of_the_command(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """One option that is measured, and one that fails in its process."""
    monkeypatch.chdir(tmp_path)
    words = ["ddpo-compressibility", "--model", str(checkpoint), *SMALL, "--json", "--repeats", "1"]
    wrong = "reward=missing_module:reward"
    assert main(["bench", *words, "--option", "optimizer.rows=2 seed=3", f"--option={wrong}"]) == 0
    given, smaller, failed = json.loads(capsys.readouterr().out)["options"]
    assert [one["option"] for one in (given, smaller, failed)] == [AS_GIVEN, "optimizer.rows=2 seed=3", wrong]
    assert given["ratio"] == 1
    assert smaller["ratios"] == [smaller["walls"][0] / given["walls"][0]]
    assert min(smaller["wall"], smaller["rows_per_second"], smaller["peak_memory_gib"]) > 0
    assert "missing_module" in failed["refused"]
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_dies_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho first >&2\necho 'no memory left' >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(compare.sys, "executable", str(broken))
    with pytest.raises(ConfigError, match=r"ended with exit code 3: no memory left$"):
        compare.compare(CONFIG, {}, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--option"], "--option needs settings"),
        (["--option="], "--option needs settings"),
        (["--option", "speed.compil=true"], "unexpected|unknown flag --speed.compil"),
        (["--option", "speed.attention=quick"], "speed.attention"),
        (["--option", "reward='a"], "No closing quotation"),
        (["--option", "speed.attention=quick", "--dry-run"], "speed.attention"),
        (["--compare", "--repeats", "0"], "must be greater than 0"),
    ],
)
def test_wrong_options_are_one_sentence(words: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert main(["bench", "ddpo-compressibility", *words]) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert any(part in error for part in message.split("|"))


def test_options_are_no_settings_of_the_run():
    argv = shlex.split("ddpo-clip --option 'seed=3 speed.compile=true' rounds=2 --option=precision=bf16")
    assert verb.without_options(argv) == (
        ["ddpo-clip", "rounds=2"], ["seed=3 speed.compile=true", "precision=bf16"],
    )  # fmt: skip


def test_the_usual_options_are_compared_without_any(fake: type[FakeWorker], capsys: pytest.CaptureFixture[str]):
    assert main(["bench", "ddpo-compressibility", "--compare", "--repeats", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    named = [line.split()[0] for line in lines[4:]]
    assert named == usual_options(CONFIG, torch.cuda.is_available())


def test_the_table():
    given = Measured(AS_GIVEN, "", [2.0, 2.0, 4.0], [1, 1, 1], 10.0, 20.0, 0.0, 0.5)
    faster = Measured("speed.compile=true", "", [1.0, 3.0], [0.5, 0.75], 12.0, 24.0, 90.0, 0.75)
    lines = verb.comparison("mine", [given, faster, Measured("precision=fp16", "no such type")]).splitlines()
    assert lines[0] == "mine: rounds of each option between rounds of the settings as given, 3 of those"
    assert lines[3].split() == ["as", "given", "2.000", "1.00", "10", "20", "0.50"]
    assert lines[4].split() == ["speed.compile=true", "2.000", "0.62", "0.50", "to", "0.75", "12", "24", "0.75", "90"]
    assert lines[5] == f"{'precision=fp16':20}not here: no such type"
