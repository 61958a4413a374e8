"""CLIPScore, HPS, PickScore and aesthetic scores: against open_clip's forward pass, transformers' own, and by hand."""

import json
import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPModel, CLIPProcessor, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import clips
from tastemaker.drawings import Scene, Thing, render, sample_scene
from tastemaker.errors import RewardError
from tastemaker.evaluation.images import to_pil
from tastemaker.rewards.base import score
from tastemaker.rewards.learned.clip_model import BUNDLED, load_clip
from tastemaker.rewards.learned.preprocess import OPENAI_MEAN, OPENAI_STD, Preprocess, preprocess_of
from tastemaker.rewards.registry import load_reward

PROMPTS = ["a red star", "two blue fish", "a tree above a heart on a striped black background", ""]
X = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
MEAN, STD = (torch.tensor(v).view(1, 3, 1, 1) for v in (OPENAI_MEAN, OPENAI_STD))


def padded_with_zero(prompts):
    """Tokens as open_clip has them."""
    tokenizer = CLIPTokenizer.from_pretrained(clips.TOKENIZER)
    rows = [tokenizer(prompt, truncation=True, max_length=clips.LENGTH).input_ids for prompt in prompts]
    return torch.tensor([row + [0] * (clips.LENGTH - len(row)) for row in rows])


def expected_cosine(state, x, prompts, act=clips.gelu):
    image, text = clips.open_clip_features(state, (x - MEAN) / STD, padded_with_zero(prompts), act)
    return (image * text).sum(-1)


def slope(function, x):
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(function(leaf).sum(), leaf)[0]


@pytest.mark.parametrize(("name", "file"), [("hps-v2", "HPS_v2_compressed.pt"), ("hps-v2.1", "HPS_v2.1_compressed.pt")])
def test_hps_is_the_cosine_of_open_clips_features(name, file, tmp_path):
    """hpsv2/img_score.py: the diagonal of image_features @ text_features.T, without the logit scale."""
    path, state = clips.open_clip_file(tmp_path, file, seed=3), clips.open_clip_state(3)
    function = load_reward(f"{name}:{path}")
    torch.testing.assert_close(score(function, X, PROMPTS), expected_cosine(state, X, PROMPTS), atol=2e-5, rtol=0)
    here = slope(lambda x: function(x, PROMPTS), X)
    torch.testing.assert_close(here, slope(lambda x: expected_cosine(state, x, PROMPTS), X), atol=1e-5, rtol=1e-3)
    folder = score(load_reward(f"{name}:{tmp_path}"), X, PROMPTS)
    assert folder.equal(score(function, X, PROMPTS))


def test_an_open_clip_file_as_safetensors_with_its_own_settings(tmp_path):
    """open_clip_config.json says what shapes cannot: the activation."""
    path, state = clips.open_clip_file(tmp_path, "open_clip_model.safetensors"), clips.open_clip_state()
    said = score(load_reward(f"clip-score:{path}"), X, PROMPTS)
    torch.testing.assert_close(said, expected_cosine(state, X, PROMPTS), atol=2e-5, rtol=0)
    config = {
        "model_cfg": {"quick_gelu": True, "vision_cfg": {"width": 128, "head_width": 64}, "text_cfg": {"heads": 2}}
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    quick = score(load_reward(f"clip-score:{tmp_path}"), X, PROMPTS)
    torch.testing.assert_close(quick, expected_cosine(state, X, PROMPTS, clips.quick_gelu), atol=2e-5, rtol=0)
    assert (quick - said).abs().max() > 1e-4


def by_transformers(folder, x, prompts):
    """logits_per_image / exp(logit scale) of the whole CLIPModel, with its own PIL processor and tokenizer."""
    model, tokenizer = (
        CLIPModel.from_pretrained(folder, dtype=torch.float32).eval(),
        CLIPTokenizer.from_pretrained(folder),
    )
    pixels = CLIPImageProcessorPil.from_pretrained(folder)(to_pil(x), return_tensors="pt").pixel_values
    tokens = tokenizer(prompts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        out = model(pixel_values=pixels, **tokens)
    return out.logits_per_image.diagonal() / model.logit_scale.exp(), model.logit_scale.exp()


def test_pick_score_is_the_scaled_cosine(tmp_path):
    """PickScore README: logit_scale.exp() * (text_embs @ image_embs.T)."""
    folder, x = clips.clip_folder(tmp_path), (X * 255).round() / 255
    cosine, scale = by_transformers(folder, x, PROMPTS)
    assert scale.item() == pytest.approx(1 / 0.07, rel=1e-3)
    torch.testing.assert_close(score(load_reward(f"clip-score:{folder}"), x, PROMPTS), cosine, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        score(load_reward(f"pick-score:{folder}"), x, PROMPTS), scale * cosine, atol=2e-4, rtol=0
    )


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (100, 71), (20, 45)])
def test_tensors_are_prepared_as_the_models_own_processor_does(size):
    """To 1e-2 in score: the processor rounds to 256 levels before and after it resizes."""
    x = F.interpolate(X, size, mode="bilinear")
    processor = CLIPImageProcessorPil.from_pretrained(BUNDLED)
    pixels = processor(to_pil(x), return_tensors="pt").pixel_values
    found = preprocess_of(processor.to_dict())(x)
    assert (found - pixels).abs().max() * STD.max() < 2.1 / 255
    cosine, _ = by_transformers(BUNDLED, x, PROMPTS)
    torch.testing.assert_close(score(load_reward("clip-score"), x, PROMPTS), cosine, atol=1e-2, rtol=0)


def squares(count, size, seed):
    """Black and white squares [count,3,*size] of 4 pixels, whose edges bicubic weights overshoot at."""
    coarse = torch.rand(
        count, 1, *(length // 4 for length in size), generator=torch.Generator().manual_seed(seed)
    ).round()
    return F.interpolate(coarse, size, mode="nearest").expand(-1, 3, -1, -1).contiguous()


def by_pillow(x, side):
    """hpsv2/src/open_clip/transform.py, image_transform with resize_longest_max: ToTensor, ResizeMaxSize (F.resize of
    a float tensor, bicubic, fill 0), Normalize. Pillow's own bicubic filter on images of floats (mode F), which it does
    not cut off either, stands in for torchvision's, which has the same weights (a = -1/2, antialiased)."""
    height, width = x.shape[-2:]
    scale = side / max(height, width)
    size = round(height * scale), round(width * scale)
    down, right = side - size[0], side - size[1]
    prepared = np.zeros((len(x), 3, side, side), np.float32)
    for image, whole in zip(x.numpy(), prepared, strict=True):
        for channel, square in zip(image, whole, strict=True):
            resized = Image.fromarray(channel).resize(size[::-1], Image.Resampling.BICUBIC)
            square[down // 2 : down // 2 + size[0], right // 2 : right // 2 + size[1]] = np.asarray(resized)
    return (torch.from_numpy(prepared) - MEAN) / STD


@pytest.mark.parametrize("size", [(64, 64), (20, 20), (48, 32), (40, 20)])
def test_hps_keeps_what_its_resize_overshoots(size, tmp_path):
    """As the original, whose images are float tensors by then; other rewards' originals resize bytes."""
    path = clips.open_clip_file(tmp_path, "HPS_v2_compressed.pt", seed=3)
    state, x = clips.open_clip_state(3), squares(4, size, 5)
    prepared = by_pillow(x, 32)
    assert prepared.max() > ((1 - MEAN) / STD).max() + 0.05  # beyond white
    image, text = clips.open_clip_features(state, prepared, padded_with_zero(PROMPTS), clips.gelu)
    expected = (image * text).sum(-1)
    function = load_reward(f"hps-v2:{path}")
    torch.testing.assert_close(score(function, x, PROMPTS), expected, atol=5e-5, rtol=0)
    held, _ = clips.open_clip_features(
        state, ((prepared * STD + MEAN).clamp(0, 1) - MEAN) / STD, padded_with_zero(PROMPTS), clips.gelu
    )
    apart = ((held * text).sum(-1) - expected).abs().max()
    assert apart > 5e-4, apart
    plain = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    assert Preprocess((32, 32), 32, "pad", **plain)(x).aminmax() == (0, 1)
    low, high = Preprocess((32, 32), 32, "pad", clamp=False, **plain)(x).aminmax()
    assert low < -0.02
    assert high > 1.02


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_preparing_has_a_gradient(fit):
    prepare = Preprocess((6, 6), 6, fit)
    x = (0.25 + 0.5 * torch.rand(1, 3, 9, 8, generator=torch.Generator().manual_seed(2))).double().requires_grad_()
    assert torch.autograd.gradcheck(prepare, (x,))


def test_a_wide_image_is_cropped_padded_or_stretched():
    """4x8 pixels, 1 in the left half and 0.5 in the right, to 4x4. Without a mean and a deviation, values stay."""
    x = torch.cat([torch.ones(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.5)], dim=3)
    plain = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "resampling": "bilinear"}
    cropped = Preprocess((4, 4), 4, "crop", **plain)(x)
    assert cropped[0, 0].tolist() == [[1, 1, 0.5, 0.5]] * 4
    padded = Preprocess((4, 4), 4, "pad", **plain)(x)
    assert padded[0, 0, [0, 3]].tolist() == [[0] * 4] * 2
    assert padded[0, 0, 1:3].mean().item() == pytest.approx(0.75)
    assert Preprocess((4, 4), 4, "stretch", **plain)(x).mean().item() == pytest.approx(0.75)
    # transformers: shortest edge 5, so 5 x int(5 * 8 / 4); then the middle 4x4 from (5-4)//2 and (10-4)//2 on.
    assert Preprocess((4, 4), 5, **plain).inner(4, 8) == (5, 10)


def test_processors_that_do_something_else_are_refused():
    config = CLIPImageProcessorPil().to_dict()
    assert preprocess_of(config) == Preprocess((224, 224), 224)
    assert preprocess_of(config | {"size": 224, "crop_size": 224}) == Preprocess((224, 224), 224)
    stretched = preprocess_of(
        config | {"size": {"height": 8, "width": 9}, "do_center_crop": False, "do_normalize": False}
    )
    assert (stretched.size, stretched.fit, stretched.mean) == ((8, 9), "stretch", (0, 0, 0))
    for change in ({"resample": 1}, {"do_pad": True}, {"do_resize": False}, {"do_center_crop": False}):
        with pytest.raises(RewardError, match="no twin with a gradient"):
            preprocess_of(config | change)


def test_long_prompts_are_cut_at_the_end(tmp_path):
    """24 tokens are 22 words between the two that mark start and end."""
    function = load_reward(f"clip-score:{clips.clip_folder(tmp_path)}")
    words = ["red", "star", "fish", "tree"] * 10
    whole, cut, shorter = (score(function, X[:1], [" ".join(words[:n])]) for n in (40, 22, 21))
    assert whole.equal(cut)
    assert not whole.equal(shorter)


@pytest.mark.parametrize("name", ["sac+logos+ava1-l14-linearMSE.pth", "aesthetic.safetensors"])
def test_an_aesthetic_score_is_an_affine_map_of_the_feature(name, tmp_path):
    folder, state = clips.clip_folder(tmp_path), clips.head_state(clips.EMBEDDING)
    if name.endswith(".pth"):
        torch.save(state, folder / name)
    else:
        save_file(state, folder / name)
    function = load_reward(f"aesthetic:{folder}")
    # Five layers with nothing between them are one matrix and one number.
    matrix, constant = np.eye(clips.EMBEDDING), np.zeros(clips.EMBEDDING)
    for number in (0, 2, 4, 6, 7):
        weight, bias = (state[f"layers.{number}.{kind}"].double().numpy() for kind in ("weight", "bias"))
        matrix, constant = weight @ matrix, weight @ constant + bias
    feature = load_clip(str(folder), "clip-score").images(X).double().numpy()
    assert np.linalg.norm(feature, axis=1) == pytest.approx(1)
    expected = torch.tensor(feature @ matrix[0] + constant[0]).float()
    torch.testing.assert_close(score(function, X, PROMPTS), expected, atol=1e-5, rtol=1e-4)
    assert score(function, X, ["other"] * 4).equal(score(function, X, PROMPTS))


def test_laions_own_head_has_its_shape(tmp_path):
    """768-1024-128-64-16-1 is read from a file; its CLIP would be OpenAI's, which is not here."""
    torch.save(clips.head_state(768), tmp_path / "head.pth")
    with pytest.raises(RewardError, match=r"openai/clip-vit-large-patch14.*hf download"):
        offline(f"aesthetic:{tmp_path / 'head.pth'}")


def offline(name):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        return load_reward(name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("clip-score:no/such.pt", "there is no file or folder no/such.pt"),
        ("clip-score:nobody/no-clip", "hf download nobody/no-clip"),
        ("hps-v2", r"xswu/HPSv2/HPS_v2_compressed.pt.*hps-v2:PATH"),
        ("hps-v2.1", r"hf download xswu/HPSv2 HPS_v2.1_compressed.pt"),
        ("pick-score", r"yuvalkirstain/PickScore_v1.*pick-score:PATH"),
        ("aesthetic:nothing.pth", "there is no file nothing.pth"),
        ("image-reward", r"`hf download THUDM/ImageReward ImageReward.pt`.*image-reward:PATH"),
    ],
)
def test_what_is_not_here_is_said_with_a_way_to_get_it(name, said):
    with pytest.raises(RewardError, match=said):
        offline(name)


def test_weights_of_another_kind_are_refused(tmp_path):
    path, state = clips.open_clip_file(tmp_path, "a.safetensors"), clips.open_clip_state()
    save_file(state | {"visual.head.bias": torch.ones(2)}, path)
    with pytest.raises(RewardError, match=r"1 are of no use \(the first is visual.head.bias\)"):
        load_reward(f"clip-score:{path}")
    del state["visual.ln_post.bias"]
    save_file(state, path)
    with pytest.raises(RewardError, match=r"1 are missing \(the first is vision_model.post_layernorm.bias\)"):
        load_reward(f"clip-score:{path}")
    save_file({"weight": torch.ones(3)}, path)
    with pytest.raises(RewardError, match="not those of an open_clip ViT CLIP: KeyError"):
        load_reward(f"clip-score:{path}")
    path.write_bytes(b"no weights")
    with pytest.raises(RewardError, match="cannot read its weights"):
        load_reward(f"clip-score:{path}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RewardError, match="finds no CLIP in"):
        load_reward(f"hps-v2:{tmp_path / 'empty'}")


class Trap:
    def __reduce__(self):
        return print, ("this ran",)


def test_a_file_that_holds_code_is_not_run(tmp_path, capsys):
    path = clips.open_clip_file(tmp_path)
    torch.save({"state_dict": clips.open_clip_state(), "trap": Trap()}, path)
    with pytest.raises(RewardError, match="holds more than tensors"):
        load_reward(f"hps-v2:{path}")
    assert "this ran" not in capsys.readouterr().out


def test_models_and_tokens_of_another_kind_are_refused(tmp_path):
    folder = clips.clip_folder(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "siglip", "architectures": ["SiglipModel"]}))
    with pytest.raises(RewardError, match="a model of the type 'siglip'"):
        load_reward(f"pick-score:{folder}")
    (tmp_path / "small").mkdir()
    path = clips.open_clip_file(tmp_path / "small")
    state = clips.open_clip_state()
    torch.save(state | {"token_embedding.weight": state["token_embedding.weight"][:100]}, path)
    with pytest.raises(RewardError, match=r"has 257 tokens, but .* knows 100"):
        load_reward(f"hps-v2:{path}")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layers.8.weight": torch.ones(1, 1)}, "bias.* is missing"),
        ({"layers.6.weight": torch.ones(16, 63)}, r"they are \["),
        ({"scale": torch.ones(1)}, "scale is there"),
    ],
)
def test_heads_of_another_form_are_refused(change, said, tmp_path):
    save_file(clips.head_state(128) | change, tmp_path / "head.safetensors")
    with pytest.raises(RewardError, match=said):
        load_reward(f"aesthetic:{tmp_path / 'head.safetensors'}")


def test_a_head_and_its_clip_have_one_width(tmp_path):
    folder = clips.clip_folder(tmp_path)
    save_file(clips.head_state(128), folder / "aesthetic.safetensors")
    with pytest.raises(RewardError, match=r"features of 128 numbers, but its CLIP makes 48"):
        load_reward(f"aesthetic:{folder}")
    save_file(clips.head_state(7), tmp_path / "head.safetensors")
    with pytest.raises(RewardError, match="features of 7 numbers, and no CLIP"):
        load_reward(f"aesthetic:{tmp_path / 'head.safetensors'}")


def test_a_gradient_is_only_of_the_image(tmp_path):
    clip = load_clip(str(clips.clip_folder(tmp_path)), "clip-score")
    assert not any(parameter.requires_grad for parameter in clip.model.parameters())
    assert clip.model.dtype == torch.float32
    assert clip.texts(PROMPTS).norm(dim=-1).tolist() == pytest.approx([1] * 4)
    assert math.isfinite(slope(lambda x: clip.cosine(x, PROMPTS), X).norm().item())


def drawn(seeds, size=32):
    """Drawings that training did not see, and captions that are true of them."""
    found = []
    for seed in seeds:
        rng = random.Random(900_000 + seed)
        scene, request = sample_scene(rng)
        found.append((torch.from_numpy(np.array(render(scene, size, rng))).permute(2, 0, 1) / 255, request.caption()))
    return torch.stack([x for x, _ in found]), [caption for _, caption in found]


def test_the_bundled_clip_finds_the_caption_of_a_drawing():
    """Out of 100: docs/results/clip.json has the figure for 4,000 drawings."""
    x, captions = drawn(range(100))
    clip = load_clip("bundled", "clip-score")
    best = (clip.images(x) @ clip.texts(captions).T).argmax(dim=1).tolist()
    assert sum(captions[b] == caption for b, caption in zip(best, captions, strict=True)) >= 85


def test_the_bundled_clip_is_a_plain_transformers_one():
    model, processor = CLIPModel.from_pretrained(BUNDLED), CLIPProcessor.from_pretrained(BUNDLED)
    assert sum(file.stat().st_size for file in BUNDLED.iterdir()) <= 8e6
    x, captions = drawn(range(8))
    inputs = processor(text=captions, images=to_pil(x), return_tensors="pt", padding=True)
    with torch.no_grad():
        cosine = model(**inputs).logits_per_image.diagonal().float() / model.logit_scale.exp().float()
    torch.testing.assert_close(score(load_reward("clip-score"), x, captions), cosine, atol=1e-2, rtol=0)


@pytest.mark.parametrize(
    ("thing", "ground", "false"),
    [
        (Thing("star", "red", 0.5, 0.5, 0.3), "white", "a green star on a white background"),
        (Thing("star", "red", 0.5, 0.5, 0.3), "white", "a red house on a white background"),
        (Thing("star", "red", 0.5, 0.5, 0.3), "white", "a red star on a yellow background"),
        (Thing("star", "red", 0.5, 0.5, 0.3), "white", "two red stars on a white background"),
    ],
)
def test_the_bundled_clip_tells_one_change(thing, ground, false):
    x = image(Scene((thing,), ground)).repeat(2, 1, 1, 1)
    right, wrong = score(load_reward("clip-score"), x, [f"a red star on a {ground} background", false]).tolist()
    assert right > wrong + 0.1


def image(scene):
    return torch.from_numpy(np.array(render(scene))).permute(2, 0, 1)[None] / 255


def test_the_bundled_taste_is_for_large_contrasting_things_in_the_middle():
    """docs/guides/bundled-clip.md's rule, one part at a time."""
    best = score(load_reward("aesthetic"), image(Scene((Thing("star", "red", 0.5, 0.5, 0.4),), "white")), [""])
    for worse in (
        Scene((Thing("star", "red", 0.5, 0.5, 0.18),), "white"),
        Scene((Thing("star", "red", 0.3, 0.3, 0.28),), "white"),
        Scene((Thing("star", "red", 0.5, 0.5, 0.4),), "orange"),
    ):
        assert score(load_reward("aesthetic"), image(worse), [""]) < best - 0.3
