"""What simulated labelers answer: the utility's order without noise, and each of their traits seen in the figures."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import binom

from tastemaker.data.images import to_tensor
from tastemaker.drawings.draw import render
from tastemaker.drawings.scene import Scene, Thing
from tastemaker.errors import ConfigError
from tastemaker.labelling import ranking
from tastemaker.labelling.settings import Labelling
from tastemaker.labelling.taste import Behaviour, Seen, Taste, agreement, next_judgement, pause, utility_of

EXACT = Behaviour(temperature=0.0)


def seen(liking, number=0, presentation=None, sides=None):
    """A task whose images are liked so much, in the order of showing 0, 1, ..., each earlier image on the left."""
    count = len(liking)
    return Seen(
        "a prompt", tuple(f"{number}-{i}" for i in range(count)), tuple(liking),
        tuple(range(count)) if presentation is None else presentation,
        "0" * (count * (count - 1) // 2) if sides is None else sides,
    )  # fmt: skip


def labelled(settings, task, behaviour=EXACT, seed=0, name="a"):
    """All judgements of a task, each of which the app would take."""
    numbers, made = itertools.count(), []
    while True:
        new = next_judgement(Taste(behaviour, seed, name), settings, task, made, lambda: f"id {next(numbers)}")
        if new is None:
            return made
        assert ranking.refusal(settings, task.presentation, made, new) is None
        made.append(new)
        assert len(made) < 200


def many(settings, behaviour, liking=(0.0, 0.0), count=400):
    """The only judgement of each of so many tasks with two images."""
    return [labelled(settings, seen(liking, number), behaviour)[0] for number in range(count)]


def within(count, total, share):
    """Whether a count of `total` trials is one that a probability of `share` gives, all but one time in a million."""
    low, high = binom.ppf([5e-7, 1 - 5e-7], total, share)
    return low <= count <= high


RANKS = [Labelling("rank", 6), Labelling("rank", 6, transitive=False), Labelling("rank", 6, confirm=False)]


@pytest.mark.parametrize("settings", RANKS, ids=["inserted", "all pairs", "not confirmed"])
@pytest.mark.parametrize("presentation", [(0, 1, 2, 3, 4, 5), (3, 0, 5, 1, 4, 2)])
def test_without_noise_the_order_is_the_utilitys(settings, presentation):
    task = seen([0.3, 0.9, 0.1, 0.5, 0.7, 0.2], presentation=presentation, sides="01" * 7 + "0")
    made = labelled(settings, task)
    now = ranking.state(settings, presentation, made)
    assert now.order == ((1,), (4,), (3,), (0,), (5,), (2,))
    assert now.complete
    assert now.conflicts == ()
    # 15 pairs, all as the utility has them.
    assert agreement(EXACT, settings, task, now) == (15, 15)


def test_without_noise_pairs_bests_and_ratings_are_the_utilitys():
    (pair,) = labelled(Labelling("pair"), seen([0.2, 0.4]))
    assert (pair.left, pair.right, pair.outcome) == (0, 1, "right")
    (pair,) = labelled(Labelling("pair"), seen([0.2, 0.4], sides="1"))
    assert (pair.left, pair.right, pair.outcome) == (1, 0, "left")
    (best,) = labelled(Labelling("best"), seen([0.2, 0.4, 0.9, 0.1]))
    assert best.image == 2
    rated = labelled(Labelling("rate", 4), seen([0.2, 0.5, 0.9, 0.4], presentation=(2, 0, 3, 1)))
    assert [(one.image, one.outcome) for one in rated] == [(2, "up"), (0, "down"), (3, "down"), (1, "up")]


def test_noise_is_logistic():
    """P(left) = 1 / (1 + exp(-0.2 / 0.1)) = 0.881 and, of three images, softmax(2, 1, 0) = 0.665, 0.245, 0.090."""
    outcomes = [one.outcome for one in many(Labelling(), Behaviour(temperature=0.1), (0.7, 0.5), 1000)]
    assert within(outcomes.count("left"), 1000, 1 / (1 + math.exp(-2)))
    best = [
        labelled(Labelling("best", 3), seen([0.2, 0.1, 0.0], number), Behaviour(temperature=0.1))[0].image
        for number in range(1000)
    ]
    for image, share in enumerate([0.665, 0.245, 0.090]):
        assert within(best.count(image), 1000, share)
    ups = [
        labelled(Labelling("rate"), seen([0.6], number), Behaviour(temperature=0.1))[0].outcome
        for number in range(1000)
    ]
    # At or above the threshold 0.5 by 0.1, one temperature: 1 / (1 + exp(-1)) = 0.731.
    assert within(ups.count("up"), 1000, 1 / (1 + math.exp(-1)))


def test_left_bias():
    """Of images that are equally good, sigmoid(0.1 / 0.1) = 73% are on the left; without bias a half."""
    settings = Labelling(ties=False)
    for bias, share in [(0.0, 0.5), (0.1, 1 / (1 + math.exp(-1))), (-0.1, 1 / (1 + math.exp(1)))]:
        outcomes = [one.outcome for one in many(settings, Behaviour(temperature=0.1, left_bias=bias))]
        assert within(outcomes.count("left"), 400, share)
    # In best, it is the image that is shown first.
    task = seen([0.5, 0.5, 0.5], presentation=(2, 0, 1))
    assert labelled(Labelling("best", 3), task, replace(EXACT, left_bias=0.1))[0].image == 2


def test_ties():
    settings = Labelling()
    for tie, liking, expected in [(0.0, (0.5, 0.4), "left"), (0.2, (0.5, 0.4), "tie"), (0.2, (0.5, 0.1), "left")]:
        assert labelled(settings, seen(liking), replace(EXACT, tie=tie))[0].outcome == expected
    assert labelled(settings, seen((0.5, 0.5)))[0].outcome == "tie"
    # Where the project has none, the better image; of equal ones either.
    no_ties = Labelling(ties=False)
    assert labelled(no_ties, seen((0.5, 0.4)), replace(EXACT, tie=0.2))[0].outcome == "left"
    assert {one.outcome for one in many(no_ties, EXACT, count=40)} == {"left", "right"}


def test_bad():
    bad = replace(EXACT, bad=0.3)
    assert labelled(Labelling(), seen((0.1, 0.2)), bad)[0].outcome == "both_bad"
    assert labelled(Labelling(), seen((0.1, 0.4)), bad)[0].outcome == "right"
    assert labelled(Labelling(both_bad=False), seen((0.1, 0.2)), bad)[0].outcome == "right"
    assert labelled(Labelling("best", 3), seen((0.1, 0.2, 0.1)), bad)[0].image is None
    assert labelled(Labelling("best", 3, both_bad=False), seen((0.1, 0.2, 0.1)), bad)[0].image == 1
    assert labelled(Labelling("best", 3), seen((0.1, 0.2, 0.1)))[0].image == 1


def test_good():
    for good, outcome in [(0.5, "down"), (0.4, "up"), (0.2, "up")]:
        assert labelled(Labelling("rate"), seen([0.4]), replace(EXACT, good=good))[0].outcome == outcome


def test_skip():
    kinds = [one.kind for one in many(Labelling(), replace(EXACT, skip=0.2))]
    assert within(kinds.count("skip"), 400, 0.2)
    assert not any(one.kind == "skip" for one in many(Labelling(skip=False), replace(EXACT, skip=0.2)))


def test_undo():
    """The answer is taken back once, given again, and the same."""
    logs = [labelled(Labelling(), seen((0.2, 0.4), number), replace(EXACT, undo=0.3)) for number in range(400)]
    undone = [log for log in logs if len(log) > 1]
    assert within(len(undone), 400, 0.3)
    for log in undone:
        assert [one.kind for one in log] == ["compare", "undo", "compare"]
        assert log[1].supersedes == log[0].id
        assert replace(log[0], id="") == replace(log[2], id="")
    assert all(len(log) == 1 for log in (labelled(Labelling(), seen((0.2, 0.4), n)) for n in range(40)))


@pytest.mark.parametrize("settings", RANKS, ids=["inserted", "all pairs", "not confirmed"])
def test_correct(settings):
    """Who is confused about every pair and corrects the order at the end ends with the utility's."""
    confused, liking = Behaviour(temperature=100.0, correct=1.0), [0.3, 0.9, 0.1, 0.5, 0.7, 0.2]
    settings = replace(settings, ties=False, both_bad=False)
    log = labelled(settings, seen(liking), confused)
    assert (log[-1].kind, log[-1].confirmed) == ("order", True)
    assert ranking.state(settings, range(6), log).order == ((1,), (4,), (3,), (0,), (5,), (2,))
    never = labelled(settings, seen(liking), replace(confused, correct=0.0))
    assert ranking.state(settings, range(6), never).order != ((1,), (4,), (3,), (0,), (5,), (2,))


def test_disagreement():
    """Labelers like the same image differently, with this standard deviation, and each always as much."""
    liked = [Taste(Behaviour(disagreement=0.3), 0, f"labeler {i}").liking("image", 0.5) for i in range(2000)]
    assert torch.tensor(liked).mean().item() == pytest.approx(0.5, abs=0.03)
    assert torch.tensor(liked).std().item() == pytest.approx(0.3, abs=0.03)
    taste = Taste(Behaviour(disagreement=0.3), 0, "labeler 0")
    assert taste.liking("image", 0.5) == liked[0] != taste.liking("another", 0.5)
    assert Taste(Behaviour(), 0, "labeler 0").liking("image", 0.5) == 0.5


def test_seconds():
    """The median of the time before an answer."""
    taste = Taste(Behaviour(seconds=3.0), 0, "a")
    times = torch.tensor([pause(taste, seen([0, 0], number), 0) for number in range(1000)])
    assert times.median().item() == pytest.approx(3.0, rel=0.1)
    assert times.min() < 1.5 < 6 < times.max()
    assert pause(Taste(Behaviour(), 0, "a"), seen([0, 0]), 0) == 0


def test_the_seed_and_the_name_are_the_dice():
    noisy = Behaviour(temperature=1.0)
    tasks = [seen((0.5, 0.4), number) for number in range(40)]
    answers = {
        (seed, name): [labelled(Labelling(), task, noisy, seed, name)[0].outcome for task in tasks]
        for seed in (0, 1)
        for name in "ab"
    }
    assert answers[0, "a"] == [labelled(Labelling(), task, noisy, 0, "a")[0].outcome for task in tasks[::-1]][::-1]
    assert len({tuple(found) for found in answers.values()}) == 4


def test_a_repeated_task_is_answered_anew():
    """With its sides swapped it may be answered otherwise: that is a labeler's inconsistency."""
    noisy = Behaviour(temperature=1.0)
    differ = 0
    for number in range(100):
        first = labelled(Labelling(), seen((0.5, 0.5), number), noisy)[0]
        again = labelled(Labelling(), seen((0.5, 0.5), number, presentation=(1, 0)), noisy)[0]
        better = [one.left if one.outcome == "left" else one.right for one in (first, again)]
        differ += better[0] != better[1]
    assert within(differ, 100, 0.5)


def test_the_utility_of_the_judge():
    """A red circle where `a red star` is asked for: colour and number are right, the object is not."""
    star, circle, blue = (
        to_tensor(render(Scene((Thing(kind, colour, 0.5, 0.5, 0.3),), "white")))
        for kind, colour in [("star", "red"), ("circle", "red"), ("circle", "blue")]
    )
    x = torch.stack([star, circle, blue])
    assert utility_of("judge")(x, ["a red star"] * 3) == pytest.approx([1.0, 2 / 3, 1 / 3])
    weighted = utility_of("judge", {"object": 3.0, "count": 0.0})
    assert weighted(x, ["a red star"] * 3) == pytest.approx([1.0, 1 / 4, 0.0])
    with pytest.raises(ConfigError, match="none of the bundled model's world: name a reward"):
        utility_of("judge")(x[:1], ["a photograph of a wall"])
    with pytest.raises(ConfigError, match="weight taste=1 must be of count, object"):
        utility_of("judge", {"taste": 1.0})


def test_the_utility_of_a_reward():
    x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    from tastemaker.rewards.base import score
    from tastemaker.rewards.registry import load_reward

    expected = score(load_reward("colourfulness"), x, ["a"] * 3).total.tolist()
    assert utility_of("colourfulness")(x, ["a"] * 3) == expected
    with pytest.raises(ConfigError, match="has no attributes with weights"):
        utility_of("colourfulness", {"object": 1.0})


@pytest.mark.parametrize(
    ("name", "value"), [("temperature", -1), ("skip", 1.5), ("bad", math.nan), ("left_bias", math.inf)]
)
def test_traits_out_of_range(name, value):
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '[-_]')}"):
        Behaviour(**{name: value})
