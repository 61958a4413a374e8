"""Which weights learn; free of torch, since the command line reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Gt

from tastemaker.errors import ConfigError

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
JOINT_ATTENTION = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "to_qkv_mlp_proj")
"""Further attention projections of transformers: of text beside the image, and of FLUX.2's single blocks."""


BaseWeights = Literal["none", "nf4", "int8"]
"""How frozen weights are stored."""


@dataclass(frozen=True)
class Tuning:
    """Which weights learn."""

    mode: Literal["lora", "full"] = "lora"
    """`lora`: low-rank adapters in the U-Net. `full`: the whole U-Net."""
    rank: Annotated[int, Gt(0)] = 4
    """Rank of the adapters."""
    alpha: float | None = None
    """Scale of the adapters' output is alpha / rank; alpha = rank when left out."""
    targets: tuple[str, ...] = ATTENTION
    """Names of the linear and convolution layers that get an adapter, or their ends, as attn2.to_q; every attention
    projection when left out, in transformers also those of the text."""
    start_from: str | None = None
    """An adapter from which training starts: a run, or a folder or file of diffusers, peft, kohya or ComfyUI. The new
    adapter has its layers, ranks and scales; `rank` and `targets`, where they are not left out, must be its own. The
    reference is still the model without any (with `reference.every` it begins as the one that the run starts with);
    what figures call the base model is the one that the run starts with. None starts with an adapter that does
    nothing."""
    frozen_adapters: tuple[str, ...] = ()
    """Adapters under the trained one, which do not learn: runs, folders or files, as of `start_from`. They are added to
    the model's weights when it is loaded, so that they are part of the reference. They are not saved with the trained
    adapter, whose file names them: what samples with it adds them again."""
    frozen_weights: tuple[float, ...] = ()
    """A weight for each of `frozen_adapters`; 1 for each when left out."""
    base_weights: BaseWeights = "none"
    """Store the linear layers' frozen weights under adapters in fewer bits (bitsandbytes): `nf4` in 4 (QLoRA), `int8`
    in 8; `none` keeps the precision. The trained adapter is of the quantized model, and works on the whole one too."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

    def __post_init__(self) -> None:
        if self.mode == "lora" and not self.targets:
            raise ConfigError(
                "tuning.targets is empty: name at least one layer, such as to_q, or use tuning.mode = full"
            )
        if self.start_from is not None and self.mode == "full":
            raise ConfigError(
                f"tuning.start_from is {self.start_from}, an adapter, but tuning.mode is full: set it to lora"
            )
        if self.base_weights != "none" and self.mode == "full":
            raise ConfigError(
                f"tuning.base_weights is {self.base_weights}, but tuning.mode is full, which trains all weights: set "
                "one to none, or the other to lora"
            )
        if self.frozen_weights and len(self.frozen_weights) != len(self.frozen_adapters):
            raise ConfigError(
                f"tuning.frozen_weights is {list(self.frozen_weights)}, but there are {len(self.frozen_adapters)} "
                "frozen_adapters: give a weight for each, or leave the weights out"
            )
        if self.alpha == 0:
            raise ConfigError("tuning.alpha is 0, by which an adapter never acts: leave it out for a scale of 1")

    @property
    def frozen(self) -> tuple[tuple[str, float], ...]:
        """The adapters that do not learn, each with its weight."""
        weights = self.frozen_weights or (1.0,) * len(self.frozen_adapters)
        return tuple(zip(self.frozen_adapters, weights, strict=True))
