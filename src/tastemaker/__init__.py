"""Fine-tune text-to-image diffusion models to a reward or to human taste.

`import tastemaker as tm` gives the names in `__all__`. Each is imported when it is first used, so that the import
itself is quick and loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tastemaker.api import compare, label
    from tastemaker.api.evaluating import ModelComparison, evaluate_models
    from tastemaker.api.export import export
    from tastemaker.api.iteration import Iterations, iterate
    from tastemaker.api.presets import preset, presets
    from tastemaker.api.question_benchmarks import ask
    from tastemaker.api.reward_models import train_reward_model
    from tastemaker.api.runs import Run, RunImage, load_run
    from tastemaker.api.sampling import Evaluation, Samples, evaluate, sample
    from tastemaker.api.training import resume, train
    from tastemaker.config.schema import Config
    from tastemaker.errors import TastemakerError
    from tastemaker.rewards.base import reward
    from tastemaker.rewards.registry import load_reward

__version__ = "0.1.0"

__all__ = [
    "Config", "Evaluation", "Iterations", "ModelComparison", "Run", "RunImage", "Samples", "TastemakerError", "ask",
    "compare", "evaluate", "evaluate_models", "export", "iterate", "label", "load_reward", "load_run", "preset",
    "presets", "resume", "reward", "sample", "train", "train_reward_model",
]  # fmt: skip

_MODULES = {
    "tastemaker.api.evaluating": ("ModelComparison", "evaluate_models"),
    "tastemaker.api.export": ("export",),
    "tastemaker.api.iteration": ("Iterations", "iterate"),
    "tastemaker.api.presets": ("preset", "presets"),
    "tastemaker.api.question_benchmarks": ("ask",),
    "tastemaker.api.reward_models": ("train_reward_model",),
    "tastemaker.api.runs": ("Run", "RunImage", "load_run"),
    "tastemaker.api.sampling": ("Evaluation", "Samples", "evaluate", "sample"),
    "tastemaker.api.training": ("resume", "train"),
    "tastemaker.config.schema": ("Config",),
    "tastemaker.errors": ("TastemakerError",),
    "tastemaker.rewards.base": ("reward",),
    "tastemaker.rewards.registry": ("load_reward",),
}


def __getattr__(name: str) -> Any:
    if name in ("compare", "label"):
        found = globals()[name] = importlib.import_module(f"tastemaker.api.{name}")
        return found
    for module, names in _MODULES.items():
        if name in names:
            found = globals()[name] = getattr(importlib.import_module(module), name)
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
