"""One token for SD 3's 256 zeros without T5: values and gradients of the 256, and where it is not done."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from diffusers.models.attention_processor import JointAttnProcessor2_0
from torch import Tensor
from torch.nn import functional

import tiny_flow
from every_setting import drift
from tastemaker.models import wrap_pipeline, zero_tokens
from tastemaker.models.tuning import Tuning
from tastemaker.models.zero_tokens import RepeatedToken

PROMPTS = ("a cat", "a dog")
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12), (torch.bfloat16, 0.02)]
)
def test_attention_to_one_token_is_that_to_many(dtype, tolerance):
    """By the definition, over all keys. Keys and values are repeated in bfloat16, as on GPUs."""
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, count, 8, generator=random).to(dtype) for count in (7, 5, 5))
    all_k, all_v = (torch.cat([x.double()] + [x[:, :, -1:].double()] * 255, dim=2) for x in (k, v))
    expected = (q.double() @ all_k.mT / 8**0.5).softmax(dim=-1) @ all_v
    plain = functional.scaled_dot_product_attention
    with mock.patch.object(functional, "scaled_dot_product_attention", wraps=plain) as asked:
        found = zero_tokens.attention(q, k, v, 256)
    assert asked.call_args.args[1].shape[2] == (260 if dtype == torch.bfloat16 else 5)
    assert found.dtype == dtype
    assert (found.double() - expected).abs().max() < tolerance
    bare = plain(q.double(), k.double(), v.double())
    assert (bare - expected).abs().max() > 0.1


class Own(JointAttnProcessor2_0):
    """A user's processor, which must stay."""


def gradients(one: bool, checkpointing: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    """A network's output in float64 with large weights, and the gradients of its adapters on both streams.

    With one token of zeros, or with all of them since its attention is its user's own.
    """
    pipeline, random = tiny_flow.sd3(with_t5=False), torch.Generator().manual_seed(0)
    for parameter in pipeline.transformer.parameters():
        parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=random))
    if not one:
        pipeline.transformer.set_attn_processor(Own())
    model: Any = wrap_pipeline(pipeline)
    kinds = {type(processor) for processor in pipeline.transformer.attn_processors.values()}
    assert kinds == {RepeatedToken if one else Own}
    model.tune(Tuning(rank=2, targets=TARGETS, gradient_checkpointing=checkpointing))
    drift(model)
    model.network.double()
    states = {name: value[1:].double() for name, value in model.encode(PROMPTS, 1.0).states.items()}
    assert states["text"].shape == (2, 16 + (1 if one else 256), 32)
    x = torch.randn(2, *model.latent_shape, generator=random).double()
    made = model.family.predict(model.network, x, torch.tensor([300.0, 900.0]).double(), states, None)
    made.square().sum().backward()
    return made.detach(), {name: p.grad for name, p in model.weights.trainable().items()}


@pytest.fixture(scope="module")
def expected() -> tuple[Tensor, dict[str, Tensor]]:
    return gradients(one=False)


@pytest.mark.parametrize("how", ["bias", "repeated", "checkpointing"])
def test_values_and_gradients_are_those_of_256_tokens(how, expected):
    with mock.patch.object(zero_tokens, "takes_bias", return_value=how != "repeated"):
        made, found = gradients(one=True, checkpointing=how == "checkpointing")
    torch.testing.assert_close(made, expected[0], rtol=1e-10, atol=1e-10)
    assert found.keys() == expected[1].keys()
    assert any("add_k_proj" in name for name in found)
    for name, gradient in expected[1].items():
        # The last block's text is not used, nor is what its queries and outputs learn.
        assert gradient is None or (found[name] - gradient).norm() <= 1e-10 * max(gradient.norm(), 1), name
    assert sum(gradient.norm() > 0.1 for gradient in expected[1].values() if gradient is not None) > len(found) / 2


def test_float32_agrees_to_its_rounding():
    """The whole model's estimates with guidance; the outputs differ from those without the zeros by far more."""
    found = []
    for own in (False, True):
        pipeline = tiny_flow.sd3(with_t5=False)
        if own:
            pipeline.transformer.set_attn_processor(Own())
        model: Any = wrap_pipeline(pipeline)
        cond = model.encode(PROMPTS, 3.0)
        x = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            found.append(model.predict(x, torch.tensor([300.0, 900.0]), cond))
    assert (found[0] - found[1]).abs().max() < 1e-5 * found[1].abs().max()
    bare = model.family.predict(
        model.network, x, torch.tensor([300.0, 900.0]), {"text": cond["text"][:, :16], "pooled": cond["pooled"]}, None
    )
    assert (bare - found[1]).abs().max() > 1e-3 * found[1].abs().max()


def test_with_t5_attention_is_left_alone():
    pipeline = tiny_flow.sd3()
    wrap_pipeline(pipeline)
    assert {type(one) for one in pipeline.transformer.attn_processors.values()} == {JointAttnProcessor2_0}


def test_a_pipeline_that_was_given_still_makes_its_images():
    """Its own calls have all tokens, which its processors must take after the model was wrapped as before."""
    pipeline = tiny_flow.sd3(with_t5=False)
    x = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    options = {"num_inference_steps": 2, "height": 16, "width": 16, "output_type": "pt"}
    before = pipeline("a cat", latents=x, **options).images
    wrap_pipeline(pipeline)
    assert torch.equal(pipeline("a cat", latents=x, **options).images, before)
