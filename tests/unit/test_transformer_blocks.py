"""Image tokens behind the first blocks of diffusers' transformers, against what their own last layers make of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tiny_flow
from tastemaker.errors import ModelError
from tastemaker.models import load_model, wrap_pipeline
from tastemaker.models.flux import unpacked
from tastemaker.models.inner_output import inner_output
from tastemaker.models.transformer_blocks import TransformerEncoder

PROMPTS = ["a cat", "dog"]


def small(name):
    """A model of latents of 8 x 12, whose rows and columns cannot be confused."""
    model = wrap_pipeline(pipeline(name))
    model.resize(8 * model.scale, 12 * model.scale)
    return model


def pipeline(name):
    made = tiny_flow.PIPELINES[name]()
    if name == "z-image":  # which has one
        made.transformer.layers.append(tiny_flow.PIPELINES[name](seed=1).transformer.layers[0])
    return made


def inputs(model):
    """Latents at different times, with different prompts."""
    x = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    return x, torch.tensor([300, 900]), model.encode(PROMPTS, 1.0)


def finished(name, network, maps, scale):
    """The prediction that the network's own last layers, which see each token by itself, make of image tokens."""
    tokens = maps.flatten(2).transpose(1, 2)
    n, height, width = len(maps), *maps.shape[-2:]
    if name == "z-image":
        made = network.all_final_layer["2-1"](tokens, c=scale)
        split = made.reshape(n, height, width, 2, 2, -1)
        return -split.permute(0, 5, 1, 3, 2, 4).reshape(n, -1, 2 * height, 2 * width)
    made = network.proj_out(network.norm_out(tokens, scale))
    if name == "sd3":
        split = made.reshape(n, height, width, 2, 2, -1)
        return split.permute(0, 5, 1, 3, 2, 4).reshape(n, -1, 2 * height, 2 * width)
    if name == "flux":
        return unpacked(made, 2 * height, 2 * width)
    return made.transpose(1, 2).reshape(n, -1, height, width)


@pytest.mark.parametrize("name", tiny_flow.PIPELINES)
@pytest.mark.parametrize("blocks", [1, 2])
def test_tokens_are_those_of_which_the_network_makes_its_prediction(name, blocks):
    """Of the network without the other blocks: what it predicts is what its last layers make of these tokens."""
    model = small(name)
    encoder = TransformerEncoder(model, name, blocks)
    x, t, cond = inputs(model)
    network, caught = model.network, []
    last = network.all_final_layer["2-1"] if name == "z-image" else network.norm_out
    handle = last.register_forward_pre_hook(
        lambda module, args, kwargs: caught.append(kwargs["c"] if kwargs else args[1]), with_kwargs=True
    )
    with torch.no_grad():
        expected = model.predict(x, t, cond)
        handle.remove()
        maps = encoder.maps(x, t, cond)
        assert maps.shape[1] == encoder.channels
        torch.testing.assert_close(finished(name, network, maps, caught[0]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", tiny_flow.PIPELINES)
def test_blocks_are_the_first_ones_and_the_others_are_dropped(name):
    whole = small(name)
    lists = whole.family.blocks
    first = getattr(whole.network, lists[0])[0]
    x, t, cond = inputs(whole)
    found = {}
    for blocks in (None, 1, 2):
        model = small(name)
        encoder = TransformerEncoder(model, name, blocks)
        assert encoder.blocks == (blocks or 1)  # of two, FLUX's double and single one together
        assert sum(len(getattr(model.network, one)) for one in lists) == encoder.blocks
        with torch.no_grad():
            found[blocks] = encoder.maps(x, t, cond)
    assert found[None].equal(found[1])
    assert not torch.allclose(found[1], found[2], atol=1e-3)
    with torch.no_grad():  # behind the first block of the whole network
        answer = inner_output(first, lambda: whole.predict(x, t, cond))
    tokens = whole.family.image_tokens(answer, found[1][0, 0].numel())
    assert tokens.transpose(1, 2).reshape(found[1].shape).equal(found[1])


@pytest.mark.parametrize("name", tiny_flow.PIPELINES)
def test_tokens_depend_on_latents_times_and_prompts_and_have_a_gradient(name):
    model = small(name)
    encoder = TransformerEncoder(model, name)
    x, t, cond = inputs(model)
    with torch.no_grad():
        first = encoder.maps(x, t, cond)
        for other in ((x, t + 50, cond), (x, t, model.encode(["a hat", "fog"], 1.0)), (x + 0.1, t, cond)):
            assert not torch.allclose(encoder.maps(*other), first, atol=1e-4)
        assert encoder.maps(x, t, cond).equal(first)
    # The gradient of the sum of squares along one direction, against central differences.
    x.requires_grad_(True)
    (gradient,) = torch.autograd.grad(encoder.maps(x, t, cond).square().sum(), x)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ends = [encoder.maps(x + step * direction, t, cond).double().square().sum() for step in (1e-2, -1e-2)]
    assert ((ends[0] - ends[1]) / 2e-2).item() == pytest.approx((gradient * direction).sum().item(), rel=2e-2)


def test_tokens_of_large_images_are_averaged_over_their_neighbours():
    """32 x 32 tokens become 16 x 16 means of four."""
    model = wrap_pipeline(pipeline("flux-2"))
    model.resize(32 * model.scale, 32 * model.scale)
    encoder = TransformerEncoder(model, "flux-2", 1)
    x, t, cond = inputs(model)
    with torch.no_grad():
        maps = encoder.maps(x, t, cond)
        answer = inner_output(encoder.last, lambda: model.predict(x, t, cond))
    assert (encoder.side, maps.shape[2:]) == (16, (16, 16))
    tokens = model.family.image_tokens(answer, 32 * 32).transpose(1, 2)
    torch.testing.assert_close(maps, tokens.reshape(2, -1, 16, 2, 16, 2).mean(dim=(3, 5)))


def test_networks_that_are_no_transformer_and_too_many_blocks_are_refused():
    with pytest.raises(ModelError, match=r"a UNet2DConditionModel, but .* take kind unet for a U-Net"):
        TransformerEncoder(load_model("bundled"), "bundled")
    model = small("flux")
    with pytest.raises(ModelError, match="blocks is 3, but the transformer of flux has 2"):
        TransformerEncoder(model, "flux", 3)


def test_nothing_after_the_module_is_computed_and_the_hook_is_gone():
    called = []
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.register_forward_hook(lambda *_: called.append(1))
    net, x = nn.Sequential(first, second), torch.ones(1, 2)
    assert inner_output(first, lambda: net(x)).equal(first(x))
    assert not called
    net(x)
    assert called
    with pytest.raises(RuntimeError, match="the Linear was not called"):
        inner_output(first, lambda: None)
    assert net(x).equal(second(first(x)))
