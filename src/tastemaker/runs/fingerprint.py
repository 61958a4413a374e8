"""What a resumed run must share with the run before it, so that both give the same bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch
from accelerate import Accelerator

from tastemaker.config.schema import Config, Evaluation, OverOptimisation
from tastemaker.models import adapter_files
from tastemaker.rewards.expression import parse, parts, without_addresses
from tastemaker.rewards.labelers.settings import is_label
from tastemaker.rewards.serving.settings import is_remote
from tastemaker.rewards.vlm.settings import is_vlm
from tastemaker.runs.metrics import versions

FREE = ("rounds", "trackers", "checkpoint", "rollout_engine", "remote", "labelers", "vlm")
"""Settings that change no weight and no figure, and may differ."""

HARDWARE = ("device", "threads", "cpu")
"""Parts of a fingerprint in which the machines of one run may differ."""


def fingerprint(config: Config, accelerator: Accelerator) -> dict[str, Any]:
    """Settings, versions and hardware that results depend on in their last bit, as JSON."""
    settings = {name: value for name, value in asdict(config).items() if name not in FREE}
    # Runs of versions without them have none.
    settings["evaluation"]["rewards"] = config.evaluation.rewards or None
    settings["evaluation"]["hold_out"] = config.evaluation.hold_out or None
    if config.evaluation.kl_images == Evaluation().kl_images:
        del settings["evaluation"]["kl_images"]
    if config.over_optimisation == OverOptimisation():
        del settings["over_optimisation"]
    # Runs of versions without frozen adapters have no such settings; of those with, the files must be the same.
    frozen = {path: adapter_files.file_digest(path) for path in config.tuning.frozen_adapters}
    settings["tuning"]["frozen_adapters"] = [f"{path} ({digest})" for path, digest in frozen.items()] or None
    settings["tuning"]["frozen_weights"] = config.tuning.frozen_weights or None
    if config.tuning.base_weights == "none":
        del settings["tuning"]["base_weights"]
    if not config.sampling.negative_prompt:
        del settings["sampling"]["negative_prompt"]
    # An engine may move.
    settings["sampling"]["engine"] = None if config.sampling.engine is None else "a rollout engine"
    # Tiles change images; where a part lies and how many images it decodes at once do not.
    settings["memory"] = {"vae_tiling": config.memory.vae_tiling or None}
    settings["early_stop"]["over_optimisation"] = config.early_stop.over_optimisation or None
    scheduler = config.optimizer.lr_scheduler
    settings["optimizer"]["lr_scheduler"] = None if scheduler == "constant" else scheduler
    settings["optimizer"]["step_rules"] = config.optimizer.step_rules or None
    if scheduler in ("linear", "cosine"):  # which end with the last round
        settings["rounds"] = config.rounds
    asked = [part for reward in (config.reward, *config.evaluation.rewards) for part in parts(parse(reward))]
    # A server may move. Which reward it offers is compared instead (run.py), and how images travel to it.
    settings["reward"] = without_addresses(config.reward)
    if any(is_remote(part) or is_label(part) or is_vlm(part) for part in asked):
        looking = tuple(without_addresses(reward) for reward in config.evaluation.rewards)
        settings["evaluation"] = {**settings["evaluation"], "rewards": looking}
    if any(is_remote(part) for part in asked):
        settings["remote"] = {"format": config.remote.format}
    if any(is_vlm(part) for part in asked):
        settings["vlm"] = config.vlm.figures
    cuda = accelerator.device.type == "cuda"
    quantized = config.optimizer.eight_bit or config.tuning.base_weights != "none"
    eight_bit = {"bitsandbytes": version("bitsandbytes")} if quantized else {}
    return {
        "config": _flat(settings),
        "versions": versions() | eight_bit,
        "processes": accelerator.num_processes,
        # A sharded network sums its gradients in another order.
        "sharded": accelerator.is_fsdp2 or None,
        "device": torch.cuda.get_device_name(accelerator.device) if cuda else str(accelerator.device.type),
        # How sums are cut among threads and vector lanes decides their last bit on a CPU.
        "threads": 0 if cuda else torch.get_num_threads(),
        "cpu": "" if cuda else torch.backends.cpu.get_cpu_capability(),
    }


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs, one entry for each, as in `torch 2.12.0 -> 2.13.0`."""
    before, after = _flat(then), _flat(now)
    names = [*before, *(name for name in after if name not in before)]
    return [
        f"{name.removeprefix('config.').removeprefix('versions.')} {before.get(name)} -> {after.get(name)}"
        for name in names
        if before.get(name) != after.get(name)
    ]


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat
