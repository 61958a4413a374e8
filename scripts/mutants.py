"""Shows that the tests notice when a setting is ignored or a formula is changed.

    python scripts/mutants.py settings [TEXT ...]    every field of Config is ignored in turn
    python scripts/mutants.py code [TEXT ...]        each change of MUTANTS is made in turn in a copy of src

With TEXT, only fields and changes in whose path or name one of the texts is.

In the first, whatever reads the field finds its default, except the checks of a dataclass itself; the field's own case
in tests/every_setting must fail. In the second, the cases and tests named with a change are run on the changed copy,
each in a process of its own, and must fail. Both print what survives, and end with 1 if anything does.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Mutant:
    """A change of one piece of source text, and the tests that must notice."""

    name: str
    file: str
    """Under src/tastemaker."""
    old: str
    """Found once in the file."""
    new: str
    fields: tuple[str, ...] = ()
    """Cases of tests/every_setting that must notice; of several at least one."""
    tests: tuple[str, ...] = ()
    """Other tests, as pytest names them."""


ADAMW = "return torch.optim.AdamW(parameters, lr=o.lr, betas=o.betas, eps=o.eps, weight_decay=o.weight_decay)"
MEASURES = "tests/unit/test_measures.py"
ENGINE = "tests/invariants/test_rollout_engine.py"
MUTANTS = (
    # Those that issue 13 names.
    Mutant(
        "AdamW without betas", "training/setup.py", ADAMW, ADAMW.replace(" betas=o.betas,", ""),
        ("optimizer.betas",),
    ),
    Mutant("AdamW without eps", "training/setup.py", ADAMW, ADAMW.replace(" eps=o.eps,", ""), ("optimizer.eps",)),
    Mutant(
        "AdamW without weight decay", "training/setup.py", ADAMW, ADAMW.replace(", weight_decay=o.weight_decay", ""),
        ("optimizer.weight_decay",),
    ),
    Mutant(
        "advantage.clip ignored", "training/rounds.py",
        "return values if options.clip is None else values.clamp(-options.clip, options.clip)", "return values",
        ("advantage.clip",),
    ),
    Mutant(
        "advantage.across ignored", "training/rounds.py",
        'group = list(draw.prompt_index) if options.across == "prompt" else None', "group = list(draw.prompt_index)",
        ("advantage.across",),
    ),
    Mutant(
        "KL controller fed one step's divergence", "training/rounds.py", 'metrics["kl"] * kept', 'metrics["kl"]',
        ("algorithm.ppo.kl_target",),
    ),
    Mutant(
        "LoRA's alpha ignored", "models/lora.py", "scale: Any = rank if alpha is None else alpha", "scale: Any = rank",
        ("tuning.alpha",),
    ),
    Mutant("diversity divided by n - 1", "evaluation/metrics.py", "(square / count)", "(square / (count - 1))",
           tests=(MEASURES,)),
    # More of the kind.
    Mutant("warm-up ignored", "training/lr_schedule.py", "return min(1.0, (count + 1) / (warmup + 1))", "return 1.0",
           ("optimizer.warmup",)),
    Mutant("warm-up that begins anew in each round", "training/update.py",
           "count = updates_before(session) + done", "count = done",
           ("optimizer.warmup",)),
    Mutant("evaluation.every ignored", "training/run.py", "number % config.evaluation.every == 0", "True",
           ("evaluation.every",)),
    Mutant("last model not evaluated", "training/run.py",
           "(number == config.rounds or number % config.evaluation.every == 0)",
           "(number % config.evaluation.every == 0)", ("evaluation.every",)),
    Mutant("first_share ignored", "training/setup.py", "return config.window if share == 1 else Both",
           "return config.window if share else Both", ("optimizer.first_share",)),
    Mutant("history ignored", "algorithms/advantage.py", "if when >= round - self.history", "if when >= 0",
           ("advantage.history",)),
    Mutant("history one round longer", "algorithms/advantage.py", "when >= round - self.history",
           "when >= round - self.history - 1", ("advantage.history",)),
    Mutant("min_count of windowed ignored", "algorithms/advantage.py", "max(2, self.min_count)", "2",
           ("advantage.min_count",)),
    Mutant("min_count of per-prompt ignored", "algorithms/advantage.py", "if len(own) >= self.min_count else whole",
           "if len(own) >= 16 else whole", ("advantage.min_count",)),
    Mutant("buffer ignored", "algorithms/advantage.py", "self.past[prompt][-self.buffer :]", "self.past[prompt][-32:]",
           ("advantage.buffer",)),
    Mutant("value_clip ignored", "algorithms/ppo.py", "rows.target, self.value_clip)", "rows.target, 0.2)",
           ("algorithm.ppo.value_clip",)),
    Mutant("value_weight ignored", "algorithms/ppo.py", "self.value_weight * error", "error",
           ("algorithm.ppo.value_weight",)),
    Mutant("lambda ignored", "algorithms/advantage.py", "discount * smoothing * last", "discount * last",
           ("algorithm.ppo.smoothing",)),
    Mutant("gamma ignored in the next value", "algorithms/advantage.py", "discount * after", "after",
           ("algorithm.ppo.discount",)),
    Mutant("gamma ignored in the sum", "algorithms/advantage.py", "discount * smoothing * last", "smoothing * last",
           ("algorithm.ppo.discount",)),
    Mutant("decay of the average ignored", "training/update.py",
           "session.average.ema_update(session.config.optimizer.ema)", "session.average.ema_update(0.99)",
           ("optimizer.ema",)),
    Mutant("average moved by its decay", "models/weight_copy.py", "lerp_(parameter, 1 - decay)",
           "lerp_(parameter, decay)",
           ("optimizer.ema",)),
    Mutant("evaluations without the average", "training/evaluations.py",
           "len(draw) * sampling.steps), session.inference(), session.averaged()",
           "len(draw) * sampling.steps), session.inference()", ("optimizer.ema",)),
    Mutant("value network without weight decay", "training/setup.py",
           'groups.append({"params": list(value.parameters())})',
           'groups.append({"params": list(value.parameters()), "weight_decay": 0.0})', ("optimizer.weight_decay",)),
    Mutant("value network at the policy's rate", "training/setup.py", "rates.append((requirements.value.lr,",
           "rates.append((config.optimizer.lr,", ("algorithm.ppo.value_lr",)),
    Mutant("value network without its warm-up", "training/setup.py", "requirements.value.warmup))", "0))",
           ("algorithm.ppo.value_warmup",)),
    Mutant("clip_norm ignored", "training/update.py", "limit = config.optimizer.clip_norm", "limit = 1.0",
           ("optimizer.clip_norm",)),
    Mutant("training without guidance", "algorithms/base.py", "self.time(rows), rows.cond)",
           "self.time(rows), rows.cond.unguided())", ("sampling.guidance",)),
    Mutant("sampling without guidance", "evaluation/evaluate.py",
           "model.encode(chosen.prompts, guidance, pooled=pooled)",
           "model.encode(chosen.prompts, 1.0, pooled=pooled)", ("sampling.guidance",)),
    Mutant("training at eta = 1", "training/setup.py", "config.sampling.eta, config.sampling.sde_type)",
           "1.0, config.sampling.sde_type)", ("sampling.eta",)),
    Mutant("timestep_fraction ignored", "training/draws.py", "if options.timestep_fraction < 1:", "if False:",
           ("optimizer.timestep_fraction",)),
    Mutant("drop_captions of prior preservation ignored", "training/prior_preservation.py",
           "share = session.config.prior_preservation.drop_captions", "share = 0.0",
           ("prior_preservation.drop_captions",)),
    Mutant("drop_captions of Diffusion-DPO ignored", "algorithms/diffusion_dpo.py", "noise.drop(self.drop_captions,",
           "noise.drop(0.0,", ("algorithm.diffusion-dpo.drop_captions",)),
    Mutant("keep_every ignored", "runs/checkpoint.py",
           "if not keep.keep_every or _round(old) % keep.keep_every:", "if True:", ("checkpoint.keep_every",)),
    Mutant("keep ignored", "runs/checkpoint.py", "[: -keep.keep]", "[:-2]", ("checkpoint.keep",)),
    Mutant("checkpoint.every ignored", "training/run.py", "state.round % config.checkpoint.every == 0", "True",
           ("checkpoint.every",)),
    Mutant("prior preservation's weight ignored", "training/prior_preservation.py",
           "options.weight * error.sum()", "error.sum()",
           ("prior_preservation.weight",)),
    Mutant("prior preservation's guidance ignored", "training/prior_preservation.py",
           "guided=options.guided", "guided=False",
           ("prior_preservation.guided",)),
    Mutant("reference never moves", "training/reference.py", "held.sync()", "pass",
           ("reference.every",)),
    Mutant("reference moves each round", "training/reference.py", "session.state.round % every == 0", "True",
           ("reference.every",)),
    Mutant("early_stop.min_delta ignored", "training/early_stopping.py", "state.best_metric - options.min_delta",
           "state.best_metric - 0.1",
           ("early_stop.min_delta",)),
    Mutant("fall below the last measure and not the highest", "training/early_stopping.py",
           "max(value, state.best_metric)", "value",
           ("early_stop.min_delta",)),
    Mutant("deviation of a sample", "spread.py", "correction: int = 0", "correction: int = 1", tests=(MEASURES,)),
    Mutant("progress without the base model's deviation", "training/measurements.py", "above / unit", "above",
           tests=(MEASURES,)),
    Mutant("log_prob of training ignored", "training/setup.py", "reduction=config.sampling.log_prob",
           'reduction="mean"', ("sampling.log_prob",)),
    Mutant("noise_outside ignored", "diffusion/sampler.py", "self.noise_outside or not keep", "True",
           ("sampling.noise_outside",)),
    Mutant("inner epochs with the first one's noise", "training/update.py", "epoch=found // count", "epoch=None",
           ("optimizer.inner_epochs",)),
    Mutant("controller's weight not used", "training/rounds.py",
           "requirements.kl if session.state.kl is None else session.state.kl",
           "requirements.kl",
           ("algorithm.ppo.kl_target",)),
    Mutant("spread of groups ignored", "algorithms/advantage.py",
           'if spread == "group" else whole', "if True else whole",
           ("advantage.spread",)),
    Mutant("remote settings not passed on", "training/setup.py", "load_reward(config.reward, config.remote,",
           "load_reward(config.reward, None,", ("remote.batch",)),
    Mutant("VLM settings not passed on", "training/setup.py",
           "reward = load_reward(config.reward, config.remote, display.log, known, config.vlm, config.labelers)",
           "reward = load_reward(config.reward, config.remote, display.log, known, labelers=config.labelers)",
           ("vlm.tokens",)),
    Mutant("split of pairs ignored", "labelling/pairs.py", "load_pairs(source, settings.split, probabilities",
           "load_pairs(source, probabilities", ("pairs.split",)),
    Mutant("Direct-Align's jump ignored", "algorithms/direct_align.py", "step + self.jump", "step + 4",
           ("algorithm.direct-align.jump",)),
    Mutant("ReFL's scale ignored", "algorithms/refl.py", "self.target, self.scale,", "self.target, 1.0,",
           ("algorithm.refl.scale",)),
    Mutant("NFT's span ignored", "algorithms/nft.py", "noised.weight / self.span", "noised.weight / 5.0",
           ("algorithm.nft.span",)),
    Mutant("DPO without clip", "algorithms/dpo.py", "self.beta, self.clip)", "self.beta, None)",
           ("algorithm.dpo.clip",)),
    Mutant("DPOK's reward weight ignored", "algorithms/dpok.py", "self.reward_weight * surrogate(", "10.0 * surrogate(",
           ("algorithm.dpok.reward_weight",)),
    Mutant("engine's file not compared", "rollout_engine/weights.py", "if path != str(file):", "if False:",
           tests=(ENGINE + "::test_an_engine_that_was_restarted",)),
    Mutant("engine's checksum not compared", "rollout_engine/weights.py", "if checksum == before[url]:", "if False:",
           tests=(ENGINE + "::test_weights_that_are_stale",)),
    Mutant("engines not compared with each other", "rollout_engine/weights.py", "if len(set(after.values())) > 1:",
           "if False:", tests=(ENGINE + "::test_engines_that_differ",)),
    Mutant("engine's probe not compared", "rollout_engine/weights.py", "if change <= last.repeat:", "if False:",
           tests=(ENGINE + "::test_weights_that_are_stale",)),
    Mutant("engine's adapter without its scale", "rollout_engine/weights.py", ".double() * f.scale)", ".double())",
           tests=(ENGINE + "::test_adapters_are_sent_when_they_change_and_not_before",)),
    Mutant("engine's noise levels not compared", "rollout_engine/sampler.py", "if not same:", "if False:",
           tests=(ENGINE + "::test_other_times",)),
    Mutant("engine's log-probabilities of the steps before", "rollout_engine/sampler.py",
           "answer.logp[list(steps)]", "answer.logp[[step - 1 for step in steps]]",
           tests=(ENGINE + "::test_adapters_are_sent_when_they_change_and_not_before",)),
    Mutant("engine's response of another image taken", "rollout_engine/messages.py",
           "if (made.prompt, made.seed) != (request.prompt, request.seed):", "if False:",
           tests=(ENGINE + "::test_wrong_answers",)),
)  # fmt: skip


def code(texts: Sequence[str]) -> int:
    """Makes each change in a copy of src, and runs its cases and tests on it. Says which survive."""
    warm()
    survived: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for number, mutant in enumerate(mutant for mutant in MUTANTS if chosen(mutant.name, texts)):
            began, source = time.perf_counter(), folder / f"src-{number}"
            shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
            change(source / "tastemaker" / mutant.file, mutant)
            output = folder / f"output-{number}"
            code = in_child(source, mutant, folder, output)
            said = output.read_text(errors="replace")
            seconds = time.perf_counter() - began
            print(f"{'killed' if code == 1 else 'SURVIVED':8}  {mutant.name}  ({seconds:.0f} s)", flush=True)
            if code != 1:
                survived.append(mutant.name)
                print(said[-1500:])
    print(f"{len(survived)} survived" + "".join(f"\n  {name}" for name in survived))
    return 1 if survived else 0


def chosen(name: str, texts: Sequence[str]) -> bool:
    """Whether one of the texts is in the name; all are chosen where there is no text."""
    return not texts or any(text in name for text in texts)


def warm() -> None:
    """Imports what takes long, and nothing of tastemaker: each mutant is a fork of this process."""
    warnings.simplefilter("ignore")
    import accelerate
    import diffusers.pipelines.ddpm.pipeline_ddpm
    import diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion
    import fastapi
    import peft
    import pytest
    import torch
    import uvicorn

    assert "tastemaker" not in sys.modules
    assert all(map(bool, (accelerate, diffusers, fastapi, peft, pytest, uvicorn)))
    torch.set_num_threads(1)


def in_child(source: Path, mutant: Mutant, folder: Path, output: Path) -> int:
    """1 where a case or test of the mutant fails, 0 where all pass, 2 where they cannot be run."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 2
    try:
        with output.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            for path in (ROOT / "tests/invariants", ROOT / "tests", source):
                sys.path.insert(0, str(path))
            code = 1 if not cases_pass(mutant, folder) or not tests_pass(mutant) else 0
            sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def cases_pass(mutant: Mutant, folder: Path) -> bool:
    if not mutant.fields:
        return True
    import tastemaker
    import tiny  # pyright: ignore[reportMissingImports]
    from invariants.test_every_setting import CASES, Lab  # pyright: ignore[reportMissingImports]

    assert str(folder) in str(tastemaker.__file__), tastemaker.__file__
    if not (folder / "sd").exists():
        tiny.folder(folder / "sd")
    lab = Lab(Path(tempfile.mkdtemp(dir=folder)), folder / "sd")
    cases = [CASES[field] for field in mutant.fields]
    try:
        for case in cases:
            case(lab)
    except Exception:
        traceback.print_exc()
        return False
    return True


def tests_pass(mutant: Mutant) -> bool:
    """Raises SystemExit where pytest found no test, or could not run them."""
    if not mutant.tests:
        return True
    import pytest

    # Modules that are imported already cannot be rewritten, of which pytest warns, and warnings are errors.
    options = ["-x", "-q", "-p", "no:cacheprovider", "-o", "filterwarnings=ignore"]
    code = pytest.main([*options, *mutant.tests])
    if code not in (0, 1):
        raise SystemExit(f"pytest ended with {code}")
    return code == 0


def change(path: Path, mutant: Mutant) -> None:
    """Replaces the text. Raises SystemExit where it is not there exactly once."""
    content = path.read_text(encoding="utf-8")
    if content.count(mutant.old) != 1 or mutant.old == mutant.new:
        raise SystemExit(f"{mutant.name}: {mutant.file} has its text {content.count(mutant.old)} times, not once")
    path.write_text(content.replace(mutant.old, mutant.new), encoding="utf-8")


class Ignored:
    """In the place of a dataclass's field: reads as the default, except in the dataclass's own checks."""

    def __init__(self, name: str, default: Any) -> None:
        self.name, self.default = f"_ignored_{name}", default

    def __set__(self, instance: Any, value: Any) -> None:
        vars(instance)[self.name] = value

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:  # what `fields` and `replace` look at
            return self.default
        caller = sys._getframe(1)
        checks = caller.f_code.co_name == "__post_init__" or caller.f_code.co_name.startswith("_check")
        own = caller.f_globals.get("__name__") == "dataclasses"
        return vars(instance)[self.name] if checks or own else self.default


@contextmanager
def ignored(cls: type, name: str) -> Iterator[None]:
    """Inside it nothing that uses an instance of the dataclass gets to see what was given for the field."""
    field = next(field for field in dataclasses.fields(cls) if field.name == name)
    factory = field.default_factory
    default = field.default if factory is dataclasses.MISSING else factory()
    before = cls.__dict__.get(name, dataclasses.MISSING)
    setattr(cls, name, Ignored(name, default))
    try:
        yield
    finally:
        if before is dataclasses.MISSING:
            delattr(cls, name)
        else:
            setattr(cls, name, before)


def settings(texts: Sequence[str]) -> int:
    """Runs the case of each field while the field is ignored. Says which pass all the same."""
    for folder in (ROOT / "tests", ROOT / "tests/invariants"):
        sys.path.insert(0, str(folder))
    warnings.simplefilter("ignore")
    import torch

    import tiny  # pyright: ignore[reportMissingImports]
    from invariants.test_every_setting import CASES, FIELDS, Lab  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(1)
    survived, missing = [], [field for field in FIELDS if field not in CASES]
    with tempfile.TemporaryDirectory() as temporary, open(os.devnull, "w") as nowhere:
        checkpoint = tiny.folder(Path(temporary) / "sd")
        for field, (cls, name) in FIELDS.items():
            if not chosen(field, texts) or field not in CASES:
                continue
            found = "passed all the same"
            with redirect_stdout(nowhere), ignored(cls, name):
                try:
                    CASES[field](Lab(Path(tempfile.mkdtemp(dir=temporary)), checkpoint))
                except BaseException as error:
                    if isinstance(error, KeyboardInterrupt):
                        raise
                    found = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
            if found == "passed all the same":
                survived.append(field)
            print(f"{'SURVIVED' if field in survived else 'noticed'}  {field}  {found}", flush=True)
    print(f"{len(FIELDS)} fields, {len(missing)} without a case, {len(survived)} survived: {', '.join(survived)}")
    return 1 if survived or missing else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["settings", "code"])
    parser.add_argument("text", nargs="*", help="only those whose name contains one of these")
    args = parser.parse_args()
    return (settings if args.kind == "settings" else code)(args.text)


if __name__ == "__main__":
    sys.exit(main())
