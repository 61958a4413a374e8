"""`tastemaker reward train`: from comparisons to a folder with a reward model and its report."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tastemaker.diffusion.sampler import LocalSampler
from tastemaker.diffusion.sde import make_sde
from tastemaker.errors import ConfigError, DataError
from tastemaker.evaluation.evaluate import generate
from tastemaker.evaluation.images import load_here
from tastemaker.reward_models.comparisons import Comparisons, Task
from tastemaker.reward_models.features import BATCH, Features, compute
from tastemaker.reward_models.fit import Fit, bootstrap, fit, predictions, rewards_of, subset
from tastemaker.reward_models.report import write_report
from tastemaker.reward_models.settings import Training, check
from tastemaker.reward_models.statistics import Predictions, Share, accuracy, calibration, calibration_error
from tastemaker.rewards.preferences.architecture import Architecture
from tastemaker.rewards.preferences.backbones import load_backbone
from tastemaker.rewards.preferences.files import Description, files
from tastemaker.rewards.preferences.heads import new_head
from tastemaker.rewards.preferences.model import RewardModel, Scale
from tastemaker.runs import atomic
from tastemaker.runs.folders import new_folder
from tastemaker.runs.metrics import versions
from tastemaker.spread import differ, moments
from tastemaker.types import Draw

Log = Callable[[str], None]


@dataclass(frozen=True)
class Samples:
    """Images that are sampled to standardise rewards by."""

    model: str = "bundled"
    """The diffusion model, which must have the latents that the reward model reads."""
    count: int = 256
    """Images; prompts of the comparisons come in turn."""
    steps: int = 50
    guidance: float = 5.0
    eta: float = 1.0


@dataclass(frozen=True)
class PromptUse:
    """How far rewards depend on the prompt: an image with its own, against the same image with another one."""

    share: float
    """Of the images, those whose reward is higher with their own prompt; equal ones count half, so that a model that
    does not look at the prompt has 0.5."""
    effect: float
    """By how much it is higher on average, in standard deviations of the rewards. Guidance by s > 1 raises it, and
    leaves the share as it is, since the reward for the empty prompt is the same for both."""


@dataclass(frozen=True)
class Result:
    """What training found, for the report and for programs."""

    folder: Path
    comparisons: Comparisons
    architecture: Architecture
    training: Training
    accuracy: Share | None
    """On the validation part, of the mean over members; None without validation pairs that are decided."""
    members: tuple[Share | None, ...]
    """Of each member by itself."""
    train_accuracy: Share | None
    epochs: tuple[int, ...]
    """The best epoch of each member."""
    history: tuple[dict[str, float], ...]
    """Records of metrics.jsonl: member, epoch, losses and accuracies."""
    curve: tuple[tuple[int, Share], ...]
    """Numbers of training tasks, and the accuracy of one model that was trained on so many."""
    validation: Predictions
    rewards: tuple[tuple[Tensor, Tensor], ...]
    """For each validation task the standardised rewards [K] and their spread over members [K]."""
    scale: Scale
    calibration_error: float | None
    prompt_use: PromptUse | None
    """On the validation images; None where there is one prompt."""
    facts: dict[str, Any] = field(default_factory=dict)


def train_reward_model(
    found: Comparisons,
    architecture: Architecture,
    training: Training,
    out: Path,
    *,
    resize: bool = False,
    samples: Samples | None = None,
    command: str = "",
    log: Log = lambda line: None,
) -> Result:
    """Trains a reward model, with all that its report says of it, into the new folder `out`.

    The folder is there when all is done, and not before. On the CPU, the same seed gives the same weights to the bit.
    Raises ConfigError, DataError, ModelError, RewardError, StorageError, and DivergedError.
    """
    check(architecture, training)
    with new_folder(out) as folder:
        log(f"loading {architecture.base}")
        backbone = load_backbone(architecture)
        log(f"features of {len(found.images)} images")
        features = compute(found, backbone, dropped=training.text_dropout > 0, resize=resize)
        fits = [_member(found, features, architecture, training, index, log) for index in range(training.members)]
        curve = _curve(found, features, architecture, training, log)
        kept = [_refitted(found, features, architecture, training, index, one) for index, one in enumerate(fits)]
        raw = _raw_of_chosen(found, features, architecture, training, kept, samples)
        scale = scale_of(raw)
        result = _result(out, found, architecture, training, features, fits, curve, scale, command)
        description = Description(
            architecture, backbone.fingerprint(), backbone.shape, scale, training.guidance, training.text_dropout,
            _summary(result, samples),
        )  # fmt: skip
        for name, data in files(description, [one.head.state_dict() for one in kept]).items():
            atomic.write(folder / name, data)
        lines = [json.dumps(record) for record in result.history]
        atomic.write(folder / "metrics.jsonl", ("\n".join(lines) + "\n").encode())
        write_report(result, folder / "report.html")
    return result


def _member(
    found: Comparisons, features: Features, architecture: Architecture, training: Training, index: int, log: Log
) -> Fit:
    """A member of the ensemble, trained on the training part."""
    seed = member_seed(training, index)
    head = new_head(architecture, features.backbone, seed)
    tasks = _tasks(found.training, training, index)
    made = fit(head, features, tasks, found.validation, training, training.rate(architecture.kind), seed)
    best = made.history[made.epoch - 1]
    said = f", validation accuracy {best['validation_accuracy']:.1%}" if "validation_accuracy" in best else ""
    log(f"member {index + 1} of {training.members}: best after epoch {made.epoch}{said}")
    return made


def member_seed(training: Training, index: int) -> int:
    """The seed of a member: no two seeds share members."""
    return training.seed * 1000 + index


def _tasks(tasks: Sequence[Task], training: Training, index: int) -> list[Task]:
    """The tasks that a member learns from."""
    single = training.members == 1 or not training.bootstrap
    return list(tasks) if single else bootstrap(tasks, member_seed(training, index))


def _refitted(
    found: Comparisons, features: Features, architecture: Architecture, training: Training, index: int, made: Fit
) -> Fit:
    """The member as it is kept: trained again on all tasks where that is asked for."""
    if not training.refit or not found.validation:
        return made
    seed = member_seed(training, index)
    head = new_head(architecture, features.backbone, seed)
    tasks = _tasks(found.tasks, training, index)
    return fit(head, features, tasks, (), training, training.rate(architecture.kind), seed, epochs=made.epoch)


def _curve(
    found: Comparisons, features: Features, architecture: Architecture, training: Training, log: Log
) -> tuple[tuple[int, Share], ...]:
    """The accuracy of single models by the number of their training tasks."""
    if not found.validation:
        return ()
    # What is nearly all of them would say the same as all.
    counts = sorted({count for count in training.curve if count < 0.9 * len(found.training)})
    if training.curve:
        counts.append(len(found.training))
    points = []
    for count in counts:
        seed = member_seed(training, 0)
        tasks = subset(found.training, count, training.seed)
        head = new_head(architecture, features.backbone, seed)
        made = fit(head, features, tasks, found.validation, training, training.rate(architecture.kind), seed)
        rewards = rewards_of(made.head, features, found.validation, training.guidance)
        share = accuracy(predictions(rewards, found.validation))
        if share is not None:
            points.append((count, share))
            log(f"{count} training tasks: validation accuracy {share.value:.1%}")
    return tuple(points)


def scale_of(raw: Tensor) -> Scale:
    """Mean and deviation of each member's rewards [M,N], and of the mean of the standardised ones.

    Raises DataError where a member gives all images the same reward, which has no deviation.
    """
    members = tuple(moments(values) for values in raw)
    if not all(std > 0 for _, std in members):
        raise DataError(
            "the reward model gives all images the same reward, so that it cannot be standardised: nothing was learned "
            "(more labels, more epochs or another --lr)"
        )
    mean, std = (torch.tensor(column, dtype=torch.float64)[:, None] for column in zip(*members, strict=True))
    joint = ((raw.double() - mean) / std).mean(dim=0)
    if not differ(joint):
        raise DataError("the members of the ensemble cancel each other: their mean is the same for all images")
    return Scale(members, joint.mean().item(), joint.std(correction=0).item())


@torch.no_grad()
def _raw_of_chosen(
    found: Comparisons, features: Features, architecture: Architecture, training: Training, fits: Sequence[Fit],
    samples: Samples | None,
) -> Tensor:  # fmt: skip
    """[M,N] rewards of the images that rewards are standardised by."""
    if training.standardise == "compared":
        return torch.stack([torch.cat(rewards_of(one.head, features, found.tasks, training.guidance)) for one in fits])
    if samples is None:
        raise ConfigError("standardise = samples needs a diffusion model to sample from")
    prompts = list(dict.fromkeys(task.prompt for task in found.tasks))
    chosen = [prompts[index % len(prompts)] for index in range(samples.count)]
    model = load_here(samples.model)
    if architecture.network is not None and architecture.size is not None:
        model.resize(architecture.size, architecture.size)
    heads = tuple(one.head for one in fits)
    trained = RewardModel(architecture, features.backbone, heads, Scale(()), training.guidance)
    sampler = LocalSampler(model, make_sde(model, samples.steps, samples.eta))
    draw = Draw(
        training.seed, 0, tuple(chosen), tuple(index % len(prompts) for index in range(len(chosen))),
        tuple(index // len(prompts) for index in range(len(chosen))),
    )  # fmt: skip
    made = generate(model, sampler, draw, guidance=samples.guidance, batch=16)
    x = made.rollout.x0 if features.backbone.space == "latent" else made.images
    shape = features.backbone.shape
    if shape is not None and tuple(x.shape[1:]) != shape:
        raise ConfigError(
            f"{samples.model} makes latents of shape {list(x.shape[1:])}, but the reward model reads {list(shape)}: "
            "sample from the model that it is made of"
        )
    parts = [trained.raw(x[i : i + BATCH], chosen[i : i + BATCH]) for i in range(0, len(x), BATCH)]
    return torch.cat(parts, dim=1).cpu()


def _result(
    out: Path, found: Comparisons, architecture: Architecture, training: Training, features: Features,
    fits: Sequence[Fit], curve: tuple[tuple[int, Share], ...], scale: Scale, command: str,
) -> Result:  # fmt: skip
    tasks = found.validation
    raw = [rewards_of(one.head, features, tasks, training.guidance) for one in fits]
    of_train = [rewards_of(one.head, features, found.training, training.guidance) for one in fits]
    validation = predictions(_means(raw), tasks) if tasks else Predictions(np.empty(0), np.empty(0), ())
    bins = calibration(validation) if tasks else ()
    history = tuple({"member": float(index), **record} for index, one in enumerate(fits) for record in one.history)
    return Result(
        out, found, architecture, training,
        accuracy(validation) if tasks else None,
        tuple(accuracy(predictions(values, tasks)) if tasks else None for values in raw),
        accuracy(predictions(_means(of_train), found.training)),
        tuple(one.epoch for one in fits), history, curve, validation, _standardised(raw, scale), scale,
        calibration_error(bins) if bins else None,
        prompt_use(found, features, architecture, fits, training) if tasks else None,
        {"command": command, "versions": versions(), "device": str(features.backbone.device)},
    )  # fmt: skip


def _means(members: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """[K] for each task: the mean over members of their rewards [K], each as it was trained."""
    return [torch.stack(list(values)).mean(dim=0) for values in zip(*members, strict=True)]


def _standardised(members: Sequence[Sequence[Tensor]], scale: Scale) -> tuple[tuple[Tensor, Tensor], ...]:
    """For each task the rewards as `RewardModel.members` has them: mean and spread, [K] each."""
    mean, std = (torch.tensor(column)[:, None] for column in zip(*scale.members, strict=True))
    found = []
    for values in zip(*members, strict=True):
        every = ((torch.stack(list(values)) - mean) / std - scale.mean) / scale.std
        deviation = every.std(dim=0) if len(every) > 1 else torch.zeros(every.shape[1])
        found.append((every.mean(dim=0), deviation))
    return tuple(found)


@torch.no_grad()
def prompt_use(
    found: Comparisons, features: Features, architecture: Architecture, fits: Sequence[Fit], training: Training
) -> PromptUse | None:
    """How rewards of validation images change where their prompt is that of the next task that has another.

    None where all have the same prompt.
    """
    tasks = found.validation
    if len({task.prompt for task in tasks}) < 2:
        return None
    heads = tuple(one.head for one in fits)
    model = RewardModel(architecture, features.backbone, heads, Scale(()), training.guidance)
    rewards, changes = [], []
    for index, task in enumerate(tasks):
        other = next(one.prompt for one in (*tasks[index + 1 :], *tasks[:index]) if one.prompt != task.prompt)
        x = features.inputs(found, task)
        own, swapped = (model.raw(x, [prompt] * len(task.images)).mean(dim=0) for prompt in (task.prompt, other))
        rewards.append(own)
        changes.append(own - swapped)
    return use_of(torch.cat(rewards), torch.cat(changes))


def use_of(rewards: Tensor, changes: Tensor) -> PromptUse:
    """From rewards [N] with the own prompt, and by how much they are above those with another."""
    share = (changes > 0).double() + 0.5 * (changes == 0).double()
    std = moments(rewards)[1]
    return PromptUse(share.mean().item(), changes.double().mean().item() / std if std else 0.0)


def _summary(result: Result, samples: Samples | None) -> dict[str, Any]:
    """What reward_model.json says of the training."""
    share = lambda one: None if one is None else asdict(one)  # noqa: E731
    found = result.comparisons
    return {
        "source": found.source, "digest": found.digest, **found.facts,
        "training_tasks": len(found.training), "validation_tasks": len(found.validation),
        "settings": asdict(result.training) | {"curve": list(result.training.curve)},
        "standardised_by": asdict(samples) if samples and result.training.standardise == "samples" else "compared",
        "epochs": list(result.epochs),
        "validation_accuracy": share(result.accuracy), "training_accuracy": share(result.train_accuracy),
        "members": [share(one) for one in result.members],
        "curve": [{"tasks": count, **asdict(one)} for count, one in result.curve],
        "calibration_error": result.calibration_error,
        "prompt_use": None if result.prompt_use is None else asdict(result.prompt_use),
        **{name: result.facts[name] for name in ("command", "versions", "device")},
    }  # fmt: skip
