"""`tm.evaluate_models`: several models on the same prompts and seeds, as `tastemaker evaluate` compares them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tastemaker.api.objects import prompt_set
from tastemaker.api.runs import Run
from tastemaker.cli.evaluation_options import Options, make_plan
from tastemaker.cli.evaluation_work import evaluate
from tastemaker.cli.folders import next_free
from tastemaker.cli.sampling import SamplingFlags
from tastemaker.diffusion.sde_types import SdeType
from tastemaker.errors import ConfigError, RewardError
from tastemaker.evaluation.evaluate_models import ModelEvaluation
from tastemaker.evaluation.evaluation_tables import result_rows
from tastemaker.rewards.base import Reward, RewardFunction, wrap

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class ModelComparison:
    """A finished evaluation of several models, and its folder."""

    folder: Path
    found: ModelEvaluation
    """The plan, the figures of every image, and the table's rows with their intervals."""

    @property
    def report(self) -> Path:
        """Path of report.html."""
        return self.folder / "report.html"

    def rows(self) -> list[dict[str, Any]]:
        """A row for each model, prompt set and metric, as in table.csv: `value`, `low`, `high`, `difference`, ..."""
        return [row.as_dict() for row in self.found.table]

    def images(self) -> list[dict[str, Any]]:
        """A row for each image, as in results.csv: `model`, `prompt`, `seed`, `reward/NAME`, `correct`, `image`, ..."""
        return result_rows(self.found.plan, self.found.folder, self.found.figures)

    def table(self) -> pandas.DataFrame:
        """`rows()` as a table. Raises ImportError without pandas."""
        import pandas

        return pandas.DataFrame(self.rows())


def evaluate_models(
    models: str | Path | Run | Sequence[str | Path | Run] | Mapping[str, str | Path | Run],
    out: str | Path | None = None,
    *,
    prompts: Mapping[str, str | Sequence[str]] | None = None,
    rewards: str | RewardFunction | Sequence[str | RewardFunction] | None = None,
    metrics: Sequence[str] = (),
    features: str | None = None,
    reference: str | Path | None = None,
    model: str | Path | None = None,
    prompt_count: int | None = None,
    seeds: int | None = None,
    seed: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    embedded_guidance: float | None = None,
    eta: float | None = None,
    sde_type: SdeType | None = None,
    negative_prompt: str | None = None,
    batch: int | None = None,
    height: int | None = None,
    width: int | None = None,
    precision: str | None = None,
) -> ModelComparison:
    """Samples the same prompts and seeds with all models, and measures them with 95 % intervals.

    - `models`: one or several, each a run, `RUN@ROUND`, an adapter, a base model, or mixtures ("mix A B --alpha 0.5"),
      as `tastemaker evaluate` takes them; with names, a mapping of these.
    - `out`: the folder; the next free runs/evaluation-<n> where it is None. One in which the same call was stopped goes
      on where it was.
    - `prompts`: lists of texts, or what `--prompts` takes, by the names of the prompt sets.
    - `rewards`: names, expressions or functions, besides those that the runs were trained on.

    What is None is the runs' own. Numbers have the ranges of the command's flags: counts from 1, `eta` from 0, `steps`
    to 1000. Raises a TastemakerError; where a reward fails, what was sampled and scored stays in the folder.
    """
    options = Options(
        models=_named(models),
        model=None if model is None else str(model),
        prompts={name: text if isinstance(text, str) else prompt_set(text) for name, text in (prompts or {}).items()},
        prompt_count=prompt_count,
        seeds=seeds,
        seed=seed,
        sampling=SamplingFlags(steps, guidance, embedded_guidance, negative_prompt, eta, sde_type, height, width),
        batch=batch,
        precision=precision,
        rewards=None if rewards is None else [one for one in _listed(rewards) if isinstance(one, str)],
        given=_functions(rewards),
        metrics=tuple(metrics) or None,
        features=features,
        reference=None if reference is None else Path(reference),
    )
    folder = Path(out) if out is not None else next_free("evaluation")
    plan = make_plan(options)
    return ModelComparison(folder, evaluate(plan, folder, again=f"call it again with out={str(folder)!r}"))


def _named(models: Any) -> list[str]:
    if isinstance(models, (str, Path, Run)):
        models = [models]
    if isinstance(models, Mapping):
        wrong = next((name for name in models if not name or set(name) & set("=/\\")), None)
        if wrong is not None:
            raise ConfigError(f"the name {wrong!r} of a model is empty, or has one of = / \\")
        return [f"{name}={_text(one)}" for name, one in models.items()]
    return [_text(one) for one in models]


def _text(model: str | Path | Run) -> str:
    return str(model.folder if isinstance(model, Run) else model)


def _listed(rewards: str | RewardFunction | Sequence[str | RewardFunction] | None) -> list[str | RewardFunction]:
    if rewards is None:
        return []
    return [rewards] if isinstance(rewards, str) or callable(rewards) else list(rewards)


def _functions(rewards: str | RewardFunction | Sequence[str | RewardFunction] | None) -> dict[str, Reward]:
    """The rewards that are functions, by their names. Raises RewardError where two have one name."""
    found: dict[str, Reward] = {}
    for one in _listed(rewards):
        if isinstance(one, str):
            continue
        made = wrap(one)
        if made.name in found:
            raise RewardError(f"two rewards are called {made.name!r}: give each a name of its own")
        found[made.name] = made
    return found
