"""The options of `tastemaker evaluate`, and the plan that they give with what the runs themselves say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tastemaker.cli.evaluated import find_models
from tastemaker.cli.sampling import (
    SAMPLING_FLAGS,
    SamplingFlags,
    as_flag,
    chosen_sampling,
    given_flags,
    require_at_least,
)
from tastemaker.config.schema import Config, Sampling
from tastemaker.data.prompt_set import PromptSet as PromptList
from tastemaker.data.prompts import load_prompts
from tastemaker.errors import ConfigError
from tastemaker.evaluation.evaluation_plan import FEATURE_METRICS, EvaluationPlan, PromptSet
from tastemaker.evaluation.evaluation_table import reference_files
from tastemaker.in_memory import PREFIX
from tastemaker.models.bundled import BUNDLED
from tastemaker.rewards.base import FunctionReward, Reward
from tastemaker.rewards.expression import parse, parts, without_addresses
from tastemaker.rewards.registry import load_reward
from tastemaker.rewards.vlm.settings import is_vlm
from tastemaker.training.draws import EVALUATION, draw_evaluation
from tastemaker.training.setup import split_prompts

SEEN, UNSEEN = "seen", "unseen"
"""Names of a run's own prompts, and of those that it evaluates and does not train on."""


@dataclass(frozen=True)
class Options:
    """What was asked for; None is the runs' own."""

    models: Sequence[str]
    model: str | None = None
    prompts: Mapping[str, str | PromptList] = field(default_factory=dict)
    """Prompts, or what `--prompts` takes, by the names of prompt sets."""
    prompt_count: int | None = None
    """Prompts taken from each list; None takes all of those that are given one by one."""
    seeds: int | None = None
    seed: int | None = None
    sampling: SamplingFlags = field(default_factory=SamplingFlags)
    batch: int | None = None
    precision: str | None = None
    rewards: Sequence[str] | None = None
    given: Mapping[str, Reward] = field(default_factory=dict)
    """Rewards that are objects of a program, by name."""
    metrics: Sequence[str] | None = None
    features: str | None = None
    reference: Path | None = None


def make_plan(options: Options) -> EvaluationPlan:
    """What is to be done. Loads the rewards. Raises a TastemakerError for anything that is wrong or missing."""
    found = find_models(options.models, options.model)
    models = tuple(one.evaluated for one in found)
    configs = list({id(config): config for one in found for config in one.configs}.values())
    if options.features is not None and not set(options.metrics or ()) & set(FEATURE_METRICS):
        raise ConfigError(f"--features is of the metrics {', '.join(FEATURE_METRICS)}: name one of them in --metrics")
    if options.reference is not None:
        if not {"fid", "kid"} & set(options.metrics or ()):
            raise ConfigError("--reference is of the metrics fid and kid: name one of them in --metrics")
        reference_files(options.reference)
    counts = {"prompt-count": options.prompt_count, "seeds": options.seeds, "batch": options.batch}
    for name, value in counts.items():
        if value is not None:
            require_at_least(name, value, 1)
    bundled = all(one.model in BUNDLED for one in models)
    metrics = tuple(dict.fromkeys(options.metrics or ("judge", "diversity", "speed")))
    prompt_sets, sampling = _prompt_sets(options, configs), _sampling(options, configs)
    rewards, owners = _rewards(options, configs)
    return EvaluationPlan(
        models=models,
        prompt_sets=prompt_sets,
        sampling=sampling,
        rewards=rewards,
        metrics=tuple(metric for metric in metrics if bundled or options.metrics or metric != "judge"),
        precision=options.precision or (configs[0].precision if configs else _default_precision()),
        features=options.features or ("bundled" if bundled and set(metrics) & set(FEATURE_METRICS) else None),
        reference=options.reference,
        settings=_elsewhere(rewards, owners),
    )


def _default_precision() -> str:
    return "fp16" if torch.cuda.is_available() else "fp32"


def _sampling(options: Options, configs: Sequence[Config]) -> Sampling:
    """The runs' settings with those given over them. Raises ConfigError where the runs differ."""
    base = configs[0].sampling if configs else Config().sampling
    given = given_flags(options.sampling)
    for config in configs[1:]:
        for name in SAMPLING_FLAGS:
            one, other = vars(base)[name], vars(config.sampling)[name]
            if one != other and name not in given:
                raise ConfigError(
                    f"the runs were sampled with {name.replace('_', '-')} {one!r} and {other!r}, but all models must "
                    f"be sampled alike: give {as_flag(name)}"
                )
    chosen = chosen_sampling(base, options.sampling)
    batch = options.batch or base.images_per_batch
    return Sampling(
        steps=chosen.steps, eta=chosen.eta, sde_type=chosen.sde_type, guidance=chosen.guidance,
        embedded_guidance=chosen.embedded_guidance, negative_prompt=chosen.negative_prompt,
        height=chosen.height, width=chosen.width, samples=batch, batch=batch,
    )  # fmt: skip


def _prompt_sets(options: Options, configs: Sequence[Config]) -> tuple[PromptSet, ...]:
    listed = {name: _loaded(name, source) for name, source in options.prompts.items()} or _prompts_of_runs(configs)
    if not listed:
        raise ConfigError(
            "none of the models is of a run, which would name prompts: give --prompts, as in --prompts "
            "seen=bundled-single-train unseen=bundled-single-test"
        )
    evaluation = configs[0].evaluation if configs else Config().evaluation
    given = [name for name, source in options.prompts.items() if isinstance(source, PromptList)]
    seeds = options.seeds or evaluation.per_prompt
    own = {config.seed for config in configs}
    seed = options.seed if options.seed is not None else own.pop() if len(own) == 1 else 0
    return tuple(
        PromptSet(
            name,
            source,
            draw_evaluation(
                prompts,
                seed,
                options.prompt_count or (len(prompts) if name in given else evaluation.prompts),
                seeds,
                EVALUATION + number,
            ),
        )
        for number, (name, (source, prompts)) in enumerate(listed.items())
    )


def _loaded(name: str, source: str | PromptList) -> tuple[str, PromptList]:
    if isinstance(source, PromptList):
        return "given as a list", source
    if not source.strip():
        raise ConfigError(f"the prompt set {name} names no prompts: give a list, as in {name}=bundled-single-test")
    return source, load_prompts(source)


def _prompts_of_runs(configs: Sequence[Config]) -> dict[str, tuple[str, PromptList]]:
    """The prompts of runs as `seen` and `unseen`; where runs have different ones, every list by its own name."""
    named: dict[str, dict[str, PromptList]] = {SEEN: {}, UNSEEN: {}}
    for config in configs:
        if config.prompts.startswith(PREFIX):
            raise ConfigError("a run was trained on prompts of a Python program: give --prompts NAME=LIST")
        seen, unseen = split_prompts(config, load_prompts(config.prompts))
        named[SEEN][config.prompts] = seen
        if unseen is not None:
            named[UNSEEN][str(config.evaluation.unseen)] = unseen
    if all(len(lists) <= 1 for lists in named.values()):
        return {name: next(iter(lists.items())) for name, lists in named.items() if lists}
    return {source: (source, prompts) for lists in named.values() for source, prompts in lists.items()}


def _rewards(options: Options, configs: Sequence[Config]) -> tuple[dict[str, Reward], dict[str, Config]]:
    """The rewards by name, those of the runs first, and the config whose settings of servers and models each has."""
    own = [(config.reward, config) for config in configs if not config.reward.startswith(PREFIX)]
    first = configs[0] if configs else Config()
    others = [(name, first) for name in options.rewards] if options.rewards is not None else [
        (name, config) for config in configs for name in config.evaluation.rewards
    ]  # fmt: skip
    owners: dict[str, Config] = {}
    for name, config in [*own, *others]:
        owners.setdefault(name, config)
    if not owners and not options.given:
        raise ConfigError("none of the models is of a run, which would name a reward: give --rewards NAME")
    known: dict[str, FunctionReward] = {}
    made = {
        name: load_reward(
            name, config.remote, loaded=known, vlm=config.vlm, labelers=config.labelers
        )
        for name, config in owners.items()
    }  # fmt: skip
    return made | dict(options.given), owners


def _elsewhere(rewards: Mapping[str, Reward], owners: Mapping[str, Config]) -> dict[str, Any]:
    """What answers depend on that are not computed here. Raises RewardError where a server cannot be reached."""
    found: dict[str, Any] = {}
    identities = [(without_addresses(name), one.identity()) for name, one in rewards.items()]
    answering = [[name, identity] for name, identity in identities if identity is not None]
    if answering:
        found["rewards elsewhere"] = answering
    asked = {
        without_addresses(name): config.vlm.figures
        for name, config in owners.items()
        if any(map(is_vlm, parts(parse(name))))
    }
    return found | ({"vision-language models": asked} if asked else {})
