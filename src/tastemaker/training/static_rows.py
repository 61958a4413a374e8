"""The numbers of rows in a run's full network calls, by which a compiled network has its shapes."""

from __future__ import annotations

from collections.abc import Sequence

from tastemaker.algorithms.selection import All
from tastemaker.config.schema import Config
from tastemaker.models.compiling import StaticRows


def guidance_rows(config: Config) -> int:
    """Rows of the network for an image at a step: 2 with classifier-free guidance, which has an unconditional half."""
    return 1 if config.sampling.guidance == 1 else 2


def training_rows(config: Config) -> int:
    """Rows of the network for one of the rows that `optimizer.rows` counts, in training."""
    needs = config.algorithm.requirements
    return needs.images_per_row * (guidance_rows(config) if needs.guided else 1)


def static_rows(config: Config, prompts: Sequence[int], processes: int = 1) -> StaticRows:
    """Rows of full calls on each of the processes, where evaluations choose from so many `prompts`, of each kind.

    What is left over when batches are cut makes smaller calls, which are filled up. Where images are selected, an
    update has any number of rows, and a quarter of a full call in training is a size of its own; but not of several
    processes, which have to call their parts of the network equally often.
    """
    s, o, e = config.sampling, config.optimizer, config.evaluation
    double, at_once = guidance_rows(config), s.images_per_batch
    update = s.samples // processes // o.updates
    each = config.algorithm.requirements.rows_per_image or s.steps
    # A given pair is one image of `samples`, and a draw of images with the same trained steps is called by itself.
    learned = min(o.rows, max(1, update if config.pathwise else update * each))
    draw = min(o.rows, config.algorithm.requirements.images_per_draw or learned)
    cut = processes == 1 and not isinstance(config.selection, All)
    quarter = max(1, learned // 4) if cut else learned
    training = {training_rows(config) * rows for rows in (learned, draw, quarter)}
    evaluated = [min(e.prompts, count) * e.per_prompt for count in prompts]
    measured = [e.kl_images] if e.kl_images else []
    sampled = [min(at_once, count) for count in (*evaluated, *measured)]
    if not config.pathwise and config.algorithm.needs != "pairs":
        share = max(1, s.samples // processes)
        sampled.append(min(at_once, share))
        if s.branches > 1:
            sampled.append(max(1, min(at_once, share) // s.branches))
    return StaticRows(tuple(sorted({double * images for images in sampled} | training)), tuple(sorted(training)))
