"""What people said of images, as a reward model learns it: tasks of one prompt and K images, and pairs with labels.

Several labelers' votes on a pair are averaged to one soft label. Cross-entropy is linear in the label, so that this is
the same as a pair for each vote; a pair's weight is the number of its votes.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa

from tastemaker.data.images import read_image
from tastemaker.data.pairs import PairSet, load_pairs
from tastemaker.errors import DataError
from tastemaker.labelling.image_files import image_path
from tastemaker.labelling.judgements import from_row
from tastemaker.labelling.project import is_project, open_project, split_of
from tastemaker.labelling.ranking import implied, state
from tastemaker.labelling.settings import Labelling
from tastemaker.labelling.tables import Assignment, JudgementRow, Prompt, TaskImage
from tastemaker.labelling.tables import Task as TaskRow

LEAST_TASKS = 10
"""Tasks below which a reward model would only learn its few images by heart."""
VALIDATION = 0.2
"""Share that is set apart where the data do not say."""
SplitBy = Literal["prompt", "task"]


@dataclass(frozen=True)
class Pair:
    """Two images of a task."""

    a: int
    """Position in the task."""
    b: int
    better: float
    """Probability in [0, 1] that a is the better one; 0.5 for a tie, or for as many votes on each side."""
    weight: float = 1.0
    """Votes."""


@dataclass(frozen=True)
class Task:
    """A prompt with K images, of which pairs were compared."""

    prompt: str
    images: tuple[int, ...]
    """Indices of the K images in `Comparisons.images`."""
    pairs: tuple[Pair, ...]
    validation: bool = False


@dataclass(frozen=True)
class ImageSource:
    """An image file that was compared."""

    value: Any
    """What `data.images.read_image` takes."""
    where: str
    """Where it comes from, for messages."""


@dataclass(frozen=True)
class Comparisons:
    """All tasks of a project, table or data set, with their images."""

    source: str
    tasks: tuple[Task, ...]
    images: tuple[ImageSource, ...]
    digest: str
    """SHA-256 of the prompts, images and labels: what a reward model was trained on."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What a report says of the data."""

    @property
    def training(self) -> list[Task]:
        return [task for task in self.tasks if not task.validation]

    @property
    def validation(self) -> list[Task]:
        return [task for task in self.tasks if task.validation]


def load_comparisons(
    source: str, *, validation: float | None = None, seed: int = 0, split_by: SplitBy = "prompt", split: str = "train"
) -> Comparisons:
    """The comparisons of a labelling project's folder, or of a table or data set as `data.pairs.load_pairs` reads it.

    `validation` is the share of the prompts (or tasks) that are set apart, by `seed`; None takes a project's own split,
    and 20 % elsewhere. Raises DataError for data that nothing can be learned from, ConfigError, StorageError.
    """
    found = _of_project(Path(source).expanduser()) if is_project(source) else _of_pairs(source, split)
    if validation is not None or split_by == "task" or not is_project(source):
        found = split_again(found, VALIDATION if validation is None else validation, seed, split_by)
    return _checked(found, split_by)


def load_several(
    sources: Sequence[str], *, validation: float | None = None, seed: int = 0, split_by: SplitBy = "prompt",
    split: str = "train",
) -> Comparisons:  # fmt: skip
    """`load_comparisons` of one or several sources, as one; each must be enough by itself. Raises what that raises."""
    found = [
        load_comparisons(source, validation=validation, seed=seed, split_by=split_by, split=split) for source in sources
    ]
    return found[0] if len(found) == 1 else merged(found, split_by)


def merged(parts: Sequence[Comparisons], split_by: SplitBy = "prompt") -> Comparisons:
    """The tasks of all parts. Of a split by prompt, a prompt that one part sets apart for validation is set apart in
    all; the fact `moved` is the number of training tasks that become validation tasks so."""
    apart = {task.prompt for part in parts for task in part.validation} if split_by == "prompt" else set()
    tasks: list[Task] = []
    images: list[ImageSource] = []
    facts: dict[str, Any] = {}
    for part in parts:
        shift = len(images)
        tasks += [
            replace(
                task,
                images=tuple(shift + image for image in task.images),
                validation=task.validation or task.prompt in apart,
            )
            for task in part.tasks
        ]
        images += part.images
        for name, value in part.facts.items():
            facts[name] = max(facts.get(name, 0), value) if name == "labelers" else facts.get(name, 0) + value
    digest = hashlib.sha256("\n".join(part.digest for part in parts).encode()).hexdigest()
    source = ", ".join(part.source for part in parts)
    prompts = len({task.prompt for task in tasks})
    moved = sum(task.validation for task in tasks) - sum(len(part.validation) for part in parts)
    made = Comparisons(source, tuple(tasks), tuple(images), digest, facts | {"prompts": prompts, "moved": moved})
    return _checked(made, split_by)


def split_again(found: Comparisons, share: float, seed: int, by: SplitBy = "prompt") -> Comparisons:
    """The same, with `share` of the prompts, or of the tasks, set apart for validation."""
    settings = Labelling(validation=share, seed=seed)

    def apart(number: int, task: Task) -> bool:
        key = task.prompt if by == "prompt" else f"{number}:{task.prompt}"
        return split_of(settings, hashlib.sha256(key.encode()).hexdigest()) == "validation"

    tasks = tuple(replace(task, validation=apart(number, task)) for number, task in enumerate(found.tasks))
    return replace(found, tasks=tasks)


def _checked(found: Comparisons, by: SplitBy) -> Comparisons:
    """Raises DataError where there is nothing to learn from."""
    source, tasks = found.source, found.tasks
    if not tasks:
        raise DataError(f"{source} has no judgements of two images: label some of its tasks first")
    if not any(pair.better != 0.5 for task in tasks for pair in task.pairs):
        raise DataError(f"{source} has ties only: in none of its {len(tasks)} tasks is an image preferred")
    if len(tasks) < LEAST_TASKS:
        raise DataError(
            f"{source} has {len(tasks)} labelled task{'s' * (len(tasks) != 1)}, but a reward model needs at least "
            f"{LEAST_TASKS}: label more"
        )
    prompts = len({task.prompt for task in tasks})
    hint = "; --split-by task splits the tasks of a prompt" if by == "prompt" and prompts < LEAST_TASKS else ""
    if not found.training:
        raise DataError(
            f"{source} has all its labelled tasks in the validation part: give a smaller --validation{hint}"
        )
    return found


# ---------------------------------------------------------------- labelling projects


def _of_project(folder: Path) -> Comparisons:
    with open_project(folder) as project:
        settings = project.settings
        if settings.task_size < 2:
            raise DataError(f"the tasks of {folder} have one image each: there is nothing to compare")
        with project.database.read() as session:
            chosen = session.execute(
                sa.select(
                    Assignment.id, Assignment.task_id, Assignment.user_id, Assignment.presentation, Prompt.text,
                    Prompt.split,
                )
                .join(TaskRow, Assignment.task_id == TaskRow.id)
                .join(Prompt, TaskRow.prompt_id == Prompt.id)
                .where(
                    Assignment.kind == "normal", Assignment.finished_at.is_not(None), ~Assignment.skipped,
                    ~Assignment.surplus, TaskRow.kind == "normal",
                )
                .order_by(TaskRow.number, Assignment.id)
            ).all()  # fmt: skip
            said = defaultdict(list)
            for row in session.scalars(sa.select(JudgementRow).order_by(JudgementRow.id)):
                said[row.assignment_id].append(from_row(row))
            shown: dict[int, list[str]] = defaultdict(list)
            for of, sha256 in session.execute(
                sa.select(TaskImage.task_id, TaskImage.sha256).order_by(TaskImage.task_id, TaskImage.position)
            ):
                shown[of].append(sha256)
            if not shown:
                raise DataError(f"the labelling project {folder} has no images: add tasks to it")
    votes: dict[int, dict[tuple[int, int], list[float]]] = {}
    about: dict[int, tuple[str, bool]] = {}
    labelers = set()
    for assignment, task, user, presentation, prompt, split in chosen:
        found = state(settings, presentation, said[assignment])
        pairs = implied(settings, presentation, found)
        if pairs:
            about[task] = prompt, split == "validation"
            labelers.add(user)
        for a, b, outcome in pairs:
            of_task = votes.setdefault(task, {})
            of_task.setdefault((a, b), []).append({"a": 1.0, "b": 0.0}.get(outcome, 0.5))
    tasks = []
    for number, of_task in votes.items():
        prompt, apart = about[number]
        tasks.append((prompt, shown[number], averaged(of_task), apart))
    facts = {"labelers": len(labelers), "judgements": sum(len(said[row.id]) for row in chosen)}
    return _gathered(str(folder), tasks, lambda name: ImageSource(image_path(folder, name), name[:12]), facts)


def averaged(votes: Mapping[tuple[int, int], Sequence[float]]) -> tuple[Pair, ...]:
    """A pair for each two images, from the votes of all labelers that the first one is better."""
    return tuple(Pair(a, b, sum(found) / len(found), len(found)) for (a, b), found in sorted(votes.items()))


# ---------------------------------------------------------------- tables and data sets


def _of_pairs(source: str, split: str) -> Comparisons:
    pairs = load_pairs(source, split, ties=True)
    if pairs.names is None:  # a data set, whose rows do not say which image is which
        tasks = [(prompt, [f"{i}:0", f"{i}:1"], (Pair(0, 1, pairs.labels[i]),), False)
                 for i, prompt in enumerate(pairs.prompts)]  # fmt: skip

        def of_row(name: str) -> ImageSource:
            index, side = map(int, name.split(":"))
            return ImageSource(lambda: pairs.sources(index)[side], pairs.places(index))

        return _gathered(source, tasks, of_row, {"rows": len(pairs)})
    return _gathered(source, joined(pairs), lambda name: ImageSource(Path(name), name), {"rows": len(pairs)})


def joined(pairs: PairSet) -> list[tuple[str, list[str], tuple[Pair, ...], bool]]:
    """Tasks out of pairs: those of one prompt that have images in common, directly or by others, are one task."""
    assert pairs.names is not None
    parents: dict[tuple[str, str], tuple[str, str]] = {}

    def root(node: tuple[str, str]) -> tuple[str, str]:
        while parents.setdefault(node, node) != node:
            parents[node] = parents[parents[node]]
            node = parents[node]
        return node

    rows = [(prompt, *pairs.names(index), pairs.labels[index]) for index, prompt in enumerate(pairs.prompts)]
    for prompt, one, two, _ in rows:
        parents[root((prompt, two))] = root((prompt, one))
    tasks: dict[tuple[str, str], tuple[str, list[str], dict[tuple[int, int], list[float]]]] = {}
    for prompt, one, two, label in rows:
        _, images, votes = tasks.setdefault(root((prompt, one)), (prompt, [], {}))
        for name in (one, two):
            if name not in images:
                images.append(name)
        a, b = images.index(one), images.index(two)
        if a == b:
            continue
        first, better = ((a, b), label) if a < b else ((b, a), 1 - label)
        votes.setdefault(first, []).append(better)
    return [(prompt, images, averaged(votes), False) for prompt, images, votes in tasks.values() if votes]


# ---------------------------------------------------------------- what both have


def _gathered(source: str, tasks: Iterable[Any], image: Any, facts: dict[str, Any]) -> Comparisons:
    """Comparisons of tasks (prompt, names of images, pairs, validation)."""
    order: dict[str, int] = {}
    made, lines = [], []
    for prompt, names, pairs, apart in tasks:
        rows = tuple(order.setdefault(name, len(order)) for name in names)
        made.append(Task(prompt, rows, pairs, apart))
        lines.append(repr((prompt, [str(name).rpartition("/")[2] for name in names], pairs)))
    counts = Counter("ties" if pair.better == 0.5 else "decided" for task in made for pair in task.pairs)
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    facts = {"tasks": len(made), "pairs": counts.total(), "ties": counts["ties"], "images": len(order),
             "prompts": len({task.prompt for task in made}), **facts}  # fmt: skip
    return Comparisons(source, tuple(made), tuple(image(name) for name in order), digest, facts)


def opened(source: ImageSource) -> Any:
    """The PIL image. Raises DataError, beginning with where it comes from."""
    value = source.value() if callable(source.value) else source.value
    return read_image(value, source.where)
