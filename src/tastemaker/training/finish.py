"""What a run leaves behind at its end: the adapter, the card, and the line that sums it up."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tastemaker.config.schema import Config
from tastemaker.in_memory import PREFIX
from tastemaker.models.bundled import BUNDLED
from tastemaker.printing import readable
from tastemaker.report.data import kept_evaluation
from tastemaker.runs import atomic
from tastemaker.runs.metrics import read_metrics
from tastemaker.training.progress import plain
from tastemaker.training.session import Session

_SHARD = r"(?:-\d+-of-\d+)?"
_WEIGHTS = re.compile(rf"(?:diffusion_pytorch_model|model){_SHARD}(?:\.(?P<variant>[^.-]+))?{_SHARD}\.safetensors")


def write_adapter(session: Session, folder: Path) -> None:
    """Writes what was trained, in diffusers' format, and the run's README.md."""
    config = session.config
    target = folder / ("adapter" if config.tuning.mode == "lora" else "model")
    with session.averaged() if session.kept is None else session.kept.swapped_in():
        session.model.weights.save(target)
    grids = sorted((folder / "samples").glob("round-*"))
    earlier = session.kept is not None and session.state.kept_round != session.state.round
    which = f", of round {session.state.kept_round}" if earlier else ""
    session.display.log(f"{'adapter' if config.tuning.mode == 'lora' else 'model'}: {target}{which}")
    if config.over_optimisation.keep_best is not None:
        session.display.log(
            f"best {config.over_optimisation.keep_best}: {folder / 'best'}, of round {session.state.best_round}"
        )
    atomic.replace_atomic(folder / "README.md", readable(_card(session, len(grids))).encode())


def _card(session: Session, grids: int) -> str:
    config = session.config
    imports, base = base_source(config.model)
    code = imports + session.model.usage(base)
    teacher = f"Preferences of {', '.join(config.pairs.sources)}" if config.pairs.sources else config.reward
    return (
        f"# {teacher} on {config.model}\n\nTrained by tastemaker with {config.algorithm.name} on the prompts "
        f"`{config.prompts}`; settings in config.yaml, figures in metrics.jsonl, {grids} grids of the same prompts and "
        f"seeds in samples/, everything at a glance in report.html.\n\nIn this folder:\n\n```python\n{code}```\n"
    )


def base_source(model: str) -> tuple[str, str]:
    """Python for the model that was trained, which runs in any folder: an import that it needs, and an expression."""
    if model in BUNDLED:
        name = "" if model == "bundled" else repr(model)
        return "from tastemaker.models.bundled import bundled_pipeline\n", f"bundled_pipeline({name})"
    if model.startswith(PREFIX):
        return "", repr("PATH OF THE PIPELINE THAT WAS PASSED TO tastemaker.train")
    folder = Path(model).expanduser()
    if not folder.exists():
        return "", repr(model)
    variant = _variant(folder)
    return "", repr(str(folder.resolve())) + (f", variant={variant!r}" if variant else "")


def _variant(folder: Path) -> str | None:
    """The `variant` that diffusers must be given: of a component that has no files without one."""
    for part in sorted(folder.glob("*/")):
        found = {match["variant"] for file in part.iterdir() if (match := _WEIGHTS.fullmatch(file.name))}
        if found and None not in found:
            return sorted(found)[0]
    return None


def summary(config: Config, folder: Path, report: Path) -> str:
    """The reward and the judge, of the base model and of the model that the run leaves, and where the report is."""
    evaluations = [line for line in read_metrics(folder / "metrics.jsonl") if "evaluation" in line]
    first, final = evaluations[0], kept_evaluation(evaluations) or evaluations[-1]
    text = (
        f"{config.reward}: {plain(first['eval/reward/mean'])} -> {plain(final['eval/reward/mean'])} ({_above(final)})"
    )
    if "eval/judge/correct" in final:
        text += f"; shows the prompt: {first['eval/judge/correct']:.0%} -> {final['eval/judge/correct']:.0%}"
    if "eval/unseen/reward/mean" in final:
        text += f"\n{config.evaluation.unseen}, not trained on: "
        text += f"{plain(first['eval/unseen/reward/mean'])} -> {plain(final['eval/unseen/reward/mean'])}"
        if "eval/unseen/judge/correct" in final:
            correct = [record["eval/unseen/judge/correct"] for record in (first, final)]
            text += f"; shows the prompt: {correct[0]:.0%} -> {correct[1]:.0%}"
    return f"{text}\nreport: {report}"


def _above(record: Mapping[str, Any]) -> str:
    """How far an evaluation's mean reward is above the base model's."""
    if "eval/reward/base_stds" in record:
        return f"{record['eval/reward/base_stds']:+.2f} standard deviations of the base model"
    return f"{plain(record['eval/reward/base_difference'], sign=True)}; the base model's rewards do not differ"
