"""Numbers as the report prints them, and what it says about a run in words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tastemaker.algorithms.registry import ALGORITHMS
from tastemaker.evaluation.statistics import Interval
from tastemaker.report.data import Run, measures, number, seconds_by_phase, series
from tastemaker.report.intervals import of_change

REWARD_ALARM = 1.0  # base standard deviations up, together with ...
JUDGE_ALARM = 0.15  # ... this share of images down, means that the reward is being gamed
ROUNDING = 1e-6
SAID = "over_optimisation/said"  # under which an evaluation records its warnings in words
DASH = "–"


@dataclass(frozen=True)
class Change:
    """A measurement of the base model and of the latest one, None where it was not taken, as numbers and as text."""

    before: float | None
    after: float | None
    texts: tuple[str, str]
    interval: str = ""
    """The 95 % interval of the change as text; empty where the images do not tell it."""

    @property
    def difference(self) -> float | None:
        return None if self.before is None or self.after is None else self.after - self.before


@dataclass(frozen=True)
class Row:
    """A measurement of evaluations on the prompts that are trained on, and on those that are not."""

    what: str
    trained: Change
    unseen: Change


@dataclass(frozen=True)
class Summary:
    """The headline of one run."""

    name: str
    model: str
    reward_name: str
    pairs: str
    """Where the preferences come from that the model was trained on; empty where it was trained for the reward."""
    algorithm: str
    prompts: str
    reward: Change
    stds: Change
    """In standard deviations of the base model's rewards; without figures where these do not differ."""
    flat_base: bool
    """Whether they do not."""
    judge: Change
    diversity: Change
    warned: tuple[str, ...]
    """What the first evaluation with a warning of over-optimisation said, and the last one, where that is another."""
    warned_round: int | None
    """Rounds done at the first of these; None where there is no warning."""
    table: tuple[Row, ...]
    """Parts of the reward, held-out rewards, and figures on unseen prompts; empty where there are none."""
    evaluated: bool
    """Whether the changes are of the evaluation's fixed images, rather than of training images."""
    rounds: int
    kept: int | None
    """Rounds done of the model that the run leaves, where early stopping has kept another one than the last."""
    planned: int | None
    duration: str
    queries: str
    notes: tuple[str, ...]
    config: str
    command: str
    env: tuple[tuple[str, str], ...]

    @property
    def model_rounds(self) -> int:
        """Rounds done of the model that the run leaves."""
        return self.rounds if self.kept is None else self.kept

    @property
    def stds_text(self) -> str:
        return tidy_number(self.stds.difference, sign=True)

    @property
    def parted(self) -> bool:
        """Whether the reward rose while the judge's share of right images fell; of runs that did not watch for that."""
        up, down = self.stds.difference, self.judge.difference
        return up is not None and down is not None and up > REWARD_ALARM and down < -JUDGE_ALARM


def algorithm_name(name: str) -> str:
    """An algorithm's name as its paper writes it: DDPO, AlignProp, DiffusionDPO."""
    return ALGORITHMS[name].__name__ if name in ALGORITHMS else name


def _short(name: str) -> str:
    """A name without the folders of a path in it: hub names and `module:function` stay what they are."""
    head, colon, tail = name.rpartition(":")
    return head + colon + (Path(tail).name if tail.startswith(("/", "~", ".")) else tail)


def summarise(run: Run, name: str) -> Summary:
    """The headline figures of a run."""
    algorithm, pairs = run.config.get("algorithm"), run.config.get("pairs")
    queries = series(run.rounds, "round", "reward_queries")[1]
    planned = number(run.config, "rounds")
    return Summary(
        name=name,
        model=_short(str(run.config.get("model") or "")),
        reward_name=_short(str(run.config.get("reward") or "")),
        pairs=", ".join(map(str, (pairs.get("sources") if isinstance(pairs, dict) else None) or ())),
        algorithm=algorithm_name(str((algorithm.get("name") if isinstance(algorithm, dict) else algorithm) or "")),
        prompts=str(run.config.get("prompts") or ""),
        reward=_change(run, "reward/mean"),
        stds=_change(run, "reward/base_stds"),
        flat_base=any("eval/reward/base_difference" in record for record in run.evaluations),
        judge=_change(run, "judge/correct", percent=True),
        diversity=_change(run, "diversity"),
        warned=_warned(run),
        warned_round=next((int(record["evaluation"]) for record in run.evaluations if SAID in record), None),
        table=_table(run),
        evaluated=len(run.evaluations) > 1,
        rounds=int(run.rounds[-1]["round"]) if run.rounds else 0,
        kept=None if run.kept is None else int(run.kept["evaluation"]),
        planned=None if planned is None else int(planned),
        duration=_duration(sum(sum(seconds_by_phase(record).values()) for record in run.rounds)),
        queries=f"{max(queries):,.0f}" if queries else DASH,
        notes=run.notes,
        config=run.config_text.strip(),
        command=str(run.env.get("command") or ""),
        env=tuple((str(key), _plain(value)) for key, value in run.env.items() if key != "command"),
    )


def _warned(run: Run) -> tuple[str, ...]:
    said = [
        str(record[SAID]).removeprefix("over-optimisation ")  # which the page says before
        for record in run.evaluations
        if SAID in record
    ]
    return tuple(f"{text[:1].upper()}{text[1:]}." for text in dict.fromkeys([*said[:1], *said[-1:]]))


def _table(run: Run) -> tuple[Row, ...]:
    parts, others = measures(run, "reward/parts/"), measures(run, "rewards/")
    keys = {"reward/mean": "reward"}
    keys |= {f"reward/parts/{name}": f"part: {name}" for name in parts}
    keys |= {f"rewards/{name}": f"held out: {name}" for name in others}
    keys |= {"judge/correct": "judged correct", "diversity": "diversity", "kl": "divergence from the base, nats"}
    if not any("eval/kl" in record for record in run.evaluations):
        del keys["kl"]  # rounds have a `kl` too, of single steps
    rows = [
        Row(what, *(_change(run, under + key, key == "judge/correct") for under in ("", "unseen/")))
        for key, what in keys.items()
    ]
    rows = [row for row in rows if row.trained.before is not None or row.unseen.before is not None]
    return tuple(rows) if parts or others or any(row.unseen.before is not None for row in rows) else ()


def _change(run: Run, key: str, percent: bool = False) -> Change:
    """From the base model to the one that the run leaves: by evaluations if there are two, else by training images.

    The two are never mixed, for their prompts differ. Round 1 draws its images before any update, so they are
    the base model's as well.
    """
    text = percent_number if percent else tidy_number
    kept = run.kept
    evaluations = run.evaluations if kept is None else (run.evaluations[0], kept)
    sources = (
        (0, series(evaluations, "evaluation", f"eval/{key}")),
        (1, series(run.rounds, "round", key)),
    )
    of_base = [values for start, (at, values) in sources if at and at[0] == start]
    chosen = next((values for values in of_base if len(values) > 1), of_base[0] if of_base else [])
    if key.endswith("reward/mean") and measures(run, "reward/parts/"):
        # What is standardised has mean 0 at first, but for rounding.
        chosen = [0.0 if abs(value) < ROUNDING else value for value in chosen]
    before = chosen[0] if chosen else None
    after = chosen[-1] if len(chosen) > 1 else None
    told = of_change(run, key) if len(of_base) and after is not None else None
    return Change(before, after, (text(before), text(after)), "" if told is None else _ends(told, percent))


def _ends(interval: Interval, percent: bool) -> str:
    """The two ends, as changes."""
    if percent:
        low, high = (f"{100 * end:+.0f}".replace("-", "−") for end in (interval.low, interval.high))
        return f"{low} to {high} points"
    return f"{tidy_number(interval.low, sign=True)} to {tidy_number(interval.high, sign=True)}"


def differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Settings in which the runs' configs differ: the dotted key, and its value in each run."""
    flat = [dict(_flatten(run.config)) for run in runs]
    keys = dict.fromkeys(key for settings in flat for key in settings)
    rows = [(key, [settings.get(key, DASH) for settings in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _flatten(config: Mapping[Any, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in config.items():
        rows += _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", _plain(value))]
    return rows


def tidy_number(value: float | None, sign: bool = False) -> str:
    """About three significant figures, with a real minus sign; a dash where there is no number."""
    if value is None:
        return DASH
    size = abs(value)
    if size >= 1e7 or 0 < size < 0.095:
        form = ".2g"
    else:
        form = ",.0f" if size >= 1000 else ".1f" if size >= 100 else ".2f"
    return format(value, ("+" if sign else "") + form).replace("-", "−")


def percent_number(value: float | None) -> str:
    return DASH if value is None else f"{value:.0%}"


def rounds_label(rounds: int) -> str:
    return "base model" if rounds == 0 else f"after {rounds:,} round{'' if rounds == 1 else 's'}"


def _duration(seconds: float) -> str:
    if seconds <= 0:
        return DASH
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
