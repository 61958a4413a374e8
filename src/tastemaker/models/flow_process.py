"""Rectified flows: the process and the times of a FlowMatchEulerDiscreteScheduler of diffusers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from tastemaker.diffusion.process import Grid, output_scale, x0_from
from tastemaker.errors import ConfigError, ModelError
from tastemaker.models.files import read_json
from tastemaker.models.library_logging import loading
from tastemaker.models.schedulers import CONFIG, require_types

_NAME = "FlowMatchEulerDiscreteScheduler"
_TYPES: dict[str, tuple[type, ...]] = {
    "num_train_timesteps": (int,), "shift": (int, float), "use_dynamic_shifting": (bool,), "base_shift": (int, float),
    "max_shift": (int, float), "base_image_seq_len": (int,), "max_image_seq_len": (int,), "invert_sigmas": (bool,),
    "shift_terminal": (int, float), "use_karras_sigmas": (bool,), "use_exponential_sigmas": (bool,),
    "use_beta_sigmas": (bool,), "time_shift_type": (str,), "stochastic_sampling": (bool,),
}  # fmt: skip
"""Keys of the scheduler's config and the JSON types that they may have."""


def load_flow_scheduler(folder: Path, named: str) -> FlowMatchEulerDiscreteScheduler:
    """The scheduler of a pipeline's folder, whose model_index.json names the class `named`. Raises ModelError.

    null is read as a missing key. Whether the checkpoint samples with noise (`stochastic_sampling`) is not looked at.
    """
    config = {key: value for key, value in read_json(folder / CONFIG).items() if value is not None}
    for given in (named, config.get("_class_name", named)):
        if given != _NAME:
            raise ModelError(
                f"the model's scheduler is a {given}, but this version reads the times of flow-matching models from a "
                f"{_NAME}"
            )
    require_types(config, _TYPES, set())
    for key in ("num_train_timesteps", "shift", "base_image_seq_len", "max_image_seq_len"):
        if config.get(key, 1) <= 0:
            raise ModelError(f"{CONFIG} of the model says {key} {config[key]}: expected a number above 0")
    if config.get("invert_sigmas"):
        raise ModelError(
            f"{CONFIG} of the model says invert_sigmas, by which times run from image to noise, but this version knows "
            "only networks whose times run from noise to image"
        )
    if not 0 <= config.get("shift_terminal", 0) < 1:
        raise ModelError(
            f"{CONFIG} of the model says shift_terminal {config['shift_terminal']}: expected a number from 0 to below 1"
        )
    if config.get("base_image_seq_len", 256) == config.get("max_image_seq_len", 4096):
        raise ModelError(
            f"{CONFIG} of the model says the same base_image_seq_len and max_image_seq_len: they must differ"
        )
    try:
        with loading():
            scheduler = FlowMatchEulerDiscreteScheduler.from_config({**config, "stochastic_sampling": False})
    except Exception as error:  # the class raises ValueError, ImportError and others
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{CONFIG} of the model does not make a {_NAME}: {type(error).__name__}: {reason}") from error
    assert isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    return scheduler


def linear_sigmas(steps: int) -> Sequence[float]:
    """1 to 1 / steps in equal steps, which most pipelines pass to their scheduler."""
    return np.linspace(1.0, 1 / steps, steps).tolist()


def shift_by_resolution(config: Any, tokens: int, steps: int) -> float:
    """The scheduler's `mu` for images of so many tokens, on the line that its config gives (diffusers)."""
    # Not above: `models.families` imports pipelines where their notes about packages that are not installed are silent.
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    return calculate_shift(
        tokens,
        config.get("base_image_seq_len", 256),
        config.get("max_image_seq_len", 4096),
        config.get("base_shift", 0.5),
        config.get("max_shift", 1.15),
    )


@dataclass(frozen=True)
class FlowProcess:
    """A rectified flow x_t = (1 - s) x_0 + s eps at times t = s num_train_timesteps, whose network predicts eps - x_0.

    Times are continuous; sampled ones lie where the pipeline's own scheduler has them.
    """

    scheduler: FlowMatchEulerDiscreteScheduler
    patch: int = 1
    """Latent elements to a side of one of the network's tokens, by whose number the times are shifted."""
    sigmas: Callable[[int], Sequence[float]] | None = linear_sigmas
    """What the family's pipeline passes to the scheduler for a number of steps; None for the scheduler's own."""
    shift: Callable[[Any, int, int], float] = shift_by_resolution
    """mu of the scheduler's config, a number of tokens and one of steps, where that config asks for it."""

    def grid(self, steps: int, latent_shape: Sequence[int] = ()) -> Grid:
        """The times of the family's own diffusers pipeline, the last step to 0.

        Raises ConfigError for more steps than there are training times, and ValueError where the times depend on the
        resolution and no shape is given.
        """
        config: Any = self.scheduler.config
        trained = config["num_train_timesteps"]
        if steps > trained:
            raise ConfigError(f"sampling.steps is {steps}, but the model was trained on {trained} times: give fewer")
        options: dict[str, Any] = {}
        if config["use_dynamic_shifting"]:
            if not latent_shape:
                raise ValueError("the times of this process depend on the resolution: give the shape of the latents")
            height, width = latent_shape[-2:]
            options["mu"] = self.shift(config, (height // self.patch) * (width // self.patch), steps)
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
        assert isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
        if self.sigmas is None:
            scheduler.set_timesteps(steps, **options)
        else:
            scheduler.set_timesteps(sigmas=list(self.sigmas(steps)), **options)
        sigmas = torch.as_tensor(scheduler.sigmas).double()
        now, then = sigmas[:-1], sigmas[1:]
        return Grid(now * trained, 1 - now, now, 1 - then, then)

    def x0(self, prediction: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Estimate of x_0 [N,*D] from the network's output at training times t [N]."""
        alpha, sigma = (values.reshape(-1, *[1] * (x.ndim - 1)).to(x.dtype) for values in self.scales(t))
        return x0_from(prediction, x, alpha, sigma, "flow")

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """1 - s and s [N] in float64."""
        s = t.double() / len(self.times)
        return 1 - s, s

    def output_scale(self, t: Tensor) -> Tensor:
        """[N]: by x_0 = x - s v."""
        return output_scale(*self.scales(t), "flow")

    @property
    def times(self) -> range:
        """1 to num_train_timesteps; at 0 there is no noise to learn from."""
        return range(1, self.scheduler.config["num_train_timesteps"] + 1)
