"""Mixtures of adapters on disk, measured on the same images: `tastemaker mix` (AlignProp §5.4 and Table 4)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from tastemaker.config.schema import Sampling
from tastemaker.diffusion.model import Model
from tastemaker.diffusion.sampler import LocalSampler, batches
from tastemaker.diffusion.sde import make_sde
from tastemaker.errors import ModelError, RewardError
from tastemaker.evaluation.evaluate import evaluate
from tastemaker.evaluation.figures import COLOURS, INK, MUTED, styled
from tastemaker.evaluation.image_grid import labelled_grid
from tastemaker.evaluation.images import fixed_draw, load_here, to_pil
from tastemaker.models import adapter_files
from tastemaker.models.mixing import Adapter, Mode, compress, mix
from tastemaker.printing import readable
from tastemaker.rewards.registry import load_reward
from tastemaker.spread import moments

BATCH, ROWS = 16, 8
"""Images sampled at once, and prompts in the grid."""


@dataclass(frozen=True)
class Plan:
    """What is mixed, and how the mixtures are measured."""

    adapters: tuple[Path, ...]
    points: dict[str, tuple[float, ...]]
    """Weights of each mixture, by its name."""
    mode: Mode
    rank: int | None
    model: str
    prompts: tuple[str, ...]
    n: int
    """Images of each prompt."""
    seed: int
    rewards: tuple[str, ...]
    sampling: Sampling

    @property
    def calls(self) -> int:
        """Of the network, in the whole sweep."""
        return (1 + len(self.points)) * self.sampling.steps * len(batches(len(self.prompts) * self.n, BATCH))


def write_mix(plan: Plan, folder: Path, advance: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Fills `folder` with adapters/, and where there are rewards with mix.json, mix.png, mix.svg and grid.png.

    Returns what mix.json says. Raises ModelError, before anything is sampled, for adapters that cannot be mixed.
    """
    sources = [adapter_files.require_adapter(adapter_files.find_adapter(adapter)) for adapter in plan.adapters]
    names = [str(adapter) for adapter in plan.adapters]
    model = load_here(plan.model, plan.sampling)
    unet = model.weights.network
    parts = [adapter_files.read(source, unet) for source in sources]
    frozen = common_frozen(sources)
    ranks = {}
    for name, weights in plan.points.items():
        mixed = mixture(parts, weights, plan.mode, plan.rank)
        adapter_files.write(mixed, unet, folder / adapter_path(name), frozen)
        ranks[name] = max(factors.rank for factors in mixed.values())
    found = {
        "adapters": names, "mode": plan.mode, "model": plan.model, "prompts": plan.prompts, "n": plan.n,
        "seed": plan.seed, "steps": plan.sampling.steps, "guidance": plan.sampling.guidance, "eta": plan.sampling.eta,
        "sde_type": plan.sampling.sde_type, "embedded_guidance": plan.sampling.embedded_guidance,
        "negative_prompt": plan.sampling.negative_prompt,
        "rewards": plan.rewards, "base": {}, "mixtures": [
            {"name": name, "weights": weights, "rank": ranks[name], "adapter": str(adapter_path(name))}
            for name, weights in plan.points.items()
        ],
    }  # fmt: skip
    if plan.rewards:
        _measure(plan, model, folder, found, advance)
        draw_plot(found, folder)
    (folder / "mix.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def adapter_path(name: str) -> Path:
    """Where a mixture's adapter lies in the folder."""
    return Path("adapters") / name.replace(" ", "-").replace(",", "_")


def common_frozen(adapters: Sequence[Path]) -> adapter_files.Frozen:
    """The adapters that are under all of these. Raises ModelError where they are not the same ones."""
    found = {path: tuple(adapter_files.frozen_under(path)) for path in adapters}
    (first, under), *others = found.items()
    for path, other in others:
        if other != under:
            raise ModelError(
                f"{first} was trained on top of {_listed(under)}, and {path} on top of {_listed(other)}, but only "
                "adapters on top of the same ones can be mixed"
            )
    return under


def _listed(frozen: adapter_files.Frozen) -> str:
    return ", ".join(f"{path} with weight {weight:g}" for path, weight in frozen) or "the model alone"


def mixture(parts: Sequence[Adapter], weights: Sequence[float], mode: Mode, rank: int | None = None) -> Adapter:
    """The mixture of adapters, of at most `rank` where that is given (docs/guides/mixing.md).

    One adapter alone is itself: arithmetic would not change its values, but other ranks and scales would change an
    image's last bits.
    """
    used = [index for index, weight in enumerate(weights) if weight]
    if len(used) == 1 and weights[used[0]] == 1:
        return parts[used[0]]
    made = mix(parts, weights, mode)
    return compress(made, rank) if rank else made


def _measure(plan: Plan, model: Model, folder: Path, found: dict[str, Any], advance: Callable[[], None]) -> None:
    """Puts the rewards of the base model and of every mixture into `found`, and draws the grid."""
    rewards = {name: load_reward(name) for name in plan.rewards}
    model.check(plan.prompts)
    sampling, draw = plan.sampling, fixed_draw(plan.prompts, plan.n, plan.seed)
    sampler = LocalSampler(model, make_sde(model, sampling.steps, sampling.eta, sampling.sde_type))

    def look() -> tuple[dict[str, Tensor], list[Any]]:
        # The first images are the base model's, of which combinations take their statistics.
        found = evaluate(
            model, sampler, draw, rewards, guidance=sampling.guidance, batch=BATCH, judged=False,
            advance=lambda count: advance(),
        )  # fmt: skip
        first = found.images[:: plan.n][:ROWS]
        return {name: scores.total for name, scores in found.scores.items()}, to_pil(first)

    base, shown = look()
    columns = [shown]
    found["base"] = {name: standing(values, values, name) for name, values in base.items()}
    for entry in found["mixtures"]:
        with model.weights.loaded(folder / entry["adapter"]):
            values, shown = look()
        columns.append(shown)
        entry["rewards"] = {name: standing(values[name], base[name], name) for name in rewards}
        entry["average"] = sum(one["standardised"] for one in entry["rewards"].values()) / len(rewards)
    prompts = plan.prompts[:ROWS]
    image_list = [column[row] for row in range(len(prompts)) for column in columns]
    names = ["base", *(entry["name"].removeprefix("weights ") for entry in found["mixtures"])]
    labelled_grid(image_list, prompts, names).save(folder / "grid.png")


def standing(values: Tensor, base: Tensor, name: str) -> dict[str, float]:
    """Mean and deviation of rewards [B], and the mean in the base model's deviations from its mean, with its error.

    Both are of the same prompts and noise, so the error (of the mean difference) is that of B paired differences.
    Raises RewardError where the base model's rewards do not differ.
    """
    unit = moments(base)[1]
    if not unit:
        raise RewardError(
            f"the reward {name} gives all {len(base)} images of the base model {base[0].item():g}, and has no "
            "deviation to measure mixtures in: give more or other prompts"
        )
    difference = values.double() - base.double()
    return {
        "mean": values.double().mean().item(), "std": values.double().std(correction=0).item(),
        "standardised": difference.mean().item() / unit,
        "error": difference.std(correction=1).item() / len(values) ** 0.5 / unit,
    }  # fmt: skip


def draw_plot(found: Mapping[str, Any], folder: Path) -> None:
    """mix.png and mix.svg: every reward and their average over alpha, or over the mixtures in their order."""
    mixtures = found["mixtures"]
    by_alpha = all(mixture["name"].startswith("alpha ") for mixture in mixtures)
    if by_alpha:
        mixtures = sorted(mixtures, key=lambda mixture: mixture["weights"][0])
    x = [mixture["weights"][0] if by_alpha else i for i, mixture in enumerate(mixtures)]
    line, dashes = ("-", "--") if by_alpha else ("", "")  # there is nothing between two sets of weights
    with styled():
        figure = Figure(figsize=(6.4, 3.8), layout="constrained", facecolor="white")
        axis = figure.subplots()
        for reward, colour in zip(found["rewards"], COLOURS * 2, strict=False):
            y = [mixture["rewards"][reward]["standardised"] for mixture in mixtures]
            error = [mixture["rewards"][reward]["error"] for mixture in mixtures]
            axis.errorbar(
                x, y, error, color=colour, label=readable(reward), marker="o", markersize=3.5, elinewidth=0.8, ls=line
            )
        average = [mixture["average"] for mixture in mixtures]
        axis.plot(x, average, color=INK, label="their average", marker="o", markersize=3.5, ls=dashes)
        axis.axhline(0, color=MUTED, linewidth=0.8)
        axis.set_ylabel("base model's deviations")
        axis.set_xlabel(_x_label(found) if by_alpha else "weights")
        if not by_alpha:
            axis.set_xticks(x, [mixture["name"].removeprefix("weights ") for mixture in mixtures], rotation=30)
        axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderpad=0, labelcolor=INK)
        for kind in ("png", "svg"):
            figure.savefig(folder / f"mix.{kind}", dpi=160, facecolor="white")


def _x_label(found: Mapping[str, Any]) -> str:
    names = [readable(Path(name).name) for name in found["adapters"]]
    rest = names[1] if len(names) > 1 else "the base model"
    return f"alpha, the weight of {names[0]}; the rest is {rest} ({found['mode']})"
