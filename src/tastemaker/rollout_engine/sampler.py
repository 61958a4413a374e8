"""A `Sampler` whose images come from rollout engines. Their likelihood is computed here, by the model itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tastemaker import noise
from tastemaker.config.engine_settings import RolloutEngine
from tastemaker.diffusion.losses import Reduction, gaussian_logp
from tastemaker.diffusion.model import Model, image_size
from tastemaker.diffusion.sampler import do_nothing, next_latent
from tastemaker.diffusion.sde import Sde, is_flow
from tastemaker.errors import ConfigError, EngineError
from tastemaker.models.flow_transformer import FlowTransformer
from tastemaker.rollout_engine.client import EngineClient
from tastemaker.rollout_engine.messages import RolloutAnswer, RolloutRequest
from tastemaker.rollout_engine.weights import EngineWeights
from tastemaker.types import Cond, Draw, Rollout, Trajectory

_SIGMAS = 1e-3
"""Largest difference between an engine's noise levels and the model's."""
_PROBE_STEPS = 4
"""Most steps of the image that must change with the adapter."""
_PROBE = "a photograph of a red house by the sea"


def sde_name(sde: Sde) -> str | None:
    """The contract's name of a noise schedule, whose noise level is its eta; None where it has none."""
    if sde.sde_type == "cps" and is_flow(sde.grid):
        return "cps"
    return "sde" if sde.sde_type == "flow-sde" else None


def require_engine_fits(model: Model, sde: Sde, processes: int) -> None:
    """Raises ConfigError where rollout engines cannot sample for a model, a noise schedule or a number of processes."""
    if processes > 1:
        raise ConfigError(
            f"sampling.engine is set, but {processes} processes train, and only one may give engines its adapters yet: "
            "start one process, or leave it out"
        )
    if sde_name(sde) is None:
        raise ConfigError(
            "sampling.engine is set, but rollout engines sample flow-matching models alone, with sampling.sde_type cps "
            "or flow-sde: leave it out, so that images are sampled in this process"
        )
    if isinstance(model, FlowTransformer) and model.embedded_guidance is not None:
        raise ConfigError(
            f"sampling.engine is set, but {model.family.name} has latents packed into tokens and a guidance weight as "
            "an input, which are not read from engines yet: leave it out, so that images are sampled in this process"
        )


@dataclass
class EngineSampler:
    """Images of rollout engines, with the log-probabilities that this process' model gives to their steps.

    An image's noise is the engine's own, from a seed of the draw's counters: other images than those of `LocalSampler`.
    Before each batch the engines are given the network's adapter, if they have another one, and after it they must
    still have it. At the kept steps (of images without any, at one step) the log-probability that is computed here and
    the one that the engine reports must agree within `settings.ratio_bound`.

    Raises EngineError where an engine has other weights or another model than this process, and EngineUnavailable where
    none answers in time.
    """

    model: Model
    sde: Sde
    client: EngineClient
    weights: EngineWeights
    settings: RolloutEngine
    reduction: Reduction = "mean"
    """Whether log-probabilities are means or sums over the elements of a latent."""
    noise_outside: bool = True
    """Whether steps that are not kept have noise too, where any are kept."""
    deviation: float = 0.0
    """Largest |ratio - 1| to what the engines report, of the images since `figures` was called."""

    @torch.no_grad()
    def __call__(
        self, draw: Draw, cond: Cond, keep: Sequence[int] = (), on_step: Callable[[], None] = do_nothing
    ) -> Rollout:
        """The B images of a draw, conditioned on `cond` [B], with the transitions of the contiguous steps `keep`."""
        self.weights.sync()
        some = bool(keep) and not self.noise_outside
        sde = self.sde.noise_only_at(keep) if some else self.sde
        # Evaluations keep no steps: their images are compared at one in the middle.
        noisy = sde.stochastic()
        compared = list(keep) or [noisy[len(noisy) // 2]]
        seeds = [
            noise.engine_seed(draw.seed, draw.round, prompt, sample)
            for prompt, sample in zip(draw.prompt_index, draw.sample_index, strict=True)
        ]
        requests = [
            replace(request(self.model, sde, cond.guidance, compared, prompt, seed), rollout_sde_step_indices=noisy)
            for prompt, seed in zip(draw.prompts, seeds, strict=True)
        ]
        answers = self.client.generate(requests, self.model.latent_shape)
        for _ in range(len(sde)):
            on_step()
        self.weights.require_loaded()
        for answer in answers:
            require_same_times(answer, sde)
        latents = torch.stack([answer.latents for answer in answers]).to(self.model.device)
        logp = log_prob(self.model, sde, latents, cond, compared)
        self._compare(answers, logp, compared)
        final = latents[:, -1]
        if not keep:
            return Rollout(cond, draw, final)
        scale = prod(self.model.latent_shape) if self.reduction == "sum" else 1
        steps = torch.tensor(compared, dtype=torch.int64, device=self.model.device)
        return Rollout(cond, draw, final, Trajectory(latents[:, : len(compared) + 1], steps, scale * logp))

    def figures(self) -> dict[str, float]:
        """What metrics.jsonl says of the images since the last call: `ratio_deviation/engine`."""
        deviation, self.deviation = self.deviation, 0.0
        return {"ratio_deviation/engine": deviation}

    def _compare(self, answers: Sequence[RolloutAnswer], logp: Tensor, steps: Sequence[int]) -> None:
        """Raises EngineError where means of log-probabilities [B,W] are not those that the engines report."""
        reported = torch.stack([answer.logp[list(steps)] for answer in answers]).to(logp.device)
        off = ((logp - reported).exp() - 1).abs().nan_to_num(torch.inf, torch.inf)
        worst = off.max().item()
        self.deviation = max(self.deviation, worst)
        if worst > self.settings.ratio_bound:
            image, step = divmod(int(off.argmax()), len(steps))
            raise EngineError(
                f"the rollout engine's images are not this model's: at step {steps[step]} of an image it reports a "
                f"log-probability of {reported[image, step]:.6g} for each element, and here it is "
                f"{logp[image, step]:.6g}, a ratio of 1 within {worst:.3g} where rollout_engine.ratio_bound allows "
                f"{self.settings.ratio_bound:g}: start the engine with the same model, size and precision as this run, "
                "and only if the difference is one of precision raise the bound"
            )


def request(model: Model, sde: Sde, guidance: float, kept: Sequence[int], prompt: str, seed: int) -> RolloutRequest:
    """The request for one image, with its latents around the contiguous steps `kept` and the final one."""
    named = sde_name(sde)
    assert named is not None  # require_engine_fits has seen it
    height, width = image_size(model)
    around = {*kept, *(step + 1 for step in kept), len(sde)}
    return RolloutRequest(
        prompt=prompt, negative_prompt=model.negative_prompt, seed=seed, width=width, height=height,
        num_inference_steps=len(sde), guidance_scale=guidance, rollout_sde_type=named,
        rollout_noise_level=sde.eta, rollout_sde_step_indices=None, rollout_return_step_indices=sorted(around),
    )  # fmt: skip


def log_prob(model: Model, sde: Sde, latents: Tensor, cond: Cond, steps: Sequence[int]) -> Tensor:
    """[B,W] float64 mean log-probabilities over a latent's elements of the steps from latents [B,W+1..,*D]."""
    found = []
    for position, step in enumerate(steps):
        x, x_next = latents[:, position], latents[:, position + 1]
        mean, std = next_latent(model, sde, x, cond, step)
        found.append(gaussian_logp(x_next, mean, std))
    return torch.stack(found, dim=1)


def require_same_times(answer: RolloutAnswer, sde: Sde) -> None:
    """Raises EngineError where an engine says that it sampled at other noise levels."""
    if answer.sigmas is None:
        return
    grid = sde.grid
    own = torch.cat([grid.sigma, grid.sigma_next[-1:]])
    same = answer.sigmas.shape == own.shape and bool(((answer.sigmas - own).abs() <= _SIGMAS).all())
    if not same:
        shown = [[round(value, 4) for value in sigmas.tolist()[:4]] for sigmas in (answer.sigmas, own)]
        raise EngineError(
            f"the rollout engine samples at other noise levels than this model: {len(answer.sigmas)} that begin with "
            f"{shown[0]}, and here {len(own)} that begin with {shown[1]}: start it with the same model and scheduler"
        )


def engine_sampler(
    model: Model, sde: Sde, urls: str, settings: RolloutEngine, guidance: float, log: Callable[[str], None],
    check: Callable[[], None] = do_nothing, **options: Any,
) -> EngineSampler:  # fmt: skip
    """The sampler of the engines in `urls`, which is yet to speak to them.

    `guidance` is that of the probe, `check` is called again and again while they are waited for.
    """
    assert settings.folder is not None  # Config has seen it
    client = EngineClient(urls, settings, log, check)

    def probe(url: str) -> Tensor:
        steps = min(_PROBE_STEPS, len(sde))
        asked = replace(
            request(model, sde, guidance, [], _PROBE, 0), num_inference_steps=steps, rollout_return_step_indices=[steps]
        )
        return client.generate_at(url, asked, model.latent_shape).latents[-1]

    weights = EngineWeights(client, model.weights, Path(settings.folder), probe)
    return EngineSampler(model, sde, client, weights, settings, **options)
