"""A caption as a reward: what is said of scenes, the recall of words by hand, and what is seen on drawings."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from tastemaker.drawings import Scene, Thing, parse, render, sample_scene
from tastemaker.drawings.scene import COLOURS
from tastemaker.errors import RewardError
from tastemaker.rewards.caption import captions, word_recall
from tastemaker.rewards.registry import load_reward

STAR, CIRCLE = Thing("star", "red", 0.3, 0.5, 0.2), Thing("circle", "blue", 0.7, 0.5, 0.2)
BIG = Thing("fish", "orange", 0.5, 0.5, 0.4, "striped")


@pytest.mark.parametrize(
    ("things", "said"),
    [
        ((), ["nothing"]),
        ((BIG,), ["a big striped orange fish"]),
        ((STAR,) * 3, ["three red stars"]),
        ((STAR,) * 5, ["many red stars"]),
        (
            (STAR, CIRCLE),
            ["a red star on the left of a blue circle", "a blue circle on the right of a red star"],
        ),
        ((STAR, CIRCLE, STAR), ["two red stars and a blue circle"]),
    ],
)
def test_what_is_said_of_a_scene(things, said):
    told = captions(Scene(things, "white", "checkered"))
    assert list(told) == [f"{one} on a checkered white background" for one in said]


def test_captions_are_of_the_grammar_that_prompts_are():
    rng = random.Random(0)
    for _ in range(200):
        scene, _ = sample_scene(rng)
        assert all(parse(caption) is not None for caption in captions(scene))


@pytest.mark.parametrize(
    ("prompt", "share"),
    [
        ("a red star", 1), ("A Red Star!", 1), ("a green star", 1 / 2), ("two fish", 0), ("three stars", 1 / 2),
        ("a red star and a red circle", 3 / 4), ("a star on a white background", 1), ("the", 1),
        ("a red star on the left of a blue circle", 1), ("a red star above a blue circle", 4 / 5),
    ],
)  # fmt: skip
def test_recall_of_words_by_hand(prompt, share):
    assert word_recall("a red star on the left of a blue circle on a plain white background", prompt) == share


def drawn(scenes):
    pixels = [np.asarray(render(scene, 64), dtype=np.float32) / 255 for scene in scenes]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("how", ["words", "embeddings"])
def test_drawings_score_higher_for_their_own_captions(how):
    rng = random.Random(3)
    pairs = [(scene, request) for scene, request in (sample_scene(rng) for _ in range(120)) if request.things[0].colour]
    others = []
    for _, request in pairs:
        first, *rest = request.things
        colour = rng.choice([name for name in COLOURS if name != first.colour])
        others.append(replace(request, things=(replace(first, colour=colour), *rest)).caption())
    reward, x = load_reward(f"caption-score:{how}"), drawn([scene for scene, _ in pairs])
    right, wrong = reward(x, [request.caption() for _, request in pairs]), reward(x, others)
    assert right.mean() > 0.95
    assert right.max() <= 1 + 1e-6
    assert (right > wrong).float().mean() > 0.9


def test_embeddings_see_what_words_do_not():
    """Who is where, and whose colour is whose."""
    scene, right = Scene((STAR, CIRCLE), "white"), "a red star on the left of a blue circle"
    for wrong in ("a red star on the right of a blue circle", "a blue star on the left of a red circle"):
        x, prompts = drawn([scene, scene]), [right, wrong]
        words, embeddings = (load_reward(f"caption-score{how}")(x, prompts) for how in ("", ":embeddings"))
        assert words.tolist() == [1, 1]
        assert embeddings[0].item() == pytest.approx(1.0, abs=1e-6)
        assert embeddings[1] < 0.9995  # not by much


def test_another_way_is_refused():
    with pytest.raises(RewardError, match="by words or embeddings, not 'letters'"):
        load_reward("caption-score:letters")
