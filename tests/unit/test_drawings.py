"""The grammar of the bundled model's world: captions and requests are inverses, drawings show their scene."""

import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tastemaker.drawings import Request, Scene, Thing, parse, render, sample_scene
from tastemaker.drawings.scene import COLOURS, KINDS, RADIUS, Wanted, relation_of


@given(st.integers(0, 10**9))
def test_every_caption_parses_back_to_its_request(seed):
    scene, request = sample_scene(random.Random(seed))
    assert parse(request.caption()) == request
    assert all(0 <= thing.x <= 1 and thing.x - thing.radius > -0.1 for thing in scene.things)


@pytest.mark.parametrize(
    ("caption", "request_"),
    [
        ("a red star", Request((Wanted("star", "red"),))),
        ("an orange fish", Request((Wanted("fish", "orange"),))),
        ("three orange fish", Request((Wanted("fish", "orange"),), 3)),
        ("a big striped blue house", Request((Wanted("house", "blue", "striped", "big"),))),
        (
            "a star on the left of a blue circle on a striped red background",
            Request((Wanted("star"), Wanted("circle", "blue")), 1, "on the left of", "red", "striped"),
        ),
        ("a tree and a house", Request((Wanted("tree"), Wanted("house")))),
        ("Two Hearts", Request((Wanted("heart"),), 2)),
        ("a dolphin riding a bike", None),
        ("two red stars above a blue circle", None),
        ("", None),
    ],
)
def test_captions(caption, request_):
    assert parse(caption) == request_


def test_a_request_holds_for_its_scene():
    for seed in range(500):
        scene, request = sample_scene(random.Random(seed))
        wanted = request.things * request.count
        assert len(scene.things) == len(wanted)
        for thing, want in zip(scene.things, wanted, strict=True):
            assert thing.kind == want.kind
            assert want.colour in (None, thing.colour)
            assert want.size in (None, thing.size)
        assert request.ground in (None, scene.ground)
        if request.relation:
            assert relation_of(*scene.things) == request.relation
        assert scene.ground not in {thing.colour for thing in scene.things}


def test_relations_follow_the_larger_distance_and_y_grows_downwards():
    at = lambda x, y: Thing("star", "red", x, y, 0.2)  # noqa: E731
    assert relation_of(at(0.2, 0.5), at(0.8, 0.6)) == "on the left of"
    assert relation_of(at(0.8, 0.5), at(0.2, 0.6)) == "on the right of"
    assert relation_of(at(0.5, 0.2), at(0.6, 0.8)) == "above"
    assert relation_of(at(0.5, 0.8), at(0.6, 0.2)) == "below"


@pytest.mark.parametrize("kind", KINDS)
def test_an_object_has_its_colour_at_its_place_and_the_ground_elsewhere(kind):
    scene = Scene((Thing(kind, "red", 0.5, 0.5, 0.3),), "blue")
    pixels = np.asarray(render(scene)).astype(int)
    assert pixels.shape == (32, 32, 3)
    row = 14 if kind in ("tree", "fish") else 18
    for place, colour in (((row, 13), "red"), ((1, 1), "blue"), ((30, 30), "blue")):
        assert np.abs(pixels[place] - COLOURS[colour]).max() <= 9, (kind, place)


def test_size_words_do_not_overlap():
    ranges = sorted(RADIUS.values())
    assert all(a[1] < b[0] for a, b in pairwise(ranges))
    for size, (low, high) in RADIUS.items():
        assert Thing("star", "red", 0.5, 0.5, low).size == Thing("star", "red", 0.5, 0.5, high).size == size
