"""The processes of a run: how they part when it ends."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed


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
        gc.collect()
        if not before and torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
            gc.collect()
