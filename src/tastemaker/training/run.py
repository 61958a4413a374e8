"""A run from start to end: everything is checked, then loaded, then a folder made, then trained."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from tastemaker.errors import ConfigError, TastemakerError
from tastemaker.evaluation.report import write_report
from tastemaker.evaluation.samples import save_grid
from tastemaker.models import load_model
from tastemaker.prompts import load_prompts
from tastemaker.rewards.registry import load_reward
from tastemaker.training import checkpoint
from tastemaker.training.checkpoint import State
from tastemaker.training.config import Config
from tastemaker.training.configfile import dump_config, load_config
from tastemaker.training.folders import check_new_folder, new_folder
from tastemaker.training.loop import Evaluation, evaluate, one_round
from tastemaker.training.processes import process_group
from tastemaker.training.progress import Display
from tastemaker.training.session import Session
from tastemaker.training.tracking import append_metrics, environment, read_metrics, truncate_metrics
from tastemaker.types import Task
from tastemaker.windows import First, Whole

INTERRUPTED = 130
"""Exit code after Ctrl-C."""


class Interrupted(TastemakerError):
    """The run was asked to stop and has saved itself."""

    exit_code = INTERRUPTED


def train(config: Config, out: Path, *, command: str) -> None:
    """Trains as `config` says and leaves a run folder at `out`, ending with report.html.

    Raises a TastemakerError, with no folder left behind, where a setting, model, prompt or reward is wrong; the
    reward is tried on the base model's pictures first.
    """
    check_new_folder(out)
    with process_group():
        _begin(config, out, command)


def _begin(config: Config, out: Path, command: str) -> None:
    session = start(config, out, State())
    accelerator = session.accelerator
    with session.display:
        # Every process evaluates the base model: each needs its rewards' mean and deviation.
        base = evaluate(session)
        session.state.base_mean = base.reward.mean().item()
        session.state.base_std = base.reward.std(correction=0).item()
        session.seconds.clear()
        if accelerator.is_main_process:
            with new_folder(out) as folder:
                (folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
                details = json.dumps(environment(command, accelerator), indent=1)
                (folder / "env.json").write_text(details + "\n", encoding="utf-8")
                _record_evaluation(session, folder, base)
                _save(session, folder)
        accelerator.wait_for_everyone()
        _train(session, out)


def resume(run: Path, rounds: int | None) -> None:
    """Goes on with a run from its newest checkpoint, to `rounds` rounds in all (its config's when None)."""
    if not (run / "config.yaml").is_file():
        raise ConfigError(f"{run} is not a run: it has no config.yaml")
    config = load_config(run / "config.yaml", Config())
    if rounds is not None:
        config = replace(config, rounds=rounds)
    with process_group():
        _go_on(config, run)


def _go_on(config: Config, run: Path) -> None:
    session = start(config, run, State())
    accelerator = session.accelerator
    parameters = session.model.trainable()
    session.state = checkpoint.load(run, parameters, _plain(session.optimizer))
    if session.state.round >= config.rounds:
        raise ConfigError(f"{run} has done its {session.state.round} rounds: give a larger --rounds to go on")
    session.display = Display(config.rounds, session.state.round, accelerator.is_main_process)
    if accelerator.is_main_process:
        truncate_metrics(run / "metrics.jsonl", session.state.round)
    accelerator.wait_for_everyone()
    with session.display:
        session.display.say(f"{run}: going on after round {session.state.round}")
        _train(session, run)


def start(config: Config, out: Path, state: State) -> Session:
    """A session without a folder: everything that `config` names, checked, loaded and ready for its first round."""
    return _session(config, _accelerator(config, out), state)


def _accelerator(config: Config, out: Path) -> Accelerator:
    device = torch.cuda.is_available()
    mixed = "fp16" if config.precision == "fp16" else "no"
    trackers: Any = list(config.trackers) or None
    try:
        return Accelerator(mixed_precision=mixed, log_with=trackers, project_dir=out / "trackers", cpu=not device)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"cannot use the trackers {list(config.trackers)}: {error}") from error


def _session(config: Config, accelerator: Accelerator, state: State) -> Session:
    prompts, reward = load_prompts(config.prompts), load_reward(config.reward)
    world, part = accelerator.num_processes, config.sampling.samples // config.optimizer.updates
    if part % world:
        raise ConfigError(
            f"an update has {part} samples (sampling.samples / optimizer.updates), "
            f"which {world} processes do not divide"
        )
    display = Display(config.rounds, state.round, accelerator.is_main_process)
    display.say(f"loading {config.model}")
    set_seed(config.seed)
    model = load_model(config.model, config.precision, accelerator.device)
    if config.sampling.size is not None:
        model.resize(config.sampling.size)
    model.tune(config.tuning, config.seed)
    o = config.optimizer
    optimizer = torch.optim.AdamW(
        model.trainable().values(), lr=o.lr, betas=o.betas, eps=o.eps, weight_decay=o.weight_decay
    )
    model.network, optimizer = accelerator.prepare(model.network, optimizer)
    task = Task(
        model=model,
        grid=model.process.grid(config.sampling.steps),
        eta=config.sampling.eta,
        empty=model.encode([""], config.sampling.guidance).empty,
        guidance=config.sampling.guidance,
    )
    window = Whole() if o.first_share == 1 else First(o.first_share)
    return Session(config, accelerator, model, optimizer, reward, prompts, task, state, display, window)


def _plain(optimizer: Any) -> torch.optim.Optimizer:
    return getattr(optimizer, "optimizer", optimizer)


def _train(session: Session, folder: Path) -> None:
    """Rounds until the last, or until Ctrl-C; then the adapter, the report and the trackers' end."""
    config, accelerator, state = session.config, session.accelerator, session.state
    if config.trackers:
        accelerator.init_trackers("tastemaker", config={"config": dump_config(config)})
    with _stop_on_interrupt(session) as stop:
        while state.round < config.rounds and not stop:
            began = time.perf_counter()
            record = one_round(session)
            last = state.round == config.rounds or bool(stop)
            due = last or state.round % config.evaluation.every == 0
            evaluation = evaluate(session) if due and accelerator.is_main_process else None
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                record |= timings(session, began)
                _finish_round(session, folder, record, evaluation, last)
    if accelerator.is_main_process:
        _write_adapter(session, folder)
        report = write_report(folder)
        session.display.say(_summary(session, folder, report))
    if config.trackers:
        accelerator.end_training()
    if stop and state.round < config.rounds:
        raise Interrupted(
            f"stopped after round {state.round} of {config.rounds}; go on with: tastemaker resume {folder}"
        )


def timings(session: Session, began: float) -> dict[str, float]:
    """Seconds of the round that ends now, and of its parts, which are counted from zero again.

    A record is on disk before its checkpoint, so that a kill between the two loses neither: the seconds of saving
    stand in the record of the round after.
    """
    parts = {f"seconds/{name}": value for name, value in session.seconds.items()}
    session.seconds.clear()
    return {"seconds/round": time.perf_counter() - began, **parts}


def _finish_round(session: Session, folder: Path, record: dict, evaluation: Evaluation | None, last: bool) -> None:
    state = session.state
    append_metrics(folder / "metrics.jsonl", record)
    if session.config.trackers:
        session.accelerator.log({k: v for k, v in record.items() if k != "round"}, step=state.round)
    if evaluation is not None:
        _record_evaluation(session, folder, evaluation)
    if last or state.round % session.config.checkpoint_every == 0:
        begin = time.perf_counter()
        _save(session, folder)
        session.seconds["save"] += time.perf_counter() - begin
    session.display.round_done(record)


def _record_evaluation(session: Session, folder: Path, evaluation: Evaluation) -> None:
    append_metrics(folder / "metrics.jsonl", evaluation.record(session.state))
    save_grid(folder, session.state.round, evaluation.pictures, evaluation.draw, evaluation.reward, evaluation.correct)


def _save(session: Session, folder: Path) -> None:
    checkpoint.save(folder, session.state, session.model.trainable(), _plain(session.optimizer))


def _write_adapter(session: Session, folder: Path) -> None:
    config = session.config
    target = folder / ("adapter" if config.tuning.mode == "lora" else "model")
    session.model.save(target)
    grids = sorted((folder / "samples").glob("round-*"))
    session.display.say(f"adapter: {target}" if config.tuning.mode == "lora" else f"model: {target}")
    (folder / "README.md").write_text(_card(config, len(grids)), encoding="utf-8")


def _card(config: Config, grids: int) -> str:
    lora = config.tuning.mode == "lora"
    base = "tastemaker.models.bundled.bundled_pipeline()" if config.model == "bundled" else repr(config.model)
    load = (
        "pipe.load_lora_weights('adapter')"
        if lora
        else "pipe.unet = UNet2DConditionModel.from_pretrained('model/unet')"
    )
    return (
        f"# {config.reward} on {config.model}\n\nTrained by tastemaker with {config.algorithm.name} on the prompts "
        f"`{config.prompts}`; settings in config.yaml, figures in metrics.jsonl, {grids} grids of the same prompts and "
        f"seeds in samples/, everything at a glance in report.html.\n\n```python\nfrom diffusers import "
        f"StableDiffusionPipeline{'' if lora else ', UNet2DConditionModel'}\n\n"
        f"pipe = StableDiffusionPipeline.from_pretrained({base})\n{load}\n```\n"
    )


def _summary(session: Session, folder: Path, report: Path) -> str:
    evaluations = [line for line in read_metrics(folder / "metrics.jsonl") if "evaluation" in line]
    first, final = evaluations[0], evaluations[-1]
    text = (
        f"{session.config.reward}: {first['eval/reward/mean']:.3f} -> {final['eval/reward/mean']:.3f} "
        f"({final['eval/reward/base_stds']:+.2f} standard deviations of the base model)"
    )
    if "eval/judge/correct" in final:
        text += f"; shows the prompt: {first['eval/judge/correct']:.0%} -> {final['eval/judge/correct']:.0%}"
    return f"{text}\nreport: {report}"


@contextmanager
def _stop_on_interrupt(session: Session) -> Iterator[list[int]]:
    """A list that is empty until Ctrl-C. The first one lets the round end, the second one stops at once."""
    stop: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if stop:
            raise KeyboardInterrupt
        stop.append(number)
        session.display.say("stopping after this round, which will be saved (Ctrl-C again to stop at once)")

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield stop
    except KeyboardInterrupt:
        found = sorted((Path(session.accelerator.project_dir).parent / "checkpoints").glob("step-*"))
        saved = int(found[-1].name.removeprefix("step-")) if found else 0
        raise Interrupted(
            f"stopped at once; saved up to round {saved}: go on with: tastemaker resume "
            f"{os.path.relpath(Path(session.accelerator.project_dir).parent)}"
        ) from None
    finally:
        signal.signal(signal.SIGINT, previous)
