"""What one `tastemaker evaluate` does: models, prompts, seeds, rewards and metrics."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from tastemaker.config.schema import Sampling
from tastemaker.diffusion.sampler import batches
from tastemaker.errors import ConfigError, RewardError, nearest
from tastemaker.evaluation.evaluated_models import EvaluatedModel, digest
from tastemaker.rewards.base import Reward, functions
from tastemaker.rewards.expression import labels, without_addresses
from tastemaker.runs.metrics import versions
from tastemaker.types import Draw

METRICS = {
    "judge": "share of images that show their prompt, by the bundled world's judge",
    "diversity": "mean standard deviation of a pixel over the images of a prompt, in [0, 0.5]",
    "pairwise": "mean of 1 - cosine over pairs of a prompt's images, by their features",
    "vendi": "effective number of different images of a prompt, by their features",
    "fid": "Frechet distance of the features to those of the reference images",
    "kid": "kernel distance (unbiased squared MMD) of the features to those of the reference images",
    "clip-inception": "CLIP inception score with the prompts as classes",
    "kl": "divergence from the base model along the sampling chain, in nats",
    "speed": "images a second, with all that sampling needs",
}
"""What can be measured besides rewards."""
FEATURE_METRICS = ("pairwise", "vendi", "fid", "kid", "clip-inception")
"""Those that read features of a network."""


@dataclass(frozen=True)
class PromptSet:
    """Prompts that are reported together, with the images to make of them."""

    name: str
    source: str
    """What named them, as `--prompts` takes it."""
    draw: Draw
    """N images: those of a prompt follow each other."""

    @property
    def prompts(self) -> tuple[str, ...]:
        """P different prompts."""
        return tuple(dict.fromkeys(self.draw.prompts))


@dataclass(frozen=True)
class EvaluationPlan:
    """One evaluation: everything that its images and figures depend on."""

    models: tuple[EvaluatedModel, ...]
    prompt_sets: tuple[PromptSet, ...]
    sampling: Sampling
    """Steps, guidance, eta, size, and images sampled at once."""
    rewards: Mapping[str, Reward]
    """By the name that was given."""
    metrics: tuple[str, ...]
    precision: str
    features: str | None = None
    """The feature extractor of FEATURE_METRICS (`features.load_features`)."""
    reference: Path | None = None
    """Images that FID and KID compare with; the base model's where it is None."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of rewards that are elsewhere, which are compared when an evaluation goes on."""

    def __post_init__(self) -> None:
        names = [model.label for model in self.models]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ConfigError(
                f"two models have the label {twice}: give them different names, as in `first=PATH second=PATH`"
            )
        for metric in self.metrics:
            if metric not in METRICS:
                raise ConfigError(f"unknown metric {metric!r}; {nearest(metric, list(METRICS))}")
        wanted = [metric for metric in self.metrics if metric in FEATURE_METRICS]
        if wanted and self.features is None:
            raise ConfigError(
                f"the metric {wanted[0]} reads features of images: name what computes them, as in --features "
                "openai/clip-vit-large-patch14, or --features mymodule:function"
            )
        if "kl" in self.metrics and self.sampling.eta == 0:
            raise ConfigError("the metric kl compares the noise of sampling steps, but --eta 0 has none: leave it out")
        self._check_latents()

    def _check_latents(self) -> None:
        bases = list(dict.fromkeys(model.model for model in self.models))
        latent = [name for name, leaf in functions(self.rewards).items() if leaf.space == "latent"]
        if latent and len(bases) > 1:
            raise RewardError(
                f"the reward {latent[0]} reads the latents of one model, and cannot compare images of {bases[0]} and "
                f"{bases[1]}: leave it out, or evaluate these models separately"
            )

    @cached_property
    def reward_labels(self) -> dict[str, str]:
        """Short names of the rewards for tables, without addresses, by the names that were given."""
        return dict(zip(self.rewards, labels(list(self.rewards)), strict=True))

    @property
    def device(self) -> str:
        return "cuda" if torch.cuda.is_available() else "cpu"

    def model(self, label: str) -> EvaluatedModel:
        """The model with this label."""
        return next(model for model in self.models if model.label == label)

    def parts(self, prompt_set: PromptSet) -> list[range]:
        """The images of a prompt set that are sampled, and scored, together."""
        return batches(len(prompt_set.draw), self.sampling.batch)

    @property
    def batch_count(self) -> int:
        """Batches that are sampled in all."""
        return len(self.models) * sum(len(self.parts(prompt_set)) for prompt_set in self.prompt_sets)

    @property
    def latents_needed(self) -> bool:
        """Whether a reward reads latents."""
        return any(leaf.space == "latent" for leaf in functions(self.rewards).values())

    def arguments(self) -> dict[str, Any]:
        """All that the files of an evaluation depend on, as YAML and JSON have it. Raises ModelError."""
        sampling = self.sampling
        return {
            "models": {
                one.label: {
                    "source": one.source, "base": one.model, "weights": digest(one.change),
                    "compared with": one.reference,
                }
                for one in self.models
            },
            "order": [one.label for one in self.models],
            "prompts": {
                one.name: {
                    "source": one.source, "prompts": len(one.prompts), "images": len(one.draw),
                    "seed": one.draw.seed, "content": _text_digest(one.draw),
                }
                for one in self.prompt_sets
            },
            "steps": sampling.steps, "guidance": sampling.guidance,
            "embedded_guidance": sampling.embedded_guidance, "eta": sampling.eta,
            **({"negative_prompt": sampling.negative_prompt} if sampling.negative_prompt else {}),
            "sde_type": sampling.sde_type, "batch": sampling.batch,
            "height": sampling.height, "width": sampling.width, "precision": self.precision,
            "rewards": [without_addresses(name) for name in self.rewards], "metrics": list(self.metrics),
            "features": self.features, "reference": None if self.reference is None else str(self.reference),
            **self.settings,
            "versions": versions(),
            "device": torch.cuda.get_device_name() if self.device == "cuda" else "cpu",
        }  # fmt: skip


def _text_digest(draw: Draw) -> str:
    content: Sequence[Any] = (draw.seed, draw.round, draw.prompts, draw.prompt_index, draw.sample_index)
    return hashlib.sha256(repr(content).encode()).hexdigest()[:16]
