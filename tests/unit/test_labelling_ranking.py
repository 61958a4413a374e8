"""What judgements of a task say together: ranking.py against orders that are known, and cases worked out by hand."""

from __future__ import annotations

import itertools
import random
import uuid
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tastemaker.labelling.ranking import Judgement, State, implied, left_right, live, refusal, state, worst_case
from tastemaker.labelling.settings import Labelling

RANK = Labelling(mode="rank", images=5)
PAIR = Labelling(mode="pair")
BEST = Labelling(mode="best", images=4)
RATE = Labelling(mode="rate", images=2)


def compare(left: int, right: int, outcome: str, **fields) -> Judgement:
    return Judgement(str(uuid.uuid4()), "compare", left, right, outcome, **fields)


def undo(judgement: Judgement) -> Judgement:
    return Judgement(str(uuid.uuid4()), "undo", supersedes=judgement.id)


def ordered(*groups: int | tuple[int, ...], confirmed: bool = False) -> Judgement:
    order = tuple(group if isinstance(group, tuple) else (group,) for group in groups)
    return Judgement(str(uuid.uuid4()), "order", order=order, confirmed=confirmed)


def ranked(labelling: Labelling, presentation, utility) -> tuple[State, list[Judgement]]:
    """Labels a task by a utility of each image (equal ones are ties) until nothing is left to ask."""
    judgements: list[Judgement] = []
    while (found := state(labelling, presentation, judgements)).question is not None:
        a, b = found.question
        outcome = "tie" if utility[a] == utility[b] else "left" if utility[a] > utility[b] else "right"
        new = compare(a, b, outcome)
        assert refusal(labelling, presentation, judgements, new) is None
        judgements.append(new)
    return found, judgements


def by_utility(utility) -> tuple[tuple[int, ...], ...]:
    levels = sorted(set(utility), reverse=True)
    return tuple(tuple(i for i, value in enumerate(utility) if value == level) for level in levels)


@pytest.mark.parametrize(("count", "most"), [(2, 1), (3, 3), (5, 8), (8, 17)])
def test_binary_insertion_finds_every_order_within_the_bound(count, most):
    # ceil(log2 k) summed over k = 2 to K: 1; 1 + 2; 1 + 2 + 2 + 3; 1 + 2 + 2 + 3 + 3 + 3 + 3.
    assert worst_case(count) == most
    labelling = replace(RANK, images=count)
    orders = list(itertools.permutations(range(count)))
    if count == 8:
        orders = random.Random(0).sample(orders, 400)
    asked = []
    for utility in orders:
        found, judgements = ranked(labelling, range(count), utility)
        assert found.order == by_utility(utility)
        assert found.conflicts == ()
        asked.append(len(judgements))
    assert max(asked) == most
    if count > 3:
        assert sum(asked) / len(asked) < most < count * (count - 1) / 2


def test_ties_share_a_place_and_save_comparisons():
    for utility in itertools.product(range(3), repeat=5):
        found, judgements = ranked(RANK, range(5), utility)
        assert tuple(tuple(sorted(group)) for group in found.order) == by_utility(utility)
        assert len(judgements) <= 8


def test_by_hand():
    # Shown as 3, 1, 0, 2, 4. First 1 against 3: 1 is better. Then 0 against the middle of [1, 3], which is 3.
    shown = (3, 1, 0, 2, 4)
    assert state(RANK, shown, []).question == (1, 3)
    log = [compare(1, 3, "left")]
    assert state(RANK, shown, log).order == ((1,), (3,))
    assert state(RANK, shown, log).question == (0, 3)
    log += [compare(3, 0, "right")]  # 0 is better than 3, so it is asked against 1
    assert state(RANK, shown, log).question == (0, 1)
    log += [compare(0, 1, "tie")]
    found = state(RANK, shown, log)
    assert found.order == ((1, 0), (3,))
    assert found.waiting == (2, 4)
    assert found.question == (2, 3)  # the middle of two places is the second
    assert found.answers == {(1, 3): "first", (0, 3): "first", (0, 1): "tie"}


def test_all_pairs_are_asked_where_nothing_is_assumed():
    labelling = replace(RANK, transitive=False)
    for utility in ([0, 1, 2, 3, 4], [2, 2, 0, 1, 1]):
        found, judgements = ranked(labelling, (4, 2, 0, 1, 3), utility)
        assert len(judgements) == 10 == worst_case(5, transitive=False)
        assert tuple(tuple(sorted(group)) for group in found.order) == by_utility(utility)
        assert found.conflicts == ()


def test_a_cycle_is_shown():
    labelling = Labelling(mode="rank", images=3, transitive=False)
    log = [compare(0, 1, "left"), compare(1, 2, "left"), compare(2, 0, "left")]
    found = state(labelling, (0, 1, 2), log)
    # Each has won once: all three are level, against all three answers.
    assert found.order == ((0, 1, 2),)
    assert found.conflicts == ((0, 1), (1, 2), (2, 0))
    assert not found.complete
    log.append(ordered(0, 1, 2, confirmed=True))
    found = state(labelling, (0, 1, 2), log)
    assert found.order == ((0,), (1,), (2,))
    assert found.conflicts == ((2, 0),)
    assert found.complete


def test_the_order_can_be_corrected_in_the_middle():
    shown = (0, 1, 2, 3, 4)
    log = [compare(0, 1, "left"), compare(2, 1, "right")]  # 0 > 1 > 2
    assert state(RANK, shown, log).order == ((0,), (1,), (2,))
    log.append(ordered(2, 0, 1))
    found = state(RANK, shown, log)
    assert found.order == ((2,), (0,), (1,))
    assert found.conflicts == ((1, 2),)
    assert found.question == (3, 0)  # goes on with the next image, against the middle of the corrected order
    assert state(RANK, shown, [*log, undo(log[-1])]).order == ((0,), (1,), (2,))
    # An image that had no place can be given one.
    found = state(RANK, shown, [*log, ordered(2, 4, (0, 1))])
    assert found.order == ((2,), (4,), (0, 1))
    assert found.waiting == (3,)


def test_ranking_ends_with_a_confirmed_order():
    found, log = ranked(RANK, range(5), [5, 4, 3, 2, 1])
    assert not found.complete
    assert state(replace(RANK, confirm=False), range(5), log).complete
    log.append(ordered(1, 0, 2, 3, 4))
    assert not state(RANK, range(5), log).complete
    log.append(ordered(1, 0, 2, 3, 4, confirmed=True))
    assert state(RANK, range(5), log).complete
    assert state(RANK, range(5), log).order == ((1,), (0,), (2,), (3,), (4,))
    log.append(undo(log[-1]))
    assert not state(RANK, range(5), log).complete


def test_a_pair_is_complete_with_one_answer():
    assert state(PAIR, (1, 0), []).question == (0, 1)
    for outcome, order in (
        ("left", ((0,), (1,))),
        ("right", ((1,), (0,))),
        ("tie", ((1, 0),)),
        ("both_bad", ((1, 0),)),
    ):
        found = state(PAIR, (1, 0), [compare(0, 1, outcome)])
        assert found.complete
        assert found.order == order


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_an_answer_that_is_superseded_might_never_have_been_given(data):
    """Replaying a corrected log gives what the corrected answers alone would have given."""
    count = data.draw(st.integers(2, 6))
    labelling = Labelling(mode="rank", images=count)
    shown = data.draw(st.permutations(range(count)))
    utility = data.draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    _, log = ranked(labelling, shown, utility)
    old = log[data.draw(st.integers(0, len(log) - 1))]
    outcome = data.draw(st.sampled_from(["left", "right", "tie", "both_bad"]))
    new = compare(old.right, old.left, outcome, supersedes=old.id)
    assert refusal(labelling, shown, log, new) is None
    corrected = [new if judgement is old else judgement for judgement in log]
    assert state(labelling, shown, [*log, new]) == state(labelling, shown, corrected)
    assert state(labelling, shown, [*log, undo(old)]) == state(labelling, shown, [j for j in log if j is not old])


def test_superseded_and_undone_judgements_are_not_live():
    one, two = compare(0, 1, "left"), compare(0, 2, "left")
    three = compare(0, 1, "right", supersedes=one.id)
    assert live([one, two, three]) == [two, three]
    assert live([one, two, undo(two)]) == [one]


def test_sides():
    # Places (0,1), (0,2), (1,2) have the characters 0, 1, 2.
    shown = (7, 5, 6)
    assert left_right((5, 7), shown, "010") == (7, 5)
    assert left_right((7, 6), shown, "010") == (6, 7)
    assert left_right((6, 5), shown, "010") == (5, 6)
    assert left_right((6, 5), shown, "011") == (6, 5)


def test_best():
    assert state(BEST, range(4), []) == State()
    found = state(BEST, range(4), [Judgement("1", "best", image=2)])
    assert found.complete
    assert found.best == 2
    assert implied(BEST, range(4), found) == [(0, 2, "b"), (1, 2, "b"), (2, 3, "a")]
    none = state(BEST, range(4), [Judgement("1", "best", image=None)])
    assert none.complete
    assert implied(BEST, range(4), none) == []


def test_rate():
    log = [Judgement("1", "rate", image=1, outcome="up")]
    assert not state(RATE, (0, 1), log).complete
    log.append(Judgement("2", "rate", image=0, outcome="down"))
    found = state(RATE, (0, 1), log)
    assert found.complete
    assert implied(RATE, (0, 1), found) == [(0, 1, "b")]
    log.append(Judgement("3", "rate", image=0, outcome="up", supersedes="2"))
    assert implied(RATE, (0, 1), state(RATE, (0, 1), log)) == []


def test_marks_are_set_and_taken_away():
    log = [
        Judgement("1", "mark", image=0, outcome="broken"),
        Judgement("2", "mark", image=0, outcome="harmful"),
        Judgement("3", "mark", image=0, outcome="broken", on=False),
        Judgement("4", "mark", image=1, outcome="broken", on=False),
    ]
    assert state(PAIR, (0, 1), log).marks == {0: ("harmful",)}


def test_skipping_completes_without_an_answer():
    found = state(PAIR, (0, 1), [Judgement("1", "skip")])
    assert found.complete
    assert found.skipped
    assert implied(PAIR, (0, 1), found) == []


def test_implied_comparisons_of_an_order():
    log = [compare(0, 1, "both_bad"), compare(2, 0, "left")]
    labelling = Labelling(mode="rank", images=3, confirm=False)
    found = state(labelling, (0, 1, 2), log)
    assert found.order == ((2,), (0, 1))
    assert implied(labelling, (0, 1, 2), found) == [(0, 1, "both_bad"), (0, 2, "b"), (1, 2, "b")]
    incomplete = state(Labelling(mode="rank", images=3), (0, 1, 2), log)
    assert implied(RANK, (0, 1, 2), incomplete) == []


@pytest.mark.parametrize(
    ("labelling", "log", "new", "words"),
    [
        (PAIR, [], compare(0, 2, "left"), "no two images 0 and 2"),
        (PAIR, [], compare(0, 0, "left"), "no two images"),
        (PAIR, [], compare(0, 1, "first"), "outcome 'first'"),
        (replace(PAIR, ties=False), [], compare(0, 1, "tie"), "not possible"),
        (replace(PAIR, both_bad=False), [], compare(0, 1, "both_bad"), "not possible"),
        (PAIR, [compare(0, 1, "left")], compare(0, 1, "left"), "complete"),
        (RANK, [], compare(2, 3, "left"), "not the ones to compare now"),
        (RANK, [], compare(1, 0, "left", supersedes="unknown"), "not in force"),
        (RANK, [], Judgement("x", "undo"), "must name"),
        (RANK, [compare(1, 0, "left", supersedes=None)], compare(1, 0, "left"), "not the ones to compare now"),
        (RANK, [], Judgement("x", "best", image=0), "mode rank"),
        (RANK, [], Judgement("x", "rate", image=0, outcome="up"), "mode rank"),
        (RANK, [], Judgement("x", "order"), "needs an order"),
        (RANK, [], ordered(1, 2), "lacks 0"),
        (RANK, [], ordered(0, 0), "each once"),
        (RANK, [], ordered(0, 9), "each once"),
        (RANK, [], ordered(0, ()), "no empty place"),
        (RANK, [], ordered(0, 1, confirmed=True), "all images have a place"),
        (replace(RANK, ties=False), [], ordered((0, 1)), "cannot be equal"),
        (replace(RANK, transitive=False), [], ordered(0, 1, 2, 3, 4), "all pairs"),
        (PAIR, [], ordered(0, 1), "mode pair"),
        (PAIR, [], Judgement("x", "mark", image=0, outcome="nice"), "mark 'nice'"),
        (PAIR, [], Judgement("x", "mark", image=3, outcome="broken"), "no image 3"),
        (replace(PAIR, skip=False), [], Judgement("x", "skip"), "cannot be skipped"),
        (BEST, [], Judgement("x", "best", image=4), "no image 4"),
        (replace(BEST, both_bad=False), [], Judgement("x", "best"), "must be chosen"),
        (BEST, [], compare(0, 1, "left"), "mode best"),
        (BEST, [Judgement("y", "best", image=1)], Judgement("x", "best", image=1), "complete"),
        (RATE, [], Judgement("x", "rate", image=0, outcome="good"), "outcome 'good'"),
        (RATE, [], Judgement("x", "rate", image=5, outcome="up"), "no image 5"),
        (RATE, [Judgement("y", "rate", image=1, outcome="up")], Judgement("x", "rate", image=1, outcome="up"), "rated"),
        (PAIR, [Judgement("y", "skip")], compare(0, 1, "left"), "complete"),
        (RANK, [Judgement("y", "skip")], ordered(0, 1), "skipped"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(labelling, log, new, words):
    assert words in (refusal(labelling, range(labelling.task_size), log, new) or "it was accepted")


def test_a_judgement_supersedes_only_its_own_kind_and_pair():
    first = compare(1, 0, "left")
    mark = Judgement("m", "mark", image=0, outcome="broken")
    log = [first, mark]
    assert refusal(RANK, range(5), log, compare(0, 1, "left", supersedes=first.id)) is None
    assert "same two images" in (refusal(RANK, range(5), log, compare(0, 2, "left", supersedes=first.id)) or "")
    assert "cannot supersede" in (refusal(RANK, range(5), log, compare(0, 1, "left", supersedes="m")) or "")
