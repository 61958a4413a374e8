"""The thesis' seven experiments, scaled down to minutes on a laptop: the figure of docs/results/thesis.md.

    python benchmarks/thesis.py [--work build/thesis] [--out docs/results/thesis] [--only 1,2]

All are runs of the thesis' presets (Table 6.2) on small models. Learning rates are 100 to 1000 times the table's, for a
tenth of its rounds or fewer. Experiments 4 and 5 follow a reward model of one person, who likes warm colours:
120 tasks of five images of the model, ranked with one comparison in ten wrong. Experiment 6 follows a reward model of
kind `unet`, as which its value network begins, trained on as many rankings by the utility of examples/hidden_taste.py.
Two runs at a time, one thread each (--lanes). What is there already is not made again.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from figures import plain_axes
from matplotlib.figure import Figure
from PIL import Image
from reward_models import Utility, labelled, trained
from running import publish, records, run_all

from tastemaker.data.prompts import load_prompts
from tastemaker.evaluation.images import contact_sheet
from tastemaker.labelling.create import Sampled
from tastemaker.labelling.sources import Recipe
from tastemaker.models import load_model
from tastemaker.reward_models.settings import Training
from tastemaker.rewards.preferences.architecture import Kind

MODELS = Path(__file__).parent / "models"
EXAMPLES = Path(__file__).parents[1] / "examples"
DRAWN = ["--model", str(MODELS / "drawn32"), "--prompts", "bundled-kinds"]
LATENT = ["--model", "bundled", "--prompts", "bundled-single-train", "--evaluation.unseen", "bundled-single-test",
          "evaluation.hold_out=false"]  # fmt: skip
PPO = [
    "optimizer.lr_scheduler=constant", "optimizer.step_rules=", "optimizer.lr=1e-4", "optimizer.warmup=16",
    "optimizer.updates=8", "optimizer.first_share=0.9", "algorithm.value_lr=1e-3", "algorithm.value_warmup=0",
    "advantage.normalise=base",
]  # fmt: skip
EIGHT = ["sampling.steps=20", "sampling.samples=32", "sampling.per_prompt=4", "evaluation.prompts=8",
         "evaluation.per_prompt=4", "optimizer.rows=40"]  # fmt: skip
COMMON = ["checkpoint.every=50", "precision=fp32"]
EXPERIMENTS = {
    "1 target image": [
        "thesis-target", "--model", str(MODELS / "digits"), "--prompts", "none",
        "--reward", f"target-image:{MODELS / 'four.png'}", "--rounds", "96", "sampling.per_prompt=32",
        "evaluation.prompts=1", "evaluation.per_prompt=32", *PPO, "optimizer.rows=50", "algorithm.value=conv",
        "evaluation.every=12",
    ],
    "2 colourfulness": [
        "thesis-colour", *DRAWN, "--reward", "colourfulness", "--rounds", "40", *PPO, *EIGHT, "algorithm.value=conv",
        "evaluation.every=12",
    ],
    "3 aesthetic quality": [
        "thesis-aesthetic", *DRAWN, "--reward", "aesthetic", "--rounds", "24", *PPO, *EIGHT, "evaluation.every=6",
    ],
    "4 one person": [
        "thesis-macaw", *DRAWN, "--reward", "{person}", "--evaluation.rewards", "hidden_taste:warmth", "--rounds", "24",
        *PPO, *EIGHT, "evaluation.every=6",
    ],
    "5 backpropagation": [
        "thesis-backprop", *DRAWN, "--reward", "{person}", "--evaluation.rewards", "hidden_taste:warmth", "--rounds",
        "24", "optimizer.lr=1e-4", "optimizer.warmup=4", *EIGHT, "optimizer.rows=4", "evaluation.every=6",
    ],
    "6 reward model": [
        "thesis-pink", *LATENT, "--reward", "{taste}", "--algorithm.value-from", "{taste}", "--evaluation.rewards",
        "hidden_taste:utility", "--rounds", "16", *PPO, *EIGHT, "sampling.steps=10", "evaluation.every=4",
        "evaluation.prompts=16",
    ],
    "7 text and image": [
        "thesis-pickscore", *LATENT, "--reward", "clip-score", "--rounds", "16", *PPO, *EIGHT, "sampling.steps=10",
        "evaluation.every=4", "evaluation.prompts=16",
    ],
}  # fmt: skip
TASKS = 120
"""Of the simulated labelers."""


def reward_models(work: Path, chosen: list[str]) -> dict[str, Path]:
    """Those that the chosen experiments follow, by name."""
    from hidden_taste import utility as taste
    from hidden_taste import warmth

    recipes: dict[str, tuple[str, str, Recipe, Utility, Kind]] = {
        "person": (str(MODELS / "drawn32"), "bundled-kinds", Recipe(steps=20, guidance=1.0), warmth, "clip"),
        "taste": ("bundled", "bundled-single-train", Recipe(steps=10, guidance=5.0), taste, "unet"),
    }
    made: dict[str, Path] = {}
    for name, (model, prompts, recipe, utility, kind) in recipes.items():
        if any(f"{{{name}}}" in EXPERIMENTS[experiment] for experiment in chosen):
            labels = work / f"{name}-labels"
            labelled(labels, Sampled(load_model(model), load_prompts(prompts).prompts, TASKS, recipe, model), utility)
            made[name] = trained(work / name, [labels], kind, Training(seed=0, curve=()))
    return made


def plot(folders: dict[str, Path], out: Path) -> dict[str, dict[str, float]]:
    """Reward and divergence by round, and the first and last evaluation images; returns the last figures."""
    figure = Figure(figsize=(11, 3.4 * len(folders)), layout="constrained")
    axes = figure.subplots(len(folders), 3, squeeze=False, width_ratios=[1.3, 1, 1])
    table = {}
    for (name, folder), (curve, before, after) in zip(folders.items(), axes, strict=True):
        rounds, evaluations = records(folder)
        curve.plot([r["round"] for r in rounds], [r["reward/base_stds"] for r in rounds], color="#0b6e99")
        curve.set(xlabel="rounds of 32 images", ylabel="reward, in base standard deviations", title=name)
        plain_axes(curve)
        grids = sorted((folder / "samples").glob("round-*"))
        for axis, grid, title in ((before, grids[0], "before"), (after, grids[-1], "after")):
            axis.imshow(contact_sheet([Image.open(path) for path in sorted(grid.glob("*.png"))], columns=8))
            axis.set(title=title)
            axis.set_axis_off()
        last = evaluations[-1]
        table[name] = {
            "rounds": rounds[-1]["round"], "queries": rounds[-1]["reward_queries"],
            "before": round(evaluations[0]["eval/reward/mean"], 3), "after": round(last["eval/reward/mean"], 3),
            "base stds": round(last["eval/reward/base_stds"], 2),
            "base stds, best": round(max(e["eval/reward/base_stds"] for e in evaluations), 2),
            **hidden(evaluations), "diversity before": round(evaluations[0]["eval/diversity"], 3),
            "diversity after": round(last["eval/diversity"], 3),
            **({"divergence of a trajectory, nats": round(rounds[-1]["kl"] * rounds[-1]["window"], 2)}
               if "kl" in rounds[-1] else {}),
            "minutes": round(sum(r["seconds/round"] for r in rounds) / 60, 1),
        }  # fmt: skip
    figure.savefig(out.with_suffix(".png"), dpi=110)
    return table


def hidden(evaluations: list[dict[str, Any]]) -> dict[str, list[float]]:
    """What the reward model stands for, at each evaluation, where it is measured."""
    names = [name for name in evaluations[0] if name.startswith("eval/rewards/")]
    return {name: [round(one[name], 3) for one in evaluations] for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/thesis"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/thesis"))
    parser.add_argument("--only", default="1,2,3,4,5,6,7", help="experiments, with commas between them")
    parser.add_argument("--lanes", type=int, default=2, help="runs at a time")
    arguments = parser.parse_args()
    numbers = arguments.only.split(",")
    chosen = [name for name in EXPERIMENTS if name.split()[0] in numbers]
    if len(chosen) < len(numbers):
        parser.error(f"--only is {arguments.only}, but has to be numbers from 1 to 7 with commas between them")
    sys.path.insert(0, str(EXAMPLES))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(EXAMPLES), os.environ.get("PYTHONPATH", "")])
    arguments.work.mkdir(parents=True, exist_ok=True)
    models = reward_models(arguments.work, chosen)
    runs = {
        name: (
            arguments.work / name.replace(" ", "-"),
            [*(word.format(**models) for word in EXPERIMENTS[name]), *COMMON],
        )
        for name in chosen
    }
    table = plot(run_all(runs, arguments.lanes), arguments.out)
    publish(table, arguments.out)


if __name__ == "__main__":
    main()
