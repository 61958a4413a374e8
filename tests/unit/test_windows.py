"""Windows: which steps learn."""

from itertools import groupby

import pytest

from tastemaker.algorithms.windows import Backward, Both, First, Random, Sliding, Whole
from tastemaker.errors import ConfigError


def test_whole_is_every_step_with_a_likelihood():
    assert Whole().steps([0, 1, 2, 4], round=7) == [0, 1, 2, 4]


@pytest.mark.parametrize(
    ("share", "count", "kept"),
    # 0.8 of 20 is 16; 0.8 of 19 is 15.2, hence 15; 0.5 of 5 is 2.5, rounded up to 3; at least one step is left.
    [(0.8, 20, 16), (0.8, 19, 15), (0.5, 5, 3), (1.0, 7, 7), (0.01, 20, 1)],
)
def test_the_first_steps_are_those_at_the_noise_end(share, count, kept):
    assert First(share).steps(range(count), round=1) == list(range(kept))


def test_backward_grows_as_in_the_public_code():
    """14 of 20 steps in rounds 0 to 14, then 15, ...: 15, 14, 14, 15, 14, 14, 14 rounds of each."""
    kept = [Backward(initial=14, rounds=100).steps(range(20), round) for round in range(1, 101)]
    assert [(size, len(list(rounds))) for size, rounds in groupby(map(len, kept))] == [
        (14, 15), (15, 14), (16, 14), (17, 15), (18, 14), (19, 14), (20, 14),
    ]  # fmt: skip
    for steps in kept:
        assert steps == list(range(20 - len(steps), 20))  # the end of the chain


@pytest.mark.parametrize("round", [101, 115, 1000])
def test_backward_keeps_the_whole_chain_beyond_its_rounds(round):
    assert Backward(initial=14, rounds=100).steps(range(20), round) == list(range(20))


def test_backward_on_short_chains():
    """Chains shorter than its first window are whole, also where the growth formula turns negative."""
    for count in (1, 5, 13, 14):
        for round in (1, 50, 100):
            assert Backward(initial=14, rounds=100).steps(range(count), round) == list(range(count))
    # 1 of 3 steps over 4 rounds: 1 + floor(n * 3 / 4) = 1, 1, 2, 3.
    assert [len(Backward(1, 4).steps(range(3), round)) for round in (1, 2, 3, 4)] == [1, 1, 2, 3]
    # Steps without noise are no candidates: the window ends with the last of the others.
    assert Backward(2, 10).steps([0, 1, 2, 3], 1) == [2, 3]


def test_sliding_moves_from_the_noise_to_the_image_and_begins_again():
    """5 steps, 2 at a time, every 3 rounds by 2: places 0, 2, 3 (the last ones), then 0 again."""
    window = Sliding(size=2, every=3, stride=2)
    starts = [window.steps(range(5), round)[0] for round in range(1, 13)]
    assert starts == [0, 0, 0, 2, 2, 2, 3, 3, 3, 0, 0, 0]
    assert window.steps(range(5), 7) == [3, 4]
    assert Sliding(size=8).steps(range(5), 1) == Sliding(size=8).steps(range(5), 90) == [0, 1, 2, 3, 4]
    # Every step has its turn.
    assert {s for round in range(1, 20) for s in Sliding(3, 1, 1).steps(range(9), round)} == set(range(9))


def test_random_places_are_as_likely_and_settled_by_seed_and_round():
    """Two of 5 steps begin at 0, 1, 2 or 3, each in a quarter of 4,000 rounds: within 4 deviations of sqrt(750)."""
    window = Random(size=2)
    found = [window.steps([0, 1, 2, 4, 6], round, 3) for round in range(1, 4001)]
    counts = {tuple(steps): found.count(steps) for steps in [[0, 1], [1, 2], [2, 4], [4, 6]]}
    assert sum(counts.values()) == 4000
    assert all(abs(count - 1000) < 4 * 750**0.5 for count in counts.values()), counts
    assert [window.steps([0, 1, 2, 4, 6], round, 3) for round in range(1, 21)] == found[:20]
    assert [window.steps([0, 1, 2, 4, 6], round, 4) for round in range(1, 21)] != found[:20]  # another seed
    # The public code's range: two of the first half of 10 steps.
    inside = [Both(First(0.5), window).steps(range(10), round, 0) for round in range(1, 200)]
    assert {steps[0] for steps in inside} == {0, 1, 2, 3}
    assert all(steps[1] == steps[0] + 1 for steps in inside)
    assert Random(9).steps(range(4), 1) == [0, 1, 2, 3]


def test_a_window_inside_another():
    """0.6 of 10 steps are the first 6; of these the last 2."""
    assert Both(First(0.6), Backward(2, 100)).steps(range(10), 1) == [4, 5]


@pytest.mark.parametrize(
    "make", [lambda: Backward(0), lambda: Backward(1, 0), lambda: Sliding(0), lambda: Sliding(1, 0), lambda: Random(0)]
)
def test_impossible_windows_are_refused(make):
    with pytest.raises(ConfigError, match="must be at least 1"):
        make()
