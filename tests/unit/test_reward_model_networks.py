"""The networks of reward models against second implementations and the libraries' own."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tastemaker.errors import ConfigError, ModelError, RewardError
from tastemaker.models import load_model
from tastemaker.models.attention_pool import AttentionPool
from tastemaker.models.unet_encoder import bottleneck, require_unet, times
from tastemaker.models.weights_digest import weights_digest
from tastemaker.rewards.learned.clip_model import load_clip
from tastemaker.rewards.preferences.architecture import Architecture, from_json, to_json
from tastemaker.rewards.preferences.backbones import load_backbone, mean_and_deviation
from tastemaker.rewards.preferences.heads import ClipHead, SmallHead, new_head
from tastemaker.rewards.preferences.model import RewardModel, Scale, spread
from tastemaker.rewards.registry import load_reward

PROMPTS = ["a red star", "two blue fish", "a green heart"]


def images(count=3, side=32):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def unet():
    return load_backbone(Architecture())


@pytest.fixture(scope="module")
def clip():
    return load_backbone(Architecture("clip"))


def test_the_pool_with_positions_is_openais_attention_pool_with_text_among_the_keys():
    """AttentionPool2d by its own formula: softmax(q k / sqrt(d)) v of the mean token, head by head."""
    torch.manual_seed(0)
    pool = AttentionPool(8, 5, heads=2, side=2).double()
    nn.init.normal_(pool.out.weight)
    features, text = torch.randn(3, 8, 2, 2).double(), torch.randn(3, 4, 5).double()
    tokens = pool.norm(features.flatten(2).transpose(1, 2))
    tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1) + pool.position
    keys = torch.cat([tokens, pool.text(text)], dim=1)
    weight, bias = pool.attention.in_proj_weight, pool.attention.in_proj_bias
    (wq, wk, wv), (bq, bk, bv) = weight.chunk(3), bias.chunk(3)
    q, k, v = tokens[:, 0] @ wq.T + bq, keys @ wk.T + bk, keys @ wv.T + bv
    heads = []
    for h in range(2):
        part = slice(4 * h, 4 * h + 4)
        attention = torch.softmax(torch.einsum("nc,nlc->nl", q[:, part], k[..., part]) / math.sqrt(4), dim=1)
        heads.append(torch.einsum("nl,nlc->nc", attention, v[..., part]))
    expected = pool.out(pool.attention.out_proj(torch.cat(heads, dim=1))).squeeze(1)
    torch.testing.assert_close(pool(features, text), expected)


def test_positions_tell_places_apart():
    torch.manual_seed(0)
    features, text = torch.randn(1, 8, 2, 2), torch.randn(1, 4, 5)
    for side, same in ((None, True), (2, False)):
        pool = AttentionPool(8, 5, side=side)
        nn.init.normal_(pool.out.weight)
        moved = features.flip(-1)
        assert torch.allclose(pool(features, text), pool(moved, text), atol=1e-6) == same


def test_the_bottleneck_is_the_unets_own():
    """What goes from the U-Net's middle block into its decoder, caught by a hook."""
    model = load_model("bundled")
    x, t = torch.randn(3, *model.latent_shape), torch.tensor([0, 400, 999])
    cond, caught = model.encode(PROMPTS, 1.0), []
    network = model.network
    handle = network.mid_block.register_forward_hook(lambda *a: caught.append(a[-1]))
    with torch.no_grad():
        model.predict(x, t, cond)
        handle.remove()
        found = bottleneck(network, x, t, cond["text"])
    torch.testing.assert_close(found, caught[0])


def test_features_depend_on_prompt_and_time_and_are_those_without_the_decoder(unet):
    x = unet.read(images())
    assert unet.shape == (4, 8, 8)
    assert unet.pixels == 32
    assert not list(unet.model.network.up_blocks.parameters())
    with torch.no_grad():
        found = unet.images(x, PROMPTS, 0)
        whole = load_model("bundled")
        expected = bottleneck(whole.network, x, times(0, x), whole.encode(PROMPTS, 1.0)["text"])
        assert found.equal(expected)
        assert not torch.allclose(found, unet.images(x, [""] * 3, 0), atol=1e-3)
        noisy = unet.images(x, PROMPTS, 500)
    assert not torch.allclose(found, noisy, atol=1e-2)
    with torch.no_grad():
        assert noisy.equal(unet.images(x, PROMPTS, 500))  # the same noise each time
        assert not noisy.equal(unet.images(x, PROMPTS, 500, torch.randn(3, 4, 8, 8)))


def test_noise_is_that_of_the_forward_process(unet):
    """x_t = alpha_t x_0 + sigma_t eps, with the model's own alpha and sigma."""
    x, noise, t = unet.read(images()), torch.randn(3, 4, 8, 8), 300
    cumulative = unet.model.pipeline.scheduler.alphas_cumprod[t]
    noised = cumulative.sqrt() * x + (1 - cumulative).sqrt() * noise
    with torch.no_grad():
        expected = bottleneck(unet.model.network, noised, times(t, x), unet.texts(PROMPTS))
        torch.testing.assert_close(unet.images(x, PROMPTS, t, noise), expected, atol=1e-5, rtol=1e-4)


def test_latents_are_the_models_own(unet):
    assert unet.read(images()).equal(load_model("bundled").encode_images(images()))
    with pytest.raises(RewardError, match="reads images of 32 x 32 pixels, but was given 64 x 64"):
        unet.read(images(side=64))


@pytest.mark.parametrize("layers", [0, 1, 4])
def test_an_untrained_clip_head_is_pick_score(layers):
    """exp(logit scale) times the cosine of the same CLIP, as the reward `pick-score` computes it."""
    architecture = Architecture("clip", layers=layers, logit_scale=None)
    backbone = load_backbone(architecture)
    head = new_head(architecture, backbone, 0)
    assert isinstance(head, ClipHead)
    with torch.no_grad():
        found = head(backbone.images(images(), PROMPTS, 0), backbone.texts(PROMPTS))
    model = load_clip("bundled", "test")
    expected = model.model.logit_scale.exp() * model.cosine(images(), PROMPTS)
    torch.testing.assert_close(found, expected.detach(), atol=1e-4, rtol=1e-4)


def test_the_cosine_starts_at_the_given_scale(clip):
    """By default 10 times the cosine."""
    head = new_head(Architecture("clip"), clip, 0)
    with torch.no_grad():
        found = head(clip.images(images(), PROMPTS, 0), clip.texts(PROMPTS))
    torch.testing.assert_close(found, 10 * load_clip("bundled", "test").cosine(images(), PROMPTS), atol=1e-4, rtol=1e-4)


def test_layers_are_what_is_trained_of_a_clip():
    names = {}
    for layers in (0, 2):
        architecture = Architecture("clip", layers=layers)
        head = new_head(architecture, load_backbone(architecture), 0)
        names[layers] = {name.partition(".")[0] for name, p in head.named_parameters() if p.requires_grad}
    assert names == {0: {"image", "text", "logit_scale"}, 2: {"layers", "norm", "image", "text", "logit_scale"}}
    with pytest.raises(RewardError, match="layers is 9, but the CLIP's image tower has 4"):
        load_backbone(Architecture("clip", layers=9))


def test_a_linear_head_sees_the_image_and_its_product_with_the_text():
    """Features of length 1 of two dimensions: 3/5 and 4/5, times sqrt 2; products times 2."""
    head = SmallHead(2, 2, hidden=0, dropout=0.0)
    last = head.net[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    found = head(torch.tensor([[0.6, 0.8]]), torch.tensor([[1.0, 0.5]])).item()
    assert found == pytest.approx(2**0.5 * (0.6 + 1.6) + 2 * (3 * 0.6 + 4 * 0.4), rel=1e-6)


def test_hidden_and_dropout_change_a_head():
    assert len(list(SmallHead(4, 4, 8, 0.0).parameters())) > len(list(SmallHead(4, 4, 0, 0.0).parameters()))
    head = SmallHead(4, 4, 0, 0.5)
    last = head.net[-1]
    assert isinstance(last, nn.Linear)
    nn.init.ones_(last.weight)
    x, text = torch.rand(64, 4) + 1, torch.rand(64, 4) + 1
    assert not head.train()(x, text).equal(head.eval()(x, text))


def test_pooled_features_are_means_and_deviations():
    maps = torch.tensor([[[[1.0, 3.0], [1.0, 3.0]], [[2.0, 2.0], [2.0, 2.0]]]], requires_grad=True)
    found = mean_and_deviation(maps)
    assert found[0].tolist() == pytest.approx([2, 2, 1, 1e-3], abs=1e-6)
    found.sum().backward()
    assert maps.grad is not None
    assert maps.grad.isfinite().all()
    backbone = load_backbone(Architecture("head", features="unet"))
    with torch.no_grad():
        assert backbone.images(backbone.read(images()), PROMPTS, 0).shape == (3, 256)
    assert backbone.texts(PROMPTS).shape == (3, 0)


class Given(nn.Module):
    """A head whose reward is the sum of the text features."""

    def forward(self, image, text):
        return text.flatten(1).sum(dim=1)


def test_guidance_extrapolates_from_the_empty_prompt(clip):
    """r_u + s (r_c - r_u), by calling the head with both."""
    head = Given()
    model = RewardModel(Architecture("clip"), clip, (head,), Scale(((0.0, 1.0),)))
    with_text, without = (clip.texts(texts).sum(dim=1) for texts in (PROMPTS, [""] * 3))
    for s in (0.0, 1.0, 2.5):
        expected = without + s * (with_text - without)
        torch.testing.assert_close(model.raw(images(), PROMPTS, s)[0], expected, rtol=1e-4, atol=1e-4)


def test_members_are_standardised_by_themselves_and_together(clip):
    """Member rewards r with means 1 and 3, deviations 2 and 4, and their mean with 0.5 and 0.8."""
    model = RewardModel(Architecture("clip"), clip, (Given(), Given()), Scale(((1.0, 2.0), (3.0, 4.0)), 0.5, 0.8))
    r = clip.texts(PROMPTS).sum(dim=1)
    found = model.members(images(), PROMPTS)
    torch.testing.assert_close(found[0], ((r - 1) / 2 - 0.5) / 0.8)
    torch.testing.assert_close(found[1], ((r - 3) / 4 - 0.5) / 0.8)
    assert spread(torch.tensor([[1.0], [3.0]])).item() == pytest.approx(2**0.5)
    assert spread(torch.tensor([[1.0]])).item() == 0


def test_heads_differ_by_seed_and_start_at_nothing(unet):
    one, other, again = (new_head(Architecture(), unet, seed) for seed in (0, 1, 0))
    assert weights_digest({"": one}) == weights_digest({"": again}) != weights_digest({"": other})
    with torch.no_grad():
        assert one(unet.images(unet.read(images()), PROMPTS, 0), unet.texts(PROMPTS)).eq(0).all()
    assert new_head(Architecture(heads=2), unet, 0).attention.num_heads == 2


def test_settings_of_other_kinds_are_refused():
    for given, said in (
        ({"kind": "clip", "heads": 2}, "heads is a setting of kinds unet and transformer, and .* of kind clip"),
        ({"kind": "unet", "clip": "x"}, "clip is a setting of reward models with a CLIP"),
        ({"kind": "head", "size": 64}, "size is a setting of reward models on latents, and .* head on clip features"),
        ({"kind": "unet", "blocks": 2}, "blocks is a setting of reward models with a transformer"),
        ({"kind": "clip", "precision": "bf16"}, "precision is a setting of reward models with a transformer"),
        ({"kind": "unet", "features": "unet"}, "features is a setting of kind head"),
        ({"kind": "head", "logit_scale": 3.0}, "logit_scale is a setting of kind clip"),
        ({"kind": "vit"}, "of kind 'vit' is not known; known: unet, transformer, clip, head"),
        ({"timesteps": (3, 3)}, r"timesteps are \[3, 3\]: name each once"),
        ({"timesteps": ()}, "must be one or several numbers from 0"),
        ({"kind": "head", "dropout": 1.0}, r"dropout is 1.0, but must lie in \[0, 1\)"),
    ):
        with pytest.raises(ConfigError, match=said):
            Architecture(**given)


def test_architectures_survive_json():
    for made in (
        Architecture(timesteps=(0, 300), heads=2, size=64), Architecture("head", hidden=8, dropout=0.1),
        Architecture("transformer", blocks=3, precision="bf16"),
    ):  # fmt: skip
        assert from_json(to_json(made)) == made
    with pytest.raises(ConfigError, match="cannot be read"):
        from_json({"kind": "unet", "colour": 1})


def test_networks_without_a_bottleneck_and_times_that_are_none_are_refused():
    with pytest.raises(ModelError, match="a Linear, but a reward model of kind unet is made from the encoder and the"):
        require_unet(nn.Linear(1, 1), "sd3")
    with pytest.raises(ModelError, match="take kind transformer for a transformer"):
        load_backbone(Architecture(model="bundled-flow"))
    with pytest.raises(RewardError, match="the training time 1000 is none of bundled, which has times 0 to 999"):
        load_backbone(Architecture(timesteps=(1000,)))


@pytest.mark.parametrize("architecture", [Architecture(heads=7), Architecture("transformer", "bundled-flow", heads=7)])
def test_heads_that_do_not_divide_the_channels_are_refused(architecture):
    with pytest.raises(RewardError, match=r"heads is 7, but must divide the \d+ channels of the features of bundled"):
        load_backbone(architecture)


def test_size_is_that_of_the_images():
    assert load_backbone(Architecture(size=48)).shape == (4, 12, 12)
    assert load_backbone(Architecture("transformer", "bundled-flow", size=48)).shape == (4, 12, 12)


def test_a_transformers_features_are_those_of_its_first_blocks():
    """Caught by a hook in the whole transformer of six blocks; at a training time noised by its own process."""
    backbone = load_backbone(Architecture("transformer", "bundled-flow", blocks=2))
    whole, caught = load_model("bundled-flow"), []
    whole.network.transformer_blocks[1].register_forward_hook(lambda *a: caught.append(a[-1][1]))
    x, noise = backbone.read(images()), torch.randn(3, 4, 8, 8)
    assert x.equal(whole.encode_images(images()))
    with torch.no_grad():
        whole.predict(0.4 * x + 0.6 * noise, times(600, x), whole.encode(PROMPTS, 1.0))  # (1 - s) x_0 + s eps
        found = backbone.images(x, PROMPTS, 600, noise)
        torch.testing.assert_close(found.flatten(2).transpose(1, 2), caught[0], rtol=1e-4, atol=1e-4)
        assert not torch.allclose(found, backbone.images(x, [""] * 3, 600, noise), atol=1e-2)
    assert backbone.texts(PROMPTS).equal(whole.encode(PROMPTS, 1.0)["text"])
    assert backbone.fingerprint().keys() == {"transformer", "latents", "text"}
    assert new_head(Architecture("transformer", "bundled-flow", heads=2), backbone, 0).attention.num_heads == 2
    pooled = load_backbone(Architecture("head", "bundled-flow", features="transformer", blocks=2))
    with torch.no_grad():
        assert pooled.images(x, PROMPTS, 600, noise).equal(mean_and_deviation(found))


def test_precision_is_that_of_the_frozen_weights():
    """bfloat16 rounds by up to 1/256 of a number, in each layer of three blocks: the features differ, but by little."""
    made = [Architecture("transformer", "bundled-flow", precision=precision) for precision in ("fp32", "bf16")]
    exact, half = map(load_backbone, made)
    x = exact.read(images())
    assert {one.dtype for one in half.model.network.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        a, b = (one.images(x, PROMPTS, 0) for one in (exact, half))
    assert (a.dtype, b.dtype) == (torch.float32, torch.float32)
    assert 0 < (a - b).abs().max() < 0.2 * a.std()


def test_digests_see_every_weight_and_no_precision():
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.5], [0.25, 2.0]]))
        layer.bias.zero_()
    first = weights_digest({"a": layer})
    assert weights_digest({"a": layer.half()}) == first
    assert weights_digest({"b": layer}) != first
    with torch.no_grad():
        layer.bias[1] = 1
    assert weights_digest({"a": layer}) != first


def test_other_names_are_still_other_rewards():
    with pytest.raises(RewardError, match="unknown reward 'runs/none'"):
        load_reward("runs/none")
