"""`tm.label`: labelling projects from Python."""

from __future__ import annotations

import httpx
import pytest

import tastemaker as tm
import tiny
from label_projects import add_user, claimed, image, judged
from tastemaker.errors import ConfigError


def tasks(count: int) -> list:
    return [
        tm.label.NewTask(f"prompt {n}", [tm.label.NewImage(image(10 * n + k)) for k in range(2)]) for n in range(count)
    ]


def test_from_tasks_to_an_export_and_back(tmp_path):
    with tm.label.create(tmp_path / "p", tm.label.Labelling(validation=0.0), images=tasks(5), tasks=4) as project:
        user = add_user(project, "ann")
        for assigned in claimed(project, user, 4, 0.0):
            judged(project, user, assigned, 1.0)
        assert tm.label.stats(project).progress.tasks_done == 4
        assert sum(tm.label.export(project, tmp_path / "pairs", "pairs").rows.values()) == 4
        assert len(tm.label.pairs(project)) == 4
        tm.label.backup(project, tmp_path / "copy")
    with tm.label.open(tmp_path / "copy") as copy:
        assert tm.label.stats(copy).progress.tasks_done == 4
    done = tm.label.import_labels(tmp_path / "imported", tmp_path / "pairs", "pairs")
    assert (done.tasks, done.answers) == (4, 4)


def test_from_a_loaded_pipeline(tmp_path):
    with tm.label.create(
        tmp_path / "p",
        tm.label.Labelling(mode="rank", images=3),
        model=tiny.pipeline(),
        prompts=["cat", "dog"],
        steps=1,
    ) as project:
        found = tm.label.stats(project).progress
        assert (found.tasks, found.tasks_done) == (2, 0)


def test_the_app_is_served_while_the_block_runs(tmp_path):
    with tm.label.create(tmp_path / "p", images=tasks(1)) as project:
        with tm.label.serving(project) as link:
            address, _, token = link.partition("/login#token=")
            assert token
            assert httpx.get(f"{address}/health").json() == {"status": "ok"}
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{address}/health")


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        ({}, "not none"),
        ({"model": "bundled", "images": []}, "not model and images"),
        ({"model": "bundled"}, "give prompts"),
    ],
)
def test_sources_that_do_not_fit(tmp_path, sources, words):
    with pytest.raises(ConfigError, match=words):
        tm.label.create(tmp_path / "p", **sources)
    assert not (tmp_path / "p").exists()
