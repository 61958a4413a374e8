"""Windows: which steps learn."""

import pytest

from tastemaker.windows import First, Whole


def test_whole_is_every_step_with_a_likelihood():
    assert Whole().steps([0, 1, 2, 4], round=7) == [0, 1, 2, 4]


@pytest.mark.parametrize(
    ("share", "count", "kept"),
    # 0.8 of 20 is 16; 0.8 of 19 is 15.2, hence 15; 0.5 of 5 is 2.5, rounded up to 3; at least one step is left.
    [(0.8, 20, 16), (0.8, 19, 15), (0.5, 5, 3), (1.0, 7, 7), (0.01, 20, 1)],
)
def test_the_first_steps_are_those_at_the_noise_end(share, count, kept):
    assert First(share).steps(range(count), round=1) == list(range(kept))
