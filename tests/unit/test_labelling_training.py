"""Diffusion-DPO on a labelling project."""

from __future__ import annotations

import json

from label_projects import add_user, claimed, judged, make_project, new_task
from tastemaker.cli.main import main
from tastemaker.labelling.copying import copy_project
from tastemaker.labelling.project import add_tasks, open_project
from tastemaker.labelling.settings import Labelling


def train(checkpoint, project, out, *more):
    return main([
        "train", "ddpo-compressibility", "--algorithm", "diffusion-dpo", "--pairs", str(project), "--model",
        str(checkpoint), "--prompts", "ddpo-animals", "--rounds", "1", "--out", str(out), "sampling.steps=2",
        "sampling.samples=4", "sampling.per_prompt=2", "optimizer.updates=1", "optimizer.lr=1e-3",
        "evaluation.prompts=1", "evaluation.per_prompt=2", "evaluation.kl_images=0", *more,
    ])  # fmt: skip


def label_on(folder, number):
    """One further task, labelled."""
    with open_project(folder) as project:
        add_tasks(project, [new_task(project.settings, number)])
        (assigned,) = claimed(project, 1, 1, 0.0)
        judged(project, 1, assigned, 0.0)


def test_a_run_reads_a_project_and_notices_new_labels(checkpoint, tmp_path, capsys):
    with make_project(tmp_path / "p", Labelling(mode="rank", images=3, validation=0.4), tasks=4) as project:
        ann = add_user(project, "ann")
        for assigned in claimed(project, ann, 4, 0.0):
            judged(project, ann, assigned, 0.0, lambda image: (2.0, 1.0, 1.0)[image])
        copy_project(project, tmp_path / "copy")
        with project.database.read() as session:
            splits = [row.split for row in session.connection().exec_driver_sql("select split from prompt")]
    train_tasks = splits.count("train")
    assert 0 < train_tasks < 4
    assert train(checkpoint, tmp_path / "p", tmp_path / "run") == 0
    # Image 0 is better than 1 and 2, which are equal: two pairs and a tie of each task.
    said = f"{tmp_path / 'p'}: {2 * train_tasks} pairs, and {train_tasks} rows without a preference"
    assert said in capsys.readouterr().out
    assert train(checkpoint, tmp_path / "p", tmp_path / "other", "--pairs.split=validation") == 0
    assert f": {2 * (4 - train_tasks)} pairs" in capsys.readouterr().out
    assert main(["resume", str(tmp_path / "run"), "--rounds", "2"]) == 0
    assert train(checkpoint, tmp_path / "copy", tmp_path / "pinned") == 0
    for number in range(10, 14):  # whatever part of the split their prompts are in
        label_on(tmp_path / "p", number)
    capsys.readouterr()
    assert main(["resume", str(tmp_path / "run"), "--rounds", "3"]) == 2
    error = capsys.readouterr().err
    assert "was saved with other settings, versions or hardware (pairs " in error
    assert "--allow-inexact" in error
    assert main(["resume", str(tmp_path / "run"), "--rounds", "3", "--allow-inexact"]) == 0
    assert main(["resume", str(tmp_path / "pinned"), "--rounds", "2"]) == 0
    rounds = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [record["round"] for record in rounds if "round" in record] == [1, 2, 3]


def test_wrong_projects_leave_no_run_behind(checkpoint, tmp_path, capsys):
    make_project(tmp_path / "p", Labelling(), tasks=1).close()
    assert train(checkpoint, tmp_path / "p", tmp_path / "run") == 2
    assert "has no pair of its split train in which an image is preferred" in capsys.readouterr().err
    assert train(checkpoint, tmp_path / "p", tmp_path / "run", "--pairs.split=test") == 2
    assert "has no split 'test'; it has train and validation" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
