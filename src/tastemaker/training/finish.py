"""What a run leaves behind at its end: the adapter, the card, and the line that sums it up."""

from __future__ import annotations

from pathlib import Path

from tastemaker.printing import readable
from tastemaker.training import disk
from tastemaker.training.config import Config
from tastemaker.training.session import Session
from tastemaker.training.tracking import read_metrics


def write_adapter(session: Session, folder: Path) -> None:
    """Writes what was trained, in diffusers' format, and the run's README.md."""
    config = session.config
    target = folder / ("adapter" if config.tuning.mode == "lora" else "model")
    with session.averaged() if session.kept is None else session.kept.inside():
        session.model.save(target)
    grids = sorted((folder / "samples").glob("round-*"))
    session.display.say(f"adapter: {target}" if config.tuning.mode == "lora" else f"model: {target}")
    disk.exchange(folder / "README.md", readable(_card(session, len(grids))).encode())


def _card(session: Session, grids: int) -> str:
    config = session.config
    base = "tastemaker.models.bundled.bundled_pipeline()" if config.model == "bundled" else repr(config.model)
    teacher = config.reward if config.pairs.source is None else f"Preferences of {config.pairs.source}"
    return (
        f"# {teacher} on {config.model}\n\nTrained by tastemaker with {config.algorithm.name} on the prompts "
        f"`{config.prompts}`; settings in config.yaml, figures in metrics.jsonl, {grids} grids of the same prompts and "
        f"seeds in samples/, everything at a glance in report.html.\n\n```python\n{session.model.usage(base)}```\n"
    )


def summary(config: Config, folder: Path, report: Path) -> str:
    """The reward and the judge, first and last, and where the report is."""
    evaluations = [line for line in read_metrics(folder / "metrics.jsonl") if "evaluation" in line]
    first, final = evaluations[0], evaluations[-1]
    text = (
        f"{config.reward}: {first['eval/reward/mean']:.3f} -> {final['eval/reward/mean']:.3f} "
        f"({final['eval/reward/base_stds']:+.2f} standard deviations of the base model)"
    )
    if "eval/judge/correct" in final:
        text += f"; shows the prompt: {first['eval/judge/correct']:.0%} -> {final['eval/judge/correct']:.0%}"
    if "eval/unseen/reward/mean" in final:
        text += f"\n{config.evaluation.unseen}, not trained on: "
        text += f"{first['eval/unseen/reward/mean']:.3f} -> {final['eval/unseen/reward/mean']:.3f}"
        if "eval/unseen/judge/correct" in final:
            correct = [record["eval/unseen/judge/correct"] for record in (first, final)]
            text += f"; shows the prompt: {correct[0]:.0%} -> {correct[1]:.0%}"
    return f"{text}\nreport: {report}"
