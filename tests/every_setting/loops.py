"""Cases of what happens between rounds: how many there are, evaluations, checkpoints, trackers. Rounds do nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file

from every_setting import Lab, acts
from tastemaker.evaluation.evaluate import Evaluation
from tastemaker.models.adapter_files import find_adapter
from tastemaker.rewards.base import Scores
from tastemaker.training import run, setup
from tastemaker.training.evaluations import RunEvaluation
from tastemaker.training.session import Session
from tastemaker.types import Draw

IMAGES = 20
DRAW = Draw(0, 1, ("a cat",) * IMAGES, (0,) * IMAGES, tuple(range(IMAGES)))


def trained(
    lab: Lab, measures: Sequence[float] = (), others: Sequence[float] = (), kl: Sequence[float] = (), **changes: Any
) -> Path:
    """The folder of a run whose rounds set all weights to the round's number, and whose evaluations find the measures
    as mean rewards, one after the other, and then 0. Likewise the means of a held-out reward, whose images have
    a deviation of 1, and the divergence."""
    values, looking, nats, out = iter(measures), iter(others), iter(kl), lab.new("run")

    @torch.no_grad()
    def one_round(session: Session) -> dict[str, Any]:
        session.state.round += 1
        for parameter in session.model.weights.trainable().values():
            parameter.fill_(session.state.round)
        return {"round": session.state.round, "reward/mean": 0.0}

    def evaluate_run(session: Session) -> RunEvaluation:
        scores = {"reward": Scores(torch.full((IMAGES,), next(values, 0.0)))}
        if others:
            scores["other"] = Scores(next(looking) + torch.tensor([-1.0, 1.0]).repeat(IMAGES // 2))
        divergence = torch.full((4,), next(nats)) if kl else None
        images = torch.zeros(IMAGES, 3, 8, 8)
        return RunEvaluation("reward", Evaluation(DRAW, images, scores, [None] * IMAGES), kl=divergence)

    with (
        mock.patch.object(setup, "load_model", lab._load),
        mock.patch.object(run, "one_round", one_round),
        mock.patch.object(run, "evaluate_run", evaluate_run),
        mock.patch.object(run, "write_adapter"),
        mock.patch.object(run, "write_report"),
        mock.patch.object(run, "summary", return_value=""),
    ):
        run.train(lab.config(**changes), out, command="test")
    return out


def records(out: Path, kind: str) -> list[int]:
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [record[kind] for record in found if kind in record]


def saved(out: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (out / "checkpoints").iterdir())


@acts("rounds")
def rounds(lab: Lab) -> None:
    assert records(trained(lab, rounds=3), "round") == [1, 2, 3]


@acts("evaluation.every")
def evaluation_every(lab: Lab) -> None:
    """And the first model, and the last."""
    assert records(trained(lab, rounds=5, evaluation={"every": 2}), "evaluation") == [0, 2, 4, 5]


@acts("early_stop.metric", "early_stop.min_delta")
def early_stop(lab: Lab) -> None:
    """The mean reward may be down to 0.5 below its highest, 1.2: 0.8 is not too low, and 0.65 is."""
    options = {"metric": "reward/mean", "min_delta": 0.5}
    out = trained(lab, [1.0, 1.2, 0.8, 0.65, 2.0], rounds=6, evaluation={"every": 1}, early_stop=options)
    assert records(out, "round") == [1, 2, 3]
    # What is kept is the last model that was above it.
    copies = load_file(out / "checkpoints/step-000003/copies.safetensors")
    assert {value.unique().item() for name, value in copies.items() if name.startswith("kept.")} == {2.0}
    # Without a metric it goes on.
    assert records(trained(lab, [1.0, 0.0, -1.0], rounds=2, evaluation={"every": 1}), "round") == [1, 2]


def warned(out: Path) -> list[int]:
    """The rounds after which an evaluation warned."""
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [record["evaluation"] for record in found if record.get("over_optimisation/warnings")]


RISING = [0.0, 1.0, 2.0, 3.0, 4.0]
EVERY: dict[str, Any] = {"rounds": 4, "evaluation": {"every": 1}}


@acts("over_optimisation.tolerance")
def tolerance(lab: Lab) -> None:
    """The other reward has a deviation of 1: 0.1 of two of them are 0.2, and 0.3 are 0.6. It has fallen by 0.3 twice,
    after rounds 1 and 2, and by 0.7 after rounds 3 and 4."""
    others = [0.0, -0.3, -0.3, -0.7, -0.7]
    assert warned(trained(lab, RISING, others, **EVERY)) == [2, 3, 4]
    assert warned(trained(lab, RISING, others, **EVERY, over_optimisation={"tolerance": 0.3})) == [4]


@acts("over_optimisation.kl_limit")
def kl_limit(lab: Lab) -> None:
    divergence = [0.0, 10.0, 20.0, 30.0, 40.0]
    changes: dict[str, Any] = {"rounds": 4, "evaluation": {"every": 1, "kl_images": 4}}
    assert warned(trained(lab, RISING, kl=divergence, **changes, over_optimisation={"kl_limit": 25.0})) == [3, 4]
    assert warned(trained(lab, RISING, kl=divergence, **changes)) == []


@acts("over_optimisation.keep_best")
def keep_best(lab: Lab) -> None:
    """The other reward is highest after round 2, and the trained one while nothing had fallen after round 3."""
    others = [0.0, 1.0, 2.0, 1.9, 0.5]
    for name, number, value in (("rewards/other", 2, 2.0), ("reward/mean", 3, 3.0)):
        out = trained(lab, RISING, others, **EVERY, over_optimisation={"keep_best": name})
        assert json.loads((out / "best/best.json").read_text()) == {"round": number, "metric": name, "value": value}
        left = load_file(find_adapter(out / "best"))
        assert {one.unique().item() for one in left.values()} == {float(number)}
    assert not (trained(lab, RISING, **EVERY) / "best").exists()


@acts("early_stop.over_optimisation")
def stop_at_over_optimisation(lab: Lab) -> None:
    """The other reward falls by 0.3 after rounds 2 and 3, which counts the second time; what is kept is from before."""
    others = [0.0, 0.0, -0.3, -0.3, 0.0]
    out = trained(lab, RISING, others, **EVERY, early_stop={"over_optimisation": True})
    assert records(out, "round") == [1, 2, 3]
    copies = load_file(out / "checkpoints/step-000003/copies.safetensors")
    assert {value.unique().item() for name, value in copies.items() if name.startswith("kept.")} == {1.0}
    assert records(trained(lab, RISING, others, **EVERY), "round") == [1, 2, 3, 4]


@acts("checkpoint.every")
def checkpoint_every(lab: Lab) -> None:
    """And the start, and the last round."""
    assert saved(trained(lab, rounds=5, checkpoint={"every": 2, "keep": 9})) == [0, 2, 4, 5]


@acts("checkpoint.keep")
def checkpoint_keep(lab: Lab) -> None:
    assert saved(trained(lab, rounds=5, checkpoint={"keep": 3})) == [3, 4, 5]


@acts("checkpoint.keep_every")
def checkpoint_keep_every(lab: Lab) -> None:
    assert saved(trained(lab, rounds=5, checkpoint={"keep": 1, "keep_every": 2})) == [0, 2, 4, 5]


@acts("trackers")
def trackers(lab: Lab) -> None:
    out = trained(lab, rounds=1, trackers=("tensorboard",))
    assert list((out / "trackers").rglob("events.out.tfevents.*"))
