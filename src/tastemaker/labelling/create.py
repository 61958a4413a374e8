"""Making a labelling project with its images: what `tastemaker label create` and `tm.label.create` do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tastemaker.diffusion.model import Model
from tastemaker.labelling.database import downgrade
from tastemaker.labelling.project import NewTask, Project, add_tasks, create_project
from tastemaker.labelling.settings import Labelling
from tastemaker.labelling.sources import Policy, Recipe, sampled_tasks
from tastemaker.runs.folders import new_folder

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Sampled:
    """Images to be sampled from a model."""

    model: Model
    prompts: Sequence[str]
    tasks: int
    """Tasks; the prompts come in turn."""
    recipe: Recipe
    name: str
    """What the model is called; never shown to labelers."""
    origin: dict[str, Any] = field(default_factory=dict)
    """What else is written down of how the images were made."""
    policies: Sequence[Policy] = ()
    """Who makes the images of a task in turn; the model alone where there are none."""


def create_from_model(
    folder: Path, settings: Labelling, source: Sampled, database: str | None = None, advance: Advance = lambda n: None
) -> None:
    """A new project with images of a model. `advance` is called with the number of images after each batch.

    The folder is there when all is made, and not before. Raises ConfigError, StorageError, ModelError.
    """
    policies = source.policies or (Policy(source.name),)
    tasks = sampled_tasks(
        source.model, source.prompts, settings, source.tasks, source.recipe, policies, source.origin, advance
    )
    _create(folder, settings, tasks, database)


def create_from_tasks(
    folder: Path,
    settings: Labelling,
    tasks: Iterable[NewTask],
    database: str | None = None,
    advance: Advance = lambda n: None,
) -> None:
    """A new project with given tasks, otherwise as `create_from_model`. Raises DataError for images that are broken."""

    def counted() -> Iterator[NewTask]:
        for task in tasks:
            yield task
            advance(len(task.images))

    _create(folder, settings, counted(), database)


def _create(folder: Path, settings: Labelling, tasks: Iterable[NewTask], database: str | None) -> None:
    with new_project(folder, settings, database) as project:
        for task in tasks:
            add_tasks(project, [task])


@contextmanager
def new_project(folder: Path, settings: Labelling, database: str | None = None) -> Iterator[Project]:
    """A new project, which is in its place when the block ends well, and nowhere else.

    Raises ConfigError, StorageError.
    """
    with new_folder(folder) as temporary, create_project(temporary, settings, database) as project:
        try:
            yield project
        except BaseException:
            if database is not None:  # which the folder's removal leaves as it is
                downgrade(project.database, "base")
            raise
