"""Over-optimisation: the trained reward rises, and something else that evaluations measure falls (Gao et al. 2023).

Pure functions of what a run's evaluations measured on the same prompts and seeds: `begin` with the base model's, then
`look` at each evaluation, or `watch` over all of them.

An evaluation is compared with an earlier one image by image. The interval of the mean difference is a bootstrap over
the images, each with its pair of values (statistics.bootstrap_mean). A measure has fallen where the whole interval lies
below `-tolerance`, and the reward has risen where the whole interval lies above 0.

A run is looked at again and again, for several measures, and the more often, the likelier an interval is to be off by
chance. So a measure is reported only where it has fallen at two evaluations in a row, or by twice the tolerance
at one; it is compared with the base model, and with a later evaluation only where that was above the base model's
interval itself, because the highest of many evaluations is high by chance too. How often a run
in which nothing falls has a warning all the same is simulated by `benchmarks/over_optimisation.py --simulate`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from tastemaker.evaluation.statistics import Array, Interval, bootstrap_mean

LEVEL = 0.995
"""Of the intervals of measures that must not fall."""
RISE_LEVEL = 0.95
"""Of the trained reward's interval. It may be lower, since a warning needs a fall as well."""
LEAST = 16
"""Images below which an interval says too little for a warning."""
AT_ONCE = 2
"""How many times the tolerance a fall must have for one evaluation to suffice."""
Unit = Literal["share", "reward"]
BASE = "the base model"


@dataclass(frozen=True)
class Measure:
    """A measure of an evaluation's images that is not trained on."""

    values: tuple[float, ...]
    """One for each image, the same images at each evaluation."""
    unit: Unit = "share"
    """`share`: from 0 to 1, a tolerance is a share of its value. `reward`: of two deviations of the base model's."""
    lower_is_better: bool = False
    """Of a share: what must not fall is 1 - value."""

    def good(self, values: Sequence[float] | None = None) -> Array:
        """[B] what must not fall: of the measure's own values, or of others of the same measure."""
        found = np.asarray(self.values if values is None else values)
        return 1 - found if self.lower_is_better else found


@dataclass(frozen=True)
class Measured:
    """What one evaluation measured."""

    round: int
    """Rounds done; 0 for the base model."""
    held_out: Mapping[str, Measure]
    """By the names that records have."""
    trained: tuple[float, ...] | None = None
    """The trained reward of each image; None for a run that is not trained on one."""
    kl: tuple[float, ...] = ()
    """Divergence from the base model in nats, of some of the images."""


@dataclass(frozen=True)
class Reference:
    """An evaluation's values of one measure, with which later ones are compared."""

    round: int
    values: tuple[float, ...]


@dataclass(frozen=True)
class History:
    """What has to be remembered of the evaluations so far."""

    trained: tuple[float, ...] | None
    """The base model's."""
    base: Mapping[str, Reference]
    peaks: Mapping[str, Reference] = field(default_factory=dict)
    """The highest evaluation of each measure that has been above the base model's interval."""
    fallen: tuple[str, ...] = ()
    """Measures that had fallen at the last evaluation."""
    warned: tuple[str, ...] = ()
    """Measures of which the last evaluation warned."""

    def plain(self) -> dict[str, Any]:
        """The same as JSON."""
        return asdict(self)

    @staticmethod
    def of(plain: Mapping[str, Any]) -> History:
        """What `plain` gave."""
        base, peaks = (
            {name: Reference(one["round"], tuple(one["values"])) for name, one in plain[key].items()}
            for key in ("base", "peaks")
        )
        trained = None if plain["trained"] is None else tuple(plain["trained"])
        return History(trained, base, peaks, tuple(plain["fallen"]), tuple(plain["warned"]))


@dataclass(frozen=True)
class Warned:
    """A measure that has fallen while the trained reward has risen; for `kl`, one that is above its limit."""

    name: str
    since: int
    """Rounds done at the evaluation that it has fallen from; 0 is the base model."""
    before: float
    after: float
    change: Interval
    """Of the measure as it is recorded: what is better low has risen."""

    def __str__(self) -> str:
        if self.name == "kl":
            return f"the divergence from {BASE} is {_plain(self.after)} nats, above {_plain(self.before)}"
        fell = self.change.estimate < 0
        low, high = sorted((abs(self.change.low), abs(self.change.high)))
        since = BASE if self.since == 0 else f"round {self.since}"
        return (
            f"{self.name} {'fell' if fell else 'rose'} from {_plain(self.before)} to {_plain(self.after)} "
            f"since {since} (by {_plain(low)} to {_plain(high)})"
        )


@dataclass(frozen=True)
class Look:
    """What one evaluation says beside those before it."""

    round: int
    rise: Interval | None
    """Of the trained reward since the base model."""
    changes: Mapping[str, Interval]
    """Of each measure as it is recorded, since the base model."""
    warnings: tuple[Warned, ...]
    """All that holds now."""
    new: tuple[Warned, ...]
    """Those of which the evaluation before did not warn."""
    history: History
    """With this evaluation in it."""

    @property
    def sound(self) -> bool:
        """Whether nothing has fallen, not even at this evaluation alone."""
        return not self.history.fallen and not self.warnings

    def figures(self) -> dict[str, float | str]:
        """For the evaluation's record: changes since the base model with their intervals, and the warnings."""
        intervals = dict(self.changes) if self.rise is None else {"reward/mean": self.rise, **self.changes}
        found: dict[str, float | str] = {"over_optimisation/warnings": len(self.warnings)}
        for name, change in intervals.items():
            found |= {
                f"over_optimisation/{name}/change": change.estimate, f"over_optimisation/{name}/low": change.low,
                f"over_optimisation/{name}/high": change.high,
            }  # fmt: skip
        found |= {f"over_optimisation/{one.name}/warning": 1.0 for one in self.warnings}
        return found | ({"over_optimisation/said": self.sentence(self.warnings)} if self.warnings else {})

    def sentence(self, warnings: Sequence[Warned]) -> str:
        """What a person is told."""
        said = "; ".join(map(str, warnings))
        if self.rise is None:
            return f"after round {self.round} the model is getting worse by what it is not trained on: {said}"
        by = f"{_plain(self.rise.estimate, sign=True)} ({_plain(self.rise.low)} to {_plain(self.rise.high)})"
        return f"over-optimisation after round {self.round}: the reward is {by} above {BASE}'s, but {said}"


def begin(base: Measured) -> History:
    """The history that has the base model alone."""
    return History(base.trained, {name: Reference(base.round, one.values) for name, one in base.held_out.items()})


def look(history: History, now: Measured, tolerance: float = 0.1, kl_limit: float | None = None) -> Look:
    """Compares an evaluation with those before it.

    tolerance: how much of a measure may be lost, as a share of its value; for rewards of two deviations of the base
    model's images. kl_limit: nats of divergence from the base model; there is a warning where the whole interval is
    above it.
    """
    rise = None if now.trained is None or history.trained is None else _change(now.trained, history.trained, RISE_LEVEL)
    rises = rise is None or rise.low > 0
    found = {name: _compared(history, name, measure, tolerance) for name, measure in now.held_out.items()}
    fallen = {name: one.worst for name, one in found.items() if one.worst.tolerances > 1}
    warnings = [
        fall.warned for name, fall in fallen.items() if rises and (fall.tolerances > AT_ONCE or name in history.fallen)
    ]
    if kl_limit is not None and len(now.kl) > 1 and rises and (kl := _interval(now.kl)).low > kl_limit:
        warnings.append(Warned("kl", 0, kl_limit, kl.estimate, kl))
    higher = {name: Reference(now.round, now.held_out[name].values) for name, one in found.items() if one.is_peak}
    names = tuple(one.name for one in warnings)
    return Look(
        round=now.round,
        rise=rise,
        changes={name: one.since_base for name, one in found.items()},
        warnings=tuple(warnings),
        new=tuple(one for one in warnings if one.name not in history.warned),
        history=replace(history, peaks={**history.peaks, **higher}, fallen=tuple(fallen), warned=names),
    )


def watch(evaluations: Iterable[Measured], tolerance: float = 0.1, kl_limit: float | None = None) -> tuple[Look, ...]:
    """What is found at each evaluation after the first, which is the base model's."""
    each = iter(evaluations)
    history, looks = begin(next(each)), []
    for now in each:
        looks.append(look(history, now, tolerance, kl_limit))
        history = looks[-1].history
    return tuple(looks)


@dataclass(frozen=True)
class _Fall:
    tolerances: float
    """By how many of them the measure has fallen, with the whole interval."""
    warned: Warned


@dataclass(frozen=True)
class _Compared:
    since_base: Interval
    worst: _Fall
    is_peak: bool
    """Whether this is the highest evaluation above the base model's interval."""


def _compared(history: History, name: str, measure: Measure, tolerance: float) -> _Compared:
    base, peak = history.base[name], history.peaks.get(name)
    scale = 2 * float(np.std(base.values)) if measure.unit == "reward" else None
    since_base = _change(measure.values, base.values)
    falls = [_fall(name, measure, base, since_base, tolerance, scale)]
    if peak is not None:
        falls.append(_fall(name, measure, peak, _change(measure.values, peak.values), tolerance, scale))
    above_base = (-since_base.high if measure.lower_is_better else since_base.low) > 0
    above_peak = peak is None or measure.good().mean() > measure.good(peak.values).mean()
    is_peak = above_base and above_peak and len(measure.values) >= LEAST
    return _Compared(since_base, max(falls, key=lambda fall: fall.tolerances), is_peak)


def _fall(
    name: str, measure: Measure, since: Reference, change: Interval, tolerance: float, scale: float | None
) -> _Fall:
    """A fall by `change`; a share's scale is its own value at the earlier evaluation."""
    lost = change.low if measure.lower_is_better else -change.high
    unit = tolerance * (float(measure.good(since.values).mean()) if scale is None else scale)
    times = (lost / unit if unit > 0 else np.inf) if lost > 0 and len(measure.values) >= LEAST else 0.0
    before, after = float(np.mean(since.values)), float(np.mean(measure.values))
    return _Fall(float(times), Warned(name, since.round, before, after, change))


def _change(values: ArrayLike, others: ArrayLike, level: float = LEVEL) -> Interval:
    """The mean of values - others, both [B] of the same images."""
    return _interval(np.asarray(values, np.float64) - np.asarray(others, np.float64), level)


def _interval(values: ArrayLike, level: float = LEVEL) -> Interval:
    x = np.asarray(values, np.float64)
    return bootstrap_mean(x, [0] * x.size, level=level)


def _plain(value: float, sign: bool = False) -> str:
    """Three digits."""
    return format(value, f"{'+' if sign else ''}.3g")
