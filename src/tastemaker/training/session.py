"""A run while it goes on: what its rounds work with."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator

from tastemaker.algorithms.base import Task
from tastemaker.algorithms.windows import Whole, Window
from tastemaker.config.schema import Config
from tastemaker.data.pairs import PairSet
from tastemaker.data.prompt_set import PromptSet
from tastemaker.diffusion.model import Model
from tastemaker.diffusion.sampler import Sampler
from tastemaker.models.compiling import StaticRows, compile_seconds
from tastemaker.models.weight_copy import WeightCopy
from tastemaker.rewards.base import Reward
from tastemaker.rewards.combination import Combination
from tastemaker.runs.checkpoint import State
from tastemaker.training.prior_preservation import PriorImages
from tastemaker.training.progress import Display
from tastemaker.training.signals import Stop
from tastemaker.training.trackers import Trackers


@dataclass
class Session:
    """A run while it goes on."""

    config: Config
    accelerator: Accelerator
    model: Model
    optimizer: torch.optim.Optimizer
    reward: Reward
    prompts: PromptSet
    task: Task
    sampler: Sampler
    state: State
    display: Display
    stop: Stop
    window: Window = field(default_factory=Whole)
    rates: list[tuple[float, int]] = field(default_factory=list)
    """Learning rate and warm-up [updates] of each of the optimizer's groups."""
    pairs: PairSet | None = None
    """What is learned from, for algorithms that sample nothing."""
    prior_images: PriorImages | None = None
    """Images that the model should not forget, where the config asks for prior preservation."""
    step_weights: torch.Tensor | None = None
    """[T] by which advantages are multiplied at each sampler step; None multiplies none."""
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    others: dict[str, Reward] = field(default_factory=dict)
    """Held-out rewards, by name: evaluated and never trained on."""

    unseen: PromptSet | None = None
    """Prompts that are evaluated and never trained on."""

    average: WeightCopy | None = None
    """The average of the weights, where there is to be one."""

    sampling_average: WeightCopy | None = None
    """The average of the weights that samples the rounds' images, where they are not sampled by the weights."""

    kept: WeightCopy | None = None
    """The weights that the run leaves if it is stopped early."""

    static: StaticRows | None = None
    """The numbers of rows up to which calls of a compiled network are filled."""

    trackers: Trackers = field(default_factory=Trackers)
    """Where copies of the metrics go."""

    @property
    def combinations(self) -> dict[str, Combination]:
        """Those of its rewards that are made of others, by the setting that names them."""
        others = {f"evaluation.rewards[{index}]": reward for index, reward in enumerate(self.others.values())}
        named = {"reward": self.reward, **others}
        return {name: reward for name, reward in named.items() if isinstance(reward, Combination)}

    def remember_statistics(self) -> None:
        """Keeps in the state what combinations have measured on the base model's images."""
        for name, combination in self.combinations.items():
            self.state.base_parts[name] = {key: list(pair) for key, pair in combination.statistics.items()}

    def recall(self) -> None:
        """Gives the combinations the statistics of a run that goes on."""
        for name, combination in self.combinations.items():
            combination.recall(self.state.base_parts.get(name, {}))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside it the model has the average of its weights, where it keeps one."""
        with nullcontext() if self.average is None else self.average.swapped_in():
            yield

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Inside it the model has the weights that sample the rounds' images."""
        with nullcontext() if self.sampling_average is None else self.sampling_average.swapped_in():
            yield

    @contextmanager
    def phase(self, name: str, total: int) -> Iterator[None]:
        """Shows a bar and takes the time of one part of a round, without waiting for rewards and without compiling."""
        start, waited, before = time.perf_counter(), self.seconds["score"], self.compiled()
        with self.display.phase(name, total):
            yield
        compiled = self.compiled() - before
        self.seconds[name] += time.perf_counter() - start - (self.seconds["score"] - waited) - compiled
        if compiled:
            self.seconds["compile"] += compiled
            self.display.leave_out(compiled)
            self.display.log(f"{name}: {compiled:.0f} seconds to compile the network")

    def compiled(self) -> float:
        """Seconds that went into compiling the network so far."""
        return compile_seconds() if self.config.speed.compile else 0.0

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Inside it the bare network is called: a distributed wrapper would wait for the other processes."""
        wrapped = self.model.network
        self.model.network = self.accelerator.unwrap_model(wrapped)
        try:
            yield
        finally:
            self.model.network = wrapped
