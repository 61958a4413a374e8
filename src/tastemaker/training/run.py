"""A run from start to end: everything is checked, then loaded, then a folder made, then trained."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path

from tastemaker.config.schema import Config
from tastemaker.config.yaml_file import dump_config, load_config
from tastemaker.data.captioned_images import digest
from tastemaker.errors import ConfigError, EngineError, RewardError, StorageError
from tastemaker.in_memory import PREFIX
from tastemaker.models.kept_prompt_states import keep_prompt_states
from tastemaker.report.page import write_report
from tastemaker.runs import atomic, checkpoint, sharding
from tastemaker.runs.checkpoint import State
from tastemaker.runs.fingerprint import differences
from tastemaker.runs.folders import check_new_folder, new_folder
from tastemaker.runs.locking import only_writer
from tastemaker.runs.metrics import environment, read_metrics, truncate_metrics
from tastemaker.spread import moments
from tastemaker.training.distributed import first_process_path, process_group, require_same
from tastemaker.training.early_stopping import any_process, should_stop
from tastemaker.training.evaluations import RunEvaluation, evaluate_run
from tastemaker.training.finish import summary, write_adapter
from tastemaker.training.heartbeat import watched_processes
from tastemaker.training.isolation import isolated
from tastemaker.training.over_optimisation import keep_best, watched
from tastemaker.training.progress import Display, plain
from tastemaker.training.recording import (
    record_evaluation,
    record_round,
    reward_scale,
    timings,
    track_evaluation,
    tracked,
)
from tastemaker.training.rounds import one_round
from tastemaker.training.saving import circumstances, save_checkpoint, training_state
from tastemaker.training.session import Session
from tastemaker.training.setup import NOTHING_GIVEN, PROMPT_STATES, Given, start
from tastemaker.training.signals import Interrupted, Preempted, StopNow, listening


def train(config: Config, out: Path, *, command: str, given: Given = NOTHING_GIVEN) -> Path:
    """Trains as `config` says and leaves a run folder at `out`, which it returns, ending with report.html.

    Of several processes that a launcher started together, the first one's `out` counts, and is returned by all. Raises
    a TastemakerError, with no folder left behind, where a setting, model, prompt or reward is wrong; the reward is
    tried on the base model's images first.
    """
    check_new_folder(out)
    with isolated(), process_group():
        return _begin(config, out, command, given)


def resume(run: Path, rounds: int | None = None, *, allow_inexact: bool = False, given: Given = NOTHING_GIVEN) -> None:
    """Goes on with a run from its newest whole checkpoint, to `rounds` rounds in all (its config's when None).

    A run that has all of them gets its adapter and report written again. Raises CheckpointError where no
    checkpoint is whole, and ConfigError where settings, versions, hardware or the number of processes are others
    than the checkpoint's, so that the run would not be the uninterrupted one, unless `allow_inexact`.
    """
    if not (run / "config.yaml").is_file():
        raise ConfigError(f"{run} is not a run: it has no config.yaml")
    config = load_config(run / "config.yaml", Config())
    if rounds is not None:
        config = replace(config, rounds=rounds)
    with isolated(), process_group():
        _go_on(config, run, allow_inexact, given)


def _begin(config: Config, out: Path, command: str, given: Given) -> Path:
    session = start(config, out, State(), given)
    accelerator = session.accelerator
    out = first_process_path(accelerator, out)
    require_same(accelerator, circumstances(session))
    with _watched(session, out), tracked(session, out, 0), session.display:
        # Every process evaluates the base model: each needs its rewards' mean and deviation.
        base = evaluate_run(session)
        rewards = base.reward(base.seen)
        session.state.base_mean, session.state.base_std = moments(rewards)
        if not session.state.base_std:
            session.display.log(
                f"the rewards of the base model's {len(rewards)} images do not differ "
                f"({plain(session.state.base_mean)}): figures are in the reward's own unit, not in standard deviations"
            )
        session.seconds.clear()
        base = watched(session, base)
        should_stop(session, base)
        if accelerator.is_main_process:
            with new_folder(out) as folder:
                (folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
                details = json.dumps(environment(command, accelerator), indent=1)
                (folder / "env.json").write_text(details + "\n", encoding="utf-8")
                if session.state.base_parts:
                    (folder / "reward.json").write_text(reward_scale(session), encoding="utf-8")
                record_evaluation(session, folder, base)
                keep_best(session, folder, base)
                save_checkpoint(session, folder)
        else:
            keep_best(session, out, base)
            save_checkpoint(session, out)
        if accelerator.is_main_process:
            with _storing(out):
                session.trackers.start_local(config, out, 0)
            track_evaluation(session, base)
        accelerator.wait_for_everyone()
        with _writing(session, out):
            _keep_prompt_states(session, out)
            _train(session, out)
    return out


def _watched(session: Session, run: Path) -> AbstractContextManager[None]:
    """Inside it this process ends soon after another one of the run has died."""

    def how_to_go_on() -> str:
        if session.accelerator.is_main_process and checkpoint.saved_round(run) < 0:
            return "nothing was saved yet: start the run again"
        return _how_to_go_on(run)

    return watched_processes(session.accelerator, how_to_go_on)


@contextmanager
def _writing(session: Session, run: Path) -> Iterator[None]:
    """Refuses another training of the same folder while this one goes on."""
    with only_writer(run) if session.accelerator.is_main_process else nullcontext():
        yield


def _keep_prompt_states(session: Session, run: Path) -> None:
    """Keeps them in the run's folder, which must be there, where the settings say so."""
    config = session.config
    if config.memory.prompt_states:
        with _storing(run):
            keep_prompt_states(session.model, run / PROMPT_STATES, config.model, config.precision)


def _go_on(config: Config, run: Path, allow_inexact: bool, given: Given) -> None:
    session = start(config, run, State(), given)
    with _writing(session, run), _watched(session, run):
        _continue(session, run, allow_inexact)


def _continue(session: Session, run: Path, allow_inexact: bool) -> None:
    _keep_prompt_states(session, run)
    config, accelerator = session.config, session.accelerator
    session.state, then, notes = checkpoint.load(run, training_state(session))
    loaded = {"the checkpoint's round": session.state.round, "the checkpoint's state": digest(vars(session.state))[:12]}
    require_same(accelerator, circumstances(session) | loaded)
    session.recall()
    changed = differences(then, json.loads(json.dumps(circumstances(session))))
    if changed and not allow_inexact:
        raise ConfigError(
            f"{run} was saved with other settings, versions or hardware ({'; '.join(changed)}) and would "
            "not go on bit for bit: restore them, or go on all the same with --allow-inexact"
        )
    done = session.state.round
    if done > config.rounds:
        raise ConfigError(f"{run} has done {done} rounds already: give a larger --rounds than {config.rounds}")
    session.display = Display(config.rounds, done, accelerator.is_main_process)
    for note in [*notes, *(f"not as it was: {change}" for change in changed)]:
        session.display.log(note)
    with tracked(session, run, done + 1), session.display:
        if accelerator.is_main_process:
            with _storing(run):
                atomic.tidy(run)
                if not notes:  # a kill may have come between a save and its pruning
                    checkpoint.prune(run, config.checkpoint)
                atomic.replace_atomic(run / "config.yaml", dump_config(config).encode())
                truncate_metrics(run / "metrics.jsonl", done)
                session.trackers.start_local(config, run, done + 1)
        accelerator.wait_for_everyone()
        last = done == config.rounds
        session.display.log(
            f"{run} has done its {done} rounds, give a larger --rounds to go on; writing its adapter and report again"
            if last
            else f"{run}: going on after round {done}"
        )
        _train(session, run)


def _train(session: Session, folder: Path) -> None:
    """Rounds until the last, or until a signal; then the adapter, the report and the trackers' end."""
    config, accelerator, state = session.config, session.accelerator, session.state
    signalled, saved, stopped_early, cut_short = 0, state.round, False, False
    try:
        with listening(session.stop, session.display):
            stopped_early = _evaluate_again(session, folder)
            while state.round < config.rounds and not signalled and not stopped_early:
                began = time.perf_counter()
                record = one_round(session)
                evaluation, failed = _evaluated(session) if _due(session) else (None, None)
                accelerator.wait_for_everyone()
                stopped_early = any_process(session, evaluation is not None and should_stop(session, evaluation))
                signalled = session.stop.agreed()
                with _storing(folder):
                    if accelerator.is_main_process:
                        record |= timings(session, began)
                        record_round(session, folder, record, evaluation)
                    if evaluation is not None:
                        keep_best(session, folder, evaluation)
                    last = signalled or stopped_early or state.round == config.rounds
                    scheduled = last or state.round % config.checkpoint.every == 0
                    if scheduled or (failed is not None and accelerator.num_processes == 1):
                        begin = time.perf_counter()
                        save_checkpoint(session, folder)
                        saved = state.round
                        session.seconds["save"] += time.perf_counter() - begin
                session.display.round_done(record)
                if failed is not None:
                    raise failed
    except (RewardError, EngineError) as error:
        # It failed while images were sampled, or evaluated, when the round is saved: the state is a round's end. Of
        # several processes only one may know, and saving a sharded network takes them all. Where rewards are asked in
        # the updates, the weights may be between two rounds.
        if saved != state.round and accelerator.num_processes == 1 and not config.pathwise:
            with _storing(folder):
                save_checkpoint(session, folder)
        raise type(error)(f"{error}; {_how_to_go_on(folder)}") from error
    except StopNow:
        signalled, cut_short = signal.SIGTERM, True
        if saved != state.round:
            with _storing(folder):
                save_checkpoint(session, folder)
    except KeyboardInterrupt:
        raise Interrupted(f"stopped at once; {_how_to_go_on(folder)}") from None
    done = stopped_early or state.round == config.rounds
    if cut_short or (signalled == signal.SIGTERM and not done):
        raise Preempted(f"stopped by SIGTERM after round {state.round} of {config.rounds}; {_how_to_go_on(folder)}")
    with sharding.whole(session.model.network, keep=accelerator.is_main_process), _storing(folder):
        if accelerator.is_main_process:
            write_adapter(session, folder)
            report = write_report(folder)
            session.display.log(summary(config, folder, report))
    if not done:
        raise Interrupted(f"stopped by Ctrl-C after round {state.round} of {config.rounds}; {_how_to_go_on(folder)}")


def _due(session: Session) -> bool:
    """Whether this process evaluates now. One does, but a sharded network is called by all of them together."""
    config, accelerator, number = session.config, session.accelerator, session.state.round
    here = accelerator.is_main_process or accelerator.is_fsdp2
    return here and (number == config.rounds or number % config.evaluation.every == 0)


def _evaluated(session: Session) -> tuple[RunEvaluation | None, RewardError | EngineError | StopNow | None]:
    """The evaluation, or why there is none: the round before it is whole, and is kept."""
    try:
        return watched(session, evaluate_run(session)), None
    except (RewardError, EngineError, StopNow) as error:
        return None, error


def _evaluate_again(session: Session, folder: Path) -> bool:
    """Of a resumed run: the evaluation that its last round lacks, because the reward failed in it; whether it ends."""
    stopped_early, records = False, read_metrics(folder / "metrics.jsonl")
    if _due(session) and not any(record.get("evaluation") == session.state.round for record in records):
        evaluation = watched(session, evaluate_run(session))
        stopped_early = should_stop(session, evaluation)
        if session.accelerator.is_main_process:
            with _storing(folder):
                record_evaluation(session, folder, evaluation)
            track_evaluation(session, evaluation, late=True)
        with _storing(folder):
            keep_best(session, folder, evaluation)
    session.accelerator.wait_for_everyone()
    return any_process(session, stopped_early)


def _how_to_go_on(folder: Path) -> str:
    saved, command = checkpoint.saved_round(folder), f"tastemaker resume {folder}"
    if saved < 0:  # a process of another machine than the first, which does not see the run's folder
        return f"the run is in {folder} on the machine of the first process; go on with: {command}"
    with suppress(OSError, ConfigError):
        config = load_config(folder / "config.yaml", Config())
        if any(name.startswith(PREFIX) for name in (config.model, config.reward, config.prompts)):
            command = f"tastemaker.resume({str(folder)!r}, ...) in Python, with the same model, reward and prompts"
    return f"saved up to round {saved}; go on with: {command}"


@contextmanager
def _storing(folder: Path) -> Iterator[None]:
    """Says what is left and what to do when the disk fails."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot write to {folder}: {error.strerror or error}; free some space, or check the disk. "
            f"{_how_to_go_on(folder)}"
        ) from error
