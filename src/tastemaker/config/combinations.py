"""Which settings go together: what `Config` checks of several sections at once."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING

from tastemaker.config.engine_settings import engine_addresses
from tastemaker.config.single_pass import check_single_pass
from tastemaker.errors import ConfigError

if TYPE_CHECKING:
    from tastemaker.config.schema import Config


def check_combinations(config: Config) -> None:
    """Raises ConfigError for the first setting that does not go with the others."""
    s = config.sampling
    for name, count in {"sampling.per_prompt": s.per_prompt, "optimizer.updates": config.slices}.items():
        if s.samples % count:
            raise ConfigError(f"sampling.samples is {s.samples}, which {name} = {count} does not divide")
    if s.per_prompt % s.branches:
        raise ConfigError(
            f"sampling.per_prompt is {s.per_prompt}, but must be a multiple of sampling.branches = {s.branches}: "
            "the branches of a root are images of one prompt"
        )
    if (s.samples // config.slices) % config.group_size:
        raise ConfigError(
            f"an update has {s.samples // config.slices} images (sampling.samples / optimizer.updates), but must "
            f"have a multiple of {config.group_size}, which are compared with each other"
        )
    if config.algorithm.requirements.keep_groups_together and config.group_size < 2:
        raise ConfigError(
            f"the algorithm {config.algorithm.name} learns from pairs of images of one prompt, but "
            "sampling.per_prompt is 1: give at least 2"
        )
    _check_advantage(config)
    _check_updates(config)
    if s.recompute_log_prob and config.algorithm.needs != "rollouts":
        raise ConfigError(
            f"sampling.recompute_log_prob is true, but the algorithm {config.algorithm.name} has no "
            "log-probabilities: leave it at false"
        )
    if (config.algorithm.needs == "pairs") != bool(config.pairs.sources):
        raise ConfigError(
            f"pairs.sources is empty, but the algorithm {config.algorithm.name} learns from pairs of images that "
            "somebody has compared: give a folder, file or data set of them"
            if not config.pairs.sources
            else f"pairs.sources is {', '.join(config.pairs.sources)}, but the algorithm {config.algorithm.name} "
            "samples its own images: leave it out, or use diffusion-dpo, mapo or diffusion-kto"
        )
    if config.pairs.labels != "preferred" and not config.algorithm.requirements.label_probabilities:
        raise ConfigError(
            f"pairs.labels is {config.pairs.labels}, but the algorithm {config.algorithm.name} takes one image of a "
            "pair as the better one: leave it at preferred, or use diffusion-dpo"
        )
    if config.reference.every and not config.algorithm.requirements.reference:
        raise ConfigError(
            f"reference.every is {config.reference.every}, but the algorithm {config.algorithm.name} compares itself "
            "with no reference under these settings: leave it at 0"
        )
    likelihoods = config.algorithm.needs == "rollouts"
    if s.eta < 0 or (s.eta == 0 and likelihoods):
        raise ConfigError(
            f"sampling.eta is {s.eta}, but a policy needs noise: give a value greater than 0 (usually 1)"
            if likelihoods
            else f"sampling.eta is {s.eta}, but must not be negative (0 is without noise)"
        )
    if s.eta == 0 and s.branches > 1:
        raise ConfigError(
            f"sampling.branches is {s.branches}, but sampling.eta is 0, which makes one image of all branches of a "
            "root: set branches to 1, or give an eta greater than 0"
        )
    if config.pathwise:
        _check_pathwise(config)
    if config.optimizer.single_pass:
        check_single_pass(config)
    if config.over_optimisation.kl_limit is not None and not config.evaluation.kl_images:
        raise ConfigError(
            f"over_optimisation.kl_limit is {config.over_optimisation.kl_limit:g}, but evaluation.kl_images is 0, so "
            "that no divergence is measured: give at least 2 images"
        )
    if s.negative_prompt and s.guidance == 1:
        raise ConfigError(
            f"sampling.negative_prompt is {s.negative_prompt!r}, but sampling.guidance is 1, which has no "
            "unconditional half: raise the guidance, or leave the negative prompt out"
        )
    if s.engine is not None:
        _check_engine(config, s.engine)
    if s.steps > 1000:
        raise ConfigError(f"sampling.steps is {s.steps}, but the schedule has only 1000 of them")


def _check_updates(config: Config) -> None:
    """What `images_per_update` and the learning rate's schedule ask for. Raises ConfigError."""
    o, name, number = config.optimizer, config.algorithm.name, config.optimizer.images_per_update
    if number is not None:
        given = f"optimizer.images_per_update is {number}, but"
        if config.algorithm.needs not in ("rollouts", "samples"):
            raise ConfigError(
                f"{given} the algorithm {name} selects no images: leave it out, and set optimizer.updates"
            )
        if o.minibatch == "states":
            raise ConfigError(
                f"{given} optimizer.minibatch is states: set it to images, or leave images_per_update out"
            )
        if number > config.sampling.samples * o.inner_epochs:
            raise ConfigError(
                f"{given} a round has only {config.sampling.samples} images and optimizer.inner_epochs is "
                f"{o.inner_epochs}, so that no update would ever be full: give at most "
                f"{config.sampling.samples * o.inner_epochs}"
            )
        if o.lr_scheduler in ("linear", "cosine"):
            raise ConfigError(
                f"optimizer.lr_scheduler is {o.lr_scheduler}, which needs the run's number of updates, but with "
                "optimizer.images_per_update that is not known beforehand: use constant or piecewise_constant"
            )
    if (o.lr_scheduler == "piecewise_constant") != bool(o.step_rules.strip()):
        raise ConfigError(
            "optimizer.lr_scheduler is piecewise_constant, but optimizer.step_rules is empty: give rules such as "
            "0.4:6400,1"
            if not o.step_rules.strip()
            else f"optimizer.step_rules is {o.step_rules!r}, but optimizer.lr_scheduler is {o.lr_scheduler}, which "
            "has no rules: set it to piecewise_constant"
        )
    if o.step_rules.strip():
        check_step_rules(o.step_rules)


def _check_pathwise(config: Config) -> None:
    o, name = config.optimizer, config.algorithm.name
    if o.inner_epochs > 1:
        raise ConfigError(
            f"optimizer.inner_epochs is {o.inner_epochs}, but the algorithm {name} makes its images anew in each "
            "update: leave it at 1, and raise optimizer.updates or rounds"
        )
    if config.algorithm.requirements.edict_mixing is not None and config.sampling.eta:
        raise ConfigError(
            f"sampling.eta is {config.sampling.eta:g}, but algorithm.checkpointing = edict inverts the sampler's "
            "steps, which must be without noise: set sampling.eta to 0, or choose another checkpointing"
        )
    count, images = config.algorithm.requirements.images_per_draw, config.sampling.samples // o.updates
    if count is not None and images % count:
        raise ConfigError(
            f"algorithm.images_per_draw is {count}, which does not divide the {images} images of an update "
            "(sampling.samples / optimizer.updates)"
        )
    if config.sampling.branches > 1:
        raise ConfigError(
            f"sampling.branches is {config.sampling.branches}, but the algorithm {name} compares no images with "
            "each other: leave it at 1"
        )


def _check_engine(config: Config, urls: str) -> None:
    """Raises ConfigError where a rollout engine cannot sample what the settings ask for."""
    engine_addresses(urls)
    algorithm, own = config.algorithm, "leave it out, so that images are sampled in this process"
    if algorithm.needs not in ("rollouts", "samples"):
        raise ConfigError(f"sampling.engine is set, but the algorithm {algorithm.name} samples no rounds: {own}")
    if algorithm.requirements.sampling_noise:
        raise ConfigError(
            f"sampling.engine is set, but the algorithm {algorithm.name} under these settings asks for the noise "
            f"of each step, which engines draw themselves: {own}"
        )
    if config.sampling.eta == 0:
        raise ConfigError(
            "sampling.engine is set, but sampling.eta is 0, and an engine's images are checked at a step with noise: "
            f"give an eta greater than 0, or {own}"
        )
    if config.sampling.branches > 1:
        raise ConfigError(
            f"sampling.engine is set, but sampling.branches is {config.sampling.branches}, and engines sample every "
            f"image from its own noise: leave it at 1, or {own}"
        )
    if config.tuning.mode != "lora" or config.tuning.frozen_adapters:
        raise ConfigError(
            "sampling.engine is set, but engines are given one adapter on the model's own weights: set tuning.mode "
            f"to lora without tuning.frozen_adapters, or {own}"
        )
    if config.rollout_engine.folder is None:
        raise ConfigError(
            "sampling.engine is set, but rollout_engine.folder is not: give a folder that this machine and the "
            "engines see under the same path, for adapters"
        )


def _check_advantage(config: Config) -> None:
    a, regression = config.advantage, config.algorithm.requirements.positive_weights
    if regression != (a.normalise in ("softmax", "percentile")):
        right = "softmax or percentile" if regression else "another one: those are weights of a regression (rwr)"
        raise ConfigError(
            f"advantage.normalise is {a.normalise}, but the algorithm {config.algorithm.name} needs {right}"
        )
    if a.step_weights != "none" and (
        config.algorithm.needs != "rollouts" or config.algorithm.requirements.keep_groups_together
    ):
        raise ConfigError(
            f"advantage.step_weights is {a.step_weights}, but the algorithm {config.algorithm.name} has no "
            "advantages of steps: leave it at none"
        )
    if config.algorithm.needs != "rollouts" and config.optimizer.minibatch == "states":
        raise ConfigError(
            f"optimizer.minibatch is states, but the algorithm {config.algorithm.name} has none: use images"
        )
    if config.algorithm.needs != "rollouts" and config.optimizer.timestep_fraction < 1:
        raise ConfigError(
            f"optimizer.timestep_fraction is {config.optimizer.timestep_fraction}, but the algorithm "
            f"{config.algorithm.name} draws its own times: leave it at 1"
        )


def check_step_rules(text: str) -> None:
    """Raises ConfigError where diffusers would not read `text` as rules of a piecewise constant learning rate."""
    *rules, last = text.split(",")
    values, steps = [last], []
    for rule in rules:
        value, _, step = rule.partition(":")
        values.append(value)
        steps.append(step.strip())
    if not (
        all(re.fullmatch(_MULTIPLE, value.strip()) for value in values)
        and all(re.fullmatch(r"[0-9]+", step) for step in steps)
        and all(a < b for a, b in pairwise([0, *map(int, steps)]))
    ):
        raise ConfigError(
            f"optimizer.step_rules is {text!r}, but must be multiples of the learning rate, each with the update at "
            "which it ends, in rising order, and one without for the rest, such as 0.4:6400,1"
        )


_MULTIPLE = r"[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?|\.[0-9]+([eE][-+]?[0-9]+)?"
