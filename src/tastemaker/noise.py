"""Counter-based random numbers: each draw depends on its counters alone.

NumPy's Philox is keyed by (run seed, round) and its counter starts at (step, sample, prompt), so an image's
noise is the same whatever the batch size, the number of processes, or what was drawn before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_CHOICES = 2**63
"""Counter word of draws that belong to a round and not to an image."""
_DROPPED = 2**41 + 1
"""Step counter of the decision to leave a caption out."""
_ENGINE = 2**41 + 2
"""Step counter of the seed with which another engine draws an image's noise."""
_DIFFUSED = 2**42
"""Step counters of noise that is added to a finished image, apart from the sampler's."""


def generator(seed: int, round: int, *counters: int) -> np.random.Generator:
    """A generator for up to three counters in a round, which are not negative."""
    counter = [0, *counters, *([0] * (3 - len(counters)))]
    return np.random.Generator(np.random.Philox(key=[seed % 2**64, round % 2**64], counter=counter))


def choices(seed: int, round: int, purpose: int) -> np.random.Generator:
    """A generator for a round's own decisions (which prompts, which order), apart from all images' noise."""
    return generator(seed, round, purpose, _CHOICES)


def drop(share: float, seed: int, round: int, prompt: int, sample: int) -> bool:
    """Whether the caption of one image is left out, which `share` of them are."""
    return share > 0 and bool(generator(seed, round, _DROPPED, sample, prompt).random() < share)


def normal(shape: Sequence[int], seed: int, round: int, prompt: int, sample: int, step: int) -> Tensor:
    """Standard normal float32 noise of one image at one step, on the CPU."""
    values = generator(seed, round, step, sample, prompt).standard_normal(math.prod(shape), dtype=np.float32)
    return torch.from_numpy(values).view(*shape)


def engine_seed(seed: int, round: int, prompt: int, sample: int) -> int:
    """The seed, 0 to 2^31 - 1, with which another engine draws the noise of one image by its own generator."""
    return int(generator(seed, round, _ENGINE, sample, prompt).integers(2**31))


def diffused(
    shape: Sequence[int], times: range, seed: int, round: int, prompt: int, sample: int, index: int, epoch: int
) -> tuple[int, Tensor]:
    """A time out of `times` and standard normal noise, for the forward process from one image."""
    step = _DIFFUSED + (epoch << 20) + index
    rng = generator(seed, round, step, sample, prompt)
    time = times[int(rng.integers(len(times)))]
    return time, torch.from_numpy(rng.standard_normal(math.prod(shape), dtype=np.float32)).view(*shape)
