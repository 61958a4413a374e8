"""Statistics of a project, against figures worked out by hand."""

from __future__ import annotations

import json
import uuid

import pytest

from label_projects import add_user, claimed, judged, make_project, new_task, saved
from tastemaker.labelling.project import add_tasks
from tastemaker.labelling.ranking import Judgement, left_right
from tastemaker.labelling.settings import Labelling
from tastemaker.labelling.statistics import statistics, to_json

DAY = 86400.0


def measured(project, now=1e5):
    with project.database.read() as session:
        return statistics(session, project.settings, now)


def say(project, user, assigned, outcome, now=0.0, elapsed=None):
    """`first`, `second`, `tie` or `both_bad` for the two images of a pair, whatever sides they are shown on."""
    left, right = left_right((0, 1), assigned.presentation, assigned.sides)
    if outcome in ("first", "second"):
        outcome = "left" if (outcome == "first") == (left == 0) else "right"
    judgement = Judgement(str(uuid.uuid4()), "compare", left, right, outcome, elapsed_ms=elapsed)
    assert saved(project, user, assigned.id, judgement, now).status == "saved"
    return outcome


def skip(project, user, assigned, now=0.0):
    assert saved(project, user, assigned.id, Judgement(str(uuid.uuid4()), "skip"), now).status == "saved"


def test_two_labelers_of_pairs(tmp_path):
    with make_project(tmp_path / "p", Labelling(overlap=2), tasks=4) as project:
        ann, bob = add_user(project, "ann"), add_user(project, "bob")
        shown = []
        for user, outcomes, day in ((ann, ("first", "second", "tie", "first"), 1), (bob, ("first", "first", "tie"), 2)):
            for number, outcome in enumerate(outcomes):
                (assigned,) = claimed(project, user, 1, day * DAY)
                shown.append((user, say(project, user, assigned, outcome, day * DAY, 1000 * (number + 1))))
        (assigned,) = claimed(project, bob, 1, 2 * DAY)
        skip(project, bob, assigned, 2 * DAY)
        found = measured(project, 2 * DAY + 60)
    one, two = found.labelers
    assert (one.name, one.answers, one.votes, one.median_seconds) == ("ann", 4, 4, 2.5)
    assert (two.name, two.answers, two.votes, two.median_seconds) == ("bob", 3, 3, 2.0)
    left = [outcome == "left" for user, outcome in shown if user == ann and outcome != "tie"]
    assert (one.left.cases, one.left.of) == (sum(left), 3)
    assert found.left.of == 5
    assert (one.ties.cases, one.ties.of) == (1, 4)
    assert (two.skips.cases, two.skips.of) == (1, 4)
    # They share three tasks, and disagree on the second.
    assert (one.disagreement.cases, one.disagreement.of) == (two.disagreement.cases, two.disagreement.of) == (1, 3)
    # Units (1 1) (-1 1) (0 0): n(-1) = 1, n(0) = 2, n(1) = 3, six values. Ordinal distances: from -1 to 0
    # 1/2 + 2/2 = 1.5, from 0 to 1 1 + 1.5 = 2.5, from -1 to 1 4. Observed: 2 * 16 / 6. Expected: 2 * (1 * 2 * 1.5^2 +
    # 2 * 3 * 2.5^2 + 1 * 3 * 4^2) / (6 * 5) = 6.0. alpha = 1 - 5.3333 / 6.
    assert found.alpha is not None
    assert found.alpha.value == pytest.approx(1 - (32 / 6) / (2 * (4.5 + 37.5 + 48) / 30))
    assert (found.alpha.units, found.alpha.tasks) == (3, 3)
    assert [(day.date, day.votes) for day in found.days] == [("1970-01-02", 4), ("1970-01-03", 3)]
    progress = found.progress
    assert (progress.tasks, progress.tasks_done, progress.answers, progress.answers_wanted) == (4, 3, 7, 8)
    assert (progress.skipped, progress.surplus, progress.judgements, progress.votes) == (1, 0, 8, 7)
    # Three answers in the last hour, and one is missing.
    assert progress.per_hour == 3
    assert progress.hours_left == pytest.approx(1 / 3)
    assert json.loads(json.dumps(to_json(found)))["labelers"][0]["left"]["of"] == 3


def test_the_pace_is_of_the_last_hour_and_leases_are_open(tmp_path):
    with make_project(tmp_path / "p", Labelling(), tasks=3) as project:
        ann = add_user(project, "ann")
        first, _ = claimed(project, ann, 2, 100.0)
        say(project, ann, first, "first", 100.0)
        assert measured(project, 100.0 + 3599).progress.per_hour == 1
        found = measured(project, 100.0 + 3600).progress
        assert (found.per_hour, found.hours_left, found.open) == (None, None, 0)
        assert measured(project, 200.0).progress.open == 1


def test_gold_and_repeated_tasks(tmp_path):
    settings = Labelling(gold_rate=0.5, repeat_rate=0.5)
    with make_project(tmp_path / "p", settings, tasks=30) as project:
        gold = [new_task(settings, 100 + n, gold=[(0, 1, "a")]) for n in range(3)]
        gold.append(new_task(settings, 103, gold=[(1, 0, "a")]))
        add_tasks(project, gold)
        ann = add_user(project, "ann")
        # Always image 0, but for the first repetition.
        kinds, changed = [], 0
        import sqlalchemy as sa

        from label_projects import rows
        from tastemaker.labelling.tables import Assignment

        while found := claimed(project, ann, 1, 0.0):
            (kind,) = rows(project, sa.select(Assignment.kind).where(Assignment.id == found[0].id))
            other = kind == "repeat" and not changed
            changed += other
            say(project, ann, found[0], "second" if other else "first")
            kinds.append(kind)
        result = measured(project)
    (one,) = result.labelers
    repeats, golds = kinds.count("repeat"), kinds.count("gold")
    assert repeats > 3
    assert golds == 4
    assert (one.consistency.cases, one.consistency.of) == (repeats - 1, repeats)
    # Image 0 is right in three gold tasks; in the fourth it is image 1.
    assert (one.gold.cases, one.gold.of) == (3, 4)
    assert one.answers == result.progress.answers == kinds.count("normal") == 30
    assert one.votes == len(kinds)
    assert (result.progress.tasks, result.progress.tasks_done) == (30, 30)
    assert result.progress.hours_left == 0
    assert result.alpha is None


def test_surplus_answers_are_told_and_left_out(tmp_path):
    with make_project(tmp_path / "p", Labelling(lease_minutes=1), tasks=1) as project:
        ann, bob = add_user(project, "ann"), add_user(project, "bob")
        (late,) = claimed(project, ann, 1, 0.0)
        (soon,) = claimed(project, bob, 1, 100.0)
        say(project, bob, soon, "first", 101.0)
        say(project, ann, late, "second", 102.0)
        found = measured(project)
    assert (found.progress.answers, found.progress.surplus) == (1, 1)
    assert {one.name: (one.answers, one.votes, one.disagreement.of) for one in found.labelers} == {
        "ann": (0, 0, 0),
        "bob": (1, 1, 0),
    }
    assert found.alpha is None


@pytest.mark.parametrize("mode", ["rank", "best", "rate"])
def test_other_modes(tmp_path, mode):
    settings = Labelling(mode=mode, images=3, overlap=2)
    with make_project(tmp_path / "p", settings, tasks=2) as project:
        ann, bob = add_user(project, "ann"), add_user(project, "bob")
        for user, utility in ((ann, lambda image: 1 - image), (bob, lambda image: (2, 1, 3)[image] - 1.5)):
            for assigned in claimed(project, user, 2, 0.0):
                judged(project, user, assigned, 0.0, utility)
                mark = Judgement(str(uuid.uuid4()), "mark", image=1, outcome="broken")
                assert saved(project, user, assigned.id, mark, 0.0).status == "saved"
        found = measured(project)
    assert found.marks == {"broken": 4, "off-prompt": 0, "harmful": 0}
    assert found.labelers[0].marks == {"broken": 2}
    assert found.alpha is not None
    if mode == "rank":
        # ann 0 > 1 > 2, bob 2 > 0 > 1: the same for (0, 1), different for (0, 2) and (1, 2).
        assert (found.labelers[0].disagreement.cases, found.labelers[0].disagreement.of) == (4, 6)
        # Six units, (1 1) twice and (1 -1) four times: n(1) = 8, n(-1) = 4, 12 values:
        # alpha = 1 - 11 * 4 / (8 * 4).
        assert found.alpha.value == pytest.approx(1 - 11 * 4 / 32)
    if mode == "best":
        # ann 0, bob 2: values 0 and 2 twice each, which never agree: alpha = 1 - 3 * 2 / (2 * 2).
        assert found.alpha.value == pytest.approx(1 - 3 * 2 / 4)
        assert found.labelers[0].ties.of == 2
    if mode == "rate":
        # ann up, down, down; bob up, down, up; twice: n(up) = 6, n(down) = 6, and two of six units differ:
        # alpha = 1 - 11 * 2 / (6 * 6).
        assert found.alpha.value == pytest.approx(1 - 11 * 2 / 36)
        assert found.labelers[1].votes == 6


def test_none_of_four_is_a_tie_and_gold_asks_only_what_was_compared(tmp_path):
    settings = Labelling(mode="best", images=3, gold_rate=0.5)
    with make_project(tmp_path / "p", settings, tasks=20) as project:
        add_tasks(project, [new_task(settings, 99, gold=[(0, 1, "a"), (0, 2, "b"), (1, 2, "a")])])
        ann = add_user(project, "ann")
        while found := claimed(project, ann, 1, 0.0):
            image = None if found[0].prompt == "prompt 5" else 0
            choice = Judgement(str(uuid.uuid4()), "best", image=image)
            assert saved(project, ann, found[0].id, choice, 0.0).status == "saved"
        (one,) = measured(project).labelers
    assert (one.ties.cases, one.ties.of) == (1, 21)
    assert (one.gold.cases, one.gold.of) == (1, 2)  # 0 against 1 right, 0 against 2 wrong, 1 against 2 not said


def test_a_project_without_answers(tmp_path):
    with make_project(tmp_path / "p", Labelling(), tasks=1) as project:
        found = measured(project)
    assert found.labelers == ()
    assert found.days == ()
    assert found.progress.answers == 0
    assert found.left.value is None
