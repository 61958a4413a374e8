"""What a training sets for the whole process, and puts back when it ends: it may run inside another program."""

from __future__ import annotations

import os
import random
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch._dynamo import config as compiler

from tastemaker.errors import ConfigError
from tastemaker.models.compiling import CACHE
from tastemaker.training.speed import attention_kept

_running = threading.Lock()
_VARIABLES = ("FSDP_CPU_RAM_EFFICIENT_LOADING", CACHE)
"""Environment variables that setting up sets."""


@contextmanager
def isolated() -> Iterator[None]:
    """Inside it the process has torch's and accelerate's defaults, and after it what it had before.

    That is: generators of random numbers, precision of matrix products, implementations of attention, the compiler's
    limits, default dtype and device, gradient mode, autocast, accelerate's shared state (an `Accelerator` of the
    caller's may have another precision), the import path, and environment variables. Raises ConfigError where another
    training of this process has not ended.
    """
    if not _running.acquire(blocking=False):
        raise ConfigError(
            "another training runs in this process, and both would set torch's and accelerate's global state: wait "
            "until it has ended, or start this one in a process of its own"
        )
    try:
        with ExitStack() as stack:
            for part in (
                _random_numbers,
                _torch_settings,
                attention_kept,
                _compiler_settings,
                _accelerate_state,
                _import_path,
                _variables,
            ):
                stack.enter_context(part())
            for device in ("cpu", "cuda"):
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            yield
    finally:
        _running.release()


@contextmanager
def _random_numbers() -> Iterator[None]:
    state, numpy_state = random.getstate(), numpy.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(state)
        numpy.random.set_state(numpy_state)


@contextmanager
def _torch_settings() -> Iterator[None]:
    precision, dtype, device = (
        torch.get_float32_matmul_precision(), torch.get_default_dtype(), torch.get_default_device()
    )  # fmt: skip
    moved = device.type != "cpu"
    torch.set_float32_matmul_precision("highest")
    torch.set_default_dtype(torch.float32)
    if moved:
        torch.set_default_device(None)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.set_default_dtype(dtype)
        if moved:
            torch.set_default_device(device)


@contextmanager
def _compiler_settings() -> Iterator[None]:
    limit, split = compiler.recompile_limit, compiler.optimize_ddp
    try:
        yield
    finally:
        compiler.recompile_limit, compiler.optimize_ddp = limit, split


@contextmanager
def _accelerate_state() -> Iterator[None]:
    """Every `Accelerator` of a process shares these, and refuses another precision than the first one's."""
    shared = [kind._shared_state for kind in (PartialState, AcceleratorState, GradientState)]
    before = [dict(state) for state in shared]
    # The group of processes, where the caller has made one, stays as it is.
    for state in shared[1:] if torch.distributed.is_available() and torch.distributed.is_initialized() else shared:
        state.clear()
    try:
        yield
    finally:
        for state, content in zip(shared, before, strict=True):
            state.clear()
            state.update(content)


@contextmanager
def _import_path() -> Iterator[None]:
    before = list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = before


@contextmanager
def _variables() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in _VARIABLES}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
