"""From a config to a session: everything that it names, checked, loaded and ready for its first round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs, disable_fsdp_ram_efficient_loading, set_seed
from torch import Tensor

from tastemaker.algorithms.advantage import step_weights
from tastemaker.algorithms.base import Task
from tastemaker.algorithms.windows import Both, First, Window
from tastemaker.config.schema import Config
from tastemaker.data.prompt_set import PromptSet
from tastemaker.data.prompts import load_prompts
from tastemaker.diffusion.edict import invertible_slopes
from tastemaker.diffusion.model import Model
from tastemaker.diffusion.sampler import LocalSampler, Sampler
from tastemaker.diffusion.sde import Sde, make_sde
from tastemaker.diffusion.single_pass import SinglePassSampler
from tastemaker.errors import ConfigError
from tastemaker.evaluation.model_settings import set_up
from tastemaker.labelling.pairs import given_pairs
from tastemaker.models import load_model, wrap_pipeline
from tastemaker.models.kept_prompt_states import kept_states, load_with_kept_states
from tastemaker.models.memory import save_memory
from tastemaker.models.per_image import adapter_layers
from tastemaker.models.weight_copy import WeightCopy
from tastemaker.rewards.base import FunctionReward, Reward, require_latents_of
from tastemaker.rewards.registry import differentiable_rewards, load_reward
from tastemaker.rollout_engine.sampler import engine_sampler, require_engine_fits
from tastemaker.runs import sharding
from tastemaker.runs.checkpoint import State
from tastemaker.training.early_stopping import can_stop
from tastemaker.training.heartbeat import COLLECTIVE_TIMEOUT
from tastemaker.training.labelers import require_labelers_fit
from tastemaker.training.prior_preservation import given_images, load_prior_images
from tastemaker.training.progress import Display
from tastemaker.training.reference import start_reference
from tastemaker.training.session import Session
from tastemaker.training.signals import Stop
from tastemaker.training.speed import speed_up
from tastemaker.training.static_rows import static_rows
from tastemaker.training.trackers import check_trackers
from tastemaker.training.value_networks import value_network_for


@dataclass(frozen=True)
class Given:
    """Objects of a Python program that stand in for what the config names (tastemaker.api.training)."""

    pipeline: Any = None
    """A diffusers pipeline of `models.families.FAMILIES`, which is frozen, moved, cast and trained in place."""
    reward: Reward | None = None
    prompts: PromptSet | None = None


NOTHING_GIVEN = Given()
PROMPT_STATES = "prompt_states"
"""Folder of a run with what text encoders make of prompts (memory.prompt_states)."""


def start(config: Config, out: Path, state: State, given: Given = NOTHING_GIVEN) -> Session:
    """A session without a folder. Raises a TastemakerError where a setting, model, prompt or reward is wrong."""
    return _session(config, _accelerator(config, out), out, state, given)


def _accelerator(config: Config, out: Path) -> Accelerator:
    device = torch.cuda.is_available()
    mixed = "fp16" if config.precision == "fp16" else "no"
    # accelerate's default by which transformers may load weights in one process only; the text encoder is not sharded,
    # and nothing would send it on.
    disable_fsdp_ram_efficient_loading()
    try:
        made = Accelerator(
            mixed_precision=mixed, project_dir=out, cpu=not device,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=COLLECTIVE_TIMEOUT)],
        )  # fmt: skip
    except (ValueError, ImportError, RuntimeError) as error:
        raise ConfigError(
            f"accelerate cannot set up this process ({' '.join(str(error).split())}): look at the variables of the "
            "environment that begin with ACCELERATE_, and at how the run is launched"
        ) from error
    if made.distributed_type in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise ConfigError(
            f"accelerate was told to shard the model by {made.distributed_type.value}, which this version cannot save "
            "or resume: choose plain data parallelism or FSDP version 2 in `accelerate config`"
        )
    if made.distributed_type == DistributedType.FSDP:
        sharding.check(config, made)
    check_trackers(config.trackers, main=made.is_main_process)
    return made


def _session(config: Config, accelerator: Accelerator, out: Path, state: State, given: Given) -> Session:
    display = Display(config.rounds, state.round, accelerator.is_main_process)
    known: dict[str, FunctionReward] = {}
    prompts = load_prompts(config.prompts) if given.prompts is None else given.prompts
    reward = given.reward
    if reward is None:
        reward = load_reward(config.reward, config.remote, display.log, known, config.vlm, config.labelers)
    if config.pathwise:
        require_gradient(config, reward)
        if accelerator.is_fsdp2:
            raise ConfigError(
                f"the algorithm {config.algorithm.name} calls the network inside its backward pass, which is not "
                "possible yet where it is sharded: use plain data parallelism"
            )
    if config.optimizer.single_pass and accelerator.is_fsdp2:
        raise ConfigError(
            "optimizer.single_pass is true, but the network is sharded over the processes, so that images have no "
            "gradients of their own: set it to false, or use plain data parallelism"
        )
    others = {
        name: load_reward(name, config.remote, display.log, known, config.vlm, config.labelers)
        for name in config.evaluation.rewards
    }
    require_labelers_fit(config, reward, others, accelerator.num_processes)
    prompts, unseen = split_prompts(config, prompts)
    pairs = given_pairs(config.pairs)
    prior = given_images(config)
    require_divisible(config, accelerator.num_processes)
    if pairs is not None:
        display.log(
            f"{', '.join(config.pairs.sources)}: {len(pairs)} pairs, and {pairs.ties} rows without a preference"
        )
    display.log(f"loading {config.model}")
    set_seed(config.seed)
    model = _loaded(config, accelerator, out, given)
    save_memory(model, config.memory)
    for listed in (prompts, unseen):
        if listed is not None:
            model.check(listed.prompts)
    set_up(model, config.sampling)
    require_latents_of(model, {config.reward: reward, **others})
    # Raises here where the model cannot be guided.
    model.encode([""], config.sampling.guidance)
    requirements = config.algorithm.requirements
    # Before the network gets adapters: a value network may be a copy of it.
    value = None if requirements.value is None else value_network_for(requirements.value, model)
    checkpointing = requirements.gradient_checkpointing or config.tuning.gradient_checkpointing
    model.tune(replace(config.tuning, gradient_checkpointing=checkpointing), config.seed)
    start_reference(config, model)
    groups: list[dict[str, Any]] = [{"params": list(model.weights.trainable().values())}]
    rates = [(config.optimizer.lr, config.optimizer.warmup)]
    if value is not None and requirements.value is not None:
        value.to(accelerator.device)
        groups.append({"params": list(value.parameters())})
        rates.append((requirements.value.lr, requirements.value.warmup))
    optimizer = _optimizer(config, groups)
    counts = [len(listed.prompts) for listed in (prompts, unseen) if listed is not None]
    static = static_rows(config, counts, accelerator.num_processes)
    for line in speed_up(config, model, static):
        display.log(line)
    if accelerator.is_fsdp2:
        model.network, optimizer = sharding.prepare(accelerator, model.network, optimizer)
        display.log(sharding.describe(model.network))
    else:
        model.network, optimizer = accelerator.prepare(model.network, optimizer)
    value = accelerator.prepare(value) if value is not None else None
    sde = run_sde(config, model)
    weights = None if config.advantage.step_weights == "none" else step_weights(config.advantage.step_weights, sde)
    stop = Stop(accelerator)
    sampler = _sampler(config, model, sde, weights, stop, display.log)
    task = Task(
        model=model,
        sde=sde,
        reduction=config.sampling.log_prob,
        value=value,
        value_states="text" if requirements.value is None else requirements.value.states,
        rows=config.optimizer.rows,
        reward=reward if config.pathwise else None,
    )
    window = run_window(config)
    session = Session(
        config,
        accelerator,
        model,
        optimizer,
        reward,
        prompts,
        task,
        sampler,
        state,
        display,
        stop,
        window,
        rates,
        pairs,
    )
    session.others, session.unseen = others, unseen
    session.step_weights = weights
    session.static = static if config.speed.compile else None
    session.prior_images = load_prior_images(session, prior)
    if config.optimizer.ema:
        session.average = WeightCopy(model.weights.trainable())
    if config.algorithm.requirements.sampling_average is not None:
        session.sampling_average = WeightCopy(model.weights.trainable())
    if can_stop(config):
        session.kept = WeightCopy(model.weights.trainable())
    return session


def _loaded(config: Config, accelerator: Accelerator, out: Path, given: Given) -> Model:
    """The model, of a resumed run without text encoders where the run in `out` has kept what they make of prompts."""
    # A network that needs sharding may not fit on one card: its blocks go there one by one, sharded.
    # One that is quantized may not fit there before it is.
    apart = accelerator.is_fsdp2 or config.tuning.base_weights != "none"
    placed = (config.precision, accelerator.device, "cpu" if apart else None)
    if given.pipeline is not None:
        return wrap_pipeline(given.pipeline, *placed)
    kept = kept_states(out / PROMPT_STATES, config.model, config.precision) if config.memory.prompt_states else None
    if kept is None:
        return load_model(config.model, *placed)
    return load_with_kept_states(config.model, kept, *placed, offloaded=config.memory.offload)


def _sampler(
    config: Config, model: Model, sde: Sde, weights: Tensor | None, stop: Stop, log: Callable[[str], None]
) -> Sampler:
    """This process, with or without gradients of its images, or the rollout engines that the config names.

    `weights` [T] are those of the steps.
    """
    options = config.sampling
    if options.engine is not None:
        require_engine_fits(model, sde, stop.accelerator.num_processes)
        return engine_sampler(
            model, sde, options.engine, config.rollout_engine, options.guidance, log, stop.check,
            reduction=options.log_prob, noise_outside=options.noise_outside,
        )  # fmt: skip
    local = LocalSampler(model, sde, options.log_prob, options.noise_outside)
    if config.optimizer.single_pass:
        adapter_layers(model.weights.network)  # raises where an image cannot have a gradient of its own
        return SinglePassSampler(local, model.weights, config.optimizer.rows, weights)
    return local


def run_sde(config: Config, model: Model) -> Sde:
    """The sampler's steps of a run. Raises ConfigError where they do not suit the model, or the algorithm."""
    sde = make_sde(model, config.sampling.steps, config.sampling.eta, config.sampling.sde_type)
    mixing = config.algorithm.requirements.edict_mixing
    if mixing is not None:
        invertible_slopes(model, sde, mixing)
    return sde


def run_window(config: Config) -> Window:
    """The steps that are trained: the config's window out of the first share of them."""
    share = config.optimizer.first_share
    return config.window if share == 1 else Both(First(share), config.window)


def candidate_steps(sde: Sde) -> list[int]:
    """The steps out of which a window takes some: those with noise, or all of a sampler that has none."""
    return sde.stochastic() or list(range(len(sde)))


def require_divisible(config: Config, processes: int) -> None:
    """Raises ConfigError where an update's images cannot be divided among the processes."""
    part = config.sampling.samples // config.slices
    if part % (processes * config.group_size):
        kept = f" in pieces of {config.group_size}, which are compared with each other" if config.group_size > 1 else ""
        raise ConfigError(
            f"{'an update' if config.slices > 1 else 'a round'} has {part} samples (sampling.samples = "
            f"{config.sampling.samples}, optimizer.updates = {config.optimizer.updates}), "
            f"which {processes} processes do not divide{kept}"
        )


def split_prompts(config: Config, prompts: PromptSet) -> tuple[PromptSet, PromptSet | None]:
    """The prompts that are trained on, and those that are only evaluated, which must not be among them.

    Raises ConfigError where some are, and are not to be held out, or where none would be left.
    """
    name = config.evaluation.unseen
    if name is None:
        return prompts, None
    unseen, known = load_prompts(name), frozenset(prompts.prompts)
    both = [prompt for prompt in unseen.prompts if prompt in known]
    if both and not config.evaluation.hold_out:
        raise ConfigError(
            f"evaluation.unseen is {name}, but {len(both)} of its {len(unseen)} prompts are trained "
            f"on too, {both[0]!r} among them: give a list that has none of {config.prompts}, or leave them out of the "
            "training with evaluation.hold_out=true"
        )
    held = frozenset(both)
    kept = [pair for pair in zip(prompts.prompts, prompts.weights, strict=True) if pair[0] not in held]
    if not kept:
        raise ConfigError(f"evaluation.hold_out leaves no prompt to train on: {name} has all of {config.prompts}")
    return PromptSet(tuple(prompt for prompt, _ in kept), tuple(weight for _, weight in kept)), unseen


def require_gradient(config: Config, reward: Reward) -> None:
    """Raises ConfigError where the reward's gradient cannot be followed, before any weights are loaded."""
    if lacking := reward.without_gradient:
        which = f"{' and '.join(lacking)} {'has' if len(lacking) == 1 else 'have'} none"
        raise ConfigError(
            f"the algorithm {config.algorithm.name} follows the reward's gradient, but {which}: take "
            f"one of {', '.join(differentiable_rewards())}, or mark your own with @reward(differentiable=True)"
        )


def _optimizer(config: Config, parameters: list[dict[str, Any]]) -> torch.optim.Optimizer:
    o = config.optimizer
    if not o.eight_bit:
        return torch.optim.AdamW(parameters, lr=o.lr, betas=o.betas, eps=o.eps, weight_decay=o.weight_decay)
    try:
        from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports, reportPrivateImportUsage]
    except ImportError as error:
        raise ConfigError(
            f"optimizer.eight_bit needs bitsandbytes ({error}): pip install bitsandbytes, or leave it off"
        ) from error
    return AdamW8bit(parameters, lr=o.lr, betas=o.betas, eps=o.eps, weight_decay=o.weight_decay)
