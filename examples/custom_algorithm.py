"""Trains with an algorithm of your own: REINFORCE with a leave-one-out baseline (RLOO, Ahmadian et al. 2024).

python examples/custom_algorithm.py [--rounds 4] [--out FOLDER] [setting=value ...]

The class is saved in config.yaml as `module:Class`, and found again there when the run goes on. A package may also
name it in the entry-point group `tastemaker.algorithms`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

import tastemaker as tm
from tastemaker.algorithms.base import Task
from tastemaker.algorithms.requirements import Requirements
from tastemaker.errors import ConfigError
from tastemaker.types import Metrics, Rollout, Rows, all_rows


def leave_one_out(reward: Tensor, prompts: Sequence[int]) -> Tensor:
    """Advantages [B]: each image's reward minus the mean reward of the other images of its prompt; 0 for one alone."""
    prompt = torch.tensor(prompts, device=reward.device)
    same = (prompt.unsqueeze(0) == prompt.unsqueeze(1)).to(reward)
    others = same.sum(dim=1) - 1
    baseline = (same @ reward - reward) / others.clamp(min=1)
    return torch.where(others > 0, reward - baseline, torch.zeros_like(reward))


@dataclass(frozen=True)
class Rloo:
    """REINFORCE with a leave-one-out baseline, for one update a round."""

    name: ClassVar[str] = "rloo"
    """In messages and reports."""
    needs: ClassVar[Literal["rollouts"]] = "rollouts"
    """It learns from the steps of sampled images, with their log-probabilities."""

    scale: float = 1.0
    """Factor of the advantages, which are in the reward's own unit. Fields are settings: `algorithm.scale`."""

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise ConfigError(f"algorithm.scale is {self.scale}, but must be greater than 0")

    @property
    def requirements(self) -> Requirements:
        """The images of a prompt, which are compared with each other, stay on one process."""
        return Requirements(keep_groups_together=True)

    def prepare(self, task: Task, rollout: Rollout) -> Rows:
        """One row for each image and each step that is trained, with the leave-one-out advantage."""
        assert rollout.reward is not None
        rows = all_rows(rollout)
        advantage = self.scale * leave_one_out(rollout.reward, rollout.draw.prompt_index)
        return replace(rows, advantage=advantage[rows.image])

    def loss(self, task: Task, rows: Rows) -> tuple[Tensor, Metrics]:
        """-A log p [N], whose gradient is REINFORCE's, and per-row metrics [N]."""
        step = rows.transitions()
        logp = task.log_prob(step)
        return -step.advantage * logp, {"approx_kl": 0.5 * (logp - step.logp).detach().square()}


def main(argv: Sequence[str] | None = None) -> tm.Run:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="setting=value")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--out", help="folder of the run (default: the next free runs/rloo-<n>)")
    args = parser.parse_args(argv)

    # Several images of each prompt, and one update a round: the score function is unbiased for the first one only.
    config = tm.preset("ddpo-compressibility", "sampling.per_prompt=4", "optimizer.updates=1", *args.settings)
    run = tm.train(replace(config, algorithm=Rloo()), out=args.out, rounds=args.rounds)
    print(f"report: {run.report}")
    return run


if __name__ == "__main__":
    main()
