"""Reward models of all kinds on comparisons by a labeler with a hidden utility (docs/results/reward-models.md).

    python benchmarks/reward_models.py label --out build/labels
    python benchmarks/reward_models.py train build/labels --out build/reward-models
    python benchmarks/reward_models.py label --model bundled-flow --out build/labels-flow
    python benchmarks/reward_models.py train build/labels-flow --model bundled-flow --network transformer
    python benchmarks/reward_models.py guidance --out build/guidance

`label` samples tasks of five images with the bundled model and ranks them by a utility of what the judge sees in an
image (its ground, its pattern, the size of its object, and whether it shows its prompt), with logistic noise. `train`
trains reward models on 25, 50, ... of these tasks and prints, for tasks of prompts that were not trained on, how often
they agree with the labeler's comparisons and with the utility itself. `guidance` labels images of two objects in a
relation by how much of the prompt they show, and prints how far rewards depend on the prompt with classifier-free
reward guidance of several weights.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import sqlalchemy as sa
import torch

from tastemaker.data.images import read_image, to_tensor
from tastemaker.data.prompts import load_prompts
from tastemaker.drawings.judge import judge, see
from tastemaker.labelling.assignments import claim
from tastemaker.labelling.create import Sampled, create_from_model
from tastemaker.labelling.image_files import image_path
from tastemaker.labelling.judgements import save
from tastemaker.labelling.project import Project, open_project
from tastemaker.labelling.ranking import Judgement, left_right, state
from tastemaker.labelling.settings import Labelling
from tastemaker.labelling.sources import Recipe
from tastemaker.labelling.tables import ImageRow, Prompt, Task, TaskImage, User
from tastemaker.models import load_model
from tastemaker.reward_models.comparisons import load_several
from tastemaker.reward_models.settings import Training
from tastemaker.reward_models.train import train_reward_model
from tastemaker.rewards.preferences.architecture import Architecture, Kind

GROUND = {"white": 1.0, "yellow": 0.7, "orange": 0.4, "red": 0.1, "green": -0.1, "blue": -0.4, "purple": -0.7,
          "black": -1.0}  # fmt: skip
"""What each ground is worth: light and warm ones are preferred."""
FLIPPED = 0.1
"""Share of single comparisons of two random images of a task that the labeler gets wrong."""


def utility(images: torch.Tensor, prompts: list[str]) -> list[float]:
    """The hidden utility of images [B,3,H,W] in [0,1] of the bundled model's world."""
    scenes, verdicts = see(images), judge(images, prompts)
    found = []
    for scene, verdict in zip(scenes, verdicts, strict=True):
        size = max((thing.radius for thing in scene.things), default=0.0)
        correct = verdict is not None and verdict.correct
        pattern = {"plain": 0.0, "striped": -0.6, "checkered": -0.9}[scene.pattern]
        found.append(GROUND[scene.ground] + pattern + 8 * (size - 0.31) + 1.5 * correct)
    return found


Utility = Callable[[torch.Tensor, list[str]], Sequence[float] | torch.Tensor]
"""Of images [B,3,H,W] in [0,1] with their prompts."""


def utilities(project: Project, utility: Utility = utility) -> dict[tuple[str, str], float]:
    """The utility of each image with its prompt, by SHA-256 and prompt."""
    with project.database.read() as session:
        rows = session.execute(
            sa.select(TaskImage.sha256, Prompt.text)
            .join(Task, Task.id == TaskImage.task_id)
            .join(Prompt, Prompt.id == Task.prompt_id)
        ).all()
    keys = list(dict.fromkeys((sha256, prompt) for sha256, prompt in rows))
    pixels = torch.stack([to_tensor(read_image(image_path(project.folder, sha), sha)) for sha, _ in keys])
    found = torch.as_tensor(utility(pixels, [prompt for _, prompt in keys]), dtype=torch.float64)
    return dict(zip(keys, found.tolist(), strict=True))


def temperature(groups: list[list[float]], flipped: float) -> float:
    """The scale of logistic noise at which this share of the pairs within groups is ordered wrongly."""
    gaps = [abs(a - b) for group in groups for i, a in enumerate(group) for b in group[:i] if a != b]
    low, high = 1e-3, 1e3
    for _ in range(60):
        middle = math.sqrt(low * high)
        wrong = statistics.mean(1 / (1 + math.exp(min(gap / middle, 700))) for gap in gaps)
        low, high = (middle, high) if wrong < flipped else (low, middle)
    return low


def label(
    project: Project, seed: int, flipped: float = FLIPPED, utility: Utility = utility, noise: float | None = None
) -> float:
    """Ranks all tasks of a project by the hidden utility with logistic noise, whose scale is returned.

    It is `noise`, or else that at which `flipped` of the pairs within tasks are ordered wrongly.
    """
    rng, worth = random.Random(seed), utilities(project, utility)
    with project.database.write() as session:
        user = User(name="hidden utility", role="labeler", password_hash=None, disabled=False, keys={}, created=0.0)
        session.add(user)
        session.flush()
        number = user.id
        by_task: dict[int, list[float]] = {}
        for task, sha256, prompt in session.execute(
            sa.select(TaskImage.task_id, TaskImage.sha256, Prompt.text)
            .join(Task, Task.id == TaskImage.task_id)
            .join(Prompt, Prompt.id == Task.prompt_id)
        ):
            by_task.setdefault(task, []).append(worth[sha256, prompt])
    noise = temperature(list(by_task.values()), flipped) if noise is None else noise
    while True:
        with project.database.write() as session:
            assigned = claim(session, project.settings, number, 20, time.time())
            for one in assigned:
                log: list[Judgement] = []
                while not (found := state(project.settings, one.presentation, log)).complete:
                    assert found.question is not None
                    left, right = left_right(found.question, one.presentation, one.sides)
                    gap = worth[one.images[left], one.prompt] - worth[one.images[right], one.prompt]
                    better = rng.random() < 1 / (1 + math.exp(-gap / noise)) if gap else rng.random() < 0.5
                    name = str(uuid.UUID(int=rng.getrandbits(128), version=4))
                    log.append(Judgement(name, "compare", left, right, "left" if better else "right"))
                for receipt in save(session, project.settings, number, [(one.id, j) for j in log], time.time()):
                    assert receipt.status == "saved", receipt
        if not assigned:
            return noise


def rankings(folder: Path, source: Sampled, validation: float = 0.25, split_seed: int | None = None) -> None:
    """A labelling project of rankings of five images, without ties, which nobody has labelled yet.

    `split_seed` says which prompts are set apart for validation; without one, the seed of the images does.
    """
    seed = source.recipe.seed if split_seed is None else split_seed
    settings = Labelling("rank", 5, confirm=False, ties=False, both_bad=False, validation=validation, seed=seed)
    create_from_model(folder, settings, source)


def labelled(
    folder: Path, source: Sampled, utility: Utility, noise: float | None = None, split_seed: int | None = None
) -> float:
    """`rankings` by the hidden utility with noise as `label` takes and returns it; made once."""
    done = folder / "labelled"
    if not done.is_file():
        rankings(folder, source, split_seed=split_seed)
        with open_project(folder) as project:
            noise = label(project, source.recipe.seed, utility=utility, noise=noise)
        done.write_text(str(noise))
    return float(done.read_text())


def trained(folder: Path, projects: Sequence[Path], kind: Kind, training: Training) -> Path:
    """The folder of a reward model of all labels of these projects; made once."""
    if not folder.is_dir():
        architecture = Architecture(kind, hidden=64 if kind == "head" else 0)
        train_reward_model(load_several([str(project) for project in projects]), architecture, training, folder)
    return folder


def run_label(args: argparse.Namespace) -> None:
    """Makes the labelling project."""
    source = Sampled(
        load_model(args.model), load_prompts(args.prompts).prompts, args.tasks,
        Recipe(steps=args.steps, guidance=5.0, seed=args.seed), args.model,
    )  # fmt: skip
    rankings(args.out, source, args.validation)
    with open_project(args.out) as project:
        label(project, args.seed, args.flipped)
        with project.database.read() as session:
            images = session.scalar(sa.select(sa.func.count()).select_from(ImageRow))
    print(f"{args.out}: {args.tasks} tasks of 5, {images} images")


def run_train(args: argparse.Namespace) -> None:
    """Trains and prints a table."""
    from tastemaker.reward_models.comparisons import load_comparisons
    from tastemaker.reward_models.features import compute
    from tastemaker.reward_models.fit import fit, predictions, rewards_of, subset
    from tastemaker.reward_models.statistics import Predictions, accuracy
    from tastemaker.rewards.preferences.backbones import load_backbone
    from tastemaker.rewards.preferences.heads import new_head

    network, blocks = args.network, args.blocks
    kinds = {
        network: Architecture(network, args.model, blocks=blocks),
        "clip": Architecture("clip", layers=args.layers),
        "head on clip": Architecture("head", hidden=args.hidden),
        f"head on {network}": Architecture("head", args.model, features=network, blocks=blocks, hidden=args.hidden),
    }  # fmt: skip
    found = load_comparisons(str(args.project))
    with open_project(args.project) as project:
        worth = utilities(project)
    names = [Path(source.value).stem for source in found.images]
    true = [[worth[names[image], task.prompt] for image in task.images] for task in found.validation]
    every = [[worth[names[image], task.prompt] for image in task.images] for task in found.tasks]
    agreed = [
        (pair.better > 0.5) == (group[pair.a] > group[pair.b])
        for task, group in zip(found.tasks, every, strict=True)
        for pair in task.pairs
        if group[pair.a] != group[pair.b]
    ]
    print(f"{len(found.training)} training and {len(found.validation)} validation tasks; the labels agree with the "
          f"utility on {statistics.mean(agreed):.1%} of the pairs", flush=True)  # fmt: skip
    results = []
    print("| model | tasks | labels | hidden utility | best epoch | seconds |\n|---|---|---|---|---|---|")
    for name, architecture in kinds.items():
        if args.kinds and name not in args.kinds:
            continue
        backbone = load_backbone(architecture)
        features = compute(found, backbone, dropped=False)
        for count in [*(n for n in args.counts if n < len(found.training)), len(found.training)]:
            rows = []
            for seed in args.seeds:
                began = time.perf_counter()
                settings = Training(seed=seed, epochs=args.epochs, lr=args.lr, patience=args.patience)
                tasks = subset(found.training, count, seed)
                made = fit(new_head(architecture, backbone, seed), features, tasks, found.validation, settings,
                           settings.rate(architecture.kind), seed)  # fmt: skip
                rewards = rewards_of(made.head, features, found.validation)
                noisy = accuracy(predictions(rewards, found.validation))
                hidden = predictions(rewards, found.validation)
                better = np.array([
                    0.5 if a == b else float(a > b)
                    for task, group in zip(found.validation, true, strict=True)
                    for a, b in ((group[pair.a], group[pair.b]) for pair in task.pairs)
                ])  # fmt: skip
                truth = accuracy(Predictions(hidden.probability, better, hidden.cluster))
                assert noisy is not None
                assert truth is not None
                rows.append((noisy.value, truth.value, made.epoch, time.perf_counter() - began))
            mean = [statistics.mean(column) for column in zip(*rows, strict=True)]
            low_high = [f"{min(column):.1%}-{max(column):.1%}" for column in list(zip(*rows, strict=True))[:2]]
            results.append({"kind": name, "tasks": count, "runs": rows})
            shares = " | ".join(f"{m:.1%} ({span})" for m, span in zip(mean, low_high, strict=False))
            print(f"| {name} | {count} | {shares} | {mean[2]:.0f} | {mean[3]:.0f} |", flush=True)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")


def run_guidance(args: argparse.Namespace) -> None:
    """The same images with their own and with another prompt, by reward models with guidance and without."""
    from tastemaker.labelling.taste import JUDGE, utility_of
    from tastemaker.reward_models.comparisons import load_comparisons

    folder, prompts, judged = args.out / "labels", "bundled-pair-train", utility_of(JUDGE)
    source = Sampled(load_model("bundled"), load_prompts(prompts).prompts, args.tasks,
                     Recipe(steps=10, guidance=5.0, seed=0), "bundled")  # fmt: skip
    labelled(folder, source, judged)
    found = load_comparisons(str(folder))
    print("| kind | text dropout | s | accuracy | own prompt preferred | by, in standard deviations |")
    print("|---|---|---|---|---|---|")
    for kind, dropout, weight in (
        ("unet", 0.0, 1.0), ("unet", 0.2, 1.0), ("unet", 0.2, 2.0), ("unet", 0.2, 4.0), ("clip", 0.0, 1.0),
    ):  # fmt: skip
        rows = []
        for seed in args.seeds:
            training = Training(seed=seed, text_dropout=dropout, guidance=weight, curve=())
            out = args.out / f"{kind}-{dropout}-{weight}-{seed}"
            made = train_reward_model(found, Architecture(kind), training, out)  # type: ignore[arg-type]
            assert made.accuracy is not None
            assert made.prompt_use is not None
            rows.append((made.accuracy.value, made.prompt_use.share, made.prompt_use.effect))
        accuracy, share, effect = (statistics.mean(column) for column in zip(*rows, strict=True))
        span = f"{min(row[2] for row in rows):.2f} to {max(row[2] for row in rows):.2f}"
        print(f"| {kind} | {dropout} | {weight:g} | {accuracy:.1%} | {share:.1%} | {effect:.2f} ({span}) |", flush=True)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    make = commands.add_parser("label", help="make a project and label it")
    make.add_argument("--out", type=Path, required=True)
    make.add_argument("--prompts", default="bundled-single")
    make.add_argument("--model", default="bundled")
    make.add_argument("--tasks", type=int, default=280)
    make.add_argument("--steps", type=int, default=20)
    make.add_argument("--validation", type=float, default=0.25)
    make.add_argument("--seed", type=int, default=0)
    make.add_argument("--flipped", type=float, default=FLIPPED, help="share of comparisons that are wrong")
    make.set_defaults(run=run_label)
    train = commands.add_parser("train", help="train reward models on it")
    train.add_argument("project", type=Path)
    train.add_argument("--out", type=Path)
    train.add_argument("--model", default="bundled", help="of kinds unet and transformer")
    train.add_argument("--network", default="unet", choices=["unet", "transformer"], help="of the model")
    train.add_argument("--blocks", type=int, help="of a transformer")
    train.add_argument("--counts", type=int, nargs="*", default=[25, 50, 100])
    train.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    train.add_argument("--kinds", nargs="*", default=[])
    train.add_argument("--epochs", type=int, default=60)
    train.add_argument("--patience", type=int, default=10)
    train.add_argument("--lr", type=float)
    train.add_argument("--layers", type=int, default=0)
    train.add_argument("--hidden", type=int, default=0)
    train.set_defaults(run=run_train)
    guide = commands.add_parser("guidance", help="how far rewards depend on the prompt, with guidance and without")
    guide.add_argument("--out", type=Path, required=True)
    guide.add_argument("--tasks", type=int, default=200)
    guide.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    guide.set_defaults(run=run_guidance)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
