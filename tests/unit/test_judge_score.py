"""The judge's confidence: high on drawings of what is asked for, lower for each thing that is wrong."""

import random

import numpy as np
import pytest
import torch

from tastemaker.drawings import Scene, Thing, render, sample_scene
from tastemaker.drawings.judge import judge
from tastemaker.drawings.scene import parse
from tastemaker.errors import RewardError
from tastemaker.rewards.judge import confidence, judge_score

STAR, CIRCLE = Thing("star", "red", 0.27, 0.5, 0.2), Thing("circle", "blue", 0.73, 0.5, 0.2)


def pixels(scene: Scene) -> torch.Tensor:
    return torch.from_numpy(np.asarray(render(scene, 32)).copy()).permute(2, 0, 1) / 255


def drawn(*things: Thing, ground: str = "white") -> torch.Tensor:
    return pixels(Scene(things, ground))


@pytest.mark.parametrize(
    ("prompt", "right", "wrong"),
    [
        ("a red star", drawn(STAR), drawn(CIRCLE)),
        ("a red star", drawn(STAR), drawn(STAR, CIRCLE)),
        ("a red star on a white background", drawn(STAR), drawn(STAR, ground="yellow")),
        ("a red star on the left of a blue circle", drawn(STAR, CIRCLE), drawn(STAR)),
        (
            "a red star on the left of a blue circle",
            drawn(STAR, CIRCLE),
            drawn(Thing("star", "red", 0.73, 0.5, 0.2), Thing("circle", "blue", 0.27, 0.5, 0.2)),
        ),
    ],
)
def test_what_is_asked_for_scores_higher(prompt, right, wrong):
    good, bad = judge_score(torch.stack([right, wrong]), [prompt, prompt]).tolist()
    assert good > 0.5
    assert bad < good - 0.1


def test_confidence_by_hand():
    """A circle certain in one cell and of even chances for red in another, on a certain ground."""
    chances = {"kind": torch.zeros(8, 16, 16), "colour": torch.zeros(8, 16, 16), "texture": torch.zeros(2, 16, 16)}
    chances |= {"ground": torch.eye(8)[2], "pattern": torch.eye(3)[0]}
    chances["kind"][0, 4, 4], chances["colour"][0, 4, 4] = 1.0, 0.5  # a circle, perhaps red
    chances["kind"][1, 4, 12], chances["colour"][5, 4, 12] = 0.8, 1.0  # to its right a square, surely purple
    value = lambda prompt: confidence(parse(prompt), chances).item()  # noqa: E731
    # The number: one thing, 1 * (1 - 0.8); the red circle, 0.5.
    assert value("a red circle") == pytest.approx((0.2 + 0.5) / 2)
    # Two things: 0.8 * (1 - 0); both 0.5 * 0.8, and in this relation too, but not in the other.
    assert value("a red circle on the left of a purple square") == pytest.approx((0.8 + 0.4 + 0.4) / 3)
    assert value("a red circle on the right of a purple square") == pytest.approx((0.8 + 0.4 + 0.0) / 3)
    assert value("a red circle above a purple square") == pytest.approx((0.8 + 0.4 + 0.0) / 3)
    # The third colour (yellow) is the ground.
    assert value("a red circle on a yellow background") == pytest.approx((0.2 + 0.5 + 1.0) / 3)
    assert value("a red circle on a red background") == pytest.approx((0.2 + 0.5 + 0.0) / 3)


def test_it_agrees_with_the_judge_about_fresh_drawings():
    """Half of the captions are those of another drawing; the judge's verdict splits the scores almost cleanly."""
    rng = random.Random(5)
    scenes, requests = zip(*[sample_scene(rng) for _ in range(120)], strict=True)
    captions = [request.caption() for request in requests]
    captions[::2] = captions[::2][1:] + captions[:1]
    x = torch.stack([pixels(scene) for scene in scenes])
    scores = judge_score(x, captions)
    right = torch.tensor([verdict is not None and verdict.correct for verdict in judge(x, captions)])
    assert 40 <= right.sum() <= 70
    better = (scores[right][:, None] > scores[~right][None, :]).double().mean()
    assert better > 0.95


def test_other_prompts_are_refused():
    with pytest.raises(RewardError, match="judge-score does not know the prompt 'an ant'"):
        judge_score(torch.rand(1, 3, 32, 32), ["an ant"])
