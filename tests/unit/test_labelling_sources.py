"""`tastemaker label create`: projects from a model, a run, and files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sqlalchemy as sa
from PIL import Image

import tastemaker as tm
from label_projects import image, rows
from tastemaker.cli.label_create import run
from tastemaker.errors import ConfigError, DataError, PromptError
from tastemaker.labelling.image_files import image_path
from tastemaker.labelling.project import Project, open_project
from tastemaker.labelling.settings import Labelling
from tastemaker.labelling.sources import Policy, Recipe, image_tasks, sampled_tasks
from tastemaker.labelling.tables import Prompt, Task, TaskImage
from tastemaker.models import load_model


def contents(project: Project) -> list[tuple[str, list[bytes]]]:
    """Prompt and pixels of the images of each task, in order."""
    found = []
    with project.database.read() as session:
        for task in session.scalars(sa.select(Task).order_by(Task.number)).all():
            prompt = session.execute(sa.select(Prompt.text).where(Prompt.id == task.prompt_id)).scalar_one()
            names = session.scalars(
                sa.select(TaskImage.sha256).where(TaskImage.task_id == task.id).order_by(TaskImage.position)
            )
            found.append((prompt, [Image.open(image_path(project.folder, name)).tobytes() for name in names]))
    return found


def test_images_are_those_of_the_sampler(tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\na blue star\n")
    argv = [
        str(tmp_path / "p"),
        "--prompts",
        str(prompts),
        "--tasks",
        "3",
        "--mode",
        "rank",
        "--k",
        "3",
        "--steps",
        "2",
    ]
    assert run([*argv, "--seed", "4", "--guidance", "2", "--eta", "0.5"]) == 0
    assert "3 tasks of 3 images" in capsys.readouterr().out
    made = tm.sample("bundled", ["a red circle", "a blue star"], n=6, seed=4, steps=2, guidance=2.0, eta=0.5, batch=16)
    red, blue = made.images[:6], made.images[6:]
    expected = [("a red circle", red[:3]), ("a blue star", blue[:3]), ("a red circle", red[3:])]
    with open_project(tmp_path / "p") as project:
        found = contents(project)
        assert [prompt for prompt, _ in found] == [prompt for prompt, _ in expected]
        for (_, pixels), (_, images) in zip(found, expected, strict=True):
            for one, other in zip(pixels, images, strict=True):
                # Levels of 8 bits, which the batch's rounding may move by one.
                assert max(abs(a - b) for a, b in zip(one, other.tobytes(), strict=True)) <= 1
        origins = rows(project, sa.select(TaskImage.origin).where(TaskImage.task_id == 3))
        assert [origin["sample"] for origin in origins] == [3, 4, 5]
        assert origins[0] | {"sample": 0} == {
            "model": "bundled", "adapter": None, "steps": 2, "guidance": 2.0, "eta": 0.5, "sde_type": "auto", "seed": 4,
            "sample": 0,
        }  # fmt: skip
        assert set(rows(project, sa.select(TaskImage.model))) == {"bundled"}


def test_batches_change_nothing():
    model = load_model("bundled", "fp32", "cpu")
    settings = Labelling(mode="rank", images=2)
    counts: list[int] = []
    many = [
        list(
            sampled_tasks(
                model, ["a red circle"], settings, 3, Recipe(steps=1, batch=batch), [Policy("m")], None, counts.append
            )
        )
        for batch in (1, 4)
    ]
    assert counts == [2, 2, 2, 4, 2]
    for one, other in zip(*many, strict=True):
        for a, b in zip(one.images, other.images, strict=True):
            assert max(abs(x - y) for x, y in zip(a.value.tobytes(), b.value.tobytes(), strict=True)) <= 1


def test_a_run_gives_model_prompts_and_sampler(tmp_path, capsys):
    config = tm.preset(
        "ddpo-compressibility", "rounds=1", "sampling.steps=2", "sampling.samples=4", "sampling.per_prompt=4"
    )
    trained = tm.train(
        config,
        reward=lambda images, prompts: images.mean(dim=(1, 2, 3)),
        prompts=["a red circle"],
        out=tmp_path / "run",
    )
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\n")
    argv = [str(tmp_path / "p"), "--run", str(trained.folder), "--prompts", str(prompts)]
    assert run(argv) == 0
    made = tm.sample(
        "bundled", ["a red circle"], adapter=trained, n=2, steps=2, guidance=config.sampling.guidance,
        eta=config.sampling.eta,
    )  # fmt: skip
    with open_project(tmp_path / "p") as project:
        ((_, pixels),) = contents(project)
        for one, other in zip(pixels, made.images, strict=True):
            assert max(abs(a - b) for a, b in zip(one, other.tobytes(), strict=True)) <= 1
        assert set(rows(project, sa.select(TaskImage.model))) == {str(trained.folder)}


def listed(folder: Path, count: int) -> Path:
    """A folder of images with a table: prompts a, b, a, b, ..."""
    folder.mkdir()
    lines = []
    for index in range(count):
        image(index).save(folder / f"{index}.png")
        lines.append(json.dumps({"file_name": f"{index}.png", "prompt": "ab"[index % 2]}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def test_images_of_a_prompt_make_tasks(tmp_path, capsys):
    folder = listed(tmp_path / "images", 11)  # six of a, five of b
    assert run([str(tmp_path / "p"), "--images", str(folder), "--mode", "best", "--k", "2"]) == 0
    assert "5 tasks of 2 images (1 images are left over)" in capsys.readouterr().out
    with open_project(tmp_path / "p") as project:
        assert contents(project) == [
            (prompt, [image(one).tobytes(), image(two).tobytes()])
            for prompt, one, two in [("a", 0, 2), ("a", 4, 6), ("a", 8, 10), ("b", 1, 3), ("b", 5, 7)]
        ]
    tasks, left = image_tasks(str(folder), Labelling(), 2)
    assert (len(tasks), left) == (2, 7)
    with pytest.raises(DataError, match="no prompt has more than 6"):
        image_tasks(str(folder), Labelling(mode="rank", images=7))


def test_folders_of_samples(tmp_path):
    made = tm.sample("bundled", ["a red circle", "a blue star"], n=2, steps=1)
    made.save(tmp_path / "s")
    tasks, left = image_tasks(str(tmp_path / "s"), Labelling())
    assert ([task.prompt for task in tasks], left) == (["a red circle", "a blue star"], 0)
    assert tasks[1].images[1].origin["seed"] == 1
    (tmp_path / "s" / "samples.json").write_text('{"round": 0, "samples": [{"file": "../x.png"}]}')
    with pytest.raises(DataError, match="no list of samples"):
        image_tasks(str(tmp_path / "s"), Labelling())


def test_every_setting_reaches_the_project(tmp_path):
    folder = listed(tmp_path / "images", 6)
    (tmp_path / "how.md").write_text("# How")
    argv = (
        f"--images {folder} --mode rank --k 3 --title T --question Q --instructions {tmp_path / 'how.md'} "
        "--no-transitive --no-confirm --no-ties --no-both-bad --no-skip --marks x y --overlap 2 --gold-rate 0.1 "
        "--repeat-rate 0.2 --lease-minutes 3 --validation 0.5 --seed 9"
    )
    assert run([str(tmp_path / "p"), *argv.split()]) == 0
    with open_project(tmp_path / "p") as project:
        assert project.settings == Labelling(
            "rank", 3, "T", "Q", "# How", False, False, False, False, False, ("x", "y"), 2, 0.1, 0.2, 3.0, 0.5, 9
        )


def test_a_dry_run_makes_nothing(tmp_path, capsys):
    assert run([str(tmp_path / "p"), "--prompts", "bundled-single", "--dry-run"]) == 0
    assert "64 tasks of 2 images of bundled, 50 steps" in capsys.readouterr().out
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(
    ("argv", "error", "words"),
    [
        ([], ConfigError, "give a run by --run"),
        (["--run", "nowhere"], ConfigError, "nowhere does not exist"),
        (["--model", "bundled"], ConfigError, "give a run"),
        (["--model", "bundled", "--images", "x"], ConfigError, "only one of"),
        (["--images", "x", "--prompts", "y"], ConfigError, "their own prompts"),
        (["--images", "missing.csv"], DataError, "there is no file"),
        (["--prompts", "bundled-singel"], PromptError, "bundled-single"),
        (["--prompts", "bundled-single", "--mode", "pairs"], ConfigError, "mode"),
        (["--prompts", "bundled-single", "--k", "3"], ConfigError, "2 images, not 3"),
        (["--prompts", "bundled-single", "--tasks", "0"], ConfigError, "at least 1"),
        (["--prompts", "bundled-single", "--instructions", "none.md"], DataError, "there is no file"),
    ],
)
def test_wrong_input_is_one_sentence_and_leaves_nothing(tmp_path, argv, error, words):
    with pytest.raises(error, match=words):
        run([str(tmp_path / "p"), *argv])
    assert not (tmp_path / "p").exists()


def test_a_source_that_fails_in_the_middle_leaves_nothing(tmp_path):
    folder = listed(tmp_path / "images", 8)
    damaged = (folder / "6.png").read_bytes()
    (folder / "6.png").write_bytes(damaged[:48])  # its header is whole
    with pytest.raises(DataError, match=r"metadata.jsonl:7"):
        run([str(tmp_path / "p"), "--images", str(folder)])
    assert list(tmp_path.iterdir()) == [folder]


def test_a_project_for_training_runs_has_no_images_yet(tmp_path, capsys):
    folder = tmp_path / "live"
    assert run([str(folder), "--empty", "--mode", "best", "--k", "3", "--dry-run"]) == 0
    assert not folder.exists()
    assert run([str(folder), "--empty", "--mode", "best", "--k", "3"]) == 0
    assert f"a training run sends its images with --reward label:{folder}" in capsys.readouterr().out
    with open_project(folder) as project:
        assert (project.settings.mode, project.settings.task_size) == ("best", 3)
        assert contents(project) == []
    with pytest.raises(ConfigError, match="--empty makes a project without images: leave --prompts out"):
        run([str(tmp_path / "other"), "--empty", "--prompts", "bundled-single"])
