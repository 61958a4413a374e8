"""What a run is told, as frozen dataclasses. Nothing here imports torch: the command line reads it first.

Order of precedence: preset < file < flags. Every field has its unit or range in the line below it, which is
also the text that `--help` shows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tastemaker.algorithms.ddpo import DDPO
from tastemaker.errors import ConfigError
from tastemaker.models.tuning import Tuning


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn in a round. Together with the window this is the plan of design.md §3."""

    steps: int = 50
    """Denoising steps T, 1 to 1000."""
    eta: float = 1.0
    """Weight of the noise added at each step: 0 is deterministic DDIM, 1 the ancestral sampler."""
    guidance: float = 5.0
    """Classifier-free guidance weight w, in sampling and in training; 1 turns guidance off."""
    samples: int = 256
    """Pictures a round, over all processes."""
    per_prompt: int = 1
    """Pictures of each prompt drawn in a round; must divide `samples`."""
    batch: int = 8
    """Pictures sampled at once on one device."""
    size: int | None = None
    """Side of the pictures in pixels; the model's own when left out."""


@dataclass(frozen=True)
class Advantage:
    """How rewards become advantages."""

    normalise: Literal["per-prompt", "round"] = "per-prompt"
    """`per-prompt`: running statistics of each prompt (DDPO). `round`: mean and deviation of the whole round."""
    buffer: int = 32
    """Past rewards kept for each prompt."""
    min_count: int = 16
    """Rewards of a prompt needed before its own statistics are used; the whole round's are used until then."""
    clip: float = 5.0
    """Advantages are clamped to [-clip, clip]."""


@dataclass(frozen=True)
class Optimizer:
    """AdamW and how a round's rows are cut into updates."""

    lr: float = 1e-5
    """Learning rate."""
    warmup: int = 0
    """Updates over which the learning rate rises from 0; Adam's first steps are as long as the rate allows."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of AdamW's running means of the gradient and of its square."""
    eps: float = 1e-8
    """AdamW's guard against division by zero."""
    weight_decay: float = 1e-4
    """AdamW's weight decay."""
    clip_norm: float = 1.0
    """Largest norm of the gradient; longer ones are shortened to it."""
    updates: int = 4
    """Optimizer steps a round (for one inner epoch); must divide `sampling.samples`."""
    inner_epochs: int = 1
    """Passes over a round's samples."""
    eight_bit: bool = False
    """Keep AdamW's state in 8 bits (bitsandbytes): a quarter of its memory, which matters for whole networks."""
    rows: int = 8
    """Rows (one sample at one step) in one forward pass on one device; changes speed and memory, not the gradient."""
    first_share: float = 1.0
    """Share of each picture's steps that may be trained, counted from the noise, in (0, 1]; 1 is all of them."""
    timestep_fraction: float = 1.0
    """Share of each sample's steps that is trained, drawn at random, in (0, 1]."""


@dataclass(frozen=True)
class Evaluation:
    """The same prompts and seeds, sampled again and again while training goes on."""

    every: int = 5
    """Rounds between evaluations; the first and the last model are always evaluated."""
    prompts: int = 8
    """Number of prompts, taken evenly from the run's list."""
    per_prompt: int = 4
    """Pictures of each."""


@dataclass(frozen=True)
class Speed:
    """Ways to be faster that change results in their last digits. A run says what each of them did."""

    compile: bool = False
    """Compile the network with torch.compile: minutes at the start, and again for each new shape."""
    tf32: bool = False
    """Let Nvidia cards from Ampere on multiply float32 matrices with 10 bits of mantissa."""


@dataclass(frozen=True)
class Checkpoints:
    """When a run saves itself, and how much of that it keeps."""

    every: int = 1
    """Rounds between checkpoints."""
    keep: int = 2
    """Newest checkpoints kept: should the newest be damaged, the one before it is used."""
    keep_every: int = 0
    """Checkpoints of rounds divisible by this are kept for good; 0 keeps none for good."""


@dataclass(frozen=True)
class Config:
    """A whole run."""

    model: str = "bundled"
    """`bundled`, a folder with a diffusers pipeline, or a name on the Hugging Face hub."""
    prompts: str = "bundled-single"
    """A built-in list (`tastemaker ls prompts`), or a .txt or .jsonl file."""
    reward: str = "jpeg-compressibility"
    """A built-in reward (`tastemaker ls rewards`), an entry point's name, or `module:function`."""
    rounds: int = 100
    """Rounds of sampling and training."""
    seed: int = 0
    """Of prompts, noise and new adapters; the same seed gives the same run."""
    algorithm: DDPO = field(default_factory=DDPO)
    advantage: Advantage = field(default_factory=Advantage)
    sampling: Sampling = field(default_factory=Sampling)
    optimizer: Optimizer = field(default_factory=Optimizer)
    tuning: Tuning = field(default_factory=Tuning)
    evaluation: Evaluation = field(default_factory=Evaluation)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the network's forward passes; latents, log-probabilities, losses and adapters stay float32."""
    speed: Speed = field(default_factory=Speed)
    checkpoint: Checkpoints = field(default_factory=Checkpoints)
    trackers: tuple[str, ...] = ()
    """Any of tensorboard, wandb, trackio; metrics.jsonl is always written."""

    def __post_init__(self) -> None:
        s, o, e = self.sampling, self.optimizer, self.evaluation
        positive = {
            "rounds": self.rounds, "sampling.steps": s.steps, "sampling.samples": s.samples,
            "sampling.per_prompt": s.per_prompt, "sampling.batch": s.batch, "optimizer.updates": o.updates,
            "optimizer.rows": o.rows, "optimizer.inner_epochs": o.inner_epochs, "optimizer.lr": o.lr,
            "optimizer.clip_norm": o.clip_norm, "tuning.rank": self.tuning.rank, "evaluation.every": e.every,
            "evaluation.prompts": e.prompts, "evaluation.per_prompt": e.per_prompt,
            "advantage.buffer": self.advantage.buffer, "advantage.min_count": self.advantage.min_count,
            "advantage.clip": self.advantage.clip, "checkpoint.every": self.checkpoint.every,
            "checkpoint.keep": self.checkpoint.keep,
        }  # fmt: skip
        for name, value in positive.items():
            if value <= 0:
                raise ConfigError(f"{name} is {value}, but must be greater than 0")
        for name, value in {"optimizer.warmup": o.warmup, "checkpoint.keep_every": self.checkpoint.keep_every}.items():
            if value < 0:
                raise ConfigError(f"{name} is {value}, but must not be negative")
        for name, count in {"sampling.per_prompt": s.per_prompt, "optimizer.updates": o.updates}.items():
            if s.samples % count:
                raise ConfigError(f"sampling.samples is {s.samples}, which {name} = {count} does not divide")
        if s.eta <= 0:
            raise ConfigError(
                f"sampling.eta is {s.eta}, but a policy needs noise: give a value greater than 0 (usually 1)"
            )
        if s.steps > 1000:
            raise ConfigError(f"sampling.steps is {s.steps}, but the schedule has only 1000 of them")
        for name, share in {"timestep_fraction": o.timestep_fraction, "first_share": o.first_share}.items():
            if not 0 < share <= 1:
                raise ConfigError(f"optimizer.{name} is {share}, but must lie in (0, 1]")
