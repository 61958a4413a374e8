"""The settings of `tastemaker iterate`. Free of torch: the command line reads them first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from annotated_types import Ge, Gt

from tastemaker.algorithms.ppo import PPO
from tastemaker.config.schema import Config
from tastemaker.constraints import check_constraints
from tastemaker.errors import ConfigError
from tastemaker.labelling.settings import Labelling
from tastemaker.reward_models.settings import Training
from tastemaker.rewards.preferences.architecture import Architecture

REWARD_MODEL = "REWARD_MODEL"
"""Stands for the folder of an iteration's reward model in `reward`, `evaluation.rewards` and `algorithm.value_from`."""
LABELS = "LABELS"
"""Stands in `pairs.sources` for the folders of the labelling projects that an iteration learns from."""


@dataclass(frozen=True)
class SimulatedLabelers:
    """People who are simulated, with a hidden utility (`tastemaker label simulate`)."""

    count: Annotated[int, Gt(0)] = 2
    """How many label at the same time."""
    seed: int = 0
    """Of all that they do at random."""
    utility: str = "judge"
    """What they like: `judge`, how much of the prompt an image of the bundled model's world shows, or any reward."""
    temperature: Annotated[float, Ge(0)] = 0.05
    """Noise: the left image is preferred with probability sigmoid((left - right) / temperature)."""
    tie: Annotated[float, Ge(0)] = 0.0
    """Images whose difference is at most this are called equal."""
    left_bias: float = 0.0
    """Added to the utility of the image on the left."""
    disagreement: Annotated[float, Ge(0)] = 0.0
    """Standard deviation of what each labeler thinks of an image beside the utility that all share."""


@dataclass(frozen=True)
class Waiting:
    """How people reach the labelling app, and when the loop goes on. It changes nothing that is learned."""

    host: str = "127.0.0.1"
    """Where the labelling app listens; by default people on this machine alone reach it."""
    port: int = 0
    """Its port; 0 takes a free one."""
    accept_unfinished: bool = False
    """Go on with the tasks that are labelled, where some are not."""


@dataclass(frozen=True)
class Loop:
    """What is repeated, and how often; the alignment itself has the settings of a run."""

    iterations: Annotated[int, Gt(0)] = 2
    """How often images are sampled, labelled and learned from."""
    tasks: Annotated[int, Gt(0)] = 120
    """Labelling tasks of each iteration."""
    images: Literal["newest", "mixed"] = "mixed"
    """Whose images a task has: the newest policy's alone, or in turn those of the newest policy, of the policies before
    it and of the base model."""
    labels: Literal["all", "newest"] = "all"
    """Which labels a reward model, or an algorithm that learns from pairs, learns from: those of all iterations so far,
    or the newest alone."""
    policy: Literal["base", "previous"] = "base"
    """What an alignment starts from: the base model, or the adapter of the iteration before."""
    simulate: bool = False
    """Simulated people label, in place of people in their browsers."""
    label: Labelling = field(default_factory=lambda: Labelling(mode="rank", images=5))
    """How tasks are labelled."""
    simulated: SimulatedLabelers = field(default_factory=SimulatedLabelers)
    network: Architecture = field(default_factory=Architecture)
    """The reward model's; of kinds unet and transformer, the network is that of the model that is trained."""
    reward_model: Training = field(default_factory=lambda: Training(curve=()))
    """How reward models are trained."""

    def __post_init__(self) -> None:
        check_constraints(self)
        if self.label.task_size < 2:
            raise ConfigError(
                f"the tasks have {self.label.task_size} image each (label.mode = {self.label.mode}), but a reward "
                "model learns from images that are compared: set label.mode to pair, rank or best"
            )
        if self.simulate and self.simulated.count < self.label.overlap:
            raise ConfigError(
                f"label.overlap is {self.label.overlap}, but there are {self.simulated.count} simulated labelers: set "
                f"simulated.count to at least {self.label.overlap}"
            )


@dataclass(frozen=True)
class IterationSettings:
    """All settings of `tastemaker iterate`, as iterate.yaml has them."""

    loop: Loop = field(default_factory=Loop)
    train: Config = field(default_factory=lambda: Config(reward=REWARD_MODEL))
    """Of each alignment, with REWARD_MODEL in place of the reward model's folder; its model, prompts and sampler also
    make the images that are labelled."""

    def __post_init__(self) -> None:
        config = self.train
        if config.algorithm.needs == "pairs":
            if config.pairs.sources != (LABELS,):
                raise ConfigError(
                    f"pairs.sources is {', '.join(config.pairs.sources)}, but an iteration learns from its labels: "
                    f"give {LABELS}"
                )
        elif REWARD_MODEL not in config.reward:
            raise ConfigError(
                f"the reward is {config.reward}, in which no reward model has a part: write {REWARD_MODEL} for that of "
                f"the iteration, as in --reward {REWARD_MODEL} or --reward '{REWARD_MODEL}:penalty=0.5'"
            )
        starts = isinstance(config.algorithm, PPO) and config.algorithm.value_from == REWARD_MODEL
        if starts and self.loop.network.kind != "unet":
            raise ConfigError(
                f"algorithm.value_from is {REWARD_MODEL}, but a value network begins as a reward model of kind unet, "
                f"and network.kind is {self.loop.network.kind}: leave algorithm.value_from out"
            )
        if self.loop.policy == "previous" and config.tuning.mode == "full":
            raise ConfigError(
                "policy is previous, which starts from an adapter, but tuning.mode is full: set it to lora, or policy "
                "to base"
            )
        if config.tuning.start_from is not None:
            raise ConfigError(
                f"tuning.start_from is {config.tuning.start_from}, but where an alignment starts is what policy says: "
                "leave it out"
            )

    @property
    def learns_a_reward(self) -> bool:
        """Whether there is a reward model; an algorithm that learns from pairs has none."""
        return self.train.algorithm.needs != "pairs"

    @property
    def architecture(self) -> Architecture:
        """The reward model's, with the model that is trained where it reads latents."""
        network, config = self.loop.network, self.train
        if network.network is None:
            return network
        side = config.sampling.height if network.size is None else network.size
        return replace(network, model=config.model, size=side)


def run_config(
    settings: IterationSettings, labels: Sequence[str], reward_model: str | None, start_from: str | None
) -> Config:
    """The settings of one alignment: folders in place of the words that stand for them."""
    config = settings.train
    config = replace(config, tuning=replace(config.tuning, start_from=start_from))
    if reward_model is None:
        return replace(config, pairs=replace(config.pairs, sources=tuple(labels)))

    def named(text: str) -> str:
        return text.replace(REWARD_MODEL, reward_model)

    algorithm = config.algorithm
    if isinstance(algorithm, PPO) and algorithm.value_from is not None:
        algorithm = replace(algorithm, value_from=named(algorithm.value_from))
    evaluation = replace(config.evaluation, rewards=tuple(map(named, config.evaluation.rewards)))
    return replace(config, reward=named(config.reward), algorithm=algorithm, evaluation=evaluation)
