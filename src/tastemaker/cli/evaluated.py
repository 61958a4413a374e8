"""The models of `tastemaker evaluate`, as its arguments name them."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tastemaker.cli.arguments import parse
from tastemaker.cli.folders import is_run, require_run, run_config
from tastemaker.cli.mix import MixArgs, mixture_points
from tastemaker.config.schema import Config
from tastemaker.errors import ConfigError, ModelError
from tastemaker.evaluation.evaluated_models import Checkpoint, EvaluatedModel, Mixture, Trained
from tastemaker.in_memory import PREFIX
from tastemaker.models.adapter_files import find_adapter, require_adapter
from tastemaker.models.bundled import BUNDLED
from tastemaker.report.data import KEPT_ROUND
from tastemaker.runs.checkpoint import saved_round
from tastemaker.runs.metrics import read_metrics

_LABEL = re.compile(r"([^=/\\]+)=(.+)", re.DOTALL)
_ROUND = re.compile(r"(.+)@(\d+)")
_CHECKPOINT = re.compile(r"step-(\d+)")
BASE = "base"
"""The label of the base model."""


@dataclass(frozen=True)
class Found:
    """A model that an argument names, with the settings of its runs."""

    evaluated: EvaluatedModel
    configs: tuple[Config, ...] = ()


def find_models(texts: Sequence[str], model: str | None) -> list[Found]:
    """The models, those first that others are compared with.

    `model` is the base model of adapters; where it is None, the model of their runs. Raises ConfigError, ModelError.
    """
    if not texts:
        raise ConfigError(
            "name the models to evaluate, before the flags: runs, models, adapters or mixtures, as in `tastemaker "
            "evaluate runs/simple --seeds 8`"
        )
    found = [one for text in texts for one in _find(text, model)]
    return _with_references(found)


def find_model(text: str, model: str | None) -> Found:
    """One model, as `find_models` finds it. Raises ConfigError where the text names several, and what that raises."""
    found = _find(text, model)
    if len(found) > 1:
        names = ", ".join(one.evaluated.label for one in found)
        raise ConfigError(f"{text!r} names {len(found)} models ({names}), but one is wanted: name one of them")
    return found[0]


def _find(text: str, model: str | None) -> list[Found]:
    label, given = None, text
    if not os.path.lexists(text) and (match := _LABEL.fullmatch(text)) and not text.startswith("mix "):
        label, given = match[1].strip(), match[2]
    if given.startswith("mix "):
        found = _mixtures(given, model)
    elif given in BUNDLED:
        found = [Found(EvaluatedModel("", given))]
    elif (match := _ROUND.fullmatch(given)) and not os.path.lexists(given):
        found = [_checkpoint(require_run(Path(match[1])), int(match[2]), model)]
    elif os.path.exists(given):
        found = _at(Path(given), model)
    else:
        _require_hub_name(given)
        found = [Found(EvaluatedModel("", given))]
    return [_labelled(one, label, given, several=len(found) > 1) for one in found]


def _labelled(found: Found, label: str | None, given: str, several: bool) -> Found:
    own = found.evaluated.label
    if label is not None:
        own = f"{label} {own}" if several else label
    return replace(found, evaluated=replace(found.evaluated, label=own, source=given))


def _at(path: Path, model: str | None) -> list[Found]:
    """What a file or folder is."""
    if is_run(path):
        return [_run(path, model)]
    if (path / "mix.json").is_file():
        return _mix_folder(path, model)
    if (path / "model_index.json").is_file():
        return [Found(EvaluatedModel("", str(path)))]
    run = path.parent.parent
    if (match := _CHECKPOINT.fullmatch(path.name)) and path.parent.name == "checkpoints" and is_run(run):
        return [_checkpoint(run, int(match[1]), model)]
    file = find_adapter(path)
    config = run_config(path)
    base = model or (None if config is None else config.model) or _model_of_mix(path)
    if base is None:
        raise ConfigError(f"{path} lies in no run, which would name the model of the adapter: give --model MODEL")
    configs = () if config is None else (config,)
    return [Found(EvaluatedModel(_name(path), base, Trained(file), trained_on=_trained_on(configs)), configs)]


def _run(path: Path, model: str | None) -> Found:
    config = _config(path)
    found = EvaluatedModel(
        _name(path), model or _base(path, config), Trained(find_adapter(path)), trained_on=_trained_on([config]),
        run=_name(path), round=_round_left(path, config),
    )  # fmt: skip
    return Found(found, (config,))


def _round_left(run: Path, config: Config) -> int | None:
    """The round after which the model is that a run leaves; None where nothing says it."""
    last = saved_round(run)
    if config.early_stop.metric is None and not config.early_stop.over_optimisation:
        return last if last >= 0 else None
    path = run / "metrics.jsonl"
    records = read_metrics(path) if path.is_file() else []
    return next((record[KEPT_ROUND] for record in reversed(records) if KEPT_ROUND in record), None)


def _checkpoint(run: Path, round: int, model: str | None) -> Found:
    config, folder = _config(run), run / "checkpoints" / f"step-{round:06d}"
    if not folder.is_dir():
        there = sorted(int(match[1]) for one in folder.parent.glob("*") if (match := _CHECKPOINT.fullmatch(one.name)))
        raise ConfigError(
            f"{run} has no checkpoint of round {round}; there are those of {', '.join(map(str, there)) or 'no round'} "
            "(checkpoint.keep_every keeps more of them)"
        )
    change = Checkpoint(folder, config.tuning, config.optimizer.ema > 0)
    found = EvaluatedModel(
        f"{_name(run)}@{round}", model or _base(run, config), change, trained_on=_trained_on([config]),
        run=_name(run), round=round,
    )  # fmt: skip
    return Found(found, (config,))


def _mixtures(text: str, model: str | None) -> list[Found]:
    """`mix A B --alpha 0:1:0.5`, as `tastemaker mix` takes it."""
    try:
        words = shlex.split(text)[1:]
    except ValueError as error:
        raise ConfigError(f"{text!r} cannot be read: {error}") from error
    args = parse(MixArgs, words, "mix")
    read = MixArgs(
        adapters=args.adapters, alpha=args.alpha, weights=args.weights, mode=args.mode, rank=args.rank, model=args.model
    )
    if args != read:
        raise ConfigError(
            f"{text!r}: of a mixture --alpha, --weights, --mode, --rank and --model are read, and the other settings "
            "are those of the evaluation"
        )
    if args.rank is not None and (args.rank < 1 or args.mode != "delta"):
        raise ConfigError(f"{text!r}: --rank must be at least 1, and is of mixtures in --mode delta")
    points = mixture_points(args)
    missing = next((path for path in args.adapters if not path.exists()), None)
    if missing is not None:
        raise ConfigError(f"{text!r}: there is no folder {missing}")
    configs = [config for path in args.adapters if (config := run_config(path)) is not None]
    base = args.model or model
    if base is None:
        if not configs:
            raise ConfigError(f"{text!r}: none of the adapters lies in a run, which would name the model: give --model")
        base = configs[0].model
        if unlike := next((config.model for config in configs if config.model != base), None):
            raise ModelError(f"{text!r}: adapters of {base} and of {unlike} cannot be mixed")
    files = tuple(require_adapter(find_adapter(path)) for path in args.adapters)
    names = [_name(path) for path in args.adapters]
    return [
        Found(
            EvaluatedModel(
                name, base, Mixture(files, weights, args.mode, args.rank), trained_on=_trained_on(configs),
                parts=tuple(zip(names, weights, strict=True)),
            ),
            tuple(configs),
        )
        for name, weights in points.items()
    ]  # fmt: skip


def _mix_folder(path: Path, model: str | None) -> list[Found]:
    """The mixtures that `tastemaker mix` has left."""
    try:
        content = json.loads((path / "mix.json").read_text(encoding="utf-8"))
        adapters, base = [Path(name) for name in content["adapters"]], model or str(content["model"])
        found = [(str(one["name"]), tuple(one["weights"]), path / one["adapter"]) for one in content["mixtures"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path / 'mix.json'} cannot be read: {error}") from error
    configs = tuple(config for one in adapters if one.exists() and (config := run_config(one)) is not None)
    return [
        Found(
            EvaluatedModel(
                name, base, Trained(find_adapter(folder)), trained_on=_trained_on(configs),
                parts=tuple((_name(one), float(weight)) for one, weight in zip(adapters, weights, strict=True)),
            ),
            configs,
        )
        for name, weights, folder in found
    ]  # fmt: skip


def _model_of_mix(path: Path) -> str | None:
    """The base model of an adapter in the folder of `tastemaker mix`."""
    for folder in path.absolute().parents[:3]:
        if (folder / "mix.json").is_file():
            return str(json.loads((folder / "mix.json").read_text(encoding="utf-8"))["model"])
    return None


def _with_references(found: Sequence[Found]) -> list[Found]:
    """The same with the base models of all adapters, and each with the label of what it is compared with."""
    bases = list(dict.fromkeys(one.evaluated.model for one in found if one.evaluated.change is not None))
    plain = {one.evaluated.model: one for one in reversed(found) if one.evaluated.change is None}
    listed = [plain.get(base, Found(EvaluatedModel("", base, source=base))) for base in bases]
    first = listed or [one for one in found if one.evaluated.change is None][:1]
    several = len(bases) > 1
    references = [replace(one, evaluated=_named(one.evaluated, bases, several)) for one in first]
    labels = {one.evaluated.model: one.evaluated.label for one in references}
    rest = [one for one in found if not any(one is other for other in first)]
    others = [
        replace(
            one,
            evaluated=replace(
                _named(one.evaluated, bases, several),
                reference=labels.get(one.evaluated.model, references[0].evaluated.label),
            ),
        )
        for one in rest
    ]
    return [*references, *others]


def _named(evaluated: EvaluatedModel, bases: Sequence[str], several: bool) -> EvaluatedModel:
    if evaluated.label:
        return evaluated
    name = _short(evaluated.model)
    if evaluated.model not in bases:
        return replace(evaluated, label=name)
    return replace(evaluated, label=f"{BASE} {name}" if several else BASE)


def _trained_on(configs: Sequence[Config]) -> tuple[str, ...]:
    """The rewards that runs were trained on; those that learned from pairs had none."""
    return tuple(dict.fromkeys(config.reward for config in configs if not config.pairs.sources))


def _config(run: Path) -> Config:
    config = run_config(run)
    assert config is not None, run
    return config


def _base(run: Path, config: Config) -> str:
    if config.model.startswith(PREFIX):
        raise ConfigError(
            f"{run} was trained from a pipeline of a Python program, which cannot be loaded by a name: save the "
            "pipeline by save_pretrained(FOLDER), and give --model FOLDER"
        )
    return config.model


def _name(path: Path) -> str:
    """The folder's name, or the run's where it is a run's own adapter."""
    place = path.resolve()
    inner = place.name in ("adapter", "model", "unet", "transformer") or place.is_file()
    return place.parent.name if inner else place.name


def _short(model: str) -> str:
    return Path(model).name if os.path.exists(model) else model


def _require_hub_name(text: str) -> None:
    """Raises ConfigError for what looks like a path, but is none."""
    parent = Path(text).parent
    if text.startswith((".", "/", "~")) or text.count("/") > 1 or (parent != Path() and parent.is_dir()):
        require_run(Path(text))
