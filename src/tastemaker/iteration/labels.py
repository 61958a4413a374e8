"""The labels of an iteration: images of the policy in a labelling project, and people or simulated people before it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tastemaker.config.schema import Config
from tastemaker.data.prompts import load_prompts
from tastemaker.errors import ConfigError
from tastemaker.evaluation.images import load_here
from tastemaker.iteration.settings import Loop, SimulatedLabelers, Waiting
from tastemaker.labelling.accounts import admin_token
from tastemaker.labelling.create import Sampled, create_from_model
from tastemaker.labelling.progress import finished_tasks
from tastemaker.labelling.project import Project, open_project
from tastemaker.labelling.serving import Serving, login_link, served_by, served_in_thread
from tastemaker.labelling.simulate import invited, simulate
from tastemaker.labelling.sources import Policy, Recipe
from tastemaker.labelling.taste import Behaviour, utility_of
from tastemaker.training.setup import split_prompts

POLL = 2.0
"""Seconds between looks at how far people are."""
Log = Callable[[str], None]


def sample_tasks(folder: Path, loop: Loop, config: Config, number: int, policies: Sequence[Policy], log: Log) -> None:
    """Makes the labelling project of iteration `number`; the images of a task are made by the policies in turn.

    The prompts are those of the training, in turn, and the sampler is a round's; each iteration has other noise.
    """
    prompts, _ = split_prompts(config, load_prompts(config.prompts))
    log(f"sampling {loop.tasks} tasks of {loop.label.task_size} images")
    s = config.sampling
    model = load_here(config.model, s)
    recipe = Recipe(s.steps, s.guidance, s.eta, seed=config.seed + number, batch=s.batch, sde_type=s.sde_type)
    source = Sampled(model, prompts.prompts, loop.tasks, recipe, config.model, policies=policies)
    create_from_model(folder, loop.label, source)


def wait_for_labels(folder: Path, loop: Loop, waiting: Waiting, log: Log) -> None:
    """Serves the project until all its tasks are labelled, by people or by simulated ones.

    Raises ConfigError where simulated people leave some, and where the port is taken.
    """
    with open_project(folder) as project:
        done, tasks = counts(project)
        if done == tasks or (waiting.accept_unfinished and done):
            return
        if loop.simulate:
            _simulated(project, loop.simulated, log)
        else:
            _people(project, waiting, log)
        done, tasks = counts(project)
        if done < tasks and not waiting.accept_unfinished:
            raise ConfigError(
                f"{tasks - done} of the {tasks} tasks of {folder} are not labelled, though the labelers have stopped: "
                f"label them by `tastemaker label serve {folder}`, or go on without them with --accept-unfinished"
            )


def counts(project: Project) -> tuple[int, int]:
    """Labelled tasks and all tasks."""
    with project.database.read() as session:
        return finished_tasks(session, project.settings)


def _simulated(project: Project, labelers: SimulatedLabelers, log: Log) -> None:
    behaviour = Behaviour(labelers.temperature, labelers.tie, labelers.left_bias, disagreement=labelers.disagreement)
    utility = utility_of(labelers.utility)
    with served_in_thread(project, Serving()) as url:
        crowd = invited(project, url, labelers.count, labelers.seed)
        log(f"{labelers.count} simulated labelers at {url}")
        began = time.monotonic()
        tally = asyncio.run(simulate(crowd, behaviour, utility, labelers.seed))
        for line in tally.lines(max(time.monotonic() - began, 1e-3)):
            log(line)


def _people(project: Project, waiting: Waiting, log: Log) -> None:
    served = served_by(project.folder)
    if served is not None:
        log(f"waiting for labels of {project.folder}, which is served at {served[0]}")
        _wait(project, log)
        return
    with served_in_thread(project, Serving(waiting.host), waiting.port) as url:
        log(f"label the images of {project.folder} at {login_link(url, admin_token(project.folder))}")
        _wait(project, log)


def _wait(project: Project, log: Log) -> None:
    """Returns when all tasks are labelled; says now and then how many are."""
    said = -1
    while True:
        done, tasks = counts(project)
        step = max(1, tasks // 10)
        if done // step != said // step:
            log(f"{done} of {tasks} tasks are labelled")
            said = done
        if done >= tasks:
            return
        time.sleep(POLL)
