"""Detectors of collapse on images made for them, on noise, and on drawings of the bundled model's world."""

from __future__ import annotations

import math
import random

import pytest
import torch
from PIL import Image
from torch import Tensor

from tastemaker.drawings.draw import render
from tastemaker.drawings.scene import sample_scene
from tastemaker.evaluation.collapse import differences, grid_power
from tastemaker.evaluation.metrics import diversity, diversity_by_image
from tastemaker.evaluation.over_optimisation import Measure, Measured, watch

COUNT = 16


def drawings(size: int, seed: int = 0) -> Tensor:
    """[16,3,S,S] drawings of what the bundled model was trained on."""
    dice = random.Random(seed)
    scenes = [sample_scene(dice)[0] for _ in range(COUNT)]
    return torch.stack([tensor(render(scene, size, dice)) for scene in scenes])


def tensor(image: Image.Image) -> Tensor:
    pixels = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
    return pixels.reshape(image.height, image.width, 3).permute(2, 0, 1).float() / 255


def checker(size: int, period: int, amplitude: float) -> Tensor:
    """A checkerboard [S,S] of +-amplitude."""
    at = torch.arange(size) // (period // 2)
    return amplitude * (2.0 * ((at[:, None] + at[None]) % 2) - 1)


def warnings(base: Tensor, now: Tensor, prompts: list[str]) -> set[str]:
    """What is warned of where the trained reward has risen."""

    def measured(number: int, x: Tensor) -> Measured:
        same, other = differences(x, prompts)
        assert same is not None
        assert other is not None
        shares = {"difference/seeds": same, "difference/prompts": other, "diversity": diversity_by_image(x, prompts)}
        held_out = {name: Measure(tuple(values.tolist())) for name, values in shares.items()}
        held_out["grid_power"] = Measure(tuple(grid_power(x).tolist()), lower_is_better=True)
        return Measured(number, held_out, (float(number),) * len(x))

    found = watch([measured(0, base), measured(1, now), measured(2, now)])
    return {one.name for one in found[-1].warnings}


PROMPTS = [f"prompt {number // 4}" for number in range(COUNT)]


@pytest.mark.parametrize("size", [32, 256])
def test_a_checkerboard_is_found_and_clean_images_are_not(size: int):
    base = drawings(size)
    assert warnings(base, drawings(size, seed=1), PROMPTS) == set()
    for period in (2, 4, 8) if size == 32 else (8, 16):
        covered = (base + checker(size, period, 0.1)).clamp(0, 1)
        assert (grid_power(covered) - grid_power(base)).median() > 0.2
        assert warnings(base, covered, PROMPTS) == {"grid_power"}


def test_the_power_of_a_grid_beside_noise():
    """A wave of amplitude a has a power of a^2 / 2, noise of deviation s one of s^2, of which the fine frequencies,
    more than 1/8 of the side's rate away from 0 at 32 pixels, have 1 - pi / 64."""
    noise = 0.05 * torch.randn(200, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    wave = 0.1 * torch.cos(2 * math.pi * torch.arange(32) / 4)
    x = (0.5 + noise + wave).expand(-1, 3, -1, -1)
    expected = (0.1**2 / 2) / (0.1**2 / 2 + 0.05**2 * (1 - math.pi / 64))
    assert grid_power(x).mean().item() == pytest.approx(expected, abs=0.03)
    assert grid_power(x - wave).mean().item() < 1e-3


def test_a_plain_image_has_no_grid():
    flat = torch.tensor([0.0, 0.3, 1.0]).reshape(3, 1, 1, 1).expand(3, 3, 32, 48)
    assert grid_power(flat).tolist() == [0, 0, 0]
    # Nor one whose pattern is less than half a level of 8 bits, which is gone when the image is saved.
    assert grid_power(flat + checker(48, 2, 1e-4)[:32]).max() < 0.1


def test_identical_images_are_found():
    base = drawings(32)
    assert warnings(base, base[:1].expand_as(base), PROMPTS) == {"difference/seeds", "difference/prompts", "diversity"}
    # One image for each prompt: those of different prompts still differ.
    each = base[torch.tensor([4 * (number // 4) for number in range(COUNT)])]
    assert warnings(base, each, PROMPTS) == {"difference/seeds", "diversity"}


def test_differences_by_hand():
    """Grey levels 0, 0.3 and 0.9 of a, and 0.6 of b: the first of a differs by 0.3 and 0.9, and by 0.6 from b's."""
    x = torch.tensor([0.0, 0.3, 0.9, 0.6]).reshape(4, 1, 1, 1).expand(4, 3, 40, 20)
    same, other = differences(x, ["a", "a", "a", "b"])
    assert same is not None
    assert other is not None
    assert same[:3].tolist() == pytest.approx([0.6, 0.45, 0.75])
    assert same[3].isnan()
    assert other.tolist() == pytest.approx([0.6, 0.3, 0.3, 0.4])
    assert differences(x, ["a", "a", "a", "a"])[1] is None
    assert differences(x, list("abcd"))[0] is None


def test_noise_of_single_pixels_is_no_difference():
    x = 0.5 + 0.1 * torch.randn(8, 3, 512, 512, generator=torch.Generator().manual_seed(0))
    same, _ = differences(x, ["a"] * 8)
    assert same is not None
    assert same.max() < 0.01  # 0.1 sqrt(2) in the pixels themselves, and a 32nd of it in means of 32 x 32 of them


def test_images_share_their_prompts_diversity():
    """Of 0 and 0.4 both have 0.2; of 0, 0.3 and 0.6 (deviation sqrt(0.06)) 0.09 / sqrt(0.06), 0 and as much again."""
    x = torch.tensor([0.0, 0.4, 0.0, 0.3, 0.6, 0.9]).reshape(6, 1, 1, 1).expand(6, 3, 2, 2)
    prompts = ["a", "a", "b", "b", "b", "c"]
    found = diversity_by_image(x, prompts)
    assert found[:5].tolist() == pytest.approx(
        [0.2, 0.2, 0.09 / math.sqrt(0.06), 0.0, 0.09 / math.sqrt(0.06)], abs=1e-6
    )
    assert found[5].isnan()
    random_ones = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    mean = diversity_by_image(random_ones, ["a", "b"] * 3).mean().item()
    assert mean == pytest.approx(diversity(random_ones, ["a", "b"] * 3), abs=1e-6)
    assert diversity_by_image(torch.full((2, 3, 2, 2), 0.5), ["a", "a"]).tolist() == [0, 0]
