"""Child processes that begin with torch and diffusers imported, which costs a fresh Python about four seconds each.

They are forked from a server that has imported these libraries and done nothing else: no thread, no tensor, and nothing
of `tastemaker`. This module imports neither, so that a child that runs `run_script` is as good as a fresh program.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest import mock

LIBRARIES = [
    "torch", "torch.distributed", "accelerate", "peft", "transformers", "matplotlib.figure", "tyro", "rich.progress",
    "httpx", "diffusers.schedulers",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion", "diffusers.pipelines.ddim.pipeline_ddim",
    "diffusers.pipelines.ddpm.pipeline_ddpm",
]  # fmt: skip
SECONDS = 240
"""How long `finish` waits for a child."""


class Child:
    """A call of `function(*arguments)` in another process, whose exit code is what a script's would be."""

    def __init__(
        self, function: Callable[..., Any], *arguments: Any, log: Path, environment: dict[str, str] | None = None
    ) -> None:
        """`function` is given by its name in its module. `log` gets what the process writes, `environment` is added."""
        self.log = log
        made = multiprocessing.get_context("forkserver")
        made.set_forkserver_preload(LIBRARIES)
        with mock.patch.dict(os.environ, {"OMP_NUM_THREADS": "1"}):
            forkserver.ensure_running()
        given = dict(os.environ) | {"OMP_NUM_THREADS": "1"} | (environment or {})
        self.process = made.Process(target=_begin, args=(function, arguments, str(log), given))
        self.process.start()
        # Not a daemon, since it may start processes itself; so that one which a failed test left ends with the tests:
        atexit.register(self.process.kill)

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        """Sends a signal to the process, which has not been waited for."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def wait(self, seconds: float = SECONDS) -> int:
        """The exit code, once it has ended."""
        self.process.join(seconds)
        if (code := self.process.exitcode) is None:
            self.process.kill()
            raise AssertionError(f"still running after {seconds} s:\n{self.output()[-3000:]}")
        return code

    def output(self) -> str:
        """What it has written to its standard output and error, in order."""
        return self.log.read_text() if self.log.exists() else ""


def finish(child: Child, code: int = 0, seconds: float = SECONDS) -> str:
    """Waits for a child, which must end with this exit code, and returns what it wrote."""
    found = child.wait(seconds)
    assert found == code, f"exit code {found}\n{child.output()[-3000:]}"
    return child.output()


def _begin(function: Callable[..., Any], arguments: Sequence[Any], log: str, environment: dict[str, str]) -> None:
    # What the server has imported stays, so the garbage collector need not look through it.
    gc.freeze()
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.environ.clear()
    os.environ.update(environment)
    import torch

    torch.set_num_threads(1)
    sys.exit(function(*arguments))


def run_script(code: str, folder: Path | None = None) -> None:
    """Runs a program's text as `python -c` would, in `folder`."""
    if folder is not None:
        os.chdir(folder)
    assert "tastemaker" not in sys.modules
    exec(compile(code, "script", "exec"), {"__name__": "__main__"})


def node(endpoint: str, function: Callable[..., Any], *arguments: Any) -> None:
    """One of two machines with a process each, which meet at the endpoint, as two of torchrun's commands do."""
    under_torchrun(1, function, *arguments, nodes=2, endpoint=endpoint)


class Group:
    """Calls of one function in several processes that find each other as torchrun's do."""

    def __init__(
        self, count: int, function: Callable[..., Any], *arguments: Any, log: Path,
        environment: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        from torch.distributed import TCPStore

        # As torchrun does: the launcher has the store, at a port that the system chose.
        self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        shared = {
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.store.port), "TORCHELASTIC_USE_AGENT_STORE": "True",
            "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "ACCELERATE_USE_CPU": "true",
        }  # fmt: skip
        self.children = [
            Child(
                function, *arguments, log=log.with_suffix(f".{rank}.log"),
                environment=shared | (environment or {}) | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(count)
        ]  # fmt: skip

    def finish(self, code: int = 0) -> str:
        """Waits for all, which must end with this exit code, and returns what they wrote, one after another.

        When one ends with another code the others, which may wait for it for ever, are ended.
        """
        deadline = time.monotonic() + SECONDS
        while any(child.poll() is None for child in self.children):
            failed = [child for child in self.children if child.poll() not in (None, code)]
            if failed or time.monotonic() > deadline:
                for child in self.children:
                    child.process.kill()
                break
            time.sleep(0.02)
        for child in self.children:
            child.wait(20)
        codes = [child.poll() for child in self.children]
        assert codes == [code] * len(codes), f"exit codes {codes}\n" + "\n".join(
            c.output()[-3000:] for c in self.children
        )
        return "".join(child.output() for child in self.children)


def under_torchrun(
    count: int, function: Callable[..., Any], *arguments: Any, nodes: int = 1, endpoint: str = "localhost:0"
) -> None:
    """What torchrun's command does, with a function in the place of a script: its agent and its handling of signals.

    Its processes are forked, so it is for a `Child`, which has nothing but imported libraries. With several `nodes` it
    is called once for each, with one `endpoint`.
    """
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=nodes, max_nodes=nodes, nproc_per_node=count, start_method="fork", rdzv_backend="c10d",
        rdzv_endpoint=endpoint, max_restarts=0, run_id="tests",
    )  # fmt: skip
    elastic_launch(config, function)(*arguments)
