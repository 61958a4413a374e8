"""A comparison's result as JSON, CSV and Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tastemaker.evaluation.statistics import Interval
from tastemaker.human_evaluation.analysis import Preference, Result
from tastemaker.human_evaluation.outcomes import Outcome
from tastemaker.human_evaluation.study import Study
from tastemaker.labelling.settings import Labelling
from tastemaker.labelling.statistics import LabelerStatistics


@dataclass(frozen=True)
class ByPrompt:
    """The answers on one prompt's images that compare two models."""

    prompt: str
    question: int
    first: int
    second: int
    wins: int
    ties: int
    losses: int

    @property
    def rate(self) -> float:
        """Wins and half of the ties among all."""
        return (self.wins + self.ties / 2) / (self.wins + self.ties + self.losses)


def by_prompt(found: Sequence[Outcome]) -> list[ByPrompt]:
    """A row for each prompt, question and two models, by question and models, and prompts by how often `first` won."""
    values: dict[tuple[int, int, int, str], list[float]] = {}
    for one in found:
        values.setdefault((one.question, one.first, one.second, one.prompt), []).append(one.value)
    rows = [
        ByPrompt(prompt, question, first, second, given.count(1.0), given.count(0.5), given.count(0.0))
        for (question, first, second, prompt), given in values.items()
    ]
    return sorted(rows, key=lambda row: (row.question, row.first, row.second, -row.rate, row.prompt))


def as_json(study: Study, settings: Labelling, result: Result, labelers: Sequence[LabelerStatistics]) -> dict[str, Any]:
    """Everything, with names in place of numbers. What is by prompt is there when the study may stop, and not before:
    who labels could learn from it whose image an earlier one was."""
    names = [model.name for model in study.models]
    content: dict[str, Any] = {
        "models": [asdict(model) for model in study.models],
        "questions": [asdict(question) for question in study.questions],
        "mode": settings.mode, "overlap": settings.overlap, "ties": settings.ties, "stopping": asdict(study.stopping),
        "sampling": study.sampling, "may_stop": result.may_stop, "reason": result.reason, "answers": result.answers,
        "answers_wanted": result.wanted, "labelers": result.labelers, "prompts": result.prompts,
        "tasks": len(study.tasks), "tasks_with_identical_images": result.identical, "other_answers": result.others,
        "results": [
            {
                "question": study.questions[one.question].name, "answers": one.answers, "answers_wanted": one.wanted,
                "preferences": [_preference(names, each) for each in one.preferences],
                "best": [
                    {"model": name, "share": asdict(best.share), "wilson": asdict(best.wilson)}
                    for name, best in zip(names, one.best, strict=False)
                ],
                "none_good": one.none_good,
                "strengths": [
                    {"model": name, **asdict(strength)}
                    for name, strength in zip(names, one.strengths.models, strict=False)
                ],
                "strengths_tie": one.strengths.tie, "strengths_missing": one.strengths.reason,
                "agreement": None if one.agreement is None else asdict(one.agreement),
            }
            for one in result.asked
        ],
        "by_labeler": [_labeler(number, one) for number, one in enumerate(labelers, 1)],
    }  # fmt: skip
    if result.may_stop:
        content["by_prompt"] = [
            {
                "prompt": row.prompt, "question": study.questions[row.question].name, "first": names[row.first],
                "second": names[row.second], "wins": row.wins, "ties": row.ties, "losses": row.losses,
                "rate": row.rate,
            }
            for row in by_prompt(result.found)
        ]  # fmt: skip
    return content


def _preference(names: Sequence[str], one: Preference) -> dict[str, Any]:
    content = asdict(one) | {"first": names[one.first], "second": names[one.second], "answers": one.answers}
    del content["question"]
    return content


def _labeler(number: int, one: LabelerStatistics) -> dict[str, Any]:
    shares = {
        name: asdict(share)
        for name, share in (("left", one.left), ("same_again", one.consistency), ("gold_right", one.gold))
    }
    return {"labeler": number, "answers": one.answers, "median_seconds": one.median_seconds, **shares}


COLUMNS = (
    "question", "first", "second", "answers", "wins", "ties", "losses", "identical", "prompts", "labelers",
    "rate", "rate_low", "rate_high", "wilson_low", "wilson_high", "bootstrap_low", "bootstrap_high",
    "sequential_low", "sequential_high", "decided", "decided_at", "prompts_complete",
)  # fmt: skip
"""Of the table of preferences."""


def preferences_csv(study: Study, result: Result) -> str:
    """A row for each question and two models."""
    names = [model.name for model in study.models]
    rows = []
    for one in result.asked:
        for each in one.preferences:
            row: dict[str, Any] = _preference(names, each) | {"question": study.questions[one.question].name}
            row["rate"] = None if each.rate is None else each.rate.estimate
            for name, interval in _intervals(each).items():
                row |= {f"{name}_low": interval and interval.low, f"{name}_high": interval and interval.high}
            rows.append(row)
    return _csv(COLUMNS, rows)


def prompts_csv(study: Study, result: Result) -> str:
    """A row for each prompt, question and two models."""
    columns = ("prompt", "question", "first", "second", "wins", "ties", "losses", "rate")
    names = [model.name for model in study.models]
    rows = [
        asdict(row)
        | {"question": study.questions[row.question].name, "first": names[row.first], "second": names[row.second]}
        | {"rate": row.rate}
        for row in by_prompt(result.found)
    ]
    return _csv(columns, rows)


def _csv(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _intervals(one: Preference) -> dict[str, Interval | None]:
    return {"rate": one.rate, "wilson": one.wilson, "bootstrap": one.bootstrap, "sequential": one.sequential}


def markdown(study: Study, result: Result) -> str:
    """Tables for a README or a paper's draft."""
    names = [model.name for model in study.models]
    level = f"{study.stopping.level:.4g}"
    lines = [
        f"{result.answers} answers of {result.labelers} labelers on {result.prompts} prompts; {status(result)}", "",
        "| question | | preferred | clustered | Wilson | bootstrap | wins, ties, losses | sequential |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for one in result.asked:
        for each in one.preferences:
            lines.append(
                f"| {study.questions[one.question].name} | {names[each.first]} over {names[each.second]} | "
                f"{percent(each.rate)} | {ends(each.rate)} | {ends(each.wilson)} | {ends(each.bootstrap)} | "
                f"{each.wins}, {each.ties}, {each.losses} | {ends(each.sequential)}"
                f"{', decided' if each.decided else ''} |"
            )
    if any(one.best for one in result.asked):
        lines += ["", "| question | model | best of all | clustered | Wilson |", "|---|---|---|---|---|"]
        lines += [
            f"| {study.questions[one.question].name} | {name} | {percent(best.share)} | {ends(best.share)} | "
            f"{ends(best.wilson)} |"
            for one in result.asked
            for name, best in zip(names, one.best, strict=False)
        ]
    lines += ["", "| question | model | Bradley-Terry strength | clustered |", "|---|---|---|---|"]
    for one in result.asked:
        lines += [
            f"| {study.questions[one.question].name} | {name} | {strength.estimate:.2f} | {strength.low:.2f} to "
            f"{strength.high:.2f} |"
            for name, strength in zip(names, one.strengths.models, strict=False)
        ] or [f"| {study.questions[one.question].name} | | none: {one.strengths.reason} | |"]
    lines += [
        "",
        f"Intervals at level {level}; the sequential ones hold for all preferences together, at any time.",
        "",
    ]
    return "\n".join(lines)


def status(result: Result) -> str:
    """Whether the study may stop, as a sentence without its full stop."""
    return f"the study may stop: {result.reason}" if result.may_stop else f"the study goes on: {result.reason}"


def percent(interval: Interval | None) -> str:
    """An estimate as a percentage."""
    return "–" if interval is None else f"{100 * interval.estimate:.1f} %"


def ends(interval: Interval | None) -> str:
    """The ends of an interval as percentages."""
    return "–" if interval is None else f"{100 * interval.low:.1f}–{100 * interval.high:.1f} %"
