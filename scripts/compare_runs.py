"""Records short training runs and compares them with later ones, to the last bit.

    python scripts/compare_runs.py record FOLDER      before a change that must not alter results
    python scripts/compare_runs.py compare FOLDER     after it, on the same machine with the same packages
    python scripts/compare_runs.py list               the names of the cases

`--only TEXT` chooses the cases whose name contains TEXT. `record` makes small random models and pairs of images once,
in FOLDER/inputs, so that `compare` trains the same weights on the same data whatever the tests' helpers have become.
For each case FOLDER/results.json has the records of metrics.jsonl without times, and two SHA-256 sums of the trained
tensors: of names and bytes, and of bytes alone. Runs go through `python -m tastemaker` (in this process, one after the
other, on one thread), so that the script survives changes inside the package.

When a setting, preset or command is renamed, change it in CASES and SIZES below. When a metric is renamed, add a line
to RENAMED_METRICS; when one is added or dropped on purpose, to NEW_METRICS or DROPPED_METRICS. A case whose results
change on purpose goes into CHANGED with the reason, which CHANGELOG.md says too.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import runpy
import shlex
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

SIZES = """
rounds=2 sampling.steps=4 sampling.samples=8 sampling.per_prompt=4 sampling.batch=6
optimizer.updates=2 optimizer.rows=5 optimizer.warmup=0 optimizer.lr=1e-3
evaluation.every=1 evaluation.prompts=2 evaluation.per_prompt=2
"""
"""What every case has, unless it says otherwise: 2 rounds of 8 images in 4 steps."""

GROUPS = {
    # A Stable Diffusion of random weights, in float32, epsilon prediction.
    "TINY": "model={inputs}/sd prompts=ddpo-animals",
    # A class-conditional DDPM of random weights.
    "PIXELS": "model={inputs}/ddpm prompts={inputs}/classes.txt sampling.guidance=2.0",
    # Smaller, for algorithms that follow the reward's gradient.
    "BACKPROP": (
        "reward=soft-colourfulness early_stop.metric=none sampling.samples=4 sampling.per_prompt=2 optimizer.rows=1"
    ),
    "PAIRS": "algorithm=diffusion-dpo pairs.sources={inputs}/pairs algorithm.beta=50",
}
"""Settings that several cases share."""

CASES: dict[str, str] = {
    # One run for each algorithm, with the preset that the documentation names for it where there is one.
    "ddpo": "ddpo-compressibility {TINY}",
    "ddpo-score-function": "ddpo-compressibility-sf {TINY} optimizer.updates=1",
    "single-pass": "ddpo-compressibility-sf {TINY} optimizer.updates=1 optimizer.single_pass=true",
    "pg": "pg-compressibility {TINY}",
    "dpok": "dpok-compressibility {TINY}",
    "dpok-value": (
        "dpok-compressibility {TINY} algorithm.value=mlp algorithm.clamp=direct algorithm.divergence=noise "
        "advantage.normalise=base"
    ),
    "dpo": "dpo-compressibility {TINY} sampling.per_prompt=2",
    "dpo-best-worst-sampler": "dpo-compressibility {TINY} algorithm.pairs=best-worst algorithm.reference=sampler",
    "grpo": "grpo-compressibility {TINY}",
    "ppo": "ppo-compressibility {TINY}",
    "ppo-cnn-target": (
        "ppo-compressibility {TINY} algorithm.value=cnn algorithm.kl_target=0.1 sampling.log_prob=sum "
        "algorithm.kl_horizon=16 algorithm.value_warmup=3"
    ),
    "ppo-mlp-k1": (
        "ppo-compressibility {TINY} algorithm.value=mlp algorithm.kl_estimator=k1 optimizer.minibatch=images"
    ),
    "rwr": "rwr-compressibility {TINY} algorithm.noises=2",
    "rwr-vae-unguided": (
        "rwr-compressibility {TINY} algorithm.noises=2 algorithm.latents=vae algorithm.guided=false "
        "advantage.across=round"
    ),
    "rwr-sparse": "rwr-sparse-compressibility {TINY} algorithm.noises=2",
    "nft": "nft-compressibility {TINY} algorithm.noises=2",
    "nft-kl": (
        "nft-compressibility {TINY} algorithm.noises=2 algorithm.kl=0.1 algorithm.weighting=none "
        "optimizer.inner_epochs=2"
    ),
    "awm": "nft-compressibility {TINY} algorithm=awm algorithm.noises=2",
    "dgpo": "nft-compressibility {TINY} algorithm=dgpo algorithm.noises=2",
    "dppo": "grpo-compressibility {TINY} algorithm=dppo",
    "online-diffusion-dpo": "nft-compressibility {TINY} algorithm=online-diffusion-dpo algorithm.noises=2",
    "mapo": "ddpo-compressibility {TINY} {PAIRS} algorithm=mapo",
    "diffusion-kto": "ddpo-compressibility {TINY} {PAIRS} algorithm=diffusion-kto optimizer.updates=1",
    "diffusion-dpo": "ddpo-compressibility {TINY} {PAIRS}",
    "diffusion-dpo-guided": (
        "ddpo-compressibility {TINY} {PAIRS} algorithm.noises=2 algorithm.guided=true algorithm.drop_captions=0.4"
    ),
    "alignprop": "alignprop-compressibility {TINY} {BACKPROP}",
    "alignprop-kl-step": (
        "alignprop-compressibility {TINY} {BACKPROP} algorithm.truncation=per-step algorithm.kl=0.1 "
        "algorithm.checkpointing=step algorithm.objective=hinge algorithm.target=2"
    ),
    "alignprop-gaussian-none": (
        "alignprop-compressibility {TINY} {BACKPROP} algorithm.truncation=gaussian algorithm.last=2 "
        "algorithm.spread=1 algorithm.checkpointing=none algorithm.objective=distance algorithm.target=2"
    ),
    "alignprop-edict": "alignprop-compressibility {TINY} {BACKPROP} algorithm.checkpointing=edict",
    "draft": "draft-compressibility {TINY} {BACKPROP}",
    "draft-lv": "draft-lv-compressibility {TINY} {BACKPROP}",
    "draft-lv-ordinary": "draft-lv-compressibility {TINY} {BACKPROP} algorithm.ordinary=true sampling.eta=1",
    "refl": "refl-compressibility {TINY} {BACKPROP}",
    "refl-guided-anchor": (
        "refl-compressibility {TINY} {BACKPROP} algorithm.guided=true algorithm.kl=0.1 prior_preservation.weight=0.5 "
        "prior_preservation.images=4 prior_preservation.rows=2"
    ),
    "direct-align": "direct-align-compressibility {TINY} {BACKPROP} algorithm.jump=2 algorithm.noises=2",
    # Windows, branches, selections.
    "window-backward": (
        "ddpo-compressibility {TINY} window=backward window.initial=2 window.rounds=2 optimizer.first_share=1"
    ),
    "window-sliding-quiet": (
        "ddpo-compressibility {TINY} window=sliding window.size=2 window.every=1 sampling.noise_outside=false "
        "optimizer.first_share=1"
    ),
    "first-share": "ddpo-compressibility {TINY} optimizer.first_share=0.5",
    "b2": "b2-compressibility {TINY} sampling.branches=2 window.initial=2 window.rounds=2 selection.threshold=0.1",
    "branches-dpo": (
        "dpo-compressibility {TINY} sampling.branches=2 window=backward window.initial=2 window.rounds=2 "
        "optimizer.timestep_fraction=1"
    ),
    "selection-nonzero": "grpo-compressibility {TINY} selection=nonzero",
    "selection-best-worst": "ddpo-compressibility {TINY} selection=best-worst selection.threshold=0.1",
    # Normalisation.
    "normalise-per-prompt": (
        "ddpo-compressibility {TINY} advantage.normalise=per-prompt advantage.min_count=4 advantage.buffer=6"
    ),
    "normalise-windowed": (
        "ddpo-compressibility {TINY} advantage.normalise=windowed advantage.min_count=2 advantage.history=1"
    ),
    "normalise-group": "ddpo-compressibility {TINY} advantage.normalise=group advantage.spread=round",
    "normalise-round-clip": "ddpo-compressibility {TINY} advantage.normalise=round advantage.clip=0.5",
    "normalise-base": "ddpo-compressibility {TINY} advantage.normalise=base",
    "normalise-none": "ddpo-compressibility {TINY} advantage.normalise=none advantage.clip=none",
    # Optimizer, adapters, precision.
    "optimizer": (
        "ddpo-compressibility {TINY} optimizer.warmup=3 optimizer.weight_decay=0.1 optimizer.eps=1e-4 "
        "optimizer.clip_norm=0.01 optimizer.inner_epochs=2 optimizer.timestep_fraction=0.5 sampling.log_prob=sum"
    ),
    "minibatch-states": "ddpo-compressibility {TINY} optimizer.minibatch=states optimizer.updates=4",
    "ema": "ddpo-compressibility {TINY} optimizer.ema=0.8",
    "lora-alpha-targets": (
        "ddpo-compressibility {TINY} tuning.rank=2 tuning.alpha=6 tuning.targets=to_q,to_v "
        "tuning.gradient_checkpointing=true"
    ),
    "full": "grpo-compressibility {TINY} tuning.mode=full algorithm.kl=0.1 optimizer.lr=1e-5",
    "bf16": "ddpo-compressibility {TINY} precision=bf16",
    "no-guidance": "ddpo-compressibility {TINY} sampling.guidance=1 sampling.eta=0.7",
    # PriorPreservation, reference, evaluation.
    "anchor": (
        "ddpo-compressibility {TINY} prior_preservation.weight=0.5 prior_preservation.images=5 "
        "prior_preservation.rows=3 prior_preservation.drop_captions=0.3"
    ),
    "anchor-given": (
        "ddpo-compressibility {TINY} prior_preservation.weight=0.5 "
        "prior_preservation.source={inputs}/captioned prior_preservation.images=4 "
        "prior_preservation.rows=3 prior_preservation.guided=true"
    ),
    "reference-moves": "grpo-compressibility {TINY} reference.every=1 algorithm.kl=0.5",
    "combined-reward": (
        "ddpo-compressibility {TINY} 'reward=standardise(jpeg-compressibility) + 0.5*min(colourfulness, 1)' "
        "evaluation.rewards=soft-colourfulness evaluation.unseen={inputs}/unseen.txt"
    ),
    "early-stop": (
        "ddpo-compressibility {TINY} rounds=4 optimizer.lr=0.1 early_stop.metric=diversity early_stop.min_delta=0.0"
    ),
    # Other models: v prediction, class-conditional pixels, the bundled model with its judge.
    "v-prediction": "ddpo-compressibility model={inputs}/sd-v prompts=ddpo-animals",
    "v-prediction-nft": "nft-compressibility model={inputs}/sd-v prompts=ddpo-animals algorithm.noises=2",
    "size": "ddpo-compressibility {TINY} sampling.height=48 sampling.width=48 sampling.per_prompt=2",
    "pixels": "ddpo-compressibility {PIXELS}",
    "pixels-ppo": "ppo-compressibility {PIXELS}",
    "pixels-alignprop": "alignprop-compressibility {PIXELS} {BACKPROP}",
    "pixels-full": "ddpo-compressibility {PIXELS} tuning.mode=full optimizer.lr=1e-5",
    "bundled": "ddpo-compressibility",
    "bundled-clip": "ddpo-clip sampling.samples=4 sampling.per_prompt=2 evaluation.unseen=none",
    "bundled-alignprop": (
        "alignprop-compressibility sampling.samples=2 sampling.per_prompt=2 optimizer.updates=1 optimizer.rows=1"
    ),
}
"""Name -> preset and settings, which come after SIZES. Names in braces stand for the groups of settings above, and
{inputs} for FOLDER/inputs."""

RESUMED = {"ddpo", "ppo-cnn-target", "b2", "ema", "reference-moves", "combined-reward"}
"""Cases run once more as a run of one round that `resume` takes to two."""

AFTER: dict[str, str] = {
    "sample": "sample --adapter {runs}/ddpo --prompt 'a cat' --n 2 --out {out}",
    "sample-steps": "sample --adapter {runs}/ddpo --adapter-steps 0:2 --prompt 'a cat' --n 2 --out {out}",
    "mix": "mix {runs}/ddpo {runs}/pg --alpha 0,0.5,1 --take 2 --n 2 --out {out}",
    "mix-delta": "mix {runs}/ddpo {runs}/pg --alpha 0.3 --mode delta --rank 3 --take 2 --n 2 --out {out}",
}
"""Commands on the runs of above; compared by the tensors, images and tables that they leave."""

RENAMED_METRICS: dict[str, str] = {"anchor_loss": "prior_loss"}
"""Old name, or old beginning that ends in `/`, -> the new one."""
NEW_METRICS: tuple[str, ...] = ()
"""Beginnings of metrics that the baseline does not have."""
DROPPED_METRICS: tuple[str, ...] = ()
"""Beginnings of the baseline's metrics that are no longer written."""
CHANGED: dict[str, str] = {}
"""Case -> why its results are others on purpose. It still has to run."""
TIMES = ("seconds/", "seconds")
"""Beginnings of metrics that differ from run to run."""


@dataclass(frozen=True)
class Result:
    """What a run is compared by."""

    metrics: list[dict[str, Any]]
    """The records of metrics.jsonl without times."""
    tensors: str
    """SHA-256 of the trained tensors' names, types, shapes and bytes, sorted."""
    values: str
    """The same without names."""
    count: int
    """How many tensors there are."""
    files: dict[str, str]
    """Of commands other than train: SHA-256 of each image's pixels and of each table, by path."""


def make_inputs(folder: Path) -> None:
    """Small random models, pairs of images and prompt lists, the same on every call with the same packages."""
    sys.path.insert(0, str(ROOT / "tests"))
    import given  # pyright: ignore[reportMissingImports]
    import tiny  # pyright: ignore[reportMissingImports]

    tiny.folder(folder / "sd")
    tiny.folder(folder / "sd-v", seed=1, prediction_type="v_prediction")
    pixels = tiny.pixels(seed=2, channels=3, classes=4)
    pixels.register_to_config(id2label={0: "cat", 1: "dog", 2: "fish"})
    pixels.save_pretrained(folder / "ddpm")
    given.pairs(folder / "pairs", 7)
    captioned = folder / "captioned"
    captioned.mkdir()
    rows = []
    for number, prompt in enumerate(given.PROMPTS):
        given.image(100 + number).save(captioned / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "text": prompt})
    (captioned / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "classes.txt").write_text("cat\ndog\nfish\n")
    (folder / "unseen.txt").write_text("a tin\na cup\na hat\n")


def command(words: Sequence[str]) -> None:
    """`python -m tastemaker WORDS` in this process, without its output. Raises RuntimeError where it fails."""
    said, before = io.StringIO(), sys.argv
    sys.argv = ["tastemaker", *words]
    code: Any = 0
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            runpy.run_module("tastemaker", run_name="__main__", alter_sys=False)
    except SystemExit as stop:
        code = stop.code
    finally:
        sys.argv = before
    if code not in (0, None):
        raise RuntimeError(f"`tastemaker {' '.join(words)}` ended with {code}:\n{said.getvalue()[-2000:]}")


def read(run: Path, everything: bool = False) -> Result:
    """What a run left; of other commands also the hashes of all images and tables."""
    metrics: list[dict[str, Any]] = []
    if (run / "metrics.jsonl").exists():
        for line in (run / "metrics.jsonl").read_text().splitlines():
            metrics.append({k: v for k, v in json.loads(line).items() if not k.startswith(TIMES)})
    named, values = [], []
    roots = [run] if everything else [run / "adapter", run / "model"]
    for path in sorted(path for root in roots if root.exists() for path in root.rglob("*.safetensors")):
        for name, tensor in _tensors(path).items():
            content = f"{tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.contiguous().numpy().tobytes()
            values.append(hashlib.sha256(content).hexdigest())
            where = f"{path.relative_to(run)} {name} " if everything else f"{name} "
            named.append(where + values[-1])
    files = {}
    for path in sorted(run.rglob("*")) if everything else ():
        if path.suffix == ".png":
            files[str(path.relative_to(run))] = _pixels(path)
        elif path.suffix in (".json", ".jsonl", ".csv"):
            files[str(path.relative_to(run))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return Result(metrics, _sum(named), _sum(values), len(values), files)


def _tensors(path: Path) -> dict[str, Any]:
    import torch
    from safetensors.torch import load_file

    # numpy has no bfloat16; as integers the bits are the same.
    found = load_file(path)
    return {n: t.view(torch.int16) if t.dtype == torch.bfloat16 else t for n, t in found.items()}


def _pixels(path: Path) -> str:
    from PIL import Image

    with Image.open(path) as image:
        return hashlib.sha256(f"{image.size}".encode() + image.convert("RGB").tobytes()).hexdigest()


def _sum(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()


def words(case: str, inputs: Path, out: Path, *more: str) -> list[str]:
    """The command line of a case; a later setting takes the place of an earlier one."""
    text = CASES[case]
    for group, settings in GROUPS.items():
        text = text.replace(f"{{{group}}}", settings)
    preset, *settings = shlex.split(text)
    chosen: dict[str, str] = {}
    for setting in [*SIZES.split(), *settings, *more]:
        name, _, value = setting.replace("{inputs}", str(inputs)).partition("=")
        chosen[name] = value
    return ["train", preset, "--out", str(out), *(f"{name}={value}" for name, value in chosen.items())]


def run_all(inputs: Path, only: str) -> Iterator[tuple[str, Result | str]]:
    """Runs the cases whose name has `only` in it, each in a new folder: what each left, or why it failed."""
    chosen = [name for name in CASES if only in name]
    after = {name: line for name, line in AFTER.items() if only in name}
    needed = [name for name in CASES if any(f"{{runs}}/{name} " in line for line in after.values())]
    with tempfile.TemporaryDirectory() as temporary:
        runs = Path(temporary)
        for name in dict.fromkeys([*needed, *chosen]):
            found = attempt([words(name, inputs, runs / name)], runs / name)
            if name in chosen:
                yield name, found
            if name in chosen and name in RESUMED:
                resumed = runs / f"{name}-resumed"
                lines = [words(name, inputs, resumed, "rounds=1"), ["resume", str(resumed), "--rounds", "2"]]
                yield f"{name} (resumed)", attempt(lines, resumed)
            if name not in needed:
                shutil.rmtree(runs / name, ignore_errors=True)
        for name, line in after.items():
            out = runs / f"after-{name}"
            # Paths are among what the commands write, so they are the same each time.
            with working_folder(runs):
                words_after = shlex.split(line.replace("{runs}", ".").replace("{out}", out.name))
                yield name, attempt([words_after], out, everything=True)


def attempt(lines: Sequence[Sequence[str]], out: Path, everything: bool = False) -> Result | str:
    """What some commands leave in `out`, or why one of them failed."""
    try:
        for line in lines:
            command(line)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return read(out, everything)


@contextlib.contextmanager
def working_folder(folder: Path) -> Iterator[None]:
    """Inside it relative paths begin at `folder`."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def renamed(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The baseline's records by today's names."""
    records = []
    for record in metrics:
        found = {}
        for name, value in record.items():
            if name.startswith(DROPPED_METRICS) and DROPPED_METRICS:
                continue
            for old, new in RENAMED_METRICS.items():
                if name == old or (old.endswith("/") and name.startswith(old)):
                    name = new + name[len(old) :]
            found[name] = value
        records.append(found)
    return records


def differences(then: Mapping[str, Any], now: Result) -> list[str]:
    """What is not the same, one line each."""
    found = []
    if then["values"] != now.values:
        found.append(f"the trained tensors differ ({then['count']} then, {now.count} now)")
    elif then["tensors"] != now.tensors:
        found.append("the trained tensors have the same values under other names")
    before = renamed(then["metrics"])
    if len(before) != len(now.metrics):
        found.append(f"{len(before)} records then, {len(now.metrics)} now")
    for one, two in zip(before, now.metrics, strict=False):
        which = f"{'round' if 'round' in one else 'evaluation'} {one.get('round', one.get('evaluation'))}"
        for name in [*one, *(name for name in two if name not in one)]:
            if name not in one and NEW_METRICS and name.startswith(NEW_METRICS):
                continue
            a, b = one.get(name, "(none)"), two.get(name, "(none)")
            if a != b:
                found.append(f"{which}: {name} was {a!r}, is {b!r}")
    for path in sorted(then["files"].keys() | now.files.keys()):
        a, b = then["files"].get(path), now.files.get(path)
        if a != b:
            found.append(f"{path} {'is new' if a is None else 'is gone' if b is None else 'differs'}")
    return found


def record(folder: Path, only: str) -> int:
    """Writes FOLDER/inputs and FOLDER/results.json."""
    if not (folder / "inputs").exists():
        (folder / "inputs").mkdir(parents=True)
        make_inputs(folder / "inputs")
    file, begin = folder / "results.json", time.perf_counter()
    results = json.loads(file.read_text()) if file.exists() else {}
    failed = 0
    for name, result in run_all(folder / "inputs", only):
        failed += isinstance(result, str)
        if isinstance(result, Result):
            results[name] = vars(result)
            file.write_text(json.dumps(results, indent=1) + "\n")
        what = result if isinstance(result, str) else f"{len(result.metrics)} records, {result.count} tensors"
        print(f"{time.perf_counter() - begin:6.1f} s  {name}: {what}", flush=True)
    print(f"{len(results)} results in {file}; {failed} failed")
    return 1 if failed else 0


def compare(folder: Path, only: str) -> int:
    """Says what differs from FOLDER/results.json; 0 where nothing does that should not."""
    results, wrong, seen = json.loads((folder / "results.json").read_text()), 0, set()
    for name, result in run_all(folder / "inputs", only):
        seen.add(name)
        if name not in results:
            print(f"NEW      {name}: the baseline does not have it")
            continue
        if isinstance(result, str):
            wrong += 1
            print(f"FAILS    {name}: {result}")
            continue
        found = differences(results[name], result)
        reason = CHANGED.get(name.removesuffix(" (resumed)"))
        wrong += bool(found) and reason is None
        print(
            f"{'equal' if not found else 'changed' if reason else 'DIFFERS':8} {name}"
            + (f": {reason}" if reason and found else "")
        )
        for line in found[:8]:
            print(f"           {line}")
        if len(found) > 8:
            print(f"           and {len(found) - 8} more")
    gone = [name for name in results if only in name and name not in seen]
    for name in gone:
        print(f"GONE     {name}: the baseline has it, CASES does not")
    print(f"{len(seen)} results compared, {wrong} differ, {len(gone)} are gone")
    return 1 if wrong or gone else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["record", "compare", "list"])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    args = parser.parse_args()
    if args.action == "list":
        print("\n".join([*CASES, *AFTER]))
        return 0
    if args.folder is None:
        parser.error("give a folder")
    os.environ["TASTEMAKER_DEBUG"] = "1"
    import torch

    torch.set_num_threads(1)
    return (record if args.action == "record" else compare)(args.folder.resolve(), args.only)


if __name__ == "__main__":
    sys.exit(main())
