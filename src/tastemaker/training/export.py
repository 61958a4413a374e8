"""What a run trained as a file for other programs, with a model card (`tastemaker export`)."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tastemaker.config.schema import Config
from tastemaker.diffusion.model import Model
from tastemaker.errors import ConfigError, ModelError
from tastemaker.evaluation.evaluated_models import Change, Checkpoint, EvaluatedModel, Trained, adapter_of, network_of
from tastemaker.models import adapter_files, load_meta_model
from tastemaker.models.adapter_export import DTYPES, Format, write_state
from tastemaker.models.adapter_names import naming
from tastemaker.models.lora import PEFT_WEIGHTS, WEIGHTS
from tastemaker.models.mixing import Adapter
from tastemaker.printing import readable
from tastemaker.report.data import Record, Run, SavedImage, number, read_run
from tastemaker.runs.folders import check_new_folder, new_folder
from tastemaker.training.finish import base_source

IMAGES = 4
"""Images in a card, at most."""


@dataclass(frozen=True)
class Exported:
    """The files of an export."""

    weights: Path
    """The adapter's file, or the folder of a whole network, `unet` or `transformer`."""
    card: Path


@dataclass(frozen=True)
class _Source:
    """What is exported, with all that the card says of it."""

    evaluated: EvaluatedModel
    config: Config | None
    run: Run | None
    model: Model
    adapter: Adapter | None
    """None for a whole network."""


def check_export(evaluated: EvaluatedModel, config: Config | None, folder: Path | None, out: Path, form: Format) -> str:
    """One line on what `export` would write. Raises what it would raise before it writes."""
    source = _source(evaluated, config, folder, form)
    _require_free(source, out)
    what = "the whole network" if source.adapter is None else f"an adapter of {len(source.adapter)} layers"
    return f"{source.evaluated.label}: {what} of {source.evaluated.model}, for {form}, into {out}"


def export(
    evaluated: EvaluatedModel,
    config: Config | None,
    folder: Path | None,
    out: Path,
    form: Format = "diffusers",
    precision: str = "fp32",
) -> Exported:
    """Writes an adapter, or a whole network, in a form that other programs read, with a card and images of the run.

    `config` and `folder` are those of the run that it is of, if it is of one. `out` is a new folder, with README.md for
    a card, or a .safetensors file, with a card of the same name that ends in .md. Raises ModelError where the model is
    not to be had in that form, and ConfigError where `out` is in use.
    """
    source = _source(evaluated, config, folder, form)
    _require_free(source, out)
    if out.suffix != ".safetensors":
        with new_folder(out) as temporary:
            name = _write_weights(source, temporary, form, precision)
            images = _copy_images(source, temporary / "images")
            text = _card(source, form, name, images, "README.md")
            (temporary / "README.md").write_text(readable(text), encoding="utf-8")
        return Exported(out / name, out / "README.md")
    card = out.with_suffix(".md")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as temporary:
        name = _write_weights(source, Path(temporary), form, precision)
        shutil.move(Path(temporary) / name, out)
    images = _copy_images(source, out.with_name(f"{out.stem}-images"))
    card.write_text(readable(_card(source, form, out.name, images, card.name)), encoding="utf-8")
    return Exported(out, card)


def _source(evaluated: EvaluatedModel, config: Config | None, folder: Path | None, form: Format) -> _Source:
    """Raises ModelError where the weights are not to be had in that form."""
    change = evaluated.change
    if change is None:
        raise ConfigError(f"{evaluated.source} is a base model, of which nothing was trained: give a run")
    model = load_meta_model(evaluated.model)
    if _is_whole(change):
        if form != "diffusers":
            raise ModelError(
                f"{evaluated.source} is a whole network (tuning.mode = full), but --format {form} is a form of "
                "adapters: use --format diffusers, which writes the network for from_pretrained"
            )
        adapter = None
    else:
        network = model.weights.network
        if form != "diffusers" and naming(network) is None:
            raise ModelError(
                f"{evaluated.model} has a {type(network).__name__}, of which --format {form} has no names here: use "
                "--format diffusers"
            )
        adapter = adapter_of(change, network)
    return _Source(evaluated, config, None if folder is None else read_run(folder), model, adapter)


def _is_whole(change: Change) -> bool:
    match change:
        case Trained(path):
            return path.is_dir()
        case Checkpoint() as checkpoint:
            return checkpoint.tuning.mode == "full"
        case _:
            return False


def _require_free(source: _Source, out: Path) -> None:
    """Raises ConfigError where a file or folder is there already, or is no place for what is written."""
    if out.suffix != ".safetensors":
        return check_new_folder(out)
    if source.adapter is None:
        raise ConfigError(f"--out is {out}, but a whole network is several files: give a folder")
    if not _diffusers_loads(source.model):
        raise ConfigError(f"--out is {out}, but an adapter in peft's form is two files: give a folder")
    for path in (out, out.with_suffix(".md"), out.with_name(f"{out.stem}-images")):
        if path.exists():
            raise ConfigError(f"{path} exists already: give another file with --out, or remove it")
    return None


def _diffusers_loads(model: Model) -> bool:
    """Whether diffusers has a loader of adapters for the network; otherwise peft has one."""
    return hasattr(type(model.weights.network), "load_lora_adapter")


def _write_weights(source: _Source, folder: Path, form: Format, precision: str) -> str:
    """Writes the weights into an empty folder. Returns their name in it."""
    network: Any = source.model.weights.network
    if source.adapter is None:
        assert isinstance(source.evaluated.change, Trained | Checkpoint)
        values = network_of(source.evaluated.change, network)
        whole = {name: value.to(DTYPES[precision]) for name, value in values.items()}
        network.load_state_dict(whole, assign=True)
        network.save_pretrained(folder / source.model.weights.name)
        return source.model.weights.name
    if form != "diffusers":
        name = f"{_name(source)}.safetensors"
        about = _metadata(source, name)
        write_state(source.adapter, network, folder / name, form, DTYPES[precision], about)
        return name
    adapter = {
        layer: type(factors)(factors.a.to(DTYPES[precision]), factors.b.to(DTYPES[precision]), factors.scale)
        for layer, factors in source.adapter.items()
    }
    adapter_files.write(adapter, network, folder)
    return WEIGHTS if _diffusers_loads(source.model) else PEFT_WEIGHTS


def _name(source: _Source) -> str:
    """A file's name: the model's label in letters that all systems have."""
    return "".join(one if one.isalnum() or one in "-_.@" else "-" for one in source.evaluated.label) or "adapter"


def _metadata(source: _Source, name: str) -> dict[str, str]:
    """What programs show of a file, as far as the run says: model, prompts, steps, rate, seed."""
    title = Path(name).stem
    about = {"ss_output_name": title, "modelspec.title": title, "ss_sd_model_name": source.evaluated.model}
    config = source.config
    if config is None:
        return about
    trained = _trained(source)
    rounds = trained.get("round", config.rounds)
    return about | {
        "ss_learning_rate": f"{config.optimizer.lr:g}",
        "ss_num_epochs": str(rounds),
        "ss_seed": str(config.seed),
        "ss_mixed_precision": {"fp32": "no"}.get(config.precision, config.precision),
        "ss_gradient_checkpointing": str(config.tuning.gradient_checkpointing),
        "ss_max_grad_norm": f"{config.optimizer.clip_norm:g}",
        "ss_training_comment": f"tastemaker: {config.algorithm.name} to {_teacher(config)} on {config.prompts}",
        "modelspec.description": f"{config.algorithm.name} to {_teacher(config)}, prompts {config.prompts}",
    }


def _teacher(config: Config) -> str:
    if not config.pairs.sources:
        return config.reward
    return f"the preferences of {', '.join(config.pairs.sources)}"


def _trained(source: _Source) -> Mapping[str, Any]:
    """The round that the weights are of, where it is known, with its metric if they are the best ones."""
    change = source.evaluated.change
    if isinstance(change, Trained):
        beside = change.path.parent / "best.json"
        if beside.is_file():
            return json.loads(beside.read_text(encoding="utf-8"))
    return {} if source.evaluated.round is None else {"round": source.evaluated.round}


def _images(source: _Source) -> list[SavedImage]:
    """Images of the exported weights that the run drew: of different prompts first."""
    if source.run is None:
        return []
    round = _trained(source).get("round")
    shown = [one for one in source.run.checkpoints if one.round == round]
    there = [image for one in shown for image in one.images if image.file is not None]
    firsts: dict[str, SavedImage] = {}
    for image in there:
        firsts.setdefault(image.prompt, image)
    rest = [image for image in there if image not in firsts.values()]
    return [*firsts.values(), *rest][:IMAGES]


def _copy_images(source: _Source, folder: Path) -> list[tuple[str, str]]:
    """Copies the card's images. Returns the path of each, from the card's folder, and its prompt."""
    found = _images(source)
    if found:
        folder.mkdir()
    copied = []
    for number_, image in enumerate(found, 1):
        assert image.file is not None
        target = folder / f"{number_}{image.file.suffix}"
        shutil.copyfile(image.file, target)
        copied.append((f"{folder.name}/{target.name}", image.prompt))
    return copied


def _card(source: _Source, form: Format, name: str, images: list[tuple[str, str]], card: str) -> str:
    """The model card, as the hub reads it: YAML between lines of dashes, then Markdown. The licence is left open."""
    evaluated, config = source.evaluated, source.config
    what = "whole network" if source.adapter is None else "LoRA"
    head: dict[str, Any] = {"library_name": "diffusers", "pipeline_tag": "text-to-image"}
    tags = ["text-to-image", "tastemaker", "diffusers"]
    if source.adapter is not None:
        tags += ["lora", "template:sd-lora"]
    head["tags"] = tags
    if evaluated.model.count("/") == 1 and not Path(evaluated.model).exists():
        head["base_model"] = evaluated.model
    if images:
        head["widget"] = [{"text": prompt, "output": {"url": path}} for path, prompt in images]
    front = yaml.safe_dump(head, sort_keys=False, allow_unicode=True)
    lines = [
        f"---\n# license: fill in a licence that the base model's licence allows\n{front}---",
        f"# {evaluated.label}",
        f"A {what} of `{evaluated.model}`" + (", trained by tastemaker." if config is None else "."),
    ]
    if config is not None:
        lines += _about(source, config)
    if evaluated.parts:
        parts = ", ".join(f"{weight:g} of {part}" for part, weight in evaluated.parts)
        lines.append(f"It is a mixture of adapters: {parts}.")
    lines += ["## How to load it", _usage(source, form, name)]
    if images:
        lines += ["## Images", "\n".join(f"![{prompt}]({path}) {prompt}\n" for path, prompt in images).rstrip()]
    lines += ["## Licence", f"None is stated. Fill in `license` at the top of {card} before you publish this."]
    return "\n\n".join(lines) + "\n"


def _about(source: _Source, config: Config) -> list[str]:
    trained = _trained(source)
    layers = f"rank {config.tuning.rank}, layers {', '.join(f'`{name}`' for name in config.tuning.targets)}"
    s = config.sampling
    rows = {
        "method": config.algorithm.name,
        "trained to": f"`{_teacher(config)}`",
        "prompts": f"`{config.prompts}`",
        "rounds": str(trained.get("round", config.rounds))
        + (f" (the best by {trained['metric']})" if "metric" in trained else ""),
        "trained": "the whole network" if source.adapter is None else f"adapters ({layers})",
        "sampled with": f"{s.steps} steps, guidance {s.guidance:g}, eta {s.eta:g}",
    } | _figures(source, trained)
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return [f"| | |\n|---|---|\n{table}"]


def _figures(source: _Source, trained: Mapping[str, Any]) -> dict[str, str]:
    """What the run's evaluations measured before, and after the round of the weights."""
    if source.run is None:
        return {}
    records = {int(one["evaluation"]): one for one in source.run.evaluations}
    before, after = records.get(0), records.get(trained.get("round", -1))
    found = {"mean reward of the evaluations' images": _change(before, after, "eval/reward/mean"),
             "share that shows the prompt": _change(before, after, "eval/judge/correct")}  # fmt: skip
    return {name: value for name, value in found.items() if value}


def _change(before: Record | None, after: Record | None, key: str) -> str:
    one, other = number(before, key), number(after, key)
    return "" if one is None or other is None else f"{one:.4g} before, {other:.4g} after"


def _usage(source: _Source, form: Format, name: str) -> str:
    if form == "diffusers":
        imports, base = base_source(source.evaluated.model)
        if source.config is not None:
            source.model.weights.tuning = source.config.tuning  # by which it knows what was trained
        code = imports + source.model.usage(base)
        place = "'.'" if name in (WEIGHTS, PEFT_WEIGHTS) else f"'.', weight_name={name!r}"
        code = code.replace("'adapter'", place).replace("'model/", "'")
        return f"In this folder:\n\n```python\n{code}```"
    known = naming(source.model.weights.network)
    assert known is not None
    if form == "kohya":
        if known.base == "z_image":  # whose q, k and v are one layer in ComfyUI
            return (
                f"`{name}` has the names of kohya's musubi-tuner (`{known.module}`), which diffusers reads too. For "
                "ComfyUI, export it with --format comfyui."
            )
        return (
            f"`{name}` has the names of kohya's sd-scripts (`{known.module}`). Put it into `models/Lora` of a Stable "
            "Diffusion web UI, or into `models/loras` of ComfyUI."
        )
    return (
        f"Put `{name}` into `models/loras` of ComfyUI, and load it by the node LoraLoaderModelOnly. It has the "
        "names of ComfyUI's own models (`diffusion_model. ...`)."
    )
