"""A network sharded among the processes (FSDP2): each holds a part of every weight, gradient and optimizer state.

Calling such a network gathers the weights of one block after the other, so that all processes must make the same
calls in the same order. What is written to disk is whole, and that of a network that is not sharded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tastemaker.config.schema import Config
from tastemaker.errors import ConfigError


def check(config: Config, accelerator: Accelerator) -> None:
    """Raises ConfigError for a way of sharding, or a setting with it, that does not work here."""
    from torch.distributed.fsdp import CPUOffloadPolicy

    plugin: Any = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise ConfigError(
            f"accelerate was told to shard by FSDP version {plugin.fsdp_version}, but only version 2 is supported: "
            "give `accelerate launch --use_fsdp --fsdp_version 2`, or choose it in `accelerate config`"
        )
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        raise ConfigError("weights cannot be sharded and offloaded to the CPU: leave --fsdp_offload_params out")
    for name, on in (("optimizer.eight_bit", config.optimizer.eight_bit), ("speed.compile", config.speed.compile)):
        if on:
            raise ConfigError(f"{name} does not work with a sharded network: leave it off, or leave --use_fsdp out")
    if config.algorithm.requirements.value is not None:
        raise ConfigError(
            f"the algorithm {config.algorithm.name} has a value network, which does not work with a sharded one: "
            "leave --use_fsdp out"
        )
    if config.algorithm.requirements.reference and (config.tuning.mode == "full" or config.reference.every):
        raise ConfigError(
            "a copy of the weights for the reference does not work with a sharded network: use tuning.mode = lora and "
            "reference.every = 0, or leave --use_fsdp out"
        )
    if config.optimizer.ema:
        raise ConfigError("an average of the weights does not work with a sharded network: set optimizer.ema to 0")
    if config.prior_preservation.weight:
        raise ConfigError("prior preservation does not work with a sharded network: set prior_preservation.weight to 0")
    for name, value, even in (
        ("selection", config.selection.name, "all"), ("optimizer.minibatch", config.optimizer.minibatch, "images")
    ):  # fmt: skip
        if value != even:
            raise ConfigError(
                f"{name} is {value}, by which processes have different numbers of rows, and those of a sharded network "
                f"must call it equally often: set it to {even}, or leave --use_fsdp out"
            )


def prepare(accelerator: Accelerator, network: Any, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
    """The sharded network, in place, and its optimizer. Blocks are those that diffusers does not let be split."""
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

    plugin: Any = accelerator.state.fsdp_plugin
    if plugin.auto_wrap_policy in (None, transformer_auto_wrap_policy) and not plugin.transformer_cls_names_to_wrap:
        # Without a policy the network would be one block, gathered whole at every call.
        kinds = {type(module).__name__ for module in network.modules()}
        plugin.transformer_cls_names_to_wrap = sorted(kinds & set(network._no_split_modules or ()))
        plugin.auto_wrap_policy = transformer_auto_wrap_policy
    # The model's own autocast decides what is computed in which precision, as without sharding; gradients are summed
    # in float32.
    plugin.mixed_precision_policy = None
    # Every process has read the weights.
    plugin.cpu_ram_efficient_loading = False
    network, optimizer = accelerator.prepare(network, optimizer)
    # What stays gathered between calls would miss it when adapters are switched off and on, which peft does by
    # their requires_grad.
    network.set_reshard_after_forward(True)
    return network, optimizer


def describe(network: nn.Module) -> str:
    """In how many blocks the network is sharded, and how much of it this process holds."""
    from torch.distributed.fsdp import FSDPModule

    parameters: list[Any] = list(network.parameters())
    mine, all_of_it = sum(p.to_local().numel() for p in parameters), sum(p.numel() for p in parameters)
    blocks = sum(isinstance(module, FSDPModule) for module in network.modules())
    return f"the network is sharded in {blocks} blocks; this process holds {mine / all_of_it:.0%} of its weights"


def gathered(tensors: Mapping[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
    """The tensors whole, on the CPU. All processes must ask for sharded ones; those not to `keep` them get nothing."""
    found = {}
    # In the same order everywhere: that of an optimizer's slots after loading differs from process to process.
    for name in sorted(tensors):
        value: Any = tensors[name].detach()
        whole = value.full_tensor() if hasattr(value, "full_tensor") else value
        if keep:
            # A copy also on the CPU: 8-bit states share their maps, and safetensors takes no shared memory.
            found[name] = whole.to("cpu", copy=True).contiguous()
    return found


def like(whole: Tensor, tensor: Any) -> Tensor:
    """This process' part of what `gathered` gave, sharded as `tensor` is; of one that is not sharded, all of it."""
    if not hasattr(tensor, "full_tensor"):
        return whole
    from torch.distributed.tensor import distribute_tensor

    # Every process has the same values: nothing needs sending.
    return distribute_tensor(whole.to(tensor.device), tensor.device_mesh, tensor.placements, src_data_rank=None)


@contextmanager
def whole(network: nn.Module, keep: bool) -> Iterator[None]:
    """Inside it the trained weights that `network.state_dict()` gives are whole, for a process that is to `keep` them.

    All processes must enter it. For a network that is not sharded it does nothing.
    """
    trained: dict[str, Tensor] = {name: p for name, p in network.named_parameters() if p.requires_grad}
    if not any(hasattr(p, "full_tensor") for p in trained.values()):
        yield
        return
    weights = gathered(trained, keep)
    hook = network.register_state_dict_post_hook(lambda _, state, *__: state.update(weights))
    # fully_shard makes a class of its own of the network's, and diffusers writes the class' name into config.json.
    kind = type(network)
    network.__class__ = kind.__mro__[2]
    try:
        yield
    finally:
        network.__class__ = kind
        hook.remove()
