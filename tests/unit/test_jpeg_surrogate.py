"""The JPEG surrogate: its parts against PIL and scipy, its sizes against true ones, and its gradient."""

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.fft import dctn
from scipy.stats import spearmanr

from scoring import total
from tastemaker.drawings import render, sample_scene
from tastemaker.errors import ModelError, RewardError
from tastemaker.rewards import jpeg_surrogate
from tastemaker.rewards.jpeg import jpeg_kilobytes, to_bytes
from tastemaker.rewards.jpeg_code import AC_CATEGORIES, code, coefficients, luma_order, planes
from tastemaker.rewards.jpeg_surrogate import SizeNet, ac_bits, load_surrogate, magnitude_bits, predicted_kilobytes
from tastemaker.rewards.registry import load_reward


def drawings(count, side, start=10**7):
    """Drawings [N,3,side,side] that no training has seen."""
    made = []
    for seed in range(start, start + count):
        rng = random.Random(seed)
        made.append(np.asarray(render(sample_scene(rng)[0], side, rng)))
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).float() / 255


def file_of(image):
    """The bytes of an image [3,H,W] as the reward writes it."""
    buffer = io.BytesIO()
    Image.fromarray(to_bytes(image[None])[0].numpy()).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def test_quantisation_is_pils():
    with Image.open(io.BytesIO(file_of(torch.rand(3, 16, 16)))) as image:
        assert image.layer[0][1:3] == (2, 2), "luma has twice the resolution of chroma both ways"
        # PIL gives tables in raster order: the 2nd and 3rd of the zigzag are raster places 1 and 8.
        for kind in (0, 1):
            assert image.quantization[kind][:1] == [code().quantum[kind, 0]]
            assert [image.quantization[kind][1], image.quantization[kind][8]] == code().quantum[kind, 1:3].tolist()


def test_code_lengths_are_the_standards():
    """T.81, tables K.3 to K.6: DC category 0 has 2 bits, luma's category 11 has 9 (and 11 of magnitude). Luma AC: end
    of block 1010, 16 zeros 11111111001, (0,1) 00, (3,2) 111110111; (16,1) is 16 zeros and (0,1). Chroma's end is 00."""
    assert code().dc[:, 0].tolist() == [2, 2]
    assert code().dc[0, 11] == 9 + 11
    assert code().end.tolist() == [4, 2]
    assert code().ac[0, 0, 1] == 2 + 1
    assert code().ac[0, 3, 2] == 9 + 2
    assert code().ac[0, 16, 1] == 11 + 2 + 1


def test_coefficients_are_scipys_dct():
    plane = torch.rand(2, 16, 24, dtype=torch.float64) * 255
    found = coefficients(plane)
    assert found.shape == (2, 2, 3, 64)
    expected = dctn(plane[1, 8:16, 16:24].numpy(), norm="ortho")
    # The zigzag begins (0,0) (0,1) (1,0) (2,0) (1,1) (0,2) and ends (6,7) (7,6) (7,7), row first (T.81, Fig. 5).
    rows, columns = [0, 0, 1, 2, 1, 0, 6, 7, 7], [0, 1, 0, 0, 1, 2, 7, 6, 7]
    places = [0, 1, 2, 3, 4, 5, 61, 62, 63]
    np.testing.assert_allclose(found[1, 1, 2][places].numpy(), expected[rows, columns], atol=1e-10)
    np.testing.assert_allclose(found[1, 1, 2].sort().values.numpy(), np.sort(expected.flatten()), atol=1e-10)


def test_planes_are_pils():
    """PIL's own planes are cut off to whole numbers, half a level below on average. Chroma is the mean of four."""
    x = torch.rand(1, 3, 16, 32, generator=torch.Generator().manual_seed(3))
    image = Image.fromarray(to_bytes(x)[0].numpy()).convert("YCbCr")
    expected = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() - 127.5
    luma, chroma = planes(to_bytes(x).permute(0, 3, 1, 2) / 255)
    torch.testing.assert_close(luma[0], expected[0], atol=0.52, rtol=0)
    means = expected[1:].unflatten(1, (8, 2)).unflatten(3, (16, 2)).mean(dim=(2, 4))
    torch.testing.assert_close(chroma[0], means, atol=0.52, rtol=0)


def test_order_of_luma_blocks():
    """32x32 has 4x4 blocks, in the file 2x2 at a time. 24x8 has 3 rows of one, in a made-up grid of 4 rows of 2."""
    assert luma_order(32, 32)[:8].tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    assert luma_order(24, 8).tolist() == [0, 2, 4]


def counted(sizes, kind=0):
    """Bits of one block's coefficients as the standard counts them, from whole numbers of magnitude bits."""
    bits, zeros = 0.0, 0
    for size in sizes:
        if size == 0:
            zeros += 1
            continue
        bits += code().ac[kind, zeros, size].item()
        zeros = 0
    return bits + (code().end[kind].item() if zeros else 0)


def test_a_block_is_counted_as_the_standard_does(monkeypatch):
    """With sharp steps, halfway above each: exactly the coder's bits, runs beyond 15 and a full block included."""
    monkeypatch.setattr(jpeg_surrogate, "WIDTH", 1e-3)
    g = torch.Generator().manual_seed(0)
    for density in (0.0, 0.03, 0.3, 1.0):
        sizes = torch.randint(1, AC_CATEGORIES + 1, (20, 63), generator=g)
        sizes = sizes * (torch.rand(20, 63, generator=g) < density)
        found = ac_bits(sizes.double() + 0.5, 0)
        assert found.tolist() == pytest.approx([counted(row) for row in sizes.tolist()])


def test_magnitude_bits_by_hand():
    """The steps of the staircase, 1, 2, 3 bits, are at 1/2, 3/2, 7/2 but for the rounding at 0 (at most 0.05)."""
    u = torch.tensor([0.0, 0.5, -1.5, 3.5])
    torch.testing.assert_close(magnitude_bits(u), torch.tensor([0.0, 1.0, 2.0, 3.0]), atol=0.1, rtol=0)


def test_untrained_and_sharp_it_is_the_file_but_for_stuffing(monkeypatch):
    """A coder puts a 0 after every byte 255 and fills the last byte up; everything else is counted. What is left is
    the rounding of planes before they are transformed: 2 % of an image's bytes at most, and half of one on average."""
    monkeypatch.setattr(jpeg_surrogate, "WIDTH", 1e-3)
    network = SizeNet().double()
    x = drawings(20, 40)[..., :24]
    with torch.no_grad():
        found = network(x.double()) * 1000
    files = [file_of(image) for image in x]
    expected = torch.tensor([len(f) - f[code().header - 2 :].count(b"\xff\x00") for f in files]).double()
    torch.testing.assert_close(found, expected, atol=0, rtol=0.02)
    assert found.mean().item() == pytest.approx(expected.mean().item(), rel=0.005)


def test_sizes_of_drawings():
    """WeightCopy-out drawings: correlations above 0.998 and an RMS error of at most 1 % of an image's 1.1 kB or so."""
    x = drawings(200, 32)
    true, found = jpeg_kilobytes(x), predicted_kilobytes(x)
    assert np.corrcoef(true, found)[0, 1] > 0.998
    assert spearmanr(true, found)[0] > 0.998
    assert (true - found).square().mean().sqrt() < 0.011


@pytest.mark.parametrize(("height", "width"), [(24, 40), (37, 21), (8, 8), (3, 5), (64, 48)])
def test_any_size(height, width):
    x = drawings(12, 64)[:, :, 5 : 5 + height, 7 : 7 + width]
    true, found = jpeg_kilobytes(x), predicted_kilobytes(x)
    # Of the bytes that depend on the image, taken as 500 where they are fewer.
    assert ((true - found).abs() / (true - code().header / 1000).clamp(min=0.5)).max() < 0.07


def test_gradient_is_that_of_finite_differences():
    g = torch.Generator().manual_seed(1)
    x = drawings(2, 24).double() * 0.9 + 0.05
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(predicted_kilobytes(x).sum(), x)
    for _ in range(5):
        way = torch.randn(x.shape, generator=g, dtype=torch.float64)
        step = 1e-7 * way
        with torch.no_grad():
            slope = (predicted_kilobytes(x + step) - predicted_kilobytes(x - step)).sum() / 2e-7
        assert (gradient * way).sum().item() == pytest.approx(slope.item(), rel=1e-4)


def test_blocks_in_pieces_give_the_same(monkeypatch):
    x = drawings(3, 32).double()
    outcomes = []
    for chunk in (jpeg_surrogate.CHUNK, 7):
        monkeypatch.setattr(jpeg_surrogate, "CHUNK", chunk)
        free = x.clone().requires_grad_()
        sizes = predicted_kilobytes(free)
        outcomes.append((sizes.detach(), *torch.autograd.grad(sizes.sum(), free)))
    for whole, pieces in zip(*outcomes, strict=True):
        torch.testing.assert_close(whole, pieces)


def test_a_image_does_not_depend_on_its_batch():
    x = drawings(5, 32)
    together = predicted_kilobytes(x)
    alone = torch.cat([predicted_kilobytes(image[None]) for image in x])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_flat_images(level):
    """The smallest file there is, a finite gradient, and none that a step of a flat image could follow."""
    x = torch.full((2, 3, 32, 32), level, requires_grad=True)
    sizes = predicted_kilobytes(x)
    sizes.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    true = jpeg_kilobytes(x)
    torch.testing.assert_close(sizes.detach(), true, atol=0.015, rtol=0)


def test_gradients_reach_the_pixels_of_faint_texture():
    x = (0.5 + 0.01 * torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))).requires_grad_()
    predicted_kilobytes(x).sum().backward()
    assert x.grad is not None
    assert (x.grad != 0).float().mean() > 0.99


@pytest.mark.parametrize("sign", [1, -1])
def test_what_climbs_it_climbs_the_true_size(sign):
    """Adam on the pixels themselves, with no model in between: the promised change is kept, within 15 %."""
    start = drawings(8, 32)
    x = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([x], 0.002)
    for _ in range(25):
        optimizer.zero_grad()
        (-sign * predicted_kilobytes(x)).sum().backward()
        optimizer.step()
        x.data.clamp_(0, 1)
    with torch.no_grad():
        promised = (predicted_kilobytes(x) - predicted_kilobytes(start)).mean()
    kept = (jpeg_kilobytes(x) - jpeg_kilobytes(start)).mean()
    assert sign * kept > 0.07
    assert kept.item() == pytest.approx(promised.item(), rel=0.15)


def test_rewards_by_name():
    x = drawings(3, 32)
    down, up = (load_reward(f"jpeg-surrogate-{name}") for name in ("compressibility", "incompressibility"))
    assert total(up, x, ["x"] * 3).tolist() == predicted_kilobytes(x).tolist()
    assert total(down, x, ["x"] * 3).tolist() == (-predicted_kilobytes(x)).tolist()


def test_half_precision_is_computed_in_single():
    x = drawings(2, 32)
    sizes = predicted_kilobytes(x.bfloat16())
    assert sizes.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(predicted_kilobytes(x), predicted_kilobytes(x.double()).float(), atol=1e-4, rtol=0)


def test_grey_channels_are_refused():
    with pytest.raises(RewardError, match=r"shape \[2, 1, 8, 8\], but it reads \[B,3,H,W\]"):
        predicted_kilobytes(torch.zeros(2, 1, 8, 8))


def test_missing_weights(monkeypatch, tmp_path):
    monkeypatch.setattr(jpeg_surrogate, "WEIGHTS", tmp_path / "none.safetensors")
    load_surrogate.cache_clear()
    try:
        with pytest.raises(ModelError, match="make surrogate"):
            load_surrogate()
    finally:
        load_surrogate.cache_clear()
