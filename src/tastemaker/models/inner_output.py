"""What a module within a network answers, without computing what comes after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


class _Reached(Exception):
    """Ends a network's call. `answer` is the module's."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer


def inner_output(module: nn.Module, call: Callable[[], object]) -> Any:
    """The answer of `module` where `call()` first calls it; the call ends there. Gradients flow as in the call."""

    def end(_module: nn.Module, _inputs: tuple[Any, ...], answer: Any) -> None:
        raise _Reached(answer)

    handle = module.register_forward_hook(end)
    try:
        call()
    except _Reached as reached:
        return reached.answer
    finally:
        handle.remove()
    raise RuntimeError(f"the {type(module).__name__} was not called")
