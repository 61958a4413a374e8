"""What `speed` in the settings turns on, before the network is wrapped for several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn

from tastemaker.config.schema import Config
from tastemaker.diffusion.model import Model
from tastemaker.errors import ConfigError
from tastemaker.models.compiling import StaticRows, cache_folder, compile_network

Attention = Literal["flash", "efficient", "math"]
SWITCHES: Mapping[str, tuple[Callable[[], bool], Callable[[bool], None]]] = {
    "flash": (torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp),
    "efficient": (torch.backends.cuda.mem_efficient_sdp_enabled, torch.backends.cuda.enable_mem_efficient_sdp),
    "cudnn": (torch.backends.cuda.cudnn_sdp_enabled, torch.backends.cuda.enable_cudnn_sdp),
    "math": (torch.backends.cuda.math_sdp_enabled, torch.backends.cuda.enable_math_sdp),
}
"""Whether torch may use an implementation of scaled_dot_product_attention, and what lets it; of CPUs too."""


def speed_up(config: Config, model: Model, static: StaticRows) -> list[str]:
    """Turns on what is asked for, and says what that does here.

    Raises ConfigError where an implementation of attention does not work for the network, or nothing can be compiled.
    """
    speed, lines = config.speed, []
    if speed.tf32:
        torch.set_float32_matmul_precision("high")
        device = model.device
        able = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        lines.append("TF32: matrix products" if able else f"TF32: no effect, this device ({device.type}) has none")
    if speed.channels_last:
        count = sum(isinstance(module, nn.Conv2d) for module in model.network.modules())
        # In place: the optimizer's parameters stay the same.
        model.network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        lines.append(f"channels-last: {count} convolutions" if count else "channels-last: no effect, no convolutions")
    if speed.attention != "auto":
        use_attention(model, speed.attention)
        lines.append(f"attention: {speed.attention}")
    if speed.compile:
        compile_network(model, static)
        lines.append(
            "torch.compile: the network is compiled at its first calls, which takes minutes the first time; kept in "
            f"{cache_folder()}"
        )
    return lines


def use_attention(model: Model, name: Attention) -> None:
    """Lets torch use one implementation of attention, and its own arithmetic (`math`) where that does not work.

    Networks beside the model, such as text encoders, may have masks or types that the implementation does not take.
    Raises ConfigError where the model's network is one of them. A network that is not on its device yet is not tried.
    """
    allow(name)
    if any(parameter.device.type != model.device.type for parameter in model.network.parameters()):
        allow(name, "math")
        return
    x = torch.zeros(1, *model.latent_shape, device=model.device)
    try:
        with torch.no_grad():
            model.predict(x, torch.zeros(1, dtype=torch.int64, device=model.device), model.encode([""], 1.0))
    except RuntimeError as error:
        raise ConfigError(
            f"speed.attention is {name}, which does not work for this network on {model.device.type} "
            f"({' '.join(str(error).split())[:200]}): choose another, or auto, by which torch chooses"
        ) from error
    allow(name, "math")


def allow(*names: str) -> None:
    """Lets torch use these implementations of attention alone."""
    for name, (_, switch) in SWITCHES.items():
        switch(name in names)


@contextmanager
def attention_kept() -> Iterator[None]:
    """Puts back afterwards which implementations of attention torch may use, and lets it use all inside."""
    before = {name: enabled() for name, (enabled, _) in SWITCHES.items()}
    allow(*SWITCHES)
    try:
        yield
    finally:
        allow(*(name for name, was in before.items() if was))
