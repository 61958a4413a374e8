"""A run's evaluations: fixed images of its prompts, and of prompts that are not trained on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tastemaker.data.prompt_set import PromptSet
from tastemaker.diffusion.model import Model
from tastemaker.diffusion.sampler import LocalSampler, batches
from tastemaker.diffusion.sde import make_sde
from tastemaker.evaluation.collapse import differences, grid_power
from tastemaker.evaluation.distribution_metrics import compared_transition
from tastemaker.evaluation.evaluate import Evaluation, evaluate
from tastemaker.evaluation.metrics import diversity, diversity_by_image, share_correct
from tastemaker.evaluation.over_optimisation import Look, Measure, Measured
from tastemaker.models import lora
from tastemaker.models.bundled import BUNDLED
from tastemaker.rewards.expression import labels
from tastemaker.runs.checkpoint import State
from tastemaker.training.draws import EVALUATION, UNSEEN, draw_evaluation
from tastemaker.training.measurements import parts_means, reward_figures
from tastemaker.training.session import Session
from tastemaker.training.trackers import Table
from tastemaker.types import Cond, Draw


@dataclass(frozen=True)
class RunEvaluation:
    """The evaluations of one model of a run."""

    reward_name: str
    """The reward that is trained on; the others are held out."""
    seen: Evaluation
    """Of the prompts that are trained on."""
    unseen: Evaluation | None = None
    """Of prompts that are not."""
    kl: Tensor | None = None
    """[k] divergence of the chain from the base model's, in nats, of some of the images; None where not measured."""
    rewarded: bool = True
    """Whether training follows the reward; one that learns from given pairs does not."""
    look: Look | None = None
    """What it says beside the evaluations before it; None for the base model's."""

    def record(self, state: State) -> dict[str, Any]:
        """The record for metrics.jsonl."""
        found = {"evaluation": state.round} | self._figures(self.seen, state, "eval/")
        if self.unseen is not None:
            found |= self._figures(self.unseen, state, "eval/unseen/")
        found |= {f"eval/{name}": _mean(one.values) for name, one in self.held_out.items() if name.endswith(_COLLAPSE)}
        if self.kl is not None:
            found["eval/kl"] = self.kl.mean().item()
        if self.look is not None:
            found |= self.look.figures()
        return found

    def reward(self, evaluation: Evaluation) -> Tensor:
        """[B] the trained reward of an evaluation's images."""
        return evaluation.scores[self.reward_name].total

    @cached_property
    def held_out(self) -> dict[str, Measure]:
        """What was measured on the images and is not trained on, by the names that records have."""
        found = self._measures(self.seen)
        if not self.rewarded:
            found["reward/mean"] = _rewards(self.reward(self.seen))
        if self.unseen is not None:
            found |= {f"unseen/{name}": measure for name, measure in self._measures(self.unseen).items()}
            found["unseen/reward/mean"] = _rewards(self.reward(self.unseen))
        return found

    def measured(self, round: int) -> Measured:
        """What is compared with earlier evaluations."""
        trained = tuple(self.reward(self.seen).tolist()) if self.rewarded else None
        return Measured(round, self.held_out, trained, () if self.kl is None else tuple(self.kl.tolist()))

    def _measures(self, evaluation: Evaluation) -> dict[str, Measure]:
        images, prompts = evaluation.images, evaluation.draw.prompts
        same, other = differences(images, prompts)
        values = {
            "diversity": diversity_by_image(images, prompts), "difference/seeds": same, "difference/prompts": other,
            "grid_power": grid_power(images),
        }  # fmt: skip
        shares = {name: _finite(found) for name, found in values.items() if found is not None}
        shares["judge/correct"] = tuple(float(verdict) for verdict in evaluation.correct if verdict is not None)
        found = {name: Measure(v, lower_is_better=name == "grid_power") for name, v in shares.items() if v}
        return found | {f"rewards/{name}": _rewards(total) for name, total in self.others(evaluation).items()}

    def others(self, evaluation: Evaluation) -> dict[str, Tensor]:
        """[B] each of the held-out rewards, by short names."""
        others = {name: scores.total for name, scores in evaluation.scores.items() if name != self.reward_name}
        return dict(zip(labels(list(others)), others.values(), strict=True))

    def table(self, evaluation: Evaluation) -> Table:
        """Of each image its prompt, its number among the prompt's, rewards, and the judge's verdict if there is one."""
        draw = evaluation.draw
        columns: dict[str, Sequence[str | int | float | bool | None]] = {
            "prompt": draw.prompts, "image": draw.sample_index, "reward": self.reward(evaluation).tolist(),
        }  # fmt: skip
        columns |= {f"rewards/{name}": values.tolist() for name, values in self.others(evaluation).items()}
        if any(verdict is not None for verdict in evaluation.correct):
            columns["judged correct"] = evaluation.correct
        return Table(list(columns), list(zip(*columns.values(), strict=True)))

    def _figures(self, evaluation: Evaluation, state: State, prefix: str) -> dict[str, float]:
        trained = evaluation.scores[self.reward_name]
        found = {
            **reward_figures(trained.total, state),
            **parts_means(trained.parts),
            **{f"rewards/{name}": values.double().mean().item() for name, values in self.others(evaluation).items()},
            "diversity": diversity(evaluation.images, evaluation.draw.prompts),
            **share_correct(evaluation.correct),
        }
        return {f"{prefix}{name}": value for name, value in found.items()}


_COLLAPSE = ("difference/seeds", "difference/prompts", "grid_power")


def _finite(values: Tensor) -> tuple[float, ...]:
    return tuple(value for value in values.tolist() if math.isfinite(value))


def _rewards(values: Tensor) -> Measure:
    return Measure(tuple(values.double().tolist()), "reward")


def _mean(values: tuple[float, ...]) -> float:
    return math.fsum(values) / len(values)


def evaluate_run(session: Session) -> RunEvaluation:
    """Samples and scores the fixed images with the model as it is now.

    The first time, which is the base model's, combined rewards measure what they standardise on them.
    """
    seen = _evaluate(session, session.prompts, EVALUATION)
    session.remember_statistics()
    unseen = None if session.unseen is None else _evaluate(session, session.unseen, UNSEEN)
    kl = divergence(session, seen.draw)
    return RunEvaluation(session.config.reward, seen, unseen, kl, rewarded=session.pairs is None)


@dataclass(frozen=True)
class _Base:
    """The model that training started from, as a Denoiser."""

    model: Model
    without_training: Callable[[], AbstractContextManager[None]]

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return self.model.latent_shape

    @property
    def device(self) -> torch.device:
        return self.model.device

    def denoise(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        with self.without_training():
            return self.model.denoise(x, t, cond)


def divergence(session: Session, draw: Draw) -> Tensor | None:
    """[k] the divergence of the model's chain from the base model's, in nats, on k = `evaluation.kl_images` images.

    They are the first of each prompt, then the second, and so on. A chain without noise has no divergence: where
    sampling.eta is 0, that of the ancestral sampler's is measured (eta = 1). None where none is asked for, and where
    the whole network is trained and no copy of the base model is held.
    """
    config, model, weights = session.config, session.model, session.model.weights
    count = min(config.evaluation.kl_images, len(draw))
    copied = weights.held is not None and not config.reference.every
    if not count or (weights.full and not copied):
        return None
    held = weights.held
    base = _Base(model, held.swapped_in if weights.full and held else lambda: lora.adapters_off(weights.network))
    by_turns = sorted(range(len(draw)), key=lambda index: draw.sample_index[index])
    chosen = draw.select(sorted(by_turns[:count]))
    steps = config.sampling.steps
    sde = make_sde(model, steps, config.sampling.eta or 1.0, config.sampling.sde_type)
    found = []
    with session.phase("evaluate", count * steps), session.inference(), session.averaged():
        for part in batches(count, config.sampling.images_per_batch):
            own = chosen.select(part)
            cond = model.encode(own.prompts, config.sampling.guidance)
            steps_kl: list[Tensor] = []
            LocalSampler(model, sde).sample_with(
                compared_transition(base, steps_kl), own, cond, sde.stochastic(),
                lambda: session.display.advance(len(part)),  # noqa: B023
            )  # fmt: skip
            found.append(sum(steps_kl, torch.zeros(len(part), dtype=torch.float64)))
    return torch.cat(found)


def _evaluate(session: Session, prompts: PromptSet, number: int) -> Evaluation:
    config = session.config
    options, sampling = config.evaluation, config.sampling
    draw = draw_evaluation(prompts, config.seed, options.prompts, options.per_prompt, number)
    with session.phase("evaluate", len(draw) * sampling.steps), session.inference(), session.averaged():
        return evaluate(
            session.model, session.sampler, draw, {config.reward: session.reward, **session.others},
            guidance=sampling.guidance, batch=sampling.images_per_batch,
            judged=config.model in BUNDLED, advance=session.display.advance,
            # One process may leave; several have to be asked together.
            while_waiting=session.stop.check if session.accelerator.num_processes == 1 else lambda: None,
        )  # fmt: skip
