"""A run's evaluations: fixed images of its prompts, and of prompts that are not trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tastemaker.data.prompt_set import PromptSet
from tastemaker.evaluation.evaluate import Evaluation, evaluate
from tastemaker.evaluation.metrics import diversity, share_correct
from tastemaker.rewards.expression import labels
from tastemaker.runs.checkpoint import State
from tastemaker.training.draws import EVALUATION, UNSEEN, draw_evaluation
from tastemaker.training.measurements import parts_means, reward_figures
from tastemaker.training.session import Session


@dataclass(frozen=True)
class RunEvaluation:
    """The evaluations of one model of a run."""

    reward_name: str
    """The reward that is trained; the others only look."""
    seen: Evaluation
    """Of the prompts that are trained on."""
    unseen: Evaluation | None = None
    """Of prompts that are not."""

    def record(self, state: State) -> dict[str, Any]:
        """The record for metrics.jsonl."""
        found = {"evaluation": state.round} | self._figures(self.seen, state, "eval/")
        return found if self.unseen is None else found | self._figures(self.unseen, state, "eval/unseen/")

    def reward(self, evaluation: Evaluation) -> Tensor:
        """[B] the trained reward of an evaluation's images."""
        return evaluation.scores[self.reward_name].total

    def _figures(self, evaluation: Evaluation, state: State, prefix: str) -> dict[str, float]:
        trained = evaluation.scores[self.reward_name]
        others = {name: scores.total for name, scores in evaluation.scores.items() if name != self.reward_name}
        means = zip(labels(list(others)), others.values(), strict=True)
        found = {
            **reward_figures(trained.total, state),
            **parts_means(trained.parts),
            **{f"rewards/{name}": values.double().mean().item() for name, values in means},
            "diversity": diversity(evaluation.images, evaluation.draw.prompts),
            **share_correct(evaluation.correct),
        }
        return {f"{prefix}{name}": value for name, value in found.items()}


def evaluate_run(session: Session) -> RunEvaluation:
    """Samples and scores the fixed images with the model as it is now.

    The first time, which is the base model's, combined rewards measure what they standardise on them.
    """
    seen = _evaluate(session, session.prompts, EVALUATION)
    session.remember_statistics()
    unseen = None if session.unseen is None else _evaluate(session, session.unseen, UNSEEN)
    return RunEvaluation(session.config.reward, seen, unseen)


def _evaluate(session: Session, prompts: PromptSet, number: int) -> Evaluation:
    config = session.config
    options, sampling = config.evaluation, config.sampling
    draw = draw_evaluation(prompts, config.seed, options.prompts, options.per_prompt, number)
    with session.phase("evaluate", len(draw) * sampling.steps), session.inference(), session.averaged():
        return evaluate(
            session.model, session.sampler, draw, {config.reward: session.reward, **session.others},
            guidance=sampling.guidance, batch=sampling.images_per_batch,
            judged=config.model == "bundled", advance=session.display.advance,
            # One process may leave; several have to be asked together.
            while_waiting=session.stop.check if session.accelerator.num_processes == 1 else lambda: None,
        )  # fmt: skip
