"""`tastemaker reward train`: the whole command at small scale, its dry run, and one sentence for each wrong input."""

from __future__ import annotations

import dataclasses
import json

import pytest

from compared import project, table
from tastemaker.cli import reward_train
from tastemaker.cli.main import main
from tastemaker.cli.reward_train import RewardTrainArgs
from tastemaker.errors import TastemakerError
from tastemaker.rewards.preferences.files import read_description
from tastemaker.rewards.registry import load_reward


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    return project(tmp_path_factory.mktemp("labels") / "p")


def test_the_command_makes_a_reward(labels, capsys):
    words = ["reward", "train", str(labels), "--kind", "head", "--epochs", "2", "--no-curve", "--members", "2"]
    assert main([*words, "--out", "runs/rm"]) == 0
    said = capsys.readouterr()
    assert "12 tasks" in said.out or "training and" in said.out
    assert "validation accuracy" in said.out
    assert "use it: --reward runs/rm" in said.out
    assert load_reward("runs/rm:penalty=1").differentiable
    description, _ = read_description_of("runs/rm")
    assert description.training["command"].startswith("tastemaker reward train")
    assert description.training["labelers"] == 1
    # The next one has its own folder.
    assert main(words) == 0
    assert load_reward("runs/reward-model-1").name == "runs/reward-model-1"


def read_description_of(folder):
    from pathlib import Path

    return read_description(Path(folder))


def test_a_dry_run_writes_nothing(labels, tmp_path, capsys):
    assert main(["reward", "train", str(labels), "--out", "runs/rm", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "pairs (0 ties), 36 images" in said
    assert "unet of bundled, into runs/rm" in said
    assert not list(tmp_path.iterdir())


def test_it_says_how_many_tasks_other_sources_splits_take_from_training(tmp_path, capsys):
    """Of the same 12 prompts one project sets 5 apart, the other 6, and both the same 3: 2 and 3 tasks move."""
    one, same, other = (str(project(tmp_path / name, seed=seed)) for name, seed in (("a", 1), ("b", 1), ("c", 5)))
    said = "5 of the validation tasks are training tasks of their own source"
    for given, spoken in (([one, same], False), ([one, other], True), ([one, other, "--validation", "0.5"], False)):
        assert main(["reward", "train", "--kind", "head", "--dry-run", *given]) == 0
        printed = capsys.readouterr().out
        assert (said in printed) == printed.endswith("splits all sources anew\n") == spoken, given


def test_every_flag_reaches_the_training(labels, monkeypatch):
    """Each flag with a value that is not its default, looked for in what the training is given."""
    from tastemaker.reward_models import train

    given = {}

    def caught(found, architecture, training, out, **rest):
        given.update(architecture=architecture, training=training, out=out, found=found, **rest)
        raise TastemakerError("enough")

    monkeypatch.setattr(train, "train_reward_model", caught)
    values = {
        "kind": "unet", "size": "48", "timesteps": ("0", "200"), "heads": "2", "seed": "5", "epochs": "7", "lr": "0.5",
        "weight-decay": "0.25", "batch": "3", "patience": "4", "text-dropout": "0.1", "guidance": "2", "members": "3",
        "center-rewards-coefficient": "0.05",
        "curve": ("4", "8"), "validation": "0.5", "split-by": "task", "standardise": "samples", "samples": "9",
        "steps": "6",
    }  # fmt: skip
    words = [w for name, v in values.items() for w in (f"--{name}", *((v,) if isinstance(v, str) else v))]
    words += ["--no-bootstrap", "--refit", "--resize", "--out", "runs/rm", "--model", "bundled"]
    assert main(["reward", "train", str(labels), *words]) == 2
    architecture, training = given["architecture"], given["training"]
    assert (architecture.size, architecture.timesteps, architecture.heads) == (48, (0, 200), 2)
    assert dataclasses.asdict(training) == {
        "seed": 5, "epochs": 7, "lr": 0.5, "weight_decay": 0.25, "batch": 3, "patience": 4, "text_dropout": 0.1,
        "center_rewards_coefficient": 0.05, "guidance": 2.0,
        "members": 3, "bootstrap": False, "refit": True, "curve": (4, 8), "standardise": "samples",
    }  # fmt: skip
    assert (given["resize"], given["samples"].count, given["samples"].steps) == (True, 9, 6)
    prompts = {task.prompt for task in given["found"].validation} & {task.prompt for task in given["found"].training}
    assert given["found"].validation or prompts
    for words, found in (
        (["--kind", "head", "--hidden", "8", "--dropout", "0.2", "--features", "unet"], ("head", "unet", 8, 0.2, 0)),
        (["--kind", "head", "--features", "transformer", "--model", "sd3"], ("head", "transformer", 0, 0.0, 0)),
        (["--kind", "clip", "--layers", "2"], ("clip", "clip", 0, 0.0, 2)),
        (["--kind", "clip", "--clip", "some/where", "--logit-scale", "None"], ("clip", "clip", 0, 0.0, 0)),
    ):
        assert main(["reward", "train", str(labels), *words]) == 2
        made = given["architecture"]
        assert (made.kind, made.features, made.hidden, made.dropout, made.layers) == found
    assert given["architecture"].clip == "some/where"
    words = ["--kind", "transformer", "--model", "sd3", "--blocks", "5", "--precision", "bf16"]
    assert main(["reward", "train", str(labels), *words]) == 2
    made = given["architecture"]
    assert (made.kind, made.model, made.blocks, made.precision) == ("transformer", "sd3", 5, "bf16")
    words = ["--kind", "clip", "--clip", "some/where", "--logit-scale", "None"]
    assert main(["reward", "train", str(labels), *words]) == 2
    assert given["architecture"].logit_scale is None
    # A CLIP's rewards may be standardised by a diffusion model's samples.
    assert main(["reward", "train", str(labels), "--kind", "clip", "--standardise", "samples", "--model", "sd"]) == 2
    assert given["samples"].model == "sd"


WRONG = {
    (): "give a labelling project or a table of pairs",
    ("nowhere",): "there are no images at nowhere",
    ("LABELS", "--kind", "vit"): "--kind cannot be 'vit'",
    ("LABELS", "--kind", "clip", "--heads", "2"): "heads is a setting of kinds unet and transformer",
    ("LABELS", "--kind", "clip", "--model", "sd"): "model is a setting of reward models on latents",
    ("LABELS", "--guidance", "3"): "guidance is 3, which needs a model that was also trained without prompts",
    ("LABELS", "--validation", "1"): r"--validation is 1, but must lie in [0, 1)",
    ("LABELS", "--samples", "1"): "--samples is 1, but must be at least 2",
    ("LABELS", "--lr", "0"): "lr is 0.0, but must be greater than 0, or none",
    ("LABELS", "--epocs", "3"): "did you mean --epochs?",
    ("LABELS", "--model", "no-such-folder"): "no-such-folder",
    ("LABELS", "--out", "LABELS"): "the output folder",
    ("LARGE",): "the image has 48 x 48 pixels, but the model reads 32 x 32",
    ("FEW",): "has 5 labelled tasks, but a reward model needs at least 10",
    ("TIES",): "has ties only",
    ("UNLABELLED",): "has no judgements of two images",
    ("TABLE", "--kind", "head", "--clip", "missing.safetensors"): "there is no file or folder missing.safetensors",
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    rows = [{"prompt": f"{n}", "image_0": f"{n}a.png", "image_1": f"{n}b.png", "preferred": 0} for n in range(12)]
    return {
        "LABELS": project(root / "labels"), "LARGE": project(root / "large", side=48),
        "FEW": project(root / "few", tasks=5), "TIES": project(root / "ties", utility=lambda i: 0),
        "UNLABELLED": project(root / "unlabelled", labelled=False), "TABLE": table(root / "table", rows),
    }  # fmt: skip


@pytest.mark.parametrize("words", WRONG, ids=lambda words: " ".join(words) or "nothing")
def test_wrong_input_is_one_sentence(words, sources, capsys):
    given = [str(sources.get(word, word)) for word in words]
    assert main(["reward", "train", *given, *([] if "--out" in words else ["--out", "runs/rm"]), "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("tastemaker: ")
    assert said.count("\n") == 1
    assert WRONG[words] in said


def test_flags_are_described_and_defaults_are_the_settings(capsys):
    assert main(["reward", "train", "--help"]) == 0
    assert "PickScore's" in capsys.readouterr().out
    assert main(["reward", "--help"]) == 0
    assert "train    train a reward model" in capsys.readouterr().out
    assert main(["reward", "trian"]) == 2
    assert "did you mean 'train'?" in capsys.readouterr().err
    args = RewardTrainArgs(source="x")
    assert reward_train._architecture(args) == type(reward_train._architecture(args))()
    assert reward_train._training(args) == type(reward_train._training(args))()
    assert json.dumps(args.kind) == '"unet"'
