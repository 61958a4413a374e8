"""Exports and imports: each format against a reader of its own, and round trips."""

from __future__ import annotations

import io
import json
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from PIL import Image

from label_projects import add_user, claimed, image, judged, make_project, new_task, rows, saved
from tastemaker.errors import ConfigError, DataError
from tastemaker.labelling.export import EXPORTS, ExportOptions, export_project
from tastemaker.labelling.formats import FORMATS
from tastemaker.labelling.image_files import image_path
from tastemaker.labelling.imports import import_labels
from tastemaker.labelling.project import add_tasks, create_project, open_project
from tastemaker.labelling.ranking import Judgement
from tastemaker.labelling.settings import Labelling
from tastemaker.labelling.tables import Assignment, JudgementRow, Task, User

RANK = Labelling(mode="rank", images=3, overlap=2, validation=0.4)
UTILITIES = {"bob": (3, 2, 1), "ann": (1, 3, 3)}
"""What each labeler thinks of the images of every task: bob 0 > 1 > 2; ann 1 = 2 > 0."""


@pytest.fixture
def ranked(tmp_path):
    """Three tasks of three images, ranked by bob and ann."""
    with make_project(tmp_path / "project", RANK, tasks=3) as project:
        for name, utility in UTILITIES.items():
            user = add_user(project, name)
            for assigned in claimed(project, user, 3, 0.0):
                judged(project, user, assigned, 1.0, lambda i, u=utility: u[i])
        yield project


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def parquet(path: Path) -> list[dict]:
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path).to_pylist()


def shade(data: bytes | Path) -> int:
    """The number that `label_projects.image` was made from."""
    with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as found:
        red, green, blue = found.convert("RGB").getpixel((0, 0))
    return red + 256 * green + 65536 * blue


def splits(project) -> dict[str, str]:
    with project.database.read() as session:
        return dict(session.execute(sa.text("select text, split from prompt")).all())


# ---------------------------------------------------------------- each format, by a reader of its own


def test_pick_a_pic_as_the_public_script_reads_it(ranked, tmp_path):
    """diffusers' train_diffusion_dpo.py decodes jpg_0 and jpg_1, puts them one behind the other, and swaps them where
    label_0 == 0: first the preferred image, then the other. Ties would become wins of image 0."""
    done = export_project(ranked, tmp_path / "out", "pairs")
    pairs = []
    for split in ("train", "validation"):
        for row in parquet(tmp_path / f"out/{split}.parquet"):
            assert splits(ranked)[row["caption"]] == split
            images = (shade(row["jpg_0"]), shade(row["jpg_1"]))
            if row["label_0"] == 0:
                images = images[::-1]
            number = int(row["caption"].split()[1])
            pairs.append((number, row["user_id"], *(i - 100 * number for i in images)))
            assert row["best_image_uid"] == row["image_0_uid" if row["label_0"] else "image_1_uid"]
            assert row["label_0"] + row["label_1"] == 1
            assert (row["has_label"], row["are_different"]) == (True, True)
    # By name ann is 0 and bob is 1; ann's tie of 1 and 2 is left out.
    ann, bob = {(1, 0), (2, 0)}, {(0, 1), (0, 2), (1, 2)}
    assert sorted(pairs) == sorted(
        [(n, 0, *p) for n in range(3) for p in ann] + [(n, 1, *p) for n in range(3) for p in bob]
    )
    assert sum(done.rows.values()) == 15
    assert done.without_winner == 3


def test_the_columns_of_pick_a_pic_have_its_types(ranked, tmp_path):
    import pyarrow.parquet

    export_project(ranked, tmp_path / "out", "pairs")
    schema = pyarrow.parquet.read_schema(tmp_path / "out/train.parquet")
    assert {name: str(schema.field(name).type) for name in schema.names} == {
        "are_different": "bool", "best_image_uid": "string", "caption": "string", "has_label": "bool",
        "image_0_uid": "string", "image_1_uid": "string", "jpg_0": "binary", "jpg_1": "binary", "label_0": "double",
        "label_1": "double", "model_0": "string", "model_1": "string", "ranking_id": "int64", "user_id": "int64",
    }  # fmt: skip


def test_hpdv2_as_hpsv2_reads_it(ranked, tmp_path):
    """HPSv2's HPDDataset joins its image folder with file_path; RankingDataset with image_path. In a rank 1 is best."""
    export_project(ranked, tmp_path / "out", "hpdv2")
    train = json.loads((tmp_path / "out/train.json").read_text())
    names = splits(ranked)
    assert {row["prompt"] for row in train} == {name for name, split in names.items() if split == "train"}
    for row in train:
        assert sorted(row) == ["file_path", "human_preference", "prompt", "user_hash"]
        assert sorted(row["human_preference"]) == [0, 1]
        shades = [shade(tmp_path / "out/train" / name) % 100 for name in row["file_path"]]
        utility = UTILITIES[row["user_hash"]]
        assert row["human_preference"][0] == (utility[shades[0]] > utility[shades[1]])
    test = json.loads((tmp_path / "out/test.json").read_text())
    assert {row["prompt"] for row in test} == {name for name, split in names.items() if split == "validation"}
    for row in test:
        assert [shade(tmp_path / "out/test" / name) % 100 for name in row["image_path"]] == [0, 1, 2]
        # ann 2 1 1, bob 1 2 3: sums 3 3 4.
        assert row["rank"] == [1, 1, 2]
        assert row["raw_annotations"] == [
            {"rank": [2, 1, 1], "user_hash": "ann"},
            {"rank": [1, 2, 3], "user_hash": "bob"},
        ]


def test_hpdv3_has_the_preferred_image_first(ranked, tmp_path):
    export_project(ranked, tmp_path / "out", "hpdv3")
    found = json.loads((tmp_path / "out/train.json").read_text()) + json.loads((tmp_path / "out/test.json").read_text())
    # Of each task (0, 1) and (0, 2) are undecided, 1 : 1; for (1, 2) bob alone has decided.
    assert len(found) == 3
    for row in found:
        assert [shade(tmp_path / "out" / row[name]) % 100 for name in ("path1", "path2")] == [1, 2]
        assert (row["choice_dist"], row["confidence"]) == ([1, 0], 1.0)
        assert (row["model1"], row["model2"]) == ("model 1", "model 2")


def test_image_reward_as_its_loader_groups_it(ranked, tmp_path):
    """ImageRewardDB's loading script takes image_amount_in_total rows at a time for a group, finds the images by the
    last part of image_path beside the JSON file, and pairs those whose ranks differ, the smaller one better."""
    export_project(ranked, tmp_path / "out", "imagereward")
    groups = []
    for split in ("train", "validation"):
        folder = tmp_path / f"out/images/{split}/{split}_1"
        samples = json.loads((folder / f"{split}_1.json").read_text())
        while samples:
            count = samples[0]["image_amount_in_total"]
            group, samples = samples[:count], samples[count:]
            assert len({sample["prompt_id"] for sample in group}) == 1
            shades = [shade(folder / sample["image_path"].split("/")[-1]) % 100 for sample in group]
            assert all((tmp_path / "out" / sample["image_path"]).is_file() for sample in group)
            ranks = [sample["rank"] for sample in group]
            better = {
                (a, b)
                for a, one in zip(shades, ranks, strict=True)
                for b, two in zip(shades, ranks, strict=True)
                if one < two
            }
            groups.append((int(group[0]["prompt"].split()[1]), sorted(better)))
    ann, bob = [(1, 0), (2, 0)], [(0, 1), (0, 2), (1, 2)]
    assert sorted(groups) == sorted((number, group) for number in range(3) for group in (ann, bob))


def test_rapidata_counts_votes_and_datasets_reads_its_images(ranked, tmp_path):
    import datasets

    export_project(ranked, tmp_path / "out", "rapidata")
    datasets.disable_progress_bars()
    found = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert sorted(found) == ["train", "validation"]
    rows = [row for split in found.values() for row in split]
    assert len(rows) == 9
    for row in rows:
        shades = tuple(row[name].convert("RGB").getpixel((0, 0))[0] % 100 for name in ("image1", "image2"))
        votes = {(0, 1): (1, 1), (0, 2): (1, 1), (1, 2): (1, 0)}
        plain = tuple(shade(image_path(ranked.folder, row[f"image{n}_path"][:-4])) % 100 for n in (1, 2))
        assert (row["votes_image1"], row["votes_image2"]) == votes[plain], shades
        detailed = json.loads(row["detailed_results"])
        assert sum(vote["votedFor"] == row["image1_path"] for vote in detailed) == row["votes_image1"]


def test_open_image_preferences(ranked, tmp_path):
    import datasets

    export_project(ranked, tmp_path / "out", "open-image-preferences")
    datasets.disable_progress_bars()
    found = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    pairs = []
    for row in (row for split in found.values() for row in split):
        number = int(row["prompt"].split()[1])
        data = {}
        for name in ("chosen", "rejected"):
            red, green, blue = row[name].convert("RGB").getpixel((0, 0))
            data[name] = red + 256 * green + 65536 * blue - 100 * number
        pairs.append((number, data["chosen"], data["rejected"]))
    expected = [(1, 0), (2, 0), (0, 1), (0, 2), (1, 2)]
    assert sorted(pairs) == sorted((n, *pair) for n in range(3) for pair in expected)


# ---------------------------------------------------------------- round trips


@pytest.mark.parametrize("format", EXPORTS)
def test_export_import_export_is_the_same(ranked, tmp_path, format):
    export_project(ranked, tmp_path / "one", format)
    done = import_labels(tmp_path / "imported", tmp_path / "one", format)
    with open_project(tmp_path / "imported") as project:
        export_project(project, tmp_path / "two", format)
        assert done.tasks == len(rows(project, sa.select(Task.id)))
        assert all(disabled for disabled in rows(project, sa.select(User.disabled))) == (format != "native")
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert len(content(tmp_path / "one")) > 2 or format in ("pairs", "rapidata", "open-image-preferences")


@pytest.mark.parametrize("format", ["pairs", "rapidata", "open-image-preferences", "native"])
def test_both_kinds_of_tables_say_the_same(ranked, tmp_path, format):
    for table in ("jsonl", "parquet"):
        export_project(ranked, tmp_path / table, format, ExportOptions(table=table))
        assert {path.suffix for path in (tmp_path / table).iterdir() if path.is_file()} <= {f".{table}", ".json"}
        import_labels(tmp_path / f"from-{table}", tmp_path / table, format)
        with open_project(tmp_path / f"from-{table}") as project:
            export_project(project, tmp_path / f"{table}-again", "native")
            export_project(project, tmp_path / f"{table}-pairs", "pairs")
    assert content(tmp_path / "jsonl-pairs") == content(tmp_path / "parquet-pairs")
    if format == "native":
        assert content(tmp_path / "jsonl-again") == content(tmp_path / "parquet-again")


@pytest.mark.parametrize("settings", [
    Labelling(overlap=2), Labelling(mode="best", images=3, overlap=2), Labelling(mode="rate", images=3, overlap=2),
    replace(RANK, transitive=False), replace(RANK, confirm=False),
])  # fmt: skip
def test_round_trips_of_other_modes(tmp_path, settings):
    with make_project(tmp_path / "project", settings, tasks=4) as project:
        for name, sign in (("ann", 1), ("bob", -1)):
            user = add_user(project, name)
            for assigned in claimed(project, user, 4, 0.0):
                judged(project, user, assigned, 1.0, lambda i, s=sign, a=assigned: s * (i - 0.5) + a.id % 2)
        for format in EXPORTS:
            if format == "hpdv3" and settings.mode in ("pair", "rank"):  # each pair is 1 : 1
                with pytest.raises(DataError, match="nothing to export"):
                    export_project(project, tmp_path / f"{format}-1", format)
                continue
            export_project(project, tmp_path / f"{format}-1", format)
            import_labels(tmp_path / f"{format}-p", tmp_path / f"{format}-1", format)
            with open_project(tmp_path / f"{format}-p") as imported:
                export_project(imported, tmp_path / f"{format}-2", format)
            assert content(tmp_path / f"{format}-1") == content(tmp_path / f"{format}-2"), format


@pytest.mark.parametrize(
    "settings", [Labelling(overlap=3), replace(RANK, transitive=False), replace(RANK, confirm=False)]
)
def test_imports_into_projects_with_other_settings(ranked, tmp_path, settings):
    """What is imported says the same in whatever way the project asks."""
    export_project(ranked, tmp_path / "one", "rapidata")
    with create_project(tmp_path / "other", settings):
        pass
    done = import_labels(tmp_path / "other", tmp_path / "one", "rapidata")
    assert (done.tasks, done.labelers) == (9, 2)
    with open_project(tmp_path / "other") as project:
        export_project(project, tmp_path / "two", "rapidata")
        assert (
            rows(project, sa.select(Task.finished)) == [2, 2, 1] * 3
            or sum(rows(project, sa.select(Task.finished))) == 15
        )
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_a_native_export_has_everything_but_secrets(tmp_path):
    settings = Labelling(gold_rate=0.3, repeat_rate=0.3, lease_minutes=1)
    with make_project(tmp_path / "project", settings, tasks=12) as project:
        add_tasks(project, [new_task(settings, 50, gold=[(0, 1, "a")])])
        ann, bob = add_user(project, "ann"), add_user(project, "bob")
        with project.database.write() as session:
            session.execute(sa.update(User).values(password_hash="secret", keys={"tie": "t"}))
        late = claimed(project, bob, 1, 0.0)[0]
        for round_ in range(14):
            found = claimed(project, ann, 1, 1000.0 + round_)
            if found:
                judged(project, ann, found[0], 1000.0 + round_)
        judged(project, bob, late, 2000.0)  # surplus
        undo = rows(project, sa.select(JudgementRow.client_id))[0]
        first = rows(project, sa.select(JudgementRow.assignment_id))[0]
        saved(project, ann, first, Judgement(str(uuid.uuid4()), "undo", supersedes=undo), 3000.0)
        export_project(project, tmp_path / "out")
        assert b"secret" not in b"".join(content(tmp_path / "out").values())
        import_labels(tmp_path / "copy", tmp_path / "out", "native")
        with open_project(tmp_path / "copy") as copy:
            assert copy.uuid == project.uuid
            assert copy.settings == project.settings
            for table in (Task, Assignment, JudgementRow):
                one, two = (
                    [dict(row._mapping) for row in found.database.engine.connect().execute(sa.select(table.__table__))]
                    for found in (project, copy)
                )
                assert one == two
                assert one
            # It goes on where it was: new rows have new keys.
            with copy.database.write() as session:
                session.execute(sa.update(User).values(disabled=False))
            again = claimed(copy, bob, 1, 5000.0)
            assert again
            judged(copy, bob, again[0], 5000.0)
            assert copy.database.sqlite


# ---------------------------------------------------------------- options


def test_options_choose_what_is_exported(ranked, tmp_path):
    def preferences(**options):
        out = tmp_path / str(uuid.uuid4())
        export_project(ranked, out, "rapidata", ExportOptions(table="jsonl", **options))
        found = []
        for path in sorted(out.glob("*.jsonl")):
            for row in map(json.loads, path.read_text().splitlines()):
                found.append((row["prompt"], row["votes_image1"], row["votes_image2"]))
        return sorted(found)

    assert len(preferences()) == 9
    assert preferences(labelers=("bob",)) == sorted((f"prompt {n}", 1, 0) for n in range(3) for _ in range(3))
    train = [name for name, split in splits(ranked).items() if split == "train"]
    assert {name for name, *_ in preferences(split="train")} == set(train)
    assert preferences(conflicts="majority") == preferences(conflicts="unanimous")
    assert preferences(conflicts="majority") == [(f"prompt {n}", 1, 0) for n in range(3)]


def test_conflict_policies_of_votes(tmp_path):
    settings = Labelling(overlap=3, validation=0.0)
    with make_project(tmp_path / "project", settings, tasks=3) as project:
        # Task 0: 3 : 0, task 1: 2 : 1, task 2: a tie and 1 : 1.
        says = {"ann": (0, 0, 0), "bob": (0, 0, 1), "cat": (0, 1, None)}
        for name, winners in says.items():
            user = add_user(project, name)
            for assigned, winner in zip(claimed(project, user, 3, 0.0), winners, strict=True):
                judged(project, user, assigned, 0.0, lambda i, w=winner: 0.0 if w is None else float(i == w))

        def found(conflicts, format="pairs"):
            out = tmp_path / str(uuid.uuid4())
            export_project(project, out, format, ExportOptions(conflicts=conflicts))
            return parquet(out / "train.parquet")

        def short(listed):
            return [(row["caption"][-1], row["label_0"], row["user_id"]) for row in listed]

        assert short(found("all")) == [
            ("0", 1, 0), ("0", 1, 1), ("0", 1, 2), ("1", 1, 0), ("1", 1, 1), ("1", 0, 2), ("2", 1, 0), ("2", 0, 1),
        ]  # fmt: skip
        assert short(found("majority")) == [("0", 1, 0), ("1", 1, 0)]
        assert short(found("unanimous")) == [("0", 1, 0)]
        votes = [(row["votes_image1"], row["votes_image2"]) for row in found("all", "rapidata")]
        assert votes == [(3, 0), (2, 1), (1, 1)]


def test_pseudonyms_are_the_same_in_each_export(ranked, tmp_path):
    for format in ("native", "hpdv2", "rapidata"):
        export_project(ranked, tmp_path / format, format, ExportOptions(pseudonyms=True))
        assert not any(word in data for data in content(tmp_path / format).values() for word in (b'ann"', b'bob"'))
    names = {row["user_hash"] for row in json.loads((tmp_path / "hpdv2/train.json").read_text())}
    users = [json.loads(line)["name"] for line in (tmp_path / "native/user_account.jsonl").read_text().splitlines()]
    assert names == set(users)
    assert all(name.startswith("labeler-") for name in names)


def test_surplus_answers_only_on_request(tmp_path):
    with make_project(tmp_path / "project", Labelling(lease_minutes=1), tasks=1) as project:
        ann, bob = add_user(project, "ann"), add_user(project, "bob")
        late, soon = claimed(project, ann, 1, 0.0)[0], claimed(project, bob, 1, 100.0)[0]
        judged(project, bob, soon, 100.0)
        judged(project, ann, late, 100.0)
        assert sum(export_project(project, tmp_path / "one", "pairs").rows.values()) == 1
        with_them = export_project(project, tmp_path / "two", "pairs", ExportOptions(include_surplus=True))
        assert sum(with_them.rows.values()) == 2


def test_a_native_export_of_some_labelers_and_prompts(ranked, tmp_path):
    export_project(ranked, tmp_path / "out", "native", ExportOptions(labelers=("ann",), split="train"))
    import_labels(tmp_path / "copy", tmp_path / "out", "native")
    with open_project(tmp_path / "copy") as project:
        assert rows(project, sa.select(User.name)) == ["ann"]
        train = sum(split == "train" for split in splits(ranked).values())
        assert rows(project, sa.select(Task.finished)) == [1] * train
        assert len(rows(project, sa.select(Assignment.id))) == train


def test_the_same_answers_give_the_same_bytes(ranked, tmp_path):
    for format in EXPORTS:
        export_project(ranked, tmp_path / f"{format}-1", format)
        export_project(ranked, tmp_path / f"{format}-2", format)
        assert content(tmp_path / f"{format}-1") == content(tmp_path / f"{format}-2")


# ---------------------------------------------------------------- foreign data


def lines(path: Path, found: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


def test_ties_of_pick_a_pic_are_imported_as_ties(tmp_path):
    for n in (0, 1):
        image(n).save(tmp_path / f"{n}.png")
    base = {"caption": "a cat", "jpg_0": "0.png", "jpg_1": "1.png"}
    table = lines(tmp_path / "train.jsonl", [
        base | {"label_0": 0.5, "label_1": 0.5, "user_id": 3, "ranking_id": 9},
        base | {"label_0": 0.0, "label_1": 1.0, "user_id": 4, "ranking_id": 10},
    ])  # fmt: skip
    done = import_labels(tmp_path / "p", table, "pairs")
    assert (done.tasks, done.answers, done.labelers) == (1, 2, 2)
    with open_project(tmp_path / "p") as project:
        assert rows(project, sa.select(JudgementRow.outcome).order_by(JudgementRow.id)) == ["tie", "right"]
        assert rows(project, sa.select(User.name)) == ["labeler-000003", "labeler-000004"]


def test_ratings_rank_images_where_image_reward_has_no_ranks(tmp_path):
    for n in range(3):
        image(n).save(tmp_path / f"{n}.png")
    row = {"prompt_id": "x", "prompt": "a cat"}
    table = lines(
        tmp_path / "train.jsonl", [row | {"image_path": f"{n}.png", "overall_rating": (5, 7, 5)[n]} for n in range(3)]
    )
    import_labels(tmp_path / "p", table, "imagereward")
    with open_project(tmp_path / "p") as project:
        assert rows(project, sa.select(JudgementRow.order_of_images)) == [[[1], [0, 2]]]


def test_votes_without_names_are_of_numbered_voters(tmp_path):
    for n in (0, 1):
        image(n).save(tmp_path / f"{n}.png")
    table = lines(tmp_path / "train.jsonl", [
        {"prompt": "a cat", "path1": "0.png", "path2": "1.png", "choice_dist": [2, 1], "confidence": None}
    ])  # fmt: skip
    done = import_labels(tmp_path / "p", table, "hpdv3")
    assert (done.tasks, done.answers, done.labelers) == (1, 3, 3)
    with open_project(tmp_path / "p") as project:
        assert rows(project, sa.select(User.name)) == ["voter-0001", "voter-0002", "voter-0003"]
        assert sorted(rows(project, sa.select(JudgementRow.outcome))) == ["left", "left", "right"]
        assert project.settings.overlap == 3


def test_gold_tasks(tmp_path):
    for n in range(4):
        image(n).save(tmp_path / f"{n}.png")
    table = lines(tmp_path / "gold.jsonl", [
        {"prompt": "a cat", "image_0": "0.png", "image_1": "1.png", "preferred": 1},
        {"prompt": "a dog", "image_0": "2.png", "image_1": "3.png", "preferred": "tie"},
    ])  # fmt: skip
    with make_project(tmp_path / "p", Labelling(), tasks=1):
        pass
    assert import_labels(tmp_path / "p", table, "gold").tasks == 2
    with open_project(tmp_path / "p") as project:
        assert rows(project, sa.select(Task.gold).order_by(Task.number)) == [None, [[0, 1, "b"]], [[0, 1, "tie"]]]


# ---------------------------------------------------------------- wrong input


@pytest.mark.parametrize(("options", "format", "message"), [
    ({}, "nativ", "the format 'nativ' is unknown; did you mean 'native'?"),
    ({"labelers": ("an",)}, "pairs", "the project has no labeler 'an'; did you mean 'ann'?"),
    ({"split": "test"}, "pairs", "the split is 'test', but must be train or validation"),
    ({"conflicts": "most"}, "pairs", "conflicts is 'most'; "),
    ({"table": "csv"}, "pairs", "the table is 'csv', but must be parquet or jsonl"),
    ({"table": "jsonl"}, "hpdv2", "the format hpdv2 is JSON: leave the table out"),
])  # fmt: skip
def test_wrong_options(ranked, tmp_path, options, format, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?").replace("(", r"\(")):
        export_project(ranked, tmp_path / "out", format, ExportOptions(**options))
    assert not (tmp_path / "out").exists()


def test_nothing_to_export(tmp_path):
    with make_project(tmp_path / "p", Labelling(), tasks=1) as project:
        for format in FORMATS:
            with pytest.raises(DataError, match="nothing to export"):
                export_project(project, tmp_path / "out", format)
    with create_project(tmp_path / "q", Labelling()) as empty, pytest.raises(DataError, match="has no tasks"):
        export_project(empty, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_outputs_are_not_overwritten_and_images_are_checked(ranked, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/x").write_text("")
    with pytest.raises(ConfigError, match="exists already"):
        export_project(ranked, tmp_path / "out")
    path = next((ranked.folder / "images").rglob("*.png"))
    data = path.read_bytes()
    path.write_bytes(data + b"x")
    for format in EXPORTS:
        with pytest.raises(DataError, match="is damaged"):
            export_project(ranked, tmp_path / "new", format)
    path.unlink()
    with pytest.raises(DataError, match="cannot be read: No such file"):
        export_project(ranked, tmp_path / "new")
    assert not (tmp_path / "new").exists()


GOOD = {
    "pairs": {"caption": "a cat", "jpg_0": "0.png", "jpg_1": "1.png", "label_0": 1, "label_1": 0},
    "hpdv2": {"prompt": "a cat", "file_path": ["0.png", "1.png"], "human_preference": [1, 0], "user_hash": "x"},
    "hpdv3": {"prompt": "a cat", "path1": "0.png", "path2": "1.png"},
    "rapidata": {"prompt": "a cat", "image1": "0.png", "image2": "1.png", "votes_image1": 1, "votes_image2": 0},
    "open-image-preferences": {"prompt": "a cat", "chosen": "0.png", "rejected": "1.png"},
}


@pytest.mark.parametrize(("format", "change", "message"), [
    ("pairs", {"label_0": "x"}, "train.jsonl:2: label_0 and label_1 are 'x' and 0, not numbers"),
    ("pairs", {"jpg_1": None}, "train.jsonl:2, jpg_1: expected an image or its path, but found none"),
    ("pairs", {"jpg_1": "9.png"}, "train.jsonl:2, jpg_1: there is no image"),
    ("pairs", {"label_0": ...}, "train.jsonl:2: no columns label_0 and label_1"),
    ("pairs", {"caption": 3}, "train.jsonl:2: expected a caption, which is text"),
    ("pairs", {"jpg_1": "0.png"}, "train.jsonl:2: two images of the comparison are the same"),
    ("hpdv2", {"human_preference": [1]}, "train.jsonl:2: expected 2 numbers in human_preference"),
    ("hpdv2", {"file_path": "0.png"}, "train.jsonl:2: expected a list of two or more images in file_path"),
    ("hpdv2", {"file_path": ...}, "train.jsonl:2: no column file_path"),
    ("hpdv2", {"user_hash": "x" * 101}, "must have a name of 1 to 100 characters"),
    ("hpdv3", {"path1": ...}, "train.jsonl:2: no column path1; it has prompt, path2"),
    ("hpdv3", {"choice_dist": [0.5, 1]}, "train.jsonl:2: expected numbers of votes"),
    ("rapidata", {"votes_image1": "many"}, "train.jsonl:2: expected 2 numbers in votes_image1 and votes_image2"),
    ("open-image-preferences", {"rejected": "https://x.org/1.png"}, "train.jsonl:2, rejected: the image is a URL"),
    ("open-image-preferences", {"prompt": "x" * 10_001}, "train.jsonl:2: the prompt has 10001 characters"),
])  # fmt: skip
def test_rows_that_cannot_be_imported(tmp_path, format, change, message):
    for n in (0, 1):
        image(n).save(tmp_path / f"{n}.png")
    bad = {name: value for name, value in (GOOD[format] | change).items() if value is not ...}
    table = lines(tmp_path / "train.jsonl", [GOOD[format], bad])
    with pytest.raises(DataError) as caught:
        import_labels(tmp_path / "p", table, format)
    assert message in str(caught.value)
    assert not (tmp_path / "p").exists()


def test_wrong_imports(ranked, tmp_path):
    def refused(kind, message, *words, **more):
        with pytest.raises(kind) as caught:
            import_labels(*words, **more)
        assert message in str(caught.value)

    export_project(ranked, tmp_path / "native")
    export_project(ranked, tmp_path / "pairs", "pairs")
    export_project(ranked, tmp_path / "ranks", "imagereward")
    refused(ConfigError, "did you mean 'pairs'?", tmp_path / "p", tmp_path / "pairs", "pair")
    refused(DataError, "there is no file or folder", tmp_path / "p", tmp_path / "nothing", "pairs")
    refused(ConfigError, "a native export becomes a new project", ranked.folder, tmp_path / "native", "native")
    refused(DataError, "has no export.json", tmp_path / "p", tmp_path / "pairs", "native")
    refused(ConfigError, "gold tasks are added to a project", tmp_path / "p", tmp_path / "pairs", "gold")
    refused(DataError, "has no table named train or validation", tmp_path / "p", tmp_path / "native/images", "pairs")
    refused(ConfigError, "leave the database out", ranked.folder, tmp_path / "pairs", "pairs", None, "postgresql://h/x")
    with create_project(tmp_path / "best", Labelling(mode="best")), create_project(tmp_path / "pair", Labelling()):
        pass
    with create_project(tmp_path / "strict", replace(RANK, ties=False)):
        pass
    refused(ConfigError, "a project of mode best takes none", tmp_path / "best", tmp_path / "pairs", "pairs")
    refused(ConfigError, "but the project is of mode pair", tmp_path / "pair", tmp_path / "ranks", "imagereward")
    refused(DataError, "the project has no ties", tmp_path / "strict", tmp_path / "ranks", "imagereward")
    next((tmp_path / "native/images").rglob("*.png")).unlink()
    refused(DataError, "lacks the image", tmp_path / "p", tmp_path / "native", "native")
    (tmp_path / "native/image.jsonl").unlink()
    refused(DataError, "has no image.jsonl or image.parquet", tmp_path / "p", tmp_path / "native", "native")
    assert not (tmp_path / "p").exists()


def test_more_labelers_than_the_overlap(ranked, tmp_path):
    export_project(ranked, tmp_path / "ranks", "imagereward")
    with create_project(tmp_path / "one", replace(RANK, overlap=1)):
        pass
    with pytest.raises(ConfigError, match="2 labelers have answered the task, but the project's overlap is 1"):
        import_labels(tmp_path / "one", tmp_path / "ranks", "imagereward")
    with open_project(tmp_path / "one") as project:
        assert rows(project, sa.select(Task.id)) == []


def test_parquet_without_pyarrow_says_what_to_install(ranked, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(DataError, match=r"pip install 'tastemaker\[data\]'"):
        export_project(ranked, tmp_path / "out", "pairs")
    assert export_project(ranked, tmp_path / "out", "pairs", ExportOptions(table="jsonl")).rows
