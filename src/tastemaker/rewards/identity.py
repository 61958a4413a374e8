"""Which reward a server offers, in which version: what a run compares when it is resumed, and between servers."""

from __future__ import annotations

import hashlib
import inspect
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import tastemaker
from tastemaker.rewards.base import FunctionReward, Reward
from tastemaker.rewards.combination import Combination
from tastemaker.rewards.expression import to_text
from tastemaker.rewards.preferences.names import folder_of
from tastemaker.rewards.serving.protocol import Identity
from tastemaker.rewards.vlm.settings import without_servers


def identify(name: str, reward: Reward) -> Identity:
    """Name and version of a reward: tastemaker's own, with a hash of its source file and of a file that it reads.

    Those of a combination are made of its parts'.
    """
    digest = hashlib.sha256()
    if isinstance(reward, Combination):
        parts = {part: identify(part, function) for part, function in reward.parts.items()}
        digest.update(Path(inspect.getfile(Combination)).read_bytes())
        digest.update(" ".join(one.version for one in parts.values()).encode())
        shown = to_text(reward.tree, lambda part: parts[part].reward)
        return Identity(shown, f"{tastemaker.__version__}+{digest.hexdigest()[:12]}")
    if isinstance(reward, FunctionReward):
        function: Any = reward.function
        defined = inspect.unwrap(function) if inspect.isroutine(function) else type(function)
        with suppress(TypeError, OSError):  # a callable without a source file
            digest.update(Path(inspect.getsourcefile(defined) or "").read_bytes())
        if reward.settings:
            digest.update(json.dumps(dict(reward.settings), sort_keys=True).encode())
    # Where a model or a file is may change, and is not shown to other machines.
    name = without_servers(name)
    first, _, argument = name.partition(":")
    with suppress(OSError, ValueError):
        digest.update(Path(argument).expanduser().read_bytes())
    shown = f"{first}:{Path(argument).name}" if "/" in argument else name
    if (trained := folder_of(name)) is not None:
        folder, options = trained
        shown = f"{folder.resolve().name}:{options}" if options else folder.resolve().name
    return Identity(shown, f"{tastemaker.__version__}+{digest.hexdigest()[:12]}")
