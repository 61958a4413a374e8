"""What a run will do and need, computed from its settings before it starts (`tastemaker train --dry-run`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import cast

from tastemaker.algorithms.base import RewardGradientAlgorithm
from tastemaker.config.schema import Config
from tastemaker.diffusion.sampler import batches
from tastemaker.models.quantization import quantized_bytes
from tastemaker.training.backprop_round import drawn_gradient_steps
from tastemaker.training.setup import run_window
from tastemaker.training.static_rows import guidance_rows, training_rows

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
KEPT = {
    "SD3Transformer2DModel": (0.8, 0.1),
    "FluxTransformer2DModel": (0.8, 0.1),
    "Flux2Transformer2DModel": (1.1, 0.12),
    "ZImageTransformer2DModel": (1.2, 0.1),
}
"""What a training pass keeps for its backward pass, as a share of its layers' outputs, without and with gradient
checkpointing, by the network's class: counted (benchmarks/activations.py), and rounded up."""
OTHERS_KEPT = (1.0, 0.25)
"""Of U-Nets and decoders, and of networks that were not counted."""


@dataclass(frozen=True)
class Calls:
    """Network calls by their number of rows (one image at one step; guidance's second half counts as a row)."""

    forward: dict[int, int]
    """Calls without a graph."""
    backward: dict[int, int]
    """Calls with a graph, each with its backward pass."""


@dataclass(frozen=True)
class Facts:
    """What a plan needs to know besides the settings."""

    network: int
    """Parameters of the network without adapters."""
    trainable: int
    """Parameters that are trained: the adapters', or the network's."""
    value: int
    """Parameters of the value network."""
    text_encoder: int
    vae: int
    outputs: int
    """Elements that all layers of the network put out in a pass over one row."""
    decoder_outputs: int
    """The same of the decoder for one image."""
    height: int
    """Of the images, in pixels."""
    width: int
    stochastic: tuple[int, ...]
    """Sampler steps that have noise, and so a likelihood; all of a sampler without noise."""
    prompts: int
    """Prompts that are trained on."""
    unseen: int
    """Prompts that are only evaluated."""
    linear: int = 0
    """Weights of the network's linear layers, without biases: those that can be quantized."""
    largest_text_encoder: int = 0
    """Parameters of the largest text encoder."""
    decoder_peak: int = 0
    """Elements of the two largest outputs of the decoder's layers for one image: what it holds at once without a
    graph."""
    network_class: str = ""
    """Name of the network's class."""
    tile: float = 1.0
    """Share of an image that the decoder works on at once with `memory.vae_tiling`."""
    prompt_state: int = 0
    """Elements of one prompt's states."""
    forward_flops: int = 0
    """Floating-point operations of the network's matrix products, convolutions and attention in a pass over one row
    without a graph: a multiplication and an addition are two."""
    backward_flops: int = 0
    """The same of a pass with a graph together with its backward pass, with nothing computed again."""
    decode_flops: int = 0
    """The same of decoding one image."""
    pairs: int | None = None
    """Given pairs, of algorithms that learn from them."""
    processes: int = 1
    device: str = "cpu"
    out: str = ""


@dataclass(frozen=True)
class Plan:
    """What a run will do, over all processes and rounds, unless it is stopped early."""

    rounds: int
    updates: int
    """Optimizer steps, where every image is selected."""
    images: int
    """Images sampled to train on."""
    evaluations: int
    evaluation_images: int
    """Images sampled in all evaluations."""
    sampling_rows: int
    """Rows (one image at one step) that pass through the network without a graph, in training rounds."""
    training_rows: int
    """Rows that pass through it with a graph, at most."""
    reference_rows: int
    """Rows that pass through the reference, at most."""
    evaluation_rows: int
    """Rows that pass through the network or the base model in evaluations, at most."""
    prior_rows: int
    """Rows of prior preservation that pass through it with a graph."""
    first_round: Calls
    """Network calls of the first round on one process."""
    training_rewards: int
    evaluation_rewards: int
    """Images that are scored by the run's reward; each of `evaluation.rewards` scores as many in evaluations."""
    memory: dict[str, float]
    """Estimated bytes on one device, by what they are for."""


def make_plan(config: Config, facts: Facts) -> Plan:
    """The plan of a run that starts from nothing."""
    s, e, n = config.sampling, config.evaluation, facts.processes
    rounds = [round_calls(config, facts.stochastic, number, n) for number in range(1, config.rounds + 1)]
    training = n * sum(_rows(calls.backward) for calls in rounds)
    evaluations = 1 + sum(number == config.rounds or number % e.every == 0 for number in range(1, config.rounds + 1))
    each = (min(e.prompts, facts.prompts) + min(e.prompts, facts.unseen)) * e.per_prompt
    double = guidance_rows(config)
    seen = min(e.prompts, facts.prompts) * e.per_prompt
    noisy = len(facts.stochastic) if s.eta else s.steps
    measured = min(e.kl_images, seen) if measures_kl(config) else 0
    updates = config.rounds * updates_of_round(config)
    pairs = config.algorithm.needs == "pairs"
    images = 0 if pairs else config.rounds * s.samples
    # Of an engine's images the likelihood of one step is computed here.
    sampled = s.steps if s.engine is None else 1
    return Plan(
        rounds=config.rounds,
        updates=updates,
        images=images,
        evaluations=evaluations,
        evaluation_images=evaluations * each,
        sampling_rows=n * sum(_rows(calls.forward) for calls in rounds),
        training_rows=training,
        reference_rows=training if config.algorithm.requirements.reference else 0,
        evaluation_rows=evaluations * double * (each * sampled + measured * (s.steps + 2 * noisy)),
        prior_rows=updates * config.prior_preservation.rows if config.prior_preservation.weight > 0 else 0,
        first_round=rounds[0],
        training_rewards=images * config.algorithm.requirements.queries,
        evaluation_rewards=evaluations * each,
        memory=estimated_memory(config, facts, max(rounds[0].backward)),
    )


def measures_kl(config: Config) -> bool:
    """Whether evaluations can ask the base model: its adapters are off, or there is a copy of it."""
    if config.tuning.mode == "lora":
        return True
    return config.algorithm.requirements.reference and not config.reference.every


def round_calls(config: Config, stochastic: Sequence[int], number: int, processes: int = 1) -> Calls:
    """The network calls that round `number`, from 1, cannot do without on one process, at its settings' batch sizes.

    `stochastic` are the sampler steps that have noise. Every image counts as selected. What is computed again to save
    memory, the reference and evaluations are not counted.
    """
    s, o = config.sampling, config.optimizer
    if config.pathwise:
        return _backprop_calls(config, number, processes)
    keep = list(run_window(config).steps(list(stochastic), number, config.seed))
    if o.single_pass:
        return _single_pass_calls(config, keep, processes)
    updates = updates_of_round(config)
    # Of one update, on one process.
    rows = max(1, rows_of(config, s.samples // o.updates, keep, o.timestep_fraction) // processes)
    if o.images_per_update is not None:
        rows = max(1, rows_of(config, o.images_per_update, keep, o.timestep_fraction) // processes)
    backward = Counter(training_rows(config) * len(part) for part in batches(rows, o.rows))
    forward = Counter() if config.algorithm.needs == "pairs" else _sampling_calls(config, keep, processes)
    if s.recompute_log_prob:
        for size, count in backward.items():
            forward[size] += count * updates // o.inner_epochs
    return Calls(dict(forward), {size: count * updates for size, count in backward.items()})


def prepared_rows(config: Config, stochastic: Sequence[int], number: int, processes: int = 1) -> list[range]:
    """The rows of round `number` on one process, before its first update, in batches of `optimizer.rows`."""
    if config.pathwise:
        return []
    keep = list(run_window(config).steps(list(stochastic), number, config.seed))
    return batches(rows_of(config, config.sampling.samples, keep) // processes, config.optimizer.rows)


def compared_calls(
    config: Config, stochastic: Sequence[int], number: int, backward: Mapping[int, int], processes: int = 1
) -> Counter[int]:
    """Calls without a graph of what the algorithm compares with: the reference, and the network before the updates.

    `backward` are the round's calls with a graph (`round_calls`).
    """
    needs, found = config.algorithm.requirements, Counter[int]()
    for rows, count in backward.items():
        found[rows] += needs.passes_beside * count
    for part in prepared_rows(config, stochastic, number, processes):
        found[training_rows(config) * len(part)] += needs.passes_before
    return +found


def rows_of(config: Config, images: int, keep: Sequence[int], fraction: float = 1.0) -> int:
    """The rows that so many selected images have in a pass, or so many given pairs, with the kept steps `keep`.

    `fraction` is the share of each image's steps that is trained. Where pairs are made of sampled images, the rewards
    of a group all count as different.
    """
    needs, group = config.algorithm.requirements, config.group_size
    each = needs.rows_per_image
    if each is None:
        each = len(keep) if fraction >= 1 else max(1, round(fraction * len(keep)))
    if needs.pairs is None:
        return images * each
    return images // group * (group * (group - 1) // 2 if needs.pairs == "all" else 1) * each


def _sampling_calls(config: Config, keep: Sequence[int], processes: int, kept: bool = True) -> Counter[int]:
    """Calls that sample a process' images, at the kept steps too or (`kept` = False) at the others alone.

    Branches are one image until the first kept step. An engine samples all, and the likelihoods of kept steps are
    computed here.
    """
    s, found = config.sampling, Counter()
    steps = range(s.steps) if s.engine is None else keep
    for part in batches(s.samples // processes, s.images_per_batch):
        for step in steps:
            if kept or step not in keep:
                together = s.engine is None and (not keep or step < keep[0])
                found[guidance_rows(config) * (len(part) // s.branches if together else len(part))] += 1
    return found


def _single_pass_calls(config: Config, keep: Sequence[int], processes: int) -> Calls:
    """Of a round whose trained steps `keep` are sampled with a graph."""
    s, backward = config.sampling, Counter()
    for part in batches(s.samples // processes, s.images_per_batch):
        for images in batches(len(part), config.optimizer.rows):
            backward[guidance_rows(config) * len(images)] += len(keep)
    return Calls(dict(_sampling_calls(config, keep, processes, kept=False)), dict(backward))


def updates_of_round(config: Config) -> int:
    """Updates of a round in which every image is selected."""
    o = config.optimizer
    if o.images_per_update is None:
        return o.updates * o.inner_epochs
    return config.sampling.samples * o.inner_epochs // o.images_per_update


def _backprop_calls(config: Config, number: int, processes: int) -> Calls:
    """Of an algorithm that follows the reward's gradient, whose trained steps are drawn by counters."""
    algorithm = cast(RewardGradientAlgorithm, config.algorithm)
    s, o = config.sampling, config.optimizer
    double = guidance_rows(config) if algorithm.requirements.guided else 1
    forward, backward = Counter(), Counter()
    draws = drawn_gradient_steps(config, algorithm, run_window(config), s.steps, number)
    images, per_update = s.samples // len(draws), len(draws) // o.updates
    for update in range(o.updates):
        # Draws that follow each other with the same steps go through the network together.
        for steps, same in groupby(draws[update * per_update : (update + 1) * per_update]):
            plain, graph = algorithm.calls(steps, s.steps)
            for part in batches(max(1, images * len(list(same)) // processes), o.rows):
                forward[double * len(part)] += plain
                backward[double * len(part)] += graph
    return Calls(dict(forward), dict(backward))


def activation_share(network_class: str, checkpointing: bool) -> float:
    """The share of the outputs of a network's layers that a training pass keeps, the block that is recomputed
    included."""
    return KEPT.get(network_class, OTHERS_KEPT)[checkpointing]


def estimated_memory(config: Config, facts: Facts, rows: int) -> dict[str, float]:
    """Bytes on one device, by what they are for. `rows` pass through the network at once in training.

    Weights, gradients and optimizer states are exact, quantized weights to their scales; with `memory.offload` the
    largest of the text encoders and the VAE counts alone. Activations are a share of the outputs of all layers in one
    training pass at one sampler step (`activation_share`); or what decoding a batch's images holds, where that is more.
    An algorithm that keeps the graphs of several steps (`algorithm.checkpointing = none`) needs as many times more.
    What attention, the CUDA libraries, the reward and the allocator need comes on top.
    """
    o, needs, size = config.optimizer, config.algorithm.requirements, BYTES[config.precision]
    full = config.tuning.mode == "full"
    trained = facts.trainable + facts.value
    adapters = 0 if full else facts.trainable
    held = needs.reference and (full or config.reference.every > 0)
    copies = bool(o.ema) + (config.early_stop.metric is not None) + held + (needs.sampling_average is not None)
    checkpointing = needs.gradient_checkpointing or config.tuning.gradient_checkpointing
    share = activation_share(facts.network_class, checkpointing)
    decoder = facts.decoder_outputs * min(o.rows, rows) * 4 if config.pathwise else 0
    graph = share * rows * facts.outputs * size + activation_share("", checkpointing) * decoder
    decoded = 1 if config.memory.vae_slicing else config.sampling.images_per_batch
    decoding = facts.decoder_peak * decoded * 4 * (facts.tile if config.memory.vae_tiling else 1.0)
    kind = config.tuning.base_weights
    quantized = 0 if kind == "none" else facts.linear
    base = (facts.network - quantized) * (4 if full else size)
    if kind != "none":
        base += quantized_bytes(quantized, kind)
    beside = (
        max(facts.largest_text_encoder * size, facts.vae * 4)
        if config.memory.offload
        else facts.text_encoder * size + facts.vae * 4
    )
    return {
        "network": base + adapters * 4 + facts.value * 4,
        "text encoder or VAE, one at a time" if config.memory.offload else "text encoder and VAE": beside,
        "prompt states": facts.prompt_state * (facts.prompts + facts.unseen + 1) * 4,
        "gradients": trained * 4,
        "gradients of images": facts.trainable * 4 * config.sampling.samples / facts.processes * o.single_pass,
        "optimizer state": trained * (2 if o.eight_bit else 8),
        "copies of the trained weights": facts.trainable * 4 * copies,
        "activations (rough)": max(graph, decoding),
    }


def describe(config: Config, facts: Facts, plan: Plan) -> str:
    """The plan as text for a person."""
    total = sum(plan.memory.values())
    prompts = f"{facts.prompts} prompts" + (f", and {facts.unseen} that are only evaluated" if facts.unseen else "")
    parts = ", ".join(f"{name} {_size(value)}" for name, value in plan.memory.items() if value)
    reference = f", reference {plan.reference_rows:,}" if plan.reference_rows else ""
    prior = f", prior preservation {plan.prior_rows:,}" if plan.prior_rows else ""
    calls = plan.first_round
    source = f"{plan.images:,} images sampled" if facts.pairs is None else f"{facts.pairs:,} pairs given"
    lines = {
        "algorithm": config.algorithm.name,
        "model": f"{config.model} at {facts.height} x {facts.width} px (height x width), {facts.network:,} parameters, "
        f"{config.precision}",
        "trained": f"{facts.trainable:,} parameters ({config.tuning.mode})"
        + (f", and a value network of {facts.value:,}" if facts.value else ""),
        "prompts": f"{config.prompts} ({prompts})",
        "reward": config.reward,
        "processes": f"{facts.processes} on {facts.device}",
        "rounds": f"{plan.rounds:,}, with {plan.updates:,} updates in all",
        "images": f"{source}, {plan.evaluation_images:,} images in {plan.evaluations} evaluations",
        "network rows": f"without graph {plan.sampling_rows:,}, with graph {plan.training_rows:,}{reference}{prior}, "
        f"evaluations {plan.evaluation_rows:,}",
        "network calls": f"first round, each process: {sum(calls.forward.values()):,} without graph, "
        f"{sum(calls.backward.values()):,} with graph",
        "reward queries": f"{plan.training_rewards:,} images in training, {plan.evaluation_rewards:,} in evaluations",
        "memory": f"about {_size(total)} a device, an estimate: {parts}",
        "output": f"{facts.out or 'none'} (nothing has been written)",
    }
    return "\n".join(f"{name:15} {text}" for name, text in lines.items())


def _rows(calls: dict[int, int]) -> int:
    return sum(rows * count for rows, count in calls.items())


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
