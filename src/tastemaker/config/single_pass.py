"""What `optimizer.single_pass` can be combined with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tastemaker.algorithms.selection import All, NonZero
from tastemaker.errors import ConfigError

if TYPE_CHECKING:
    from tastemaker.config.schema import Config


def check_single_pass(config: Config) -> None:
    """Raises ConfigError where an update is not a sum of the images' own gradients, each times a number, taken at the
    weights that sampled them."""
    o, name = config.optimizer, config.algorithm.name
    given = "optimizer.single_pass is true, but"
    if config.algorithm.requirements.score_weight is None:
        raise ConfigError(
            f"{given} under its settings the gradient of the algorithm {name} is not that of an image's "
            "log-probability times its advantage: take pg or ddpo, or grpo, dppo or dpok with algorithm.kl=0 (grpo "
            "also with algorithm.ratio=plain, dpok with algorithm.value=none)"
        )
    if config.tuning.mode == "full":
        raise ConfigError(
            f"{given} tuning.mode is full, so that each image would have a gradient of the whole network's size: "
            "set it to lora"
        )
    if o.images_per_update is not None:
        raise ConfigError(
            f"{given} optimizer.images_per_update is {o.images_per_update}: leave it out, and set optimizer.updates=1"
        )
    if o.updates * o.inner_epochs > 1:
        raise ConfigError(
            f"{given} a round has {o.updates * o.inner_epochs} updates, of which only the first is at the weights that "
            "sampled: set optimizer.updates=1 and optimizer.inner_epochs=1, and take fewer samples in more rounds"
        )
    if o.timestep_fraction < 1:
        raise ConfigError(
            f"{given} optimizer.timestep_fraction is {o.timestep_fraction:g}, by which each image would have steps of "
            "its own: leave it at 1, and train fewer steps by the window"
        )
    if config.sampling.recompute_log_prob:
        raise ConfigError(
            f"{given} sampling.recompute_log_prob is true, and there are no ratios to start at 1: set one of them to "
            "false"
        )
    if not isinstance(config.selection, (All, NonZero)):
        raise ConfigError(
            f"{given} selection is {config.selection.name}, which learns from few of the images whose gradients would "
            "be taken: set selection=all or nonzero"
        )
    if config.precision == "fp16":
        raise ConfigError(f"{given} precision is fp16, whose gradients need a scaled loss: take bf16 or fp32")
    if config.speed.compile:
        raise ConfigError(
            f"{given} speed.compile is true, and a compiled network cannot be given other adapters: set one of them to "
            "false"
        )
