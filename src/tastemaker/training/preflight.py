"""The checks of a run before it starts, without loading weights and without writing (`tastemaker train --dry-run`)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tastemaker.config.schema import Config
from tastemaker.data.prompts import load_prompts
from tastemaker.diffusion.model import Model, image_size
from tastemaker.evaluation.model_settings import set_up
from tastemaker.labelling.pairs import given_pairs
from tastemaker.models import load_meta_model
from tastemaker.models.memory import check_memory
from tastemaker.models.quantization import require_bitsandbytes
from tastemaker.rewards.base import FunctionReward, require_latents_of
from tastemaker.rewards.registry import load_reward
from tastemaker.rollout_engine.sampler import require_engine_fits
from tastemaker.training.labelers import require_labelers_fit
from tastemaker.training.plan import Facts
from tastemaker.training.prior_preservation import given_images
from tastemaker.training.setup import candidate_steps, require_divisible, require_gradient, run_sde, split_prompts
from tastemaker.training.trackers import check_trackers
from tastemaker.training.value_networks import value_network_for
from tastemaker.types import Cond


def preflight(config: Config, out: Path | None, processes: int = 1) -> Facts:
    """Checks all that a run's settings name and returns what a plan needs of it. Raises a TastemakerError.

    The model's configs are read, its weights are not. The rewards are loaded, as a run loads them. A model on the hub
    has its small files downloaded into the hub's cache. What only several processes together could find out (FSDP, the
    group of processes) is not checked, and W&B is not asked for an account.
    """
    check_trackers(config.trackers, main=False)
    prompts, unseen = split_prompts(config, load_prompts(config.prompts))
    loaded: dict[str, FunctionReward] = {}
    reward = load_reward(config.reward, config.remote, loaded=loaded, vlm=config.vlm, labelers=config.labelers)
    if config.pathwise:
        require_gradient(config, reward)
    others = {
        name: load_reward(name, config.remote, loaded=loaded, vlm=config.vlm, labelers=config.labelers)
        for name in config.evaluation.rewards
    }
    require_labelers_fit(config, reward, others, processes)
    pairs = given_pairs(config.pairs)
    given_images(config)
    require_divisible(config, processes)
    model = load_meta_model(config.model)
    for given in (prompts, unseen):
        if given is not None:
            model.check(given.prompts)
    set_up(model, config.sampling)
    check_memory(model, config.memory)
    require_bitsandbytes(config.tuning.base_weights)
    require_latents_of(model, {config.reward: reward, **others})
    cond = model.encode([prompts.prompts[0]], config.sampling.guidance)  # raises where the model cannot be guided
    needs, network = config.algorithm.requirements, parameters(model.network)
    value = None if needs.value is None else value_network_for(needs.value, model)
    # Adapters compute as much as the network, but their outputs belong to its layers: they are counted before.
    forward = count_forward(model, cond)
    frozen = {name: parameters(part) for name, part in model.components.items()}
    linear = sum(parameters(layer) for layer in model.network.modules() if isinstance(layer, nn.Linear))
    biases = sum(
        layer.bias.numel()
        for layer in model.network.modules()
        if isinstance(layer, nn.Linear) and layer.bias is not None
    )
    # Layers without values cannot be quantized, and are counted.
    model.tune(replace(config.tuning, gradient_checkpointing=False, base_weights="none"), config.seed)
    backward_flops = count_backward(model, cond)
    sde = run_sde(config, model)
    if config.sampling.engine is not None:
        require_engine_fits(model, sde, processes)
    height, width = image_size(model)
    return Facts(
        network=network,
        trainable=sum(weight.numel() for weight in model.weights.trainable().values()),
        linear=linear - biases,
        largest_text_encoder=max((count for name, count in frozen.items() if name != "vae"), default=0),
        network_class=type(model.network).__name__,
        tile=tile_share(model.components.get("vae"), model.latent_shape),
        backward_flops=backward_flops,
        prompt_state=sum(states[0].numel() for states in cond.states.values()),
        value=0 if value is None else parameters(value),
        text_encoder=sum(count for name, count in frozen.items() if name != "vae"),
        vae=frozen.get("vae", 0),
        height=height,
        width=width,
        stochastic=tuple(candidate_steps(sde)),
        prompts=len(prompts),
        unseen=0 if unseen is None else len(unseen),
        pairs=None if pairs is None else len(pairs),
        processes=processes,
        device="cuda" if torch.cuda.is_available() else "cpu",
        out="" if out is None else os.fspath(out),
        **forward._asdict(),
    )


class ForwardCounts(NamedTuple):
    """What a pass of the network over one row, and decoding one image, take without a graph: fields of `Facts`."""

    outputs: int
    decoder_outputs: int
    decoder_peak: int
    forward_flops: int
    decode_flops: int


def count_forward(model: Model, cond: Cond) -> ForwardCounts:
    """Passes of a model on the meta device."""
    x, t = one_row(model)
    with counted_outputs(model.network) as outputs, FlopCounterMode(display=False) as forward, torch.no_grad():
        model.predict(x, t, cond)
    with counted_outputs(*model.components.values()) as decoder, FlopCounterMode(display=False) as decode:
        model.decode(x)
    return ForwardCounts(
        outputs=sum(outputs),
        decoder_outputs=sum(decoder),
        decoder_peak=sum(sorted(decoder)[-2:]),
        forward_flops=forward.get_total_flops(),
        decode_flops=decode.get_total_flops(),
    )


def count_backward(model: Model, cond: Cond) -> int:
    """Floating-point operations of a pass with a graph over one row together with its backward pass, of a model on the
    meta device that has its adapters."""
    x, t = one_row(model)
    with FlopCounterMode(display=False) as backward:
        model.predict(x, t, cond).sum().backward()
    return backward.get_total_flops()


def one_row(model: Model) -> tuple[Tensor, Tensor]:
    """Latents [1, ...] and a timestep [1] on the meta device."""
    return torch.zeros(1, *model.latent_shape, device="meta"), torch.zeros(1, dtype=torch.int64, device="meta")


def tile_share(vae: nn.Module | None, latent_shape: tuple[int, ...]) -> float:
    """The share of an image that one tile of the VAE is; 1 where the VAE has other tiles than AutoencoderKL's."""
    if not isinstance(vae, AutoencoderKL):
        return 1.0
    return prod(min(1.0, vae.tile_latent_min_size / side) for side in latent_shape[-2:])


def parameters(module: nn.Module) -> int:
    """The number of a module's parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


@contextmanager
def counted_outputs(*modules: nn.Module) -> Iterator[list[int]]:
    """Inside it the numbers of elements that the modules' innermost layers put out are collected."""
    found: list[int] = []

    def collect(layer: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            found.append(output.numel())

    layers = [layer for module in modules for layer in module.modules() if not any(layer.children())]
    handles = [layer.register_forward_hook(collect) for layer in layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
