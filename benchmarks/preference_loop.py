"""From a labeler's comparisons to an aligned model, and round again: the figures of docs/results/preference-loop.md.

    PYTHONPATH=examples python benchmarks/preference_loop.py --work build/preference-loop [--seeds 0 1 2]

For each seed: images of the bundled model are ranked by a labeler with the utility of examples/hidden_taste.py; a
reward model is trained on the rankings (an ensemble of three, from the model's own U-Net); runs follow it, and their
evaluations say what the hidden utility of their images is, which no run sees. Then images of the first PPO run are
ranked too, and a second reward model is trained on all rankings. What is there already is not made again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hidden_taste import utility
from reward_models import label
from runs import records, run

from tastemaker.data.prompts import load_prompts
from tastemaker.labelling.create import Sampled, create_from_model
from tastemaker.labelling.project import open_project
from tastemaker.labelling.settings import Labelling
from tastemaker.labelling.sources import Recipe
from tastemaker.models import load_model
from tastemaker.models.adapter_files import find_adapter

PROMPTS, UNSEEN = "bundled-single-train", "bundled-single-test"
STEPS = 10
COMMON = [
    "--prompts", PROMPTS, "--evaluation.unseen", UNSEEN, "--evaluation.rewards", "hidden_taste:utility",
    "evaluation.every=2", "evaluation.prompts=16", "evaluation.per_prompt=4", f"sampling.steps={STEPS}",
    "sampling.samples=64", "sampling.per_prompt=4", "rounds=14", "checkpoint.every=100",
]  # fmt: skip
PPO = ["ppo-compressibility", "optimizer.lr=2e-3"]
"""The preset's value network is a copy of the policy's encoder with a new pool, whose rate is 1e-3."""
WARM = ["algorithm.value_from={rm}", "algorithm.value_lr=1e-4"]
ARMS: dict[str, Sequence[str]] = {
    "ppo": [*PPO, *WARM, "algorithm.kl=0", "--reward", "{rm}"],
    "ppo, new value network": [*PPO, "algorithm.kl=0", "--reward", "{rm}"],
    "ppo, KL penalty": [*PPO, *WARM, "algorithm.kl={kl}", "--reward", "{rm}"],
    "ppo, uncertainty": [*PPO, *WARM, "algorithm.kl=0", "--reward", "{rm}:penalty={penalty}"],
    "ddpo": ["ddpo-compressibility", "optimizer.lr=3e-3", "advantage.normalise=group", "--reward", "{rm}"],
}  # fmt: skip
KL, PENALTY = "10", "1"


def labels(folder: Path, seed: int, tasks: int, adapter: Path | None = None) -> Path:
    """A project of `tasks` tasks of five images, ranked by the hidden utility; 10 % of comparisons are wrong."""
    if not (folder / "labelled").is_file():
        model = load_model("bundled")
        if adapter is not None:
            model.weights.load(find_adapter(adapter))
        settings = Labelling("rank", 5, confirm=False, ties=False, both_bad=False, validation=0.25, seed=seed)
        recipe = Recipe(steps=STEPS, guidance=5.0, seed=seed)
        source = Sampled(model, load_prompts(PROMPTS).prompts, tasks, recipe, str(adapter or "bundled"))
        create_from_model(folder, settings, source)
        with open_project(folder) as project:
            label(project, seed, utility=lambda images, prompts: utility(images, prompts).tolist())
        (folder / "labelled").touch()
    return folder


def reward_model(folder: Path, sources: Sequence[Path], seed: int) -> dict[str, Any]:
    """Trains an ensemble on all projects; returns what its report says of its accuracy."""
    if not folder.is_dir():
        from tastemaker.reward_models.comparisons import load_several
        from tastemaker.reward_models.settings import Training
        from tastemaker.reward_models.train import train_reward_model
        from tastemaker.rewards.preferences.architecture import Architecture

        found = load_several([str(source) for source in sources])
        train_reward_model(
            found, Architecture("unet"), Training(seed=seed, members=3, bootstrap=True, curve=()), folder
        )
    return json.loads((folder / "reward_model.json").read_text())["training"]


def arm(work: Path, name: str, rm: Path, seed: int) -> Path:
    """A run of one of the arms."""
    words = [word.format(rm=rm, kl=KL, penalty=PENALTY) for word in ARMS[name]]
    stem = name.replace(", ", "-").replace(" ", "-").lower()
    return run(work / stem, [*words, *COMMON, "--seed", str(seed)])


def curve(folder: Path) -> dict[str, list[float]]:
    """What evaluations and rounds of a run measured."""
    rounds, evaluations = records(folder)
    names = {"reward": "eval/reward/mean", "hidden": "eval/rewards/hidden_taste:utility",
             "unseen": "eval/unseen/rewards/hidden_taste:utility", "correct": "eval/judge/correct",
             "diversity": "eval/diversity"}  # fmt: skip
    found = {short: [record[name] for record in evaluations] for short, name in names.items()}
    found["round"] = [record["evaluation"] for record in evaluations]
    explained = [record["value/explained_variance"] for record in rounds if "value/explained_variance" in record]
    return found | {"explained": explained}


def seed_runs(work: Path, seed: int, tasks: int, arms: Sequence[str]) -> dict[str, Any]:
    """Everything of one seed."""
    own = work / f"seed-{seed}"
    own.mkdir(parents=True, exist_ok=True)
    first = labels(own / "labels-1", seed, tasks)
    facts = {"reward model 1": reward_model(own / "rm-1", [first], seed)}
    found = {name: curve(arm(own, name, own / "rm-1", seed)) for name in arms}
    second = labels(own / "labels-2", seed + 100, tasks, own / "ppo")
    facts["reward model 2"] = reward_model(own / "rm-2", [first, second], seed)
    found["ppo, second iteration"] = curve(arm(own / "second", "ppo", own / "rm-2", seed))
    return {"facts": facts, "curves": found}
