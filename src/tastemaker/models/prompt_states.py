"""States of prompts by name, each computed once for each different prompt and kept."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tastemaker.types import Cond

CHUNK = 64
"""Prompts that are encoded at once."""


def _do_nothing(prompts: Sequence[str]) -> None:
    """Where nothing has to come before."""


class PromptStates:
    """What `compute` makes of prompts: named tensors [P,...], in float32."""

    def __init__(self, compute: Callable[[list[str]], Mapping[str, Tensor]]) -> None:
        self.compute = compute
        self.before_computing: Callable[[Sequence[str]], None] = _do_nothing
        """Called with the prompts that `compute` is about to be asked for."""
        self.kept: dict[str, dict[str, Tensor]] = {}
        """The tensors of each prompt by name, without the dimension of the prompts."""
        self.folder: Path | None = None
        """Where states are kept on disk too, by the text encoders' weights and the prompt."""
        self.device = torch.device("cpu")
        """Of the states that are read from there."""

    @torch.no_grad()
    def of(self, prompts: Iterable[str]) -> dict[str, Tensor]:
        """[P,...] states of the prompts by name, of which those that are not kept yet are computed."""
        prompts = list(prompts)
        if self.folder is not None:
            self.kept |= {one: saved for one in prompts if one not in self.kept and (saved := self._saved(one))}
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.kept]
        if missing:
            self.before_computing(missing)
        # The empty prompt alone: which prompts are encoded together changes the last bits of their states, and those
        # of the empty one are to be the same whatever else is encoded.
        others = [prompt for prompt in missing if prompt]
        chunks = [others[start : start + CHUNK] for start in range(0, len(others), CHUNK)]
        for part in [[""]] * ("" in missing) + chunks:
            found = {name: values.float() for name, values in self.compute(part).items()}
            for row, prompt in enumerate(part):
                self.kept[prompt] = {name: values[row] for name, values in found.items()}
                self._save(prompt)
        names = list(self.kept[prompts[0]]) if prompts else []
        return {name: torch.stack([self.kept[prompt][name] for prompt in prompts]) for name in names}

    def _file(self, prompt: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{hashlib.sha256(prompt.encode('utf-8', 'surrogatepass')).hexdigest()}.safetensors"

    def _saved(self, prompt: str) -> dict[str, Tensor] | None:
        """A prompt's states on disk, on the device of those that are kept; None where there are none, or damaged ones,
        which are then computed again."""
        try:
            return {name: value.to(self.device) for name, value in load_file(self._file(prompt)).items()}
        except (OSError, SafetensorError):
            return None

    def _save(self, prompt: str) -> None:
        if self.folder is None:
            return
        content = {name: value.cpu().contiguous() for name, value in self.kept[prompt].items()}
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self._file(prompt)
        # Several processes may write the same one.
        temporary = file.with_suffix(f".{os.getpid()}.tmp")
        save_file(content, temporary)
        os.replace(temporary, file)

    def keep_in(self, folder: Path, device: torch.device) -> None:
        """Keeps states in a folder from now on, those that there are already too, and takes those that are there."""
        self.folder, self.device = folder, device
        for prompt in self.kept:
            if not self._file(prompt).exists():
                self._save(prompt)

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
