"""The formats of public preference data sets: their files, their columns, and how they are written and read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tastemaker.labelling.exported_rows import (
    SPLITS,
    Answers,
    Row,
    hpdv2,
    hpdv3,
    image_reward,
    open_image_preferences,
    pick_a_pic,
    rapidata,
)
from tastemaker.labelling.imported_rows import (
    Gathered,
    Store,
    from_hpdv2,
    from_hpdv3,
    from_image_reward,
    from_open_image_preferences,
    from_pick_a_pic,
    from_rapidata,
)
from tastemaker.labelling.table_files import Column


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
            "pairs", pick_a_pic, from_pick_a_pic, _TABLE_FILES,
            _typed(
                are_different="bool", best_image_uid="string", caption="string", has_label="bool",
                image_0_uid="string", image_1_uid="string", jpg_0="bytes", jpg_1="bytes", label_0="float64",
                label_1="float64", model_0="string", model_1="string", ranking_id="int64", user_id="int64",
            ),
        ),
        Format(
            "hpdv2", hpdv2, from_hpdv2, {"train": "train.json", "validation": "test.json"},
            folders={"train": "train", "validation": "test"}, bare=True,
        ),
        Format(
            "hpdv3", hpdv3, from_hpdv3, {"train": "train.json", "validation": "test.json"},
            folders={"train": "images", "validation": "images"},
        ),
        Format(
            "imagereward", image_reward, from_image_reward,
            {split: f"images/{split}/{split}_1/{split}_1.json" for split in SPLITS},
            folders={split: f"images/{split}/{split}_1" for split in SPLITS},
        ),
        Format(
            "rapidata", rapidata, from_rapidata, _TABLE_FILES,
            _typed(
                prompt="string", image1="image", image2="image", votes_image1="int64", votes_image2="int64",
                model1="string", model2="string", detailed_results="string", image1_path="string",
                image2_path="string",
            ),
        ),
        Format(
            "open-image-preferences", open_image_preferences, from_open_image_preferences, _TABLE_FILES,
            _typed(
                prompt="string", chosen="image", rejected="image", chosen_model="string", rejected_model="string"
            ),
        ),
    )
}  # fmt: skip
"""The formats of public data sets by name."""
