"""Algorithms by the name that presets, files and reports give them. Nothing here imports torch."""

from __future__ import annotations

from tastemaker.algorithms.ddpo import DDPO

ALGORITHMS: dict[str, type[DDPO]] = {"ddpo": DDPO}
"""Each key is the class's own `name`, and each class a member of `Config.algorithm`'s annotation: a test."""


def summary(algorithm: type) -> str:
    """The first line of an algorithm's docstring."""
    return (algorithm.__doc__ or "").strip().partition("\n")[0].rstrip(".")
