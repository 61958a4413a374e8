"""`tm.compare`: blind comparisons of models by people, as `tastemaker compare` makes and reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tastemaker.api.objects import model_here, prompt_set
from tastemaker.api.runs import Run
from tastemaker.cli.compared_models import base_settings, candidates, recognised
from tastemaker.cli.sampling import SamplingFlags, chosen_sampling, given_flags
from tastemaker.config.schema import Sampling
from tastemaker.diffusion.sde_types import SdeType
from tastemaker.human_evaluation.create import Candidate, FromModel, check_models, create_comparison, rows_of
from tastemaker.human_evaluation.result import Found, read_result, write_result
from tastemaker.human_evaluation.study import ComparedModel, Stopping, asked
from tastemaker.labelling.project import Project, open_project
from tastemaker.labelling.settings import Labelling
from tastemaker.labelling.sources import Recipe

__all__ = ["create", "result"]


def create(
    folder: str | Path,
    models: Mapping[str, str | Path | Run | Any],
    *,
    prompts: str | Sequence[str] | None = None,
    n: int | None = None,
    questions: Sequence[str] = ("fidelity", "alignment"),
    mode: Literal["pair", "best", "rank"] | None = None,
    overlap: int = 1,
    ties: bool = False,
    stop_when: Literal["decided", "complete"] = "decided",
    max_answers: int | None = None,
    level: float = 0.95,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    embedded_guidance: float | None = None,
    eta: float | None = None,
    sde_type: SdeType | None = None,
    negative_prompt: str | None = None,
    height: int | None = None,
    width: int | None = None,
    database: str | None = None,
) -> Project:
    """A new blind comparison of two or three models, as an open labelling project (`tm.label.serving` serves it).

    `models`: by name what `tastemaker compare create` takes as a source, a run, or a loaded pipeline, which stays as it
    is. `prompts`: as in `tastemaker.sample`; by default those of the first run, or of the images. `n`: seeds of each
    prompt. `questions`: `fidelity`, `alignment`, or NAME=TEXT. `mode`: by default `pair` for two models and `best` for
    three. `overlap`: labelers of each task. `ties`: whether two images may be called equal. `stop_when`, `max_answers`,
    `level`: when the study may stop, and at which level preferences are decided. The rest is as in `tastemaker.sample`.

    Raises ConfigError, DataError, ModelError or PromptError.
    """
    named = {name: value.folder if isinstance(value, Run) else value for name, value in models.items()}
    given = {name: recognised(f"{name}={value}") for name, value in named.items() if isinstance(value, (str, Path))}
    flags = SamplingFlags(steps, guidance, embedded_guidance, negative_prompt, eta, sde_type, height, width)
    base, of_runs = base_settings(list(given.values()), given_flags(flags), named=str)
    sampling = chosen_sampling(base, flags, named=str)
    check_models([given[name].described if name in given else _described(name, value) for name, value in named.items()])
    found: list[Candidate] = [
        candidates([given[name]], sampling)[0] if name in given else _loaded(name, value, sampling)
        for name, value in named.items()
    ]
    mode = mode or ("pair" if len(found) == 2 else "best")
    listed = asked(questions, mode)
    images = all(isinstance(one, FromModel) for one in found)
    chosen_prompts = prompts if prompts is not None else of_runs if images else None
    rows = rows_of(found, None if chosen_prompts is None else prompt_set(chosen_prompts).prompts, n)
    settings = Labelling(
        mode, 2 if mode == "pair" else len(found), "Image comparison", listed[0].text, ties=ties, both_bad=False,
        skip=False, marks=(), overlap=overlap, validation=0.0,
    )  # fmt: skip
    size = (width, height) if width is not None and height is not None else None
    recipe = Recipe(sampling.steps, sampling.guidance, sampling.eta, seed, sde_type=sampling.sde_type)
    stopping = Stopping(stop_when, max_answers, level)
    create_comparison(Path(folder), settings, found, rows, listed, stopping, recipe, size=size, database=database)
    return open_project(folder)


def result(folder: str | Path | Project, out: str | Path | None = None, leave_out: Sequence[str] = ()) -> Found:
    """The result of a comparison as it stands, which is written into the folder `out` where that is given.

    `leave_out` are the names of labelers whose answers do not count. Raises ConfigError, DataError where nobody has
    answered, StorageError.
    """
    found = read_result(folder.folder if isinstance(folder, Project) else folder, leave_out)
    if out is not None:
        write_result(found, Path(out))
    return found


def _described(name: str, pipeline: Any) -> ComparedModel:
    return ComparedModel(name, f"a {type(pipeline).__name__} of the program ({name})")


def _loaded(name: str, pipeline: Any, sampling: Sampling) -> FromModel:
    return FromModel(_described(name, pipeline), lambda: model_here(pipeline, sampling))
