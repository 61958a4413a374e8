"""Reading a comparison's answers and writing its result."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tastemaker.errors import ConfigError, StorageError, nearest
from tastemaker.human_evaluation.analysis import Result, analyse
from tastemaker.human_evaluation.figures import save_figures
from tastemaker.human_evaluation.report import write_report
from tastemaker.human_evaluation.study import Study, read_study
from tastemaker.human_evaluation.tables import as_json, markdown, preferences_csv, prompts_csv
from tastemaker.labelling.answers import TaskImages, read_answers, read_names, read_tasks, that_count
from tastemaker.labelling.project import Project, open_project
from tastemaker.labelling.settings import Labelling
from tastemaker.labelling.statistics import LabelerStatistics, statistics
from tastemaker.runs import atomic


@dataclass(frozen=True)
class Found:
    """A comparison with its result."""

    folder: Path
    study: Study
    settings: Labelling
    tasks: dict[int, TaskImages]
    result: Result
    labelers: tuple[LabelerStatistics, ...]


def read_result(folder: Path | str, leave_out: Sequence[str] = ()) -> Found:
    """The result of a comparison as it stands, without the answers of the labelers named in `leave_out`.

    Raises ConfigError where the folder is no comparison or there is no such labeler, DataError where nobody has
    answered, or one of the questions is unanswered.
    """
    study = read_study(folder)
    with open_project(folder) as project, project.database.read() as session:
        _check(project, study)
        names = read_names(session)
        for name in leave_out:
            if name not in names.values():
                raise ConfigError(f"the comparison has no labeler {name!r}; {nearest(name, list(names.values()))}")
        without = {user for user, name in names.items() if name in leave_out}
        tasks = read_tasks(session)
        answers = list(that_count(read_answers(session, project.settings)))
        result = analyse(study, project.settings, tasks, answers, without)
        found = statistics(session, project.settings, time.time()).labelers
        labelers = tuple(one for one in found if one.user not in without)
        return Found(project.folder, study, project.settings, tasks, result, labelers)


def write_result(found: Found, out: Path, command: str = "") -> list[Path]:
    """Writes result.json, result.csv, result.md, result.html and the figures into a folder; returns their paths.

    When the study may stop, prompts.csv too. Files of an earlier result are replaced. Raises ConfigError where `out` is
    no folder, StorageError.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file: give a folder for the result by --out")
    study, result = found.study, found.result
    texts = {
        "result.json": json.dumps(as_json(study, found.settings, result, found.labelers), ensure_ascii=False, indent=1),
        "result.csv": preferences_csv(study, result),
        "result.md": markdown(study, result),
    }
    if result.may_stop:
        texts["prompts.csv"] = prompts_csv(study, result)
    try:
        out.mkdir(parents=True, exist_ok=True)
        paths = []
        for name, text in texts.items():
            atomic.replace_atomic(out / name, text.rstrip("\n").encode() + b"\n")
            paths.append(out / name)
        paths += save_figures(out, study, result)
        paths.append(
            write_report(
                out / "result.html", found.folder, study, found.settings, found.tasks, result, found.labelers, command
            )
        )
    except OSError as error:
        raise StorageError(f"cannot write the result into {out}: {error.strerror or error}") from error
    return paths


def _check(project: Project, study: Study) -> None:
    if project.uuid != study.uuid:
        raise ConfigError(
            f"comparison.json in {project.folder} belongs to another project: copy the one that was created with it"
        )
