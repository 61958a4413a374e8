"""The thesis' first two experiments, scaled down to minutes on a laptop: the figure of docs/results/thesis.md.

    python benchmarks/thesis.py [--work build/thesis] [--out docs/results/thesis] [--only target,colour]

PPO with a value network and the divergence in the reward, as in Table 6.2: a model of one digit towards one image of
it, and a class-conditional model towards colourfulness. Learning rates are 100 to 1000 times the table's, for a
thirtieth and a tenth of its rounds. Two runs at a time, one thread each. A run that is there already is not made again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image
from running import publish, records, run_all

from tastemaker.evaluation.images import contact_sheet

MODELS = Path(__file__).parent / "models"
COMMON = [
    "optimizer.lr=1e-4", "optimizer.warmup=16", "optimizer.updates=8", "optimizer.first_share=0.9",
    "algorithm.value=conv", "algorithm.value_lr=1e-3", "algorithm.value_warmup=0", "advantage.normalise=base",
    "checkpoint.every=50", "evaluation.every=12",
]  # fmt: skip
EXPERIMENTS = {
    "target": [
        "thesis-target", "--model", str(MODELS / "digits"), "--prompts", "none",
        "--reward", f"target-image:{MODELS / 'four.png'}", "--rounds", "96", "sampling.per_prompt=32",
        "evaluation.prompts=1", "evaluation.per_prompt=32", "optimizer.rows=50",
    ],
    "colour": [
        "thesis-colour", "--model", str(MODELS / "drawn32"), "--prompts", "bundled-kinds", "--reward", "colourfulness",
        "--rounds", "40", "sampling.steps=20", "sampling.per_prompt=4", "evaluation.prompts=8",
        "evaluation.per_prompt=4", "optimizer.rows=40",
    ],
}  # fmt: skip


def plot(folders: dict[str, Path], out: Path) -> dict[str, dict[str, float]]:
    """Reward and divergence by round, and the first and last evaluation images; returns the last figures."""
    figure = Figure(figsize=(11, 3.4 * len(folders)), layout="constrained")
    axes = figure.subplots(len(folders), 3, squeeze=False, width_ratios=[1.3, 1, 1])
    table = {}
    for (name, folder), (curve, before, after) in zip(folders.items(), axes, strict=True):
        rounds, evaluations = records(folder)
        curve.plot([r["round"] for r in rounds], [r["reward/base_stds"] for r in rounds], color="#0b6e99")
        curve.set(xlabel="rounds of 32 images", ylabel="reward, in base standard deviations", title=name)
        curve.grid(alpha=0.25)
        curve.spines[["top", "right"]].set_visible(False)
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
            "diversity before": round(evaluations[0]["eval/diversity"], 3),
            "diversity after": round(last["eval/diversity"], 3),
            "divergence of a trajectory, nats": round(rounds[-1]["kl"] * rounds[-1]["window"], 2),
            "minutes": round(sum(r["seconds/round"] for r in rounds) / 60, 1),
        }  # fmt: skip
    figure.savefig(out.with_suffix(".png"), dpi=110)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/thesis"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/thesis"))
    parser.add_argument("--only", default=",".join(EXPERIMENTS), help="comma-separated experiments")
    arguments = parser.parse_args()
    runs = {name: (arguments.work / name, [*EXPERIMENTS[name], *COMMON]) for name in arguments.only.split(",")}
    table = plot(run_all(runs), arguments.out)
    publish(table, arguments.out)


if __name__ == "__main__":
    main()
