"""`tastemaker compare create`, `serve` and `result`, and `tm.compare`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from PIL import Image

import tastemaker as tm
from compared_models import answer, flat, image_folder, noise
from tastemaker.cli.compared_models import base_settings, images_of, recognised
from tastemaker.cli.main import main
from tastemaker.config.presets import PRESETS
from tastemaker.config.schema import Sampling
from tastemaker.config.yaml_file import dump_config
from tastemaker.errors import ConfigError, DataError
from tastemaker.human_evaluation.study import ComparedModel, read_study
from tastemaker.labelling.image_files import image_path
from tastemaker.labelling.project import open_project
from tastemaker.labelling.tables import Prompt, Task, TaskImage


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str]:
    image_folder(tmp_path / "a", flat, 3, 2)
    image_folder(tmp_path / "b", noise, 3, 2)
    return "one=a", "two=b"


def run_folder(path: Path, **sampling: float) -> Path:
    """A run with an adapter, as far as it is recognised."""
    (path / "adapter").mkdir(parents=True)
    (path / "adapter" / "pytorch_lora_weights.safetensors").touch()
    config = PRESETS["ddpo-compressibility"].config
    text = dump_config(replace(config, sampling=replace(config.sampling, **sampling)))
    (path / "config.yaml").write_text(text)
    return path


# ---------------------------------------------------------------- create


def test_every_flag_of_create_acts(folders: tuple[str, str], capsys: pytest.CaptureFixture[str]):
    Path("how.md").write_text("Look closely.")
    Path("prompts.txt").write_text("prompt 0\nprompt 2\n")
    argv = ["--prompts", "prompts.txt", "--n", "1", "--questions", "style=Which is nicer?", "--mode", "rank",
            "--overlap", "3", "--stop-when", "complete", "--max-answers", "7", "--level", "0.9", "--ties",
            "--both-bad", "--skip", "--marks", "odd", "--title", "Study", "--instructions", "how.md", "--gold-rate",
            "0.1", "--repeat-rate", "0.2", "--lease-minutes", "9", "--height", "8", "--width", "8"]  # fmt: skip
    assert main(["compare", "create", "p", *folders, *argv]) == 0
    out = capsys.readouterr().out
    assert "2 prompts, 2 prompts and seeds, 1 questions: 2 tasks of 2 images, 6 answers, into p" in out
    assert "one: 4 images are left out" in out
    study = read_study("p")
    assert [(one.name, one.source) for one in study.models] == [("one", "a"), ("two", "b")]
    assert [(one.name, one.text) for one in study.questions] == [("style", "Which is nicer?")]
    assert (study.stopping.when, study.stopping.max_answers, study.stopping.level) == ("complete", 7, 0.9)
    with open_project("p") as project, project.database.read() as session:
        s = project.settings
        assert (s.mode, s.images, s.overlap, s.ties, s.both_bad, s.skip, s.marks) == (
            "rank", 2, 3, True, True, True, ("odd",)
        )  # fmt: skip
        assert (s.title, s.instructions, s.gold_rate, s.repeat_rate, s.lease_minutes) == (
            "Study", "Look closely.", 0.1, 0.2, 9
        )  # fmt: skip
        assert s.validation == 0
        assert set(session.scalars(sa.select(Prompt.text))) == {"prompt 0", "prompt 2"}
        name = session.scalars(sa.select(TaskImage.sha256)).first()
    with Image.open(image_path(Path("p"), str(name))) as image:
        assert image.size == (8, 8)


def test_what_create_does_without_flags(folders: tuple[str, str]):
    assert main(["compare", "create", "p", *folders]) == 0
    study = read_study("p")
    assert [one.name for one in study.questions] == ["fidelity", "alignment"]
    assert len(study.tasks) == 3 * 2 * 2
    with open_project("p") as project:
        s = project.settings
    assert (s.mode, s.overlap, s.ties, s.both_bad, s.skip, s.marks) == ("pair", 1, False, False, False, ())
    image_folder(Path("c"), lambda n: noise(n + 99), 3, 2)
    assert main(["compare", "create", "q", *folders, "c"]) == 0
    with open_project("q") as project:
        assert (project.settings.mode, project.settings.task_size) == ("best", 3)


def test_models_are_sampled_as_by_sample(folders: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The bundled model's images beside others of the same prompts and seeds, by all flags of the sampler."""
    flags = ["--steps", "2", "--guidance", "2", "--eta", "0.5", "--seed", "3"]
    assert main(["sample", "--prompt", "a red star", "--prompt", "a blue fish", "--n", "2", *flags, "--out", "s"]) == 0
    listing = json.loads(Path("s/samples.json").read_text())
    Path("given").mkdir()
    for index, row in enumerate(listing):
        noise(index).resize((32, 32)).save(f"given/{row['file']}")
    Path("given/samples.json").write_text(json.dumps(listing))
    assert main(["compare", "create", "p", "base=bundled", "given", "--questions", "fidelity", *flags]) == 0
    study = read_study("p")
    assert study.sampling["seed"] == 3
    assert (study.sampling["steps"], study.sampling["guidance"], study.sampling["eta"]) == (2, 2, 0.5)
    expected = {(row["prompt"], row["seed"]): row["file"] for row in listing}
    with open_project("p") as project, project.database.read() as session:
        for task in study.tasks:
            row = session.execute(sa.select(Task.id, Prompt.text).join(Prompt).where(Task.number == task.number)).one()
            position = task.models.index(0)
            name = session.scalar(
                sa.select(TaskImage.sha256).where(TaskImage.task_id == row.id, TaskImage.position == position)
            )
            with (
                Image.open(image_path(Path("p"), str(name))) as mine,
                Image.open(Path("s") / expected[row.text, task.seed]) as sampled,
            ):
                assert mine.tobytes() == sampled.convert("RGB").tobytes()
    assert len(study.tasks) == len(listing) == 4


def test_a_dry_run_makes_nothing(capsys: pytest.CaptureFixture[str]):
    run_folder(Path("run"))
    assert main(["compare", "create", "p", "base=bundled", "trained=run", "--n", "2", "--dry-run"]) == 0
    assert "base (bundled), trained (run)" in capsys.readouterr().out
    assert not Path("p").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "give the folder of the new project and the models"),
        (["p"], "2 or 3 models, but 0 are given"),
        (["p", "one=a"], "2 or 3 models, but one is given"),
        (["p", "one=a", "two=a"], "one and two are both a"),
        (["p", "one=a", "two=x/y/z"], "two is x/y/z, but there is no such folder or file"),
        (["p", "one=a", "two="], "names no model"),
        (["p", "one=a", "two=bare"], "bare has images without prompts"),
        (["p", "one=bundled", "two=some/model"], "give prompts for the models by --prompts"),
        (["p", "one=a", "two=b", "--level", "95"], "--level is 95, but must lie between 0 and 1"),
        (["p", "one=a", "two=b", "--n", "0"], "--n is 0, but must be at least 1"),
        (["p", "one=a", "two=b", "--max-answers", "0"], "--max-answers is 0"),
        (["p", "one=a", "two=b", "--mode", "rate"], "--mode cannot be 'rate'"),
        (["a", "one=a", "two=b"], "the output folder a exists already"),
    ],
)
def test_wrong_models(argv: list[str], message: str, folders: tuple[str, str], capsys: pytest.CaptureFixture[str]):
    Path("bare").mkdir()
    flat(0).save("bare/1.png")
    assert main(["compare", "create", *argv]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_sources_are_recognised(folders: tuple[str, str]):
    run = run_folder(Path("run"))
    found = recognised("trained=run")
    assert (found.name, found.model, found.adapter) == ("trained", "bundled", run)
    adapter = recognised("run/adapter")
    assert (adapter.name, adapter.model, adapter.config is not None) == ("adapter", "bundled", True)
    Path("lora").mkdir()
    Path("lora/pytorch_lora_weights.safetensors").touch()
    assert recognised("l=lora", "path/to/checkpoint").model == "path/to/checkpoint"
    assert recognised("l=lora").model == "bundled"
    assert recognised("bundled").model == "bundled"
    assert recognised("sd=some/model").model == "some/model"
    assert recognised("one=a").model is None
    Path("pipeline").mkdir()
    Path("pipeline/model_index.json").touch()
    assert recognised("p=pipeline").model == "pipeline"
    Path("captioned").mkdir()
    flat(0).save("captioned/1.png")
    Path("captioned/1.txt").write_text("a cat")
    assert recognised("captioned").model is None
    (row,) = images_of(ComparedModel("c", "captioned")).images
    assert row == ("a cat", 0)


def test_runs_that_were_sampled_differently():
    run_folder(Path("x"), steps=20)
    run_folder(Path("y"), steps=30)
    given = [recognised("x"), recognised("y")]
    with pytest.raises(
        ConfigError, match=r"the run of x has sampling.steps 20 and that of y 30: give one .* by --steps"
    ):
        base_settings(given)
    sampling, prompts = base_settings(given, ["steps"])
    assert sampling.steps == 20
    assert prompts == PRESETS["ddpo-compressibility"].config.prompts
    assert base_settings([recognised("bundled")]) == (Sampling(), None)


def test_two_images_of_a_seed(tmp_path: Path):
    model = image_folder(tmp_path / "a", flat, 1, 2)
    listing = json.loads(Path("a/samples.json").read_text())
    Path("a/samples.json").write_text(json.dumps([row | {"seed": 0} for row in listing]))
    with pytest.raises(DataError, match="there is another image of the prompt 'prompt 0' and seed 0"):
        images_of(model)


# ---------------------------------------------------------------- serve and result


def test_result(folders: tuple[str, str], capsys: pytest.CaptureFixture[str]):
    main(["compare", "create", "p", *folders, "--questions", "alignment"])
    answer(Path("p"), {"ann": lambda model, question, task: -model}, most=4)
    answer(Path("p"), {"bob": lambda model, question, task: model})
    capsys.readouterr()
    assert main(["compare", "result", "p"]) == 0
    out = capsys.readouterr().out
    assert "alignment: one over two 66.7 % (" in out
    assert "4 wins, 0 ties, 2 losses; undecided" in out
    assert "the study may stop: every task has its answers" in out
    assert Path("p-result/result.html").is_file()
    assert main(["compare", "result", "p", "--out", "r", "--leave-out", "bob"]) == 0
    assert "alignment: one over two 100.0 % (" in capsys.readouterr().out
    assert "tastemaker compare result p --out r --leave-out bob" in Path("r/result.html").read_text()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["result"], "give the folder of a comparison"),
        (["serve"], "give the folder of a comparison"),
        (["result", "nothing"], "nothing is no comparison of models"),
        (["serve", "nothing"], "nothing is no comparison of models"),
        (["result", "p"], "nobody has answered a task of the comparison yet"),
        (["rseult", "p"], "did you mean 'result'"),
    ],
)
def test_what_is_refused(argv: list[str], message: str, folders: tuple[str, str], capsys: pytest.CaptureFixture[str]):
    if argv[1:] == ["p"]:
        main(["compare", "create", "p", *folders])
    assert main(["compare", *argv]) == 2
    assert message in capsys.readouterr().err


def test_serve_is_that_of_labelling_projects(folders: tuple[str, str], monkeypatch: pytest.MonkeyPatch):
    main(["compare", "create", "p", *folders])
    served = []
    monkeypatch.setattr(
        "tastemaker.cli.compare_serve.serve", lambda folder, args: served.append((folder, args.port)) or 0
    )
    assert main(["compare", "serve", "p", "--port", "9"]) == 0
    assert served == [(Path("p"), 9)]


# ---------------------------------------------------------------- from Python


def test_from_python(folders: tuple[str, str], tmp_path: Path):
    options = {
        "n": 1,
        "mode": "pair",
        "overlap": 2,
        "ties": True,
        "stop_when": "complete",
        "max_answers": 5,
        "level": 0.9,
    }
    with tm.compare.create("p", {"one": "a", "two": Path("b")}, questions=["fidelity"], **options) as project:
        assert (project.settings.overlap, project.settings.ties) == (2, True)
        answer(tmp_path / "p", {"ann": lambda model, question, task: model})
        found = tm.compare.result(project, out="r")
    assert len(found.study.tasks) == 3
    assert (found.study.stopping.when, found.study.stopping.max_answers, found.study.stopping.level) == (
        "complete", 5, 0.9
    )  # fmt: skip
    assert found.result.asked[0].preferences[0].losses == 3
    assert Path("r/result.json").is_file()
    with pytest.raises(ConfigError, match="are both a"):
        tm.compare.create("q", {"one": "a", "two": "a"})


def test_loaded_pipelines_are_compared(folders: tuple[str, str]):
    """Two pipelines in memory, one of which has other weights; both stay as they are."""
    import tiny

    one, two = tiny.pipeline(), tiny.pipeline()
    for parameter in two.unet.parameters():
        parameter.data.mul_(1.05)
    before = [parameter.clone() for parameter in two.unet.parameters()]
    with tm.compare.create("p", {"one": one, "two": two}, prompts=["a cat"], steps=2) as project:
        assert project.settings.mode == "pair"
    assert [model.source for model in read_study("p").models] == [
        f"a StableDiffusionPipeline of the program ({name})" for name in ("one", "two")
    ]
    assert all((a == b).all() for a, b in zip(before, two.unet.parameters(), strict=True))
