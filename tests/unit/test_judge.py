"""The judge: its verdicts by hand, and its eyes on fresh drawings whose truth is known."""

import random

import numpy as np
import pytest
import torch

from tastemaker.drawings import Scene, Thing, parse, render, sample_scene
from tastemaker.drawings.judge import compare, judge, see

STAR, CIRCLE = Thing("star", "red", 0.3, 0.5, 0.2), Thing("circle", "blue", 0.7, 0.5, 0.2)
BIG = Thing("star", "red", 0.5, 0.5, 0.4, "striped")


@pytest.mark.parametrize(
    ("caption", "scene", "wrong"),
    [
        ("a red star", Scene((STAR,), "white"), set()),
        ("a red star", Scene((CIRCLE,), "white"), {"object", "colour"}),
        ("a red star", Scene((STAR, CIRCLE), "white"), {"count"}),
        ("a red star", Scene((), "white"), {"count", "object", "colour"}),
        ("a star on a blue background", Scene((STAR,), "white"), {"ground"}),
        ("a star on a striped white background", Scene((STAR,), "white"), {"pattern"}),
        ("a big striped star", Scene((BIG,), "white"), set()),
        ("a big striped star", Scene((STAR,), "white"), {"size", "texture"}),
        ("two red stars", Scene((STAR, STAR), "white"), set()),
        ("two red stars", Scene((STAR,), "white"), {"count", "object", "colour"}),
        ("two red stars", Scene((STAR, CIRCLE), "white"), {"object", "colour"}),
        # Two objects are found in either order, but their relation is not.
        ("a red star on the left of a blue circle", Scene((STAR, CIRCLE), "white"), set()),
        ("a red star on the left of a blue circle", Scene((CIRCLE, STAR), "white"), set()),
        ("a blue circle on the left of a red star", Scene((STAR, CIRCLE), "white"), {"relation"}),
        ("a blue star on the left of a red circle", Scene((STAR, CIRCLE), "white"), {"colour"}),
        ("a red star above a blue circle", Scene((STAR,), "white"), {"count", "object", "colour", "relation"}),
    ],
)
def test_verdicts_by_hand(caption, scene, wrong):
    request = parse(caption)
    assert request is not None
    verdict = compare(request, scene)
    assert {name for name, right in verdict.attributes.items() if not right} == wrong
    assert verdict.correct == (not wrong)
    assert verdict.objects == (wrong <= {"relation"})


def drawings(count, start):
    images, scenes, captions = [], [], []
    for seed in range(start, start + count):
        rng = random.Random(seed)
        scene, request = sample_scene(rng)
        images.append(np.asarray(render(scene, 32, rng)))
        scenes.append(scene)
        captions.append(request.caption())
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255, scenes, captions


def test_fresh_drawings_are_read_right():
    """Seeds that neither the model nor the judge was trained or validated on; every attribute >= 97 %."""
    x, scenes, captions = drawings(600, 10**9)
    seen = see(x)
    assert np.mean([len(a.things) == len(b.things) for a, b in zip(scenes, seen, strict=True)]) >= 0.97
    assert np.mean([a.ground == b.ground for a, b in zip(scenes, seen, strict=True)]) >= 0.97
    assert np.mean([a.pattern == b.pattern for a, b in zip(scenes, seen, strict=True)]) >= 0.97
    assert np.mean([verdict is not None and verdict.correct for verdict in judge(x, captions)]) >= 0.95


def test_a_image_of_something_else_is_found_wrong():
    x, _, captions = drawings(200, 2 * 10**9)
    shifted = captions[1:] + captions[:1]
    assert np.mean([verdict is not None and verdict.correct for verdict in judge(x, shifted)]) < 0.1


def test_noise_and_flat_images_show_nothing():
    noise = torch.rand(50, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    flat = torch.linspace(0, 1, 50).view(50, 1, 1, 1).expand(50, 3, 32, 32)
    for x in (noise, flat):
        verdicts = judge(x, ["a red star"] * 50)
        assert np.mean([verdict is not None and verdict.correct for verdict in verdicts]) < 0.05


def test_prompts_of_another_world_are_not_judged():
    x, _, _ = drawings(2, 0)
    assert judge(x, ["a photo of a cat", "a dolphin riding a bike"]) == [None, None]
    first, second = judge(x, ["a photo of a cat", "a red star"])
    assert first is None
    assert second is not None


def test_larger_images_are_averaged_down():
    x, _, _ = drawings(20, 7)
    large = x.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    read = lambda scene: (scene.ground, scene.pattern, [(t.kind, t.colour, t.x, t.y) for t in scene.things])  # noqa: E731
    assert [read(scene) for scene in see(large)] == [read(scene) for scene in see(x)]
