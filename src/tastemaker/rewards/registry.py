"""Rewards by name: built-in ones, entry points of other packages, `module:function`, those on servers, and people."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tastemaker.errors import RewardError, nearest
from tastemaker.importing import working_directory_first
from tastemaker.in_memory import require_named
from tastemaker.rewards.expression import Part, labels, parse, parts
from tastemaker.rewards.labelers.settings import Labelers, is_label
from tastemaker.rewards.preferences.names import folder_of, parse_options
from tastemaker.rewards.serving.settings import Remote, is_remote
from tastemaker.rewards.vlm.settings import Vlm

if TYPE_CHECKING:
    from tastemaker.rewards.base import FunctionReward, Reward

GROUP = "tastemaker.rewards"
"""Entry-point group in which another package names its rewards."""


@dataclass(frozen=True)
class RewardEntry:
    """Where a built-in reward lives, without importing it."""

    target: str
    summary: str
    argument: str | None = None
    """Placeholder of the argument after a colon, where there is one; the target is then a factory that takes it."""
    differentiable: bool = False
    """As the function declares it, known without importing it: whether methods that need a gradient can use it."""
    default: str | None = None
    """The argument where none is given. Without a default one is required."""
    uses_vlm: bool = False
    """Whether it calls a vision-language model: the target is then also given the settings `vlm` and `log`."""


BUILTIN = {
    "jpeg-compressibility": RewardEntry(
        "tastemaker.rewards.jpeg:jpeg_compressibility", "minus the JPEG size in kB (quality 95): simple images"
    ),
    "jpeg-incompressibility": RewardEntry(
        "tastemaker.rewards.jpeg:jpeg_incompressibility", "the JPEG size in kB (quality 95): busy images"
    ),
    "jpeg-surrogate-compressibility": RewardEntry(
        "tastemaker.rewards.jpeg_surrogate:jpeg_surrogate_compressibility",
        "minus the JPEG size in kB as a small network counts it",
        differentiable=True,
    ),
    "jpeg-surrogate-incompressibility": RewardEntry(
        "tastemaker.rewards.jpeg_surrogate:jpeg_surrogate_incompressibility",
        "the JPEG size in kB as a small network counts it",
        differentiable=True,
    ),
    "judge-score": RewardEntry(
        "tastemaker.rewards.judge:judge_score", "the judge's confidence that the prompt is shown (bundled model)"
    ),
    "colourfulness": RewardEntry(
        "tastemaker.rewards.colour:colourfulness",
        "share of vivid pixels times the entropy of hues, up to 2.81 bits",
    ),
    "soft-colourfulness": RewardEntry(
        "tastemaker.rewards.colour:soft_colourfulness",
        "colourfulness with a gradient: soft threshold and bins",
        differentiable=True,
    ),
    "target-image": RewardEntry(
        "tastemaker.rewards.target:target_image",
        "-10 times the weighted RMS distance to one image",
        "FILE",
        differentiable=True,
    ),
    "ocr": RewardEntry(
        "tastemaker.rewards.ocr:ocr", 'how well the prompt\'s "text in quotation marks" can be read (extra ocr)'
    ),
    "judge-removal": RewardEntry(
        "tastemaker.rewards.learned.concept_removal:judge_removal",
        "1 - the judge's confidence in such an object, or in the prompt's first-named or last-named (bundled model)",
        "OBJECT",
        differentiable=True,
    ),
    "concept-removal": RewardEntry(
        "tastemaker.rewards.learned.concept_removal:concept_removal",
        "1 - an open-vocabulary detector's confidence in the concept (OwlViT or OWLv2)",
        "CONCEPT[@MODEL]",
        differentiable=True,
    ),
    "image-reward": RewardEntry(
        "tastemaker.rewards.learned.image_reward:image_reward",
        "ImageReward: human preference for an image of the prompt, about N(0,1)",
        "WEIGHTS",
        differentiable=True,
        default="THUDM/ImageReward",
    ),
    "caption-score": RewardEntry(
        "tastemaker.rewards.caption:caption_score",
        "how much of the prompt is in the judge's caption of the image (bundled model)",
        "HOW",
        default="words",
    ),
    "vlm-bertscore": RewardEntry(
        "tastemaker.rewards.vlm.rewards:vlm_bertscore",
        "how much of the prompt is in what a vision-language model sees: BERTScore recall (DDPO)",
        "MODEL@URL",
        uses_vlm=True,
    ),
    "vlm-yes-no": RewardEntry(
        "tastemaker.rewards.vlm.rewards:vlm_yes_no",
        "the probability that a vision-language model answers a question with yes",
        "MODEL@URL",
        uses_vlm=True,
    ),
    "vlm-rating": RewardEntry(
        "tastemaker.rewards.vlm.rewards:vlm_rating",
        "a vision-language model's rating, 1 to 5 by default",
        "MODEL@URL",
        uses_vlm=True,
    ),
    "vlm-strict": RewardEntry(
        "tastemaker.rewards.vlm.rewards:vlm_strict",
        "share of a vision-language model's answers that hold what is expected: counting (DDPO)",
        "MODEL@URL",
        uses_vlm=True,
    ),
    "clip-score": RewardEntry(
        "tastemaker.rewards.learned.clip:clip_score",
        "a CLIP's cosine of image and prompt; the bundled one, or any",
        "MODEL",
        differentiable=True,
        default="bundled",
    ),
    "aesthetic": RewardEntry(
        "tastemaker.rewards.learned.aesthetic:aesthetic",
        "LAION's form of an aesthetic score; a made-up taste for the bundled model, or any",
        "WEIGHTS",
        differentiable=True,
        default="bundled",
    ),
    "hps-v2": RewardEntry(
        "tastemaker.rewards.learned.clip:hps_v2",
        "human preference score v2, a ViT-H-14's cosine",
        "PATH_OR_REPO",
        differentiable=True,
        default="xswu/HPSv2",
    ),
    "hps-v2.1": RewardEntry(
        "tastemaker.rewards.learned.clip:hps_v2_1",
        "human preference score v2.1, a ViT-H-14's cosine",
        "PATH_OR_REPO",
        differentiable=True,
        default="xswu/HPSv2",
    ),
    "pick-score": RewardEntry(
        "tastemaker.rewards.learned.clip:pick_score",
        "PickScore, a ViT-H-14's scaled cosine",
        "PATH_OR_REPO",
        differentiable=True,
        default="yuvalkirstain/PickScore_v1",
    ),
}


def installed() -> dict[str, str]:
    """Names and targets of the rewards that other installed packages offer."""
    return {point.name: point.value for point in entry_points(group=GROUP)}


def differentiable_rewards() -> list[str]:
    """Names of the built-in rewards that have a gradient, without what some need after a colon."""
    return [name for name, entry in BUILTIN.items() if entry.differentiable]


def load_reward(
    name: str,
    remote: Remote | None = None,
    log: Callable[[str], None] | None = None,
    loaded: dict[str, FunctionReward] | None = None,
    vlm: Vlm | None = None,
    labelers: Labelers | None = None,
) -> Reward:
    """The reward of this name, which for some is followed by a colon and an argument: `target-image:four.png`.

    Several are combined as in `clip-score + 0.5*jpeg-compressibility` (rewards/expression.py). A URL, or several after
    `remote:`, is a reward on servers, which are called as `remote` says; `log` is called with a line when they have to
    be waited for. A reward that calls a vision-language model does so as `vlm` says, and one that asks people
    (`label:PROJECT`) as `labelers` says. What is in `loaded` is not loaded
    again, and what is loaded is added to it.

    Raises RewardError where there is none of this name, its module does not import, the argument is missing or wrong,
    or a combination cannot be read. Servers are not called before the first images are scored.
    """
    if not name:
        raise RewardError("this run names no reward: give one as in --reward jpeg-compressibility (or module:function)")
    tree = parse(name)
    loaded = {} if loaded is None else loaded
    for part in parts(tree):
        if part not in loaded:
            loaded[part] = _load_one(part, remote, log, vlm, labelers)
    if isinstance(tree, Part):
        return loaded[tree.name]
    from tastemaker.rewards.combination import Combination

    return Combination(name, tree, {part: loaded[part] for part in parts(tree)})


def _load_one(
    name: str, remote: Remote | None, log: Callable[[str], None] | None, vlm: Vlm | None, labelers: Labelers | None
) -> FunctionReward:
    from tastemaker.rewards.base import wrap

    require_named("reward", name, RewardError)
    if (trained := folder_of(name)) is not None:
        from tastemaker.rewards.preferences.reward import preference_reward
        from tastemaker.safe_torch import require_safe_torch

        folder, options = trained
        require_safe_torch(f"what the reward {name} needs", RewardError)
        return preference_reward(folder, parse_options(options, name), name)
    if is_remote(name):
        from tastemaker.rewards.serving.client import RemoteReward

        return wrap(RemoteReward(name, remote) if log is None else RemoteReward(name, remote, log))
    if is_label(name):
        from tastemaker.rewards.labelers.reward import LabelersReward

        return wrap(LabelersReward(name, labelers) if log is None else LabelersReward(name, labelers, log))
    # Messages may be sent to another machine, which paths and addresses are no business of.
    (shown,) = labels([name])
    first, _, argument = name.partition(":")
    entry = BUILTIN.get(first)
    if entry is not None and entry.argument is not None:
        argument = argument or entry.default
        if not argument:
            raise RewardError(f"the reward {first!r} requires an argument: give `{first}:{entry.argument}`")
        from tastemaker.safe_torch import require_safe_torch

        # The argument may name a model that transformers reads.
        require_safe_torch(f"what the reward {name} needs", RewardError)
        make = _import(entry.target, first)
        return wrap(make(argument, vlm, log) if entry.uses_vlm else make(argument), shown)
    # Looking through all installed packages takes 10 ms, and `module:function` is no name of theirs.
    target = BUILTIN[name].target if name in BUILTIN else name if ":" in name else installed().get(name, name)
    if ":" not in target:
        raise RewardError(
            f"unknown reward {name!r}: {nearest(name, [*BUILTIN, *installed()])} (or give `module:function`)"
            + ("; several rewards are combined with spaces around + and *" if set(name) & set("+*") else "")
        )
    return wrap(_import(target, name), shown)


def _import(target: str, name: str) -> Any:
    from tastemaker.rewards.user_code import call

    module_name, _, attribute = target.partition(":")
    what = f"the reward {name!r} cannot be imported: module {module_name!r}"
    if module_name.endswith(".py"):
        raise RewardError(f"{what} is a file's name: modules are named without .py, as in `taste:redness`")
    with working_directory_first():
        module = call(lambda: importlib.import_module(module_name), what)
        function = call(lambda: functools.reduce(_attribute, attribute.split("."), module), what)
    if function is None:
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise RewardError(
            f"module {module_name!r} has no function {attribute!r}; {nearest(attribute, known)}{_shadowed(module)}"
        )
    return function


def _attribute(of: Any, name: str) -> Any:
    return getattr(of, name, None)


def _shadowed(module: Any) -> str:
    """A hint where the folder has a file of the module's name that is not the module."""
    here, found = Path(f"{module.__name__}.py"), getattr(module, "__file__", None)
    if not here.is_file() or (found is not None and here.samefile(found)):
        return ""
    return f"; it is {found or 'built into Python'}, and not {here} in this folder, which needs another name"
