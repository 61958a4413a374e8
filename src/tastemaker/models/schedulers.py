"""What a checkpoint's scheduler config says about the process that the network was trained on, as a DDIM scheduler.

Any sampler may have been saved with a checkpoint. Each diffusers class has its own defaults for keys that a config
lacks, so a config is read by the class that wrote it, and every key of the DDIM scheduler is then given explicitly.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

from tastemaker.diffusion.process import Grid, Prediction, output_scale, variance_preserving, x0_from
from tastemaker.errors import ConfigError, ModelError, nearest
from tastemaker.models.files import read_json
from tastemaker.models.library_logging import loading

DISCRETE = (
    "DDIMScheduler", "DDIMParallelScheduler", "DDIMInverseScheduler", "DDPMScheduler", "DDPMParallelScheduler",
    "PNDMScheduler", "LMSDiscreteScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler", "DPMSolverMultistepInverseScheduler", "DPMSolverSinglestepScheduler",
    "DPMSolverSDEScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler", "SASolverScheduler", "LCMScheduler",
    "TCDScheduler", "RePaintScheduler",
)  # fmt: skip
"""Schedulers of networks that were trained on a table of betas, x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) eps."""

_SAME_DEFAULTS = {"DPMSolverSDEScheduler": "KDPM2DiscreteScheduler"}
"""Classes that need a package which reading a config does not, and one that has the same defaults."""
_SPACING = {"DPMSolverSinglestepScheduler": "linspace", "RePaintScheduler": "leading"}
"""How classes without the key `timestep_spacing` space their times."""
_ENDS_AT_FIRST_TIME = ("DEISMultistepScheduler", "SASolverScheduler")
"""Classes without a key for the final noise level that end at that of time 0; the others end without noise."""

_PREDICTIONS = ("epsilon", "sample", "v_prediction")
_SPACINGS = ("leading", "linspace", "trailing")
_TYPES: dict[str, tuple[type, ...]] = {
    "num_train_timesteps": (int,), "beta_start": (int, float), "beta_end": (int, float), "beta_schedule": (str,),
    "trained_betas": (list,), "clip_sample": (bool,), "clip_sample_range": (int, float), "set_alpha_to_one": (bool,),
    "steps_offset": (int,), "prediction_type": (str,), "thresholding": (bool,), "timestep_spacing": (str,),
    "rescale_betas_zero_snr": (bool,), "use_flow_sigmas": (bool,), "final_sigmas_type": (str,),
    "timestep_type": (str,), "variance_type": (str,), "predict_epsilon": (bool,),
}  # fmt: skip
"""Keys that change the process, or what is asked of the network, and the JSON types that they may have."""
_LEGACY = ("tensor_format", "timestep_values", "timesteps")
"""Keys of early diffusers versions that say nothing about the process."""
CONFIG = "scheduler/scheduler_config.json"


def load_scheduler(folder: Path, named: str, *, latents: bool, own_offset: bool = False) -> DDIMScheduler:
    """The DDIM scheduler of a pipeline's folder, whose model_index.json names the class `named`. Raises ModelError.

    The config is read by the class that its own `_class_name` names, because that class left out keys at their
    defaults; null is read as a missing key.
    """
    config = {key: value for key, value in read_json(folder / CONFIG).items() if value is not None}
    name: str = config.get("_class_name", named)
    for given in (named, name):
        _require_discrete(given)
    require_types(config, _TYPES, {*_LEGACY} | _all_keys())
    if config.get("predict_epsilon") is False:  # diffusers before 0.10
        config.setdefault("prediction_type", "sample")
    kind = getattr(diffusers, _SAME_DEFAULTS.get(name, name))
    try:
        with loading():
            scheduler: Any = kind.from_config({**config, "_class_name": kind.__name__})
    except Exception as error:  # the classes raise NotImplementedError, ValueError, TypeError and others
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{CONFIG} of the model does not make a {name}: {type(error).__name__}: {reason}") from error
    return ddim_scheduler(scheduler, latents=latents, name=name, own_offset=own_offset)


def ddim_scheduler(
    scheduler: Any, *, latents: bool, name: str | None = None, own_offset: bool = False
) -> DDIMScheduler:
    """A DDIM scheduler for the process that another diffusers scheduler's config describes.

    Betas are the scheduler's own. What only says how that class steps (sigma spacings such as Karras', solver orders,
    `variance_type`) is left out. `latents` is for Stable Diffusion, whose latents are never clipped and whose
    `steps_offset` is 1, as StableDiffusionPipeline itself sets both; with `own_offset` the latter is the config's, as
    in SDXL. Raises ModelError where no DDIM scheduler stands for the process.
    """
    config = scheduler.config
    name = name or type(scheduler).__name__
    _require_discrete(name)
    _require_betas(config, name)
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in _PREDICTIONS:
        raise ModelError(
            f"the model's scheduler says prediction_type {prediction!r}, but only {', '.join(_PREDICTIONS)} are known "
            f"here: {nearest(str(prediction), _PREDICTIONS)}"
        )
    spacing = config.get("timestep_spacing") or _SPACING.get(name, "leading")
    if spacing not in _SPACINGS:
        raise ModelError(f"the model's scheduler says timestep_spacing {spacing!r}: {nearest(str(spacing), _SPACINGS)}")
    if config.get("thresholding"):
        raise ModelError(
            "the model's scheduler asks for dynamic thresholding, which has no Gaussian likelihood here: set "
            "thresholding to false in its scheduler_config.json"
        )
    betas, rescaled = _betas(scheduler), bool(config.get("rescale_betas_zero_snr"))
    # The classes that have the option have applied it already; of the others it is a key of the class before.
    done = bool(scheduler.betas[-1] == 1)
    if (rescaled or done) and prediction == "epsilon":
        raise ModelError(
            "the model's scheduler ends at noise alone (rescale_betas_zero_snr, or a last beta of 1) with "
            "prediction_type 'epsilon', but there predicted noise says nothing about an image: set "
            "rescale_betas_zero_snr to false, or prediction_type to v_prediction if the network was trained so"
        )
    extent = config.get("clip_sample_range", 1.0)
    if not extent > 0:
        raise ModelError(f"the model's scheduler says clip_sample_range {extent}: expected a number above 0")
    return DDIMScheduler(
        num_train_timesteps=len(scheduler.betas),
        beta_start=config["beta_start"],
        beta_end=config["beta_end"],
        beta_schedule=config["beta_schedule"] if betas is None else "linear",
        trained_betas=betas,
        clip_sample=not latents and bool(config.get("clip_sample", False)),
        set_alpha_to_one=_ends_without_noise(config, name),
        steps_offset=1 if latents and not own_offset else config.get("steps_offset", 0),
        prediction_type=prediction,
        thresholding=False,
        dynamic_thresholding_ratio=0.995,
        clip_sample_range=float(extent),
        sample_max_value=1.0,
        timestep_spacing=spacing,
        rescale_betas_zero_snr=rescaled and (betas is None or not done),
    )


@dataclass(frozen=True)
class SchedulerProcess:
    """The process that a pipeline's scheduler config describes: any beta schedule, spacing and prediction type."""

    scheduler: DDIMScheduler

    @property
    def prediction(self) -> Prediction:
        return self.scheduler.config["prediction_type"]

    def grid(self, steps: int, latent_shape: Sequence[int] = ()) -> Grid:
        """DDIM's steps, as diffusers spaces them: from t to t - 1000 // steps, the last to the final alpha.

        Raises ConfigError for more steps than there are training times.
        """
        scheduler = DDIMScheduler.from_config(self.scheduler.config)
        assert isinstance(scheduler, DDIMScheduler)
        trained = len(self.times)
        if steps > trained:
            raise ConfigError(f"sampling.steps is {steps}, but the model was trained on {trained} times: give fewer")
        scheduler.set_timesteps(steps)
        config, cumulative = scheduler.config, scheduler.alphas_cumprod
        times = scheduler.timesteps.long()
        # For some numbers of steps numpy's rounding adds a time of -1 to the spacing `trailing`.
        times = times[times >= 0]
        if int(times.max()) >= trained:
            raise ConfigError(
                f"sampling.steps is {steps}, which with the scheduler's steps_offset {config['steps_offset']} asks the "
                f"network about time {int(times.max())}, but it was trained on 0 to {trained - 1}: give fewer steps"
            )
        previous = times - config["num_train_timesteps"] // steps
        after = torch.where(previous >= 0, cumulative[previous.clamp(min=0)], scheduler.final_alpha_cumprod)
        clip = config["clip_sample_range"] if config["clip_sample"] else None
        return variance_preserving(times, cumulative[times], after, clip)

    def x0(self, prediction: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Estimate of x_0 [N,*D] from the network's output at training times t [N]."""
        cumulative = self.scheduler.alphas_cumprod.to(x.device)[t].reshape(-1, *[1] * (x.ndim - 1)).to(x.dtype)
        return x0_from(prediction, x, cumulative.sqrt(), (1 - cumulative).sqrt(), self.prediction)

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t [N] in float64."""
        cumulative = self.scheduler.alphas_cumprod.to(t.device)[t].double()
        return cumulative.sqrt(), (1 - cumulative).sqrt()

    def output_scale(self, t: Tensor) -> Tensor:
        """[N]: by x_0 = (x - sigma eps) / alpha, or x_0 = alpha x - sigma v."""
        alpha, sigma = self.scales(t)
        return output_scale(alpha, sigma, self.prediction)

    @property
    def times(self) -> range:
        """0 to num_train_timesteps - 1."""
        return range(self.scheduler.config["num_train_timesteps"])


def _require_discrete(name: Any) -> None:
    if name not in DISCRETE:
        raise ModelError(
            f"the model's scheduler is a {name}, but this version trains networks whose noise follows a table of betas "
            "(DDPMScheduler, DDIMScheduler, PNDMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler and "
            "others of diffusers), not flow matching, EDM or consistency models"
        )


def require_types(config: Mapping[str, Any], types: Mapping[str, tuple[type, ...]], others: set[str]) -> None:
    """Raises ModelError for a value of another type than its key has, and for a key that is misspelt.

    `types` has the JSON types of the keys that matter, `others` the names of further keys that there may be.
    """
    for key, value in config.items():
        expected = types.get(key)
        if expected and (not isinstance(value, expected) or (isinstance(value, bool) and bool not in expected)):
            names = " or ".join(kind.__name__ for kind in expected)
            raise ModelError(f"{CONFIG} of the model says {key}: {value!r}, but its value must be of type {names}")
    for key in set(config) - set(types) - others:
        if not key.startswith("_") and (close := difflib.get_close_matches(key, types, n=1, cutoff=0.85)):
            raise ModelError(
                f"{CONFIG} of the model has a key {key!r}, which no scheduler has: did you mean {close[0]!r}?"
            )


@cache
def _all_keys() -> set[str]:
    """Keys of the configs of all schedulers here."""
    kinds: list[Any] = [getattr(diffusers, _SAME_DEFAULTS.get(name, name)) for name in DISCRETE]
    return {key for kind in kinds for key in kind._get_init_keys(kind)} | {"noise_sampler_seed"}


def _require_betas(config: Mapping[str, Any], name: str) -> None:
    """Raises ModelError for options of a class in DISCRETE that make its process another one."""
    if config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction":
        raise ModelError(
            f"the model's {name} is set to flow matching (use_flow_sigmas, flow_prediction), but this version trains "
            "networks whose noise follows a table of betas and which predict epsilon, sample or v_prediction"
        )
    if config.get("timestep_type") == "continuous":
        raise ModelError(
            f"the model's {name} says timestep_type 'continuous', so that its network takes noise levels and not "
            "times, but this version trains networks with discrete times"
        )


def _betas(scheduler: Any) -> list[float] | None:
    """The betas of a schedule that DDIM does not know by name; None for one that it does. Raises ModelError."""
    config, betas = scheduler.config, scheduler.betas
    times = config["num_train_timesteps"]
    if times < 1:
        raise ModelError(f"the model's scheduler says num_train_timesteps {times}: expected a number above 0")
    if len(betas) != times:
        raise ModelError(f"the model's scheduler has {len(betas)} trained_betas, but num_train_timesteps is {times}")
    # NaN is neither above 0 nor below 1. The last beta is 1 where the process ends at noise alone.
    if not ((betas > 0).all() and (betas[:-1] < 1).all() and betas[-1] <= 1):
        low, high = betas.min().item(), betas.max().item()
        raise ModelError(
            f"the model's scheduler has betas from {low:g} to {high:g}, which make no noising process: each must lie "
            "between 0 and 1 (beta_start, beta_end, beta_schedule or trained_betas in its scheduler_config.json)"
        )
    known = ("linear", "scaled_linear", "squaredcos_cap_v2")
    if config.get("trained_betas") is None and config["beta_schedule"] in known:
        return None
    return betas.tolist()


def _ends_without_noise(config: Mapping[str, Any], name: str) -> bool:
    """Whether the last step goes to alpha 1, or to that of time 0."""
    if (stated := config.get("set_alpha_to_one")) is not None:
        return stated
    if name in _ENDS_AT_FIRST_TIME:
        return False
    return config.get("final_sigmas_type", "zero") != "sigma_min"
