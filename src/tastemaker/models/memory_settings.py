"""Settings that trade speed for memory; free of torch, since the command line reads them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Memory:
    """Ways to need less memory on the device; see also `tuning.base_weights`, `tuning.gradient_checkpointing`."""

    offload: bool = False
    """Keep text encoders and VAE in main memory, and on the device only while they work."""
    vae_slicing: bool = False
    """Let the VAE encode and decode one image after another, and not a batch at once."""
    vae_tiling: bool = False
    """Let the VAE encode and decode large images in overlapping tiles, which changes them a little at the seams."""
    prompt_states: bool = False
    """Keep what the text encoders make of prompts in the run's folder `prompt_states`, so that a resumed run loads the
    text encoders for new prompts alone."""
