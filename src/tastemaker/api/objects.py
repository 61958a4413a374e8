"""Models, rewards and prompts that a program passes as objects: checked, copied, and named for the config."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.hooks import remove_hook_from_module
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from tastemaker.config.schema import Config, Sampling
from tastemaker.data.prompts import PromptSet, checked_prompts, load_prompts
from tastemaker.diffusion.model import Model
from tastemaker.errors import ModelError, PromptError
from tastemaker.evaluation.images import load_here
from tastemaker.evaluation.model_settings import set_up
from tastemaker.in_memory import object_name
from tastemaker.models import wrap_pipeline
from tastemaker.models.families import FAMILIES
from tastemaker.models.library_logging import loading
from tastemaker.rewards.base import wrap
from tastemaker.training.setup import Given


def with_objects(config: Config, model: Any, reward: Any, prompts: Any) -> tuple[Config, Given]:
    """The config with the names of what was passed, and what of it are objects. Raises a TastemakerError.

    Names and paths are put into the config as they are; None leaves the config's own.
    """
    pipeline = function = listed = None
    if isinstance(model, (str, Path)):
        config = replace(config, model=str(model))
    elif model is not None:
        pipeline = copied(model)
        require_no_adapter(pipeline)
        config = replace(config, model=object_name(f"{type(model).__name__}-{_weights_digest(_network(pipeline))}"))
    if isinstance(reward, str):
        config = replace(config, reward=reward)
    elif reward is not None:
        function = wrap(reward)
        config = replace(config, reward=object_name(function.name))
    if isinstance(prompts, str):
        config = replace(config, prompts=prompts)
    elif prompts is not None:
        listed = prompt_set(prompts)
        text = hashlib.blake2b(repr((listed.prompts, listed.weights)).encode(), digest_size=4).hexdigest()
        config = replace(config, prompts=object_name(f"{len(listed)}-prompts-{text}"))
    return config, Given(pipeline, function, listed)


def prompt_set(prompts: str | Sequence[str]) -> PromptSet:
    """Prompts from a list of texts, or from what `--prompts` takes. Raises PromptError.

    A prompt that comes several times in a list is one, drawn so many times as often.
    """
    if isinstance(prompts, str):
        return load_prompts(prompts)
    counts: dict[str, float] = {}
    for prompt in checked_prompts(prompts):
        counts[prompt] = counts.get(prompt, 0.0) + 1.0
    if not counts:
        raise PromptError("the list of prompts is empty: give at least one")
    return PromptSet(tuple(counts), tuple(counts.values()))


@torch.no_grad()
def copied(pipeline: Any) -> Any:
    """A copy of a loaded diffusers pipeline, without its offloading hooks; the original stays as it is.

    Raises ModelError where it is of no class of `models.families.FAMILIES`, or its weights are not in memory.
    """
    family = FAMILIES.get(type(pipeline).__name__)
    if family is None:
        raise ModelError(
            f"the model is a {type(pipeline).__name__}, but must be `bundled`, a folder, a hub name, or a pipeline of "
            f"the classes {', '.join(FAMILIES)}"
        )
    parts: dict[str, Any] = {}
    for name, kind in family.parts.items():
        part = pipeline.components[name]
        if part is None and name in family.optional:
            parts[name] = None
            continue
        if issubclass(kind, nn.Module):
            if not isinstance(part, kind):
                raise ModelError(f"the pipeline's {name} is a {type(part).__name__}, but must be a {kind.__name__}")
            if any(parameter.is_meta for parameter in part.parameters()):
                raise ModelError(
                    f"the weights of the pipeline's {name} are offloaded: give the pipeline without "
                    "enable_sequential_cpu_offload()"
                )
        parts[name] = copy.deepcopy(part)
        if isinstance(part, nn.Module):
            remove_hook_from_module(parts[name], recurse=True)
    settings = {name: pipeline.config[name] for name in family.settings if name in pipeline.config}
    with loading():
        made = family.pipeline(scheduler=copy.deepcopy(pipeline.scheduler), **parts, **family.options, **settings)
    if "id2label" in pipeline.config:  # names of classes, which these pipelines carry along but do not know
        made.register_to_config(id2label=pipeline.config["id2label"])
    return made


def model_here(model: str | Path | Any, sampling: Sampling) -> Model:
    """A model by its name, or a copy of a loaded pipeline, on this machine's accelerator and set up by the settings.

    Raises ModelError.
    """
    if isinstance(model, (str, Path)):
        return load_here(str(model), sampling)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    made = wrap_pipeline(copied(model), "fp32" if device == "cpu" else "fp16", device)
    set_up(made, sampling)
    return made


def require_no_adapter(pipeline: Any) -> None:
    """Raises ModelError where a pipeline's network has an adapter, beside which none can be trained."""
    if any(isinstance(module, BaseTunerLayer) for module in _network(pipeline).modules()):
        raise ModelError(
            f"the pipeline's {FAMILIES[type(pipeline).__name__].network} has an adapter already: merge it with "
            "fuse_lora() and unload_lora_weights(), or take it off with unload_lora_weights() alone"
        )


def _network(pipeline: Any) -> nn.Module:
    """The component that is trained of a pipeline of FAMILIES."""
    return pipeline.components[FAMILIES[type(pipeline).__name__].network]


def _weights_digest(network: nn.Module) -> str:
    """8 hexadecimal digits that tell a network's weights from others."""
    digest = hashlib.blake2b(digest_size=4)
    for name, values in network.state_dict().items():
        digest.update(name.encode())
        digest.update(values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
