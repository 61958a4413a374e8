"""By what a model's files tell that it was distilled to make images in a few steps, and the warning about it."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

_LOGGER = logging.getLogger(__name__)
_NAMES = re.compile(r"(?<![a-z])(turbox?|lightning|schnell|lcm|hyper-?sdx?l?|dmd2?)(?![a-z])", re.IGNORECASE)
"""In the names of such models that are published."""


def sign(
    folder: Path,
    index: Mapping[str, Any],
    network: Mapping[str, Any],
    scheduler: Mapping[str, Any],
    scheduler_class: str,
) -> str | None:
    """What in a pipeline's folder says so; None where nothing does.

    `index` is its model_index.json, `network` and `scheduler` the configs of the network that is trained and of the
    scheduler, which is of `scheduler_class`. LCM and Hyper-SD name samplers of their own (LCM, TCD). SDXL-Turbo,
    SD-Turbo and Lightning predict the noise and start from the noisiest time (`trailing`), as only models with a zero
    terminal SNR do besides, which cannot predict noise. The configs of Z-Image-Turbo differ from Z-Image's in the
    shift, and in those of Stable Diffusion 3.5 Large Turbo no key is known that says so: what is left is a name.
    """
    kind = index.get("_class_name")
    if scheduler_class in ("LCMScheduler", "TCDScheduler"):
        return f"its scheduler is a {scheduler_class}"
    latents = kind in ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
    if latents and (scheduler["timestep_spacing"], scheduler["prediction_type"]) == ("trailing", "epsilon"):
        return "its scheduler has timestep_spacing trailing and prediction_type epsilon, as SDXL-Turbo and Lightning"
    if kind == "ZImagePipeline" and scheduler["shift"] == 3:
        return "its scheduler has shift 3, as that of Z-Image-Turbo; Z-Image's has 6"
    # A snapshot in the hub's cache is models--OWNER--NAME/snapshots/REVISION.
    place = folder.parent.parent.name if folder.parent.name == "snapshots" else folder.name
    for name in (index.get("_name_or_path"), network.get("_name_or_path"), place):
        if isinstance(name, str) and _NAMES.search(name.rpartition("/")[2]):
            return f"it is called {name}, and nothing else in its files says whether it is"
    return None


@cache
def warn(folder: str, reason: str) -> None:
    """Once for each model, which is read twice where a run is checked before it starts."""
    _LOGGER.warning(
        "the model in %s seems to be distilled to a few steps (%s): sample and train it as it was made to be sampled, "
        "for most sampling.steps of 1 to 8 and sampling.guidance=1; denoising losses (rwr, nft, awm, dgpo, "
        "diffusion-dpo, online-diffusion-dpo, diffusion-kto, mapo, prior preservation) train it for many steps again",
        folder,
        reason,
    )
