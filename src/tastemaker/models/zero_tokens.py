"""Joint attention of SD 3's blocks in which one token of the text stands for many equal ones.

Without T5 the pipeline appends 256 zero vectors to the states of a prompt. The text has no positions, so that these
tokens are equal in every block: one of them, to which attention is given 256 times, gives the same image in a fraction
of the time.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import JointAttnProcessor2_0
from torch import Tensor


class RepeatedToken:
    """`JointAttnProcessor2_0`, where the last token of the text may stand for `repeats` equal ones.

    `repeats` comes with each call of the network, in its `joint_attention_kwargs`.
    """

    def __init__(self) -> None:
        self.plain: Any = JointAttnProcessor2_0()

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        repeats: int = 1,
    ) -> Any:
        """Tokens [N,I,C] of the image and [N,L,C] of the text; those of the image alone where there is no text."""
        if repeats == 1 or encoder_hidden_states is None:
            return self.plain(attn, hidden_states, encoder_hidden_states)
        image = _heads(attn, hidden_states, (attn.to_q, attn.to_k, attn.to_v), (attn.norm_q, attn.norm_k))
        text = _heads(
            attn, encoder_hidden_states, (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj),
            (attn.norm_added_q, attn.norm_added_k),
        )  # fmt: skip
        q, k, v = (torch.cat(pair, dim=2) for pair in zip(image, text, strict=True))
        out = attention(q, k, v, repeats).transpose(1, 2).flatten(2).to(q.dtype)
        out, context = out[:, : hidden_states.shape[1]], out[:, hidden_states.shape[1] :]
        if not attn.context_pre_only:
            context = attn.to_add_out(context)
        project, dropout = attn.to_out
        return dropout(project(out)), context


def _heads(
    attn: Any, x: Tensor, projections: tuple[Any, Any, Any], norms: tuple[Any, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [N,heads,L,C] of tokens."""
    q, k, v = (project(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for project in projections)
    norm_q, norm_k = norms
    return q if norm_q is None else norm_q(q), k if norm_k is None else norm_k(k), v


def attention(q: Tensor, k: Tensor, v: Tensor, repeats: int) -> Tensor:
    """Attention [N,heads,L,C] of q to k and v [N,heads,S,C], of which the last stands for `repeats` equal ones.

    It is weighted by a bias of log(repeats) before the softmax, or where that is not well done by repeated keys.
    """
    if takes_bias(v):
        bias = q.new_zeros(1, k.shape[2])
        bias[:, -1] = math.log(repeats)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    k, v = (torch.cat([x, x[:, :, -1:].expand(-1, -1, repeats - 1, -1)], dim=2) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v)


def takes_bias(v: Tensor) -> bool:
    """Whether attention with these values is best done with a bias.

    CUDA's fastest kernels take none, and half precision would round it.
    """
    return v.device.type == "cpu" and v.dtype.itemsize >= 4


def install(transformer: Any) -> None:
    """Has a SD3Transformer2DModel take `repeats`, unless it has attention processors of other kinds."""
    if all(type(processor) is JointAttnProcessor2_0 for processor in transformer.attn_processors.values()):
        transformer.set_attn_processor(RepeatedToken())


def takes_repeats(transformer: Any) -> bool:
    """Whether a SD3Transformer2DModel has been given `RepeatedToken`."""
    return all(isinstance(processor, RepeatedToken) for processor in transformer.attn_processors.values())
