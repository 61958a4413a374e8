"""The formats of public preference data sets: what a project's answers become in each, and what is read out of each.

A format is a pure function from answers to rows, and one from rows to answers. docs/guides/preference-formats.md has
the columns. In all of them a comparison without a winner is left out, since the public training scripts know no ties.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from typing import Any, Literal, get_args

from tastemaker.data.pairs import preferred
from tastemaker.data.tables import checked_text
from tastemaker.errors import DataError
from tastemaker.labelling.answers import TaskImages
from tastemaker.labelling.ranking import Order
from tastemaker.labelling.table_files import Column, ImageCell

Conflicts = Literal["all", "majority", "unanimous"]
CONFLICTS: tuple[Conflicts, ...] = get_args(Conflicts)
SPLITS = ("train", "validation")

Store = Callable[[Any, str], str]
"""Stores an image as a table has it, with where it is, and returns its SHA-256."""
Row = Mapping[str, Any]


# ---------------------------------------------------------------- answers to rows


@dataclass(frozen=True)
class Said:
    """What one labeler, or all together, say of a task."""

    task: TaskImages
    labeler: str
    comparisons: tuple[tuple[int, int, str], ...]
    """As `ranking.implied`: (a, b, `a`, `b`, `tie` or `both_bad`)."""

    @property
    def decided(self) -> tuple[tuple[int, int, str], ...]:
        """The comparisons that have a winner."""
        return tuple(one for one in self.comparisons if one[2] in ("a", "b"))

    @property
    def ranks(self) -> list[int]:
        """The rank of each image from 1, the best; equal ones share a rank, and none is left out."""
        lost = Counter(b if outcome == "a" else a for a, b, outcome in self.decided)
        levels = sorted({lost[image] for image in range(len(self.task.images))})
        return [1 + levels.index(lost[image]) for image in range(len(self.task.images))]


@dataclass(frozen=True)
class Answers:
    """The answers to export, by task number and then by the labeler's name."""

    said: tuple[Said, ...]
    conflicts: Conflicts = "all"

    def split(self, name: str) -> Answers:
        """Those of one part of the split."""
        return replace(self, said=tuple(one for one in self.said if one.task.split == name))

    @property
    def tasks(self) -> list[list[Said]]:
        """The answers of each task."""
        found: dict[int, list[Said]] = {}
        for one in self.said:
            if one.decided:
                found.setdefault(one.task.id, []).append(one)
        return list(found.values())

    @property
    def settled(self) -> list[Said]:
        """The answers by the conflict policy: all as they are, or one for each task with what the majority, or
        everybody, says of each two images."""
        if self.conflicts == "all":
            return [one for answers in self.tasks for one in answers]
        merged = []
        for answers in self.tasks:
            agreed = []
            for (a, b), (for_a, for_b) in _votes(answers).items():
                if self.keeps(for_a, for_b):
                    agreed.append((a, b, "a" if for_a > for_b else "b"))
            if agreed:
                merged.append(Said(answers[0].task, self.conflicts, tuple(agreed)))
        return merged

    def keeps(self, one: int, other: int) -> bool:
        """Whether the conflict policy takes a pair with so many votes for each image."""
        if self.conflicts == "unanimous":
            return (one == 0) != (other == 0)
        return one != other if self.conflicts == "majority" else one + other > 0


def _votes(answers: Sequence[Said]) -> dict[tuple[int, int], tuple[int, int]]:
    """Votes for the first and for the second image of each pair of a task that somebody decided."""
    found: dict[tuple[int, int], list[int]] = {}
    for one in answers:
        for a, b, outcome in one.decided:
            found.setdefault((a, b), [0, 0])[outcome == "b"] += 1
    return {pair: (counts[0], counts[1]) for pair, counts in sorted(found.items())}


def decisions(answers: Iterable[Said]) -> list[tuple[Said, int, int]]:
    """(answer, winner, loser) of each decided comparison, by task, then by pair, then by labeler."""
    by_task: dict[int, list[tuple[int, int, int, Said, str]]] = {}
    for place, one in enumerate(answers):
        listed = by_task.setdefault(one.task.id, [])
        listed += [(a, b, place, one, outcome) for a, b, outcome in one.decided]
    return [
        (one, a, b) if outcome == "a" else (one, b, a)
        for listed in by_task.values()
        for a, b, _, one, outcome in sorted(listed, key=lambda found: found[:3])
    ]


def _pick_a_pic(answers: Answers) -> dict[str, list[Row]]:
    settled = {split: answers.split(split).settled for split in SPLITS}
    listed = [one for split in SPLITS for one in settled[split]]
    rankings = {(one.task.id, one.labeler): number for number, one in enumerate(listed)}
    users = sorted({one.labeler for one in listed})
    rows: dict[str, list[Row]] = {}
    for split, found in settled.items():
        rows[split] = []
        for one, winner, loser in decisions(found):
            first, second = sorted((winner, loser))
            names = one.task.images
            rows[split].append({
                "are_different": True, "best_image_uid": names[winner], "caption": one.task.prompt, "has_label": True,
                "image_0_uid": names[first], "image_1_uid": names[second], "jpg_0": ImageCell(names[first]),
                "jpg_1": ImageCell(names[second]), "label_0": float(winner == first),
                "label_1": float(winner == second), "model_0": one.task.models[first],
                "model_1": one.task.models[second], "ranking_id": rankings[one.task.id, one.labeler],
                "user_id": users.index(one.labeler),
            })  # fmt: skip
    return rows


def _hpdv2(answers: Answers) -> dict[str, list[Row]]:
    train = []
    for one, winner, loser in decisions(answers.split("train").settled):
        first, second = sorted((winner, loser))
        train.append({
            "prompt": one.task.prompt,
            "file_path": [ImageCell(one.task.images[first]), ImageCell(one.task.images[second])],
            "human_preference": [int(winner == first), int(winner == second)], "user_hash": one.labeler,
        })  # fmt: skip
    test = []
    for said in answers.split("validation").tasks:
        if answers.conflicts == "unanimous" and len({tuple(one.ranks) for one in said}) > 1:
            continue
        test.append({
            "prompt": said[0].task.prompt, "image_path": [ImageCell(name) for name in said[0].task.images],
            "rank": _mean_ranks(said),
            "raw_annotations": [{"rank": one.ranks, "user_hash": one.labeler} for one in said],
        })  # fmt: skip
    return {"train": train, "validation": test}


def _mean_ranks(said: Sequence[Said]) -> list[int]:
    """The ranks of images by the mean of their ranks; equal means share a rank."""
    sums = [sum(ranks) for ranks in zip(*(one.ranks for one in said), strict=True)]
    levels = sorted(set(sums))
    return [1 + levels.index(total) for total in sums]


def _hpdv3(answers: Answers) -> dict[str, list[Row]]:
    rows: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for split in SPLITS:
        for said in answers.split(split).tasks:
            task = said[0].task
            for (a, b), (for_a, for_b) in _votes(said).items():
                if for_a == for_b or not answers.keeps(for_a, for_b):
                    continue
                one, two = (a, b) if for_a > for_b else (b, a)
                most, least = max(for_a, for_b), min(for_a, for_b)
                rows[split].append({
                    "prompt": task.prompt, "choice_dist": [most, least], "confidence": most / (most + least),
                    "path1": ImageCell(task.images[one]), "path2": ImageCell(task.images[two]),
                    "model1": task.models[one], "model2": task.models[two],
                })  # fmt: skip
    return rows


def _image_reward(answers: Answers) -> dict[str, list[Row]]:
    rows: dict[str, list[Row]] = {split: [] for split in SPLITS}
    number = 0
    for split in SPLITS:
        for said in answers.split(split).tasks:
            task = said[0].task
            groups = [one.ranks for one in said]
            if answers.conflicts == "unanimous" and len({tuple(ranks) for ranks in groups}) > 1:
                continue
            if answers.conflicts != "all":
                groups = [_mean_ranks(said)]
            for labeler, ranks in enumerate(groups):
                for name, rank in zip(task.images, ranks, strict=True):
                    rows[split].append({
                        "image_path": ImageCell(name), "prompt_id": f"{number:06d}-{labeler:04d}",
                        "prompt": task.prompt, "classification": "", "image_amount_in_total": len(task.images),
                        "rank": rank, "overall_rating": None, "image_text_alignment_rating": None,
                        "fidelity_rating": None,
                    })  # fmt: skip
            number += 1
    return rows


def _rapidata(answers: Answers) -> dict[str, list[Row]]:
    rows: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for split in SPLITS:
        for said in answers.split(split).tasks:
            task = said[0].task
            for (a, b), (for_a, for_b) in _votes(said).items():
                if not answers.keeps(for_a, for_b):
                    continue
                names = {"a": f"{task.images[a]}.png", "b": f"{task.images[b]}.png"}
                votes = [
                    {"votedFor": names[outcome], "userDetails": {"name": one.labeler}}
                    for one in said
                    for first, second, outcome in one.decided
                    if (first, second) == (a, b)
                ]
                rows[split].append({
                    "prompt": task.prompt, "image1": ImageCell(task.images[a]), "image2": ImageCell(task.images[b]),
                    "votes_image1": for_a, "votes_image2": for_b, "model1": task.models[a], "model2": task.models[b],
                    "detailed_results": json.dumps(votes, ensure_ascii=False), "image1_path": names["a"],
                    "image2_path": names["b"],
                })  # fmt: skip
    return rows


def _open_image_preferences(answers: Answers) -> dict[str, list[Row]]:
    return {
        split: [
            {
                "prompt": one.task.prompt, "chosen": ImageCell(one.task.images[winner]),
                "rejected": ImageCell(one.task.images[loser]), "chosen_model": one.task.models[winner],
                "rejected_model": one.task.models[loser],
            }
            for one, winner, loser in decisions(answers.split(split).settled)
        ]
        for split in SPLITS
    }  # fmt: skip


# ---------------------------------------------------------------- rows to answers


@dataclass(frozen=True)
class GivenImage:
    """An image of imported data, which is stored."""

    sha256: str
    model: str = ""


@dataclass
class GivenTask:
    """A task of imported data, with an order of its images by each labeler."""

    prompt: str
    split: str | None
    images: tuple[GivenImage, ...]
    orders: dict[str, Order]
    where: str
    """Where it comes from, for messages."""


class Gathered:
    """Collects the tasks of imported data: answers on the same images for the same prompt are of one task."""

    def __init__(self) -> None:
        self.tasks: list[GivenTask] = []
        self._known: dict[tuple[str, tuple[str, ...]], list[GivenTask]] = {}

    def add(
        self,
        prompt: str,
        split: str | None,
        images: Sequence[GivenImage],
        order: Order,
        labeler: str | None,
        where: str,
    ) -> None:
        """Adds an answer. Without a labeler's name it is by the first of `voter-0001`, `voter-0002` and so on who has
        not answered the task yet."""
        names = tuple(image.sha256 for image in images)
        if len(set(names)) < len(names):
            raise DataError(f"{where}: two images of the comparison are the same")
        tasks = self._known.setdefault((prompt, tuple(sorted(names))), [])
        if labeler is None:
            taken = tasks[0].orders if tasks else {}
            labeler = next(name for number in itertools.count(1) if (name := f"voter-{number:04d}") not in taken)
        task = next((one for one in tasks if labeler not in one.orders), None)
        if task is None:
            task = GivenTask(prompt, split, tuple(images), {}, where)
            tasks.append(task)
            self.tasks.append(task)
        place = {image.sha256: index for index, image in enumerate(task.images)}
        task.orders[labeler] = tuple(tuple(sorted(place[names[image]] for image in group)) for group in order)


def _columns(row: Row, names: Sequence[str], where: str) -> None:
    missing = [name for name in names if name not in row]
    if missing:
        raise DataError(f"{where}: no column {missing[0]}; it has {', '.join(map(str, row))[:300]}")


def _prompt(row: Row, name: str, where: str) -> str:
    return checked_text(row[name], where, name)


def _by_rank(ranks: Sequence[float]) -> Order:
    levels = sorted(set(ranks))
    return tuple(tuple(i for i, rank in enumerate(ranks) if rank == level) for level in levels)


def _numbers(value: Any, name: str, count: int, where: str) -> list[float]:
    found = value if isinstance(value, list) else []
    if len(found) != count or not all(isinstance(one, int | float) and not isinstance(one, bool) for one in found):
        raise DataError(f"{where}: expected {count} numbers in {name}, but found {value!r}"[:300])
    return [float(one) for one in found]


@dataclass(frozen=True)
class _Compared:
    """A row of Pick-a-Pic."""

    prompt: str
    images: tuple[GivenImage, GivenImage]
    winner: int | None
    where: str
    number: int
    """Of its row."""


def _from_pick_a_pic(rows: Iterable[tuple[str, Row]], split: str | None, store: Store, found: Gathered) -> None:
    groups: dict[Any, list[_Compared]] = {}
    for number, (where, row) in enumerate(rows):
        _columns(row, ("caption", "jpg_0", "jpg_1"), where)
        if not ({"label_0", "label_1"} <= row.keys() or {"best_image_uid", "image_0_uid", "image_1_uid"} <= row.keys()):
            raise DataError(f"{where}: no columns label_0 and label_1, which say which image is preferred")
        images = tuple(
            GivenImage(store(row[f"jpg_{side}"], f"{where}, jpg_{side}"), str(row.get(f"model_{side}") or ""))
            for side in (0, 1)
        )
        user = row.get("user_id")
        labeler = None if user is None else f"labeler-{user:06d}" if isinstance(user, int) else f"labeler-{user}"
        ranking = row.get("ranking_id")
        if images[0].sha256 == images[1].sha256:
            raise DataError(f"{where}: two images of the comparison are the same")
        key = (labeler, number if ranking is None else ranking, row["caption"])
        verdict = {name: row[name] for name in ("label_0", "label_1", "best_image_uid", "image_0_uid", "image_1_uid",
                                                "has_label", "are_different") if name in row}  # fmt: skip
        one = _Compared(
            _prompt(row, "caption", where), (images[0], images[1]), preferred(verdict, where), where, number
        )
        groups.setdefault(key, []).append(one)
    tasks: dict[Any, list[tuple[str | None, list[_Compared]]]] = {}
    for (labeler, _, caption), compared in groups.items():
        for ranking in [compared] if _order(compared) is not None else [[one] for one in compared]:
            names = frozenset(image.sha256 for one in ranking for image in one.images)
            tasks.setdefault((caption, names), []).append((labeler, ranking))
    for rankings in tasks.values():
        images = _positions([one for _, ranking in rankings for one in ranking])
        place = {image.sha256: index for index, image in enumerate(images)}
        for labeler, ranking in rankings:
            groups_of_names = _order(ranking)
            assert groups_of_names is not None
            order = tuple(tuple(place[name] for name in group) for group in groups_of_names)
            found.add(ranking[0].prompt, split, images, order, labeler, ranking[0].where)


def _positions(compared: Sequence[_Compared]) -> list[GivenImage]:
    """The images of a task in the order in which `_pick_a_pic` had them, as far as its rows tell.

    It writes the earlier image first, and the rows by the first image and then by the second. Of data that is not
    sorted so, the images are in the order in which they come.
    """
    images = {image.sha256: image for one in compared for image in one.images}
    before: dict[str, set[str]] = {name: set() for name in images}
    rows = sorted(compared, key=lambda one: one.number)
    for one in rows:
        before[one.images[1].sha256].add(one.images[0].sha256)
    for one, after in itertools.pairwise(rows):
        side = 1 if one.images[0] == after.images[0] else 0
        if one.images[side] != after.images[side]:
            before[after.images[side].sha256].add(one.images[side].sha256)
    try:
        return [images[name] for name in TopologicalSorter(before).static_order()]
    except CycleError:
        return list(images.values())


def _order(compared: Sequence[_Compared]) -> list[list[str]] | None:
    """The images of a ranking from the best to the worst, equal ones together, where its comparisons are those of an
    order; else None. A pair that is not there is a tie, as in the rows that `_pick_a_pic` makes."""
    names = list(dict.fromkeys(image.sha256 for one in compared for image in one.images))
    wins: Counter[str] = Counter()
    better: dict[frozenset[str], str | None] = {}
    for one in compared:
        pair = [image.sha256 for image in one.images]
        if frozenset(pair) in better:
            return None
        better[frozenset(pair)] = None if one.winner is None else pair[one.winner]
        if one.winner is not None:
            wins[pair[one.winner]] += 1
            wins[pair[1 - one.winner]] -= 1
    order = [[names[place] for place in group] for group in _by_rank([-wins[name] for name in names])]
    level = {name: place for place, group in enumerate(order) for name in group}
    for a, b in itertools.combinations(names, 2):
        expected = None if level[a] == level[b] else a if level[a] < level[b] else b
        if better.get(frozenset((a, b))) != expected:
            return None
    return order


def _from_hpdv2(rows: Iterable[tuple[str, Row]], split: str | None, store: Store, found: Gathered) -> None:
    for where, row in rows:
        _columns(row, ("prompt",), where)
        test = "image_path" in row
        _columns(row, ("image_path", "rank") if test else ("file_path", "human_preference"), where)
        name = "image_path" if test else "file_path"
        if not isinstance(row[name], list) or len(row[name]) < 2:
            raise DataError(f"{where}: expected a list of two or more images in {name}, but found {row[name]!r}"[:300])
        images = tuple(GivenImage(store(value, f"{where}, {name}")) for value in row[name])
        prompt = _prompt(row, "prompt", where)
        if not test:
            liked = _numbers(row["human_preference"], "human_preference", len(images), where)
            found.add(prompt, split, images, _by_rank([-one for one in liked]), row.get("user_hash"), where)
            continue
        raw = row.get("raw_annotations", row.get("raw_annotation"))
        for one in raw if raw else [{"rank": row["rank"]}]:
            if not isinstance(one, dict):
                raise DataError(f"{where}: expected objects with rank and user_hash in raw_annotations")
            ranks = _numbers(one.get("rank"), "rank", len(images), where)
            found.add(prompt, split, images, _by_rank(ranks), one.get("user_hash"), where)


def _from_hpdv3(rows: Iterable[tuple[str, Row]], split: str | None, store: Store, found: Gathered) -> None:
    for where, row in rows:
        _columns(row, ("prompt", "path1", "path2"), where)
        images = tuple(
            GivenImage(store(row[f"path{n}"], f"{where}, path{n}"), str(row.get(f"model{n}") or "")) for n in (1, 2)
        )
        given = row.get("choice_dist")
        votes = (1, 0) if given is None else _numbers(given, "choice_dist", 2, where)
        _add_votes(found, _prompt(row, "prompt", where), split, images, votes, where)


def _add_votes(
    found: Gathered, prompt: str, split: str | None, images: Sequence[GivenImage], votes: Sequence[float], where: str
) -> None:
    for winner, count in enumerate(votes):
        if not 0 <= count <= 10_000 or count != int(count):
            raise DataError(f"{where}: expected numbers of votes, but found {list(votes)}")
        for _ in range(int(count)):
            found.add(prompt, split, images, ((winner,), (1 - winner,)), None, where)


def _from_image_reward(rows: Iterable[tuple[str, Row]], split: str | None, store: Store, found: Gathered) -> None:
    groups: dict[str, list[tuple[str, Row]]] = {}
    for where, row in rows:
        _columns(row, ("prompt_id", "prompt", "image_path"), where)
        if "rank" not in row and "overall_rating" not in row:
            raise DataError(f"{where}: no column rank, nor overall_rating")
        groups.setdefault(str(row["prompt_id"]), []).append((where, row))
    for listed in groups.values():
        where, first = listed[0]
        if len(listed) < 2:
            raise DataError(f"{where}: the prompt_id {first['prompt_id']!r} has one image, and nothing to compare with")
        images = [GivenImage(store(row["image_path"], f"{place}, image_path")) for place, row in listed]
        ranked = all(row.get("rank") is not None for _, row in listed)
        values = [row["rank"] if ranked else row.get("overall_rating") for _, row in listed]
        numbers = _numbers(values, "rank" if ranked else "overall_rating", len(listed), where)
        order = _by_rank(numbers if ranked else [-one for one in numbers])
        found.add(_prompt(first, "prompt", where), split, images, order, None, where)


def _from_rapidata(rows: Iterable[tuple[str, Row]], split: str | None, store: Store, found: Gathered) -> None:
    for where, row in rows:
        _columns(row, ("prompt", "image1", "image2", "votes_image1", "votes_image2"), where)
        images = tuple(
            GivenImage(store(row[f"image{n}"], f"{where}, image{n}"), str(row.get(f"model{n}") or "")) for n in (1, 2)
        )
        votes = _numbers([row["votes_image1"], row["votes_image2"]], "votes_image1 and votes_image2", 2, where)
        named = _named_votes(row)
        prompt = _prompt(row, "prompt", where)
        if Counter(winner for _, winner in named) != Counter({n: int(v) for n, v in enumerate(votes) if v}):
            _add_votes(found, prompt, split, images, votes, where)
            continue
        for name, winner in named:
            found.add(prompt, split, images, ((winner,), (1 - winner,)), name, where)


def _named_votes(row: Row) -> list[tuple[str, int]]:
    """(labeler, 0 or 1) of the votes whose labelers have names in detailed_results, as in our exports."""
    try:
        listed = json.loads(row.get("detailed_results") or "[]")
        files = [row["image1_path"], row["image2_path"]]
        return [(str(one["userDetails"]["name"]), files.index(one["votedFor"])) for one in listed]
    except (ValueError, TypeError, KeyError):
        return []


def _from_open_image_preferences(
    rows: Iterable[tuple[str, Row]], split: str | None, store: Store, found: Gathered
) -> None:
    for where, row in rows:
        _columns(row, ("prompt", "chosen", "rejected"), where)
        images = tuple(
            GivenImage(store(row[name], f"{where}, {name}"), str(row.get(f"{name}_model") or ""))
            for name in ("chosen", "rejected")
        )
        found.add(_prompt(row, "prompt", where), split, images, ((0,), (1,)), None, where)


# ---------------------------------------------------------------- the formats


@dataclass(frozen=True)
class Format:
    """A format of a public data set."""

    name: str
    rows: Callable[[Answers], dict[str, list[Row]]]
    """The rows of each part of the split."""
    read: Callable[[Iterable[tuple[str, Row]], str | None, Store, Gathered], None]
    files: Mapping[str, str]
    """The file of each part of the split, without its ending where there is a choice of tables."""
    columns: tuple[Column, ...] = ()
    """Of a Parquet file; empty where the format is JSON."""
    folders: Mapping[str, str] = field(default_factory=dict)
    """JSON: the folder of the images of each part of the split."""
    bare: bool = False
    """JSON: whether images are named without their folder."""

    @property
    def tabular(self) -> bool:
        """Whether it is written as a table of the user's choice."""
        return bool(self.columns)


def _typed(**kinds: Any) -> tuple[Column, ...]:
    return tuple(Column(name, kind) for name, kind in kinds.items())


_TABLE_FILES = {"train": "train", "validation": "validation"}
FORMATS: dict[str, Format] = {
    found.name: found
    for found in (
        Format(
            "pairs", _pick_a_pic, _from_pick_a_pic, _TABLE_FILES,
            _typed(
                are_different="bool", best_image_uid="string", caption="string", has_label="bool",
                image_0_uid="string", image_1_uid="string", jpg_0="bytes", jpg_1="bytes", label_0="float64",
                label_1="float64", model_0="string", model_1="string", ranking_id="int64", user_id="int64",
            ),
        ),
        Format(
            "hpdv2", _hpdv2, _from_hpdv2, {"train": "train.json", "validation": "test.json"},
            folders={"train": "train", "validation": "test"}, bare=True,
        ),
        Format(
            "hpdv3", _hpdv3, _from_hpdv3, {"train": "train.json", "validation": "test.json"},
            folders={"train": "images", "validation": "images"},
        ),
        Format(
            "imagereward", _image_reward, _from_image_reward,
            {split: f"images/{split}/{split}_1/{split}_1.json" for split in SPLITS},
            folders={split: f"images/{split}/{split}_1" for split in SPLITS},
        ),
        Format(
            "rapidata", _rapidata, _from_rapidata, _TABLE_FILES,
            _typed(
                prompt="string", image1="image", image2="image", votes_image1="int64", votes_image2="int64",
                model1="string", model2="string", detailed_results="string", image1_path="string",
                image2_path="string",
            ),
        ),
        Format(
            "open-image-preferences", _open_image_preferences, _from_open_image_preferences, _TABLE_FILES,
            _typed(
                prompt="string", chosen="image", rejected="image", chosen_model="string", rejected_model="string"
            ),
        ),
    )
}  # fmt: skip
"""The formats of public data sets by name."""
