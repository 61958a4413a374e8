"""Pairs for training out of a labelling project, and out of everything else that `data.pairs` reads."""

from __future__ import annotations

import os
from pathlib import Path

from tastemaker.config.data_settings import Pairs
from tastemaker.data import pairs
from tastemaker.data.captioned_images import digest
from tastemaker.data.pairs import PairSet
from tastemaker.errors import ConfigError, DataError


def given_pairs(settings: Pairs) -> PairSet | None:
    """The pairs of all sources that the settings name; None without one. Raises as `load_pairs` does."""
    probabilities = settings.labels == "probabilities"
    found = [load_pairs(source, settings.split, probabilities=probabilities) for source in settings.sources]
    return pairs.concatenated(found) if found else None


def load_pairs(source: str, split: str = "train", *, probabilities: bool = False) -> PairSet:
    """The pairs of a labelling project where `source` is the folder of one, else those of `data.pairs.load_pairs`.

    With `probabilities` the pairs' labels are those that votes and ties say. Raises DataError, and ConfigError or
    StorageError where the project cannot be opened, or has no such labels.
    """
    from tastemaker.labelling.project import is_project

    if not is_project(source):
        return pairs.load_pairs(source, split, ties=probabilities)
    if probabilities:
        raise ConfigError(
            f"pairs.labels is probabilities, but {source} is a labelling project, of which each vote is a pair by "
            "itself: leave it at preferred"
        )
    return project_pairs(source, split)


def project_pairs(folder: str, split: str = "train") -> PairSet:
    """All comparisons that the answers of a project say, of the prompts of one part of its split.

    Each vote is a pair, as in Pick-a-Pic: labelers who disagree are pairs in both directions. Only answers that count
    are taken (`answers.that_count`); ties and both bad are left out. The order is by task, pair and labeler. The images
    are where they are in the project. The digest is of all these, so that a run which is resumed after more has been
    labelled is refused; a backup or an export does not change. Raises DataError.
    """
    from tastemaker.labelling.answers import read_names
    from tastemaker.labelling.export import ExportOptions, read_said
    from tastemaker.labelling.exported_rows import SPLITS, decisions
    from tastemaker.labelling.image_files import image_path
    from tastemaker.labelling.project import open_project

    if split not in SPLITS:
        raise DataError(f"the labelling project {folder} has no split {split!r}; it has train and validation")
    with open_project(folder) as project, project.database.read() as session:
        answers, ties = read_said(session, project, ExportOptions(split=split), read_names(session))
    found = decisions(answers.said)
    if not found:
        raise DataError(
            f"the labelling project {folder} has no pair of its split {split} in which an image is preferred: label "
            "some tasks first (`tastemaker label serve`)"
        )
    prompts = tuple(one.task.prompt for one, _, _ in found)
    names = [(one.task.images[winner], one.task.images[loser]) for one, winner, loser in found]
    root = Path(os.path.abspath(Path(folder).expanduser()))

    def sources(index: int) -> tuple[Path, Path]:
        better, worse = names[index]
        return image_path(root, better), image_path(root, worse)

    def place(index: int) -> str:
        one = found[index][0]
        return f"{folder}, task {one.task.number}, labeler {one.labeler}"

    for index, files in enumerate(map(sources, range(len(names)))):
        missing = next((file for file in files if not file.is_file()), None)
        if missing is not None:
            raise DataError(f"{place(index)}: there is no image {missing}: copy the whole folder of the project")
    mark = digest([[prompt, better, worse] for prompt, (better, worse) in zip(prompts, names, strict=True)])
    return PairSet(prompts, sources, place, mark, ties)
