"""Cases that show that a setting acts, one for each field of `Config`; run by invariants/test_every_setting.py.

To add a case for a new setting, write in the module of its section

    @acts("optimizer.my_setting")
    def my_setting(lab: Lab) -> None:
        session = lab.session(optimizer={"my_setting": 3})
        assert ...

The name is the setting's path in the config; a field of one algorithm, window or selection has the name of that in it,
as in `algorithm.ppo.clip`. One function may show several fields. It must fail where the field is ignored, that is,
where whatever reads it finds the default: `python scripts/mutants.py settings` tries that for every field, so choose a
value other than the default, and compare with a number worked out without the code under test where one is easy to
state. Settings that change speed or memory alone are shown by their mechanism: the number and size of network calls,
the checkpoints kept, the limits that are passed on.
"""

from __future__ import annotations

import copy
import types
import typing
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields, is_dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import tiny
from tastemaker.algorithms.base import Task
from tastemaker.algorithms.pg import PG
from tastemaker.config.schema import Advantage, Config, Evaluation, Optimizer, Sampling
from tastemaker.diffusion.sampler import sample
from tastemaker.diffusion.sde import ddim
from tastemaker.models.latent_unet import LatentUNet
from tastemaker.models.stable_diffusion import SD
from tastemaker.models.tuning import Tuning
from tastemaker.runs.checkpoint import State
from tastemaker.training import rounds, setup, update
from tastemaker.training.session import Session
from tastemaker.types import Draw, Rollout, Rows

Case = Callable[["Lab"], None]
CASES: dict[str, Case] = {}
"""Path of a field -> the function that fails where it is ignored."""


def acts(*names: str) -> Callable[[Case], Case]:
    """Marks a function as the case of these fields."""

    def register(case: Case) -> Case:
        for name in names:
            assert name not in CASES, f"two cases for {name}"
            CASES[name] = case
        return case

    return register


def every_field(cls: type = Config, prefix: str = "") -> dict[str, tuple[type, str]]:
    """Paths of all fields of a dataclass and of those in it -> the class that has the field, and its name there.

    Of a choice between dataclasses (an algorithm, a window) both the choice and each one's fields are among them.
    """
    found: dict[str, tuple[type, str]] = {}
    hints = typing.get_type_hints(cls)
    for field in fields(cls):
        path, hint = prefix + field.name, hints[field.name]
        members = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        choices = [member for member in members if is_dataclass(member)]
        if len(choices) != 1:
            found[path] = (cls, field.name)
        for choice in choices:
            under = path if len(choices) == 1 else f"{path}.{choice.name}"
            found |= every_field(choice, f"{under}.")
    return found


class Lab:
    """A small model, sessions on it, and ways to look at what they do."""

    def __init__(self, folder: Path, checkpoint: Path) -> None:
        self.folder, self.checkpoint = folder, checkpoint
        self._count = 0
        self._passed: set[Case] = set()

    def once(self, case: Case) -> None:
        """Runs a case of several fields until it has passed, and then no more."""
        if case not in self._passed:
            case(self)
            self._passed.add(case)

    @cached_property
    def pipeline(self) -> Any:
        return tiny.pipeline()

    def new(self, name: str = "folder") -> Path:
        """A path that is not there yet."""
        self._count += 1
        return self.folder / f"{name}-{self._count}"

    def file(self, name: str, text: str) -> Path:
        path = self.new(Path(name).stem).with_suffix(Path(name).suffix)
        path.write_text(text)
        return path

    def config(self, **changes: Any) -> Config:
        """A run of 4 images in 3 steps, two updates a round, without guidance; a dict changes some of a section."""
        base = Config(
            model=str(self.checkpoint), prompts="ddpo-animals", reward="smooth:redness", rounds=2, algorithm=PG(),
            advantage=Advantage(normalise="round"),
            sampling=Sampling(steps=3, samples=4, per_prompt=2, batch=8, guidance=1.0),
            optimizer=Optimizer(lr=1e-3, updates=2, rows=50, clip_norm=1e9),
            tuning=Tuning(rank=2, targets=("to_q", "to_v")),
            evaluation=Evaluation(prompts=2, per_prompt=2, kl_images=0),
        )  # fmt: skip
        return replace(
            base,
            **{
                name: replace(getattr(base, name), **value) if isinstance(value, dict) else value
                for name, value in changes.items()
            },
        )

    def session(self, trained: bool = False, **changes: Any) -> Session:
        """A session of `config(**changes)`. `trained` gives the adapters values, as after some updates."""
        config = self.config(**changes)
        with (
            mock.patch.object(setup, "load_model", self._load) if config.model == str(self.checkpoint) else ExitStack()
        ):
            made = setup.start(config, self.new(), State())
        made.display.interactive = False
        if trained:
            drift(made.model)
        return made

    def _load(self, source: str, precision: str, device: Any, network_device: Any) -> LatentUNet:
        return LatentUNet(SD, copy.deepcopy(self.pipeline), precision, device, network_device)

    @cached_property
    def policy(self) -> Policy:
        """A model in float64 with adapters that have learned something, and a rollout of four of its images.

        The same for all cases: they must leave it as it is.
        """
        return Policy(copy.deepcopy(self.pipeline))


def drift(model: Any) -> None:
    """Adapters start with B = 0, as the reference: gives them values."""
    random = torch.Generator().manual_seed(7)
    for name, parameter in sorted(model.weights.trainable().items()):
        if "lora_B" in name:
            parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=random))


DRAW = Draw(0, 1, ("a cat", "a cat", "a dog", "a dog"), (0, 0, 1, 1), (0, 1, 0, 1))
GUIDANCE = 3.0


class Policy:
    """What algorithms get to see: a task, and a rollout of 4 images in 3 steps with rewards and advantages."""

    def __init__(self, pipeline: Any) -> None:
        model = LatentUNet(SD, pipeline)
        model.tune(Tuning(rank=2, targets=("to_q", "to_v")))
        pipeline.unet.double()
        model.predict = lambda x, t, cond: model.network(  # type: ignore[method-assign]
            x.double(), t, encoder_hidden_states=cond["text"].double(), return_dict=False
        )[0]
        drift(model)
        self.model, grid, cond = model, model.process.grid(3), model.encode(DRAW.prompts, GUIDANCE)
        self.task = Task(model, ddim(grid, 1.0), rows=50, kl=0.1)
        made = sample(model, cond, DRAW, ddim(grid, 1.0), ddim(grid, 1.0).stochastic())
        self.rollout: Rollout = replace(
            made, draw=DRAW, reward=torch.tensor([0.3, -0.6, 0.1, 2.0]),
            advantage=torch.tensor([0.5, -1.0, -0.4, 1.5]), group=torch.tensor([0, 0, 1, 1]),
        )  # fmt: skip

    def moved(self, log_ratio: list[float]) -> Rollout:
        """The rollout as if each image's steps had had other log-probabilities, so that these are the log-ratios."""
        return replace(
            self.rollout,
            trajectory=replace(
                self.rollout.trajectory, logp=self.rollout.logp - torch.tensor(log_ratio).double()[:, None]
            ),
        )

    @torch.no_grad()
    def loss(self, algorithm: Any, rollout: Rollout | None = None, **task: Any) -> tuple[Tensor, dict[str, Tensor]]:
        own = replace(self.task, **task)
        rows = algorithm.prepare(own, rollout or self.rollout)
        return algorithm.loss(own, rows)

    @torch.no_grad()
    def divergence(self, rows: Rows) -> Tensor:
        """|mean - mean of the reference|^2 / (2 std^2) by element [N,*D]."""
        step = rows.transitions()
        policy, reference = self.task.policy(step), self.task.reference(step)
        return (policy.mean - reference.mean).square() / (2 * policy.std**2)


@contextmanager
def network_calls(model: Any) -> Iterator[list[tuple[int, bool]]]:
    """Sizes of the batches that the network is given, and whether a graph is kept."""
    seen: list[tuple[int, bool]] = []
    note = lambda module, arguments: seen.append((len(arguments[0]), torch.is_grad_enabled()))  # noqa: E731
    hook = model.pipeline.unet.register_forward_pre_hook(note)
    try:
        yield seen
    finally:
        hook.remove()


@contextmanager
def updates_seen(session: Session) -> Iterator[list[tuple[Rows, dict[str, Tensor]]]]:
    """The rows of each update, and the gradients that the optimizer is given for it, by name."""
    seen: list[tuple[Rows, dict[str, Tensor]]] = []
    accumulate = update.accumulate

    def capture(own: Session, rows: Rows, *arguments: Any) -> float:
        norm = accumulate(own, rows, *arguments)
        seen.append((rows, {name: p.grad.clone() for name, p in own.model.weights.trainable().items()}))
        return norm

    with mock.patch.object(update, "accumulate", capture):
        yield seen


@contextmanager
def rates_seen(session: Session) -> Iterator[list[float]]:
    """The model's learning rate in each optimizer step."""
    seen: list[float] = []
    optimizer: Any = session.optimizer
    hook = optimizer.optimizer.register_step_pre_hook(lambda own, *_: seen.append(own.param_groups[0]["lr"]))
    try:
        yield seen
    finally:
        hook.remove()


def weights(session: Session) -> dict[str, Tensor]:
    """Copies of what is trained, by name."""
    return {name: p.detach().clone() for name, p in session.model.weights.trainable().items()}


def flat(values: dict[str, Tensor]) -> Tensor:
    """All in one vector in float64, by name."""
    return torch.cat([values[name].flatten().double() for name in sorted(values)])


def one_round(session: Session) -> dict[str, Any]:
    return rounds.one_round(session)


@contextmanager
def called(module: Any, name: str) -> Iterator[list[tuple[tuple[Any, ...], dict[str, Any], Any]]]:
    """Arguments, named arguments and answers of the calls of a module's function."""
    seen: list[tuple[tuple[Any, ...], dict[str, Any], Any]] = []
    function = getattr(module, name)

    def capture(*arguments: Any, **named: Any) -> Any:
        answer = function(*arguments, **named)
        seen.append((arguments, named, answer))
        return answer

    with mock.patch.object(module, name, capture):
        yield seen


def close(found: Any, expected: Any, tolerance: float = 1e-6) -> None:
    """Asserts that two tensors, or lists of numbers, are the same to a relative and absolute tolerance."""
    one, two = (torch.as_tensor(values, dtype=torch.float64).detach() for values in (found, expected))
    torch.testing.assert_close(one, two, rtol=tolerance, atol=tolerance)
