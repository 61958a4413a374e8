"""The flags of guided-diffusion's scripts that say what a checkpoint is; free of torch, for the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tastemaker.errors import ModelError

_MULTIPLIERS = {256: (1, 1, 2, 2, 4, 4), 128: (1, 1, 2, 3, 4), 64: (1, 2, 3, 4), 32: (1, 2, 2, 2)}
"""Of `num_channels` at each level, by `image_size`: guided-diffusion's script_util.py; improved-diffusion's for 32."""


@dataclass(frozen=True)
class Flags:
    """What a checkpoint was trained with, by the names and defaults of guided-diffusion's scripts."""

    image_size: int = 64
    """Height and width of the images in pixels."""
    num_channels: int = 128
    """Channels of the first level."""
    num_res_blocks: int = 2
    """Residual blocks of each level."""
    channel_mult: str = ""
    """Factors of `num_channels`, one for each level, as 1,2,3,4; those of the image size when left out."""
    num_heads: int = 4
    """Heads of each attention layer, where `num_head_channels` is -1."""
    num_head_channels: int = -1
    """Channels of each head."""
    num_heads_upsample: int = -1
    """Heads in the second half of the network; -1 for as many as in the first."""
    attention_resolutions: str = "16,8"
    """Sides in pixels of the levels that have attention, with commas in between."""
    dropout: float = 0.0
    """Share of what is left out in training; never in this package."""
    class_cond: bool = False
    """Whether the network is given a class."""
    learn_sigma: bool = False
    """Whether the network predicts its variance too."""
    use_scale_shift_norm: bool = True
    """Whether the time scales and shifts a block's features (otherwise it is added to them)."""
    resblock_updown: bool = False
    """Whether residual blocks change the resolution (otherwise convolutions do)."""
    use_new_attention_order: bool = False
    """Whether query, key and value are split before the heads (otherwise within each head)."""
    diffusion_steps: int = 1000
    """Training times."""
    noise_schedule: Literal["linear", "cosine"] = "linear"
    """Betas: linear (Ho et al. 2020), or a squared cosine (Nichol and Dhariwal 2021)."""
    predict_xstart: bool = False
    """Whether the network predicts x_0 (otherwise the noise)."""
    rescale_timesteps: bool = False
    """Whether the network is given times from 0 to 1000, however many training times there are."""

    @property
    def multipliers(self) -> tuple[int, ...]:
        """Factors of `num_channels`, one for each level. Raises ModelError."""
        if self.channel_mult:
            return _numbers("channel_mult", self.channel_mult)
        if self.image_size not in _MULTIPLIERS:
            raise ModelError(
                f"image_size is {self.image_size}, for which no channel_mult is known: give it, as in --channel_mult "
                "1,2,3,4"
            )
        return _MULTIPLIERS[self.image_size]

    @property
    def attended(self) -> tuple[bool, ...]:
        """Which levels have attention. Raises ModelError."""
        sides = _numbers("attention_resolutions", self.attention_resolutions)
        factors = {self.image_size // side for side in sides}
        return tuple(2**level in factors for level in range(len(self.multipliers)))


def _numbers(flag: str, text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ModelError(f"{flag} is {text!r}, but must be whole numbers above 0 with commas in between, as 1,2,3,4")
    return tuple(int(part) for part in parts)
