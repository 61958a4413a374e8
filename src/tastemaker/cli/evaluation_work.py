"""What `tastemaker evaluate` and `tm.evaluate_models` do with a plan: check, describe, evaluate and report."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tastemaker import models
from tastemaker.diffusion.model import image_size
from tastemaker.errors import RewardError
from tastemaker.evaluation.evaluate_models import ModelEvaluation, evaluate_models
from tastemaker.evaluation.evaluated_models import check
from tastemaker.evaluation.evaluation_files import is_evaluation
from tastemaker.evaluation.evaluation_plan import EvaluationPlan
from tastemaker.evaluation.evaluation_table import TableRow
from tastemaker.evaluation.evaluation_tables import interval_text
from tastemaker.evaluation.model_settings import set_up
from tastemaker.evaluation.sampled_images import has_divergence
from tastemaker.printing import Output, print_lines
from tastemaker.report.evaluation import write_evaluation_report
from tastemaker.rewards.base import functions, require_latents_of
from tastemaker.training.plan import BYTES
from tastemaker.training.preflight import parameters
from tastemaker.training.signals import Interrupted


@dataclass(frozen=True)
class BaseModel:
    """What a description says of a base model."""

    height: int
    """Of the images, in pixels."""
    width: int
    network: int
    """Parameters."""
    text_encoder: int
    vae: int


def check_models(plan: EvaluationPlan) -> dict[str, BaseModel]:
    """Reads all models' configs, and adapters, without loading the base models' weights.

    Raises a TastemakerError where one is missing or does not fit, or a prompt or reward is none of the model's.
    """
    found = {}
    for base in dict.fromkeys(one.model for one in plan.models):
        model = models.load_meta_model(base)
        for prompt_set in plan.prompt_sets:
            model.check(prompt_set.prompts)
        set_up(model, plan.sampling)
        require_latents_of(model, plan.rewards)
        model.encode([plan.prompt_sets[0].prompts[0]], plan.sampling.guidance)  # raises where it cannot be guided
        for one in plan.models:
            if one.model == base:
                check(one, model)
        height, width = image_size(model)
        parts = {name: parameters(part) for name, part in model.components.items()}
        vae = parts.pop("vae", 0)
        found[base] = BaseModel(height, width, parameters(model.network), sum(parts.values()), vae)
    return found


def described(plan: EvaluationPlan, bases: dict[str, BaseModel], out: Path) -> str:
    """What an evaluation will do, as text for a person."""
    images = sum(len(prompt_set.draw) for prompt_set in plan.prompt_sets)
    double = 1 if plan.sampling.guidance == 1 else 2
    divergent = sum(has_divergence(plan, one) for one in plan.models)
    batches = sum(len(plan.parts(prompt_set)) for prompt_set in plan.prompt_sets)
    steps = plan.sampling.steps
    calls = batches * steps * (len(plan.models) + 2 * divergent)
    size = BYTES[plan.precision]
    copies = 2 if divergent else 1
    # The VAE is in float32 whatever the rest is in.
    memory = max(copies * ((one.network + one.text_encoder) * size + one.vae * 4) for one in bases.values())
    sizes = ", ".join(dict.fromkeys(f"{one.height} x {one.width}" for one in bases.values()))
    lines = {
        "models": ", ".join(one.label for one in plan.models),
        "base models": ", ".join(f"{name} ({one.network:,} parameters)" for name, one in bases.items()),
        "prompts": "; ".join(f"{one.name}: {len(one.prompts)} of {one.source}" for one in plan.prompt_sets),
        "images": f"{images:,} of each model, {images * len(plan.models):,} in all, at {sizes} px (height x width)",
        "sampling": f"{steps} steps, guidance {plan.sampling.guidance:g}, eta {plan.sampling.eta:g}, batches of "
        f"{plan.sampling.batch}, {plan.precision} on {plan.device}",
        "network calls": f"{calls:,}, each with up to {plan.sampling.batch * double} rows"
        + (f", {2 * divergent * batches * steps:,} of them for kl" if divergent else ""),
        "rewards": ", ".join(plan.reward_labels.values()),
        "reward queries": f"{images * len(plan.models) * len(functions(plan.rewards)):,} images",
        "metrics": ", ".join(plan.metrics) + (f" (features: {plan.features})" if plan.features else ""),
        "memory": f"{memory / 2**20:,.0f} MiB for weights{' of two copies of the model' if divergent else ''}; "
        "activations and rewards come on top",
        "output": f"{out} (nothing has been written)",
    }
    return "\n".join(f"{name:15} {text}" for name, text in lines.items())


def evaluate(plan: EvaluationPlan, out: Path, again: str) -> ModelEvaluation:
    """Checks, evaluates and reports; shows a bar on a terminal. `again` says how to go on after a stop.

    Raises a TastemakerError, which is Interrupted after Ctrl-C.
    """
    check_models(plan)
    try:
        with _phases() as phases:
            made = evaluate_models(plan, out, phases)
    except RewardError as error:
        if not is_evaluation(out):
            raise
        raise type(error)(f"{error}; what was sampled and scored is in {out}: {again} to go on") from error
    except KeyboardInterrupt:
        raise Interrupted(f"stopped; what was sampled and scored is in {out}: {again} to go on") from None
    write_evaluation_report(made)
    return made


def show(made: ModelEvaluation, out: Path) -> None:
    """Prints a table for each prompt set, and where everything is."""
    output: Any = Output(sys.stdout)
    console = Console(file=output, markup=False, highlight=False)  # names may have brackets
    metrics = [name for name in dict.fromkeys(row.metric for row in made.table) if not name.startswith("win rate: ")]
    for prompt_set in made.plan.prompt_sets:
        shown = Table("metric", title=f"{prompt_set.name}: {len(prompt_set.prompts)} prompts of {prompt_set.source}")
        for model in made.plan.models:
            shown.add_column(model.label, justify="right")
        for metric in metrics:
            found = made.rows(metric)
            shown.add_row(metric, *(_cell(found.get((model.label, prompt_set.name))) for model in made.plan.models))
        console.print(shown)
    print_lines(
        "value with its 95 % interval; below it the difference to the base model, over the same prompts and seeds",
        *(out / name for name in sorted(made.files)), f"report: {out / 'report.html'}",
    )  # fmt: skip


def _cell(row: TableRow | None) -> str:
    if row is None:
        return ""
    value = interval_text(row.value)
    return value if row.difference is None else f"{value}\n{interval_text(row.difference, sign=True)}"


@contextmanager
def _phases() -> Iterator[Any]:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    output: Any = Output(sys.stderr)
    console = Console(file=output)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:

        def begin(name: str, total: int) -> Callable[[int], None]:
            task = progress.add_task(name, total=total)
            return lambda count: progress.advance(task, count)

        yield begin
