"""Wrong input through the command line: one clear sentence, exit code 2, nothing half-written."""

from __future__ import annotations

import json

import pytest

from tastemaker.cli.main import main

QUICK = [
    "--rounds", "1", "sampling.steps=2", "sampling.samples=4", "sampling.per_prompt=2", "optimizer.updates=1",
    "evaluation.prompts=1", "evaluation.per_prompt=2",
]  # fmt: skip


def refused(capsys, tmp_path, arguments, message, out="run", code=2):
    """Runs `train`, and checks exit code, sentence and that no run folder came into being."""
    before = sorted(path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts)
    assert main(["train", *arguments, "--out", str(tmp_path / out)]) == code
    errors = capsys.readouterr().err.strip()
    assert errors.startswith("tastemaker: ")
    assert errors.count("\n") == 0
    assert "Traceback" not in errors
    assert message in errors, errors
    assert sorted(path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts) == before


def test_unknown_preset(capsys, tmp_path):
    refused(capsys, tmp_path, ["ddpo-compresibility"], "did you mean 'ddpo-compressibility'?")


def test_misspelt_key_in_a_file(capsys, tmp_path):
    (tmp_path / "run.yaml").write_text("preset: ddpo-compressibility\nsampling:\n  guidence: 3\n")
    refused(capsys, tmp_path, ["--config", str(tmp_path / "run.yaml")], "did you mean 'guidance'?")


@pytest.mark.parametrize("what", ["missing", "empty", "not-a-pipeline", "broken-weights", "other-family"])
def test_unreadable_model(capsys, tmp_path, checkpoint, what):
    folder = tmp_path / "model"
    message = "model"
    if what == "missing":
        message = "there is no model at"
    elif what == "empty":
        folder.mkdir()
        message = "has no model_index.json"
    elif what == "not-a-pipeline":
        folder.mkdir()
        (folder / "model_index.json").write_text("{")
        message = "cannot load the model"
    elif what == "other-family":
        folder.mkdir()
        (folder / "model_index.json").write_text(json.dumps({"_class_name": "PixArtAlphaPipeline"}))
        message = "is a PixArtAlphaPipeline; this version trains StableDiffusionPipeline"
    else:
        import shutil

        shutil.copytree(checkpoint, folder)
        weights = folder / "unet/diffusion_pytorch_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
        message = "cannot load the model"
    refused(capsys, tmp_path, ["ddpo-compressibility", "--model", str(folder), *QUICK], message)


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "is empty"), (b"a cat\xff\xfe\n", "not UTF-8"), (None, "there is no file")]
)
def test_unusable_prompts(capsys, tmp_path, checkpoint, content, message):
    if content is not None:
        (tmp_path / "p.txt").write_bytes(content)
    arguments = ["ddpo-compressibility", "--model", str(checkpoint), "--prompts", str(tmp_path / "p.txt"), *QUICK]
    refused(capsys, tmp_path, arguments, message)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise RuntimeError('server is down')", "raised RuntimeError: server is down"),
        ("raise SystemExit('no API key')", "taste called sys.exit('no API key')"),
        ("return x.mean(dim=(1, 2, 3)).double() + 1e39", "float32 cannot hold"),
        ("return x.mean(dim=(2, 3))", "returned shape [2, 3] for 2 images"),
        ("return x.mean(dim=(1, 2, 3)) * float('nan')", "returned nan for 2 of 2 images"),
        ("return x.mean(dim=(1, 2, 3)) / 0", "returned inf for 2 of 2 images"),
    ],
)
def test_a_bad_reward(capsys, tmp_path, monkeypatch, checkpoint, body, message):
    name = f"bad_{abs(hash(body))}"
    (tmp_path / f"{name}.py").write_text(f"def taste(x, prompts):\n    {body}\n")
    monkeypatch.chdir(tmp_path)
    arguments = ["ddpo-compressibility", "--model", str(checkpoint), "--reward", f"{name}:taste", *QUICK]
    refused(capsys, tmp_path, arguments, message)


def test_a_reward_that_breaks_later_keeps_the_work(capsys, tmp_path, monkeypatch, checkpoint):
    """Base evaluation and round 1 are fine; round 2 is not: the run stops before its update, and can go on."""
    (tmp_path / "later_taste.py").write_text(
        "calls = []\ndef taste(x, prompts):\n    calls.append(1)\n"
        "    return x.mean(dim=(1, 2, 3)) * (float('nan') if len(calls) > 3 else 1)\n"
    )
    monkeypatch.chdir(tmp_path)
    arguments = [
        "train", "ddpo-compressibility", "--model", str(checkpoint), "--reward", "later_taste:taste", *QUICK,
        "--rounds", "5", "--checkpoint.every", "1", "evaluation.every=1", "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    assert main(arguments) == 2
    assert "returned nan" in capsys.readouterr().err
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [record["round"] for record in records if "round" in record] == [1]
    assert [path.name for path in sorted((tmp_path / "run/checkpoints").iterdir())][-1] == "step-000001"


def test_an_output_folder_in_use(capsys, tmp_path, checkpoint):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/mine.txt").write_text("mine")
    refused(capsys, tmp_path, ["ddpo-compressibility", "--model", str(checkpoint), *QUICK], "exists already")
    assert (tmp_path / "run/mine.txt").read_text() == "mine"


def test_an_output_folder_that_cannot_be_made(capsys, tmp_path, checkpoint):
    (tmp_path / "file").write_text("")
    arguments = ["ddpo-compressibility", "--model", str(checkpoint), *QUICK]
    refused(capsys, tmp_path, arguments, "cannot write to", out="file/run")
    assert main(["train", *arguments, "--out", "/proc/run"]) == 2
    assert "cannot write to /proc" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("sampling.eta=0", "a policy needs noise"),
        ("algorithm=nft sampling.eta=0 sampling.per_prompt=2 sampling.branches=2", "which makes one image"),
        ("algorithm=nft sampling.eta=0 sampling.engine=http://localhost:1", "checked at a step with noise"),
        ("optimizer.updates=3", "does not divide"),
        ("sampling.height=33", "multiple of 8"),
        ("optimizer.lr=fast", "expected a number"),
        ("optimizer.rate=1", "optimizer.rate"),
    ],
)
def test_settings_that_do_not_fit(capsys, tmp_path, checkpoint, setting, message):
    refused(capsys, tmp_path, ["ddpo-compressibility", "--model", str(checkpoint), *QUICK, *setting.split()], message)


def test_a_loss_that_is_not_finite_stops_before_the_weights(capsys, tmp_path, checkpoint):
    arguments = [
        "train", "ddpo-compressibility", "--model", str(checkpoint), *QUICK, "--rounds", "4", "optimizer.lr=1e30",
        "optimizer.updates=2", "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    assert main(arguments) == 3
    error = capsys.readouterr().err
    assert "is not finite" in error
    assert "smaller optimizer.lr" in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["algorithm=dpo", "sampling.per_prompt=1"], "learns from pairs of images of one prompt"),
        (
            ["algorithm=diffusion-dpo"],
            "pairs.sources is empty, but the algorithm diffusion-dpo learns from pairs of images",
        ),
    ],
)
def test_an_algorithm_that_lacks_what_it_needs_is_refused_before_anything_is_sampled(
    checkpoint, tmp_path, capsys, words, message
):
    run = tmp_path / "run"
    assert main(["train", "ddpo-compressibility", "--model", str(checkpoint), "--out", str(run), *words]) == 2
    assert message in capsys.readouterr().err
    assert not run.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--reward", "jpeg-compressibility"], "take one of"),
        (["--reward", "soft-colourfulness", "optimizer.inner_epochs=2"], "makes its images anew"),
        (["--reward", "soft-colourfulness", "algorithm.objective=hinge"], "give algorithm.target"),
        (
            ["--reward", "soft-colourfulness", "algorithm.truncation=gaussian"],
            "the mean number of trained steps",
        ),
        (["--reward", "soft-colourfulness", "algorithm.last=3"], "the number of steps is drawn"),
        (["--reward", "soft-colourfulness", "sampling.eta=-1"], "must not be negative"),
    ],
)
def test_a_gradient_that_cannot_be_followed_is_refused_before_any_weights_load(capsys, tmp_path, words, message):
    # There is no such model: whoever looked for it would say so instead.
    start = ["ddpo-compressibility", "--model", "no/such/model", "algorithm=alignprop"]
    refused(capsys, tmp_path, [*start, *words], message)


def test_a_reward_that_says_it_has_a_gradient_and_has_none(capsys, tmp_path, monkeypatch, checkpoint):
    body = "def fake(x, prompts):\n    return x.detach().mean((1, 2, 3))\nfake.differentiable = True\n"
    (tmp_path / "detached.py").write_text(body)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    words = ["ddpo-compressibility", "--model", str(checkpoint), "algorithm=alignprop", "--reward", "detached:fake"]
    prompts = ["--prompts", "ddpo-animals"]
    assert main(["train", *words, *prompts, *QUICK, "--out", str(tmp_path / "run")]) == 2
    assert "its answer has no gradient" in capsys.readouterr().err
