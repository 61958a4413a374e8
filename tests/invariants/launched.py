"""The command line as torchrun starts it.

`launched.py [--sharded] [--unsynchronised | --compiled | --die-in-round N | --sigterm-in-round N FOLDER |
--node-in-round N ACT RANK FOLDER] train ... [--then ...]`
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a script it has only its own folder

from drawing import undrawn
from tastemaker.algorithms.ddpo import DDPO
from tastemaker.cli.main import main
from tastemaker.models.compiling import compile_network
from tastemaker.training import heartbeat, rounds, run, setup, speed


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


def wait_for_sigterm(folder: Path) -> None:
    """Says in `folder` that the process is here, and waits until it was told to end, which it then does in its way."""
    told, handler = [], signal.getsignal(signal.SIGTERM)

    def tell(*arguments):
        told.append(True)
        handler(*arguments)

    signal.signal(signal.SIGTERM, tell)
    (folder / f"here-{os.environ.get('RANK', '0')}").touch()
    deadline = time.monotonic() + 240
    while not told:
        if time.monotonic() > deadline:
            sys.exit("no SIGTERM came")
        time.sleep(0.02)
    signal.signal(signal.SIGTERM, handler)


def node_fails(rank: int, act: str, folder: Path) -> None:
    """The process of this rank and its launcher die, or stop, as those of a machine without power do for the others.

    `folder` gets the process' id.
    """
    if rank == int(os.environ["RANK"]):
        (folder / "failed").write_text(str(os.getpid()))
        number = signal.SIGKILL if act == "die" else signal.SIGSTOP
        for process in (os.getppid(), os.getpid()):
            os.kill(process, number)


def in_round(number, action):
    """A patch that does `action(process)` before the update of a round."""
    update = rounds.update

    def updated(session, *arguments):
        if session.state.round + 1 == number:
            action(session.accelerator.process_index)
        return update(session, *arguments)

    return mock.patch.object(rounds, "update", updated)


def run_lines(*words: str) -> int:
    """Does what the words say (see above); returns the exit code."""
    torch.set_num_threads(1)
    words = list(words)
    patches = [undrawn()]
    if words[0] == "--sharded":
        # accelerate shards on accelerators only, but what it calls works with gloo on a CPU as well.
        words = words[1:]
        patches += [mock.patch.object(setup, "Accelerator", sharding_accelerator), asking_the_reference()]
    if words[0] == "--unsynchronised":
        # What a trainer does that forgets to wrap its network: every process trains by itself.
        words = words[1:]
        patches.append(mock.patch.object(Accelerator, "prepare", lambda self, *parts: parts))
        patches.append(mock.patch.object(Accelerator, "no_sync", mock.MagicMock()))
    if words[0] == "--compiled":
        # Traced as for any backend, but no code is made.
        words = words[1:]
        patches.append(mock.patch.object(speed, "compile_network", partial(compile_network, backend="aot_eager")))
    if words[0] == "--die-in-round":
        number, words = int(words[1]), words[2:]
        # The launcher looks every 0.1 s. With the frozen objects of forked.py the other process would notice and end in
        # less, and be named instead of the one that died; a program that imported its libraries itself takes longer.
        gc.unfreeze()
        patches.append(in_round(number, lambda process: process == 1 and os.kill(os.getpid(), signal.SIGKILL)))
    if words[0] == "--sigterm-in-round":
        number, folder, words = int(words[1]), Path(words[2]), words[3:]
        patches.append(in_round(number, lambda process: wait_for_sigterm(folder)))
    if words[0] == "--node-in-round":
        number, act, rank, folder, words = int(words[1]), words[2], int(words[3]), Path(words[4]), words[5:]
        patches.append(in_round(number, lambda process: node_fails(rank, act, folder)))
        patches += [mock.patch.object(heartbeat, "INTERVAL", 0.1), mock.patch.object(heartbeat, "PATIENCE", 3)]
    for patch in patches:
        patch.start()
    # Several command lines in one launch, and one group of processes.
    while "--then" in words:
        first = words.index("--then")
        with mock.patch.object(run, "process_group", nullcontext):
            if main(words[:first]):
                sys.exit("a run before --then failed")
        AcceleratorState._reset_state()
        words = words[first + 1 :]
    return main(words)


def run_and_exit(*words: str) -> None:
    """As a script."""
    sys.exit(run_lines(*words))


if __name__ == "__main__":
    run_and_exit(*sys.argv[1:])
