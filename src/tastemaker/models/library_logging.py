"""Libraries that say more than a user needs to know."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import diffusers
import transformers


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps the libraries' bars and notes about optional parts off a user's screen."""
    libraries = (diffusers.utils.logging, transformers.logging)
    # Only those that would say something: a change of level makes Python forget what it knows about all loggers.
    levels = {library: level for library in libraries if (level := library.get_verbosity()) < logging.ERROR}
    bars = [library for library in libraries if library.is_progress_bar_enabled()]
    for library in levels:
        library.set_verbosity_error()
    for library in bars:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, level in levels.items():
            library.set_verbosity(level)
        for library in bars:
            library.enable_progress_bar()


@contextmanager
def loading() -> Iterator[None]:
    """`quiet`, and without Python's warnings about what these libraries will do otherwise some day."""
    with quiet(), warnings.catch_warnings():
        for kind in (DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", kind)
        yield
