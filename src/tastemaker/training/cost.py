"""How long a run takes, from its settings: the work of a round times the seconds of each piece of it.

Seconds are measured (`benchmarking/probe.py`) or come from counted floating-point operations and a card's data sheet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tastemaker.config.schema import Config
from tastemaker.errors import ConfigError, nearest
from tastemaker.rewards.expression import parse, parts
from tastemaker.rewards.serving.settings import is_remote
from tastemaker.training.plan import Calls, Facts, Plan, compared_calls, round_calls, updates_of_round
from tastemaker.training.static_rows import guidance_rows

UTILISATION = 0.35
"""Share of a card's peak rate that is assumed where nothing was measured."""

Kind = Literal["bf16", "fp16", "fp32"]


@dataclass(frozen=True)
class Card:
    """A GPU's dense peak rates by its maker's data sheet, in TFLOP/s, without sparsity."""

    half: float
    """Of matrix products in bf16, or in fp16 on cards without it, accumulated in float32."""
    tf32: float
    """Of float32 matrix products with `speed.tf32`; those of `single` on cards without it."""
    single: float
    """Of float32 without."""
    memory: float
    """GB."""


CARDS = {
    "t4": Card(65, 8.1, 8.1, 16),
    "v100": Card(125, 15.7, 15.7, 32),
    "rtx-3090": Card(71, 35.6, 35.6, 24),
    "rtx-4090": Card(165, 82.6, 82.6, 24),
    "rtx-5090": Card(210, 105, 105, 32),
    "a10": Card(125, 62.5, 31.2, 24),
    "l4": Card(121, 60, 30.3, 24),
    "l40s": Card(362, 183, 91.6, 48),
    "a100": Card(312, 156, 19.5, 80),
    "h100": Card(989, 495, 67, 80),
    "h200": Card(989, 495, 67, 141),
}
"""By the names that `--machine.card` takes; H100 and H200 with SXM sockets, V100 with 32 GB."""


def card_named(device: str) -> str | None:
    """The name in CARDS of a card as its driver calls it, such as `NVIDIA H100 80GB HBM3`; None for others."""
    words = device.lower().replace("-", " ").split()
    found = [name for name in CARDS if set(name.split("-")) <= set(words)]
    return max(found, key=len, default=None)


def find_card(name: str) -> Card:
    """A card by its name. Raises ConfigError for others."""
    if name not in CARDS:
        raise ConfigError(f"--machine.card is {name!r}, of which no peak rate is known: {nearest(name, list(CARDS))}")
    return CARDS[name]


@dataclass(frozen=True)
class Work:
    """What one process does in a round."""

    forward: dict[int, int]
    """Network calls without a graph by their rows, with those of the reference and those that are made again in the
    backward pass."""
    backward: dict[int, int]
    """Network calls with a graph, each with its backward pass."""
    batches: int
    """Batches that are sampled one after the other while the one before is scored; 0 where sampling is training."""
    decoded: int
    """Images decoded without a graph."""
    decoded_with_gradient: int
    scored: int
    """Images scored by the reward."""
    scored_with_gradient: bool
    updates: int


@dataclass(frozen=True)
class Seconds:
    """Of each piece of a round's work on one process."""

    forward: Mapping[int, float]
    """Of a network call without a graph by its rows. A number that is not among them has the seconds a row of the
    nearest one that is."""
    backward: Mapping[int, float]
    """The same of a call with a graph and its backward pass, with `tuning.gradient_checkpointing` as it is set."""
    decode: float
    """Of decoding an image."""
    decode_backward: float
    """Of decoding it with a graph, and of the backward pass."""
    reward: float
    """Of scoring an image, with the backward pass where the algorithm follows the reward's gradient."""
    update: float
    """Of an optimizer step."""


@dataclass(frozen=True)
class Cost:
    """Seconds of a run, on each of its processes."""

    round: dict[str, float]
    """Of its first round by parts; they add up to it."""
    rounds: float
    """Of all rounds."""
    evaluations: float
    """Of all evaluations, for which the other processes wait."""

    @property
    def total(self) -> float:
        """Of the run, without loading and without saving."""
        return self.rounds + self.evaluations


def round_work(config: Config, stochastic: Sequence[int], number: int, processes: int = 1) -> Work:
    """The work of round `number`, from 1, on one process. `stochastic` are the steps out of which windows take some."""
    calls = round_calls(config, stochastic, number, processes)
    return work_of(config, calls, compared_calls(config, stochastic, number, calls.backward, processes), processes)


def work_of(config: Config, calls: Calls, compared: Mapping[int, int], processes: int = 1) -> Work:
    """The work of a round on one process, whose network calls are known (`plan.round_calls`, `plan.compared_calls`)."""
    s, needs = config.sampling, config.algorithm.requirements
    forward, own = Counter(calls.forward) + Counter(compared), s.samples // processes
    made_again = config.pathwise and not needs.keep_graphs
    if made_again:
        # A trained step of a chain is sampled without a graph and made again with one.
        forward += Counter(calls.backward)
    pairs = config.algorithm.needs == "pairs"
    scored = 0 if pairs else own * needs.queries
    return Work(
        forward=dict(forward),
        backward=dict(calls.backward),
        batches=0 if config.pathwise or pairs else -(-own // s.images_per_batch),
        decoded=0 if pairs else (scored if made_again else 0) + (0 if config.pathwise else own),
        decoded_with_gradient=scored if config.pathwise else 0,
        scored=scored,
        scored_with_gradient=config.pathwise,
        updates=updates_of_round(config),
    )


def round_seconds(work: Work, seconds: Seconds, servers: int = 0) -> dict[str, float]:
    """Seconds of a round by parts, which add up to it.

    `servers` score a batch of images together while the next one is sampled, so that only what is waited for counts; 0
    is a reward in this process, which takes the time of whatever else the process does.
    """
    sampling = sum(count * at(seconds.forward, rows) for rows, count in work.forward.items())
    decoding = work.decoded * seconds.decode + work.decoded_with_gradient * seconds.decode_backward
    rewards = work.scored * seconds.reward / max(1, servers)
    if servers and work.batches:
        rewards = waited(sampling + work.decoded * seconds.decode, rewards, work.batches)
    return {
        "network without graph": sampling,
        "network with graph": sum(count * at(seconds.backward, rows) for rows, count in work.backward.items()),
        "decoding": decoding,
        "rewards": rewards,
        "optimizer": work.updates * seconds.update,
    }


def waited(sampling: float, scoring: float, batches: int) -> float:
    """Seconds for which rewards are waited for, where each of `batches` is scored while the next one is sampled."""
    sample, score = sampling / batches, scoring / batches
    return sample + (batches - 1) * max(sample, score) + score - sampling


def at(seconds: Mapping[int, float], rows: int) -> float:
    """Seconds of a call with `rows` rows: as measured, or in proportion to the nearest number that was."""
    nearest_rows = min(seconds, key=lambda size: (abs(size - rows), size))
    return seconds[nearest_rows] * rows / nearest_rows


def sizes(all_calls: Iterable[Calls]) -> tuple[list[int], list[int]]:
    """Rows of the network calls without a graph and with one, of which each has to be measured."""
    found = list(all_calls)
    backward = {rows for calls in found for rows in calls.backward}
    return sorted({rows for calls in found for rows in calls.forward} | backward), sorted(backward)


def run_cost(config: Config, facts: Facts, plan: Plan, seconds: Seconds, servers: int = 0) -> Cost:
    """Seconds of a whole run, in which every image is selected and which is not stopped early."""
    n = facts.processes
    each = [
        round_seconds(round_work(config, facts.stochastic, number, n), seconds, servers)
        for number in range(1, config.rounds + 1)
    ]
    rows = guidance_rows(config) * config.sampling.images_per_batch
    reward = seconds.reward / max(1, servers)
    evaluations = plan.evaluation_rows * at(seconds.forward, rows) / rows
    evaluations += plan.evaluation_images * (seconds.decode + reward)
    return Cost(each[0], sum(sum(found.values()) for found in each), evaluations)


def counted_seconds(config: Config, facts: Facts, card: Card, reward: float) -> Seconds:
    """Seconds by counted operations, at UTILISATION of a card's peak rate. `reward` are those of scoring an image."""
    rate = UTILISATION * 1e12 * peak(config, card)
    slow = UTILISATION * 1e12 * (card.tf32 if config.speed.tf32 else card.single)  # the VAE is in float32
    again = config.tuning.gradient_checkpointing or config.algorithm.requirements.gradient_checkpointing
    return Seconds(
        forward={1: facts.forward_flops / rate},
        backward={1: (facts.backward_flops + again * facts.forward_flops) / rate},
        decode=facts.decode_flops / slow,
        decode_backward=2 * facts.decode_flops / slow,  # its weights have no gradients
        reward=reward,
        update=0.0,
    )


def peak(config: Config, card: Card) -> float:
    """A card's peak rate in the precision of a run, in TFLOP/s."""
    if config.precision != "fp32":
        return card.half
    return card.tf32 if config.speed.tf32 else card.single


def is_served(config: Config) -> bool:
    """Whether a part of the reward is on servers, or elsewhere."""
    return any(is_remote(part) for part in parts(parse(config.reward)))


def describe_cost(cost: Cost, assumed: str) -> str:
    """What `--dry-run` prints of it."""
    whole = sum(cost.round.values())
    shown = ", ".join(f"{name} {duration(value)}" for name, value in cost.round.items() if value >= 0.005 * whole)
    return (
        f"about {duration(whole)} a round ({shown}); {duration(cost.total)} the run, of which evaluations "
        f"{duration(cost.evaluations)}; {assumed}"
    )


def duration(seconds: float) -> str:
    """Seconds for a person: `0.25 s`, `42 s`, `12 min`, `3.4 h`."""
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
