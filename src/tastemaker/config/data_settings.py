"""Settings of what a run learns from and holds on to besides its own images: pairs, a reference, prior preservation.

Free of torch, since the command line reads them; in a small module of their own, since the help of each dataclass costs
a pass over its whole module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt


@dataclass(frozen=True)
class Pairs:
    """Pairs of images that somebody has compared, for algorithms that learn from those and not from the reward."""

    sources: tuple[str, ...] = ()
    """Labelling projects, folders with a pairs.jsonl, tables (docs/guides/tables.md), or Hugging Face data sets, local
    or by name (docs/methods/diffusion-dpo.md): the pairs of all of them."""
    split: str = "train"
    """Which split of a data set; of a labelling project `train` or `validation`."""
    labels: Literal["preferred", "probabilities"] = "preferred"
    """`preferred`: one image of a pair is the better one, and ties are left out. `probabilities`: with the probability
    that its share of the votes says (Rapidata's columns, or label_0 and label_1 that add up to 1); a tie is 1/2. Of
    diffusion-dpo."""


@dataclass(frozen=True)
class Reference:
    """The model that divergences and preferences are measured from."""

    every: Annotated[int, Ge(0)] = 0
    """Rounds after which it becomes the model as it is then, again and again; 0: it stays what training began with."""


@dataclass(frozen=True)
class PriorPreservation:
    """A denoising loss on images that the model should not forget, added to each update.

    See docs/guides/prior-preservation.md.
    """

    weight: Annotated[float, Ge(0)] = 0.0
    """Of the loss; 0 leaves it out."""
    source: str = "base"
    """`base`: the base model's own images of the run's prompts; or a folder, table or Hugging Face data set of images
    with captions (docs/guides/prior-preservation.md)."""
    split: str = "train"
    """Which split of a data set."""
    images: Annotated[int, Gt(0)] = 64
    """How many images are made, or taken at random from the source; all where it has fewer."""
    rows: Annotated[int, Gt(0)] = 8
    """Images in each update, each at one time with one noise, over all processes; in turn."""
    guided: bool = False
    """Ask the network with guidance; pre-training does not."""
    drop_captions: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Share of the rows without their caption, in [0, 1); Stable Diffusion's pre-training had 0.1."""
