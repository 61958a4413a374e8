"""Models of other packages, by `module:factory` or an entry point."""

from __future__ import annotations

import functools
import importlib
import re
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from tastemaker.errors import ModelError
from tastemaker.importing import working_directory_first

if TYPE_CHECKING:
    import torch

    from tastemaker.diffusion.model import Model

GROUP = "tastemaker.models"
"""Entry-point group in which another package names its models."""
_TARGET = r"[A-Za-z_]\w*(\.\w+)*:[A-Za-z_]\w*(\.\w+)*"


def installed() -> dict[str, str]:
    """Names and targets of the models that other installed packages offer."""
    return {point.name: point.value for point in entry_points(group=GROUP)}


def target_of(source: str) -> str | None:
    """`module:factory` for a model of another package; None for every other name."""
    return source if re.fullmatch(_TARGET, source) else installed().get(source)


def load_third_party(
    source: str,
    target: str,
    precision: str,
    device: torch.device | str,
    network_device: torch.device | str | None,
) -> Model:
    """What the factory makes, called with `precision` (fp32, bf16, fp16), `device` and `network_device`.

    The factory is a class or a function that returns a `diffusion.model.Model`; `models.check.check_model` says whether
    it keeps that protocol. `network_device` is where the network waits until it is sharded, None for `device`. Raises
    ModelError where the module does not import, the factory fails, or what it makes lacks a part of the protocol.
    """
    module_name, _, attribute = target.partition(":")
    try:
        with working_directory_first():
            module: Any = importlib.import_module(module_name)
        factory: Any = functools.reduce(getattr, attribute.split("."), module)
        made: Any = factory(precision=precision, device=device, network_device=network_device)
    except ModelError:
        raise
    except Exception as error:  # whatever a module or a factory raises
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"the model {source} cannot be made ({type(error).__name__}: {reason}): expected `module:factory`, a class "
            "or function that takes precision, device and network_device and returns a tastemaker.diffusion.model.Model"
        ) from error
    if lacking := [name for name in _PARTS if name not in dir(made)]:
        raise ModelError(
            f"the model {source} is a {type(made).__name__} without {lacking[0]}: a model has all that "
            "tastemaker.diffusion.model.Model names"
        )
    return made


_PARTS = (
    "network", "negative_prompt", "embedded_guidance", "weights", "process", "device", "latent_shape", "scale",
    "components", "prompt_states", "resize", "tune", "check", "encode", "clear_prompt_cache", "denoise", "predict",
    "decode", "encode_images", "usage",
)  # fmt: skip
"""The members of the protocol: a test compares them with it."""
