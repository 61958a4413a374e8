"""How long until the model is better: tastemaker's DDPO and AlignProp beside those of trl 0.23.1, on the bundled model.

    python benchmarks/time_to_reward.py [--tasks incompressibility alignment] [--trials 4] [--seeds 3]
        [--work build/time-to-reward] [--out docs/results/time-to-reward]

Two targets, measured on fixed images by the same function for both: a reward of +2 standard deviations of the base
model's with at least 90 % of the images showing their prompt (JPEG incompressibility), and 10 points more of the images
showing their prompt (trained on CLIPScore; the judge is no part of the reward). Each side and method has the same
number of trials of settings, with seeds that are not used again; the settings that were there most often, and first,
are run with each seed. A run ends when fewer than half of its images show their prompt. Evaluations come every
--interval seconds, and every twentieth of the time so far once that is more.

Time is that of sampling, scoring and updates, on one thread: of the processor, so that other work on the machine does
not count, and by the clock beside it. Loading, saving and evaluations are left out.

Each run is a worker process: trl's in an environment of its own, build/trl-env (benchmarks/trl_ddpo.py). A run of the
same settings and seed that is there already is not made again.

    python benchmarks/time_to_reward.py --settings "ddpo-incompressibility sampling.steps=10" [--settings ...]

runs settings of ours alone on the search's seeds and prints when the reward had risen by one and two deviations.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import itertools
import json
import os
import random
import shlex
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SEARCH_SEED = 100


@dataclass(frozen=True)
class Task:
    """What is learned, how it is measured, and when it is reached."""

    reward: str
    differentiable: str
    """The reward of AlignProp."""
    prompts: str
    guidance: float
    eta: dict[str, float]
    """Of the evaluation, by method: as it samples in training."""
    images: tuple[int, int]
    """Prompts and images of each in an evaluation."""
    block: int
    """Intervals between evaluations. Where one is at the target, those left out before it are made too."""
    limit: dict[str, float]
    """Seconds of processor after which a run of trl ends, by method; ours, which is to take half of its time, after
    half of them."""

    def reached(self, first: dict[str, float], now: dict[str, float]) -> bool:
        """Whether an evaluation is at the target, given the base model's."""
        if self.reward == "clip-score":
            return now["judge"] >= first["judge"] + 0.10
        return (now["reward"] - first["reward"]) / first["std"] >= 2 and now["judge"] >= 0.9

    def lost(self, now: dict[str, float]) -> bool:
        """Whether the images have become something else, from which runs do not come back."""
        return self.reward != "clip-score" and now["judge"] < 0.5


TASKS = {
    "incompressibility": Task(
        "jpeg-incompressibility", "jpeg-surrogate-incompressibility", "bundled-eight", 5.0,
        {"ddpo": 1.0, "alignprop": 0.0}, (8, 8), 1, {"ddpo": 480, "alignprop": 240},
    ),
    "alignment": Task(
        "clip-score", "clip-score", "bundled-count-test", 1.0,
        {"ddpo": 0.7, "alignprop": 0.0}, (48, 4), 2, {"ddpo": 480, "alignprop": 240},
    ),
}  # fmt: skip
_SMALLER = ["sampling.steps=10", "sampling.samples=64", "sampling.per_prompt=8", "optimizer.warmup=0"]
_AVERAGED = [*_SMALLER, "advantage.normalise=group", "optimizer.ema=0.9"]
_96 = ["sampling.samples=96", "sampling.per_prompt=12"]
_128 = ["sampling.samples=128", "sampling.per_prompt=16"]
_EIGHT = ["sampling.samples=8", "optimizer.updates=1", "algorithm.checkpointing=none"]
OURS: dict[tuple[str, str], list[list[str]]] = {
    ("incompressibility", "ddpo"): [
        ["ddpo-incompressibility", *_AVERAGED, *_128, "optimizer.warmup=16"],
        ["ddpo-incompressibility", *_AVERAGED, *_96, "optimizer.warmup=16"],
        ["ddpo-incompressibility", *_AVERAGED, *_96],
        ["ddpo-incompressibility", *_AVERAGED],
    ],
    ("incompressibility", "alignprop"): [
        ["alignprop-incompressibility"],
        ["alignprop-incompressibility", "optimizer.lr=1.5e-3"],
        ["alignprop-incompressibility", "sampling.steps=10"],
        ["alignprop-incompressibility", "sampling.steps=10", "sampling.samples=8", "optimizer.rows=4"],
    ],
    ("alignment", "ddpo"): [
        ["ddpo-clip", "optimizer.lr=2e-3"],
        ["ddpo-clip", "algorithm.estimator=sf", "optimizer.updates=1", "optimizer.single_pass=true",
         "optimizer.lr=2e-3", "sampling.samples=32"],
        ["ddpo-clip"],
        ["ddpo-clip", "optimizer.lr=2e-3", "sampling.samples=32"],
    ],
    ("alignment", "alignprop"): [
        ["alignprop-clip", *_EIGHT, "sampling.steps=10"],
        ["alignprop-clip", *_EIGHT, "sampling.steps=5"],
        ["alignprop-clip", *_EIGHT, "sampling.steps=5", "optimizer.lr=2e-3"],
        ["alignprop-clip", *_EIGHT, "sampling.steps=5", "algorithm.truncation=fixed", "algorithm.last=2"],
    ],
}  # fmt: skip
"""Trials of settings, over presets; the most promising first."""
_DDPO = {
    "sample_num_steps": 20, "sample_batch_size": 32, "sample_num_batches_per_epoch": 4, "train_batch_size": 32,
    "train_gradient_accumulation_steps": 1, "train_adam_weight_decay": 1e-4, "train_clip_range": 1e-2,
    "per_prompt_stat_tracking": True, "per_prompt_stat_tracking_buffer_size": 32,
    "per_prompt_stat_tracking_min_count": 16, "train_learning_rate": 1e-2,
}  # fmt: skip
_SMALL = {"sample_batch_size": 16, "train_batch_size": 16}
_ALIGNPROP = {
    "sample_num_steps": 20, "train_batch_size": 2, "train_gradient_accumulation_steps": 1,
    "truncated_rand_backprop_minmax": (0, 20), "train_learning_rate": 3e-3, "train_adam_weight_decay": 1e-4,
}  # fmt: skip
_FEW = {"sample_num_steps": 10, "truncated_rand_backprop_minmax": (0, 10)}
# Up to 4: with (0, 5) trl fails where it draws no step to train at all.
_FIVE = {"sample_num_steps": 5, "truncated_rand_backprop_minmax": (0, 4), "train_batch_size": 8}
_COUNT = {**_DDPO, "sample_num_steps": 8, "sample_eta": 0.7, "sample_num_batches_per_epoch": 2}
TRL: dict[tuple[str, str], list[dict[str, Any]]] = {
    ("incompressibility", "ddpo"): [
        {**_DDPO, "sample_num_steps": 10},
        _DDPO,
        {**_DDPO, "sample_num_steps": 10, **_SMALL},
        {**_DDPO, "sample_num_steps": 10, **_SMALL, "sample_guidance_scale": 1.0},
    ],
    ("incompressibility", "alignprop"): [
        _ALIGNPROP,
        {**_ALIGNPROP, "train_learning_rate": 1.5e-3},
        {**_ALIGNPROP, **_FEW},
        {**_ALIGNPROP, **_FEW, "train_batch_size": 4},
    ],
    ("alignment", "ddpo"): [
        {**_COUNT, "train_learning_rate": 2e-3},
        {**_COUNT, "train_learning_rate": 2e-3, **_SMALL},
        {**_COUNT, "train_learning_rate": 1e-3},
        {**_COUNT, "train_learning_rate": 5e-3},
    ],
    ("alignment", "alignprop"): [
        {**_ALIGNPROP, **_FEW, "train_batch_size": 8, "train_learning_rate": 1e-3,
         "truncated_backprop_rand": False, "truncated_backprop_timestep": 8},
        {**_ALIGNPROP, **_FIVE, "train_learning_rate": 1e-3},
        {**_ALIGNPROP, **_FIVE, "train_learning_rate": 2e-3},
        {**_ALIGNPROP, **_FIVE, "train_learning_rate": 1e-3, "truncated_backprop_rand": False,
         "truncated_backprop_timestep": 3},
    ],
}  # fmt: skip
"""Trials of trl's settings: batches as large as it is quick with, and the rates of ours."""

Side = tuple[Callable[[], int], Callable[[Path], None]]
"""What runs one round and returns its reward queries, and what saves the adapter in a folder."""


def ours(task: Task, words: list[str], seed: int, folder: Path) -> Side:
    """This package's trainer."""
    from tastemaker.api.presets import preset
    from tastemaker.runs.checkpoint import State
    from tastemaker.training.rounds import one_round
    from tastemaker.training.setup import start

    name, *settings = words
    config = preset(
        name, "rounds=100000", *settings, f"seed={seed}", f"prompts={task.prompts}", "evaluation.unseen=none"
    )
    session = start(config, folder, State())
    queries = [0]

    def one() -> int:
        record = one_round(session)
        made, queries[0] = record["reward_queries"] - queries[0], record["reward_queries"]
        return made

    def save(path: Path) -> None:
        with session.averaged():
            session.model.weights.save(path / "adapter")

    return one, save


def trl(task: Task, method: str, settings: dict[str, Any], seed: int, folder: Path) -> Side:
    """trl's trainer."""
    import diffusers
    import transformers
    import transformers.models.clip.tokenization_clip
    from accelerate import PartialState
    from safetensors.torch import load_file
    from trl import (  # pyright: ignore[reportMissingImports]
        AlignPropConfig,
        AlignPropTrainer,
        DDPOConfig,
        DDPOTrainer,
        DefaultDDPOStableDiffusionPipeline,
    )

    from tastemaker.data.prompts import load_prompts
    from tastemaker.models.bundled import bundled_pipeline
    from tastemaker.rewards.registry import load_reward

    PartialState(cpu=True)  # trl's logger needs it
    # transformers 4 reads tokenizer.json by this class only.
    fast = transformers.CLIPTokenizerFast  # pyright: ignore[reportAttributeAccessIssue]
    transformers.models.clip.tokenization_clip.CLIPTokenizer = transformers.CLIPTokenizer = fast
    diffusers.utils.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    names = list(load_prompts(task.prompts).prompts)
    random.Random(seed).shuffle(names)
    prompts = itertools.cycle(names)
    pipeline = DefaultDDPOStableDiffusionPipeline(str(bundled_pipeline()), use_lora=True)
    # transformers 4 has another name for each weight than transformers 5, which saved them, and does not find them.
    text = load_file(bundled_pipeline() / "text_encoder/model.safetensors")
    pipeline.text_encoder.load_state_dict({f"text_model.{name}": value for name, value in text.items()})
    if settings.get("sample_guidance_scale", task.guidance) == 1:
        # trl gives the network the unconditional half of the prompts here too, and fails.
        pipeline.sd_pipeline._encode_prompt = lambda *_, prompt_embeds, **__: prompt_embeds
    shared = {
        "seed": seed, "mixed_precision": "no", "save_freq": 10**9, "project_kwargs": {"project_dir": str(folder)},
        "accelerator_kwargs": {"cpu": True}, "sample_guidance_scale": task.guidance, **settings,
    }  # fmt: skip
    if method == "ddpo":
        reward = load_reward(task.reward)
        config = DDPOConfig(train_cfg=shared["sample_guidance_scale"] > 1, **shared)
        trainer = DDPOTrainer(
            config, lambda images, texts, _: (reward(images.float(), texts), {}), lambda: (next(prompts), {}), pipeline
        )
        queries = config.sample_batch_size * config.sample_num_batches_per_epoch
    else:
        differentiable = load_reward(task.differentiable)
        config = AlignPropConfig(**shared)
        trainer = AlignPropTrainer(
            config,
            lambda images, texts, _: (differentiable(images, list(texts)), {}),
            lambda: (next(prompts), {}),
            pipeline,
        )
        queries = config.train_batch_size * config.train_gradient_accumulation_steps
    trainer.sd_pipeline.set_progress_bar_config(disable=True)
    counter = itertools.count()

    def one() -> int:
        trainer.step(next(counter), 0)
        return queries

    return one, lambda path: pipeline.save_pretrained(str(path / "adapter"))


Settings = list[str] | dict[str, Any]
"""A preset of ours and settings over it, or trl's arguments."""


def work(task: str, method: str, settings: Settings, seed: int, folder: Path) -> None:
    """A worker: for each line on stdin, rounds for that many seconds of processor, and a saved adapter; says what they
    took as JSON on stdout."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the libraries print is no answer
    warnings.simplefilter("ignore")
    with contextlib.redirect_stdout(sys.stderr):
        if isinstance(settings, list):
            one, save = ours(TASKS[task], settings, seed, folder)
        else:
            one, save = trl(TASKS[task], method, settings, seed, folder)
        print("{}", file=answers, flush=True)
        for number, line in enumerate(sys.stdin):
            cpu, clock, queries, rounds = time.process_time(), time.perf_counter(), 0, 0
            while time.process_time() - cpu < float(line):
                queries += one()
                rounds += 1
            cpu, clock = time.process_time() - cpu, time.perf_counter() - clock
            path = folder / f"saved-{number}"
            path.mkdir(parents=True)
            save(path)
            told = {"cpu": cpu, "clock": clock, "queries": queries, "rounds": rounds, "adapter": str(path / "adapter")}
            print(json.dumps(told), file=answers, flush=True)


@functools.cache
def measured(name: str, method: str, adapter: str | None, seed: int = 1) -> dict[str, float]:
    """An evaluation of the base model or an adapter, on images with the same noise for all."""
    import tastemaker as tm
    from tastemaker.data.prompts import load_prompts

    task = TASKS[name]
    count, each = task.images
    names = load_prompts(task.prompts).prompts
    chosen = [names[index * len(names) // count] for index in range(count)]
    found = tm.evaluate(
        "bundled", chosen, task.reward, adapter=adapter, n=each, seed=seed, steps=20, guidance=task.guidance,
        eta=task.eta[method], batch=64,
    ).metrics  # fmt: skip
    return {
        "reward": found[f"{task.reward}/mean"], "std": found[f"{task.reward}/std"], "judge": found["judge/correct"],
        "diversity": found["diversity"],
    }  # fmt: skip


def time_to_target(
    name: str, method: str, settings: Settings, seed: int, work: Path, interval: float, limit: float
) -> dict[str, Any]:
    """One run until the target or `limit` seconds of processor; what it took, and its evaluations. Kept in a file."""
    task, side = TASKS[name], "ours" if isinstance(settings, list) else "trl"
    given = json.dumps(settings)
    label = f"{name}-{method}-{side}-{hashlib.sha256(given.encode()).hexdigest()[:8]}-{seed}"
    folder = work / label
    kept = folder / "result.json"
    if kept.is_file():
        result = json.loads(kept.read_text())
        last = result["steps"][-1]
        if result["reached"] or last["cpu"] >= limit or task.lost(last):
            return result
        raise SystemExit(
            f"{kept} is of a run that ended after {last['cpu']:.0f} s: remove its folder, or give that --limit"
        )
    if folder.exists():
        raise SystemExit(f"{folder} is of a run that did not end: remove it")
    folder.mkdir(parents=True)
    python = Path(sys.executable)
    if side == "trl":
        from trl_ddpo import make_environment

        python = make_environment()
    (folder / "settings.json").write_text(given + "\n")
    words = [name, method, given, str(seed), str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with (folder / "worker.log").open("w") as log:
        worker = subprocess.Popen(
            [python, __file__, "--worker", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            text=True, env=environment,
        )  # fmt: skip
        assert worker.stdin is not None

        def answer() -> dict[str, Any]:
            line = worker.stdout.readline() if worker.stdout else ""
            if not line:
                raise SystemExit(f"a worker ended with exit code {worker.wait()}: see {folder / 'worker.log'}")
            return json.loads(line)

        answer()
        first = measured(name, method, None)
        steps = [{"cpu": 0.0, "clock": 0.0, "queries": 0, "rounds": 0, **first}]
        made, evaluated, reached = list(steps), 1, False
        while not reached and made[-1]["cpu"] < limit:
            print(max(interval, 0.05 * made[-1]["cpu"]), file=worker.stdin, flush=True)
            told, last = answer(), made[-1]
            totals = {key: last[key] + told[key] for key in ("cpu", "clock", "queries", "rounds")}
            made.append(totals | {"adapter": told["adapter"]})
            if len(made) - evaluated < task.block and totals["cpu"] < limit:
                continue
            found = [made[-1] | measured(name, method, told["adapter"])]
            if task.reached(first, found[-1]):
                earlier = (one | measured(name, method, one["adapter"]) for one in made[evaluated:-1])
                found = [*itertools.takewhile(lambda one: not task.reached(first, one), earlier)]
                at = made[evaluated + len(found)]
                found.append(at | measured(name, method, at["adapter"]))
                reached = True
            evaluated = len(made)
            steps += [{key: value for key, value in one.items() if key != "adapter"} for one in found]
            print(label, json.dumps(steps[-1]), flush=True)
            if task.lost(steps[-1]):
                break
        worker.stdin.close()
        worker.wait()
    result = {"reached": reached, "steps": steps}
    kept.write_text(json.dumps(result, indent=1) + "\n")
    print(label, "reached" if reached else "not reached", json.dumps(steps[-1]), flush=True)
    return result


def rank(trial: list[dict[str, Any]], name: str) -> tuple[int, float]:
    """The order of trials: how many of their runs reached the target, and then the time that these took, or the best
    value of what the target is about where none did."""
    reached = [one["steps"][-1]["cpu"] for one in trial if one["reached"]]
    key = "judge" if name == "alignment" else "reward"
    best = statistics.mean(max(step[key] for step in one["steps"]) for one in trial)
    return -len(reached), statistics.mean(reached) if reached else -best


def total(runs: list[dict[str, Any]]) -> float:
    """Seconds of processor of all runs."""
    return sum(one["steps"][-1]["cpu"] for one in runs)


def until(run: dict[str, Any], deviations: float) -> tuple[float, float, int] | None:
    """Seconds, the judge's share and reward queries when a run's reward first had risen by so many of the base model's
    standard deviations, whatever its images showed; None where it never had."""
    first = run["steps"][0]
    for step in run["steps"]:
        if (step["reward"] - first["reward"]) / first["std"] >= deviations:
            return round(step["cpu"], 1), round(step["judge"], 2), step["queries"]
    return None


def longest_run(name: str, method: str, side: str, given: float | None) -> float:
    """Seconds of processor after which a run ends; `given` is that of trl's, the task's when None."""
    limit = TASKS[name].limit[method] if given is None else given
    return limit / (2 if side == "ours" else 1)


def tried_alone(name: str, method: str, settings: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """One setting of ours on the search's seeds."""
    limit = longest_run(name, method, "ours", arguments.limit)
    runs = [
        time_to_target(name, method, settings, SEARCH_SEED + seed, arguments.work, arguments.interval, limit)
        for seed in range(arguments.search)
    ]
    last = [run["steps"][-1] for run in runs]
    return {
        "settings": settings, "reached": [run["reached"] for run in runs],
        "seconds a round": round(sum(step["cpu"] for step in last) / sum(step["rounds"] for step in last), 1),
        "until +1: seconds, judge, queries": [until(run, 1) for run in runs],
        "until +2: seconds, judge, queries": [until(run, 2) for run in runs],
        "at the end: seconds, deviations, judge": [
            (
                round(run["steps"][-1]["cpu"], 1),
                round((run["steps"][-1]["reward"] - run["steps"][0]["reward"]) / run["steps"][0]["std"], 2),
                round(run["steps"][-1]["judge"], 2),
            )
            for run in runs
        ],
    }  # fmt: skip


def compared(name: str, method: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Both sides: their trials, the settings chosen, and the times of each seed."""
    out: dict[str, Any] = {}
    for side, given in (("ours", OURS), ("trl", TRL)):
        limit, tried = longest_run(name, method, side, arguments.limit), given[name, method]
        trials: list[list[dict[str, Any]]] = []
        # One setting needs no trial.
        for settings in tried[: arguments.trials] if arguments.trials > 1 else []:
            made: list[dict[str, Any]] = []
            for seed in range(arguments.search):
                # A trial that takes longer than one that has reached the target on every seed cannot be chosen.
                best = [total(before) for before in trials if all(one["reached"] for one in before)]
                longest = min([limit, *(time - total(made) for time in best)])
                if longest <= 0:
                    break
                made.append(time_to_target(
                    name, method, settings, SEARCH_SEED + seed, arguments.work, arguments.interval, longest
                ))  # fmt: skip
            trials.append(made)
        best = min(range(len(trials)), key=lambda trial: rank(trials[trial], name), default=0)
        runs = [
            time_to_target(name, method, tried[best], seed, arguments.work, arguments.interval, limit)
            for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds)
        ]
        last = [run["steps"][-1] for run in runs]
        out[side] = {
            "settings": tried[best],
            "trials, seconds": [
                [round(one["steps"][-1]["cpu"]) if one["reached"] else None for one in made] for made in trials
            ],
            "reached": [run["reached"] for run in runs],
            "seconds of processor": [round(step["cpu"], 1) for step in last],
            "seconds": [round(step["clock"], 1) for step in last],
            "reward queries": [step["queries"] for step in last],
            "judge": [round(step["judge"], 3) for step in last],
            "diversity": [round(step["diversity"], 3) for step in last],
            "until +1: seconds, judge, queries": [until(run, 1) for run in runs],
            "until +2: seconds, judge, queries": [until(run, 2) for run in runs],
        }
    if all(out["ours"]["reached"]) and all(out["trl"]["reached"]):
        medians = [statistics.median(out[side]["seconds of processor"]) for side in ("ours", "trl")]
        out["ratio of medians"] = round(medians[0] / medians[1], 3)
    return out


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--methods", nargs="*", default=["ddpo", "alignprop"], choices=["ddpo", "alignprop"])
    parser.add_argument(
        "--trials", type=int, default=4, help="settings of each side that are tried; 1: the first one, without a trial"
    )
    parser.add_argument("--search", type=int, default=2, help="seeds of each setting that is tried")
    parser.add_argument("--seeds", type=int, default=3, help="of the settings that are chosen")
    parser.add_argument("--first-seed", type=int, default=0, help="of these")
    parser.add_argument("--interval", type=float, default=4.0, help="seconds of processor between evaluations at first")
    parser.add_argument("--limit", type=float, help="seconds after which runs of trl end, and ours after half of them")
    parser.add_argument("--work", type=Path, default=ROOT / "build/time-to-reward")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/time-to-reward")
    parser.add_argument("--settings", action="append", help="of ours, to be tried alone: a preset and settings over it")
    parser.add_argument("--worker", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        task, method, settings, seed, folder = arguments.worker
        work(task, method, json.loads(settings), int(seed), Path(folder))
        return
    if arguments.settings:
        name, method = arguments.tasks[0], arguments.methods[0]
        for words in arguments.settings:
            print(json.dumps(tried_alone(name, method, shlex.split(words), arguments)), flush=True)
        return
    from running import publish

    found = {
        f"{name}, {method}": compared(name, method, arguments)
        for name in arguments.tasks
        for method in arguments.methods
    }
    publish(found, arguments.out)


if __name__ == "__main__":
    main()
