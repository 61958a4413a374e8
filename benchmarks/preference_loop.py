"""From a labeler's comparisons to an aligned model, and round again: the figures of docs/results/preference-loop.md.

    PYTHONPATH=examples python benchmarks/preference_loop.py --work build/preference-loop [--seeds 0 1 2]

For each seed: images of the bundled model are ranked by a labeler with the utility of examples/hidden_taste.py; a
reward model is trained on the rankings (an ensemble of three, from the model's own U-Net or a CLIP); runs follow it,
and their evaluations say what the hidden utility of their images is, which no run sees. Then images of a run and of the
base model are ranked together by the same labeler (--images newest: those of the run alone), and a second reward model
is trained on all rankings, which a run follows, at a rate that falls to 0, from the base model (--start previous: from
where the first one ended). What is there already is not made again.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from figures import plain_axes
from hidden_taste import calm_on_yellow, parts, utility
from matplotlib.figure import Figure
from reward_models import Utility, labelled, trained, utilities
from running import publish, records, run

from tastemaker.data.images import read_image, to_tensor
from tastemaker.data.prompts import load_prompts
from tastemaker.labelling.create import Sampled
from tastemaker.labelling.project import open_project
from tastemaker.labelling.sources import Policy, Recipe
from tastemaker.models import load_model
from tastemaker.reward_models.settings import Training
from tastemaker.rewards.base import score
from tastemaker.rewards.preferences.architecture import Kind
from tastemaker.rewards.registry import load_reward

PROMPTS, UNSEEN = "bundled-single-train", "bundled-single-test"
STEPS = 10
COMMON = [
    "--prompts", PROMPTS, "--evaluation.unseen", UNSEEN, "--evaluation.rewards", "{utility}", "evaluation.every=4",
    "evaluation.prompts=32", "evaluation.per_prompt=4", f"sampling.steps={STEPS}", "sampling.samples=64",
    "sampling.per_prompt=4", "checkpoint.every=100",
]  # fmt: skip
ROUNDS = 28
PPO = ["ppo-compressibility", "optimizer.lr=2e-3"]
"""The preset's value network is a copy of the policy's encoder with a new pool, whose rate is 1e-3."""
WARM = ["algorithm.value_from={rm}", "algorithm.value_lr=1e-4"]
DDPO = ["ddpo-compressibility", "optimizer.lr=3e-3", "optimizer.lr_scheduler=linear", "advantage.normalise=group"]
ARMS: dict[str, Sequence[str]] = {
    "ppo": [*PPO, *WARM, "algorithm.kl=0", "--reward", "{rm}"],
    "ppo, new value network": [*PPO, "algorithm.kl=0", "--reward", "{rm}"],
    "ppo, KL penalty": [*PPO, *WARM, "algorithm.kl={kl}", "--reward", "{rm}"],
    "ppo, uncertainty": [*PPO, *WARM, "algorithm.kl=0", "--reward", "{rm}:penalty={penalty}"],
    "ddpo": [*DDPO, "--reward", "{rm}"],
    "ddpo, hidden utility": [*DDPO, "--reward", "{utility}"],
}  # fmt: skip
"""The last one has the hidden utility itself as the reward, to compare the others with."""
KL, PENALTY = "10", "1"
UTILITIES: dict[str, Utility] = {"hidden_taste:utility": utility, "hidden_taste:calm_on_yellow": calm_on_yellow}
BASE = Policy("bundled")
CENTER = 0.1
"""Of the reward models' `center_rewards_coefficient`."""


def labels(
    folder: Path, utility: Utility, seed: int, tasks: int, policies: Sequence[Policy] = (BASE,),
    like: Path | None = None, split_seed: int | None = None,
) -> Path:  # fmt: skip
    """A project of `tasks` tasks of five images of the policies in turn, ranked by a hidden utility.

    The labeler is that of the project `like`; without one, 10 % of comparisons are wrong. Projects with one
    `split_seed` set the same prompts apart for validation.
    """
    recipe, prompts = Recipe(steps=STEPS, guidance=5.0, seed=seed), load_prompts(PROMPTS).prompts
    noise = None if like is None else float((like / "labelled").read_text())
    sampled = Sampled(load_model("bundled"), prompts, tasks, recipe, "bundled", policies=policies)
    labelled(folder, sampled, utility, noise, split_seed)
    return folder


def reward_model(
    folder: Path, sources: Sequence[Path], seed: int, kind: Kind, center: float, refit: bool
) -> dict[str, Any]:
    """Trains an ensemble on all projects; returns what its report says of its accuracy."""
    training = Training(seed=seed, members=3, curve=(), center_rewards_coefficient=center, refit=refit)
    trained(folder, sources, kind, training)
    return json.loads((folder / "reward_model.json").read_text())["training"]


def arm(work: Path, name: str, utility_name: str, rm: Path, seed: int, *more: str) -> Path:
    """A run of one of the arms; `utility_name` is the hidden one's."""
    words = [word.format(rm=rm, utility=utility_name, kl=KL, penalty=PENALTY) for word in (*ARMS[name], *COMMON)]
    stem = name.replace(", ", "-").replace(" ", "-").lower()
    return run(work / stem, [*words, f"rounds={ROUNDS}", "--seed", str(seed), *more])


def curve(folder: Path, utility_name: str, before: int = 0) -> dict[str, list[float]]:
    """What evaluations and rounds of a run measured, which began after so many rounds of another one."""
    rounds, evaluations = records(folder)
    evaluated = f"rewards/{utility_name}"
    hidden = evaluated if f"eval/{evaluated}" in evaluations[0] else "reward/mean"
    names = {"reward": "eval/reward/mean", "hidden": f"eval/{hidden}", "unseen": f"eval/unseen/{hidden}",
             "correct": "eval/judge/correct", "diversity": "eval/diversity"}  # fmt: skip
    found = {short: [record[name] for record in evaluations] for short, name in names.items()}
    found["round"] = [before + record["evaluation"] for record in evaluations]
    explained = [record["value/explained_variance"] for record in rounds if "value/explained_variance" in record]
    return found | {"explained": explained}


def seed_runs(work: Path, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything of one seed."""
    tasks, images, kind, center = arguments.tasks, arguments.images, arguments.kind, arguments.center
    short = arguments.first_rounds
    refit, utility_name = arguments.all_labels, arguments.utility
    utility = UTILITIES[utility_name]
    own = work / f"seed-{seed}"
    own.mkdir(parents=True, exist_ok=True)
    first = labels(own / "labels-1", utility, seed, arguments.first_tasks or tasks)
    if kind != "unet" or refit:
        own = own / (kind + "-all-labels" * refit)
        own.mkdir(exist_ok=True)
    models = {"first": reward_model(own / "rm-1", [first], seed, kind, center, refit)}
    more = [*arguments.settings, *([f"rounds={arguments.rounds}"] if arguments.rounds != ROUNDS else [])]
    runs = own / ",".join(more)
    runs.mkdir(exist_ok=True)
    found = {}
    for name in arguments.arms:
        found[name] = curve(arm(runs, name, utility_name, own / "rm-1", seed, *more), utility_name)
    if arguments.control:
        together = (arguments.first_tasks or tasks) + tasks
        control = labels(own / "labels-control", utility, seed, together)
        models["control"] = reward_model(own / "rm-control", [control], seed, kind, center, refit)
        (runs / "control").mkdir(exist_ok=True)
        for name in arguments.control:
            run = arm(runs / "control", name, utility_name, own / "rm-control", seed, *more)
            found[f"{name}, {together} tasks at once"] = curve(run, utility_name)
    for name in arguments.again:
        again = runs / f"{name}-again-{images}{f'-{short}' if short else ''}".replace(", ", "-").replace(" ", "-")
        again.mkdir(exist_ok=True)
        if short:
            shorter = [f"rounds={short}", "optimizer.lr_scheduler=constant"]
            run = arm(again / "first", name, utility_name, own / "rm-1", seed, *more, *shorter)
        else:
            run = arm(runs, name, utility_name, own / "rm-1", seed, *more)
        policies = [Policy(name, run), BASE][: 1 if images == "newest" else 2]
        second = labels(again / "labels", utility, seed + 100, tasks, policies, first, seed if refit else None)
        models[name] = reward_model(again / "rm", [first, second], seed, kind, center, refit)
        start = [f"tuning.start_from={run}"] if arguments.start == "previous" else []
        place = again / "-".join(["going-on" if start else "from-base", *map(_file_name, arguments.again_settings)])
        later = [word.format(rm=again / "rm") for word in arguments.again_settings]
        rounds = arguments.rounds - short if start else arguments.rounds
        left = [*start, "optimizer.lr_scheduler=linear", f"rounds={rounds}", *later]
        run = arm(place, name, utility_name, again / "rm", seed, *more, *left)
        found[f"{name}, second iteration"] = curve(run, utility_name, short if start else 0)
    return {"accuracy": {name: one["validation_accuracy"] for name, one in models.items()}, "curves": found}


def _file_name(setting: str) -> str:
    """A setting as a part of a folder's name."""
    return setting.replace("{rm}", "rm").replace("/", "-")


def base_deviation(work: Path, seeds: Sequence[int], utility: Utility) -> float:
    """The standard deviation of a hidden utility over the base model's labelled images, all seeds together."""
    found: list[float] = []
    for seed in seeds:
        with open_project(work / f"seed-{seed}" / "labels-1") as project:
            found += utilities(project, utility).values()
    return statistics.pstdev(found)


def early_stop(correct: Sequence[float]) -> int:
    """The evaluation whose model `early_stop.metric=judge/correct early_stop.min_delta=0.1` would keep.

    correct: judge/correct at each evaluation. The hidden utility has no part in it.
    """
    for index, value in enumerate(correct):
        if value < max(correct[: index + 1]) - 0.1:
            return index - 1
    return len(correct) - 1


def table(results: dict[int, dict[str, Any]], deviation: float) -> list[dict[str, Any]]:
    """For each arm what was reached, in standard deviations of the base model's images: mean over seeds."""
    rows = []
    for name in dict.fromkeys(name for one in results.values() for name in one["curves"]):
        curves = [one["curves"][name] for one in results.values() if name in one["curves"]]

        def gains(key: str, name: str = name) -> list[list[float]]:
            """Above the base model, with which the first runs begin."""
            return [
                [(value - next(iter(one["curves"].values()))[key][0]) / deviation for value in one["curves"][name][key]]
                for one in results.values() if name in one["curves"]
            ]  # fmt: skip

        hidden, unseen = gains("hidden"), gains("unseen")
        best = [max(range(len(one)), key=one.__getitem__) for one in hidden]
        kept = [early_stop(one["correct"]) for one in curves]
        explained = [statistics.mean(one["explained"][1:]) for one in curves if one["explained"]]
        rows.append({
            "arm": name, "seeds": len(curves), "best": [round(max(one), 2) for one in hidden],
            "round of the best": [one["round"][index] for one, index in zip(curves, best, strict=True)],
            "end": [round(one[-1], 2) for one in hidden], "unseen at the best": [
                round(one[index], 2) for one, index in zip(unseen, best, strict=True)
            ],
            "unseen at the end": [round(one[-1], 2) for one in unseen],
            "round of early_stop": [one["round"][index] for one, index in zip(curves, kept, strict=True)],
            "early_stop": [round(one[index], 2) for one, index in zip(hidden, kept, strict=True)],
            "unseen at early_stop": [round(one[index], 2) for one, index in zip(unseen, kept, strict=True)],
            "shows the prompt at early_stop": [
                round(one["correct"][index], 2) for one, index in zip(curves, kept, strict=True)
            ],
            "learned reward at the end": [round(one["reward"][-1], 2) for one in curves],
            "shows the prompt at the end": [round(one["correct"][-1], 2) for one in curves],
            "returns explained": [round(value, 2) for value in explained],
        })  # fmt: skip
    return rows


def plot(results: dict[int, dict[str, Any]], deviation: float, out: Path) -> None:
    """Learned reward and hidden utility by round, an arm a panel: thin lines are seeds, thick ones their mean.

    Learned rewards are standardised by the base model's images already.
    """
    names = list(dict.fromkeys(name for one in results.values() for name in one["curves"]))
    columns = 2 if len(names) == 4 else min(len(names), 3)
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3.7 * columns, 3.3 * rows + 0.3), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for axis, name in zip(axes, names, strict=False):
        curves = [one["curves"][name] for one in results.values() if name in one["curves"]]
        for key, colour, text in (
            ("reward", "#0072b2", "learned reward"), ("hidden", "#d55e00", "hidden utility"),
            ("unseen", "#e69f00", "hidden utility, unseen prompts"),
        ):  # fmt: skip
            if key == "reward" and curves[0]["reward"] == curves[0]["hidden"]:
                continue  # the reward is the utility itself
            unit = 1.0 if key == "reward" else deviation
            zero = [
                0.0 if key == "reward" else next(iter(one["curves"].values()))[key][0]
                for one in results.values() if name in one["curves"]
            ]  # fmt: skip
            lines = [[(value - base) / unit for value in one[key]] for one, base in zip(curves, zero, strict=True)]
            for line in lines:
                axis.plot(curves[0]["round"], line, color=colour, alpha=0.25, linewidth=0.8)
            mean = [statistics.mean(column) for column in zip(*lines, strict=True)]
            axis.plot(curves[0]["round"], mean, color=colour, linewidth=2, label=text)
        axis.set_title(name, fontsize=10)
        plain_axes(axis)
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    axes[0].legend(fontsize=7, loc="upper left")
    figure.supxlabel("rounds of 64 images", fontsize=9)
    figure.supylabel("above the base model, in its standard deviations", fontsize=9)
    figure.savefig(out.with_suffix(".png"), dpi=110)


def print_parts(runs: Sequence[Path]) -> None:
    """The parts of the hidden utility at each evaluation of runs, means over the images of the trained prompts."""
    for path in runs:
        print(path)
        for folder in sorted(path.glob("samples/round-*")):
            listed = json.loads((folder / "samples.json").read_text())["samples"]
            images = torch.stack([to_tensor(read_image(folder / one["file"], one["file"])) for one in listed])
            found = parts(images, [one["prompt"] for one in listed])
            print(folder.name, " ".join(f"{name} {values.mean().item():.2f}" for name, values in found.items()))


def print_weights(folder: Path, projects: Sequence[Path]) -> None:
    """What a reward model gives for each part of the hidden utility, whose own weights are 1, relative to the ground's:
    least squares over all images of each project."""
    model, reward = load_model("bundled"), load_reward(str(folder))
    for path in projects:
        names: list[str] = []
        rows: list[torch.Tensor] = []
        rewards: list[torch.Tensor] = []

        def both(
            images: torch.Tensor, prompts: list[str], names: list[str] = names,
            rows: list[torch.Tensor] = rows, rewards: list[torch.Tensor] = rewards,
        ) -> list[float]:  # fmt: skip
            found = parts(images, prompts)
            names[:] = found
            rows.append(torch.stack([*found.values(), torch.ones(len(images))], dim=1))
            for part in torch.arange(len(images)).split(64):
                own = [prompts[index] for index in part.tolist()]
                rewards.append(score(reward, images[part], own, model.encode_images(images[part])).total)
            return [0.0] * len(images)

        with open_project(path) as project, torch.no_grad():
            utilities(project, both)
        weights = torch.linalg.lstsq(torch.cat(rows).double(), torch.cat(rewards).double()[:, None]).solution[:, 0]
        relative = (weights[:-1] / weights[0]).tolist()
        print(folder, path, dict(zip(names, [round(one, 2) for one in relative], strict=True)))


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/preference-loop"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/preference-loop"))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--utility", default="hidden_taste:utility", choices=list(UTILITIES), help="the hidden one")
    parser.add_argument("--tasks", type=int, default=320, help="that are labelled in each iteration")
    parser.add_argument("--first-tasks", type=int, default=0, help="of the first one, where not as many")
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--kind", default="unet", choices=["unet", "clip", "head"], help="of reward models")
    parser.add_argument(
        "--all-labels", action="store_true",
        help="projects set the same prompts apart, and reward models are trained again with these",
    )  # fmt: skip
    parser.add_argument("--images", default="mixed", choices=["mixed", "newest"])
    parser.add_argument("--again", nargs="*", default=["ppo", "ddpo"], help="arms with a second iteration")
    parser.add_argument(
        "--control", nargs="*", default=[],
        help="arms with one iteration that has the tasks of both, all of the base model's images",
    )  # fmt: skip
    parser.add_argument("--start", default="base", choices=["base", "previous"], help="of a second iteration")
    parser.add_argument("--first-rounds", type=int, default=0, help="of the run that a second iteration goes on from")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of both iterations together, and of one alone")
    parser.add_argument("--settings", nargs="*", default=[], help="of all runs, over those of their arms")
    parser.add_argument(
        "--again-settings", nargs="*", default=[], metavar="SETTING",
        help="of second iterations' runs, over those; {rm} is their reward model",
    )  # fmt: skip
    parser.add_argument("--center", type=float, default=CENTER, help="the reward models' center_rewards_coefficient")
    parser.add_argument("--parts", type=Path, nargs="*", metavar="RUN", help="only print the parts of their utility")
    parser.add_argument(
        "--weights", type=Path, nargs="*", metavar="PATH",
        help="only print what a reward model, the first one, gives for the parts in the images of the other, projects",
    )  # fmt: skip
    args = parser.parse_args()
    if args.weights:
        return print_weights(args.weights[0], args.weights[1:])
    if args.parts:
        return print_parts(args.parts)
    results = {seed: seed_runs(args.work, seed, args) for seed in args.seeds}
    deviation = base_deviation(args.work, args.seeds, UTILITIES[args.utility])
    plot(results, deviation, args.out)
    publish(
        {
            "base deviation of the hidden utility": round(deviation, 3),
            "accuracy": {seed: one["accuracy"] for seed, one in results.items()},
            "arms": table(results, deviation), "curves": {seed: one["curves"] for seed, one in results.items()},
        },
        args.out,
    )  # fmt: skip


if __name__ == "__main__":
    main()
