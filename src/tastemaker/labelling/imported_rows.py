"""What is read out of the rows of each public format: tasks with orders of their images by labelers."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any

from tastemaker.data.pairs import preferred
from tastemaker.data.tables import checked_text
from tastemaker.errors import DataError
from tastemaker.labelling.ranking import Order

Row = Mapping[str, Any]
Store = Callable[[Any, str], str]
"""Stores an image as a table has it, with where it is, and returns its SHA-256."""


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


def from_pick_a_pic(rows: Iterable[tuple[str, Row]], split: str | None, store: Store, found: Gathered) -> None:
    """Pick-a-Pic: the rows of one ranking_id are one answer, where they are those of an order, and else one each."""
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
    """The images of a task in the order in which `exported_rows.pick_a_pic` had them, as far as its rows tell.

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
    order; else None. A pair that is not there is a tie, as in the rows that `exported_rows.pick_a_pic` makes."""
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


def from_hpdv2(rows: Iterable[tuple[str, Row]], split: str | None, store: Store, found: Gathered) -> None:
    """HPDv2, for training and for the test."""
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


def from_hpdv3(rows: Iterable[tuple[str, Row]], split: str | None, store: Store, found: Gathered) -> None:
    """HPDv3: without choice_dist a row is one vote for path1."""
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


def from_image_reward(rows: Iterable[tuple[str, Row]], split: str | None, store: Store, found: Gathered) -> None:
    """ImageRewardDB: the rows of one prompt_id are one ranking, by rank or else by overall_rating."""
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


def from_rapidata(rows: Iterable[tuple[str, Row]], split: str | None, store: Store, found: Gathered) -> None:
    """Rapidata: votes whose labelers detailed_results does not name are of numbered voters."""
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


def from_open_image_preferences(
    rows: Iterable[tuple[str, Row]], split: str | None, store: Store, found: Gathered
) -> None:
    """open-image-preferences: each row is one vote."""
    for where, row in rows:
        _columns(row, ("prompt", "chosen", "rejected"), where)
        images = tuple(
            GivenImage(store(row[name], f"{where}, {name}"), str(row.get(f"{name}_model") or ""))
            for name in ("chosen", "rejected")
        )
        found.add(_prompt(row, "prompt", where), split, images, ((0,), (1,)), None, where)
