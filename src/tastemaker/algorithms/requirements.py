"""What an algorithm needs of training besides its rows. Free of torch: the command line reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ValueTraining:
    """A value network that is trained beside the model."""

    kind: Literal["unet", "cnn", "conv", "mlp"]
    """Which one (models/value.py)."""
    lr: float
    """Learning rate."""
    warmup: int = 0
    """Updates over which it rises from 0."""
    states: Literal["text", "pooled"] = "text"
    """Which states of a prompt it is given: those of all tokens, or the text encoder's pooled one."""
    batch: int | None = None
    """Rows in each step of its own, before the policy's updates; None: it learns in those, from their rows."""
    updates: int = 1
    """With `batch`: its own steps a round."""
    clip_norm: float | Literal["model"] | None = "model"
    """Largest norm of its gradient: a number, the model's limit (`optimizer.clip_norm`), or None for no limit."""
    reward_model: str | None = None
    """Folder of the reward model as which it begins."""


@dataclass(frozen=True)
class KlControl:
    """A controller that moves the weight of the KL penalty (Ziegler et al. 2019)."""

    target: float
    """Divergence of a whole trajectory that it aims for."""
    horizon: int
    """Trajectories over which it works."""


@dataclass(frozen=True)
class SamplingAverage:
    """A moving average of the trained weights, which samples the images of a round."""

    decay: float
    """Largest decay of a round: the average becomes decay * average + (1 - decay) * weights."""
    rate: float
    """By how much the decay rises with each update, from 0."""
    after: int
    """Updates before it begins to rise."""

    def decay_at(self, updates: int) -> float:
        """The decay at the end of a round before which there were so many updates of the run."""
        return min(self.decay, max(0, updates - self.after) * self.rate)


@dataclass(frozen=True)
class Requirements:
    """What training has to provide for an algorithm. The defaults are those of a plain policy gradient."""

    keep_groups_together: bool = False
    """The images of a group must be on one process, since they are compared with each other."""
    positive_weights: bool = False
    """It takes weights of a regression, which are not negative, and not advantages."""
    standardise_advantages: bool = False
    """Advantages are standardised over the rows of each update."""
    reference: bool = False
    """It asks for the reference model."""
    label_probabilities: bool = False
    """It can learn from probabilities that an image of a given pair is the better one."""
    kl: float = 0.0
    """Weight of the divergence from the reference; the first one where `kl_control` moves it."""
    kl_control: KlControl | None = None
    """A controller of that weight."""
    value: ValueTraining | None = None
    """A value network to be trained."""
    gradient_checkpointing: bool = False
    """The network's blocks are recomputed in the backward pass, whatever `tuning.gradient_checkpointing` says."""
    keep_graphs: bool = False
    """Reward backpropagation: the graphs of all trained steps are kept until the backward pass. False: the steps are
    made without a graph, and each one again with one."""
    guided: bool = True
    """Whether its training passes use classifier-free guidance."""
    sampling_average: SamplingAverage | None = None
    """Images are sampled, and rows prepared, by a moving average of the weights; None: by the trained ones."""
    mean_before: bool = False
    """Rows are given the mean of their `before` over each update, of all processes."""
    sampling_noise: bool = False
    """It asks for the noise that the sampler added, which only this package's own sampler draws by counters."""
    queries: int = 1
    """Images that are scored for each one sampled."""
    images_per_row: int = 1
    """Images that each row of its losses asks the network about together: 2 for pairs."""
    pairs: Literal["all", "best-worst"] | None = None
    """Its rows are pairs out of the images of a group: all of them, or its best with its worst. None: images, or given
    pairs."""
    rows_per_image: int | None = None
    """Rows that each image has in a pass over the round; None: one for each kept step."""
    passes_before: int = 0
    """Passes of the network over all rows of the round, without a graph, before the first update."""
    passes_beside: int = 0
    """Passes of the network without a graph beside each one with a graph, over the same rows: the reference's."""
    score_weight: float | None = None
    """Where the policy is still the one that sampled, the gradient of a row's loss is minus this times its advantage
    times the gradient of its log-probability, and the advantage is its image's; `optimizer.single_pass` needs that.
    None: it is another."""
    images_per_draw: int | None = None
    """Reward backpropagation: images for which the trained steps are drawn together; None: an update's."""
    edict_mixing: float | None = None
    """Reward backpropagation through EDICT's coupled chain, which must be invertible: p of its mixing layers; None:
    through the ordinary chain."""
