"""What a network computes in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def computing_in(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[object]:
    """Inside it a network of this precision is called: autocast in half precision, nothing in float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)
