"""DDPO side by side with trl 0.23.1's, on the bundled model at the demo's settings: seconds a round of each.

    python benchmarks/trl_ddpo.py [--pairs 5] [--updates 4] [--trl-batch 1] [--out docs/results/speed.json]
    python benchmarks/trl_ddpo.py --model gpu_models:sd15 --precision bf16 --samples 8 --batch 4 --updates 2

Same weights, images, steps, guidance, adapter, updates, reward and prompts, and the same number of trained rows,
which is checked: every step is trained (optimizer.first_share = 1), since trl cannot leave out the last ones. It
batches images but not timesteps: its rows in a pass are at most the images of an update, and that is what it gets.
Each side is a process of its own that waits while the other one runs a round; the first round of each is not counted.
Saving is left out.

Both sides are on the GPU where there is one. Models are the bundled one, a folder, or one of gpu_models.py, whose
random weights are then the same on both sides.

trl lives in an environment of its own, build/trl-env, which is made when it is not there, or by `--make-environment`.
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
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / "build/trl-env"
TORCH = f"torch=={version('torch').partition('+')[0]}"
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


@dataclass(frozen=True)
class Size:
    """What is measured, besides the demo's settings."""

    model: str = "bundled"
    """The bundled model, or a folder."""
    updates: int = 4
    precision: str = "fp32"
    compiled: bool = False
    trl_batch: int = 0
    """Images that trl samples and trains at once; 0 for as many as an update has."""
    samples: int = 0
    """Images a round; 0 for the demo's, as with `steps` and `batch`."""
    steps: int = 0
    batch: int = 0
    """Images sampled, and rows trained, at once."""


def demo(size: Size) -> Any:
    """The demo's config with all steps trained."""
    from tastemaker.config.presets import PRESETS

    config = PRESETS[PRESET].config
    s, o = config.sampling, config.optimizer
    samples = size.samples or s.samples
    sampling = replace(
        s, samples=samples, per_prompt=s.per_prompt if samples == s.samples else 1, steps=size.steps or s.steps,
        batch=size.batch or s.batch,
    )  # fmt: skip
    optimizer = replace(o, first_share=1.0, updates=size.updates, rows=size.batch or o.rows)
    speed = replace(config.speed, compile=size.compiled)
    return replace(
        config, model=size.model, sampling=sampling, optimizer=optimizer, precision=size.precision, speed=speed
    )


def model_folder(model: str, folder: Path) -> str:
    """The name that both sides load: a model of gpu_models.py is written into the folder first."""
    if not model.startswith("gpu_models:"):
        return model
    sys.path.insert(0, str(Path(__file__).parent))
    import gpu_models
    import torch

    name = model.removeprefix("gpu_models:")
    models = gpu_models.REDUCED if name.endswith("_reduced") else gpu_models.FULL
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline = gpu_models.random_pipeline(models[name.removesuffix("_reduced")], "fp32", device)
    pipeline.to("cpu").save_pretrained(folder)
    # The tokenizer of transformers 4 reads these two, which transformers 5 does not write.
    (folder / "tokenizer/vocab.json").write_text(json.dumps(pipeline.tokenizer.get_vocab()))
    (folder / "tokenizer/merges.txt").write_text("#version: 0.2\n")
    return str(folder)


Side = tuple[Callable[[], Any], int, Callable[[], int]]
"""What runs one round, the rows of a training pass, and what tells the rows trained in the first round."""


def ours(config: Any, folder: Path) -> Side:
    """This package's trainer."""
    from tastemaker.benchmarking.floor import calls_of_round
    from tastemaker.runs.checkpoint import State
    from tastemaker.training.rounds import one_round
    from tastemaker.training.setup import start

    session = start(config, folder, State())
    calls = calls_of_round(session).network.backward  # that a round makes them, and no others, is a unit test
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

    cpu = not torch.cuda.is_available()
    PartialState(cpu=cpu)  # trl's logger needs it
    diffusers.utils.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    s, o, a = config.sampling, config.optimizer, config.advantage
    prompts, reward = itertools.cycle(load_prompts(config.prompts).prompts), load_reward(config.reward)
    # The most that it can, and no more than are sampled at once; or as told.
    batch = images or min(s.samples // o.updates, s.batch)
    sampled = images or s.batch
    settings = DDPOConfig(
        seed=config.seed, mixed_precision={"fp32": "no"}.get(config.precision, config.precision), save_freq=10**9,
        project_kwargs={"project_dir": str(folder)}, accelerator_kwargs={"cpu": cpu},
        sample_num_steps=s.steps, sample_eta=s.eta, sample_guidance_scale=s.guidance,
        sample_batch_size=sampled, sample_num_batches_per_epoch=s.samples // sampled,
        train_batch_size=batch, train_gradient_accumulation_steps=s.samples // o.updates // batch,
        train_learning_rate=o.lr, train_adam_weight_decay=o.weight_decay, train_max_grad_norm=o.clip_norm,
        train_cfg=True, train_adv_clip_max=a.clip, train_clip_range=config.algorithm.clip,
        per_prompt_stat_tracking=True, per_prompt_stat_tracking_buffer_size=a.buffer,
        per_prompt_stat_tracking_min_count=a.min_count,
    )  # fmt: skip
    source = bundled_pipeline() if config.model == "bundled" else Path(config.model)
    pipeline = DefaultDDPOStableDiffusionPipeline(str(source), use_lora=True)
    # transformers 4 has another name for each weight than transformers 5, which saved them, and does not find them.
    text = load_file(source / "text_encoder/model.safetensors")
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


def work(side: str, size: Size) -> None:
    """A worker: a round for each line on stdin, and its seconds as JSON on stdout."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the libraries print is no answer
    warnings.simplefilter("ignore")
    import torch

    def clock() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        config = demo(size)
        made = ours(config, Path(folder)) if side == "ours" else theirs(config, Path(folder), size.trl_batch)
        one_round, batch, trained = made
        one_round()  # warms up
        import diffusers

        about = {"rows_in_a_pass": batch, "trained_rows": trained(), "torch": torch.__version__}
        print(json.dumps(about | {"diffusers": diffusers.__version__}), file=answers, flush=True)
        for _ in sys.stdin:
            begin = clock()
            one_round()
            print(json.dumps(clock() - begin), file=answers, flush=True)


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
    parser.add_argument("--model", default="bundled", help="bundled, a folder, or gpu_models:NAME")
    parser.add_argument("--samples", type=int, default=0, help="images a round; the demo's when left out")
    parser.add_argument("--steps", type=int, default=0, help="of the sampler; the demo's when left out")
    parser.add_argument("--batch", type=int, default=0, help="images and rows at once; the demo's when left out")
    parser.add_argument("--make-environment", action="store_true", help="make trl's environment, and end")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/speed.json")
    parser.add_argument("--worker", choices=("ours", "trl"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    size = Size(
        arguments.model, arguments.updates, arguments.precision, arguments.compile, arguments.trl_batch,
        arguments.samples, arguments.steps, arguments.batch,
    )  # fmt: skip
    if arguments.worker:
        work(arguments.worker, size)
        return
    if arguments.make_environment:
        make_environment()
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(replace(size, model=model_folder(size.model, Path(folder))), arguments)


def compare(size: Size, arguments: argparse.Namespace) -> None:
    """Rounds of both sides in turns, written to a file and printed."""
    config = demo(size)
    words = [
        __file__, "--updates", str(size.updates), "--precision", size.precision,
        *(["--compile"] if size.compiled else []), "--trl-batch", str(size.trl_batch), "--model", size.model,
        "--samples", str(size.samples), "--steps", str(size.steps), "--batch", str(size.batch), "--worker",
    ]  # fmt: skip
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
            "preset": PRESET, "model": arguments.model, "samples": config.sampling.samples,
            "steps": config.sampling.steps,
            "optimizer.first_share": 1.0, "updates": size.updates,
            "precision": size.precision, "threads": arguments.threads, "our compile": size.compiled,
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
