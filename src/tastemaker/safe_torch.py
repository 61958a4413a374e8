"""The oldest torch that reads files of weights safely."""

from __future__ import annotations

from tastemaker.errors import TastemakerError

OLDEST = "2.10"
"""Below it, `torch.load(weights_only=True)` can be made to run code or to write where it must not, by a file that is
made for it (CVE-2025-32434 below 2.6, CVE-2026-24747 below 2.10)."""


def require_safe_torch(what: str, kind: type[TastemakerError]) -> None:
    """Raises `kind` where torch is older than OLDEST, before `what` is read.

    To be called before a file that somebody else made may reach `torch.load`, in this package or in diffusers,
    transformers and peft.
    """
    import torch
    from torch.torch_version import TorchVersion

    if TorchVersion(torch.__version__) < OLDEST:  # by its numbers: 2.9 is older than 2.10
        raise kind(
            f"{what} is not read with torch {torch.__version__}, which a file of weights can make run code "
            f"(CVE-2025-32434, CVE-2026-24747): install torch {OLDEST} or newer"
        )
