"""ImageReward against a second implementation, written from the original's code, on small random weights."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import BertTokenizer

import learned
from scoring import total
from tastemaker.errors import RewardError
from tastemaker.rewards.jpeg import to_bytes
from tastemaker.rewards.learned.image_reward import assemble, image_reward
from tastemaker.rewards.registry import load_reward

PROMPTS = ["a red star", "the quick brown fox jumps over a lazy dog " * 3]
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return learned.image_reward_folder(tmp_path_factory.mktemp("image-reward"))


def attention(queries, keys, values, heads, mask=None):
    """Softmax attention, head by head; all [B,L,D], mask [B,L] of what may be looked at."""
    out = []
    for q, k, v in zip(queries.chunk(heads, -1), keys.chunk(heads, -1), values.chunk(heads, -1), strict=True):
        chances = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
        if mask is not None:
            chances = chances.masked_fill(mask[:, None] == 0, -torch.inf)
        out.append(chances.softmax(-1) @ v)
    return torch.cat(out, -1)


def second_implementation(state, pixels, ids, mask):
    """THUDM's ImageReward.py on BLIP's vit.py and med.py: normalised pixels [B,3,32,32] and tokens [B,35] to [B]."""

    def linear(name, x):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name, x, eps):
        centred = x - x.mean(-1, keepdim=True)
        return (
            centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt() * state[f"{name}.weight"]
            + state[f"{name}.bias"]
        )

    def gelu(x):
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))

    eye, book = "blip.visual_encoder", "blip.text_encoder"
    patches = F.unfold(pixels, 16, stride=16).transpose(1, 2)
    flat = state[f"{eye}.patch_embed.proj.weight"].flatten(1)
    x = patches @ flat.T + state[f"{eye}.patch_embed.proj.bias"]
    x = torch.cat([state[f"{eye}.cls_token"].expand(len(x), -1, -1), x], 1) + state[f"{eye}.pos_embed"]
    for n in range(2):
        block = f"{eye}.blocks.{n}"
        q, k, v = linear(f"{block}.attn.qkv", norm(f"{block}.norm1", x, 1e-6)).chunk(3, -1)
        x = x + linear(f"{block}.attn.proj", attention(q, k, v, heads=2))
        x = x + linear(f"{block}.mlp.fc2", gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", x, 1e-6))))
    seen = norm(f"{eye}.norm", x, 1e-6)
    words = state[f"{book}.embeddings.word_embeddings.weight"][ids]
    h = norm(f"{book}.embeddings.LayerNorm", words + state[f"{book}.embeddings.position_embeddings.weight"][:35], 1e-12)
    for n in range(2):
        layer = f"{book}.encoder.layer.{n}"
        for name, source, what in (("attention", None, mask), ("crossattention", seen, None)):
            at = f"{layer}.{name}"
            source = h if source is None else source
            parts = [linear(f"{at}.self.{part}", y) for part, y in (("query", h), ("key", source), ("value", source))]
            mixed = linear(f"{at}.output.dense", attention(*parts, heads=1, mask=what))
            h = norm(f"{at}.output.LayerNorm", mixed + h, 1e-12)
        wide = gelu(linear(f"{layer}.intermediate.dense", h))
        h = norm(f"{layer}.output.LayerNorm", linear(f"{layer}.output.dense", wide) + h, 1e-12)
    y = h[:, 0]
    for place in (0, 2, 4, 6, 7):
        y = linear(f"mlp.layers.{place}", y)
    return (y[:, 0] - 0.16717362830052426) / 1.0333394966054072


def tokens(folder):
    found = BertTokenizer.from_pretrained(folder)(
        PROMPTS, padding="max_length", truncation=True, max_length=35, return_tensors="pt"
    )
    assert found["attention_mask"].sum(1).tolist() == [5, 35]  # [CLS] a red star [SEP]; and one that is cut
    return found["input_ids"], found["attention_mask"]


def test_it_is_the_second_implementation_values_and_gradients(folder):
    state = learned.image_reward_state()
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
    mine = load_reward(f"image-reward:{folder}")(x, PROMPTS)
    theirs = second_implementation(state, (x - MEAN) / STD, *tokens(folder))
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    assert (mine[0] - mine[1]).abs() > 0.1
    (slope,), (expected,) = torch.autograd.grad(mine.sum(), x), torch.autograd.grad(theirs.sum(), x)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(slope, expected, rtol=1e-3, atol=1e-6)


def test_what_shapes_do_not_say_is_blips(folder):
    """vit.py: LayerNorm eps 1e-6, heads 64 wide; med_config.json: eps 1e-12, 12 heads for a width of 768."""
    wide = assemble(learned.image_reward_state(wide=192, narrow=128), BertTokenizer.from_pretrained(folder))
    assert (wide.vision.config.num_attention_heads, wide.text.config.num_attention_heads) == (3, 2)
    assert (wide.vision.config.layer_norm_eps, wide.text.config.layer_norm_eps) == (1e-6, 1e-12)
    assert not any(module.training for module in (wide.vision, wide.text, wide.head))


@pytest.mark.parametrize("size", [(64, 64), (40, 96), (24, 20)])
def test_tensors_and_pil_images_agree(folder, size):
    """The original's preprocessing: the shortest side to 32 with PIL's bicubic, the middle cut out."""
    generator = torch.Generator().manual_seed(2)
    rough = torch.rand(2, 3, size[0] // 4, size[1] // 4, generator=generator)
    x = F.interpolate(rough, size, mode="bicubic").clamp(0, 1)
    x = to_bytes(x).permute(0, 3, 1, 2) / 255
    height, width = (32, int(32 * size[1] / size[0])) if size[0] <= size[1] else (int(32 * size[0] / size[1]), 32)
    pixels = []
    for array in to_bytes(x).numpy():
        small = Image.fromarray(array).resize((width, height), Image.Resampling.BICUBIC)
        left, top = round((width - 32) / 2), round((height - 32) / 2)
        cut = np.asarray(small.crop((left, top, left + 32, top + 32)))
        pixels.append((torch.from_numpy(cut.copy()).permute(2, 0, 1) / 255 - MEAN) / STD)
    theirs = second_implementation(learned.image_reward_state(), torch.stack(pixels), *tokens(folder))
    torch.testing.assert_close(image_reward(str(folder))(x, PROMPTS), theirs, atol=1e-2, rtol=0)


def test_torch_files_are_the_same_as_safetensors(folder, tmp_path):
    """Under the original's name, with the vocabulary beside it; the file itself may be given too."""
    other = learned.image_reward_folder(tmp_path / "other")
    (other / "ImageReward.safetensors").unlink()
    torch.save(learned.image_reward_state(), other / "ImageReward.pt")
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    expected = total(image_reward(str(folder)), x, PROMPTS)
    assert total(image_reward(str(other)), x, PROMPTS).equal(expected)
    assert total(image_reward(str(other / "ImageReward.pt")), x, PROMPTS).equal(expected)


class Code:
    def __reduce__(self):
        return print, ("run",)


def test_weights_that_are_not_ones_are_refused(folder, tmp_path, capsys):
    def expect(source, message):
        with pytest.raises(RewardError, match=message) as caught:
            image_reward(str(source))
        assert "\n" not in str(caught.value)

    expect(tmp_path / "nothing.pt", "there is no file or folder")
    expect(tmp_path, r"finds no ImageReward.safetensors or ImageReward.pt")
    torch.save({"mlp.layers.0.weight": Code()}, tmp_path / "code.pt")
    expect(tmp_path / "code.pt", "holds more than tensors")
    assert capsys.readouterr().out == ""
    (tmp_path / "damaged.safetensors").write_bytes(b"\x00" * 40)
    expect(tmp_path / "damaged.safetensors", "cannot read its weights")
    state = learned.image_reward_state()
    del state["blip.text_encoder.encoder.layer.1.crossattention.self.key.weight"]
    broken = learned.image_reward_folder(tmp_path / "broken", state)
    expect(broken, r"KeyError: 'encoder.layer.1.crossattention.self.key.weight'")
    state = learned.image_reward_state()
    state["blip.text_encoder.embeddings.word_embeddings.weight"] = torch.zeros(10, 64)
    expect(learned.image_reward_folder(tmp_path / "words", state), "a tokenizer of 59 tokens, but .* know 10")
