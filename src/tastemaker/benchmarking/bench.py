"""What `tastemaker bench` measures: rounds against the bare network's own time, and where the rest of them goes.

floor = the network calls that a round needs, made by themselves; overhead = wall / floor.
"""

from __future__ import annotations

import platform
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from tastemaker.benchmarking.floor import Floor, Needed, calls_of_round, measure_floor
from tastemaker.benchmarking.temporary import temporary_session
from tastemaker.benchmarking.trace import FORWARD, OTHER, PARTS, TRAIN, VALUE, clock, traced_round
from tastemaker.config.schema import Config
from tastemaker.diffusion.model import image_size
from tastemaker.errors import ConfigError
from tastemaker.models.compiling import compile_seconds
from tastemaker.training import rounds
from tastemaker.training.plan import updates_of_round
from tastemaker.training.session import Session
from tastemaker.training.static_rows import training_rows


@dataclass(frozen=True)
class Bench:
    """What was measured. Times in seconds a round."""

    settings: dict[str, Any]
    machine: dict[str, Any]
    images_per_second: float
    """Images sampled, text encoded and VAE decoded included."""
    rows_per_second: float
    """Rows (one image at one step) trained, the optimizer's steps included, and with `optimizer.single_pass`
    sampling."""
    compile_seconds: float
    """Until everything was compiled, which rounds do not count; 0 without `speed.compile`."""
    peak_memory_gib: float
    """On a CPU of the whole process, loading included; on a GPU of its tensors."""
    wall: float
    floor: float
    overhead: float
    """The median of `overheads`, as `wall` and `floor` are of theirs."""
    walls: list[float]
    floors: list[float]
    overheads: list[float]
    phases: dict[str, float]
    """The run's own phases, as in metrics.jsonl, and `other`; medians."""
    parts: dict[str, float]
    """Where the seconds of traced rounds go, by PARTS; means, so that they sum to the traced round."""
    floor_parts: dict[str, float]
    """The floor's share of the two network parts; means."""


def bench(config: Config, repeats: int, log: Callable[[str], None] = lambda text: None) -> Bench:
    """Measures `repeats` rounds of a run, which leaves nothing behind, after a round to warm up.

    A repeat is a traced round, bare calls, a plain round and bare calls again: what the machine does besides meets
    both sides of the ratio alike, and the tracing (which makes a GPU wait) is no part of it. Raises ConfigError for an
    algorithm that samples nothing.
    """
    with measured_session(config) as (session, compiled):
        device = session.accelerator.device
        walls, floors, phases, parts, selected, memory = [], [], [], [], [], 0.0
        for number in range(repeats):
            parts.append(traced_round(session))
            # Of the rounds alone: the bare calls come later. Two rounds, since Adam has no moments in the first one.
            memory = memory or peak_memory(device)
            calls = calls_of_round(session)
            before = measure_floor(session, calls)
            made = plain_round(session)
            after = measure_floor(session, calls)
            walls.append(made.seconds)
            phases.append(made.phases)
            selected.append(made.selected)
            mean = Floor(
                (before.forward + after.forward) / 2, (before.backward + after.backward) / 2,
                (before.value + after.value) / 2, (before.compared + after.compared) / 2,
            )  # fmt: skip
            floors.append(mean.of_selected(made.selected))
            log(f"repeat {number + 1} of {repeats}: {made.seconds:.2f} s, floor {floors[-1].total:.2f} s")
        return _summary(session, calls, compiled(), memory, walls, floors, phases, parts, selected)


@contextmanager
def measured_session(config: Config) -> Iterator[tuple[Session, Callable[[], float]]]:
    """A run that has made a round to warm up and leaves nothing behind, and the seconds it has spent compiling.

    Raises ConfigError for an algorithm that samples nothing.
    """
    if config.algorithm.needs == "pairs":
        raise ConfigError(f"bench measures rounds that sample, but the algorithm {config.algorithm.name} has none")
    begun = compile_seconds() if config.speed.compile else 0.0
    with temporary_session(config) as session:
        rounds.one_round(session)
        yield session, lambda: session.compiled() - begun


@dataclass(frozen=True)
class PlainRound:
    """What one round took, without compiling."""

    seconds: float
    phases: dict[str, float]
    """Seconds of its phases as the run itself counts them, and `other`."""
    selected: float
    """Share of its images that were learned from, in [0,1]."""


def plain_round(session: Session) -> PlainRound:
    """Makes a round."""
    session.seconds.clear()
    begin = clock(session.accelerator.device)
    record = rounds.one_round(session)
    phases = dict(session.seconds)
    wall = clock(session.accelerator.device) - begin - phases.pop("compile", 0.0)
    return PlainRound(wall, phases | {OTHER: wall - sum(phases.values())}, record.get("selected", 1.0))


def peak_memory(device: torch.device) -> float:
    """GiB: on a GPU the most that tensors took, elsewhere the most that the process had resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def rates(session: Session, calls: Needed, phases: Mapping[str, float], selected: float) -> tuple[float, float]:
    """Images sampled and rows trained in a second, of a round with these network calls and these seconds of phases, of
    whose images this share was learned from."""
    s, o = session.config.sampling, session.config.optimizer
    train, sample = phases["train"], phases.get("sample")
    images = s.samples / (train if sample is None else sample)
    return images, selected * trained_rows(session.config, calls) / (
        train + ((sample or 0.0) if o.single_pass else 0.0)
    )


def trained_rows(config: Config, calls: Needed) -> int:
    """Rows (one image at one step) that a round trains where all its images are selected."""
    return sum(size * count for size, count in calls.network.backward.items()) // training_rows(config)


def _summary(
    session: Session,
    calls: Needed,
    compiled: float,
    memory: float,
    walls: list[float],
    floors: list[Floor],
    phases: list[dict[str, float]],
    parts: list[dict[str, float]],
    selected: list[float],
) -> Bench:
    config, device = session.config, session.accelerator.device
    s, o = config.sampling, config.optimizer
    median = {name: statistics.median(phase.get(name, 0.0) for phase in phases) for name in phases[0]}
    totals = [floor.total for floor in floors]
    share = statistics.fmean(selected)
    images_per_second, rows_per_second = rates(session, calls, median, share)
    height, width = image_size(session.model)
    overheads = [wall / floor for wall, floor in zip(walls, totals, strict=True)]
    return Bench(
        settings={
            "model": config.model, "algorithm": config.algorithm.name, "reward": config.reward,
            "precision": config.precision, "tuning": config.tuning.mode, "compile": config.speed.compile,
            "channels_last": config.speed.channels_last, "attention": config.speed.attention,
            "gradient_checkpointing": config.tuning.gradient_checkpointing,
            "height": height, "width": width, "samples": s.samples, "steps": s.steps,
            "guidance": s.guidance, "batch": s.batch, "rows": o.rows,
            "trained_rows": round(share * trained_rows(config, calls)),
            "single_pass": o.single_pass,
            "updates": updates_of_round(config), "repeats": len(walls),
        },
        machine={
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "threads": torch.get_num_threads(), "torch": torch.__version__, "python": platform.python_version(),
        },
        images_per_second=images_per_second, rows_per_second=rows_per_second,
        compile_seconds=compiled, peak_memory_gib=memory,
        wall=statistics.median(walls), floor=statistics.median(totals),
        overhead=statistics.median(overheads), walls=walls, floors=totals, overheads=overheads, phases=median,
        parts={name: statistics.fmean(part[name] for part in parts) for name in PARTS},
        floor_parts={
            FORWARD: statistics.fmean(floor.forward for floor in floors),
            TRAIN: statistics.fmean(floor.backward for floor in floors),
            VALUE: statistics.fmean(floor.value for floor in floors),
        },
    )  # fmt: skip
