"""Rewards: the built-in definitions, loading by name, and answers that are refused."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import lab2rgb, rgb2lab

import tiny_language
from naming import ARGUMENTS, asked, named
from scoring import total
from tastemaker.errors import RewardError
from tastemaker.rewards.base import reward
from tastemaker.rewards.colour import _ab, colourfulness, soft_colourfulness
from tastemaker.rewards.jpeg import jpeg_compressibility, jpeg_incompressibility, to_bytes
from tastemaker.rewards.registry import BUILTIN, differentiable_rewards, load_reward
from tastemaker.rewards.vlm.settings import Vlm, is_vlm

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_jpeg_reward_is_the_size_of_pils_file():
    """DDPO A.4: quality 95, bytes / 1000."""
    for index, image in enumerate(IMAGES):
        array = (image * 255).round().permute(1, 2, 0).to(torch.uint8).numpy()
        file = io.BytesIO()
        Image.fromarray(array).save(file, "JPEG", quality=95)
        size = len(file.getvalue()) / 1000
        assert jpeg_incompressibility(IMAGES, ["x"] * 3)[index].item() == pytest.approx(size)
        assert jpeg_compressibility(IMAGES, ["x"] * 3)[index].item() == pytest.approx(-size)


def test_flat_images_compress_best():
    flat = torch.full((1, 3, 32, 32), 0.3)
    assert jpeg_compressibility(flat, ["x"]) > jpeg_compressibility(IMAGES[:1], ["x"])


def test_rounding_is_to_nearest_and_out_of_range_is_clamped():
    x = torch.tensor([-0.2, 0.4999 / 255, 0.5001 / 255, 1.3]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    assert to_bytes(x)[0, ..., 0].flatten().tolist() == [0, 0, 1, 255]


def saved(image, path):
    """An image [3,H,W] of whole 255ths as a file."""
    Image.fromarray((image * 255).round().permute(1, 2, 0).to(torch.uint8).numpy()).save(path)
    return path


def grey(*rows):
    return torch.tensor(rows).expand(3, -1, -1)


def test_target_image_by_hand(tmp_path):
    """Thesis, Alg. 1. y = (1, 0; 0, 0), mean 1/4: errors where y is bright count 1 + 1 / (1/4) = 5 times.

    All black: e = 5 * 1 at one pixel of four, -10 sqrt(5/4) = -11.1803. All white: e = 1 at three, -10 sqrt(3/4)
    = -8.6603. Half grey: (5 + 1 + 1 + 1) * 1/4 / 4 = 1/2, -7.0711.
    """
    target = grey([1.0, 0.0], [0.0, 0.0])
    function = load_reward(f"target-image:{saved(target, tmp_path / 'y.png')}")
    x = torch.stack([target, torch.zeros(3, 2, 2), torch.ones(3, 2, 2), torch.full((3, 2, 2), 0.5)])
    expected = torch.tensor([0.0, -11.180340, -8.660254, -7.0710678])
    torch.testing.assert_close(total(function, x, "abcd"), expected)


def test_target_image_has_a_gradient_also_at_the_target(tmp_path):
    """At half grey the reward is -10 sqrt(S/12) with S = sum (x-y)^2 w = 6; its slope at a pixel of error d and weight
    w is -10 * 2 d w / 12 / (2 sqrt(1/2)): for the bright one d = -1/2, w = 5, so +2.9463, for others -0.5893."""
    target = grey([1.0, 0.0], [0.0, 0.0])
    function = load_reward(f"target-image:{saved(target, tmp_path / 'y.png')}")
    assert function.differentiable
    x = torch.stack([torch.full((3, 2, 2), 0.5), target]).requires_grad_()
    function(x, ["a", "b"]).sum().backward()
    expected = grey([2.946278, -0.5892557], [-0.5892557, -0.5892557])
    torch.testing.assert_close(x.grad, torch.stack([expected, torch.zeros(3, 2, 2)]))


def test_target_image_is_resized_to_the_images(tmp_path):
    """A grey file of 2 columns, 0 and 1, is 0, 0, 1/8, 3/8, 5/8, 7/8, 1, 1 in 8 columns, of mean 1/2.

    Against sharp halves: e = 1/64 * 5/4 + 9/64 * 7/4 + 9/64 * 9/4 + 1/64 * 11/4 = 5/8 in 8 columns, -10 sqrt(5/64).
    """
    Image.fromarray(np.repeat(np.uint8([[0, 255]]), 2, axis=0)).save(tmp_path / "y.png")
    function = load_reward(f"target-image:{tmp_path / 'y.png'}")
    halves = torch.cat([torch.zeros(1, 3, 8, 4), torch.ones(1, 3, 8, 4)], dim=3)
    assert function(halves, ["a"]).item() == pytest.approx(-2.7950850)


def test_a_target_that_cannot_be_one_is_refused(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    saved(torch.zeros(3, 2, 2), tmp_path / "black.png")
    for name, message in [
        ("target-image", "requires an argument: give `target-image:FILE`"),
        (f"target-image:{tmp_path}/none.png", r"there is no image .*none.png"),
        (f"target-image:{tmp_path}/text.png", r"text.png cannot be read: it is in no format"),
        (f"target-image:{tmp_path}", "is a folder"),
        (f"target-image:{tmp_path}/black.png", r"black.png is all black"),
    ]:
        with pytest.raises(RewardError, match=message):
            load_reward(name)


def test_a_target_with_depth_alpha_or_orientation_is_what_one_sees(tmp_path):
    """16 bits: 32896 / 65535 = 0.502; half of red on white; a lower left corner that is seen at the upper left."""
    deep, clear, turned = (tmp_path / name for name in ("deep.png", "clear.png", "turned.png"))
    Image.fromarray(np.full((2, 2), 32896, np.uint16)).save(deep)
    Image.new("RGBA", (2, 2), (255, 0, 0, 128)).save(clear)
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.new("RGB", (2, 2))
    stored.putpixel((0, 1), (255, 255, 255))
    stored.save(turned, exif=exif)
    half = torch.tensor([1, 127 / 255, 127 / 255]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    corner = torch.zeros(1, 3, 2, 2)
    corner[..., 0, 0] = 1
    for path, expected in ((deep, torch.full((1, 3, 2, 2), 128 / 255)), (clear, half), (turned, corner)):
        assert total(load_reward(f"target-image:{path}"), expected, ["x"]).item() == pytest.approx(0)
    deep.write_bytes(deep.read_bytes()[:-30])
    with pytest.raises(RewardError, match=r"the reward target-image:.*deep.png: the image .* cannot be read"):
        load_reward(f"target-image:{deep}")


def patches(*colours):
    """An image [3,1,N] of one pixel of each RGB colour."""
    return torch.tensor(colours, dtype=torch.float32).T.unsqueeze(1)


RED, BLUE, YELLOW, GREEN = (1, 0, 0), (0, 0, 1), (1, 1, 0), (0, 1, 0)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        # CIELAB hues in radians (red 0.70, blue -0.94, yellow 1.79, green 2.37) fall in bins 4, 2, 5, 6 of 7.
        (patches(RED, RED), 0.0),
        (patches(RED, BLUE), 1.0),
        (patches(RED, RED, RED, BLUE), 0.8112781),  # 2 - 3/4 log2 3
        (patches(RED, BLUE, YELLOW, GREEN), 2.0),
        # Greys are not vivid, yet have a hue: black's is atan2(0, 0) = 0, in bin 3. Half are vivid, and 1 bit of hues.
        (patches(RED, (0, 0, 0)), 0.5),
    ],
)
def test_colourfulness_by_hand(image, expected):
    assert load_reward("colourfulness")(image.unsqueeze(0), ["x"]).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("level", [0.0, 0.2, 0.5, 1.0])
def test_grey_images_have_no_colourfulness(level):
    assert load_reward("colourfulness")(torch.full((1, 3, 8, 8), level), ["x"]).item() == 0.0
    noise = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)).expand(1, 3, 8, 8)
    assert load_reward("colourfulness")(noise, ["x"]).item() == 0.0


def in_lab(chroma):
    """Seven pixels of lightness 60, each in the middle of one of the 7 bins of hue."""
    hue = -math.pi + (np.arange(7) + 0.5) * 2 * math.pi / 7
    lab = np.stack([np.full(7, 60.0), chroma * np.cos(hue), chroma * np.sin(hue)], axis=1)
    return torch.from_numpy(lab2rgb(lab)).float().T.reshape(1, 3, 1, 7)


def test_colourfulness_is_log2_7_at_most_and_compares_the_squared_chroma_with_10():
    """3.2^2 = 10.24 and 3.1^2 = 9.61: vivid and not."""
    assert load_reward("colourfulness")(in_lab(20), ["x"]).item() == pytest.approx(math.log2(7), abs=1e-6)
    assert load_reward("colourfulness")(in_lab(3.2), ["x"]).item() == pytest.approx(math.log2(7), abs=1e-6)
    assert load_reward("colourfulness")(in_lab(3.1), ["x"]).item() == 0.0


def test_colourfulness_is_the_thesis_own_listing():
    """App. A, for images in [0,1]."""
    images = torch.cat([IMAGES, 0.5 + 0.1 * (IMAGES - 0.5)])
    lab = np.stack([rgb2lab(image) for image in images.permute(0, 2, 3, 1).numpy()])
    a, b = lab[..., 1], lab[..., 2]
    vivid_ratio = np.mean(a**2 + b**2 > 10, axis=(1, 2))
    discrete = np.digitize(np.arctan2(b, a), np.linspace(-np.pi, np.pi, 8)) - 1
    discrete[discrete == 7] = 6
    counts = np.apply_along_axis(np.bincount, -1, discrete.reshape(len(discrete), -1), minlength=7)
    probs = counts / counts.sum(axis=-1, keepdims=True)
    entropy = -np.sum(probs * np.log2(probs + np.finfo(float).eps), axis=-1)
    expected = torch.tensor(vivid_ratio * entropy).float()
    assert expected.min() > 0.1
    torch.testing.assert_close(load_reward("colourfulness")(images, "abcdef"), expected)


# Those that ask a vision-language model are in test_vlm_rewards.py.
@pytest.mark.parametrize("name", sorted(name for name in BUILTIN if not is_vlm(name)))
def test_built_in_rewards_keep_order_and_do_not_depend_on_the_batch(name, tmp_path):
    function = load_reward(named(name, tmp_path))
    prompts = asked(name, ["a red star", "two blue fish", "a tree above a heart"])
    together = total(function, IMAGES, prompts)
    alone = torch.cat([total(function, IMAGES[i : i + 1], [p]) for i, p in enumerate(prompts)])
    assert together.dtype == torch.float32
    # A network's sums over a larger batch may be made in another order.
    tolerance = 1e-5 if name in (*ARGUMENTS, "judge-score", "clip-score", "aesthetic") else 0.0
    torch.testing.assert_close(together, alone, atol=tolerance, rtol=0)
    torch.testing.assert_close(total(function, IMAGES.flip(0), prompts[::-1]), together.flip(0), atol=tolerance, rtol=0)


def test_a_users_function_by_module_and_name(tmp_path, monkeypatch):
    (tmp_path / "my_taste.py").write_text("def redness(x, prompts):\n    return x[:, 0].mean(dim=(1, 2))\n")
    monkeypatch.chdir(tmp_path)
    values = total(load_reward("my_taste:redness"), IMAGES, ["a", "b", "c"])
    torch.testing.assert_close(values, IMAGES[:, 0].mean(dim=(1, 2)))
    with pytest.raises(RewardError, match=r"no function 'rednes'.*'redness'"):
        load_reward("my_taste:rednes")


def test_an_entry_point_of_another_package(tmp_path, monkeypatch):
    (tmp_path / "other_taste.py").write_text("def blueness(x, prompts):\n    return x[:, 2].mean(dim=(1, 2))\n")
    info = tmp_path / "other_taste-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-taste\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[tastemaker.rewards]\nblueness = other_taste:blueness\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.testing.assert_close(total(load_reward("blueness"), IMAGES, "abc"), IMAGES[:, 2].mean(dim=(1, 2)))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x, p: 1 / 0, "raised ZeroDivisionError: division by zero"),
        (lambda x, p: torch.zeros(2), r"shape \[2\] for 3 images.*shape \[3\]"),
        (lambda x, p: torch.zeros(3, 1), r"shape \[3, 1\] for 3 images"),
        (lambda x, p: torch.zeros(()), r"shape \[\] for 3 images"),
        (lambda x, p: torch.tensor([1.0, math.nan, 2.0]), "returned nan for 1 of 3 images .*'b'"),
        (lambda x, p: [1.0, 2.0, math.inf], "returned inf for 1 of 3 images .*'c'"),
        (lambda x, p: None, "returned NoneType, but must return 3 numbers"),
        (lambda x, p: "good", "returned str"),
    ],
)
def test_a_wrong_answer_is_refused_in_one_sentence(answer, message):
    with pytest.raises(RewardError, match=message) as caught:
        total(answer, IMAGES, ["a", "b", "c"])
    assert "\n" not in str(caught.value)


def test_unknown_rewards_name_the_nearest():
    with pytest.raises(RewardError, match="did you mean 'jpeg-compressibility'"):
        load_reward("jpeg-compresibility")
    with pytest.raises(RewardError, match=r"cannot be imported.*no_such_module"):
        load_reward("no_such_module:f")


def test_marks():
    @reward(differentiable=True, space="latent")
    def brightness(x, prompts):
        return x.mean(dim=(1, 2, 3))

    assert (brightness.differentiable, brightness.space) == (True, "latent")
    assert jpeg_compressibility.differentiable is False


def test_the_colour_axes_are_those_of_scikit_image():
    x = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    lab = rgb2lab(x.permute(0, 2, 3, 1).numpy())
    for mine, theirs in zip(_ab(x), (lab[..., 1], lab[..., 2]), strict=True):
        assert np.allclose(mine.numpy(), theirs, atol=1e-4)


def test_soft_colourfulness_goes_with_the_hard_one_and_has_its_gradient():
    random = torch.Generator().manual_seed(2)
    # From grey to colourful: a share of each image's pixels has a colour of its own.
    share = torch.linspace(0, 1, 12, dtype=torch.float64)[:, None, None, None]
    colours = torch.rand(12, 3, 8, 8, generator=random, dtype=torch.float64)
    x = torch.where(torch.rand(12, 1, 8, 8, generator=random, dtype=torch.float64) < share, colours, 0.4)
    soft, hard = soft_colourfulness(x, [""] * 12), colourfulness(x, [""] * 12)
    assert np.corrcoef(soft.numpy(), hard.numpy())[0, 1] > 0.98
    assert soft.max() <= math.log2(7)
    y = colours[:2].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda y: soft_colourfulness(y, ["", ""]), y, eps=1e-7, atol=1e-4)
    grey = torch.full((1, 3, 8, 8), 0.5, requires_grad=True)
    assert torch.autograd.grad(soft_colourfulness(grey, [""]).sum(), grey)[0].isfinite().all()


def test_graded_answers_keep_their_graph_and_are_checked():
    x = IMAGES.clone().requires_grad_()
    assert total(lambda x, prompts: x.mean((1, 2, 3)), x, ["a"] * 3).requires_grad
    with pytest.raises(RewardError, match="has no gradient"):
        total(lambda x, prompts: x.detach().mean((1, 2, 3)), x, ["a"] * 3)
    with pytest.raises(RewardError, match="must be finite"):
        total(lambda x, prompts: x.mean((1, 2, 3)) / 0, x, ["a"] * 3)
    with pytest.raises(RewardError, match="raised ZeroDivisionError"):
        total(lambda x, prompts: 1 / 0, x, ["a"] * 3)


def test_the_registry_knows_which_rewards_have_a_gradient(tmp_path):
    """Its flag is the function's own mark, for every entry."""
    vlm = Vlm(text_model=str(tiny_language.deberta(tmp_path / "deberta")), text_layer=1)
    for name, entry in BUILTIN.items():
        (tmp_path / name).mkdir()
        full = f"{name}:m@http://127.0.0.1:9/v1" if is_vlm(name) else named(name, tmp_path / name)
        function = load_reward(full, vlm=vlm)
        assert function.differentiable == entry.differentiable, name
    assert set(differentiable_rewards()) >= {"target-image", "jpeg-surrogate-compressibility"}
    assert "jpeg-compressibility" not in differentiable_rewards()
