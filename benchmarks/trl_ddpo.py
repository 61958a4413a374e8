"""DDPO side by side with trl 0.23.1's, on the bundled model at the demo's settings: seconds a round of each.

    python benchmarks/trl_ddpo.py [--pairs 5] [--updates 4] [--trl-batch 1] [--out docs/results/speed.json]

Same weights, images, steps, guidance, adapter, updates, reward and prompts, and the same number of trained rows,
which is checked: every step is trained (optimizer.first_share = 1), since trl cannot leave out the last ones. It
batches images but not timesteps: its rows in a pass are at most the images of an update, and that is what it gets.
Each side is a process of its own that waits while the other one runs a round; the first round of each is not counted.
Saving is left out.

trl lives in an environment of its own, build/trl-env, which is made when it is not there.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / "build/trl-env"
TORCH = "torch==2.13.0"
PINS = (
    "trl==0.23.1",
    "transformers==4.57.6",
    "diffusers==0.35.2",
    "peft==0.17.1",
    "accelerate==1.15.0",
    "protobuf",
    "annotated-types",
)
"""The last trl with DDPO, and versions that work with it."""
PRESET = "ddpo-compressibility"


def make_environment() -> Path:
    """The other environment's interpreter; torch comes first and exactly, so that no other build replaces it."""
    python = ENVIRONMENT / "bin/python"
    if not (ENVIRONMENT / "made").exists():
        print(f"making {ENVIRONMENT}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", ENVIRONMENT], check=True)
        for packages in ((TORCH,), (TORCH, *PINS)):
            subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        (ENVIRONMENT / "made").touch()
    return python


def demo(updates: int, precision: str, compiled: bool) -> Any:
    """The demo's config with all steps trained."""
    from tastemaker.config.presets import PRESETS

    config = PRESETS[PRESET].config
    optimizer = replace(config.optimizer, first_share=1.0, updates=updates)
    return replace(config, optimizer=optimizer, precision=precision, speed=replace(config.speed, compile=compiled))


Side = tuple[Callable[[], Any], int, Callable[[], int]]
"""What runs one round, the rows of a training pass, and what tells the rows trained in the first round."""


def ours(config: Any, folder: Path) -> Side:
    """This package's trainer."""
    from tastemaker.benchmarking.bench import needed_calls
    from tastemaker.runs.checkpoint import State
    from tastemaker.training.rounds import one_round
    from tastemaker.training.setup import start

    session = start(config, folder, State())
    calls = needed_calls(session).backward  # that a round makes them, and no others, is a unit test
    rows = sum(count * size for size, count in calls.items()) // 2  # guidance doubles a pass
    return lambda: one_round(session), config.optimizer.rows, lambda: rows


def theirs(config: Any, folder: Path, images: int = 0) -> Side:
    """trl's trainer."""
    import diffusers
    import torch
    import transformers
    from accelerate import PartialState
    from safetensors.torch import load_file
    from trl import (  # pyright: ignore[reportMissingImports]
        DDPOConfig,
        DDPOTrainer,
        DefaultDDPOStableDiffusionPipeline,
    )

    from tastemaker.data.prompts import load_prompts
    from tastemaker.models.bundled import bundled_pipeline
    from tastemaker.rewards.registry import load_reward

    PartialState(cpu=True)  # trl's logger needs it
    diffusers.utils.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    s, o, a = config.sampling, config.optimizer, config.advantage
    prompts, reward = itertools.cycle(load_prompts(config.prompts).prompts), load_reward(config.reward)
    # The most that it can, and no more than are sampled at once; or as told.
    batch = images or min(s.samples // o.updates, s.batch)
    sampled = images or s.batch
    settings = DDPOConfig(
        seed=config.seed, mixed_precision={"fp32": "no"}.get(config.precision, config.precision), save_freq=10**9,
        project_kwargs={"project_dir": str(folder)}, accelerator_kwargs={"cpu": True},
        sample_num_steps=s.steps, sample_eta=s.eta, sample_guidance_scale=s.guidance,
        sample_batch_size=sampled, sample_num_batches_per_epoch=s.samples // sampled,
        train_batch_size=batch, train_gradient_accumulation_steps=s.samples // o.updates // batch,
        train_learning_rate=o.lr, train_adam_weight_decay=o.weight_decay, train_max_grad_norm=o.clip_norm,
        train_cfg=True, train_adv_clip_max=a.clip, train_clip_range=config.algorithm.clip,
        per_prompt_stat_tracking=True, per_prompt_stat_tracking_buffer_size=a.buffer,
        per_prompt_stat_tracking_min_count=a.min_count,
    )  # fmt: skip
    pipeline = DefaultDDPOStableDiffusionPipeline(str(bundled_pipeline()), use_lora=True)
    # transformers 4 has another name for each weight than transformers 5, which saved them, and does not find them.
    text = load_file(bundled_pipeline() / "text_encoder/model.safetensors")
    pipeline.text_encoder.load_state_dict({f"text_model.{name}": value for name, value in text.items()})
    trainer = DDPOTrainer(
        settings,
        lambda image_list, texts, metadata: (reward(image_list.float(), texts), {}),
        lambda: (next(prompts), {}),
        pipeline,
    )
    trainer.sd_pipeline.set_progress_bar_config(disable=True)
    trained = [0]

    def count(_: Any, inputs: tuple[Any, ...]) -> None:
        trained[0] += len(inputs[0]) // 2 if torch.is_grad_enabled() else 0

    hook = pipeline.unet.register_forward_pre_hook(count)
    counter = itertools.count()

    def rows() -> int:
        hook.remove()
        return trained[0]

    return lambda: trainer.step(next(counter), 0), batch, rows


def work(side: str, updates: int, precision: str, compiled: bool, images: int) -> None:
    """A worker: a round for each line on stdin, and its seconds as JSON on stdout."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the libraries print is no answer
    warnings.simplefilter("ignore")
    import torch

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        config = demo(updates, precision, compiled)
        made = ours(config, Path(folder)) if side == "ours" else theirs(config, Path(folder), images)
        one_round, batch, trained = made
        one_round()  # warms up
        import diffusers

        about = {"rows_in_a_pass": batch, "trained_rows": trained(), "torch": torch.__version__}
        print(json.dumps(about | {"diffusers": diffusers.__version__}), file=answers, flush=True)
        for _ in sys.stdin:
            begin = time.perf_counter()
            one_round()
            print(json.dumps(time.perf_counter() - begin), file=answers, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="rounds of each, taken in turns")
    parser.add_argument(
        "--updates", type=int, default=4, help="optimizer steps a round: a round's images / UPDATES is trl's batch"
    )
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--compile", action="store_true", help="torch.compile on our side; trl has no such setting")
    parser.add_argument(
        "--trl-batch", type=int, default=0, help="images trl samples and trains at once; its default is 1"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/speed.json")
    parser.add_argument("--worker", choices=("ours", "trl"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments.updates, arguments.precision, arguments.compile, arguments.trl_batch)
        return
    config = demo(arguments.updates, arguments.precision, arguments.compile)
    words = [__file__, "--updates", str(arguments.updates), "--precision", arguments.precision]
    words += [*(["--compile"] if arguments.compile else []), "--trl-batch", str(arguments.trl_batch), "--worker"]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": str(arguments.threads), "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    pythons = {"ours": Path(sys.executable), "trl": make_environment()}
    workers = {
        side: subprocess.Popen(
            [python, *words, side], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        for side, python in pythons.items()
    }

    def answer(side: str) -> Any:
        pipe = workers[side].stdout
        line = pipe.readline() if pipe else ""
        if not line:
            raise SystemExit(f"the worker {side} ended with exit code {workers[side].wait()}")
        return json.loads(line)

    about = {side: answer(side) for side in workers}
    if about["ours"]["trained_rows"] != about["trl"]["trained_rows"]:
        raise SystemExit(f"the two sides do not train the same number of rows: {about}")
    seconds: dict[str, list[float]] = {side: [] for side in workers}
    for pair in range(arguments.pairs):
        # The order changes from pair to pair, so that a machine that gets slower or faster favours neither.
        for side in sorted(workers, reverse=bool(pair % 2)):
            pipe = workers[side].stdin
            assert pipe is not None
            print("round", file=pipe, flush=True)
            seconds[side].append(answer(side))
        print(f"pair {pair + 1}: " + ", ".join(f"{side} {times[-1]:.2f} s" for side, times in seconds.items()))
    for worker in workers.values():
        worker.communicate()
    ratios = [mine / other for mine, other in zip(seconds["ours"], seconds["trl"], strict=True)]
    found = {
        "command": f"python benchmarks/{Path(__file__).name} " + " ".join(sys.argv[1:]),
        "settings": {
            "preset": PRESET, "samples": config.sampling.samples, "steps": config.sampling.steps,
            "optimizer.first_share": 1.0, "updates": arguments.updates,
            "precision": arguments.precision, "threads": arguments.threads, "our compile": arguments.compile,
        },
        "sides": about,
        "seconds": {side: [round(value, 3) for value in times] for side, times in seconds.items()},
        "median_seconds": {side: round(statistics.median(times), 3) for side, times in seconds.items()},
        "ratios": [round(ratio, 4) for ratio in ratios],
        "median_ratio": round(statistics.median(ratios), 4),
    }  # fmt: skip
    medians = ", ".join(f"{side} {value:.2f} s" for side, value in found["median_seconds"].items())
    print(f"a round: {medians}; ours / trl = {found['median_ratio']:.3f} (median of {arguments.pairs} pairs)")
    arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(arguments.out)


if __name__ == "__main__":
    main()
