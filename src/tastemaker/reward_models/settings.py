"""How a reward model is trained. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from tastemaker.constraints import check_constraints
from tastemaker.errors import ConfigError
from tastemaker.rewards.preferences.architecture import Architecture, Kind

RATES: dict[Kind, float] = {"unet": 3e-4, "transformer": 3e-4, "clip": 3e-4, "head": 3e-3}
"""Learning rates where none is given (docs/methods/reward-models.md)."""


@dataclass(frozen=True)
class Training:
    """The training of a reward model."""

    seed: int = 0
    """Of weights, of the order of tasks, of dropped prompts, and of bootstrap samples."""
    epochs: Annotated[int, Gt(0)] = 60
    """Most passes over the training tasks."""
    lr: Annotated[float, Gt(0)] | None = None
    """Learning rate of AdamW; none: 3e-4 for unet, transformer and clip, 3e-3 for head."""
    weight_decay: Annotated[float, Ge(0)] = 0.01
    """Of AdamW."""
    center_rewards_coefficient: Annotated[float, Ge(0)] = 0.0
    """Weight of (r_1 + r_2)^2 over the compared pairs, which draws the mean reward of each task to 0. Comparisons of
    images of one prompt leave it open, and a policy may then draw what has a high one. As in TRL; try 0.01 to 0.1."""
    batch: Annotated[int, Gt(0)] = 8
    """Tasks in an update, each with all its images and pairs."""
    patience: Annotated[int, Gt(0)] = 10
    """Epochs without a lower validation loss after which training ends. The weights of the best epoch are kept."""
    text_dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Share of the tasks of an update that are shown without their prompt, for classifier-free reward guidance."""
    guidance: float = 1.0
    """s in r_u + s (r_c - r_u) when the model is used; a reward's name may have another, `runs/rm:guidance=2`."""
    members: Annotated[int, Gt(0), Le(64)] = 1
    """Models of an ensemble; their spread is the uncertainty of the reward."""
    bootstrap: bool = True
    """Whether each member of an ensemble learns from a bootstrap sample of the training tasks, or all from the same."""
    refit: bool = False
    """Train again on all tasks, the validation part included, for as many epochs as were best (thesis section 6.7).
    What is reported is of the models that did not see the validation part."""
    curve: tuple[int, ...] = (25, 50, 100, 200)
    """Numbers of training tasks of the learning curve, as far as there are so many; () leaves it out."""
    standardise: Literal["compared", "samples"] = "compared"
    """Whose rewards have mean 0 and standard deviation 1: `compared`: all images that were compared. `samples`: images
    sampled anew from a diffusion model for their prompts."""

    def __post_init__(self) -> None:
        check_constraints(self)
        object.__setattr__(self, "curve", tuple(self.curve))
        if any(count < 1 for count in self.curve):
            raise ConfigError(f"curve is {list(self.curve)}, but its numbers of tasks must be at least 1")

    def rate(self, kind: Kind) -> float:
        """The learning rate for a kind of reward model."""
        return RATES[kind] if self.lr is None else self.lr


def check(architecture: Architecture, training: Training) -> None:
    """Raises ConfigError where the two do not fit together."""
    free = architecture.kind == "clip"
    if training.text_dropout and free:
        raise ConfigError(
            "text_dropout is for reward models of other kinds: the cosine of a CLIP has no meaning without text"
        )
    if training.guidance != 1 and not training.text_dropout:
        raise ConfigError(
            f"guidance is {training.guidance:g}, which needs a model that was also trained without prompts: give "
            "text_dropout, such as 0.1"
        )
