"""Names of the sampler's noise schedules; free of torch, since the command line reads it."""

from __future__ import annotations

from typing import Literal

SdeType = Literal["auto", "ddim", "cps", "flow-sde", "dance-sde"]
"""`diffusion.sde.make_sde` has the class of each; `auto` is cps for flow-matching models and ddim for all others."""
