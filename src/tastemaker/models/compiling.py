"""torch.compile for a model's network: calls of few sizes, a cache that is kept, and the seconds that it took.

A network compiled for any number of rows is slower than one compiled for a fixed number, so each number of rows has a
version of its own. Other calls are cut into calls of one of these numbers, the last of which is filled up. The rows
that fill it get no gradient, and rows of a network do not depend on each other.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from tastemaker.diffusion.model import Model
from tastemaker.errors import ConfigError
from tastemaker.types import Cond

CACHE = "TORCHINDUCTOR_CACHE_DIR"
"""The environment variable by which torch knows where to keep compiled code."""
VERSIONS = 64
"""Compiled versions of a network: for numbers of rows, with a graph and without, with adapters and without. From 9 on
torch would leave the network as it is."""


class Predict(Protocol):
    """As `Model.predict`."""

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The network's own output [N,*D]."""
        ...


@dataclass(frozen=True)
class StaticRows:
    """The numbers of rows of a network's full calls, in any order."""

    forward: tuple[int, ...]
    """Of calls without a graph."""
    backward: tuple[int, ...]
    """Of calls with one."""

    def call_size(self, rows: int, graph: bool) -> int:
        """The size of the calls into which one of `rows` rows is cut: that with the fewest rows in all, and then with
        the fewest calls. A call that is larger than all sizes stays what it is.

        Smaller than a quarter of the next larger size they are not, since many small calls cost more than one.
        """
        sizes = self.backward if graph else self.forward
        whole = min((size for size in sizes if size >= rows), default=None)
        if whole is None:
            return rows
        return min((size for size in sizes if size >= whole / 4), key=lambda size: (_filled(rows, size), -size))

    def filled(self, rows: int, graph: bool) -> int:
        """The rows of all these calls together."""
        return _filled(rows, self.call_size(rows, graph))


def _filled(rows: int, size: int) -> int:
    return -(-rows // size) * size


def compile_network(model: Model, static: StaticRows, backend: str = "inductor") -> None:
    """Compiles the network at its first calls, for each number of rows, and makes calls of the sizes of `static` alone.

    In place: parameter names, adapters and checkpoints stay what they are. Sets torch's compiler for the whole process
    (training/isolation.py puts that back). Raises ConfigError where there is no compiler for C++.
    """
    from torch._dynamo import config as dynamo

    if backend == "inductor":
        _require_compiler()
        _keep_cache()
    dynamo.recompile_limit = VERSIONS
    # It would split the network where a bucket of gradients ends, and cannot do so with gradient checkpointing.
    dynamo.optimize_ddp = False
    model.network.compile(dynamic=False, backend=backend)
    model.predict = in_full_calls(model.predict, static)


def in_full_calls(predict: Predict, static: StaticRows) -> Predict:
    """`predict` that is called with the numbers of rows of `static`, where one is not smaller than what it is given.

    Values are those of the same rows in full calls. The last row stands for those that are missing; the gradient of
    what is thrown away is 0.
    """

    def call(x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        rows = len(x)
        size = static.call_size(rows, torch.is_grad_enabled())
        if size == rows:
            return predict(x, t, cond)
        index = torch.arange(_filled(rows, size), device=x.device).clamp(max=rows - 1)
        outputs = [predict(x[part], t[part], cond.select(part)) for part in index.split(size)]
        return torch.cat(outputs)[:rows]

    return call


def compile_seconds() -> float:
    """Seconds that this process has spent compiling so far."""
    from torch._dynamo.utils import calculate_time_spent

    return calculate_time_spent()["total_wall_time"]


def default_cache() -> Path:
    """The folder of compiled code where torch is given no other."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tastemaker" / "torch-compile"


def _keep_cache() -> None:
    """Gives torch a folder that outlives a restart, in place of its own in /tmp, where the user has chosen none.

    Not the run's: what torch keeps there is pickled, and a run's folder may come from somebody else.
    """
    if os.environ.get(CACHE):
        return
    try:
        default_cache().mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home, or one that cannot be written to
        return
    os.environ[CACHE] = str(default_cache())


def cache_folder() -> str:
    """Where torch keeps compiled code."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return cache_dir()


def _require_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, RuntimeError) as error:
        raise ConfigError(
            f"speed.compile is true, but torch found no compiler for C++ ({' '.join(str(error).split())}): install "
            "g++, name one in the environment variable CXX, or set it to false"
        ) from error
