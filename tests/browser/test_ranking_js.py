"""ranking.js is ranking.py: what judgements say, what is asked next and what is refused, on random judgements."""

from __future__ import annotations

import random
import uuid
from pathlib import Path
from typing import Any

from tastemaker.labelling import app, ranking
from tastemaker.labelling.ranking import Judgement, left_right, refusal, state, to_fields, worst_case
from tastemaker.labelling.settings import Labelling, to_json

STATIC = Path(app.__file__).parent / "static"
LOGS = 1500

COMPARE = """async (logs) => {
  const { state, refusal, leftRight } = await import("./ranking.js");
  return logs.map(({ settings, presentation, sides, judgements, candidate }) => {
    const found = state(settings, presentation, judgements);
    return {
      ...found, answers: Object.fromEntries(found.answers), ratings: Object.fromEntries(found.ratings),
      marks: Object.fromEntries(found.marks), refusal: refusal(settings, presentation, judgements, candidate),
      shown: found.question && leftRight(found.question, presentation, sides),
    };
  });
}"""


def test_states_and_refusals_are_those_of_python(browser):
    rng = random.Random(1)
    logs = [_random_log(rng) for _ in range(LOGS)]
    page = browser.new_page()
    page.route("http://ranking.test/**", _file)
    page.goto("http://ranking.test/")
    found = page.evaluate(COMPARE, [_sent(log) for log in logs])
    page.close()
    assert len(found) == LOGS
    for log, answer in zip(logs, found, strict=True):
        assert answer == _expected(log), log
    # The logs get to the end of tasks, to conflicts, to corrected orders and to refusals of most kinds.
    states = [state(log["settings"], log["presentation"], log["judgements"]) for log in logs]
    assert sum(one.complete for one in states) > 500
    assert sum(bool(one.conflicts) for one in states) > 100
    assert sum(any(j.kind == "order" for j in ranking.live(log["judgements"])) for log in logs) > 100
    assert len({answer["refusal"] for answer in found}) > 20


def test_worst_cases(browser):
    page = browser.new_page()
    page.route("http://ranking.test/**", _file)
    page.goto("http://ranking.test/")
    found = page.evaluate(
        """async () => {
          const { worstCase } = await import("./ranking.js");
          return [...Array(15).keys()].map((k) => [worstCase(k + 2), worstCase(k + 2, false)]);
        }"""
    )
    page.close()
    assert found == [[worst_case(k), worst_case(k, False)] for k in range(2, 17)]


def test_steps_of_an_image_in_an_order(browser):
    page = browser.new_page()
    page.route("http://ranking.test/**", _file)
    page.goto("http://ranking.test/")
    found = page.evaluate(
        """async () => {
          const { stepped, moved } = await import("./ranking.js");
          const steps = [[[0], [1], [2]]];
          for (let n = 0; n < 5; n++) steps.push(stepped(steps.at(-1), 2, -1, true));
          return {
            steps, down: stepped([[0, 1], [2]], 0, 1, true), untied: stepped([[0], [1], [2]], 2, -1, false),
            between: moved([[0], [1], [2]], 0, { group: 2, join: false }),
            onto: moved([[0], [1], [2]], 0, { group: 2, join: true }),
            waiting: moved([[0], [1]], 2, { group: 0, join: false }),
            before_itself: moved([[0], [1]], 1, { group: 1, join: false }),
          };
        }"""
    )
    page.close()
    # Up: into the place before, out of it, into the next, out of it, and there it stays.
    assert found["steps"] == [
        [[0], [1], [2]], [[0], [1, 2]], [[0], [2], [1]], [[0, 2], [1]], [[2], [0], [1]], [[2], [0], [1]],
    ]  # fmt: skip
    assert found["down"] == [[1], [0], [2]]
    assert found["untied"] == [[0], [2], [1]]
    assert found["between"] == [[1], [0], [2]]
    assert found["onto"] == [[1], [2, 0]]
    assert found["waiting"] == [[2], [0], [1]]
    assert found["before_itself"] == [[0], [1]]


def _file(route: Any) -> None:
    name = route.request.url.rsplit("/", 1)[1]
    if name.endswith(".js"):
        route.fulfill(body=(STATIC / name).read_text(), content_type="text/javascript")
    else:
        route.fulfill(body="<!doctype html><title>ranking</title>", content_type="text/html")


def _sent(log: dict[str, Any]) -> dict[str, Any]:
    return {
        **log, "settings": to_json(log["settings"]), "judgements": [to_fields(one) for one in log["judgements"]],
        "candidate": to_fields(log["candidate"]),
    }  # fmt: skip


def _expected(log: dict[str, Any]) -> dict[str, Any]:
    """What Python says, as JSON has it."""
    settings, presentation, judgements = log["settings"], log["presentation"], log["judgements"]
    found = state(settings, presentation, judgements)
    question = found.question
    return {
        "order": [list(group) for group in found.order], "waiting": list(found.waiting),
        "question": question and list(question), "conflicts": [list(pair) for pair in found.conflicts],
        "answers": {f"{a},{b}": outcome for (a, b), outcome in found.answers.items()}, "best": found.best,
        "ratings": {str(image): rating for image, rating in found.ratings.items()},
        "marks": {str(image): list(given) for image, given in found.marks.items()}, "skipped": found.skipped,
        "complete": found.complete,
        "refusal": refusal(settings, presentation, judgements, log["candidate"]),
        "shown": question and list(left_right(question, presentation, log["sides"])),
    }  # fmt: skip


def _random_log(rng: random.Random) -> dict[str, Any]:
    mode = rng.choice(("pair", "rank", "rank", "rank", "best", "rate"))
    settings = Labelling(
        mode=mode, images=2 if mode == "pair" else rng.randint(2, 6), transitive=rng.random() < 0.6,
        confirm=rng.random() < 0.6, ties=rng.random() < 0.8, both_bad=rng.random() < 0.8, skip=rng.random() < 0.8,
    )  # fmt: skip
    count = settings.task_size
    presentation = rng.sample(range(count), count)
    sides = "".join(rng.choice("01") for _ in range(count * (count - 1) // 2))
    judgements: list[Judgement] = []
    for _ in range(rng.randint(0, 3 * count)):
        new = _random_judgement(rng, settings, presentation, judgements)
        # A few answers that the server would refuse: a state is defined with them too.
        if refusal(settings, presentation, judgements, new) is None or (rng.random() < 0.05 and new.kind == "rate"):
            judgements.append(new)
    return {
        "settings": settings, "presentation": presentation, "sides": sides, "judgements": judgements,
        "candidate": _random_judgement(rng, settings, presentation, judgements),
    }  # fmt: skip


def _random_judgement(
    rng: random.Random, settings: Labelling, presentation: list[int], judgements: list[Judgement]
) -> Judgement:
    """Mostly what a labeler would do next, at times something else."""
    found = state(settings, presentation, judgements)
    in_force = ranking.live(judgements)
    name = str(uuid.UUID(int=rng.getrandbits(128), version=4))
    drawn = rng.random()
    image = rng.randint(-1, len(presentation)) if rng.random() < 0.05 else rng.choice(presentation)
    if drawn < 0.1 and in_force:
        return Judgement(name, "undo", supersedes=rng.choice(in_force).id if rng.random() < 0.9 else name)
    if drawn < 0.2:
        mark = rng.choice((*settings.marks, "unknown"))
        return Judgement(name, "mark", image=image, outcome=mark, on=rng.random() < 0.7)
    if drawn < 0.22:
        return Judgement(name, "skip")
    if drawn < 0.25 or settings.mode == "best":
        return Judgement(
            name, "best", image=None if rng.random() < 0.2 else image, supersedes=_same(rng, in_force, "best")
        )
    if drawn < 0.28 or settings.mode == "rate":
        outcome = rng.choice(("up", "down", "left")) if rng.random() < 0.1 else rng.choice(("up", "down"))
        return Judgement(name, "rate", image=image, outcome=outcome, supersedes=_same(rng, in_force, "rate"))
    if drawn < 0.4 or (settings.mode == "rank" and found.question is None):
        return Judgement(name, "order", order=_random_order(rng, presentation, found), confirmed=rng.random() < 0.5)
    old = rng.choice([j for j in in_force if j.kind == "compare"] or [None])
    pair = list(found.question or rng.sample(presentation, 2))
    supersedes = None
    if old is not None and rng.random() < 0.2:
        pair, supersedes = [old.left, old.right], old.id
    if rng.random() < 0.05:
        pair = [rng.randint(0, len(presentation)) for _ in range(2)]
    rng.shuffle(pair)
    outcome = rng.choice(
        ("left", "right", "left", "right", "tie", "both_bad") + (("up",) if rng.random() < 0.1 else ())
    )
    return Judgement(name, "compare", pair[0], pair[1], outcome, supersedes=supersedes)


def _same(rng: random.Random, in_force: list[Judgement], kind: str) -> str | None:
    of_kind = [judgement.id for judgement in in_force if judgement.kind == kind]
    return rng.choice(of_kind) if of_kind and rng.random() < 0.5 else None


def _random_order(rng: random.Random, presentation: list[int], found: ranking.State) -> tuple[tuple[int, ...], ...]:
    placed = [image for group in found.order for image in group]
    listed = placed if rng.random() < 0.5 else [*placed, *found.waiting]
    if rng.random() < 0.1:
        listed = rng.sample(presentation, rng.randint(0, len(presentation)))
    groups: list[list[int]] = []
    for image in rng.sample(listed, len(listed)):
        if groups and rng.random() < 0.25:
            groups[-1].append(image)
        else:
            groups.append([image])
    if rng.random() < 0.03:
        groups.append([])
    return tuple(map(tuple, groups))
