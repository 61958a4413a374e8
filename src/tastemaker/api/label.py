"""`tm.label`: labelling projects from Python, as `tastemaker label` makes and reads them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tastemaker.api.objects import model_here, prompt_set
from tastemaker.api.runs import Run, load_run
from tastemaker.cli.sampling import SamplingFlags, chosen_sampling
from tastemaker.config.schema import Config
from tastemaker.data.pairs import PairSet
from tastemaker.diffusion.sde_types import SdeType
from tastemaker.errors import ConfigError
from tastemaker.labelling import statistics as numbers
from tastemaker.labelling.copying import Copied, copy_project
from tastemaker.labelling.create import Sampled, create_from_model, create_from_tasks
from tastemaker.labelling.export import NATIVE, Exported, ExportOptions, export_project
from tastemaker.labelling.imports import import_labels
from tastemaker.labelling.pairs import project_pairs
from tastemaker.labelling.project import NewImage, NewTask, Project, open_project
from tastemaker.labelling.settings import Labelling
from tastemaker.labelling.sources import Recipe, image_tasks
from tastemaker.models.adapter_files import find_adapter

__all__ = [
    "ExportOptions", "Labelling", "NewImage", "NewTask", "Project", "backup", "create", "export", "import_labels",
    "open", "pairs", "serving", "stats",
]  # fmt: skip


def create(
    folder: str | Path,
    settings: Labelling | None = None,
    *,
    run: Run | str | Path | None = None,
    model: str | Path | Any | None = None,
    adapter: Run | str | Path | None = None,
    prompts: str | Sequence[str] | None = None,
    images: str | Sequence[NewTask] | None = None,
    tasks: int | None = None,
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
    """A new labelling project, open: from a run, from a model with prompts, or from images.

    `run`: the run's trained model with its prompts and sampler settings. `model`, `prompts`: as in `tastemaker.train`,
    with an `adapter` if wanted. `images`: what `--images` of `tastemaker label create` takes, or a list of tasks.
    `tasks`: how many; by default one for each prompt, or as many as the images make. `steps` to `width`: of the
    sampler, as in `tastemaker.sample`; the run's when None. `database`: the URL of an empty PostgreSQL database.

    Raises ConfigError where the sources do not fit each other, DataError, ModelError or PromptError.
    """
    settings, target = settings or Labelling(), Path(folder)
    given = [name for name, value in (("run", run), ("model", model), ("images", images)) if value is not None]
    if len(given) != 1:
        raise ConfigError(f"give one of run, model and images, not {' and '.join(given) or 'none'}")
    if images is not None:
        made = image_tasks(images, settings, tasks)[0] if isinstance(images, str) else list(images)[:tasks]
        create_from_tasks(target, settings, made, database)
        return open_project(target)
    base = Config()
    if run is not None:
        trained = run if isinstance(run, Run) else load_run(run)
        base, adapter, model = trained.config, trained, trained.config.model
    elif prompts is None:
        raise ConfigError("give prompts for the model")
    listed = prompt_set(base.prompts if prompts is None else prompts).prompts
    flags = SamplingFlags(steps, guidance, embedded_guidance, negative_prompt, eta, sde_type, height, width)
    s = chosen_sampling(base.sampling, flags, named=str)
    recipe = Recipe(s.steps, s.guidance, s.eta, settings.seed, sde_type=s.sde_type)
    loaded = model_here(model, s)
    if adapter is not None:
        loaded.weights.load(find_adapter(adapter.folder if isinstance(adapter, Run) else adapter))
    name = str(adapter.folder if isinstance(adapter, Run) else adapter or model)
    create_from_model(target, settings, Sampled(loaded, listed, tasks or len(listed), recipe, name), database)
    return open_project(target)


def open(folder: str | Path) -> Project:
    """The project in a folder; close it, or use it in a `with` statement. Raises ConfigError, StorageError."""
    return open_project(folder)


def stats(project: Project) -> numbers.Statistics:
    """Progress, pace, labelers and their agreement, as they are now."""
    with project.database.read() as session:
        return numbers.statistics(session, project.settings, time.time())


def export(project: Project, out: str | Path, format: str = NATIVE, options: ExportOptions | None = None) -> Exported:
    """Writes an export into a new folder, as `tastemaker label export` does. Raises ConfigError, DataError."""
    return export_project(project, Path(out), format, options)


def backup(project: Project, folder: str | Path, database: str | None = None) -> Copied:
    """Copies a project as it is at one moment, while it may be labelled. Raises ConfigError, StorageError."""
    return copy_project(project, Path(folder), database)


def pairs(project: Project, split: str = "train") -> PairSet:
    """The pairs with a winner, as Diffusion-DPO learns from them. Raises DataError where there are none."""
    return project_pairs(str(project.folder), split)


@contextmanager
def serving(project: Project, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Serves the labelling app in a thread, as `tastemaker label serve` does, while the block runs.

    Gives the address with the administrator's token. Raises ConfigError where the port is taken.
    """
    from tastemaker.labelling.accounts import admin_token
    from tastemaker.labelling.serving import Serving, login_link, served_in_thread

    with served_in_thread(project, Serving(host), port) as address:
        yield login_link(address, admin_token(project.folder))
