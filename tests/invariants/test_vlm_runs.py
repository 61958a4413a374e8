"""Training on what a vision-language model says: bundled model, real server, real network calls; and its faults."""

from __future__ import annotations

import pytest
from test_runs import metrics

import tiny_language
from speaking import Speaking, failing
from tastemaker.cli.main import main
from tastemaker.rewards.serving import retry
from tastemaker.runs.checkpoint import saved_round

SHORT = [
    "--rounds", "2", "--prompts", "bundled-eight", "sampling.steps=3", "sampling.per_prompt=2", "sampling.samples=8",
    "sampling.batch=8", "optimizer.updates=1", "optimizer.rows=24", "evaluation.every=5", "evaluation.prompts=2",
    "evaluation.per_prompt=1",
    "evaluation.kl_images=0", "checkpoint.every=5", "vlm.wait=0.4", "vlm.timeout=5", "vlm.tries=2", "vlm.text_layer=2",
]  # fmt: skip
SECOND = 2 + 8
"""Requests before the second round: an evaluation of 2 images, which also tries the reward, and a round of 8."""


@pytest.fixture(autouse=True)
def _no_reports(monkeypatch):
    monkeypatch.setattr("tastemaker.training.run.write_report", lambda folder: folder / "report.html")  # a second each
    monkeypatch.setattr(retry, "backoff", lambda tries: 0.05)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return str(tiny_language.deberta(tmp_path_factory.mktemp("text") / "deberta"))


def words(out, reward, text, *more):
    preset = ["train", "ddpo-compressibility", "--reward", reward, "--out", str(out), f"vlm.text_model={text}"]
    return [*preset, *SHORT, *more]


def test_a_run_of_the_bundled_model(text, tmp_path):
    """Its images show something, so that the server has different things to say of them."""
    with Speaking() as server:
        name = f"vlm-bertscore:{server.name}"
        assert main(words(tmp_path / "run", name, text, "--rounds", "1", "sampling.steps=4")) == 0
        assert len(server.asked) == 2 + 8 + 2
    _, learned, _ = metrics(tmp_path / "run")
    assert 0.1 < learned["reward/min"] < learned["reward/max"] <= 1
    assert learned["grad_norm"] > 0


def test_a_run_whose_server_dies_goes_on_as_if_nothing_were(checkpoint, text, tmp_path, capsys):
    model = ["--model", str(checkpoint)]
    with Speaking() as server:
        assert main(words(tmp_path / "whole", f"vlm-bertscore:{server.name}", text, *model)) == 0
    run = tmp_path / "run"
    dying = lambda n: failing(500, {"error": {"message": "out of memory"}}) if n >= SECOND else None  # noqa: E731
    with Speaking(dying) as server:
        dead = server.url
        assert main(words(run, f"vlm-bertscore:{server.name}", text, *model)) == 69
    errors = capsys.readouterr().err.strip()
    assert "status 500: out of memory" in errors
    assert errors.endswith(f"saved up to round 1; go on with: tastemaker resume {run}")
    assert saved_round(run) == 1
    config = run / "config.yaml"
    then = config.read_text().replace(dead, "URL")
    with Speaking() as well:
        config.write_text(then.replace("URL", well.url).replace("tokens: 64", "tokens: 32"))
        assert main(["resume", str(run)]) == 2
        assert "vlm.tokens 64 -> 32" in capsys.readouterr().err
        # Another address is no other reward.
        config.write_text(then.replace("URL", well.url).replace("in_flight: 16", "in_flight: 3"))
        assert main(["resume", str(run)]) == 0
        assert well.most <= 3
    assert metrics(run) == metrics(tmp_path / "whole")
    for record in metrics(run):
        # What the server said, to the tiny DeBERTa: nothing of it is 0.
        assert 0.1 < record.get("reward/min", record.get("eval/reward/mean")) <= 1


def test_doctor_and_serve_take_the_same_settings(text, capsys):
    with Speaking() as server:
        name = f"vlm-bertscore:{server.name}"
        vlm = [f"vlm.text_model={text}", "vlm.text_layer=2"]
        assert main(["doctor", "--reward", name, "--size", "32", "--batch", "3", *vlm]) == 0
        assert "finite numbers for 3 images" in capsys.readouterr().out
    assert main(["doctor", "--reward", "vlm-yes-no:m@http://127.0.0.1:9/v1", "vlm.wait=0"]) == 69
    assert main(["doctor", "--reward", "vlm-bertscore:m@http://127.0.0.1:9/v1", "vlm.text_model=other"]) == 2
    assert "give vlm.text_layer" in capsys.readouterr().err


def test_evaluate_with_bertscore_goes_on_after_its_server_died(checkpoint, text, tmp_path, capsys):
    """Two models, four images each; what the first server said is kept, and the table is the uninterrupted one's."""
    run = tmp_path / "run"
    with Speaking() as server:
        name = f"vlm-bertscore:{server.name}"
        assert main(words(run, name, text, "--rounds", "1", "--model", str(checkpoint))) == 0
        asked = len(server.asked)
        evaluate = ["evaluate", str(run), "--prompt-count", "2", "--seeds", "2", "--metrics", "diversity"]
        assert main([*evaluate, "--out", str(tmp_path / "whole")]) == 0
        assert len(server.asked) == asked + 8
        first = server.url
    config = run / "config.yaml"
    then = config.read_text().replace(first, "URL")
    with Speaking(lambda n: failing(500, {"error": {"message": "out of memory"}}) if n >= 4 else None) as dying:
        config.write_text(then.replace("URL", dying.url))
        assert main([*evaluate, "--out", str(tmp_path / "out")]) == 69
    assert "status 500: out of memory" in capsys.readouterr().err
    with Speaking() as well:
        config.write_text(then.replace("URL", well.url))
        assert main([*evaluate, "--out", str(tmp_path / "out")]) == 0
        assert len(well.asked) == 4
        last = well.url
    whole, out = ((tmp_path / name / "table.csv").read_text() for name in ("whole", "out"))
    assert whole.replace(first, "URL") == out.replace(last, "URL")
    assert "vlm-bertscore" in whole
