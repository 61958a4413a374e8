"""The processes of a run: the folder they agree on, and how they part when it ends."""

from __future__ import annotations

import gc
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from tastemaker.errors import ConfigError
from tastemaker.runs.fingerprint import HARDWARE, differences


def first_process_path(accelerator: Accelerator, path: Path) -> Path:
    """The first process' path, on every process: one that a process chose by itself may differ from the others'."""
    paths = [str(path)]
    if accelerator.num_processes > 1:
        broadcast_object_list(paths)
    return Path(paths[0])


def require_same(accelerator: Accelerator, circumstances: Mapping[str, Any]) -> None:
    """Raises ConfigError, on every process, where one has other settings, versions or data than the first.

    Processes of several machines may read other files by the same names. `circumstances` are a fingerprint
    (runs/fingerprint.py) with what else must be equal, as JSON; the hardware may differ.
    """
    if accelerator.num_processes == 1:
        return
    own = {name: value for name, value in circumstances.items() if name not in HARDWARE}
    everyone = gather_object([(socket.gethostname(), own)])
    host, first = everyone[0]
    for rank, (other, found) in enumerate(everyone):
        if changed := differences(first, found):
            raise ConfigError(
                f"process {rank} on {other} does not have what process 0 on {host} has ({'; '.join(changed)}): give "
                "all machines the same settings, versions, files and run folder"
            )


@contextmanager
def process_group() -> Iterator[None]:
    """Whatever group of processes is made inside it ends with it, whether by its last line or by an error.

    Wrapped networks hold on to the group in reference cycles. A group that is still held when Python ends has
    threads that Python kills in the middle of a C++ destructor, which aborts the process (exit code -6) after its
    work was done: so the cycles go first. A group that was there before stays: it is the caller's.
    """
    before = torch.distributed.is_available() and torch.distributed.is_initialized()
    try:
        yield
    finally:
        if not before and torch.distributed.is_available() and torch.distributed.is_initialized():
            gc.collect()
            torch.distributed.destroy_process_group()
            gc.collect()
