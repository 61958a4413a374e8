"""What a labeler's judgements of one task say, and what is to be asked next: pure functions of the judgements.

`static/ranking.js` is the same in JavaScript, so that the page shows the next pair without asking the server. Images
are named by their position in the task, 0 to K - 1.

Ranking is binary insertion (Kristiansen and Vågen, "Aligning Diffusion-Based Text-to-Image Models using Reinforcement
Learning from Human Feedback", section 4.2): images are inserted one at a time into the ordered list by binary search,
which takes at most sum_{k=2}^{K} ceil(log2 k) comparisons (8 for K = 5, 17 for K = 8) in place of K (K - 1) / 2. Beyond
the thesis, ties share a place of the list, and the whole order can be corrected at any time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tastemaker.labelling.settings import Labelling

Kind = Literal["compare", "order", "best", "rate", "mark", "skip", "undo"]
KINDS: tuple[Kind, ...] = ("compare", "order", "best", "rate", "mark", "skip", "undo")
OUTCOMES: dict[str, tuple[str, ...]] = {"compare": ("left", "right", "tie", "both_bad"), "rate": ("up", "down")}

Order = tuple[tuple[int, ...], ...]
"""Images from the best to the worst; images that are equally good share a tuple."""


@dataclass(frozen=True)
class Judgement:
    """One act of a labeler on a task. Which fields matter depends on `kind`; see each."""

    id: str
    """A UUID made by the client: sent twice, it is stored once."""
    kind: Kind
    left: int | None = None
    """compare: the image on the left."""
    right: int | None = None
    """compare: the image on the right."""
    outcome: str | None = None
    """compare: `left`, `right`, `tie` or `both_bad`. rate: `up` or `down`. mark: the mark."""
    image: int | None = None
    """best: the best image, None where none is good. rate, mark: the image."""
    order: Order | None = None
    """order: the order the labeler arranged. Images that had no place in it before get one."""
    confirmed: bool = False
    """order: whether the labeler is done with the task."""
    on: bool = True
    """mark: whether the mark was set or taken away."""
    supersedes: str | None = None
    """The earlier judgement that this one takes the place of; for an undo, the one that is taken back."""
    elapsed_ms: int | None = None
    """Milliseconds from when the images were shown to the judgement."""


@dataclass(frozen=True)
class State:
    """What the judgements of a task say so far, and what is missing."""

    order: Order = ()
    """pair, rank: the images that have a place, from the best to the worst."""
    waiting: tuple[int, ...] = ()
    """pair, rank: the images that have no place yet, in the order in which they will be inserted."""
    question: tuple[int, int] | None = None
    """pair, rank: the two images to compare next; None where nothing is left to ask."""
    conflicts: tuple[tuple[int, int], ...] = ()
    """pair, rank: compared images (better, worse by the comparison) that stand otherwise in the order."""
    answers: Mapping[tuple[int, int], str] = field(default_factory=dict)
    """pair, rank: `first`, `second`, `tie` or `both_bad` for compared images (first, second), first < second."""
    best: int | None = None
    """best: the chosen image."""
    ratings: Mapping[int, str] = field(default_factory=dict)
    """rate: `up` or `down` by image."""
    marks: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    """The marks by image, in the order of setting; images without marks are not in it."""
    skipped: bool = False
    complete: bool = False
    """Whether the labeler is done with the task, skipped or not."""


def live(judgements: Sequence[Judgement]) -> list[Judgement]:
    """The judgements that are in force: without those that a later one supersedes, and without undos."""
    gone = {judgement.supersedes for judgement in judgements if judgement.supersedes is not None}
    return [judgement for judgement in judgements if judgement.id not in gone and judgement.kind != "undo"]


def state(settings: Labelling, presentation: Sequence[int], judgements: Sequence[Judgement]) -> State:
    """What judgements of a task, oldest first, say together.

    `presentation` lists the task's images in the order in which they are shown and inserted.
    """
    found = live(judgements)
    marks = _marks(found)
    skipped = any(judgement.kind == "skip" for judgement in found)
    if settings.mode == "best":
        chosen = [judgement for judgement in found if judgement.kind == "best"]
        best = chosen[-1].image if chosen else None
        return State(best=best, marks=marks, skipped=skipped, complete=skipped or bool(chosen))
    if settings.mode == "rate":
        ratings = {j.image: str(j.outcome) for j in found if j.kind == "rate" and j.image is not None}
        return State(
            ratings=ratings, marks=marks, skipped=skipped, complete=skipped or len(ratings) == len(presentation)
        )
    answers = _answers(found)
    orders = [judgement for judgement in found if judgement.kind == "order"]
    given = orders[-1] if orders else None
    arrange = _inserted if settings.transitive else _all_pairs
    order, waiting, question = arrange(presentation, answers, given.order if given else None)
    confirmed = given is not None and given.confirmed
    complete = skipped or (question is None and (confirmed or not settings.reviewed))
    return State(order, waiting, question, _conflicts(order, answers), answers, None, {}, marks, skipped, complete)


def left_right(pair: tuple[int, int], presentation: Sequence[int], sides: str) -> tuple[int, int]:
    """Which of two images is shown on the left, and which on the right.

    `sides` has a character for each two places i < j of the presentation, by j and then by i: `0` shows the earlier
    image on the left, `1` on the right.
    """
    i, j = sorted(presentation.index(image) for image in pair)
    earlier, later = presentation[i], presentation[j]
    return (earlier, later) if sides[j * (j - 1) // 2 + i] == "0" else (later, earlier)


def implied(settings: Labelling, presentation: Sequence[int], found: State) -> list[tuple[int, int, str]]:
    """All comparisons that a complete task says, as (a, b, `a`, `b`, `tie` or `both_bad`) with a < b.

    pair, rank: each two images of the order; `both_bad` where the labeler said so of the two. best: the best image
    against each other; none where none is good. rate: each image that is up against each that is down. Nothing where
    the task was skipped.
    """
    if found.skipped or not found.complete:
        return []
    images = sorted(presentation)
    pairs = [(a, b) for index, a in enumerate(images) for b in images[index + 1 :]]
    if settings.mode == "best":
        best = found.best
        return [(a, b, "a" if a == best else "b") for a, b in pairs if best in (a, b)]
    if settings.mode == "rate":
        ratings = found.ratings
        return [(a, b, "a" if ratings[a] == "up" else "b") for a, b in pairs if ratings[a] != ratings[b]]
    rank = {image: index for index, group in enumerate(found.order) for image in group}
    result = []
    for a, b in pairs:
        if rank[a] == rank[b]:
            bad = found.answers.get((a, b)) == "both_bad"
            result.append((a, b, "both_bad" if bad else "tie"))
        else:
            result.append((a, b, "a" if rank[a] < rank[b] else "b"))
    return result


def worst_case(count: int, transitive: bool = True) -> int:
    """The most comparisons that ranking `count` images takes: sum_{k=2}^{count} ceil(log2 k), or all pairs."""
    if not transitive:
        return count * (count - 1) // 2
    return sum((k - 1).bit_length() for k in range(2, count + 1))


def refusal(
    settings: Labelling, presentation: Sequence[int], judgements: Sequence[Judgement], new: Judgement
) -> str | None:
    """Why a judgement is none of this task as it stands, as a sentence; None where it is in order."""
    images = set(presentation)
    known = {judgement.id: judgement for judgement in live(judgements)}
    replaced = None
    if new.supersedes is not None:
        replaced = known.get(new.supersedes)
        if replaced is None:
            return "it supersedes a judgement that is not in force"
    if new.kind == "undo":
        return None if replaced is not None else "an undo must name the judgement that it takes back"
    if replaced is not None and replaced.kind != new.kind:
        return f"a judgement of kind {new.kind} cannot supersede one of kind {replaced.kind}"
    if new.kind == "mark":
        return _mark_refusal(settings, images, new)
    before = [judgement for judgement in judgements if judgement.id != new.supersedes]
    now = state(settings, presentation, before)
    if now.complete and new.kind != "order":
        return "the task is complete: undo the last judgement first"
    if new.kind == "skip":
        return None if settings.skip else "tasks of this project cannot be skipped"
    if new.kind == "best":
        return _best_refusal(settings, images, new)
    if new.kind == "rate":
        return _rate_refusal(settings, images, now, new)
    if settings.mode not in ("pair", "rank"):
        return f"a judgement of kind {new.kind} is not possible in a project of mode {settings.mode}"
    if new.kind == "order":
        return _order_refusal(settings, images, now, new)
    return _compare_refusal(settings, images, now, new, replaced)


# ---------------------------------------------------------------- what judgements say


def _marks(found: Sequence[Judgement]) -> dict[int, tuple[str, ...]]:
    marks: dict[int, dict[str, bool]] = {}
    for judgement in found:
        if judgement.kind == "mark" and judgement.image is not None:
            marks.setdefault(judgement.image, {})[str(judgement.outcome)] = judgement.on
    named = {image: tuple(mark for mark, on in given.items() if on) for image, given in marks.items()}
    return {image: given for image, given in named.items() if given}


def _answers(found: Sequence[Judgement]) -> dict[tuple[int, int], str]:
    """The last answer on each two images."""
    answers = {}
    for judgement in found:
        if judgement.kind == "compare" and judgement.left is not None and judgement.right is not None:
            first, second = sorted((judgement.left, judgement.right))
            outcome = str(judgement.outcome)
            if outcome in ("left", "right"):
                better = judgement.left if outcome == "left" else judgement.right
                outcome = "first" if better == first else "second"
            answers[first, second] = outcome
    return answers


def _compared(a: int, b: int, answers: Mapping[tuple[int, int], str]) -> int | None:
    """1 where a is better than b, -1 where it is worse, 0 where they are equal; None where nobody has said."""
    first, second = sorted((a, b))
    outcome = answers.get((first, second))
    if outcome is None:
        return None
    if outcome not in ("first", "second"):
        return 0
    return 1 if (outcome == "first") == (a == first) else -1


_Arranged = tuple[Order, tuple[int, ...], tuple[int, int] | None]


def _inserted(presentation: Sequence[int], answers: Mapping[tuple[int, int], str], given: Order | None) -> _Arranged:
    """Binary insertion: the order, who has no place in it yet, and the next two images to compare."""
    groups = [list(group) for group in given] if given is not None else []
    placed = {image for group in groups for image in group}
    waiting = [image for image in presentation if image not in placed]
    if not groups and waiting:
        groups.append([waiting.pop(0)])
    while waiting:
        image = waiting[0]
        low, high, equal = 0, len(groups), None
        while low < high:
            middle = (low + high) // 2
            # Any image of the place stands for it: one that was compared, and else the first.
            probe = next((m for m in groups[middle] if _compared(image, m, answers) is not None), groups[middle][0])
            answer = _compared(image, probe, answers)
            if answer is None:
                return _frozen(groups), tuple(waiting), (image, probe)
            if answer == 0:
                equal = middle
                break
            low, high = (low, middle) if answer > 0 else (middle + 1, high)
        if equal is None:
            groups.insert(low, [image])
        else:
            groups[equal].append(image)
        waiting.pop(0)
    return _frozen(groups), (), None


def _all_pairs(presentation: Sequence[int], answers: Mapping[tuple[int, int], str], given: Order | None) -> _Arranged:
    """All pairs: the order by won comparisons, a tie counting half of one, and the next two images to compare."""
    pairs = [(b, a) for index, b in enumerate(presentation) for a in presentation[:index]]
    question = next(((b, a) for b, a in pairs if _compared(b, a, answers) is None), None)
    if given is not None and question is None:
        return given, (), None
    points = dict.fromkeys(presentation, 0)
    compared = set()
    for b, a in pairs:
        answer = _compared(b, a, answers)
        if answer is not None:
            points[b] += 1 + answer
            points[a] += 1 - answer
            compared |= {a, b}
    levels = sorted({points[image] for image in compared}, reverse=True)
    order = tuple(tuple(i for i in presentation if i in compared and points[i] == level) for level in levels)
    return order, tuple(image for image in presentation if image not in compared), question


def _frozen(groups: Sequence[Sequence[int]]) -> Order:
    return tuple(tuple(group) for group in groups)


def _conflicts(order: Order, answers: Mapping[tuple[int, int], str]) -> tuple[tuple[int, int], ...]:
    rank = {image: index for index, group in enumerate(order) for image in group}
    found = []
    for (first, second), outcome in answers.items():
        if first not in rank or second not in rank:
            continue
        better, worse = (first, second) if outcome != "second" else (second, first)
        equal = outcome not in ("first", "second")
        stands = rank[better] == rank[worse] if equal else rank[better] < rank[worse]
        if not stands:
            found.append((better, worse))
    return tuple(sorted(found))


# ---------------------------------------------------------------- what is refused


def _mark_refusal(settings: Labelling, images: set[int], new: Judgement) -> str | None:
    if new.image not in images:
        return f"the task has no image {new.image}"
    if new.outcome not in settings.marks:
        return f"the mark {new.outcome!r} is not one of this project ({', '.join(settings.marks) or 'it has none'})"
    return None


def _best_refusal(settings: Labelling, images: set[int], new: Judgement) -> str | None:
    if settings.mode != "best":
        return f"a judgement of kind best is not possible in a project of mode {settings.mode}"
    if new.image is None:
        return None if settings.both_bad else "an image must be chosen in this project"
    return None if new.image in images else f"the task has no image {new.image}"


def _rate_refusal(settings: Labelling, images: set[int], now: State, new: Judgement) -> str | None:
    if settings.mode != "rate":
        return f"a judgement of kind rate is not possible in a project of mode {settings.mode}"
    if new.image not in images:
        return f"the task has no image {new.image}"
    if new.outcome not in OUTCOMES["rate"]:
        return f"the outcome {new.outcome!r} is none of {', '.join(OUTCOMES['rate'])}"
    if new.image in now.ratings:
        return "the image is already rated: supersede the earlier judgement"
    return None


def _order_refusal(settings: Labelling, images: set[int], now: State, new: Judgement) -> str | None:
    if settings.mode != "rank":
        return f"a judgement of kind order is not possible in a project of mode {settings.mode}"
    if now.skipped:
        return "the task is skipped: undo that first"
    if new.order is None:
        return "a judgement of kind order needs an order"
    listed = [image for group in new.order for image in group]
    if not all(new.order) or len(set(listed)) != len(listed) or not set(listed) <= images:
        return "the order must list images of the task, each once, and no empty place"
    if not settings.ties and len(listed) != len(new.order):
        return "images cannot be equal in this project"
    missing = {image for group in now.order for image in group} - set(listed)
    if missing:
        return f"the order lacks {', '.join(map(str, sorted(missing)))}, which had a place already"
    if not settings.transitive and now.question is not None:
        return "the order can be arranged when all pairs have been compared"
    if new.confirmed and set(listed) != images:
        return "an order is confirmed when all images have a place"
    return None


def _compare_refusal(
    settings: Labelling, images: set[int], now: State, new: Judgement, replaced: Judgement | None
) -> str | None:
    pair = {new.left, new.right}
    if len(pair) != 2 or not pair <= images:
        return f"the task has no two images {new.left} and {new.right}"
    if new.outcome not in OUTCOMES["compare"]:
        return f"the outcome {new.outcome!r} is none of {', '.join(OUTCOMES['compare'])}"
    if (new.outcome == "tie" and not settings.ties) or (new.outcome == "both_bad" and not settings.both_bad):
        return f"the outcome {new.outcome} is not possible in this project"
    if replaced is not None:
        same = pair == {replaced.left, replaced.right}
        return None if same else "a comparison can only supersede one of the same two images"
    if now.question is None or pair != set(now.question):
        return "these two images are not the ones to compare now"
    return None


def to_fields(judgement: Judgement) -> dict[str, Any]:
    """A judgement as JSON takes it, without the fields that are at their default."""
    content: dict[str, Any] = {"id": judgement.id, "kind": judgement.kind}
    for name in ("left", "right", "outcome", "image", "supersedes", "elapsed_ms"):
        value = getattr(judgement, name)
        if value is not None:
            content[name] = value
    if judgement.order is not None:
        content["order"] = [list(group) for group in judgement.order]
    if judgement.kind == "order":
        content["confirmed"] = judgement.confirmed
    if judgement.kind == "mark":
        content["on"] = judgement.on
    return content
