"""Comparisons out of labelling projects and tables: which judgements count, how votes are averaged, what is refused."""

from __future__ import annotations

import json

import pytest

from compared import PROMPTS, picture, project, table
from label_projects import add_user, claimed, judged, saved
from tastemaker.data.pairs import load_pairs
from tastemaker.errors import ConfigError, DataError
from tastemaker.labelling.project import NewImage, NewTask, add_tasks, create_project, open_project
from tastemaker.labelling.ranking import Judgement
from tastemaker.labelling.settings import Labelling
from tastemaker.reward_models.comparisons import Pair, load_comparisons, load_several, opened, split_again


def pairs_of(found):
    return [{(pair.a, pair.b): (pair.better, pair.weight) for pair in task.pairs} for task in found.tasks]


def test_a_ranked_task_says_all_its_pairs(tmp_path):
    found = load_comparisons(str(project(tmp_path / "p")))
    assert len(found.tasks) == 12
    # The labeler prefers the lower position.
    assert pairs_of(found)[0] == {(0, 1): (1.0, 1), (0, 2): (1.0, 1), (1, 2): (1.0, 1)}
    assert found.facts["labelers"] == 1
    assert (found.facts["tasks"], found.facts["pairs"], found.facts["images"]) == (12, 36, 36)
    assert opened(found.images[0]).size == (32, 32)
    assert len(found.training) + len(found.validation) == 12
    assert 0 < len(found.validation) < 12


def test_votes_of_several_labelers_are_averaged(tmp_path):
    """Two labelers of three prefer low positions, one high ones: 2/3 with weight 3; a tie counts half."""
    with create_project(tmp_path / "p", Labelling("pair", overlap=3)) as made:
        add_tasks(
            made,
            [NewTask(f"p {n}", [NewImage(picture(0.1, seed=2 * n)), NewImage(picture(0.2, seed=2 * n + 1))])
             for n in range(10)],
        )  # fmt: skip
        for name, utility in (("ann", lambda i: -i), ("bob", lambda i: -i), ("eve", lambda i: i)):
            user = add_user(made, name)
            for one in claimed(made, user, 20, 0.0):
                judged(made, user, one, 0.0, utility)
    assert pairs_of(load_comparisons(str(tmp_path / "p")))[0] == {(0, 1): (pytest.approx(2 / 3), 3)}


def test_skipped_gold_and_repeated_tasks_do_not_count(tmp_path):
    settings = Labelling("pair", repeat_rate=0.5, gold_rate=0.4)
    with create_project(tmp_path / "p", settings) as made:
        number = iter(range(1000))
        tasks = [
            NewTask(f"p {n}", [NewImage(picture(0.1, seed=next(number))), NewImage(picture(0.2, seed=next(number)))],
                    gold=[(0, 1, "a")] if n >= 30 else None)
            for n in range(33)
        ]  # fmt: skip
        add_tasks(made, tasks)
        user = add_user(made, "ann")
        done = 0
        while assigned := claimed(made, user, 1, 0.0):
            done += 1
            if assigned[0].prompt == "p 3":
                saved(made, user, assigned[0].id, Judgement(f"skip-{done}", "skip"), 0.0)
            else:
                judged(made, user, assigned[0], 0.0)
    assert done > 33  # some came again
    found = load_comparisons(str(tmp_path / "p"))
    assert {task.prompt for task in found.tasks} == {f"p {n}" for n in range(30)} - {"p 3"}
    assert all(pair.weight == 1 for task in found.tasks for pair in task.pairs)


def test_both_bad_is_a_tie_and_best_says_only_its_own_pairs(tmp_path):
    found = load_comparisons(str(project(tmp_path / "best", mode="best", images=3)))
    assert pairs_of(found)[0] == {(0, 1): (1.0, 1), (0, 2): (1.0, 1)}


def test_what_cannot_be_learned_from_is_refused(tmp_path):
    cases = {
        "empty": (project(tmp_path / "a", tasks=0, labelled=False), "has no images: add tasks to it"),
        "unlabelled": (project(tmp_path / "b", labelled=False), "has no judgements of two images: label some"),
        "few": (project(tmp_path / "c", tasks=9), "has 9 labelled tasks, but a reward model needs at least 10"),
        "ties": (
            project(tmp_path / "d", utility=lambda i: 0),
            "has ties only: in none of its 12 tasks is an image pref",
        ),
        "single": (project(tmp_path / "e", mode="rate", images=1, labelled=False), "one image each: there is nothing"),
    }
    for source, said in cases.values():
        with pytest.raises(DataError, match=said):
            load_comparisons(str(source))
    with pytest.raises(ConfigError, match="validation"):
        load_comparisons(str(project(tmp_path / "f")), validation=1.0)


def test_the_split_is_by_prompt_and_by_seed(tmp_path):
    folder = str(project(tmp_path / "p", tasks=20))
    found = load_comparisons(folder, validation=0.5, seed=1)
    prompts = [{task.prompt for task in part} for part in (found.training, found.validation)]
    assert not prompts[0] & prompts[1]
    assert all(prompts)
    apart = [[task.validation for task in load_comparisons(folder, validation=0.5, seed=s).tasks] for s in (1, 1, 2)]
    assert apart[0] == apart[1] != apart[2]
    # By task, tasks of one prompt are in both parts.
    one_prompt = split_again(found, 0.5, 0, "task")
    assert {task.validation for task in one_prompt.tasks} == {True, False}
    with open_project(folder) as opened_project:
        assert opened_project.settings.validation == 0.3
    own = load_comparisons(folder)
    assert own.digest == found.digest
    assert [t.validation for t in own.tasks] != [t.validation for t in found.tasks]


def test_a_single_prompt_is_split_by_task_or_refused(tmp_path):
    rows = [{"prompt": "a macaw", "image_0": f"{n}-0.png", "image_1": f"{n}-1.png", "preferred": 0} for n in range(12)]
    folder = str(table(tmp_path / "t", rows))
    by_task = load_comparisons(folder, validation=0.5, split_by="task")
    assert by_task.training
    assert by_task.validation
    seeds = [seed for seed in range(20) if _all_apart(folder, seed)]
    assert seeds
    with pytest.raises(DataError, match=r"all its labelled tasks in the validation part.*--split-by task"):
        load_comparisons(folder, validation=0.5, seed=seeds[0])


def _all_apart(folder: str, seed: int) -> bool:
    try:
        load_comparisons(folder, validation=0.5, seed=seed)
    except DataError:
        return True
    return False


def test_pairs_of_a_table_with_common_images_become_one_task(tmp_path):
    """1-2, 3-2 and 3-4 of one prompt are one task of four images; the same image with another prompt is another."""
    rows = [
        {"prompt": "a", "image_0": "1.png", "image_1": "2.png", "preferred": 0},
        {"prompt": "a", "image_0": "3.png", "image_1": "2.png", "preferred": "tie"},
        {"prompt": "a", "image_0": "3.png", "image_1": "4.png", "preferred": 1},
        {"prompt": "a", "image_0": "2.png", "image_1": "1.png", "preferred": 0},
        {"prompt": "b", "image_0": "1.png", "image_1": "2.png", "preferred": 1},
    ] + [{"prompt": f"c{n}", "image_0": f"{n}x.png", "image_1": f"{n}y.png", "preferred": 0} for n in range(9)]
    found = load_comparisons(str(table(tmp_path / "t", rows)), validation=0.0)
    first, second = found.tasks[:2]
    assert (first.prompt, len(first.images), second.prompt) == ("a", 4, "b")
    # 1 and 2 were compared twice, once each way; 2 and 3 are equal; 4 is better than 3.
    assert first.pairs == (Pair(0, 1, 0.5, 2), Pair(1, 2, 0.5, 1), Pair(2, 3, 0.0, 1))
    assert second.pairs == (Pair(0, 1, 0.0, 1),)
    assert first.images[:2] == second.images
    assert found.facts["ties"] == 2


def test_labels_that_add_up_to_one_are_probabilities(tmp_path):
    rows = [{"prompt": f"{n}", "image_0": f"{n}a.png", "image_1": f"{n}b.png", "label_0": a, "label_1": b}
            for n, (a, b) in enumerate([(0.7, 0.3), (0.5, 0.5), (3, 1), (0, 1)] * 3)]  # fmt: skip
    found = load_comparisons(str(table(tmp_path / "t", rows)), validation=0.0)
    assert [task.pairs[0].better for task in found.tasks[:4]] == pytest.approx([0.7, 0.5, 1.0, 0.0])
    # Diffusion-DPO's pairs stay as they are: the preferred image first, and no ties.
    plain = load_pairs(str(tmp_path / "t"))
    assert (len(plain), plain.ties) == (9, 3)
    assert [str(path)[-6:] for path in plain.sources(2)] == ["3b.png", "3a.png"]
    assert set(plain.labels) == {1.0}


def test_rows_that_a_mark_leaves_out_stay_out(tmp_path):
    rows = [{"prompt": f"{n}", "image_0": f"{n}a.png", "image_1": f"{n}b.png", "preferred": "tie", "has_label": n > 0}
            for n in range(12)]  # fmt: skip
    pairs = load_pairs(str(table(tmp_path / "t", rows)), ties=True)
    assert (len(pairs), pairs.ties, set(pairs.labels)) == (11, 1, {0.5})


def test_data_sets_are_read_too(tmp_path):
    datasets = pytest.importorskip("datasets")
    content = {
        "caption": [PROMPTS[n % 4] for n in range(12)], "jpg_0": [picture(0.1, seed=n) for n in range(12)],
        "jpg_1": [picture(0.9, seed=n) for n in range(12)], "label_0": [0.0, 0.5] * 6, "label_1": [1.0, 0.5] * 6,
    }  # fmt: skip
    datasets.Dataset.from_dict(content).save_to_disk(str(tmp_path / "d"))
    found = load_comparisons(str(tmp_path / "d"), validation=0.0)
    assert [task.pairs[0].better for task in found.tasks[:2]] == [0.0, 0.5]
    assert opened(found.images[0]).getpixel((0, 0)) < opened(found.images[1]).getpixel((0, 0))


def test_the_digest_is_of_prompts_images_and_labels(tmp_path):
    def digest(name, **changes):
        rows = [{"prompt": f"{n}", "image_0": f"{n}a.png", "image_1": f"{n}b.png", "preferred": 0} for n in range(10)]
        rows[3] |= changes
        return load_comparisons(str(table(tmp_path / name, rows)), validation=0.0).digest

    first = digest("a")
    assert digest("b") == first
    assert len({first, digest("c", preferred=1), digest("d", prompt="x"), digest("e", image_1="z.png")}) == 4
    assert json.dumps(first)


def test_several_sources_are_one_and_share_no_prompt_between_training_and_validation(tmp_path):
    """Two projects that set other prompts apart: what one of them sets apart is set apart in both."""
    folders = [str(project(tmp_path / name, seed=seed, utility=None)) for name, seed in (("a", 1), ("b", 5))]
    one, two = (load_comparisons(folder) for folder in folders)
    found = load_several(folders)
    apart = [{task.prompt for task in part.validation} for part in (one, two, found)]
    assert apart[0] != apart[1]
    assert apart[2] == apart[0] | apart[1]
    assert not apart[2] & {task.prompt for task in found.training}
    assert len(found.tasks) == len(one.tasks) + len(two.tasks)
    assert found.facts["pairs"] == one.facts["pairs"] + two.facts["pairs"]
    assert found.digest not in (one.digest, two.digest)
    assert load_several(folders[:1]).digest == one.digest
    for task, own in zip(found.tasks[len(one.tasks) :], two.tasks, strict=True):
        shown = [opened(found.images[image]) for image in task.images]
        assert [image.tobytes() for image in shown] == [opened(two.images[i]).tobytes() for i in own.images]
        assert task.pairs == own.pairs


def test_several_sources_split_by_task_keep_their_own_splits(tmp_path):
    """All have the same prompts, so that with the split by prompt nothing would be left to train on."""
    rows = [{"prompt": "a macaw", "image_0": f"{n}-0.png", "image_1": f"{n}-1.png", "preferred": 0} for n in range(12)]
    folders = [str(table(tmp_path / name, rows)) for name in ("a", "b")]
    settings = {"validation": 0.5, "seed": 1, "split_by": "task"}
    one, found = load_comparisons(folders[0], **settings), load_several(folders, **settings)
    assert one.training
    assert one.validation
    assert [task.validation for task in found.tasks] == 2 * [task.validation for task in one.tasks]
    assert found.facts["moved"] == 0
