"""What the answers of a project become in each public format: pure functions from answers to rows.

docs/guides/preference-formats.md has the columns. A comparison without a winner is left out everywhere, since the
public training scripts know no ties.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from tastemaker.labelling.answers import TaskImages
from tastemaker.labelling.table_files import ImageCell

Conflicts = Literal["all", "majority", "unanimous"]
CONFLICTS: tuple[Conflicts, ...] = get_args(Conflicts)
SPLITS = ("train", "validation")
Row = Mapping[str, Any]


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


def pick_a_pic(answers: Answers) -> dict[str, list[Row]]:
    """Pick-a-Pic v2: a row for each vote on two images, the earlier one first."""
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


def hpdv2(answers: Answers) -> dict[str, list[Row]]:
    """HPDv2: for training a row for each vote on two images, for the test a row for each task with all its rankings."""
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


def hpdv3(answers: Answers) -> dict[str, list[Row]]:
    """HPDv3: a row for each pair on which one image has more votes, which is first."""
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


def image_reward(answers: Answers) -> dict[str, list[Row]]:
    """ImageRewardDB: a row for each image of each ranking. The app asks for no ratings from 1 to 7, and has none."""
    rows: dict[str, list[Row]] = {split: [] for split in SPLITS}
    number = 0
    for split in SPLITS:
        for said in answers.split(split).tasks:
            task = said[0].task
            groups = [one.ranks for one in said]
            if answers.conflicts == "unanimous" and len({tuple(ranks) for ranks in groups}) > 1:
                continue
            if answers.conflicts != "all":
                groups = [ranks for ranks in [_mean_ranks(said)] if max(ranks) > 1]
            for labeler, ranks in enumerate(groups):
                for name, rank in zip(task.images, ranks, strict=True):
                    rows[split].append({
                        "image_path": ImageCell(name), "prompt_id": f"{number:06d}-{labeler:04d}",
                        "prompt": task.prompt, "classification": "", "image_amount_in_total": len(task.images),
                        "rank": rank, "overall_rating": None, "image_text_alignment_rating": None,
                        "fidelity_rating": None,
                    })  # fmt: skip
            number += bool(groups)
    return rows


def rapidata(answers: Answers) -> dict[str, list[Row]]:
    """Rapidata: a row for each pair, with its votes."""
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


def open_image_preferences(answers: Answers) -> dict[str, list[Row]]:
    """open-image-preferences, binarised: a row for each vote, chosen and rejected."""
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
