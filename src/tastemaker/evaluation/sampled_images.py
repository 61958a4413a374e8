"""The images of an evaluation: sampled by every model from the same prompts and seeds, and kept as they are made."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from tastemaker.diffusion.model import Model
from tastemaker.diffusion.sampler import LocalSampler
from tastemaker.diffusion.sde import make_sde
from tastemaker.evaluation.distribution_metrics import chain_kl
from tastemaker.evaluation.evaluate import generate
from tastemaker.evaluation.evaluated_models import EvaluatedModel, changed
from tastemaker.evaluation.evaluation_files import EvaluationFolder, storing
from tastemaker.evaluation.evaluation_plan import EvaluationPlan, PromptSet
from tastemaker.evaluation.metrics import verdicts
from tastemaker.evaluation.model_settings import set_up
from tastemaker.models import load_model
from tastemaker.models.bundled import BUNDLED


def sample_images(plan: EvaluationPlan, folder: EvaluationFolder, advance: Callable[[int], None]) -> None:
    """Samples what the folder does not have yet; calls `advance` with the number of batches that are done.

    A base model is loaded once. Raises ModelError, PromptError, StorageError.
    """
    advance(len(folder.sampled))
    for base in dict.fromkeys(one.model for one in plan.models):
        todo = [one for one in plan.models if one.model == base and _missing(plan, folder, one)]
        if not todo:
            continue
        model = _loaded(plan, base)
        reference = _loaded(plan, base) if any(has_divergence(plan, one) for one in todo) else None
        for evaluated in todo:
            with changed(model, evaluated, folder.adapter(evaluated.label)):
                for prompt_set, number, part in _missing(plan, folder, evaluated):
                    beside = reference if has_divergence(plan, evaluated) else None
                    _sample(plan, folder, model, beside, evaluated, prompt_set, number, part)
                    advance(1)


def has_divergence(plan: EvaluationPlan, evaluated: EvaluatedModel) -> bool:
    """Whether a model's divergence from its base model is measured, which a base model itself does not have."""
    return "kl" in plan.metrics and evaluated.change is not None


def _missing(
    plan: EvaluationPlan, folder: EvaluationFolder, evaluated: EvaluatedModel
) -> Sequence[tuple[PromptSet, int, range]]:
    """The batches of a model that are not on disk."""
    return [
        (prompt_set, number, part)
        for prompt_set in plan.prompt_sets
        for number, part in enumerate(plan.parts(prompt_set))
        if (evaluated.label, prompt_set.name, number) not in folder.sampled
    ]


def _loaded(plan: EvaluationPlan, source: str) -> Model:
    model = load_model(source, plan.precision, plan.device)
    for prompt_set in plan.prompt_sets:
        model.check(prompt_set.prompts)
    set_up(model, plan.sampling)
    return model


def _sample(
    plan: EvaluationPlan,
    folder: EvaluationFolder,
    model: Model,
    reference: Model | None,
    evaluated: EvaluatedModel,
    prompt_set: PromptSet,
    number: int,
    part: range,
) -> None:
    sampling = plan.sampling
    sde = make_sde(model, sampling.steps, sampling.eta, sampling.sde_type)
    keep = sde.stochastic() if reference is not None else ()
    draw = prompt_set.draw.select(part)
    began = time.perf_counter()
    made = generate(model, LocalSampler(model, sde), draw, guidance=sampling.guidance, batch=sampling.batch, keep=keep)
    record: dict[str, Any] = {"seconds": time.perf_counter() - began}
    if reference is not None:
        rollout = made.rollout
        assert rollout.trajectory is not None
        record["kl"] = chain_kl(model, reference, sde, rollout.trajectory, rollout.cond).tolist()
    if "judge" in plan.metrics and evaluated.model in BUNDLED:
        # Of the images as they were made: with 8 bits a channel, a verdict now and then is another than a run's own.
        record["correct"] = verdicts(made.images, draw.prompts, judged=True)
    latents = made.rollout.x0 if plan.latents_needed else None
    with storing(folder.path):
        folder.add_images((evaluated.label, prompt_set.name, number), prompt_set, part, made.images, latents, record)
