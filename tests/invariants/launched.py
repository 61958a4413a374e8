"""The command line as torchrun starts it.

`launched.py [--sharded] [--unsynchronised | --die-in-round N] train ... [--then train ...]`
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import nullcontext
from unittest import mock

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from tastemaker.algorithms.ddpo import DDPO
from tastemaker.cli.main import main
from tastemaker.training import rounds, run, setup


def sharding_accelerator(**named):
    made = Accelerator(**named)
    PartialState().distributed_type = made.state.distributed_type = DistributedType.FSDP
    made.state.fsdp_plugin = FullyShardedDataParallelPlugin()
    return made


def asking_the_reference():
    """Every loss asks the reference between the policy's forward and backward pass, as a KL would."""
    plain = DDPO.loss

    def loss(algorithm, task, rows):
        losses, metrics = plain(algorithm, task, rows)
        if task.model.weights.tuning.mode == "lora":
            with torch.no_grad(), task.model.weights.reference():
                metrics["reference"] = task.log_prob(rows.transitions())
        return losses, metrics

    return mock.patch.object(DDPO, "loss", loss)


if __name__ == "__main__":
    torch.set_num_threads(1)
    words = sys.argv[1:]
    patches = []
    if words[0] == "--sharded":
        # accelerate shards on accelerators only, but what it calls works with gloo on a CPU as well.
        words = words[1:]
        patches += [mock.patch.object(setup, "Accelerator", sharding_accelerator), asking_the_reference()]
    if words[0] == "--unsynchronised":
        # What a trainer does that forgets to wrap its network: every process trains by itself.
        words = words[1:]
        patches.append(mock.patch.object(Accelerator, "prepare", lambda self, *parts: parts))
        patches.append(mock.patch.object(Accelerator, "no_sync", mock.MagicMock()))
    if words[0] == "--die-in-round":
        number, words = int(words[1]), words[2:]
        update = rounds.update

        def dying(session, *arguments):
            if session.state.round + 1 == number and session.accelerator.process_index == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return update(session, *arguments)

        patches.append(mock.patch.object(rounds, "update", dying))
    for patch in patches:
        patch.start()
    # Several command lines in one launch, and one group of processes: most of a small run's time is importing.
    while "--then" in words:
        first = words.index("--then")
        with mock.patch.object(run, "process_group", nullcontext):
            if main(words[:first]):
                sys.exit("a run before --then failed")
        AcceleratorState._reset_state()
        words = words[first + 1 :]
    sys.exit(main(words))
