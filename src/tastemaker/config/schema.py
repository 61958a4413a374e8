"""The settings of a run, as frozen dataclasses. Nothing here imports torch: the command line reads it first.

Order of precedence: preset < file < flags. Every field has its unit or range in the line below it, which is
also the text that `--help` shows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from tastemaker.algorithms.alignprop import AlignProp
from tastemaker.algorithms.awm import AWM
from tastemaker.algorithms.ddpo import DDPO
from tastemaker.algorithms.dgpo import DGPO
from tastemaker.algorithms.diffusion_dpo import DiffusionDPO
from tastemaker.algorithms.diffusion_kto import DiffusionKTO
from tastemaker.algorithms.direct_align import DirectAlign
from tastemaker.algorithms.dpo import DPO
from tastemaker.algorithms.dpok import DPOK
from tastemaker.algorithms.dppo import DPPO
from tastemaker.algorithms.draft import DRaFT
from tastemaker.algorithms.grpo import GRPO
from tastemaker.algorithms.mapo import MaPO
from tastemaker.algorithms.nft import NFT
from tastemaker.algorithms.online_diffusion_dpo import OnlineDiffusionDPO
from tastemaker.algorithms.pg import PG
from tastemaker.algorithms.ppo import PPO
from tastemaker.algorithms.refl import ReFL
from tastemaker.algorithms.rwr import RWR
from tastemaker.algorithms.selection import All, BestWorst, NonZero
from tastemaker.algorithms.windows import Backward, Random, Sliding, Whole
from tastemaker.config.combinations import check_combinations
from tastemaker.config.data_settings import Pairs, PriorPreservation, Reference
from tastemaker.config.engine_settings import RolloutEngine
from tastemaker.config.evaluation_settings import EarlyStop, Evaluation, OverOptimisation
from tastemaker.constraints import check_constraints
from tastemaker.diffusion.sde_types import SdeType
from tastemaker.models.memory_settings import Memory
from tastemaker.models.tuning import Tuning
from tastemaker.rewards.labelers.settings import Labelers
from tastemaker.rewards.serving.settings import Remote
from tastemaker.rewards.vlm.settings import Vlm

if TYPE_CHECKING:
    from tastemaker.algorithms.base import Algorithm
else:
    # What help and error messages list; `algorithms.registry` finds other packages' algorithms.
    Algorithm = (
        DDPO
        | PG
        | DPOK
        | DPO
        | GRPO
        | DPPO
        | PPO
        | RWR
        | NFT
        | AWM
        | DGPO
        | OnlineDiffusionDPO
        | DiffusionDPO
        | MaPO
        | DiffusionKTO
        | AlignProp
        | DRaFT
        | ReFL
        | DirectAlign
    )


@dataclass(frozen=True)
class Sampling:
    """How images are drawn in a round. Together with the window this says which steps are trained."""

    steps: Annotated[int, Gt(0)] = 50
    """Denoising steps T, 1 to 1000."""
    eta: float = 1.0
    """Weight of the noise added at each step: 0 is deterministic, 1 the ancestral sampler. Algorithms that learn from
    likelihoods of steps need more than 0."""
    sde_type: SdeType = "auto"
    """Noise schedule: `ddim` (Song et al. 2020). `cps`: coefficients-preserving sampling, eta 0 to 1. `flow-sde`
    (Flow-GRPO, eta about 0.7) and `dance-sde` (DanceGRPO, about 0.3): of flow-matching models only; the last step
    leaves noise in the image. `auto`: cps for flow-matching models, ddim for others."""
    guidance: float = 5.0
    """Classifier-free guidance weight w, in sampling and in training; 1 turns guidance off."""
    embedded_guidance: float | None = None
    """Guidance weight that the network of a distilled model is given as an input, beside `guidance`; that of the
    family when left out, 3.5 for FLUX.1-dev."""
    negative_prompt: str = ""
    """What guidance moves away from: its unconditional half has this prompt in place of the empty one, in sampling,
    training and evaluations. Captions that are dropped stay empty."""
    samples: Annotated[int, Gt(0)] = 256
    """Images a round, over all processes."""
    per_prompt: Annotated[int, Gt(0)] = 1
    """Images of each prompt drawn in a round; must divide `samples`."""
    batch: Annotated[int, Gt(0)] = 8
    """Images sampled at once on one device."""
    branches: Annotated[int, Gt(0)] = 1
    """Images that share a root until the window begins, and part there (B2-DiffuRL); must divide `per_prompt`."""
    log_prob: Literal["mean", "sum"] = "mean"
    """Log-probabilities and divergences over a latent's elements: their mean (DDPO), or sum (thesis). Clip ranges
    belong to one of them."""
    recompute_log_prob: bool = False
    """Compute the log-probabilities of a round's steps again before its first update, in micro-batches of
    `optimizer.rows` as training has them, so that ratios start at 1: one more forward pass for each row. How many rows
    are computed together changes the last digit of a network's output, which a sum of log-probabilities (`log_prob`)
    adds up over a latent's elements, above all in half precision (docs/methods/ddpo.md)."""
    noise_outside: bool = True
    """Add noise also at steps outside the window; MixGRPO and Flow-GRPO-Fast do not."""
    height: int | None = None
    """Height of the images in pixels; the model's own when left out."""
    width: int | None = None
    """Width of the images in pixels; the model's own when left out."""
    engine: str | None = None
    """Address of an SGLang Diffusion server that samples the images in place of this process, or several with commas
    between them; of flow-matching models with adapters (docs/guides/rollout-engine.md)."""

    @property
    def images_per_batch(self) -> int:
        """Images sampled at once: at most `batch`, with all branches of their roots, which are sampled together.

        One root's branches where they are more than `batch`.
        """
        return max(1, self.batch // self.branches) * self.branches


@dataclass(frozen=True)
class Advantage:
    """How rewards become advantages."""

    normalise: Literal[
        "per-prompt", "windowed", "group", "decoupled", "round", "base", "none", "softmax", "percentile"
    ] = "per-prompt"
    """`per-prompt`: running statistics of each prompt (DDPO). `windowed`: each prompt's over past rounds (B2-DiffuRL).
    `group`: of the prompt or root in this round (GRPO). `decoupled`: as `group`, but each term of a sum of rewards by
    itself, and their weighted sum over the round (GDPO). `round`: of the whole round. `base`: of the base model's
    images (thesis). `none`: raw rewards. `softmax` and `percentile`: weights for regressions (RWR, RWR-sparse)."""
    buffer: Annotated[int, Gt(0)] = 32
    """`per-prompt`: past rewards kept for each prompt."""
    min_count: Annotated[int, Gt(0)] = 16
    """`per-prompt`, `windowed`: rewards of a prompt needed before its own statistics are used, and not the round's."""
    history: Annotated[int, Gt(0)] = 8
    """`windowed`: past rounds that count beside the present one."""
    spread: Literal["group", "round"] = "group"
    """`group`, `decoupled`: divide by the group's own deviation, or by the whole round's."""
    beta: Annotated[float, Gt(0)] = 0.2
    """`softmax`: inverse temperature of the weights exp(beta r) (DDPO A.2)."""
    percentile: Annotated[float, Gt(0), Lt(1)] = 0.9
    """`percentile`: share of the rewards below the threshold."""
    across: Literal["prompt", "round"] = "prompt"
    """`softmax`, `percentile`: among images of one prompt (paper), or all of the round (part of the public code)."""
    clip: Annotated[float, Gt(0)] | None = 5.0
    """Advantages are clamped to [-clip, clip]; weights are not."""
    step_weights: Literal["none", "noise", "inverse-dt"] = "none"
    """By what the advantages are multiplied at each step: `noise`, in proportion to the step's noise (TempFlow-GRPO);
    `inverse-dt`, to 1 / dt of the step (GRPO-Guard). The mean over the steps that have noise is 1."""


@dataclass(frozen=True)
class Optimizer:
    """AdamW and how a round's rows are cut into updates."""

    lr: Annotated[float, Gt(0)] = 1e-5
    """Learning rate."""
    warmup: Annotated[int, Ge(0)] = 0
    """Updates over which the learning rate rises from 0; Adam's first steps are as long as the rate allows."""
    lr_scheduler: Literal["constant", "linear", "cosine", "piecewise_constant"] = "constant"
    """How the model's learning rate goes on after the warm-up, by diffusers' names: `linear` and `cosine` fall to 0 at
    the end of the last round; `piecewise_constant` follows `step_rules`, in the warm-up too."""
    step_rules: str = ""
    """`piecewise_constant`: multiples of the learning rate by update, as diffusers writes them: `0.4:6400,1` is 0.4
    times the rate for the first 6,400 updates of the run, and the whole rate after them."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of AdamW's running means of the gradient and of its square."""
    eps: float = 1e-8
    """AdamW's guard against division by zero."""
    weight_decay: float = 1e-4
    """AdamW's weight decay."""
    clip_norm: Annotated[float, Gt(0)] = 1.0
    """Largest norm of the gradient; longer ones are shortened to it."""
    updates: Annotated[int, Gt(0)] = 4
    """Optimizer steps a round (for one inner epoch); must divide `sampling.samples`."""
    images_per_update: Annotated[int, Gt(0)] | None = None
    """Selected images in each optimizer step, in place of `updates`: a round has as many steps as its selection fills,
    counted over all inner epochs, and images left over at its end are not trained on (B2-DiffuRL's code). A pair of
    images counts as its preferred one."""
    inner_epochs: Annotated[int, Gt(0)] = 1
    """Passes over a round's samples."""
    minibatch: Literal["images", "states"] = "images"
    """What an update takes: whole images with all their steps, or single steps pooled over images (thesis)."""
    ema: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Decay by update of an average of the weights, with which evaluations sample and which is what a run leaves;
    0 keeps none."""
    eight_bit: bool = False
    """Keep AdamW's state in 8 bits (bitsandbytes): a quarter of its memory, which matters for whole networks."""
    rows: Annotated[int, Gt(0)] = 8
    """Rows (one sample at one step) in one forward pass on one device; changes speed and memory, not the gradient."""
    first_share: Annotated[float, Gt(0), Le(1)] = 1.0
    """Share of each image's steps that may be trained, counted from the noise, in (0, 1]; 1 is all of them."""
    timestep_fraction: Annotated[float, Gt(0), Le(1)] = 1.0
    """Share of each sample's steps that is trained, drawn at random, in (0, 1]."""
    single_pass: bool = False
    """Take each image's gradient of the log-probability while it is sampled, and weight it by the advantage later: no
    second forward pass, for memory of the adapter's size for each image. Adapters with one update a round, of pg, ddpo,
    and of grpo, dppo and dpok without their divergence (docs/guides/single-pass.md)."""


@dataclass(frozen=True)
class Speed:
    """Ways to be faster that change results in their last digits. A run says what each of them did."""

    compile: bool = False
    """Compile the network with torch.compile: minutes at the start of the first run, less of later ones, which find
    what is kept. Smaller batches at the end of a loop are filled up, so that shapes stay the same."""
    channels_last: bool = False
    """Keep the weights of convolutions with their channels last in memory, for U-Nets."""
    attention: Literal["auto", "flash", "efficient", "math"] = "auto"
    """Implementation of attention (torch's scaled_dot_product_attention): `flash` and `efficient` need less memory than
    `math`, where they work. `auto`: torch chooses."""
    tf32: bool = False
    """Let Nvidia cards from Ampere on multiply float32 matrices with 10 bits of mantissa."""


@dataclass(frozen=True)
class Checkpoints:
    """When a run saves itself, and how much of that it keeps."""

    every: Annotated[int, Gt(0)] = 1
    """Rounds between checkpoints."""
    keep: Annotated[int, Gt(0)] = 2
    """Newest checkpoints kept: should the newest be damaged, the one before it is used."""
    keep_every: Annotated[int, Ge(0)] = 0
    """Checkpoints of rounds divisible by this are kept for good; 0 keeps none for good."""


@dataclass(frozen=True)
class Config:
    """A whole run."""

    model: str = "bundled"
    """`bundled`, a folder with a diffusers pipeline, a name on the Hugging Face hub, or `module:factory`."""
    prompts: str = "bundled-single"
    """A built-in list (`tastemaker ls prompts`), a .txt, .jsonl, .json, .csv, .tsv or .parquet file, `dataset:NAME`, or
    a template such as `a(n) [animal] [activity]` (docs/guides/prompts.md)."""
    reward: str = "jpeg-compressibility"
    """A built-in reward (`tastemaker ls rewards`), an entry point's name, `module:function`, the URL of a server, the
    people of a labelling project (`label:PROJECT`), or several put together: `clip-score +
    0.5*jpeg-compressibility` (docs/guides/rewards.md)."""
    rounds: Annotated[int, Gt(0)] = 100
    """Rounds of sampling and training."""
    seed: int = 0
    """Of prompts, noise and new adapters; the same seed gives the same run."""
    algorithm: Algorithm = field(default_factory=DDPO)
    advantage: Advantage = field(default_factory=Advantage)
    window: Whole | Backward | Sliding | Random = field(default_factory=Whole)
    selection: All | BestWorst | NonZero = field(default_factory=All)
    sampling: Sampling = field(default_factory=Sampling)
    optimizer: Optimizer = field(default_factory=Optimizer)
    tuning: Tuning = field(default_factory=Tuning)
    pairs: Pairs = field(default_factory=Pairs)
    reference: Reference = field(default_factory=Reference)
    prior_preservation: PriorPreservation = field(default_factory=PriorPreservation)
    evaluation: Evaluation = field(default_factory=Evaluation)
    over_optimisation: OverOptimisation = field(default_factory=OverOptimisation)
    early_stop: EarlyStop = field(default_factory=EarlyStop)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the network's forward passes; latents, log-probabilities, losses and adapters stay float32."""
    memory: Memory = field(default_factory=Memory)
    speed: Speed = field(default_factory=Speed)
    rollout_engine: RolloutEngine = field(default_factory=RolloutEngine)
    remote: Remote = field(default_factory=Remote)
    vlm: Vlm = field(default_factory=Vlm)
    labelers: Labelers = field(default_factory=Labelers)
    checkpoint: Checkpoints = field(default_factory=Checkpoints)
    trackers: tuple[str, ...] = ()
    """Any of tensorboard, wandb, trackio; metrics.jsonl is always written."""

    def __post_init__(self) -> None:
        check_constraints(self)
        check_combinations(self)

    @property
    def slices(self) -> int:
        """Parts of a round's images of which each process samples a share: its updates, where these take images."""
        o = self.optimizer
        return o.updates if o.minibatch == "images" and o.images_per_update is None else 1

    @property
    def group_size(self) -> int:
        """Images that stay in one update and process: the branches of a root, or a prompt's where they pair up."""
        branches, pairs = self.sampling.branches, self.algorithm.requirements.keep_groups_together
        return self.sampling.per_prompt if pairs and branches == 1 else branches

    @property
    def pathwise(self) -> bool:
        """Whether the algorithm follows the reward's own gradient."""
        return self.algorithm.needs == "prompts"
