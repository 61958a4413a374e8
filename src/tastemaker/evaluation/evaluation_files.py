"""The folder of an evaluation: what is in it, and how an evaluation that was stopped goes on.

- `settings.yaml`: the arguments, which must be the same when it goes on;
- `images/MODEL/PROMPTS/PPP-SS.png`: the image of prompt number PPP and seed SS, and latents where a reward reads them;
- `adapters/MODEL`: adapters of checkpoints and mixtures;
- `sampled.jsonl`: a line for each batch whose images are on disk; `scores.jsonl`: a line for each batch and reward.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from safetensors.torch import load, save
from torch import Tensor

from tastemaker.data.images import read_image, to_tensor
from tastemaker.errors import ConfigError, DataError, StorageError
from tastemaker.evaluation.evaluation_plan import EvaluationPlan, PromptSet
from tastemaker.evaluation.images import to_pil
from tastemaker.runs import atomic
from tastemaker.runs.fingerprint import differences
from tastemaker.runs.folders import check_new_folder
from tastemaker.runs.metrics import append_metrics, read_metrics

SETTINGS, SAMPLED, SCORES = "settings.yaml", "sampled.jsonl", "scores.jsonl"

BatchKey = tuple[str, str, int]
"""Label of the model, name of the prompt set, and number of the batch in it."""


@dataclass
class EvaluationFolder:
    """The files of an evaluation that has begun."""

    path: Path
    model_folders: Mapping[str, str]
    """Names of folders, by the models' labels."""
    prompt_folders: Mapping[str, str]
    """Names of folders, by the names of prompt sets."""
    sampled: dict[BatchKey, dict[str, Any]] = field(default_factory=dict)
    """The records of batches whose images are on disk."""
    scores: dict[tuple[str, BatchKey], list[float]] = field(default_factory=dict)
    """The answers of reward functions, by name and batch; of those that take all images at once, by batch -1."""

    def image(self, label: str, prompt_set: PromptSet, index: int) -> Path:
        """The file of one image, within the folder."""
        draw = prompt_set.draw
        first = {prompt: number for number, prompt in enumerate(dict.fromkeys(draw.prompt_index))}
        name = f"{first[draw.prompt_index[index]]:03d}-{draw.sample_index[index]:02d}.png"
        return self._place(label, prompt_set.name) / name

    def adapter(self, label: str) -> Path:
        """Where an adapter that is made for the evaluation lies."""
        return self.path / "adapters" / self.model_folders[label]

    def features(self, label: str, prompt_set: PromptSet) -> Path:
        """Where the features of a model's images lie."""
        return self.path / self._place(label, prompt_set.name) / "features.safetensors"

    def add_images(
        self, key: BatchKey, prompt_set: PromptSet, part: range, x: Tensor, latents: Tensor | None, record: Mapping
    ) -> None:
        """Images [B,3,H,W] of a batch, with what was measured while they were made. Raises OSError."""
        label, name, batch = key
        for index, image in zip(part, to_pil(x), strict=True):
            file = self.path / self.image(label, prompt_set, index)
            file.parent.mkdir(parents=True, exist_ok=True)
            atomic.replace_atomic(file, _png(image))
        if latents is not None:
            atomic.replace_atomic(self._latents(key), save({"latents": latents.cpu().contiguous()}))
        whole = {"model": label, "prompts": name, "batch": batch, **record}
        append_metrics(self.path / SAMPLED, whole)
        self.sampled[key] = whole

    def add_scores(self, reward: str, key: BatchKey, values: Tensor) -> None:
        """A reward function's answers [B] for a batch. Raises OSError."""
        found = values.tolist()  # float32 numbers are the same when they are read again
        label, name, batch = key
        record = {"reward": reward, "model": label, "prompts": name, "batch": batch, "values": found}
        append_metrics(self.path / SCORES, record)
        self.scores[reward, key] = found

    def read(self, label: str, prompt_set: PromptSet, indices: Iterable[int]) -> Tensor:
        """Images [B,3,H,W] in [0,1], as they are on disk. Raises DataError."""
        found = []
        for index in indices:
            file = self.path / self.image(label, prompt_set, index)
            found.append(to_tensor(read_image(file, f"the evaluation {self.path}")))
        return torch.stack(found)

    def latents(self, key: BatchKey) -> Tensor:
        """[B,*D] of a batch. Raises DataError."""
        try:
            return load(self._latents(key).read_bytes())["latents"]
        except (OSError, KeyError, ValueError) as error:
            raise DataError(f"the latents {self._latents(key)} cannot be read: {error}") from error

    def _latents(self, key: BatchKey) -> Path:
        label, name, batch = key
        return self.path / self._place(label, name) / f"latents-{batch:04d}.safetensors"

    def _place(self, label: str, prompts: str) -> Path:
        return Path("images") / self.model_folders[label] / self.prompt_folders[prompts]


def open_folder(path: Path, plan: EvaluationPlan) -> EvaluationFolder:
    """A new folder, or one in which the same evaluation has begun.

    Raises ConfigError for a folder with something else, or whose evaluation had other arguments; DataError where one of
    its images is missing.
    """
    arguments = plan.arguments()
    if (path / SETTINGS).is_file():
        _require_same(path, arguments)
    else:
        check_new_folder(path)
        path.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(arguments, sort_keys=False, allow_unicode=True)
        atomic.replace_atomic(path / SETTINGS, text.encode())
    atomic.tidy(path)
    made = EvaluationFolder(
        path, _folder_names([one.label for one in plan.models]), _folder_names([one.name for one in plan.prompt_sets])
    )
    for record in _records(path / SAMPLED):
        made.sampled[record["model"], record["prompts"], record["batch"]] = record
    for record in _records(path / SCORES):
        key = (record["model"], record["prompts"], record["batch"])
        made.scores[record["reward"], key] = record["values"]
    _require_images(made, plan)
    return made


def is_evaluation(path: Path) -> bool:
    """Whether an evaluation has begun in this folder."""
    return (path / SETTINGS).is_file()


@contextmanager
def storing(path: Path):
    """Says what to do where the disk fails."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot write to {path}: {error.strerror or error}; make room or check the disk, and give the same "
            "command again"
        ) from error


def _require_same(path: Path, arguments: Mapping[str, Any]) -> None:
    try:
        then = yaml.safe_load((path / SETTINGS).read_text(encoding="utf-8"))
        unlike = differences(then, json.loads(json.dumps(arguments)))
    except (OSError, ValueError, yaml.YAMLError, AttributeError) as error:
        raise ConfigError(f"{path / SETTINGS} cannot be read: {' '.join(str(error).split())}") from error
    if unlike:
        more = f"; and {len(unlike) - 4} more" if len(unlike) > 4 else ""
        raise ConfigError(
            f"{path} holds an evaluation with other arguments ({'; '.join(unlike[:4])}{more}): give those again to go "
            "on with it, or another --out"
        )


def _records(path: Path) -> list[dict[str, Any]]:
    """The whole records of a file, from which what a killed process left of one is taken away."""
    if not path.is_file():
        return []
    found = read_metrics(path)
    whole = "".join(json.dumps(record) + "\n" for record in found).encode()
    if path.read_bytes() != whole:
        atomic.replace_atomic(path, whole)
    return found


def _require_images(folder: EvaluationFolder, plan: EvaluationPlan) -> None:
    for prompt_set in plan.prompt_sets:
        for number, part in enumerate(plan.parts(prompt_set)):
            for model in plan.models:
                if (model.label, prompt_set.name, number) not in folder.sampled:
                    continue
                for index in part:
                    file = folder.path / folder.image(model.label, prompt_set, index)
                    if not file.is_file():
                        raise DataError(
                            f"the image {file} is missing, though it was sampled: put it back, or start again with "
                            "another --out"
                        )


def _folder_names(names: Sequence[str]) -> dict[str, str]:
    """Names for folders, unlike each other also where letters' case does not count."""
    found: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"[^\w.+-]+", "-", name, flags=re.ASCII).strip("-.") or "x"
        taken, made, count = {other.lower() for other in found.values()}, plain, 1
        while made.lower() in taken:
            count += 1
            made = f"{plain}-{count}"
        found[name] = made
    return found


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
