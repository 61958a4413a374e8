"""`tastemaker iterate`: sample, label, reward model, alignment, again. Each step is done once and can be gone on with.

A folder of iterations has iterate.yaml (the settings), lineage.json (what came from what), report.html, and for each
iteration a folder with labels, reward-model and run, as `label create`, `reward train` and `train` make them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tastemaker.config.schema import Config
from tastemaker.config.yaml_file import dump_config, parse_config
from tastemaker.data.prompts import load_prompts
from tastemaker.errors import ConfigError, StorageError
from tastemaker.evaluation.model_settings import set_up
from tastemaker.iteration import lineage
from tastemaker.iteration.labels import Log, sample_tasks, wait_for_labels
from tastemaker.iteration.launching import count_processes, launch, launcher_words
from tastemaker.iteration.lineage import Record
from tastemaker.iteration.report import write_report
from tastemaker.iteration.settings import REWARD_MODEL, IterationSettings, Waiting, run_config
from tastemaker.labelling.project import is_project
from tastemaker.labelling.sources import Policy
from tastemaker.labelling.taste import utility_of
from tastemaker.models import load_meta_model
from tastemaker.models.value import value_network
from tastemaker.reward_models.comparisons import load_comparisons, load_several
from tastemaker.reward_models.settings import check
from tastemaker.reward_models.train import train_reward_model
from tastemaker.rewards.preferences.backbones import check_network
from tastemaker.rewards.preferences.files import read_description
from tastemaker.rewards.preferences.names import is_reward_model
from tastemaker.rewards.registry import load_reward
from tastemaker.runs import atomic
from tastemaker.runs.checkpoint import saved_round
from tastemaker.runs.folders import check_new_folder
from tastemaker.runs.locking import only_writer
from tastemaker.training import run as training
from tastemaker.training.setup import require_divisible, split_prompts

SETTINGS = "iterate.yaml"
RUN_SETTINGS = "run.yaml"
"""The settings of an iteration's alignment, where a launcher runs it."""
NO_WAITING = Waiting()


def start(
    settings: IterationSettings,
    out: Path,
    *,
    command: str,
    waiting: Waiting = NO_WAITING,
    launcher: str | None = None,
    log: Log = print,
) -> Path:
    """All iterations, into the new folder `out`, which is returned.

    `launcher`: a command that starts alignments on several processes; None does them in this one. Raises a
    TastemakerError, with what is done so far in the folder: `go_on` goes on after it.
    """
    check_new_folder(out)
    launched_by = launcher_words(launcher)
    check_settings(settings)
    check_launcher(settings, launched_by)
    try:
        out.mkdir(parents=True, exist_ok=True)
        atomic.replace_atomic(out / SETTINGS, dump_config(settings).encode())
    except OSError as error:
        raise StorageError(f"cannot write to {out}: {error.strerror or error}") from error
    with only_writer(out):
        return _iterate(settings, out, command, waiting, launched_by, log)


def check_settings(settings: IterationSettings) -> int:
    """Checks all that the settings name, but for the reward model; loads no weights of the model.

    Returns the number of prompts. Raises a TastemakerError.
    """
    config, loop = settings.train, settings.loop
    check(settings.architecture, loop.reward_model)
    prompts, _ = split_prompts(config, load_prompts(config.prompts))
    for name in [part for part in config.evaluation.rewards if REWARD_MODEL not in part]:
        load_reward(name, config.remote, vlm=config.vlm, labelers=config.labelers)
    if loop.simulate:
        utility_of(loop.simulated.utility)
    model = load_meta_model(config.model)
    model.check(prompts.prompts)
    if (value := config.algorithm.requirements.value) is not None:
        value_network(value.kind, model)  # which has no weights here
    set_up(model, config.sampling)
    if settings.learns_a_reward:
        check_network(settings.architecture, model)
    return len(prompts)


def check_launcher(settings: IterationSettings, launcher: Sequence[str]) -> int:
    """Tries a launcher, given as the words of its command, and returns how many processes it starts.

    Raises ConfigError where it cannot start them, or where the images of an update cannot be divided among them.
    """
    processes = count_processes(launcher)
    require_divisible(settings.train, processes)
    return processes


def go_on(
    out: Path,
    iterations: int | None = None,
    *,
    command: str,
    waiting: Waiting = NO_WAITING,
    launcher: str | None = None,
    log: Log = print,
) -> Path:
    """Goes on where `start` was stopped, to `iterations` in all (the settings' own when None).

    Raises ConfigError where the folder has no iterations, or what they left has been changed.
    """
    settings, launched_by = load_settings(out), launcher_words(launcher)
    check_launcher(settings, launched_by)
    if iterations is not None:
        done = sum(one.run is not None for one in lineage.read(out))
        if iterations < done:
            raise ConfigError(f"{out} has done {done} iterations already: give a larger --iterations")
        settings = replace(settings, loop=replace(settings.loop, iterations=iterations))
        atomic.replace_atomic(out / SETTINGS, dump_config(settings).encode())
    with only_writer(out):
        return _iterate(settings, out, command, waiting, launched_by, log)


def load_settings(out: Path) -> IterationSettings:
    """The settings of a folder of iterations. Raises ConfigError where it has none."""
    path = out / SETTINGS
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{out} has no iterations: {SETTINGS} cannot be read; start them with `tastemaker iterate PRESET`"
        ) from error
    return parse_config(text, IterationSettings(), str(path))


@dataclass(frozen=True)
class _Work:
    """What the steps of an iteration are given."""

    settings: IterationSettings
    out: Path
    records: Sequence[Record]
    """Of this iteration, which is the last one, and those before it."""
    command: str
    waiting: Waiting
    launcher: Sequence[str]
    """Of alignments; empty where they run in this process."""
    log: Log

    @property
    def record(self) -> Record:
        return self.records[-1]

    @property
    def folder(self) -> Path:
        return self.out / f"iteration-{self.record.number}"

    @property
    def policy(self) -> Path | None:
        """The run of the iteration before, the newest policy; None for the base model."""
        return None if self.record.number == 1 else self.out / f"iteration-{self.record.number - 1}" / "run"

    @property
    def policies(self) -> list[Policy]:
        """Who makes the images of this iteration's tasks: the newest policy first, the base model last."""
        runs = [self.out / str(one.run) for one in reversed(self.records[:-1])]
        found = [Policy(str(run), run) for run in runs] + [Policy(self.settings.train.model)]
        return found if self.settings.loop.images == "mixed" else found[:1]

    @property
    def learned_from(self) -> Sequence[Record]:
        """The iterations whose labels this one learns from."""
        return self.records if self.settings.loop.labels == "all" else self.records[-1:]

    @property
    def labels(self) -> list[str]:
        """The labelling projects of those."""
        return [str(self.out / str(one.labels)) for one in self.learned_from]

    @property
    def labels_sha256(self) -> tuple[str, ...]:
        """The digests of those projects."""
        return tuple(str(one.labels_sha256) for one in self.learned_from)

    def relative(self, path: Path) -> str:
        """A path as the lineage has it."""
        return path.relative_to(self.out).as_posix()


def _iterate(
    settings: IterationSettings, out: Path, command: str, waiting: Waiting, launcher: Sequence[str], log: Log
) -> Path:
    records = lineage.read(out)
    lineage.require_unchanged(out, records)
    for number in range(1, settings.loop.iterations + 1):
        if number > len(records):
            records.append(Record(number))
        log(f"iteration {number} of {settings.loop.iterations}")
        before = records[number - 1]
        for step in (_label, _learn_reward, _align):
            records[number - 1] = step(_Work(settings, out, records[:number], command, waiting, launcher, log))
            lineage.write(out, records)
        if records[number - 1] != before or number == settings.loop.iterations:
            write_report(out, settings, records)
    log(f"report: {out / 'report.html'}")
    return out


def _label(work: _Work) -> Record:
    """Samples the tasks and has them labelled."""
    record, folder, loop = work.record, work.folder / "labels", work.settings.loop
    if record.labels is not None:
        return record
    if not is_project(folder):
        sample_tasks(folder, loop, work.settings.train, record.number, work.policies, work.log)
    if work.policy is not None:
        record = replace(
            record, policy=work.relative(work.policy), policy_sha256=lineage.adapter_digest(work.policy),
            mixed=work.settings.loop.images == "mixed",
        )  # fmt: skip
    wait_for_labels(folder, loop, work.waiting, work.log)
    facts = load_comparisons(str(folder))
    return replace(
        record, labels=work.relative(folder), labels_sha256=facts.digest, tasks=facts.facts["tasks"],
        pairs=facts.facts["pairs"],
    )  # fmt: skip


def _learn_reward(work: _Work) -> Record:
    """Trains the reward model, where the algorithm has one."""
    record, folder, settings = work.record, work.folder / "reward-model", work.settings
    if record.reward_model is not None or not settings.learns_a_reward:
        return record
    if not is_reward_model(folder):
        found = load_several(work.labels)
        work.log(f"a reward model of {len(found.training)} training and {len(found.validation)} validation tasks")
        train_reward_model(
            found, settings.architecture, settings.loop.reward_model, folder, command=work.command, log=work.log
        )
    description, _ = read_description(folder)
    accuracy = description.training.get("validation_accuracy")
    if accuracy:
        work.log(f"validation accuracy {accuracy['value']:.1%} ({accuracy['low']:.1%} to {accuracy['high']:.1%})")
    return replace(
        record, reward_model=work.relative(folder), reward_model_sha256=lineage.reward_model_digest(folder),
        learned_from=work.labels_sha256, accuracy=accuracy,
    )  # fmt: skip


def _align(work: _Work) -> Record:
    """Trains the policy, or goes on with its training."""
    record, folder, settings = work.record, work.folder / "run", work.settings
    if record.run is not None:
        return record
    if saved_round(folder) >= 0:
        _resume(work, folder)
    else:
        start = work.policy if settings.loop.policy == "previous" else None
        reward_model = None if record.reward_model is None else str(work.out / record.reward_model)
        config = run_config(settings, work.labels, reward_model, None if start is None else str(start))
        _train(work, config, folder)
    return replace(
        record, run=work.relative(folder), run_sha256=lineage.adapter_digest(folder), learned_from=work.labels_sha256
    )


def _train(work: _Work, config: Config, folder: Path) -> None:
    """Trains in this process, or by the launcher, which is given the settings in a file."""
    if not work.launcher:
        training.train(config, folder, command=work.command)
        return
    file = folder.with_name(RUN_SETTINGS)
    atomic.replace_atomic(file, dump_config(config).encode())
    launch(work.launcher, ["train", "--config", str(file), "--out", str(folder)])


def _resume(work: _Work, folder: Path) -> None:
    """Goes on with a run, as it was begun."""
    if work.launcher:
        launch(work.launcher, ["resume", str(folder)])
    else:
        training.resume(folder)
