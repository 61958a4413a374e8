"""States of prompts by name, each computed once for each different prompt and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from tastemaker.types import Cond

CHUNK = 64
"""Prompts that are encoded at once."""


class PromptStates:
    """What `compute` makes of prompts: named tensors [P,...], in float32."""

    def __init__(self, compute: Callable[[list[str]], Mapping[str, Tensor]]) -> None:
        self.compute = compute
        self.kept: dict[str, dict[str, Tensor]] = {}
        """The tensors of each prompt by name, without the dimension of the prompts."""

    @torch.no_grad()
    def of(self, prompts: Iterable[str]) -> dict[str, Tensor]:
        """[P,...] states of the prompts by name, of which those that are not kept yet are computed."""
        prompts = list(prompts)
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.kept]
        # The empty prompt alone: which prompts are encoded together changes the last bits of their states, and those
        # of the empty one are to be the same whatever else is encoded.
        others = [prompt for prompt in missing if prompt]
        chunks = [others[start : start + CHUNK] for start in range(0, len(others), CHUNK)]
        for part in [[""]] * ("" in missing) + chunks:
            found = {name: values.float() for name, values in self.compute(part).items()}
            for row, prompt in enumerate(part):
                self.kept[prompt] = {name: values[row] for name, values in found.items()}
        names = list(self.kept[prompts[0]]) if prompts else []
        return {name: torch.stack([self.kept[prompt][name] for prompt in prompts]) for name in names}

    def clear(self) -> None:
        """Drops what is kept: hundreds of kB for each prompt, which data sets have by the million."""
        self.kept.clear()


def conditioned(
    states: Sequence[PromptStates],
    prompts: Sequence[str],
    guidance: float,
    device: torch.device | str,
    negative: str = "",
) -> Cond:
    """The conditioning of N = len(prompts) rows by all of `states`, with the empty prompt in row 0 of each.

    `negative`: the prompt that guidance moves away from.
    """
    rows = {prompt: index for index, prompt in enumerate(dict.fromkeys(["", negative, *prompts]))}
    named = {name: values for each in states for name, values in each.of(rows).items()}
    return Cond(named, torch.tensor([rows[prompt] for prompt in prompts], device=device), guidance, rows[negative])
