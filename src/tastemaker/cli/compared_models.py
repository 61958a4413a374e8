"""What stands behind NAME=SOURCE in a comparison: a model, a run, an adapter, or images that are there."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tastemaker.cli.folders import is_run, run_config
from tastemaker.cli.sampling import SAMPLING_FLAGS, as_flag
from tastemaker.config.schema import Config, Sampling
from tastemaker.errors import ConfigError
from tastemaker.models.bundled import BUNDLED

if TYPE_CHECKING:
    from tastemaker.human_evaluation.create import Candidate, FromImages
    from tastemaker.human_evaluation.study import ComparedModel


_IMAGES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Given:
    """A source as it was recognised."""

    name: str
    source: str
    model: str | None = None
    """The model to sample from; None where the source is images."""
    adapter: Path | None = None
    config: Config | None = None
    """Of the run that the source is, or is a part of."""

    @property
    def described(self) -> ComparedModel:
        """As the comparison has it."""
        from tastemaker.human_evaluation.study import ComparedModel

        return ComparedModel(self.name, self.source)


def recognised(word: str, base: str | None = None) -> Given:
    """NAME=SOURCE or SOURCE alone, whose last part is then the name.

    A run stands for its trained model; an adapter is put on the model `base`, on its run's, or on the bundled one; a
    folder or table of images stands for itself; anything else is a model. Raises ConfigError.
    """
    name, equals, source = word.partition("=")
    if not equals:
        name, source = Path(word).name or word, word
    path = Path(source).expanduser()
    if not source:
        raise ConfigError(f"{word!r} names no model: give NAME=MODEL, NAME=RUN, NAME=ADAPTER or NAME=FOLDER")
    if source in BUNDLED or not os.path.exists(path):
        if source.startswith((".", "/", "~")) or source.count("/") > 1:
            raise ConfigError(f"{name} is {source}, but there is no such folder or file")
        return Given(name, source, source)
    from tastemaker.models.adapter_files import find_adapter

    if is_run(path):
        config = run_config(path)
        assert config is not None, "it is a run"
        find_adapter(path)
        return Given(name, source, config.model, path, config)
    if _has_images(path):
        return Given(name, source)
    if os.path.isfile(path / "model_index.json"):
        return Given(name, source, source)
    if path.is_dir() and any(item.suffix.lower() in _IMAGES for item in path.iterdir()):
        raise ConfigError(
            f"{source} has images without prompts: give a folder that `tastemaker sample` wrote, or add captions "
            "(docs/guides/images.md)"
        )
    find_adapter(path)
    config = run_config(path)
    return Given(name, source, base or (config.model if config else "bundled"), path, config)


def _has_images(path: Path) -> bool:
    from tastemaker.data.captioned_images import table_named
    from tastemaker.data.tables import is_table
    from tastemaker.labelling.sources import LISTING

    if not path.is_dir():
        return is_table(path)
    listed = (path / LISTING).is_file() or table_named(path, "metadata") is not None
    return listed or any(item.suffix.lower() == ".txt" and _beside(item) for item in path.iterdir())


def _beside(caption: Path) -> bool:
    return any(caption.with_suffix(ending).is_file() for ending in _IMAGES)


def base_settings(
    given: Sequence[Given], chosen: Collection[str] = (), named: Callable[[str], str] = as_flag
) -> tuple[Sampling, str | None]:
    """By which settings images are sampled, and for which prompts: those of the first run among the sources.

    Without a run the default settings, and None.

    Raises ConfigError where runs differ in settings of their samplers (SAMPLING_FLAGS), but for those that are `chosen`
    by flags.
    """
    runs = [(one.name, one.config) for one in given if one.config is not None and one.model is not None]
    for name, config in runs[1:]:
        for setting in SAMPLING_FLAGS:
            values = [vars(found.sampling)[setting] for found in (runs[0][1], config)]
            if values[0] != values[1] and setting not in chosen:
                raise ConfigError(
                    f"the run of {runs[0][0]} has sampling.{setting} {values[0]!r} and that of {name} {values[1]!r}: "
                    f"give one for both by {named(setting)}"
                )
    return (runs[0][1].sampling, runs[0][1].prompts) if runs else (Sampling(), None)


def candidates(given: Sequence[Given], sampling: Sampling) -> list[Candidate]:
    """The sources with their images, or with what loads their models. Raises DataError for images."""
    return [_candidate(one, sampling) for one in given]


def _candidate(one: Given, sampling: Sampling) -> Candidate:
    from tastemaker.human_evaluation.create import FromModel

    if one.model is None:
        return images_of(one.described)
    name, adapter = one.model, one.adapter

    def load():
        from tastemaker.evaluation.images import load_here
        from tastemaker.models.adapter_files import find_adapter

        model = load_here(name, sampling)
        if adapter is not None:
            model.weights.load(find_adapter(adapter))
        return model

    return FromModel(one.described, load)


def images_of(model: ComparedModel) -> FromImages:
    """The images of a folder or table by prompt and seed. Raises DataError."""
    from tastemaker.errors import DataError
    from tastemaker.human_evaluation.create import FromImages
    from tastemaker.labelling.sources import captioned_images

    found = {}
    counts: dict[str, int] = {}
    for prompt, image in captioned_images(model.source):
        seed = image.origin.get("seed")
        row = (prompt, counts.get(prompt, 0) if seed is None else int(seed))
        counts[prompt] = counts.get(prompt, 0) + 1
        if row in found:
            raise DataError(f"{image.where}: there is another image of the prompt {prompt[:60]!r} and seed {row[1]}")
        found[row] = image
    return FromImages(model, found)
